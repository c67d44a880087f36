"""The command line: parses and calls. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import dataclasses
import errno
import functools
import inspect
import json
import re
import shlex
import sys
import tomllib
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from brittle.cli.audit import Question
from brittle.cli.bars import Bars, err, let_go, out
from brittle.cli.options import Name, Named, OneSeed, Seed, Settings, Size, StudyName, ToTrain
from brittle.cli.run import Request, as_cell, print_dry_run, print_status, reading, report_study, run_study
from brittle.errors import InputError, first_line
from brittle.study.run.threads import wait_passively

if TYPE_CHECKING:
    from brittle.study.schema import Study
    from brittle.study.store.store import Store

OK, DAMAGED, BAD_INPUT, DEFECT, INTERRUPTED = 0, 1, 2, 70, 130
_USAGE: type[Exception] = typer.BadParameter.__mro__[1]  # click's UsageError, wherever this typer has its click
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass
class _Call:
    """One command line: as it was typed, and the options that say how a failure of it is told."""

    typed: str
    how: Request = dataclasses.field(default_factory=Request)


class _Brittle(TyperGroup):
    """The command: whatever happens ends in one line and an exit code that means one thing."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = "brittle",
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs a command line and exits: `brittle --help` lists the codes."""
        call = _Call(shlex.join(["brittle", *(sys.argv[1:] if args is None else args)]))
        options = {"complete_var": complete_var, "windows_expand_args": windows_expand_args, **extra, "obj": call}
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = _warn
            code = _ended(lambda: super(_Brittle, self).main(args, "brittle", standalone_mode=False, **options), call)
        sys.exit(code)


def _ended(run: Callable[[], int | None], call: _Call) -> int:
    """Runs a command; its exit code, after a line that says what went wrong, if anything did."""
    try:
        code = run() or OK
        sys.stdout.flush()
    except InputError as error:
        if call.how.verbose:
            traceback.print_exc()
        return _refused(str(error))
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except _USAGE as error:
        said = str(getattr(error, "format_message")()).strip()  # noqa: B009
        if "\n" in said:  # the help of a command that was given nothing
            err.print(said, markup=False, highlight=False)
            return BAD_INPUT
        return _refused(said)
    except SystemExit as error:
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        let_go()  # nobody reads the help any more; `console.Terminal` sees to everything else
        return OK
    except Exception as error:
        if getattr(error, "errno", None) in _FULL or "No space left on device" in str(error):
            let_go()
            return _refused(f"nothing more can be written: {first_line(error)}")
        return _defect(error, call)
    if code == INTERRUPTED:
        err.print("stopped; finished cells are kept, and the same command goes on from there", highlight=False)
    return code


def _refused(said: str) -> int:
    err.print(f"[red]error:[/] {escape(' '.join(said.split(chr(10))))}", highlight=False, soft_wrap=True)
    return BAD_INPUT


def _defect(error: Exception, call: _Call) -> int:
    """Says in one line that brittle failed, and where the traceback is; with --verbose the traceback."""
    trace = "".join(traceback.format_exception(error))
    said = f"{type(error).__name__}: {first_line(error)}"
    file = call.how.open_store().root / "tracebacks" / f"{datetime.now():%Y-%m-%dT%H-%M-%S-%f}.txt"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{call.typed}\n\n{trace}", encoding="utf-8")
        where = f"the traceback is in {file}"
    except OSError:
        where = "--verbose prints the traceback"
    if call.how.verbose:
        err.print(trace, markup=False, highlight=False, soft_wrap=True)
    err.print(f"[red]failed:[/] {escape(said)}; {escape(where)}", highlight=False, soft_wrap=True)
    return DEFECT


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    err.print(f"[yellow]warning:[/] {escape(str(message))}", highlight=False, soft_wrap=True)


app = typer.Typer(
    name="brittle",
    cls=_Brittle,
    help="Tells you whether an image classifier is robust or only looks robust, and why.",
    epilog="Exit codes: 0 all is well; 1 a verdict of broken or masked, or a damaged store; 2 bad input; "
    "3 inconclusive; 70 a defect of brittle; 130 stopped by Ctrl-C.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes [default: ...] for markup
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="The data sets: what is here, download, check.", no_args_is_help=True)
study_app = typer.Typer(help="Whole studies: one file, one command, resumable.", no_args_is_help=True)
store_app = typer.Typer(help="The finished cells on disk.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(study_app, name="study")
app.add_typer(store_app, name="store")

# Options that several commands share: fields of `Request` by name
RUN = ("store", "data_root", "device", "threads", "fresh", "trust", "output", "as_json", "quiet", "verbose")
TRAIN = (*RUN, "dtype")
SHARED = ("workers", "engine", "address", "gpus_per_cell")


def command(group: typer.Typer, *shared: str, name: str | None = None, hidden: bool = False) -> Callable[..., Any]:
    """Makes a function a command. A parameter that is a dataclass becomes one option for each of its fields.

    Of `Request` these are the fields named in `shared`. What the function returns is the exit code.
    """

    def register(function: Callable[..., int | None]) -> Callable[..., int | None]:
        parameters, gathered = [], {}
        for parameter in inspect.signature(function, eval_str=True).parameters.values():
            cls = parameter.annotation
            if not dataclasses.is_dataclass(cls):
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
                continue
            hints = get_type_hints(cls, include_extras=True)
            own = [each for each in dataclasses.fields(cls) if cls is not Request or each.name in shared]
            gathered[parameter.name] = cls, [each.name for each in own]
            for each in own:
                default = inspect.Parameter.empty if each.default is dataclasses.MISSING else each.default
                parameters.append(parameter.replace(name=each.name, annotation=hints[each.name], default=default))

        @functools.wraps(function)
        def run(context: typer.Context, **given: Any) -> int | None:
            for parameter, (cls, names) in gathered.items():
                values = {each: given.pop(each) for each in names}
                given[parameter] = cls(**values, **({"again": context.obj.typed} if cls is Request else {}))
            context.obj.how = given.get("how", Request())
            try:
                return function(**given)
            except SystemExit as error:
                raise InputError(f"the model's code ended the program with exit code {error.code}") from error

        own_context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        vars(run)["__signature__"] = inspect.Signature([own_context, *parameters])
        group.command(name, hidden=hidden)(run)
        return function

    return register


def main() -> None:
    """The `brittle` command."""
    wait_passively()
    app()


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        _version()
        raise typer.Exit


@command(app, name="version", hidden=True)
def _version() -> None:
    """Prints the version."""
    from brittle import __version__

    out.print(__version__, highlight=False)


@app.command("help", hidden=True)
def _help(context: typer.Context) -> None:
    """Prints what the commands are."""
    typer.echo(context.parent.get_help() if context.parent else "")


# Running: one study, one model, one attack ----------------------------------------------------------------------------


def _seeded(settings: Sequence[str] | None, seed: int | None) -> list[str]:
    return [*(settings or []), *([] if seed is None else [f"seeds=[{seed}]"])]


@command(app, *TRAIN)
def demo(*, seed: Seed = None, how: Request) -> None:
    """Trains three networks on handwritten digits, attacks them, and shows a defence that only looks robust."""
    from brittle.study.run.local_pool import most_workers
    from brittle.study.run.threads import idle_cores
    from brittle.study.schema import read

    if how.threads is None:  # a worker of one thread on each idle core: faster, and any number gives the same bits
        how = dataclasses.replace(how, threads=1, workers=min(idle_cores(), most_workers()))
    run_study(read("quickstart", _seeded(None, seed)), how)


@command(app, *TRAIN)
def train(
    *,
    images: ToTrain,
    network: Annotated[str, typer.Option(help="One of brittle's networks, or package.module:callable.")] = (
        "papernot_mnist"
    ),
    temperature: Annotated[float, typer.Option(help="Temperature T of the softmax in training.")] = 1.0,
    teacher: Annotated[
        str | None, typer.Option(help="Key of a trained cell, whose soft labels are learned. [default: hard labels]")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 50,
    batch_size: Annotated[int, typer.Option(help="Images in a step.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="Of stochastic gradient descent.")] = 0.1,
    learning_rate_decay: Annotated[float, typer.Option(help="Step s has rate / (1 + decay * s).")] = 0.0,
    schedule: Annotated[str, typer.Option(help="constant, or linear: the rate falls to 0 at the end.")] = "constant",
    warmup: Annotated[float, typer.Option(help="Epochs over which the learning rate rises from 0.")] = 0.0,
    momentum: Annotated[float, typer.Option(help="Of stochastic gradient descent.")] = 0.5,
    nesterov: Annotated[bool, typer.Option("--nesterov", help="Use Nesterov's momentum.")] = False,
    clip_norm: Annotated[
        float | None,
        typer.Option(min=0.0, help="Largest L2 norm of a gradient; above it, it is scaled. [default: none]"),
    ] = None,
    weight_decay: Annotated[float, typer.Option(help="L2 penalty on weights.")] = 0.0,
    decay_on: Annotated[str, typer.Option(help="What has that penalty: weights, or output (the last layer's).")] = (
        "weights"
    ),
    loss_scale: Annotated[
        str, typer.Option(help="What the loss is multiplied by: 1, or T2, the temperature squared.")
    ] = "1",
    adversarial: Annotated[
        float, typer.Option(help="L-infinity eps: train on images attacked within it (Madry et al. 2018).")
    ] = 0.0,
    certified: Annotated[
        float, typer.Option(help="L-infinity eps: train on interval bounds within it (Gowal et al. 2018).")
    ] = 0.0,
    name: Name = None,
    seed: OneSeed = 0,
    how: Request,
) -> None:
    """Trains one network into the store and measures it: a study of one model."""
    from brittle.study import lookup
    from brittle.study import schema as study
    from brittle.study.run import scheduler

    model: dict[str, Any] = {
        "network": lookup.full_path(lookup.network(network, trust=True), network, "brittle.networks"),
        "temperature": temperature,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "learning_rate_decay": learning_rate_decay,
        "schedule": schedule,
        "loss_scale": loss_scale,
        "adversarial": adversarial,
        "certified": certified,
        "warmup": warmup,
        "momentum": momentum,
        **({} if clip_norm is None else {"clip_norm": clip_norm}),
        "nesterov": nesterov,
        "weight_decay": weight_decay,
        "decay_on": decay_on,
    }
    models: dict[str, Any] = {"model": model}
    given = {}
    if teacher is not None:
        store = how.open_store()
        given = {"teacher": scheduler.recall_network(store, teacher, trust=how.trust)}
        models = {"teacher": {}, "model": {**model, "teacher": "teacher"}}
    tables = {
        "name": name or "train",
        "title": f"One network on {images.data}",
        "data": images.data,
        "layout": images.layout,
        "seeds": [seed],
        "models": models,
    }
    words = () if name else ("train", Path(images.data).stem, network, f"T{temperature:g}")
    wanted = {"images": images}
    record = run_study(study.check(tables, "train", trust=True), how, lambda *_: given, *words, reading=wanted)
    if not how.silent:
        key = record["models"][-1]["train"][:12]
        err.print(f"The network is cell {key}. Next:", highlight=False)
        trust = () if model["network"].startswith("brittle.") else ("--trust",)
        for line in (("attack", key, "--attack", "song_2"), ("audit", key), ("explain", key)):
            err.print(f"  {how.command(*line, *trust)}", markup=False, highlight=False, soft_wrap=True)


@command(app, *RUN, "batch_size")
def attack(
    *,
    named: Named,
    attack: Annotated[
        list[str], typer.Option("--attack", help="One of brittle's attacks, or package.module:callable; repeat.")
    ],
    rows: Annotated[int, typer.Option(min=1, help="Number of test images to attack.")] = 100,
    arithmetic: Annotated[str, typer.Option(help="exact, float32 or both; for attacks that read a softmax.")] = "both",
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="Of the attacks: --option max_pixels=50")
    ] = None,
    name: Name = None,
    how: Request,
) -> None:
    """Attacks one network that exists: a study of one model."""
    from brittle.study import schema as study

    attacks = {re.split("[.:]", path)[-1]: _attack_table(path, arithmetic) for path in attack}
    named = named.resolved(how.open_store())
    tables: dict[str, Any] = {
        "name": name or "attack",
        "title": f"Attacks on {named.short}",
        "data": named.data,
        "layout": named.layout,
        "rows": rows,
        "models": {"model": {}},
        "attacks": attacks,
    }
    for setting in option or []:
        for label in attacks:
            study.put(tables, f"attacks.{label}.{_fraction(setting)}", "--option")
    words = () if name else ("attack", named.short, Path(named.data or "").stem, *attacks)
    wanted = reading(named, split="evaluation", count=rows)
    run_study(study.check(tables, "attack", trust=True), how, _given(named, how), *words, reading=wanted)


def _fraction(setting: str) -> str:
    """'eps=8/255' as 'eps=0.03137254901960784'."""
    from brittle.cli.options import number

    key, equals, value = setting.partition("=")
    return f"{key}={number(value)!r}" if equals and re.fullmatch(r"[\d.]+/[\d.]+", value.strip()) else setting


def _given(named: Named, how: Request) -> Callable[..., Mapping[str, Any]]:
    """The network of a study of one."""
    return lambda data, device, store: {"model": as_cell(named, how, data, device, store)}


def _attack_table(path: str, arithmetic: str) -> dict[str, Any]:
    """An attack of a study file, as the command line names it."""
    from brittle.models.softmax import check_arithmetic
    from brittle.study import lookup

    if arithmetic != "both":
        check_arithmetic(arithmetic)
    function = lookup.attack(path, trust=True)
    table: dict[str, Any] = {"function": lookup.full_path(function, path, "brittle.attacks")}
    if lookup.takes(function, "arithmetic"):
        table["arithmetic"] = ["float32", "exact"] if arithmetic == "both" else [arithmetic]
    return table


@command(app, *RUN, "batch_size")
def audit(*, asked: Question, how: Request) -> int:
    """Says whether a model is robust or only looks so, and why.

    Exit code 0: robust; 1: broken or masked; 2: bad input; 3: inconclusive.
    """
    from brittle.cli.audit import run_audit

    return run_audit(asked, how)


@command(app, *RUN, "batch_size")
def certify(
    *,
    named: Named,
    norm: Annotated[str, typer.Option(help="Norm of the perturbation: linf, l2 or l1.")] = "linf",
    rows: Annotated[int, typer.Option(min=1, help="Number of test images.")] = 100,
    slopes: Annotated[
        str, typer.Option(help="adaptive, or optimised: tighter bounds, which take twenty times as long.")
    ] = "adaptive",
    precision: Annotated[float, typer.Option(help="Share of a radius by which a larger one may be provable.")] = 0.01,
    evaluations: Annotated[int, typer.Option(min=1, help="Gradients that the attack may take for an image.")] = 1000,
    name: Name = None,
    how: Request,
) -> None:
    """Proves for each image how far nothing fools a model, and finds an image that does: a study of one model."""
    from brittle.study import schema as study
    from brittle.study.kinds.certify.cell import Bracketed, in_words

    named = named.resolved(how.open_store())
    options = {"norm": norm, "images": rows, "slopes": slopes, "precision": precision, "evaluations": evaluations}
    tables: dict[str, Any] = {
        "name": name or "certify",
        "title": f"Brackets of {named.short}",
        "data": named.data,
        "layout": named.layout,
        "rows": rows,
        "models": {"model": {}},
        "brackets": {norm: options},
    }
    words = () if name else ("certify", named.short, Path(named.data or "").stem, norm)
    wanted = reading(named, split="evaluation", count=rows)
    record = run_study(study.check(tables, "certify", trust=True), how, _given(named, how), *words, reading=wanted)
    if not how.as_json:
        store = how.open_store()
        cells = [store.get(one["cell"]) for one in record["models"][0]["brackets"]]
        parts = [Bracketed.of(norm, cell, store) for cell in cells if cell]
        out.print(in_words(parts), highlight=False)


@command(app, *RUN, "batch_size")
def explain(
    *,
    named: Named,
    layers: Annotated[
        str | None, typer.Option(help="By name, with commas. [default: the activations after convolutions]")
    ] = None,
    knockout: Annotated[
        str | None, typer.Option(help="Classes, by name, with commas: whose units are knocked out. [default: all]")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Images of each split, at most; test images are held out.")] = 100,
    random: Annotated[int, typer.Option(min=0, help="Number of random knockout orders, as a control.")] = 3,
    points: Annotated[
        int, typer.Option(min=2, help="Points of a knockout curve at most, from no unit gone to all.")
    ] = (32),
    logits: Annotated[bool, typer.Option("--logits", help="Gradients of the logits, not of the softmax.")] = False,
    name: Name = None,
    seed: OneSeed = 0,
    how: Request,
) -> None:
    """Says which units of a network matter, and what breaks when they go."""
    from brittle.study import schema as study

    named = named.resolved(how.open_store())
    units = {
        "layers": _words(layers),
        "classes": _words(knockout),
        "images": images,
        "random": random,
        "points": points,
    }
    tables: dict[str, Any] = {
        "name": name or "explain",
        "title": f"The units of {named.short}",
        "data": named.data,
        "layout": named.layout,
        "rows": images,
        "seeds": [seed],
        "models": {"model": {}},
        "units": {"maps": {**units, "of": "logits" if logits else "softmax"}},
    }
    words = () if name else ("explain", named.short, Path(named.data or "").stem)
    run_study(study.check(tables, "explain", trust=True), how, _given(named, how), *words, reading=reading(named))


def _words(text: str | None) -> list[str] | None:
    """'relu1, relu2' as names."""
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


# Studies ------------------------------------------------------------------------------------------------------------


@command(study_app, "store", "as_json", name="list")
def study_list(*, how: Request) -> None:
    """The studies that come with brittle, and those that the store holds."""
    from brittle.study.schema import built_in

    store = how.open_store()
    rows: dict[str, dict[str, Any]] = {}
    for name, text in built_in().items():
        tables = tomllib.loads(text)
        rows[name] = {"title": tables["title"], "sizes": list(tables.get("sizes", ())), "stored": None}
    for name in store.studies():
        record = store.read_study(name)
        row = rows.setdefault(name, {"sizes": []})
        rows[name] = row | {"title": str(record.get("title", "")), "stored": _progress(store, record)}
    if how.as_json:
        out.print_json(json.dumps(rows))
        return
    shown = Table("study", "title", "sizes", "in the store", box=None, header_style="bold")
    shown.columns[0].overflow = "fold"
    for name, row in sorted(rows.items()):
        shown.add_row(escape(name), escape(row["title"]), escape(", ".join(row["sizes"])), row["stored"] or "")
    out.print(shown)


def _progress(store: Store, record: Mapping[str, Any]) -> str:
    """How many of a study's cells are stored, and whether one of the others is being computed."""
    keys = set(re.findall(r'"([0-9a-f]{32})"', json.dumps([record.get("rows"), record.get("models")])))
    left = keys - set(store.keys())
    running = ", running" if any(store.is_locked(key) for key in left) else ""
    return f"{len(keys) - len(left)} of {len(keys)} cells{running}"


