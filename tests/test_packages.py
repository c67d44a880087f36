"""Networks of other packages: the real ones where they are installed, and without torchvision."""

import json
import sys
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import brittle
from brittle.errors import InputError
from brittle.models import packages
from brittle.models.networks import logits_of, seeded

with seeded(0):
    IMAGES = torch.rand(5, 3, 32, 32)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def installed(package: str, extra: str):
    """A package, or a test that is skipped and says what is lacking."""
    try:
        return packages.needed(package, extra)
    except InputError as error:
        pytest.skip(str(error))


def loaded(text: str, said: list[str] | None = None, **options) -> nn.Module:
    return brittle.load_model(text, device="cpu", say=(said if said is not None else []).append, **options)


def refused(text: str, **options) -> str:
    with pytest.raises(InputError) as caught:
        loaded(text, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# timm -----------------------------------------------------------------------------------------------------------------


def test_timm_s_network_takes_its_size_mean_and_classes_from_configuration_and_weights(here):
    timm = installed("timm", "timm")
    with seeded(1):
        own = timm.create_model("test_resnet", num_classes=7).eval()
    torch.save({"state_dict": {f"module.{name}": value for name, value in own.state_dict().items()}}, "mine.pth.tar")
    said: list[str] = []
    found = loaded("timm:test_resnet", said, weights="mine.pth.tar")
    torch.testing.assert_close(logits_of(found, IMAGES), own((IMAGES - 0.5) / 0.5), atol=1e-4, rtol=1e-4)
    assert said == [
        "dropped from the names of the weights: 'module.'",
        "mean 0.5, 0.5, 0.5, std 0.5, 0.5, 0.5: from timm's configuration of test_resnet",
    ]
    expected = packages.timm_expected("test_resnet")
    assert expected.geometry == {"resize": 168, "crop": 160, "interpolation": "bilinear"}
    assert expected.shape == (160, 160)
    torch.testing.assert_close(
        logits_of(loaded("mine.pth.tar", network="timm:test_resnet", mean=0, std=1), IMAGES), own(IMAGES)
    )


def test_a_network_that_timm_lacks_is_said_with_the_nearest(here):
    installed("timm", "timm")
    assert "has no network 'resnet19': did you mean resnet1" in refused("timm:resnet19")


# Hugging Face ---------------------------------------------------------------------------------------------------------


def vit_folder(transformers, folder) -> nn.Module:
    sizes = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.ViTConfig(**sizes, intermediate_size=16, num_labels=4)
    with seeded(1):
        network = transformers.AutoModelForImageClassification.from_config(config).eval()
    network.save_pretrained(folder)
    told = {"size": {"height": 32, "width": 32}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.5, 0.25]}
    (folder / "preprocessor_config.json").write_text(json.dumps({**told, "do_normalize": True, "resample": 3}))
    return network


@pytest.mark.filterwarnings("ignore")
def test_a_folder_of_hugging_face_s_is_loaded_as_its_preprocessor_says(here):
    transformers = installed("transformers", "hf")
    network, said = vit_folder(transformers, here / "vit"), []
    found = loaded("vit", said)
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.5, 0.5, 0.25]).view(3, 1, 1)
    torch.testing.assert_close(logits_of(found, IMAGES), network((IMAGES - mean) / std).logits)
    assert said == ["mean 0.5, 0.4, 0.3, std 0.5, 0.5, 0.25: from vit/preprocessor_config.json"]
    state = network.state_dict()
    save_file(
        {name: value for name, value in state.items() if "classifier" not in name}, here / "vit/model.safetensors"
    )
    assert "missing_keys: classifier.bias, classifier.weight" in refused("vit")


