"""The faults of `stress.faults`, fewer times; those that need Ray or a mount say so where they are skipped."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from stress import faults
from stress.faults import Survived

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_killed_at_random_moments_it_ends_with_the_same_numbers(tmp_path: Path):
    assert faults.killed(tmp_path, 5).times == 5


def test_of_two_workers_one_may_be_killed(tmp_path: Path):
    assert faults.workers_killed(tmp_path, 2).times == 2


def test_commands_that_share_a_store_do_each_cell_once(tmp_path: Path):
    faults.crowded(tmp_path)


def test_a_damaged_file_is_found_and_its_cell_alone_done_again(tmp_path: Path):
    assert faults.damaged(tmp_path, 4).times == 4


def test_locks_of_the_dead_and_other_clocks_hold_nobody_up(tmp_path: Path):
    faults.out_of_time(tmp_path)


def test_a_store_may_be_moved(tmp_path: Path):
    faults.moved(tmp_path)


@pytest.mark.parametrize("fault", [lambda folder: faults.full(folder, [0.5]), faults.read_only])
def test_a_disk_that_takes_no_more_is_said_in_one_line(tmp_path: Path, fault: Callable[[Path], Survived]):
    try:
        fault(tmp_path)
    except PermissionError as error:
        pytest.skip(str(error))


@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install '.[ray]'")
@pytest.mark.parametrize("fault", [faults.ray_workers_killed, faults.ray_node_killed, faults.ray_driver_killed])
def test_what_ray_loses_is_done_again_and_nothing_else(tmp_path: Path, fault: Callable[[Path], Survived]):
    fault(tmp_path)
