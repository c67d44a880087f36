"""The command line: parses and calls. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import functools
import json
import re
import sys
import tomllib
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from brittle.console import Bars, err, out
from brittle.errors import InputError
from brittle.running import Given, Request, foresee, report_study, run_study, show_cells

OK, BAD_INPUT, INTERRUPTED = 0, 2, 130

app = typer.Typer(
    name="brittle",
    help="Tells you whether an image classifier is robust or only looks robust, and why.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
data_app = typer.Typer(help="The data sets: what is here, download, check.", no_args_is_help=True)
study_app = typer.Typer(help="Whole studies: one file, one command, resumable.", no_args_is_help=True)
store_app = typer.Typer(help="The finished cells on disk.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(study_app, name="study")
app.add_typer(store_app, name="store")

# Options that several commands share
StoreDir = Annotated[
    Path | None, typer.Option("--store", help="Folder of finished cells. [default: $BRITTLE_HOME or the user's data]")
]
DataRoot = Annotated[
    Path | None, typer.Option("--data-root", help="Folder with data sets, searched before $BRITTLE_DATA and the cache.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda[:N].")]
Dtype = Annotated[str, typer.Option(help="Of training: auto, float32 or bfloat16. Attacks always run in float32.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads. [default: torch's]")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Processes that share the cells; each has its part of the threads. [default: 1]"),
]
Engine = Annotated[str, typer.Option(help="Who does the cells: here, or ray.")]
Address = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Of a Ray cluster, or auto. [default: a Ray started here]")
]
GpusPerCell = Annotated[
    float | None, typer.Option(min=0.01, help="Part of a GPU that a cell gets of Ray. [default: 1]")
]
Seed = Annotated[int | None, typer.Option(help="Run with this seed instead of the study's.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results only, no progress.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="A line for each finished cell; tracebacks of errors.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Compute everything anew, even what is in the store.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Folder for the page. [default: reports/NAME in the store]")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key: --set training.epochs=3")
]
Size = Annotated[
    str | None, typer.Option(help="Which of the study file's sizes to run; without it, the file without its sizes.")
]


def main() -> None:
    """The `brittle` command."""
    app()


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from brittle import __version__

        out.print(__version__)
        raise typer.Exit


def _guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Turns a user's mistake into one line and exit code 2, and Ctrl-C into exit code 130."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        verbose = bool(kwargs.get("verbose"))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("default", UserWarning)
                warnings.showwarning = _warn
                command(*args, **kwargs)
        except InputError as error:
            if verbose:
                traceback.print_exc()
            err.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
            raise typer.Exit(BAD_INPUT) from error
        except KeyboardInterrupt:
            err.print("stopped; finished cells are kept, and the same command goes on from there", highlight=False)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:  # `brittle ... | head`: nobody is listening any more
            sys.stderr.close()
            raise typer.Exit(OK) from None

    return run


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    err.print(f"[yellow]warning:[/] {escape(str(message))}", highlight=False, soft_wrap=True)


# Running: one study, one model, one attack ----------------------------------------------------------------------------


def _seeded(settings: Sequence[str] | None, seed: int | None) -> list[str]:
    return [*(settings or []), *([] if seed is None else [f"seeds=[{seed}]"])]


@app.command()
@_guarded
def demo(
    store: StoreDir = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    seed: Seed = None,
    fresh: Fresh = False,
    output: Output = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Trains three networks on handwritten digits, attacks them, and shows a defence that only looks robust."""
    from brittle.study import read

    how = Request(store, None, device, dtype, threads, as_json, quiet, verbose, fresh, output)
    run_study(read("quickstart", _seeded(None, seed)), how)