def test_a_folder_whose_configuration_names_code_is_refused_and_not_run(here):
    (here / "evil").mkdir()
    (here / "evil" / "config.json").write_text(json.dumps({"auto_map": {"AutoConfig": "code.Config"}}))
    (here / "evil" / "code.py").write_text(f"import os\nos.mkdir({str(here / 'ran')!r})\n")
    assert "names code of its own, which was not run: --trust allows it" in refused("evil")
    assert not (here / "ran").exists()


@pytest.mark.parametrize(
    ("told", "geometry", "mean"),
    [
        ({"size": 224}, {"size": (224, 224)}, None),
        ({"size": {"height": 30, "width": 40}, "resample": 2}, {"size": (30, 40)}, None),
        (
            {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}},
            {"resize": 256, "crop": 224},
            None,
        ),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, {"resize": 256, "crop": 224}, None),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, {"size": (384, 384)}, None),
        ({"do_resize": False, "size": 224}, {}, None),
        ({"image_mean": [0.5], "image_std": [0.5]}, {}, (0.5,)),
        ({"image_mean": [127.5], "image_std": [127.5], "do_rescale": False}, {}, (0.5,)),
        ({"image_mean": [0.5], "image_std": [0.5], "do_normalize": False}, {}, None),
    ],
)
def test_a_preprocessor_s_configuration_is_read_as_transformers_does(here, told, geometry, mean):
    (here / "config.json").write_text("{}")
    (here / "preprocessor_config.json").write_text(json.dumps(told))
    found = packages.folder_expected(here)
    assert {name: value for name, value in found.geometry.items() if name != "interpolation"} == geometry
    assert found.mean == mean


# ONNX -----------------------------------------------------------------------------------------------------------------


class Flat(nn.Module):
    """A network that an export binds to one batch size."""

    def __init__(self, count: int):
        super().__init__()
        self.count, self.conv, self.dense = count, nn.Conv2d(3, 4, 3, 4), nn.Linear(256, 6)

    def forward(self, images):
        return self.dense(self.conv(images).relu().reshape(self.count, -1))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("batch", [1, 2])
def test_an_onnx_file_answers_as_its_network_for_any_number_of_images(here, batch):
    installed("onnx2torch", "onnx")
    with seeded(2):
        network, said = Flat(batch).eval(), []
    torch.onnx.export(network, (IMAGES[:batch],), "net.onnx", dynamo=False, opset_version=13)
    found = loaded("net.onnx", said)
    network.count = len(IMAGES)
    torch.testing.assert_close(logits_of(found, IMAGES), network(IMAGES))
    assert said == [f"net.onnx was exported for batches of {batch}: images are given to it in such batches"]


def test_what_is_no_onnx_is_said(here):
    installed("onnx2torch", "onnx")
    (here / "no.onnx").write_bytes(b"no")
    assert "model no.onnx cannot be read as ONNX: " in refused("no.onnx")


# What is not installed ------------------------------------------------------------------------------------------------


def test_a_package_that_is_not_installed_is_said_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"this needs the package timm: pip install 'brittle\[timm\]'"):
        packages.needed("timm", "timm")


def test_packages_that_import_torchvision_are_imported_without_it(here, monkeypatch):
    monkeypatch.syspath_prepend(here)
    monkeypatch.setattr(packages.importlib, "import_module", no_torchvision)
    monkeypatch.setattr(packages, "ALONE", ("imports_torchvision",))
    (here / "imports_torchvision.py").write_text(
        "from torchvision.transforms import InterpolationMode as Mode\nimport torchvision.ops as ops\n"
        "ways = {Mode.NEAREST: 'nearest', Mode.BICUBIC: 'bicubic'}\n"
        "assert not isinstance(3, ops.misc.FrozenBatchNorm2d)\n"
    )
    assert len(packages.needed("imports_torchvision", "timm").ways) == 2
    assert not [name for name in sys.modules if name.startswith("torchvision")]


def no_torchvision(name: str) -> ModuleType:
    if name == "torchvision":
        raise RuntimeError("operator torchvision::nms does not exist")
    __import__(name)
    return sys.modules[name]
