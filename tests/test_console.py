"""What a log file and a terminal are told of a run."""

import io

import pytest
from rich.console import Console

from brittle.cli import bars as console
from brittle.study.kinds import new_cell
from brittle.study.store.cell import Cell


def cell(title: str, **params) -> Cell:
    return new_cell(title, "train", {"title": title, **params})


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(console, "time", made)
    return made


@pytest.fixture
def log(monkeypatch) -> io.StringIO:
    """A log file, as the console's errors."""
    file = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=file, width=200, color_system=None))
    return file


def test_a_log_file_is_told_the_step_the_time_and_the_time_left(log: io.StringIO, clock: Clock):
    short, long, last = cell("select rows"), cell("train"), cell("audit")
    bars = console.Bars()
    bars.expect({long.key: 10.0, last.key: 30.0}, 1, lambda ended: "Not robust." if ended is last else None)
    bars.plan([short, long, last])
    bars.end(short, cached=True)
    bars.begin(long)
    for second in (1, 3, 5, 8, 15):
        clock.now = float(second)
        bars.step(long, second, 20, "loss 0.5")
    bars.end(long, cached=False, seconds=20.0)
    bars.begin(last)
    bars.end(last, cached=False, seconds=60.0)
    assert log.getvalue().splitlines() == [
        "step 2 of 3: train, about 10 s (about 40 s left)",
        "  train: 15 %, loss 0.5",  # after 3 s, then not before 7 s, then not before 15 s
        "  train: 40 %, loss 0.5",
        "step 2 of 3: train: 20.0 s",
        "step 3 of 3: audit, about 1 min (about 1 min left)",  # as slow as the cell before: twice the estimate
        "step 3 of 3: audit: 60.0 s",
        "Not robust.",
    ]


def test_workers_share_the_time_left(log: io.StringIO, clock: Clock):
    cells = [cell(str(number)) for number in range(4)]
    bars = console.Bars()
    bars.expect({one.key: 60.0 for one in cells}, 2, lambda _: None)
    bars.plan(cells)
    bars.begin(cells[0])
    assert log.getvalue() == "step 1 of 4: 0, about 1 min (about 2 min left)\n"


def test_quiet_says_nothing_but_notes(log: io.StringIO):
    only = cell("train")
    bars = console.Bars(quiet=True)
    bars.expect({only.key: 60.0}, 1, lambda _: "Not robust.")
    bars.plan([only])
    bars.begin(only)
    bars.end(only, cached=False, seconds=60.0)
    assert log.getvalue() == ""
    bars.say("a damaged cell is run again")
    assert log.getvalue() == "note: a damaged cell is run again\n"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.44, "0.4 s"),
        (12.3, "12 s"),
        (90, "1.5 min"),
        (150, "2.5 min"),
        (7200, "2 h"),
        (90000, "25 h"),
        (1.3e6, "15 days"),
    ],
)
def test_durations_are_short(seconds: float, said: str):
    assert console.duration(seconds) == said