@app.command()
@_guarded
def train(
    data: Annotated[
        str, typer.Option(help="A data set's name, a folder of class folders, or an .npz file.")
    ] = "digits",
    network: Annotated[str, typer.Option(help="One of brittle's networks, or an import path.")] = "papernot_mnist",
    temperature: Annotated[float, typer.Option(help="T of the softmax while training.")] = 1.0,
    teacher: Annotated[str | None, typer.Option(help="Key of a trained cell: learn from its soft labels.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 50,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 128,
    learning_rate: Annotated[float, typer.Option()] = 0.1,
    learning_rate_decay: Annotated[float, typer.Option(help="Step s has rate / (1 + decay * s).")] = 0.0,
    momentum: Annotated[float, typer.Option()] = 0.5,
    nesterov: Annotated[bool, typer.Option("--nesterov")] = False,
    weight_decay: Annotated[float, typer.Option(help="L2 penalty on weights.")] = 0.0,
    decay_on: Annotated[str, typer.Option(help="What has that penalty: weights, or those of the output.")] = "weights",
    name: Annotated[str, typer.Option(help="Under which the result is kept, for `brittle report`.")] = "train",
    store: StoreDir = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    seed: Annotated[int, typer.Option(help="Of initial weights, order of images and dropout.")] = 0,
    fresh: Fresh = False,
    output: Output = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Trains one network into the store and measures it: a study of one model."""
    from brittle import engine, naming, study

    how = Request(store, data_root, device, dtype, threads, as_json, quiet, verbose, fresh, output)
    model: dict[str, Any] = {
        "network": naming.full_path(naming.network(network, trust=True), network, "brittle.networks"),
        "temperature": temperature,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "learning_rate_decay": learning_rate_decay,
        "momentum": momentum,
        "nesterov": nesterov,
        "weight_decay": weight_decay,
        "decay_on": decay_on,
    }
    models: dict[str, Any] = {"model": model}
    given = {}
    if teacher is not None:
        opened = how.open_store()
        given = {"teacher": engine.recall_network(opened, teacher)}
        models = {"teacher": {}, "model": {**model, "teacher": "teacher"}}
    tables = {"name": name, "title": f"One network on {data}", "data": data, "seeds": [seed], "models": models}
    run_study(study.check(tables, "train", trust=True), how, lambda _: given)
    _say_key(how, name)


def _say_key(how: Request, name: str) -> None:
    """Tells how to go on from a trained network."""
    if not how.quiet and not how.as_json:
        key = how.open_store().read_study(name)["models"][-1]["train"]
        err.print(f"The network is cell {key[:12]}; attack it with: brittle attack {key[:12]}", highlight=False)


@app.command()
@_guarded
def attack(
    model: Annotated[
        str, typer.Argument(help="Key of a trained cell (its beginning will do), or a .safetensors file.")
    ],
    attack: Annotated[list[str], typer.Option("--attack", help="One of brittle's attacks, or an import path; repeat.")],
    data: Annotated[
        str, typer.Option(help="A data set's name, a folder of class folders, or an .npz file.")
    ] = "digits",
    rows: Annotated[int, typer.Option(min=1, help="Test images to attack.")] = 100,
    arithmetic: Annotated[str, typer.Option(help="exact, float32 or both; for attacks that read a softmax.")] = "both",
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="Of the attacks: --option max_pixels=50")
    ] = None,
    network: Annotated[str, typer.Option(help="What the .safetensors file holds the weights of.")] = "papernot_mnist",
    name: Annotated[str, typer.Option(help="Under which the result is kept, for `brittle report`.")] = "attack",
    store: StoreDir = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    threads: Threads = None,
    fresh: Fresh = False,
    output: Output = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Attacks one trained network: a study of one model that exists already."""
    from brittle import study

    how = Request(store, data_root, device, "auto", threads, as_json, quiet, verbose, fresh, output)
    tables: dict[str, Any] = {
        "name": name,
        "title": f"Attacks on {_short(model)}",
        "data": data,
        "rows": rows,
        "models": {"model": {}},
        "attacks": {re.split("[.:]", path)[-1]: _attack_table(path, arithmetic) for path in attack},
    }
    for setting in option or []:
        for label in tables["attacks"]:
            study.put(tables, f"attacks.{label}.{setting}", "--option")
    run_study(study.check(tables, "attack", trust=True), how, _given(model, network, how))


def _short(model: str) -> str:
    """The file's name, or enough of the key."""
    return Path(model).name if model.endswith(".safetensors") else model[:12]


def _given(model: str, network: str, how: Request) -> Given:
    """The network of a study of one: a trained cell by its key, or a file of weights."""
    from brittle import cells, engine, naming

    if model.endswith(".safetensors"):
        path = naming.full_path(naming.network(network, trust=True), network, "brittle.networks")
        return lambda loaded: {"model": cells.adopted(Path(model), path, {}, loaded)}
    recalled = engine.recall_network(how.open_store(), model)
    return lambda _: {"model": recalled}


@app.command()
@_guarded
def audit(
    model: Annotated[
        str,
        typer.Argument(help="package.module:callable, a .pt2 archive, a trained cell's key, or a file of weights."),
    ],
    data: Annotated[str, typer.Option(help="A data set's name, a folder of class folders, or an .npz file.")],
    weights: Annotated[
        Path | None, typer.Option(help="Of package.module:callable: .safetensors, or a state dict in .pt or .pth.")
    ] = None,
    network: Annotated[
        str | None, typer.Option(help="What a file of weights, given as MODEL, is of: brittle's, or an import path.")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(help="Of each channel, taken from images in [0, 1]: 0.49,0.48,0.45")
    ] = None,
    std: Annotated[str | None, typer.Option(help="Of each channel, by which they are then divided.")] = None,
    norm: Annotated[str, typer.Option(help="Of the changes: linf, l2, l0 or all.")] = "linf",
    eps: Annotated[
        float | None, typer.Option(help="The largest change. [default: the field's for such images]")
    ] = None,
    rows: Annotated[int, typer.Option(help="Test images to attack.")] = 1000,
    budget: Annotated[str, typer.Option(help="quick, standard or thorough.")] = "standard",
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="An undefended network of the same shape and training; 'train' trains one, for a cell of the store.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of all random draws.")] = 0,
    store: StoreDir = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    threads: Threads = None,
    fresh: Fresh = False,
    output: Output = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Says whether a model is robust or only looks so, and why.

    Exit code 0: robust; 1: broken or masked; 2: bad input; 3: inconclusive.
    """
    from brittle.inspecting import Question, run_audit

    means, stds = _numbers("mean", mean), _numbers("std", std)
    asked = Question(model, data, weights, network, means, stds, norm, eps, rows, budget, reference, seed)
    how = Request(store, data_root, device, "auto", threads, as_json, quiet, verbose, fresh, output)
    if code := run_audit(asked, how):
        raise typer.Exit(code)


@app.command()
@_guarded
def explain(
    model: Annotated[
        str, typer.Argument(help="Key of a trained cell (its beginning will do), or a .safetensors file.")
    ],
    data: Annotated[
        str, typer.Option(help="A data set's name, a folder of class folders, or an .npz file.")
    ] = "digits",
    layers: Annotated[
        str | None, typer.Option(help="By name, with commas. [default: the activations after convolutions]")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="By name, with commas: those whose units are knocked out. [default: all]")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Of each split, at most; test images are held out.")] = 100,
    random: Annotated[int, typer.Option(min=0, help="Draws of units that are knocked out in no order.")] = 3,
    points: Annotated[int, typer.Option(min=2, help="Of each knockout curve at most, from none gone to all.")] = 32,
    logits: Annotated[bool, typer.Option("--logits", help="Gradients of the logits, not of the softmax.")] = False,
    network: Annotated[str, typer.Option(help="What the .safetensors file holds the weights of.")] = "papernot_mnist",
    name: Annotated[str, typer.Option(help="Under which the result is kept, for `brittle report`.")] = "explain",
    store: StoreDir = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    threads: Threads = None,
    seed: Annotated[int, typer.Option(help="Of the random draws.")] = 0,
    fresh: Fresh = False,
    output: Output = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Says which units of a network matter, and what breaks when they go."""
    from brittle import study

    how = Request(store, data_root, device, "auto", threads, as_json, quiet, verbose, fresh, output)
    tables: dict[str, Any] = {
        "name": name,
        "title": f"The units of {_short(model)}",
        "data": data,
        "rows": images,
        "seeds": [seed],
        "models": {"model": {}},
        "units": {
            "maps": {
                "layers": _words(layers),
                "classes": _words(classes),
                "images": images,
                "random": random,
                "points": points,
                "of": "logits" if logits else "softmax",
            }
        },
    }
    run_study(study.check(tables, "explain"), how, _given(model, network, how))


def _words(text: str | None) -> list[str] | None:
    """'relu1, relu2' as names."""
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


def _numbers(name: str, text: str | None) -> tuple[float, ...] | None:
    """'0.49, 0.48, 0.45' as numbers."""
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--{name} needs numbers with commas between, such as 0.49,0.48,0.45, got {text!r}") from None


def _attack_table(path: str, arithmetic: str) -> dict[str, Any]:
    """An attack of a study file, as the command line names it."""
    from brittle import naming

    function = naming.attack(path, trust=True)
    table: dict[str, Any] = {"function": naming.full_path(function, path, "brittle.attacks")}
    if naming.takes(function, "arithmetic"):
        table["arithmetic"] = ["float32", "exact"] if arithmetic == "both" else [arithmetic]
    return table


# Studies ------------------------------------------------------------------------------------------------------------


@study_app.command("list")
@_guarded
def study_list(store: StoreDir = None, as_json: AsJson = False) -> None:
    """The studies that come with brittle, and those that the store holds."""
    from brittle.store import Store
    from brittle.study import built_in

    titles = {name: tomllib.loads(text)["title"] for name, text in built_in().items()}
    kept = Store(store).studies()
    if as_json:
        out.print_json(json.dumps({"built_in": titles, "in_store": kept}))
        return
    shown = Table("study", "title", "in the store", box=None, header_style="bold")
    for name in sorted({*titles, *kept}):
        shown.add_row(escape(name), escape(titles.get(name, "")), "yes" if name in kept else "")
    out.print(shown)


@study_app.command("show")
@_guarded
def study_show(name: str, settings: Settings = None, size: Size = None) -> None:
    """Prints a study as it would be run, settings applied, as JSON."""
    from brittle.study import as_run, read

    out.print_json(json.dumps(as_run(read(name, settings or [], size))))


@study_app.command("run")
@_guarded
def study_run(
    name: Annotated[str, typer.Argument(help="A built-in study, or a .toml file.")],
    size: Size = None,
    settings: Settings = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done and what it costs, and do nothing.")
    ] = False,
    store: StoreDir = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    workers: Workers = None,
    engine: Engine = "here",
    address: Address = None,
    gpus_per_cell: GpusPerCell = None,
    seed: Seed = None,
    fresh: Fresh = False,
    output: Output = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Runs a study, or what is left of it, and writes its page."""
    from brittle.study import read

    shared = {"workers": workers, "engine": engine, "address": address, "gpus_per_cell": gpus_per_cell}
    how = Request(store, data_root, device, dtype, threads, as_json, quiet, verbose, fresh, output, **shared)
    study = read(name, _seeded(settings, seed), size)
    if dry_run:
        foresee(study, how)
    else:
        run_study(study, how)


@study_app.command("status")
@_guarded
def study_status(
    name: Annotated[str, typer.Argument(help="A built-in study, or a .toml file.")],
    size: Size = None,
    settings: Settings = None,
    store: StoreDir = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: Seed = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """How much of a study is in the store."""
    from brittle.study import read

    how = Request(store, data_root, device, dtype, as_json=as_json, verbose=verbose)
    show_cells(read(name, _seeded(settings, seed), size), how, every=verbose)


@app.command()
@_guarded
def report(
    name: Annotated[str, typer.Argument(help="A study in the store; `brittle study list` names them.")],
    store: StoreDir = None,
    output: Output = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Prints a study's table and writes its page anew, from the store alone."""
    how = Request(store, as_json=as_json, verbose=verbose, output=output)
    report_study(how.open_store(), name, how)


# Data ---------------------------------------------------------------------------------------------------------------


@data_app.command("list")
@_guarded
def data_list(data_root: DataRoot = None, as_json: AsJson = False) -> None:
    """The data sets that brittle knows, and where each one is."""
    from brittle import data

    found = {name: data.status(name, data_root) for name in data.names()}
    if as_json:
        out.print_json(json.dumps(found))
        return
    shown = Table("data set", "where", box=None, header_style="bold")
    for name, status in found.items():
        shown.add_row(name, escape(status))
    out.print(shown)


@data_app.command("fetch")
@_guarded
def data_fetch(name: str, data_root: DataRoot = None, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """Downloads a data set, every file checked."""
    from brittle import data

    with Bars(quiet=quiet, verbose=verbose) as bars:
        folder = data.fetch(name, data_root, bars.work(f"download {name}"))
    out.print(f"{name} is in {folder}", highlight=False, soft_wrap=True)


@data_app.command("check")
@_guarded
def data_check(name: str, data_root: DataRoot = None, as_json: AsJson = False) -> None:
    """Reads every file of a data set and says whether it is as it should be; exit code 2 if one is not."""
    from brittle import data

    checks = data.check(name, data_root)
    if as_json:
        out.print_json(json.dumps([{"file": str(c.path), "ok": c.ok, "note": c.note} for c in checks]))
    else:
        for check in checks:
            mark = "[green]good[/]" if check.ok else "[red]bad[/] "
            out.print(f"{mark}  {escape(str(check.path))}: {escape(check.note)}", highlight=False, soft_wrap=True)
    if not checks:
        out.print(f"{name} is built in: there is nothing to check", highlight=False)
    if not all(check.ok for check in checks):
        raise typer.Exit(BAD_INPUT)


# Store --------------------------------------------------------------------------------------------------------------


@store_app.command("list")
@_guarded
def store_list(store: StoreDir = None, as_json: AsJson = False) -> None:
    """The finished cells, and how long each one took."""
    opened = Request(store).open_store()
    rows = []
    keys = opened.keys()
    for key in keys:
        stored = opened.get(key)
        title = stored.title if stored else f"damaged: {opened.damage(key)}"
        seconds = stored.seconds if stored else None
        rows.append({"key": key, "title": title, "seconds": seconds})
    if as_json:
        out.print_json(json.dumps(rows))
        return
    shown = Table("cell", "what", "seconds", box=None, header_style="bold")
    shown.columns[2].justify = "right"
    for row in rows:
        shown.add_row(row["key"][:12], escape(row["title"]), "" if row["seconds"] is None else f"{row['seconds']:.1f}")
    out.print(shown)
    out.print(f"{len(rows)} cells, {opened.size() / 1e6:.1f} MB in {opened.root}", highlight=False, soft_wrap=True)


@store_app.command("verify")
@_guarded
def store_verify(store: StoreDir = None) -> None:
    """Hashes every file of every cell again; exit code 1 if one is damaged."""
    opened = Request(store).open_store()
    whole, damaged = 0, []
    for key, sentence in opened.verify():
        if sentence is None:
            whole += 1
        else:
            damaged.append(key)
            out.print(f"[red]damaged[/] {key[:12]}: {escape(sentence)}", highlight=False)
    out.print(f"{whole} cells are whole, {len(damaged)} damaged; a damaged cell is done again when it is needed")
    if damaged:
        raise typer.Exit(1)


@store_app.command("clean")
@_guarded
def store_clean(
    store: StoreDir = None,
    everything: Annotated[bool, typer.Option("--everything", help="All cells and studies too.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Removes damaged cells and what killed processes left; with --everything, all cells."""
    opened = Request(store).open_store()
    if everything and not yes:
        typer.confirm(f"Remove all {len(opened.keys())} cells in {opened.root}?", abort=True)
    removed = {what: count for what, count in asdict(opened.clean(everything=everything)).items() if what != "bytes"}
    counted = ", ".join(f"{count} {what}" for what, count in removed.items() if count)
    out.print(f"removed {counted or 'nothing'}", highlight=False)
