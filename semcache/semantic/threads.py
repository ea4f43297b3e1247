"""How many processors this process may really use, and the libraries' threads limited to that.

Inside a container the libraries count the host's processors; threads beyond the quota only wait for each other.
"""

from __future__ import annotations

import os
from pathlib import Path


def usable_cpus(root: Path = Path("/")) -> int:
    """Return the processors this process may use: its affinity, and its cgroup's quota (v2, else v1), at least 1."""
    count = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
    return max(1, int(min([count, *_quotas(root)])))


def limit_torch_threads() -> None:
    """Lower torch's threads to the usable processors, unless OMP_NUM_THREADS says how many."""
    import torch

    cpus = usable_cpus()
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > cpus:
        torch.set_num_threads(cpus)


def limit_faiss_threads() -> None:
    """Lower the threads that FAISS uses when called from this thread, as `limit_torch_threads` does."""
    import faiss

    cpus = usable_cpus()
    if "OMP_NUM_THREADS" not in os.environ and faiss.omp_get_max_threads() > cpus:
        faiss.omp_set_num_threads(cpus)


def share_faiss_threads(*, is_urgent: bool) -> None:
    """Let FAISS, called from this thread, use half of the usable processors, or all; OMP_NUM_THREADS goes before."""
    import faiss

    if "OMP_NUM_THREADS" not in os.environ:
        faiss.omp_set_num_threads(usable_cpus() if is_urgent else max(1, usable_cpus() // 2))


def _quotas(root: Path) -> list[float]:
    """Return the quotas, in processors, of this process's cgroups and of those they lie in."""
    found = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = mount / path.lstrip("/")
        for folder in [group, *group.parents]:
            quota = _quota_v1(folder) if controllers else _quota_v2(folder)
            if quota:
                found.append(quota)
            if folder == mount:
                break
    return found


def _quota_v2(folder: Path) -> float | None:
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    return _share(quota, period)


def _quota_v1(folder: Path) -> float | None:
    return _share(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _share(quota: str, period: str) -> float | None:
    """Return a quota in processors; None for "max", for -1, and for what says nothing."""
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
