"""A study file, read and checked.

It says what to train, on what, and how to attack it; any value may be a list, and the study is then the grid of all of
them. `plan` expands it; what a cell does stands in `cells`.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from brittle import naming
from brittle.auditing.battery import BUDGETS
from brittle.errors import InputError, unknown
from brittle.softmax import check_arithmetic
from brittle.training import check_decay_on, check_setting

Numbers = float | list[float]
Integers = int | list[int]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Training(_Table):
    """How every model of the study is trained, unless its own table says otherwise. See `brittle.fit`."""

    network: str | list[str] = "brittle.networks.papernot_mnist"
    network_options: dict[str, Any] = Field(default_factory=dict)
    temperature: Numbers = 1.0
    epochs: Integers = 50
    batch_size: Integers = 128
    learning_rate: Numbers = 0.1
    learning_rate_decay: Numbers = 0.0
    momentum: Numbers = 0.5
    nesterov: bool | list[bool] = False
    weight_decay: Numbers = 0.0
    decay_on: str | list[str] = "weights"

    @field_validator(
        "temperature",
        "epochs",
        "batch_size",
        "learning_rate",
        "learning_rate_decay",
        "momentum",
        "weight_decay",
        mode="after",
    )
    @classmethod
    def _in_range(cls, value: Any, info: ValidationInfo) -> Any:
        for one in listed(value):
            check_setting(str(info.field_name), one)
        return value

    @field_validator("decay_on", mode="after")
    @classmethod
    def _decays(cls, value: str | list[str]) -> str | list[str]:
        for one in listed(value):
            check_decay_on(one)
        return value


class Model(Training):
    """A model of the study: `teacher` names the model whose soft labels it learns from; none means hard labels."""

    teacher: str | None = None


class Attack(BaseModel):
    """An attack of the study; keys beside these are its options."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    function: str
    arithmetic: str | list[str] | None = None
    rows: Annotated[int, Field(ge=1)] | Literal["one_a_class"] | None = None  # of the study's, the first so many or the
    # first of each class; all of them when not given
    shard_rows: int | None = Field(default=None, ge=1)  # rows a cell; the study's when not given
    models: list[str] | None = None  # by name, only these
    seeds: list[int] | None = None  # only these
    targets: Literal["every"] | None = None  # each row against all other classes in turn; when not given, untargeted
    over_temperature: bool = False  # logits are divided by the model's training temperature; not at 1, where it is moot

    @field_validator("arithmetic", mode="after")
    @classmethod
    def _arithmetics(cls, value: str | list[str] | None) -> str | list[str] | None:
        for one in listed(value or []):
            check_arithmetic(one)
        return value


class Units(_Table):
    """Which units of the models matter: their gradients, and what goes when units go; see `unit_cells.units`."""

    layers: Annotated[list[str], Field(min_length=1)] | None = None  # by name, as `get_submodule` has them; of
    # convolutions whole maps; when not given, `units.telling_layers`
    of: Literal["softmax", "logits"] = "softmax"  # what is differentiated
    classes: list[str] | None = None  # by name, whose strongest and weakest units go; all when not given
    random: int = Field(default=10, ge=0)  # draws of units that go in no order
    points: int | None = Field(default=None, ge=2)  # of a curve, from none gone to all; when not given every number
    images: int = Field(default=1000, ge=1)  # of each split, at most: those of the test split are held out
    models: list[str] | None = None  # by name, only these


class Masks(_Table):
    """Additive masks towards every class, by their strength; see `mask_cells.masks`."""

    models: list[str] = Field(min_length=1)  # by name, whose gradients the masks are
    other: str | None = None  # the model, by name, on which they are tried too, of the same seed
    of: Literal["logits", "softmax"] = "logits"  # what is differentiated
    images: int = Field(default=500, ge=1)  # of the training and of the test split, at most
    etas: list[Annotated[int, Field(ge=0)]] = Field(default=[*range(0, 12_751, 750)], min_length=1)  # 0..255 pixels
    epochs: int = Field(default=10, ge=1)  # over the training images, for the mask that they share


class Carriers(_Table):
    """Which units of the models carry an adversarial change; see `carrier_cells.carriers`."""

    layers: Annotated[list[str], Field(min_length=1)] | None = None  # as in Units
    eps: float = Field(default=0.3, gt=0, le=1)  # of the change, L-infinity
    images: int = Field(default=200, ge=1)  # of the test split, at most
    random: int = Field(default=5, ge=0)  # draws of units that go in no order
    points: int | None = Field(default=None, ge=2)  # as in Units
    models: list[str] | None = None  # by name, only these


