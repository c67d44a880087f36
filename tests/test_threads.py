"""How many threads are taken: by affinity, quota and load."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from brittle.study.run import threads

linux = pytest.mark.skipif(sys.platform != "linux", reason="affinity and control groups are Linux's")


@linux
def test_a_process_that_is_held_on_one_core_has_one():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    code += "from brittle.study.run.threads import available_cores; print(available_cores())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "150000 100000"}, 1),
        ({"cpu.max": "400000 100000"}, 4),
        ({"cpu.max": "20000 100000"}, 1),  # a fifth of a core is one thread
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_a_control_groups_quota_bounds_the_cores(tmp_path: Path, monkeypatch, files: dict[str, str], cores: int):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(threads, "_GROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert threads.available_cores() == cores


@pytest.mark.parametrize(
    ("busy", "idle"),
    [(0, 8), (10, 8), (100, 3), (160, 1), (155, 1)],  # ticks of 160 at normal priority, on 8 cores
)
def test_busy_cores_are_left_to_others(monkeypatch, busy: int, idle: int):
    seen = iter([(1000, 9000), (1000 + busy, 9160)])
    monkeypatch.setattr(threads, "_ticks", lambda: next(seen))
    monkeypatch.setattr(threads, "_quotas", list)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert threads.idle_cores() == idle


def test_the_commands_threads_wait_passively_unless_the_user_says_otherwise():
    code = "import os; from brittle.cli import main as cli\n"
    code += "cli.app = lambda: print(os.environ['OMP_WAIT_POLICY'])\ncli.main()"
    plain = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    for given, said in ({}, "PASSIVE\n"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE\n"):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=plain | given
        )
        assert done.stdout == said


@linux
def test_the_kernel_counts_ticks_at_normal_priority_apart():
    before = threads._ticks()
    sum(i * i for i in range(3_000_000))
    after = threads._ticks()
    assert before is not None
    assert after is not None
    assert after[0] >= before[0]
    assert after[1] > before[1]
