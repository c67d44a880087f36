"""Adversarial images to keep: as PNG files of 8 bits, verified as they are in these files, and a CSV file."""

from __future__ import annotations

import csv
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from brittle.attacks.result import AttackResult, check_request, logits_in_batches
from brittle.errors import InputError
from brittle.progress import Progress, barred, silent

if TYPE_CHECKING:
    from PIL.Image import Image

_SLACK = 1e-4  # levels of 255 by which a bound may be missed, as it was rounded to float32
_SIZES = {"l0": 0.0, "l1": 1.0, "l2": 2.0, "linf": math.inf}
COLUMNS = (
    *("image", "name", "label", "label_class", "target", "target_class", "clean_prediction", "wrong_before"),
    *("fooled", "prediction", "prediction_class", *_SIZES, "forwards", "backwards"),
    *("survives", "png_fooled", "png_prediction", *(f"png_{name}" for name in _SIZES)),
    *("clean_file", "adversarial_file"),
)


def in_8_bits(found: AttackResult) -> tuple[Tensor, Tensor]:
    """The clean and the adversarial images (B, C, H, W), as files of 8 bits a channel hold them.

    Perturbations are rounded to the nearest level. Within a bound they are rounded so that they stay inside: in
    L-infinity to the nearest level that there is in it, in L1 and L2 towards the clean image.
    """
    clean = (found.images.clamp(0, 1) * 255).round()
    change = found.adversarial.clamp(0, 1) * 255 - clean
    levels = change.round()
    if found.bound is not None and found.bound.norm == math.inf:
        most = math.floor(found.bound.eps * 255 + _SLACK)
        levels = levels.clamp(-most, most)
    elif found.bound is not None and found.bound.norm in (1, 2):
        levels = change.trunc()
    return clean / 255, (clean + levels).clamp(0, 255) / 255


@barred("writing images")
def write_images(
    found: AttackResult,
    model: nn.Module,
    folder: Path | str,
    *,
    classes: Sequence[str] = (),
    names: Sequence[str] = (),
    progress: Progress | None = None,
) -> Path:
    """Writes clean/ and adversarial/, a PNG file for each image that was fooled, and images.csv, a row for each image.

    A PNG file has 8 bits a channel, so the model is asked again for what the files hold: `survives` says whether the
    image is still adversarial there, and within the bound where the attack kept to one; see `in_8_bits`. The sizes of
    the perturbation are given before rounding and, as png_l0 to png_linf, of the files. An image that was wrong from
    the start, or not fooled, has no files.

    Args:
        found: what an attack gave back: images of 1 or 3 channels.
        model: the one that was attacked.
        folder: made if need be; files of these names are replaced.
        classes: the names of the classes, in the order of the model's outputs.
        names: of the images, such as the files that they were read from.
        progress: told the images written.

    Returns:
        The CSV file.

    Raises:
        InputError: if the images are of other channels, `names` is of another length, or a file cannot be written.
    """
    if (channels := found.images.shape[1]) not in (1, 3):
        raise InputError(f"images of 1 or 3 channels can be written as PNG files, got {channels}")
    if names and len(names) != len(found.images):
        raise InputError(f"names must be one for each of {len(found.images)} images, got {len(names)}")
    asked = check_request(model, found.images, found.labels, found.targets)
    clean, adversarial = in_8_bits(found)
    logits = logits_in_batches(asked.model, adversarial)
    fooled = asked.goal.reached(logits) & found.success
    files = replace(found, images=clean, adversarial=adversarial, success=fooled, prediction=logits.argmax(1))
    told = _columns(found, "") | _columns(files, "png_") | {"clean_prediction": asked.clean.argmax(1).tolist()}
    told["wrong_before"] = found.trivial.tolist()
    told["survives"] = (fooled & _inside(files)).tolist()
    shown = (found.success & ~found.trivial).tolist()
    rows = [_row(told, place, shown[place], classes, names) for place in range(len(shown))]
    target, progress = Path(folder), progress or silent
    try:
        for kind in ("clean", "adversarial"):
            (target / kind).mkdir(parents=True, exist_ok=True)
        for place, pair in enumerate(zip(clean, adversarial, strict=True)):
            for kind, image in zip(("clean", "adversarial"), pair, strict=True):
                if shown[place]:
                    _picture(image).save(target / kind / _file(place))
            progress(place + 1, len(shown), "images")
        with (target / "images.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror or error}") from error
    return target / "images.csv"


def _columns(found: AttackResult, before: str) -> dict[str, list[Any]]:
    """What a result says of each image, under the names of its columns."""
    sizes = {name: found.norm(p).tolist() for name, p in _SIZES.items()}
    told = {"fooled": found.success.tolist(), "prediction": found.prediction.tolist(), **sizes}
    if not before:
        told |= {name: getattr(found, name).tolist() for name in ("labels", "forwards", "backwards")}
        told["targets"] = [None] * len(found.labels) if found.targets is None else found.targets.tolist()
    return {f"{before}{name}": values for name, values in told.items()}


def _inside(files: AttackResult) -> Tensor:
    """(B,) bool: whether the images are within the bound that the attack kept to, if it kept to one."""
    if files.bound is None:
        return torch.ones_like(files.success)
    return files.norm(files.bound.norm) <= files.bound.eps + _SLACK / 255


def _row(
    told: Mapping[str, list[Any]], place: int, shown: bool, classes: Sequence[str], names: Sequence[str]
) -> dict[str, Any]:
    row = {name: values[place] for name, values in told.items()}
    row |= {"image": place, "label": row.pop("labels"), "target": row.pop("targets")}
    row["name"] = names[place] if names else ""
    row |= {
        f"{name}_class": classes[row[name]] if row[name] is not None and row[name] < len(classes) else ""
        for name in ("label", "target", "prediction")
    }
    row |= {f"{kind}_file": f"{kind}/{_file(place)}" if shown else "" for kind in ("clean", "adversarial")}
    of_files = {"survives", *(name for name in COLUMNS if name.startswith("png_"))}
    return {name: in_a_cell(row[name] if shown or name not in of_files else None) for name in COLUMNS}


def _file(place: int) -> str:
    return f"{place:06d}.png"


def _picture(image: Tensor) -> Image:
    from PIL import Image

    pixels = (image * 255).round().byte().cpu().numpy()
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def in_a_cell(value: Any) -> Any:
    """As a spreadsheet can take it: a name that begins like a formula gets an apostrophe; NaN is empty.

    Spreadsheets skip spaces before a formula, and some read the full-width signs as well.
    """
    if isinstance(value, str) and unicodedata.normalize("NFKC", value).lstrip().startswith(("=", "+", "-", "@")):
        return f"'{value}"
    if isinstance(value, float):
        return format(value, ".6g") if math.isfinite(value) else ""
    return "" if value is None else value
