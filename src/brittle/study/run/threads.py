"""How many threads a computation should have here, and how they wait. It imports no torch, as it comes before it."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_LOOK = 0.2  # s: 20 ticks a core on Linux, so that a core's load is known to 5 %


def wait_passively() -> None:
    """Lets OpenMP's threads sleep while they wait for each other; call it before torch is imported.

    By default they spin. Where another process keeps a core busy, a thread that spins takes the time that the thread it
    waits for needs: two threads then trained 7 times slower than one (two epochs of digits, 30.5 s against 4.4 s).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def available_cores() -> int:
    """The cores that this process may use, at least 1: by its affinity and by its control group's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(int(quota) for quota in _quotas())]))


def idle_cores() -> int:
    """How many of the available cores no other process keeps busy now, at least 1.

    It watches for a fifth of a second. Processes of lower priority (nice) count as idle, as they give way.
    """
    before = _ticks()
    if before is None:  # not Linux
        busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    else:
        time.sleep(_LOOK)
        after = _ticks() or before
        passed = max(1, after[1] - before[1])
        busy = (after[0] - before[0]) / passed * (os.cpu_count() or 1)
    return max(1, min(available_cores(), round((os.cpu_count() or 1) - busy)))


def _ticks() -> tuple[int, int] | None:
    """The machine's ticks at normal priority so far, and all its ticks; None where the kernel does not say."""
    try:
        first = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
    except OSError:
        return None
    user, nice, system, *others = map(int, first.split()[1:8])  # then: idle, waiting for a disk, interrupts
    return user + system, user + nice + system + sum(others)


def _quotas() -> list[float]:
    """The cores that the process's control group, and each group above it, allows; empty if there is no limit."""
    quotas = []
    with suppress(OSError, ValueError, IndexError):
        own = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()[-1].split(":", 2)[2].lstrip("/")
        for group in [_GROUPS / own, *(_GROUPS / own).parents]:
            with suppress(OSError, ValueError):
                quota, period = (group / "cpu.max").read_text(encoding="ascii").split()  # version 2; 'max' has no limit
                quotas.append(int(quota) / int(period))
    with suppress(OSError, ValueError):
        quota = int((_GROUPS / "cpu/cpu.cfs_quota_us").read_text(encoding="ascii"))  # version 1; -1 has no limit
        period = int((_GROUPS / "cpu/cpu.cfs_period_us").read_text(encoding="ascii"))
        quotas += [quota / period] * (quota > 0)
    return quotas