class Audits(_Table):
    """An audit of the models; see `brittle.audit`."""

    norm: Literal["linf", "l2", "l0"] = "linf"
    eps: float | None = Field(default=None, gt=0)  # the usual one when not given
    rows: int = Field(default=1000, ge=1)  # of the test split, at most
    budget: str = "standard"
    reference: str | None = None  # the model, by name, that is undefended, of the same seed
    models: list[str] | None = None  # by name, only these

    @field_validator("budget", mode="after")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in BUDGETS:
            raise unknown("budget", value, BUDGETS)
        return value


class Study(_Table):
    """A whole study file."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")
    title: str
    about: str = ""
    claims: str | None = None  # the paper whose claims the report sets beside the results
    data: str
    layout: Literal["NCHW", "NHWC"] | None = None
    rows: int | Literal["all"] = 100
    shard_rows: int = Field(default=100, ge=1)
    seeds: list[int] = Field(default=[0], min_length=1)
    training: Training = Training()
    models: dict[str, Model] = Field(min_length=1)
    attacks: dict[str, Attack] = Field(default_factory=dict)
    units: dict[str, Units] = Field(default_factory=dict)
    carriers: dict[str, Carriers] = Field(default_factory=dict)
    masks: dict[str, Masks] = Field(default_factory=dict)
    audits: dict[str, Audits] = Field(default_factory=dict)

    @field_validator("rows", mode="after")
    @classmethod
    def _rows(cls, value: int | str) -> int | str:
        if value != "all" and int(value) < 1:
            raise InputError(f"rows must be at least 1 or 'all', got {value}")
        return value


def listed(value: Any) -> list[Any]:
    """A value of a grid's axis as the list of one that it is."""
    return value if isinstance(value, list) else [value]


# Reading ------------------------------------------------------------------------------------------------------------


def built_in() -> dict[str, str]:
    """Name and text of each study that comes with brittle."""
    folder = resources.files("brittle") / "studies"
    return {f.name.removesuffix(".toml"): f.read_text() for f in folder.iterdir() if f.name.endswith(".toml")}


def read(name_or_path: str, settings: Sequence[str] = (), size: str | None = None) -> Study:
    """A study by the name of a built-in one or by the path of a file.

    Args:
        name_or_path: what does not end in .toml is a name.
        settings: `a.b=c`, put over it.
        size: which of the file's `[sizes.NAME]` tables is put over it first, and after its name; when not given, the
            study is the file as written.

    Raises:
        InputError: if there is no such study or size, or its text is not TOML or not a study: every wrong key with its
            path.
    """
    known = built_in()
    if name_or_path in known:
        text, where = known[name_or_path], f"study {name_or_path}"
    elif name_or_path.endswith(".toml"):
        where = name_or_path
        try:
            text = Path(name_or_path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"study file {name_or_path} cannot be read: {error}") from error
    else:
        raise unknown("study", name_or_path, known)
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{where} is not TOML: {error}") from error
    sizes = tables.get("sizes")
    tables = sized(tables, size, where)
    for setting in settings:
        put(tables, setting)
    try:
        return check(tables, where)
    except InputError as error:
        if size is None and sizes:
            raise InputError(f"{error}; it has sizes, of which --size takes one: {', '.join(sizes)}") from error
        raise


def sized(tables: dict[str, Any], size: str | None, where: str) -> dict[str, Any]:
    """A study's tables in one of its sizes."""
    sizes = tables.pop("sizes", {})
    if not isinstance(sizes, dict) or not all(isinstance(one, dict) for one in sizes.values()):
        raise InputError(f"{where}: sizes must be tables, [sizes.NAME], got {sizes!r}")
    if size is None:
        return tables
    if size not in sizes:
        raise unknown(f"size of {where}", size, sizes) if sizes else InputError(f"{where} has no sizes, got {size!r}")
    return _over(tables, sizes[size]) | {"name": f"{tables.get('name')}-{size}"}


