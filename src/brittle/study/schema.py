"""A study file, read and checked.

It says what to train, on what, and how to attack it; any value may be a list, and the study is then the grid of all of
them. `expand` makes its cells; what a cell does stands in `kinds`.
"""

from __future__ import annotations

import difflib
import inspect
import math
import reprlib
import tomllib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, ValidationError, ValidationInfo, create_model, field_validator

from brittle.attacks.options import check_options
from brittle.errors import InputError, unknown
from brittle.models.fit import LATER, check_choice, check_setting
from brittle.models.softmax import check_arithmetic
from brittle.study import lookup
from brittle.study.kinds import TABLES
from brittle.study.kinds.table import Keys, ModelTable, Table, check_each_once

Numbers = float | list[float]
Integers = int | list[int]
Seed = Annotated[int, Field(ge=0, lt=2**62)]  # a student's is larger than its teacher's, and torch's end at 2^63
DEEPEST = 20  # tables and lists within each other


class Training(Table):
    """How every model of the study is trained, unless its own table says otherwise. See `brittle.fit`."""

    network: str | list[str] = "brittle.networks.papernot_mnist"
    network_options: dict[str, Any] = Field(default_factory=dict)
    temperature: Numbers = 1.0
    epochs: Integers = 50
    batch_size: Integers = 128
    learning_rate: Numbers = 0.1
    learning_rate_decay: Numbers = 0.0
    schedule: str | list[str] = "constant"
    warmup: Numbers = 0.0
    momentum: Numbers = 0.5
    nesterov: bool | list[bool] = False
    clip_norm: Numbers = math.inf
    weight_decay: Numbers = 0.0
    decay_on: str | list[str] = "weights"
    loss_scale: str | list[str] = "1"

    @field_validator(
        "temperature",
        "epochs",
        "batch_size",
        "learning_rate",
        "learning_rate_decay",
        "warmup",
        "momentum",
        "clip_norm",
        "weight_decay",
        mode="after",
    )
    @classmethod
    def _in_range(cls, value: Any, info: ValidationInfo) -> Any:
        for one in listed(value):
            check_setting(str(info.field_name), one)
        return value

    @field_validator("decay_on", "schedule", "loss_scale", mode="after")
    @classmethod
    def _is_choice(cls, value: str | list[str], info: ValidationInfo) -> str | list[str]:
        for one in listed(value):
            check_choice(str(info.field_name), one)
        return value


class Model(Training):
    """A model of the study: `teacher` names the model whose soft labels it learns from; none means hard labels."""

    teacher: str | None = None


class Attack(Keys):
    """An attack of the study; keys beside these are its options.

    A list of values of an option is a grid, unless the option itself is a list: then a list of lists is one.
    """

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    function: str
    arithmetic: str | list[str] | None = None
    rows: Annotated[int, Field(ge=1)] | Literal["one_a_class"] | None = None  # of the study's, the first so many or the
    # first of each class; all of them when not given
    shard_rows: int | None = Field(default=None, ge=1)  # rows a cell; the study's when not given
    models: list[str] | None = None  # by name, only these
    seeds: list[Seed] | None = None  # only these
    targets: Literal["every"] | None = None  # each row against all other classes in turn; when not given, untargeted
    over_temperature: bool = False  # logits are divided by the model's training temperature; not at 1, where it is moot

    @field_validator("arithmetic", mode="after")
    @classmethod
    def _arithmetics(cls, value: str | list[str] | None) -> str | list[str] | None:
        for one in listed(value or []):
            check_arithmetic(one)
        return value


class StudyFile(Table):
    """A whole study file, but for the tables of `kinds.TABLES`."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")
    title: str
    about: str = ""
    claims: str | None = None  # the paper whose claims the report sets beside the results
    data: str
    layout: Literal["NCHW", "NHWC"] | None = None
    rows: int | Literal["all"] = 100
    shard_rows: int = Field(default=100, ge=1)
    seeds: list[Seed] = Field(default=[0], min_length=1)
    training: Training = Training()
    models: dict[str, Model] = Field(min_length=1)
    attacks: dict[str, Attack] = Field(default_factory=dict)

    @field_validator("rows", mode="after")
    @classmethod
    def _rows(cls, value: int | str) -> int | str:
        if value != "all" and int(value) < 1:
            raise InputError(f"rows must be at least 1 or 'all', got {value}")
        return value


if TYPE_CHECKING:

    class Study(StudyFile):
        """A whole study file, with a dict of tables by the NAME of each kind in `kinds.TABLES`."""

else:
    Study = create_model(
        "Study",
        __base__=StudyFile,
        **{kind.NAME: (dict[str, kind.Table], Field(default_factory=dict)) for kind in TABLES},
    )


def tables_of(study: Study) -> Iterator[tuple[ModuleType, str, ModelTable]]:
    """Each table of a kind of `kinds.TABLES`: the kind, the table's name, and the table."""
    for kind in TABLES:
        for name, table in getattr(study, kind.NAME).items():
            yield kind, name, table