def _study(name: str, settings: Sequence[str], size: str | None, how: Request) -> Study:
    """A study by its name or file; of one that is only kept in the store, an error that says what made it."""
    from brittle.study.schema import built_in, read

    store = how.open_store()
    if name in store.studies() and name not in built_in() and not name.endswith(".toml"):
        again = store.read_study(name).get("again")
        made = f"{again!r} makes it again, " if again else ""
        raise InputError(f"{name} is a result in the store: {made}'brittle report {name}' shows it")
    return read(name, settings, size, trust=how.trust)


@command(study_app, "store", "verbose", name="show")
def study_show(name: StudyName, *, settings: Settings = None, size: Size = None, how: Request) -> None:
    """Prints a study as it would be run, settings applied, as JSON."""
    from brittle.study.schema import as_run

    out.print_json(json.dumps(as_run(_study(name, settings or [], size, how))))


@command(study_app, *TRAIN, *SHARED, name="run")
def study_run(
    name: StudyName,
    *,
    size: Size = None,
    settings: Settings = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done and what it costs, and do nothing.")
    ] = False,
    seed: Seed = None,
    how: Request,
) -> None:
    """Runs a study, or what is left of it, and writes its page."""
    study = _study(name, _seeded(settings, seed), size, how)
    if dry_run:
        print_dry_run(study, how)
    else:
        run_study(study, how)


