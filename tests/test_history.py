"""Several processes, one store, faults in the middle: no read is older than what was acknowledged before it (law 8).

SEMCACHE_HISTORY_SECONDS makes each run longer than the seconds it takes here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from history import KEYS, Acknowledged, Read, stale

from semcache.log import LOST_SECONDS

PROCESSES = 4
SECONDS = float(os.environ.get("SEMCACHE_HISTORY_SECONDS", "6"))
# Processes that hear of each other do so in milliseconds; machines that run these tests may be busy with others.
FOLLOWED_LAG = 2.0
CUT_OFF_LAG = LOST_SECONDS + 4.0


def run(tmp_path, store, fault=lambda: None, seconds=SECONDS):
    """Run the processes, let the fault come in the middle, and return what they read and acknowledged."""
    truth = tmp_path / "truth"
    truth.write_bytes(bytes(8 * KEYS))
    running = []
    for number in range(PROCESSES):
        settings = tmp_path / f"settings-{number}.json"
        settings.write_text(json.dumps({
            "store": store, "truth": str(truth), "seconds": seconds, "processes": PROCESSES, "number": number,
        }))  # fmt: skip
        command = [sys.executable, str(Path(__file__).with_name("history.py")), str(settings), str(number)]
        running.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    middle = threading.Timer(seconds / 3, fault)
    try:
        for one in running:
            assert one.stdout.readline() == "ready\n"
        for one in running:
            one.stdin.write("go\n")
            one.stdin.flush()
        middle.start()
        told = [line for one in running for line in json.loads(one.communicate(timeout=seconds + 90)[0])]
        assert [one.returncode for one in running] == [0] * PROCESSES
    finally:
        middle.cancel()
        middle.join()
        for one in running:
            one.kill()
            one.wait()
            one.stdin.close()
            one.stdout.close()
    reads = [Read(*line[1:]) for line in told if line[0] == "r"]
    return reads, [Acknowledged(*line[1:]) for line in told if line[0] == "w"]


def judge(reads, acknowledged, lag):
    """Nothing stale, and something to be judged: reads from every tier, and invalidations."""
    found = stale(reads, acknowledged, lag)
    told = [f"{read} where {must} was acknowledged" for read, must in found[:10]]
    assert not found, "\n".join(
        [f"{len(found)} of {len(reads)} reads are stale, {Counter(r.tier for r, _ in found)}", *told]
    )
    assert len(acknowledged) > 20
    assert {"memory", "load"} < {read.tier for read in reads}


def test_checker_finds_a_stale_read():
    """The judge can find what it looks for, and minds the lag."""
    acknowledged = [Acknowledged(1, 5, 10.0)]
    early, late = Read(1, 4, 11.0, 0.0, "memory"), Read(1, 4, 13.0, 0.0, "redis")
    assert stale([early, late, Read(1, 5, 13.0, 0.0, "load"), Read(2, 0, 13.0, 0.0, "load")], acknowledged, 2.0) == [
        (late, 5)
    ]


def test_processes_that_share_a_file_serve_nothing_stale(tmp_path):
    """Law 8: over the file store."""
    judge(*run(tmp_path, {"disk": str(tmp_path / "cache.db")}), FOLLOWED_LAG)


def test_processes_that_share_a_redis_serve_nothing_stale(tmp_path, own_redis):
    """Law 8: over Redis, undisturbed."""
    judge(*run(tmp_path, {"redis": own_redis().url}), FOLLOWED_LAG)


def test_killed_and_restarted_redis_leaves_nothing_stale(tmp_path, own_redis):
    """Law 8: the server dies and comes back with what it had written down."""
    server = own_redis(appendonly=True)
    server.cli("CONFIG", "SET", "appendfsync", "always")

    def fault():
        server.kill()
        server.restart(keep_data=True)

    judge(*run(tmp_path, {"redis": server.url}, fault, SECONDS + CUT_OFF_LAG), CUT_OFF_LAG)


def test_redis_that_comes_back_empty_leaves_nothing_stale(tmp_path, own_redis):
    """Law 8: the server dies and has forgotten everything."""
    server = own_redis()

    def fault():
        server.kill()
        server.restart()

    judge(*run(tmp_path, {"redis": server.url}, fault, SECONDS + CUT_OFF_LAG), CUT_OFF_LAG)


@pytest.mark.parametrize("seconds", [3.0])
def test_paused_redis_leaves_nothing_stale(tmp_path, own_redis, seconds):
    """Law 8: the server stands still for a while, and goes on."""
    server = own_redis()
    resumed = threading.Timer(seconds, server.resume)

    def fault():
        server.pause()
        resumed.start()

    judge(*run(tmp_path, {"redis": server.url}, fault, SECONDS + CUT_OFF_LAG), CUT_OFF_LAG)
    resumed.join()
