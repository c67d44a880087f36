"""Faults that we can cause, and whether a store survives them: nothing finished is lost or done twice, and what is
resumed ends as if nothing had been.

    python tests/stress/faults.py [--kills 50] [--ray]

Each fault is a function that raises AssertionError where something was lost, and else says what it saw. The tests make
the same ones, fewer times.
"""

from __future__ import annotations

import argparse
import atexit
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from brittle.cli.main import app
from brittle.study.store.store import Store

STUDY = Path(__file__).with_name("small.toml")
CODE = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from brittle.cli.main import main; main()"
)
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "BRITTLE_OFFLINE": "1"}
LIMIT = 300  # seconds after which a command counts as hanging


@dataclass(frozen=True)
class Survived:
    """A fault, how often it was caused, and what else there is to say."""

    fault: str
    times: int
    note: str


# Commands -----------------------------------------------------------------------------------------------------------
# What is disturbed runs in a process of its own. What is not runs in this one, which has imported torch already.


def line(home: Path, *more: str) -> list[str]:
    """`study run` on a store, with one thread."""
    return ["study", "run", str(STUDY), "--store", str(home), "--threads", "1", *more]


def begin(home: Path, *more: str) -> subprocess.Popen[str]:
    """It in a process of its own."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        [sys.executable, "-c", CODE, *line(home, *more)], env={**os.environ, **ENVIRONMENT}, **pipes
    )


def finish(running: subprocess.Popen[str]) -> str:
    """Its standard error, once it has ended well."""
    _, said = running.communicate(timeout=LIMIT)
    assert running.returncode == 0, said
    assert "Traceback" not in said, said
    return said


def run(*arguments: str, code: int = 0) -> str:
    """Any command in this process: its standard error, once it has ended so."""
    ended = CliRunner(env=ENVIRONMENT).invoke(app, arguments)
    assert ended.exit_code == code, ended.output
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.stderr


def computed(said: str) -> int:
    """How many cells a command says that it has computed."""
    return int(said.rpartition(" cells computed")[0].split()[-1])


def at_work(home: Path, running: subprocess.Popen[str]) -> bool:
    """Waits until the command, or a worker of its, has a cell in work, or has ended; whether it runs.

    A lock file alone says nothing: those of killed processes stay.
    """
    while running.poll() is None and not (
        any(home.glob("locks/*.lock"))
        and (holds(home, running.pid) or any(holds(home, pid) for pid in children(running.pid, "")))
    ):
        time.sleep(0.05)
    return running.poll() is None


def holds(home: Path, pid: int) -> bool:
    """Whether a process has the lock of a cell open."""
    for handle in Path(f"/proc/{pid}/fd").glob("*"):
        with suppress(OSError):
            path = Path(os.readlink(handle))
            if path.parent == home / "locks" and path.suffix == ".lock":
                return True
    return False


def begun(home: Path, cells: int, running: subprocess.Popen[str]) -> None:
    """Waits until the store has so many cells, or the command has ended."""
    while running.poll() is None and len(Store(home).keys()) < cells:
        time.sleep(0.05)


# What is in a store -------------------------------------------------------------------------------------------------


def cells_of(home: Path) -> dict[str, dict[str, Any]]:
    """What every cell holds: its scalars, and the sha256 of its files; but for how long an audit's attacks took."""
    store = Store(home)
    found = {key: store.get(key) for key in store.keys()}  # noqa: SIM118
    for cell in found.values():
        for step in cell.scalars.get("audit", {}).get("steps", []) if cell else []:
            del step["seconds"]
    return {key: {"scalars": cell.scalars, "files": cell.record["files"]} for key, cell in found.items() if cell}


def made(home: Path) -> dict[str, Any]:
    """When and in how long every whole cell was made: another time is another making."""
    store = Store(home)
    found = {key: store.get(key) for key in store.keys()}  # noqa: SIM118
    return {key: cell.record["provenance"] for key, cell in found.items() if cell}


