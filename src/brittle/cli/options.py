"""The options of commands, each written once: a command takes those that it names."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from brittle.errors import InputError

if TYPE_CHECKING:
    from brittle.data import Data
    from brittle.models import load
    from brittle.models.prepared import Expected
    from brittle.progress import Progress
    from brittle.study.store.store import Store as CellStore

Say = Callable[[str], None]


# Texts as values ------------------------------------------------------------------------------------------------------


def number(text: str) -> float:
    """'0.03' or '8/255' as a number."""
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        raise typer.BadParameter(f"a number such as 0.03 or 8/255 was expected, got {text!r}") from None


def numbers(text: str) -> tuple[float, ...]:
    """'0.49, 0.48, 0.45' as numbers."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"numbers with commas between, such as 0.49,0.48,0.45, were expected, got {text!r}"
        ) from None


def sides(text: str) -> tuple[int, int]:
    """'224', or height and width as '224x320', in pixels."""
    if not re.fullmatch(r"[1-9]\d{0,4}([x,][1-9]\d{0,4})?", text):
        raise typer.BadParameter(f"pixels such as 224, or height and width as 224x320, were expected, got {text!r}")
    found = [int(part) for part in re.split("[x,]", text)]
    return found[0], found[-1]


def folder(text: str) -> Path:
    """The folder that an option names."""
    if not text.strip():
        raise typer.BadParameter("a folder must be named, got an empty text")
    if "\0" in text:
        raise typer.BadParameter(f"a folder's name has no NUL, got {text!r}")
    return Path(text)


def _folder(*names: str, help: str) -> Any:
    return typer.Option(*names, parser=folder, metavar="FOLDER", help=help)


# Where things lie, what computes, what is printed ---------------------------------------------------------------------

Store = Annotated[
    Path | None,
    _folder("--store", help="Folder of finished cells. [default: $BRITTLE_HOME, or the user's data folder]"),
]
DataRoot = Annotated[
    Path | None,
    _folder("--data-root", help="Folder with data sets, searched before $BRITTLE_DATA and the cache."),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda[:N].")]
Dtype = Annotated[str, typer.Option(help="Of training: auto, float32 or bfloat16. Attacks always run in float32.")]
Threads = Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads. [default: the idle cores]")]
BatchSize = Annotated[
    int | None,
    typer.Option(min=1, help="Images that go through a model at once. [default: as many as fit into memory]"),
]
Workers = Annotated[
    int | None, typer.Option(min=1, max=1024, help="Processes that share the cells and the threads. [default: 1]")
]
Engine = Annotated[str, typer.Option(help="Where cells are computed: here, or ray.")]
Address = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Address of a Ray cluster, or auto. [default: a Ray started here]"),
]
GpusPerCell = Annotated[
    float | None,
    typer.Option(min=0.01, help="GPUs that Ray reserves for a cell; may be a part of one. [default: 1]"),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Compute everything anew, even what is in the store.")]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust", help="Run code from outside brittle: of a pickle, an archive, a study file, or another's store."
    ),
]
Output = Annotated[
    Path | None, _folder("--output", "-o", help="Folder for the page. [default: reports/NAME in the store]")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results only, no progress.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print a line for each cell, and tracebacks of errors.")]

# A study --------------------------------------------------------------------------------------------------------------

Seed = Annotated[
    int | None, typer.Option(min=0, max=2**32 - 1, help="Run with this seed. [default: the study's seeds]")
]
OneSeed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of all random draws.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key: --set training.epochs=3")
]
Size = Annotated[
    str | None, typer.Option(help="Which of the study file's sizes to run. [default: the file as it is written]")
]
StudyName = Annotated[str, typer.Argument(help="A built-in study, or a .toml file.")]
Name = Annotated[
    str | None,
    typer.Option(help="Name for the result, for `brittle report`. [default: made of what is done, with a hash]"),
]

# Attacks --------------------------------------------------------------------------------------------------------------

Eps = Annotated[
    float | None,
    typer.Option(
        parser=number,
        metavar="NUMBER",
        help="Largest perturbation: 0.03 or 8/255. [default: the usual one for such images]",
    ),
]
Norm = Annotated[str, typer.Option(help="Norm of the perturbation: linf, l2, l0 or all.")]
Rows = Annotated[int, typer.Option(help="Number of test images to attack.")]


