"""What several test files share."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock

# Workers of pytest-xdist share the cores: one thread each, also in the processes that tests start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

UNPACKER = Path(__file__).resolve().parents[2] / "shared" / "data" / "unpack.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lets each worker begin with files that have slow tests, so that what is left at the end is quick and shared well.

    `--dist worksteal` gives each worker a run of the list first. Files stay whole, as their tests share fixtures.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0"))
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    kinds = [[item for item in items if (item.path in slow) == first] for first in (True, False)]
    if workers:
        items[:] = [
            item
            for part in range(workers)
            for kind in kinds
            for item in kind[part * len(kind) // workers : (part + 1) * len(kind) // workers]
        ]


@pytest.fixture(scope="session")
def data_root() -> Path:
    """A data root with the real MNIST, CIFAR-10 (perhaps another compression of it) and Yale faces.

    BRITTLE_TEST_DATA names one; else one is unpacked once, for all workers and later runs, where copies of the sets
    lie beside the repository. Tests that need it are skipped where there is neither.
    """
    if named := os.environ.get("BRITTLE_TEST_DATA"):
        return Path(named)
    if not UNPACKER.is_file():
        pytest.skip(
            "real data not here: BRITTLE_TEST_DATA names no folder with mnist/, cifar-10-batches-bin/ and so on"
        )
    folder = Path(tempfile.gettempdir()) / f"brittle-test-data-{getpass.getuser()}"
    with FileLock(f"{folder}.lock"):
        whole = folder / "whole"
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, UNPACKER, folder], check=True, stdout=subprocess.DEVNULL)
            whole.touch()
    return folder


@pytest.fixture
def unprobed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attacks do their search alone: no model is asked beside it what it returns, whether it varies, and what memory it
    takes, and no found image is made longer for a surer lead.

    What an attack counts is then all that a model sees. `test_judging.py` holds the questions and the lead.
    """
    monkeypatch.setattr("brittle.attacks.options.as_classifier", lambda model, images: model)
    monkeypatch.setattr("brittle.attacks.result.nature", lambda model, images, logits: "plain")
    monkeypatch.setattr("brittle.models.inference._bytes_of", lambda model, image: 0)
    monkeypatch.setattr("brittle.attacks.judging.LEAD", -1.0)


@pytest.fixture
def empty_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of the user's cache, and none of brittle's settings in the environment."""
    cache = tmp_path / "cache"
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(cache / name))
    monkeypatch.delenv("BRITTLE_DATA", raising=False)
    monkeypatch.delenv("BRITTLE_OFFLINE", raising=False)
    return cache / "brittle" / "data"