def kept(before: Mapping[str, Any], home: Path) -> None:
    """Asserts that every cell that was finished before still is what it was."""
    now = made(home)
    assert before == {key: now.get(key) for key in before}


@cache
def undisturbed() -> Path:
    """A store in which the study was run and nothing disturbed it, copied from where it was made, which is gone."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    run(*line(folder / "first"))
    shutil.copytree(folder / "first", folder / "store")
    shutil.rmtree(folder / "first")
    return folder / "store"


@cache
def whole() -> dict[str, dict[str, Any]]:
    """What the study finds when nothing disturbs it."""
    return cells_of(undisturbed())


def finished(home: Path) -> Path:
    """A copy of that store."""
    return shutil.copytree(undisturbed(), home, dirs_exist_ok=True)


# Faults -------------------------------------------------------------------------------------------------------------


def killed(folder: Path, times: int, *more: str, seed: int = 0) -> Survived:
    """SIGKILL at random moments at work; the same study begun again and again until it is through, then anew."""
    draw, kills, through = random.Random(seed), 0, 0
    home = folder / "killed-0"
    while kills < times:
        before = made(home)
        running = begin(home, *more)
        if at_work(home, running):
            with_time = time.monotonic() + draw.uniform(0, 2)
            while running.poll() is None and time.monotonic() < with_time:
                time.sleep(0.01)
        if running.poll() is None:
            running.kill()
            running.communicate()
            kills += 1
            kept(before, home)
        else:
            finish(running)
            assert cells_of(home) == whole()
            through += 1
            home = folder / f"killed-{through}"
    before = made(home)
    run(*line(home, *more))
    kept(before, home)
    assert cells_of(home) == whole()
    return Survived("SIGKILL of the command at a random moment", kills, f"{through + 1} studies ended the same")


def crowded(folder: Path, processes: int = 4) -> Survived:
    """Several commands on one store at once: each cell is done once."""
    home = folder / "crowded"
    running = [begin(home) for _ in range(processes)]
    counts = [computed(finish(one)) for one in running]
    assert sum(counts) == len(whole()), counts
    assert cells_of(home) == whole()
    return Survived(
        f"{processes} commands on one store at once", 1, f"cells done by each: {', '.join(map(str, counts))}"
    )


def damaged(folder: Path, times: int, seed: int = 0) -> Survived:
    """A file of a finished cell truncated, or a bit of it flipped: found, said, and that cell alone done again."""
    draw, home = random.Random(seed), finished(folder / "damaged")
    for number in range(times):
        before = made(home)
        file = draw.choice(sorted(path for path in home.glob("cells/*/*") if path.stat().st_size))
        content = bytearray(file.read_bytes())
        if number % 2:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        else:
            del content[draw.randrange(len(content)) :]
        file.write_bytes(content)
        said = run(*line(home))
        key = file.parent.name
        assert f"stored cell {key[:8]} is damaged ({file.name}: " in said, said
        assert computed(said) == 1
        kept({other: value for other, value in before.items() if other != key}, home)
        assert cells_of(home) == whole()
    return Survived("a file truncated, or one bit of it flipped", times, "found by its sha256 or seal, said, redone")


@contextmanager
def mounted(folder: Path, size: int) -> Iterator[Path]:
    """A file system of `size` bytes.

    Raises:
        PermissionError: where this process may not mount.
    """
    folder.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise PermissionError(f"may not mount: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def full(folder: Path, fractions: Sequence[float] = (0.2, 0.5, 0.8)) -> Survived:
    """A disk that is full before the study is through; the study goes on once there is room."""
    size = int(subprocess.check_output(["du", "-sb", "--apparent-size", undisturbed() / "cells"]).split()[0])
    for number, fraction in enumerate(fractions):
        with mounted(folder / f"full-{number}", int(fraction * size)) as home:
            lines = run(*line(home, "-q"), code=2).splitlines()
            assert len(lines) == 1, lines
            assert lines[0].startswith(f"error: cannot write to {home}"), lines
            store, before = Store(home), made(home)
            assert all(fault is None for _, fault in store.verify())
            assert 0 < len(before) < len(whole())
            remount(home, f"size={4 * size}")
            run(*line(home, "-q"))
            kept(before, home)
            assert cells_of(home) == whole()
    return Survived("a disk full during the study", len(fractions), "one line, the store whole, resumed after")


def read_only(folder: Path) -> Survived:
    """A store that cannot be written: reports still work, and a run says so in one line."""
    with mounted(folder / "read-only", 1 << 28) as home:
        before = made(finished(home))
        remount(home, "ro")
        for command in (["report", "small", "--output", str(folder / "page")], ["store", "verify"], ["store", "list"]):
            run(*command, "--store", str(home))
        assert (folder / "page" / "report.html").stat().st_size > 10_000
        said = run(*line(home, "--fresh", "-q"), code=2).splitlines()
        assert len(said) == 1, said
        assert f"cannot write to {home}" in said[0], said
        kept(before, home)
    return Survived("a store on a read-only file system", 1, "report, list and verify work; a run says so in one line")


def out_of_time(folder: Path) -> Survived:
    """Clocks that jump, and locks, scratch and half-written cells of processes that are dead."""
    home = folder / "out-of-time"
    running = begin(home)
    at_work(home, running)
    time.sleep(1)
    running.kill()
    running.communicate()
    before = made(home)
    keys = sorted(set(whole()) - set(before))
    for number, key in enumerate(keys):  # as if each of the others had been in work when the machine went down
        (home / "locks" / f"{key}.lock").touch()
        (home / "work" / key).mkdir(parents=True, exist_ok=True)
        half = home / "cells" / f".tmp-{key}-{number:08x}"
        half.mkdir(parents=True)
        (half / "cell.json").write_text("{")
    for number, path in enumerate(sorted(home.rglob("*"))):  # as another clock would have it: 1970, 2040
        os.utime(path, (0, 0) if number % 2 else (2.2e9, 2.2e9))
    run(*line(home))
    kept(before, home)
    assert cells_of(home) == whole()
    return Survived(
        "locks and scratch of dead processes, clocks of 1970 and 2040", len(keys), "no waiting, nothing redone"
    )


def moved(folder: Path) -> Survived:
    """A store copied to another path, the first one gone."""
    home = finished(folder / "second" / "deeper")
    said = run(*line(home))
    assert computed(said) == 0
    kept(made(undisturbed()), home)
    assert all(fault is None for _, fault in Store(home).verify())
    return Survived("a store copied to another path", 1, "valid, nothing redone")


def workers_killed(folder: Path, times: int, seed: int = 0) -> Survived:
    """SIGKILL of one of two workers at random moments: another takes its place, and its cell is done again."""
    draw, kills, home, studies = random.Random(seed), 0, folder / "workers-0", 0
    while kills < times:
        running = begin(home, "--workers", "2")
        mine = 0
        while at_work(home, running) and kills < times and mine < 2:  # a cell is tried three times
            time.sleep(draw.uniform(0.2, 2))
            if victims := children(running.pid, "spawn_main"):
                os.kill(draw.choice(victims), signal.SIGKILL)
                kills, mine = kills + 1, mine + 1
        finish(running)
        assert cells_of(home) == whole()
        studies += 1
        home = folder / f"workers-{studies}"
    return Survived("SIGKILL of one of two workers", kills, f"{studies} studies ended the same")


def children(pid: int, word: str) -> list[int]:
    """Processes whose command line has the word, below a process."""
    parents, found = {}, []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if word in command_of(int(entry.name)):
                found.append(int(entry.name))
        except (OSError, ValueError):
            continue

    def below(one: int) -> bool:
        while one in parents:
            one = parents[one]
            if one == pid:
                return True
        return False

    return [one for one in found if below(one)]


def command_of(pid: int) -> str:
    """A process's command line; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