def listed(value: Any) -> list[Any]:
    """A value of a grid's axis as the list of one that it is."""
    return value if isinstance(value, list) else [value]


def axes_of(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The options whose values make a grid, each with its values."""
    try:
        hints = get_type_hints(inspect.unwrap(function), include_extras=True)
    except (NameError, TypeError, AttributeError):  # somebody else's annotations, which name what is not there
        hints = {}
    return {
        name: value
        for name, value in options.items()
        if isinstance(value, list)
        and (not _is_list(hints.get(name)) or (value and all(isinstance(one, list) for one in value)))
    }


def _is_list(hint: Any) -> bool:
    """Whether an annotation is of lists."""
    origin = get_origin(hint)
    if origin in (Annotated, Union, types.UnionType):
        return any(_is_list(one) for one in get_args(hint)[: 1 if origin is Annotated else None])
    kind = origin or hint
    return isinstance(kind, type) and issubclass(kind, Sequence) and not issubclass(kind, str | bytes)


# Reading ------------------------------------------------------------------------------------------------------------


def built_in() -> dict[str, str]:
    """Name and text of each study that comes with brittle."""
    folder = resources.files("brittle.study") / "built_in"
    return {f.name.removesuffix(".toml"): f.read_text() for f in folder.iterdir() if f.name.endswith(".toml")}


def read(name_or_path: str, settings: Sequence[str] = (), size: str | None = None, *, trust: bool = False) -> Study:
    """A study by the name of a built-in one or by the path of a file.

    Args:
        name_or_path: what does not end in .toml is a name.
        settings: `a.b=c`, put over it.
        size: which of the file's `[sizes.NAME]` tables is put over it first, and after its name. When not given, the
            study is the file without them.
        trust: whether networks and attacks from outside brittle may be imported, which runs their code.

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
    tables = _parsed(text, where)
    sizes = tables.pop("sizes", {})
    tables = sized(tables, sizes, size, where)
    for setting in settings:
        put(tables, setting)
    try:
        return check(tables, where, trust=trust)
    except InputError as error:
        if size is None and sizes:
            raise InputError(f"{error}; its sizes, for --size, are {', '.join(sorted(sizes))}") from error
        raise


def _parsed(text: str, where: str) -> dict[str, Any]:
    """TOML as tables."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{where} is not TOML: {error}") from error
    except RecursionError:
        raise InputError(f"{where} is nested more than {DEEPEST} deep") from None


def sized(tables: dict[str, Any], sizes: Any, size: str | None, where: str) -> dict[str, Any]:
    """A study's tables in one of its sizes, as they are when none is asked for."""
    if not isinstance(sizes, dict) or not all(isinstance(one, dict) for one in sizes.values()):
        raise InputError(f"{where}: sizes must be tables, [sizes.NAME], got {reprlib.repr(sizes)}")
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


def check(tables: Mapping[str, Any], where: str, *, trust: bool = False) -> Study:
    """The study that `tables` describe; `trust` as in `read`: true also where the user typed all import paths.

    Raises:
        InputError: naming every key that is unknown or ill-typed, each with its path.
    """
    _check_values(tables, where)
    try:
        study = Study.model_validate(tables)
    except ValidationError as error:
        raise InputError(f"{where}: " + "; ".join(_sentences(error))) from error
    for label, attack in study.attacks.items():
        _check_attack(f"{where}: attacks.{label}", attack, trust)
        _check_models(f"attack {label}", attack.models, study)
    for kind, label, table in tables_of(study):
        _check_models(f"{kind.NAME} {label}", [*(table.models or []), *table.beside("").values()], study)
    for label, model in study.models.items():
        if model.teacher is not None and model.teacher not in study.models:
            raise unknown(f"teacher of model {label},", model.teacher, study.models)
        _check_training(f"{where}: models.{label}", chosen(study, model), trust)
    return study


def _check_attack(path: str, attack: Attack, trust: bool) -> None:
    """Each value of each option is one that the attack takes, and none is missing."""
    function, options = lookup.attack(attack.function, trust), dict(attack.model_extra or {})
    if attack.arithmetic is not None:
        options["arithmetic"] = attack.arithmetic
    axes = axes_of(function, options)
    one = {name: axes[name][:1] if name in axes else [value] for name, value in options.items()}
    for name, value in options.items():
        try:
            check_each_once(axes.get(name, [value]))
            for each in axes.get(name, [value]):
                _check_values(each, name, finite=True)
                check_options(function, {name: each}, given=inspect.signature(function).parameters)
        except InputError as error:
            raise InputError(f"{path}.{name}: {error}") from error
    given = ["targets"] if attack.targets == "every" else []
    try:
        check_options(function, {name: values[0] for name, values in one.items()}, given=given)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _check_training(path: str, settings: Mapping[str, Any], trust: bool) -> None:
    """Options are those of each network, and settings fit each other."""
    options = settings["network_options"]
    for key, values in settings.items():
        if isinstance(values, list):
            _check_values(values, f"{path}.{key}", finite=True)  # a report writes down each point of a grid
    _check_values(options, f"{path}.network_options", finite=True)
    for name in listed(settings["network"]):
        function = lookup.network(name, trust)
        lookup.check_options("network", name, function, options)
        try:
            check_options(function, options, given=inspect.signature(function).parameters)
        except InputError as error:
            raise InputError(f"{path}.network_options: {error}") from error
    if True in listed(settings["nesterov"]) and 0 in listed(settings["momentum"]):
        raise InputError(f"{path}: nesterov needs a momentum above 0, got 0")


def _check_values(value: Any, path: str, *, finite: bool = False, depth: int = 0) -> None:
    """Raises InputError for what a cell's parameters cannot hold: dates, and, if `finite`, NaN and infinity."""
    if depth > DEEPEST:
        raise InputError(f"{path} is nested more than {DEEPEST} deep")
    if isinstance(value, dict | list):
        inside = value.items() if isinstance(value, dict) else ((None, one) for one in value)
        for key, one in inside:
            _check_values(one, path if key is None else f"{path}.{key}", finite=finite, depth=depth + 1)
    elif value is not None and not isinstance(value, bool | int | float | str):
        raise InputError(f"{path} must be a number, a text, true, false, a list or a table, got {value}")
    elif finite and isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{path} must be finite, got {value}")


def _check_models(what: str, names: Sequence[str] | None, study: Study) -> None:
    for name in names or []:
        if name not in study.models:
            raise unknown(f"model of {what},", name, study.models)


def chosen(study: Study, model: Model) -> dict[str, Any]:
    """The model's training settings: its own where it has them, else the study's."""
    own = model.model_dump(exclude_unset=True, exclude={"teacher"})
    chosen = study.training.model_dump() | own
    return {name: value for name, value in chosen.items() if name not in LATER or value != LATER[name]}


def as_run(study: Study) -> dict[str, Any]:
    """The study as JSON, each model with the training settings that it is run with."""
    told = study.model_dump(mode="json", exclude={"training"})
    models = {name: {**chosen(study, model), "teacher": model.teacher} for name, model in study.models.items()}
    return told | {"models": models}


def _sentences(error: ValidationError) -> Iterator[str]:
    """One short sentence for each wrong key."""
    seen: dict[str, list[str]] = {}
    for problem in error.errors():
        steps = [str(step) for step in problem["loc"] if not _is_branch(str(step))]
        if problem["type"] == "extra_forbidden":
            sentence = f"unknown key{_near(steps)}"
        elif problem["type"] == "value_error":
            sentence = problem["msg"].removeprefix("Value error, ")
        elif problem["type"] == "missing":
            sentence = "missing"
        else:
            sentence = f"{problem['msg'][0].lower()}{problem['msg'][1:]}, got {reprlib.repr(problem['input'])}"
        found = seen.setdefault(".".join(steps) or "study", [])
        if problem["type"] != "list_type" or not found:  # that a value may also be a list helps nobody here
            found.append(sentence)
    for path, sentences in seen.items():
        yield f"{path}: {' or '.join(dict.fromkeys(sentences))}"


def _near(steps: Sequence[str]) -> str:
    """Which keys of its table an unknown one may have meant."""
    tables: dict[str, type[Table]] = {"training": Training, "models": Model} | {
        kind.NAME: kind.Table for kind in TABLES
    }
    table = Study if len(steps) == 1 else tables[steps[0]]
    near = difflib.get_close_matches(steps[-1], table.model_fields, n=2, cutoff=0.5)
    return f", did you mean {' or '.join(near)}?" if near else ""


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
    except RecursionError:
        raise InputError(f"{flag} {path}: the value is nested more than {DEEPEST} deep") from None
    if len(steps) > DEEPEST:
        raise InputError(f"{flag} {path[:60]}... names a key more than {DEEPEST} deep")
    table = tables
    for step in steps[:-1]:
        table = table.setdefault(step, {})
        if not isinstance(table, dict):
            raise InputError(f"{flag} {setting}: {step} is a value, not a table")
    table[steps[-1]] = value