# The data and the model that a command is about -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Images:
    """The data that a command is about, and how they become what a model takes; see `data.load`."""

    data: Annotated[
        str | None,
        typer.Option(
            help="A data set's name, a folder of class folders, or an .npz file. [default: what a cell was trained on]"
        ),
    ] = None
    size: Annotated[
        Any,
        typer.Option(parser=sides, metavar="PIXELS", help="Resize images to this height and width: 224 or 224x320."),
    ] = None
    resize: Annotated[int | None, typer.Option(min=1, help="Resize the shorter side to so many pixels.")] = None
    crop: Annotated[
        Any, typer.Option(parser=sides, metavar="PIXELS", help="Then cut this height and width out of the centre.")
    ] = None
    interpolation: Annotated[
        str | None, typer.Option(help="Of resizing: bilinear, bicubic or nearest. [default: bilinear]")
    ] = None
    channels: Annotated[int | None, typer.Option(help="1 or 3: make images grey, or grey images coloured.")] = None
    layout: Annotated[str | None, typer.Option(help="Of an .npz file's images: NCHW or NHWC.")] = None
    classes: Annotated[
        str | None,
        typer.Option(
            help="Which output of the model each class is: 285,967,657, names with commas, or a file of these. "
            "[default: the folders in their order, or their names where these are numbers]"
        ),
    ] = None
    split: Annotated[
        str | None,
        typer.Option(
            help="Which images are test images: all, train, validation, test, or evaluation: test, else validation, "
            "else all. [default: evaluation; of a cell, those it was not trained on]"
        ),
    ] = None
    no_exif: Annotated[bool, typer.Option("--no-exif", help="Leave photos as they lie, whatever EXIF says.")] = False
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out files that cannot be read.")] = False

    @property
    def chosen(self) -> dict[str, Any]:
        """The options that say how images are read, where they are not the defaults."""
        own = (one for one in fields(Images) if one.name != "data")
        return {one.name: value for one in own if (value := getattr(self, one.name)) != one.default}

    def read(
        self,
        place: str,
        root: Path | None,
        *,
        layout: str | None = None,
        split: str | None = None,
        count: int | None = None,
        expected: Expected | None = None,
        say: Say | None = None,
        progress: Progress | None = None,
    ) -> Data:
        """The data, in the size that was asked for, else in the one that the model's configuration names.

        Args:
            place, root: see `data.load`.
            layout, split: where no option says so.
            count: see `data.load`.
            expected: of the model.
            say: told that the size is the model's.
            progress: told images read.
        """
        from brittle.data import load

        wanted = {name: getattr(self, name) for name in ("size", "resize", "crop", "interpolation")}
        geometry = {name: value for name, value in wanted.items() if value is not None}
        if not geometry and expected is not None and (geometry := expected.geometry) and say is not None:
            done = ", ".join(f"{name} {_by(value)}" for name, value in geometry.items())
            say(f"images: {done}: from {expected.source}")
        return load(
            place,
            root,
            **geometry,
            channels=self.channels,
            layout=self.layout or layout,
            classes=self.classes,
            split=self.split or split,
            count=count,
            exif=not self.no_exif,
            skip_bad=self.skip_bad,
            progress=progress,
        )


def _by(value: object) -> str:
    return " x ".join(map(str, value)) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True, kw_only=True)
class ToTrain(Images):
    """The data that a network is trained on."""

    data: Annotated[str, typer.Option(help="A data set's name, a folder of class folders, or an .npz file.")] = "digits"


@dataclass(frozen=True, kw_only=True)
class Named(Images):
    """A model that exists, and the data that it is for; see `load_model` and `data.load`."""

    model: Annotated[
        str,
        typer.Argument(
            help="package.module:callable, file.py:callable, timm:NAME, a Hugging Face folder, an .onnx file, a "
            "trained cell's key (its beginning will do), or a file of weights with --network."
        ),
    ]
    weights: Annotated[
        Path | None,
        typer.Option(help="Weights for package.module:callable or timm:NAME: .safetensors, .pt, .pth or .pth.tar."),
    ] = None
    network: Annotated[
        str | None,
        typer.Option(
            help="Network that a file of weights, given as MODEL, is for: brittle's, timm:NAME or "
            "package.module:callable."
        ),
    ] = None
    mean: Annotated[
        Any,
        typer.Option(
            parser=numbers,
            metavar="NUMBERS",
            help="Per-channel mean that is subtracted from images in [0, 1]: 0.49,0.48,0.45. [default: the model's own "
            "configuration, if it has one]",
        ),
    ] = None
    std: Annotated[
        Any,
        typer.Option(
            parser=numbers, metavar="NUMBERS", help="Per-channel standard deviation by which they are then divided."
        ),
    ] = None

    @property
    def named(self) -> load.Named:
        """The model's names, as `models.load` takes them."""
        from brittle.models.load import Named as ByName

        return ByName(
            self.model, None if self.weights is None else str(self.weights), self.network, self.mean, self.std
        )

    def beside(self, text: str) -> load.Named:
        """A model that is named beside this one, as its reference: a file of weights is of the same network."""
        from brittle.models.load import WEIGHTS
        from brittle.models.load import Named as ByName

        network = None
        if Path(text).suffix in WEIGHTS and not self.is_key:
            network = self.network or (self.model if Path(self.model).suffix not in WEIGHTS else None)
        return ByName(text, None, network, self.mean, self.std)

    @property
    def is_key(self) -> bool:
        """Whether the model is a cell of the store."""
        from brittle.study.load_model import is_key

        return is_key(self.model)

    @property
    def short(self) -> str:
        """The model's name in titles and in names of files."""
        if self.is_key:
            return self.model[:12]
        path = Path(self.model)
        name = self.model.replace(":", ".") if ":" in self.model else path.name if path.is_dir() else path.stem
        return f"{name}-{self.weights.stem}" if self.weights else name

    def resolved(self, store: CellStore) -> Self:
        """The same with the data that a cell was trained on, read as they were then, where no others are named.

        Raises:
            InputError: if nothing says what data are meant.
        """
        if self.data is not None:
            return self
        if not self.is_key:
            raise InputError(
                f"--data is needed: only a cell of the store says what it was trained on, got {self.model!r}"
            )
        key = store.find(self.model)
        stored = store.get(key)
        digest = stored.record["data"] if stored else ""
        for name in store.studies():
            record = store.read_study(name)
            trained = any(model.get("train") == key for model in record.get("models", ()))
            if trained and digest in ("", record.get("digest")):
                told = record["study"]
                return replace(self, data=told["data"], layout=told.get("layout"), **record.get("images", {}))
        raise InputError(f"no study in the store says what data cell {key[:8]} was trained on: name them with --data")