def _over(tables: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """The tables with others put over them, key by key."""
    both = {key: _over(tables[key], value) for key, value in others.items() if _are_tables(tables.get(key), value)}
    return {**tables, **others, **both}


def _are_tables(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)


def check(tables: Mapping[str, Any], where: str) -> Study:
    """The study that `tables` describe.

    Raises:
        InputError: naming every key that is unknown or ill-typed, each with its path.
    """
    try:
        study = Study.model_validate(tables)
    except ValidationError as error:
        raise InputError(f"{where}: " + "; ".join(_sentences(error))) from error
    for label, attack in study.attacks.items():
        function = naming.attack(attack.function)
        options = dict(attack.model_extra or {})
        if attack.arithmetic is not None:
            options["arithmetic"] = attack.arithmetic
        if attack.targets == "every":
            options["targets"] = None
        naming.check_options(f"attack {label},", attack.function, function, options)
        _check_models(f"attack {label}", attack.models, study)
    for label, units in study.units.items():
        _check_models(f"units {label}", units.models, study)
    for label, carriers in study.carriers.items():
        _check_models(f"carriers {label}", carriers.models, study)
    for label, masks in study.masks.items():
        _check_models(f"masks {label}", [*masks.models, *_named(masks.other)], study)
    for label, audits in study.audits.items():
        _check_models(f"audits {label}", [*(audits.models or []), *_named(audits.reference)], study)
    for label, model in study.models.items():
        if model.teacher is not None and model.teacher not in study.models:
            raise unknown(f"teacher of model {label},", model.teacher, study.models)
        for network in listed(chosen(study, model)["network"]):
            naming.check_options("network", network, naming.network(network), chosen(study, model)["network_options"])
    return study


def _named(model: str | None) -> list[str]:
    return [model] if model else []


def _check_models(what: str, names: Sequence[str] | None, study: Study) -> None:
    for name in names or []:
        if name not in study.models:
            raise unknown(f"model of {what},", name, study.models)


def chosen(study: Study, model: Model) -> dict[str, Any]:
    """The model's training settings: its own where it has them, else the study's."""
    own = model.model_dump(exclude_unset=True, exclude={"teacher"})
    chosen = study.training.model_dump() | own
    for name, default in (("decay_on", "weights"), ("learning_rate_decay", 0.0)):
        if chosen[name] == default:  # unsaid, so that cells from before there was a choice keep their keys
            del chosen[name]
    return chosen


def _sentences(error: ValidationError) -> Iterator[str]:
    """One short sentence for each wrong key."""
    seen: dict[str, list[str]] = {}
    for problem in error.errors():
        steps = [str(step) for step in problem["loc"] if not _is_branch(str(step))]
        if problem["type"] == "extra_forbidden":
            sentence = "unknown key" + _near(steps)
        elif problem["type"] == "value_error":
            sentence = problem["msg"].removeprefix("Value error, ")
        elif problem["type"] == "missing":
            sentence = "missing"
        else:
            sentence = f"{problem['msg'][0].lower()}{problem['msg'][1:]}, got {problem['input']!r}"
        found = seen.setdefault(".".join(steps) or "study", [])
        if problem["type"] != "list_type" or not found:  # that a value may also be a list helps nobody here
            found.append(sentence)
    for path, sentences in seen.items():
        yield f"{path}: {' or '.join(dict.fromkeys(sentences))}"


def _near(steps: Sequence[str]) -> str:
    """The key that was perhaps meant where the last of `steps` is unknown."""
    tables = {
        "training": Training,
        "models": Model,
        "units": Units,
        "masks": Masks,
        "carriers": Carriers,
        "audits": Audits,
    }
    fields = tables.get(steps[0], Study).model_fields if len(steps) > 1 else Study.model_fields
    near = difflib.get_close_matches(steps[-1], fields, n=1)
    return f": did you mean {near[0]!r}?" if near else ""


def _is_branch(step: str) -> bool:
    """pydantic puts the tried branch of a union into the path."""
    return step in {"int", "float", "bool", "str"} or step.startswith(("list[", "literal[", "constrained-"))


def put(tables: dict[str, Any], setting: str, flag: str = "--set") -> None:
    """Puts `a.b=c` over the tables; c is read as a TOML value, or as a string where it is none."""
    path, equals, text = setting.partition("=")
    steps = [step.strip() for step in path.split(".")]
    if not equals or not all(steps):
        raise InputError(f"{flag} needs KEY=VALUE with a dotted key such as training.epochs=3, got {setting!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    table = tables
    for step in steps[:-1]:
        table = table.setdefault(step, {})
        if not isinstance(table, dict):
            raise InputError(f"{flag} {setting}: {step} is a value, not a table")
    table[steps[-1]] = value