@command(study_app, "store", "data_root", "device", "dtype", "as_json", "verbose", name="status")
def study_status(
    name: StudyName, *, size: Size = None, settings: Settings = None, seed: Seed = None, how: Request
) -> None:
    """How much of a study is in the store."""
    print_status(_study(name, _seeded(settings, seed), size, how), how)


@command(app, "store", "output", "as_json", "verbose")
def report(
    name: Annotated[str, typer.Argument(help="A study in the store; `brittle study list` names them.")],
    *,
    how: Request,
) -> None:
    """Prints a study's table and writes its page anew, from the store alone."""
    how.try_output()
    report_study(how.open_store(), name, how)


# Data ---------------------------------------------------------------------------------------------------------------


@command(data_app, "data_root", "as_json", name="list")
def data_list(*, how: Request) -> None:
    """The data sets that brittle knows, and where each one is."""
    from brittle import data

    found = {name: data.status(name, how.data_root) for name in data.names()}
    if how.as_json:
        out.print_json(json.dumps(found))
        return
    shown = Table("data set", "where", box=None, header_style="bold")
    for name, where in found.items():
        shown.add_row(name, escape(where))
    out.print(shown)


@command(data_app, "data_root", "quiet", "verbose", name="fetch")
def data_fetch(name: str, *, how: Request) -> None:
    """Downloads a data set, every file checked."""
    from brittle import data

    with Bars(quiet=how.quiet, verbose=how.verbose) as bars:
        folder = data.fetch(name, how.data_root, bars.work(f"download {name}"))
    out.print(f"{name} is in {folder}", highlight=False, soft_wrap=True)


