"""The processors this process may use, read from a copy of the files that Linux shows."""

import os

import pytest

from semcache.semantic.threads import usable_cpus

ALL = len(os.sched_getaffinity(0))


def write(root, files):
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def test_usable_cpus_without_quota_are_those_of_the_affinity(tmp_path):
    """Where no cgroup limits, the affinity counts, not the host's processors."""
    assert usable_cpus(tmp_path) == ALL
    assert usable_cpus(write(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"})) == ALL


@pytest.mark.parametrize(("quota", "cpus"), [("100000", 1), ("50000", 1), ("150000", 1), ("9900000", ALL)])
def test_usable_cpus_quota_v2_limits(tmp_path, quota, cpus):
    """A quota of cgroup v2 limits, rounded down, at least to 1 and never above the affinity."""
    write(tmp_path, {"proc/self/cgroup": "0::/box\n", "sys/fs/cgroup/box/cpu.max": f"{quota} 100000\n"})
    assert usable_cpus(tmp_path) == cpus


def test_usable_cpus_quota_of_a_group_above_limits(tmp_path):
    """The tightest quota on the way up counts."""
    files = {
        "proc/self/cgroup": "0::/pod/box\n",
        "sys/fs/cgroup/pod/box/cpu.max": "max 100000\n",
        "sys/fs/cgroup/pod/cpu.max": "100000 100000\n",
    }
    assert usable_cpus(write(tmp_path, files)) == 1


@pytest.mark.parametrize(("quota", "cpus"), [("100000", 1), ("-1", ALL)])
def test_usable_cpus_quota_v1_limits(tmp_path, quota, cpus):
    """A quota of cgroup v1 limits; -1 means none."""
    files = {
        "proc/self/cgroup": "4:memory:/box\n2:cpu,cpuacct:/box\n",
        "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": f"{quota}\n",
        "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
    }
    assert usable_cpus(write(tmp_path, files)) == cpus


def test_usable_cpus_group_seen_from_inside_its_namespace_limits(tmp_path):
    """In a container the path named may not be mounted; the root of the mount, which is the group, counts."""
    files = {
        "proc/self/cgroup": "2:cpu,cpuacct:/docker/abc\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    }
    assert usable_cpus(write(tmp_path, files)) == 1


@pytest.mark.parametrize("content", ["", "rubbish", "max", "100000", "100000 0", "\xff"])
def test_usable_cpus_files_that_say_nothing_are_passed_over(tmp_path, content):
    """Damaged or odd files do not stop a load."""
    write(tmp_path, {"proc/self/cgroup": "0::/\n"})
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_bytes(content.encode("latin-1"))
    assert usable_cpus(tmp_path) == ALL
