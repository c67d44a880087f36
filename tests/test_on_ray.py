"""Ray as it is started here: what listens, and what is said where it cannot be. What it survives is in `stress`."""

from __future__ import annotations

import os
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import pytest

from brittle.errors import InputError
from brittle.study.run.ray_pool import Ray
from brittle.study.run.worker import WorkerConfig

# Not imported to find out: it reads its settings when it is.
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install '.[ray]'")


def listening() -> set[tuple[str, str]]:
    """Addresses and ports, hexadecimal, that wait for connections from other machines."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            address, port = line.split()[1].split(":")
            loopback = address in ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")
            if line.split()[3] == "0A" and not loopback:
                found.add((address, port))
    return found


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/net")
def test_a_ray_that_is_started_here_listens_on_loopback_only_and_asks_for_a_token(tmp_path: Path):
    before = listening()
    executor = Ray(WorkerConfig(tmp_path / "store", device="cpu", threads=1), workers=1)
    try:
        assert executor.capacity == 2  # one at work, one that waits for it at the cluster
        assert listening() <= before
        assert os.environ["RAY_AUTH_MODE"] == "token"
        assert len(os.environ["RAY_AUTH_TOKEN"]) >= 32
    finally:
        executor.shutdown()


def test_a_ray_that_was_imported_too_early_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises(InputError, match="ray was imported before it could be told to listen on loopback only"):
        Ray(WorkerConfig(tmp_path / "store"))


def test_where_ray_is_not_installed_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"the engine ray needs the package ray: pip install 'brittle\[ray\]'"):
        Ray(WorkerConfig(tmp_path / "store"))


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_address_without_a_cluster_is_said(tmp_path: Path):
    with pytest.raises(InputError, match="no Ray at nowhere: "):
        Ray(WorkerConfig(tmp_path / "store"), address="nowhere")


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_ray_without_what_a_cell_needs_is_said(tmp_path: Path):
    with pytest.raises(InputError, match=r"the Ray at this machine has no 0\.5 of a GPU for a cell"):
        Ray(WorkerConfig(tmp_path / "store"), workers=1, gpus_per_cell=0.5)
