"""A study file, read and checked.

It says what to train, on what, and how to attack it; any value may be a list, and the study is then the grid of all of
them. `expand` makes its cells; what a cell does stands in `kinds`.
"""

from __future__ import annotations

import difflib
import reprlib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError, create_model

from brittle.errors import InputError, unknown
from brittle.study.kinds import TABLES, table
from brittle.study.kinds.attack import plan as attack
from brittle.study.kinds.attack.plan import Seed
from brittle.study.kinds.network import plan as network
from brittle.study.kinds.rows import cell as rows
from brittle.study.kinds.table import DEEPEST, Table, check_values


class StudyFile(Table):
    """What every study file has, beside the keys and tables of the kinds of cells."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")
    title: str
    about: str = ""
    claims: str | None = None  # the paper whose claims the report sets beside the results
    data: str
    layout: Literal["NCHW", "NHWC"] | None = None
    seeds: list[Seed] = Field(default=[0], min_length=1)


# The keys of each kind of cell, and a dict of tables by the NAME of each kind that is asked for by them.
_KEYS: dict[str, Any] = rows.KEYS | network.KEYS | attack.KEYS
_TABLES: dict[str, Any] = {kind.NAME: (dict[str, kind.Table], Field(default_factory=dict)) for kind in TABLES}

if TYPE_CHECKING:

    class Study(StudyFile):
        """A whole study file."""

        training: network.Training
        models: dict[str, network.Model]
        attacks: dict[str, attack.Attack]
        rows: int | Literal["all"]

else:
    Study = create_model("Study", __base__=StudyFile, **_KEYS, **_TABLES)


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
    check_values(tables, where)
    try:
        study = Study.model_validate(tables)
    except ValidationError as error:
        raise InputError(f"{where}: " + "; ".join(_sentences(error))) from error
    attack.check(study, where, trust)
    for kind in TABLES:
        table.check(kind, study)
    network.check(study, where, trust)
    return study


def as_run(study: Study) -> dict[str, Any]:
    """The study as JSON, each model with the training settings that it is run with."""
    told = study.model_dump(mode="json", exclude={"training"})
    models = {name: {**network.chosen(study, model), "teacher": model.teacher} for name, model in study.models.items()}
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
    tables: dict[str, type[Table]] = {"training": network.Training, "models": network.Model} | {
        kind.NAME: kind.Table for kind in TABLES
    }
    asked = Study if len(steps) == 1 else tables[steps[0]]
    near = difflib.get_close_matches(steps[-1], asked.model_fields, n=2, cutoff=0.5)
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
    inner = tables
    for step in steps[:-1]:
        inner = inner.setdefault(step, {})
        if not isinstance(inner, dict):
            raise InputError(f"{flag} {setting}: {step} is a value, not a table")
    inner[steps[-1]] = value