# Ray ----------------------------------------------------------------------------------------------------------------


@contextmanager
def cluster(nodes: int = 2) -> Iterator[tuple[Any, list[Any]]]:
    """A Ray cluster on this machine that listens on loopback only, and its nodes of one processor each."""
    from brittle.study.run.ray_pool import ALONE

    os.environ.update(ALONE)
    os.environ.setdefault("RAY_AUTH_TOKEN", "0" * 64)  # Ray keeps the first that a process has
    from ray.cluster_utils import Cluster

    ray = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        others = [ray.add_node(num_cpus=1) for _ in range(nodes)]
        ray.wait_for_nodes()
        yield ray, others
    finally:
        ray.shutdown()


def ray_workers_killed(folder: Path, times: int = 4, seed: int = 0) -> Survived:
    """SIGKILL of a process of Ray in the middle of a cell."""
    draw, home, kills = random.Random(seed), folder / "ray-workers", 0
    victims: list[int] = []
    with cluster() as (ray, _):
        running = begin(home, "--engine", "ray", "--address", ray.address)
        while running.poll() is None and kills < times:
            time.sleep(draw.uniform(0.5, 2))
            while running.poll() is None and not (victims := children(os.getpid(), "ray::train")):
                time.sleep(0.05)
            if running.poll() is None:
                os.kill(draw.choice(victims), signal.SIGKILL)
                kills += 1
        finish(running)
    assert cells_of(home) == whole()
    return Survived("Ray: SIGKILL of a worker in the middle of a cell", kills, "the study ended the same")