@command(data_app, "data_root", "as_json", name="check")
def data_check(name: str, *, how: Request) -> int:
    """Reads every file of a data set and says whether it is as it should be; exit code 2 if one is not."""
    from brittle import data

    checks = data.check(name, how.data_root)
    if how.as_json:
        out.print_json(json.dumps([{"file": str(c.path), "ok": c.ok, "note": c.note} for c in checks]))
    elif not checks:
        out.print(f"{name} is built in: there is nothing to check", highlight=False)
    else:
        for check in checks:
            mark = "[green]good[/]" if check.ok else "[red]bad[/] "
            out.print(f"{mark}  {escape(str(check.path))}: {escape(check.note)}", highlight=False, soft_wrap=True)
    return OK if all(check.ok for check in checks) else BAD_INPUT


# Store --------------------------------------------------------------------------------------------------------------


@command(store_app, "store", "as_json", name="list")
def store_list(*, how: Request) -> None:
    """The finished cells: what each one is, and of a network what tells it from others."""
    store = how.open_store()
    keys = store.keys()
    records = {key: cell.record for key in keys if (cell := store.get(key))}
    rows = []
    for key in keys:
        if key not in records:
            rows.append({"key": key, "title": f"damaged: {store.damage(key)}"})
            continue
        rows.append({"key": key} | _told(key, records))
    if how.as_json:
        out.print_json(json.dumps(rows))
        return
    shown = Table("cell", "what", "date", "seconds", box=None, header_style="bold")
    shown.columns[3].justify = "right"
    for row in rows:
        what = [
            row["title"],
            *(f"{name} {row[name]}" for name in ("network", "data", "T", "accuracy") if row.get(name)),
        ]
        seconds = "" if row.get("seconds") is None else f"{row['seconds']:.1f}"
        shown.add_row(row["key"][:12], escape(", ".join(what)), (row.get("date") or "")[:16], seconds)
    out.print(shown)
    out.print(f"{len(rows)} cells, {store.size() / 1e6:.1f} MB in {store.root}", highlight=False, soft_wrap=True)


def _told(key: str, records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What a cell's record says of it. Anybody can write a record, so nothing in it is sure to be there."""
    title = str(records[key].get("title", "a cell without a title"))
    try:
        made = records[key].get("provenance", {})
        seconds = None if made.get("seconds") is None else float(made["seconds"])
        date = None if made.get("started") is None else str(made["started"])
        return {"title": title} | _network(key, records) | {"date": date, "seconds": seconds}
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return {"title": f"{title} (a record that brittle did not write)"}


def _network(key: str, records: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Of a network's cell: its architecture, data, temperature and accuracy, as far as the store says so."""
    record = records[key]
    if record.get("function") not in ("train", "adopt"):
        return {}
    others = [r for r in records.values() if all(isinstance(r.get(part), dict) for part in ("parents", "scalars"))]
    measured = [r for r in others if r.get("function") == "measure" and r["parents"].get("model") == key]
    digest = record.get("data") or next((r.get("data") for r in measured), "")
    data = [r["scalars"].get("data") for r in others if r.get("function") == "select" and r.get("data") == digest]
    found = {"network": record["params"]["network"].removeprefix("brittle.networks.")}
    found |= {"data": str(data[0])} if data else {}
    found |= {"T": f"{record['params']['temperature']:g}"} if "temperature" in record["params"] else {}
    for right in (cell["scalars"]["accuracy"] for cell in measured[:1]):
        found["accuracy"] = f"{100 * right['count'] / right['total']:.1f} %"
    return found


@command(store_app, "store", name="verify")
def store_verify(*, how: Request) -> int:
    """Hashes every file of every cell again; exit code 1 if one is damaged."""
    whole, damaged = 0, []
    for key, sentence in how.open_store().verify():
        if sentence is None:
            whole += 1
        else:
            damaged.append(key)
            out.print(f"[red]damaged[/] {key[:12]}: {escape(sentence)}", highlight=False)
    out.print(f"{whole} cells are whole, {len(damaged)} damaged; a damaged cell is computed again when it is needed")
    return DAMAGED if damaged else OK


@command(store_app, "store", name="clean")
def store_clean(
    *,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Checkpoints of interrupted work too, which then starts anew.")
    ] = False,
    everything: Annotated[bool, typer.Option("--everything", help="All cells, checkpoints and studies too.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    how: Request,
) -> None:
    """Removes damaged cells and the half-written files of killed processes."""
    store = how.open_store()
    if everything and not yes:
        typer.confirm(f"Remove all {len(store.keys())} cells in {store.root}?", abort=True)
    removed = asdict(store.clean(everything=everything, unfinished=unfinished))
    counted = ", ".join(f"{count} {what}" for what, count in removed.items() if count and what != "bytes")
    out.print(f"removed {counted or 'nothing'}", highlight=False)