def ray_node_killed(folder: Path) -> Survived:
    """One of two nodes gone in the middle of a study."""
    home = folder / "ray-node"
    with cluster() as (ray, nodes):
        running = begin(home, "--engine", "ray", "--address", ray.address)
        begun(home, 8, running)
        before = made(home)
        ray.remove_node(nodes[0], allow_graceful=False)
        finish(running)
        kept(before, home)
    assert cells_of(home) == whole()
    return Survived("Ray: one of two nodes killed", 1, f"{len(before)} cells were finished, none of them redone")


def ray_driver_killed(folder: Path) -> Survived:
    """The command killed, with the Ray that it had started; begun again."""
    home = folder / "ray-driver"
    running = begin(home, "--engine", "ray", "--workers", "2")
    begun(home, 8, running)
    below = [pid for pid in children(running.pid, "ray") if "Agent" not in command_of(pid)]  # two idle ones stay
    running.kill()
    running.communicate()
    before, until = made(home), time.monotonic() + 30
    while any(map(command_of, below)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(command_of, below)), "processes of Ray outlive the command"
    finish(begin(home, "--engine", "ray", "--workers", "2"))
    kept(before, home)
    assert cells_of(home) == whole()
    return Survived(
        "Ray: the driver killed", 1, f"its Ray ended with it; {len(before)} cells were finished, none redone"
    )


# As a program -------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--ray", action="store_true")
    asked = parser.parse_args()
    faults: list[Callable[[Path], Survived]] = [
        lambda folder: killed(folder, asked.kills),
        lambda folder: workers_killed(folder, max(1, asked.kills // 5)),
        crowded,
        lambda folder: damaged(folder, max(2, asked.kills // 5)),
        full,
        read_only,
        out_of_time,
        moved,
    ]
    if asked.ray:
        faults += [ray_workers_killed, ray_node_killed, ray_driver_killed]
    print(f"{len(whole())} cells a study\n")
    print("| fault | times | cells lost | seconds | |\n| --- | ---: | ---: | ---: | --- |")
    for fault in faults:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            seen = fault(Path(folder))
        took = time.monotonic() - started
        print(f"| {seen.fault} | {seen.times} | 0 | {took:.0f} | {seen.note} |", flush=True)


if __name__ == "__main__":
    main()
