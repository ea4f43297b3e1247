"""Several processes, one store, faults in the middle: no read is older than what was acknowledged before it (law 8).

SEMCACHE_HISTORY_SECONDS makes each run longer than the seconds it takes here, SEMCACHE_HISTORY_PROCESSES gives it other
than four processes; SEMCACHE_HISTORY_LAG is how long one that follows the log may take to hear of an invalidation.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from history import KEYS, Acknowledged, Read, Starved, stale, staleness, trace

from semcache.log import LOST_SECONDS

PROCESSES = int(os.environ.get("SEMCACHE_HISTORY_PROCESSES", "4"))
SECONDS = float(os.environ.get("SEMCACHE_HISTORY_SECONDS", "3"))
# Processes that hear of each other do so in milliseconds; while a machine lets one of them wait for its turn, the time
# does not count.
FOLLOWED_LAG = float(os.environ.get("SEMCACHE_HISTORY_LAG", "1"))
CUT_OFF_LAG = LOST_SECONDS + 2.0
# No call takes longer, whatever the store does.
CALL_SECONDS = 10.0

# One after the other, though the tests run in parallel: each takes more processes than most machines have cores.
pytestmark = pytest.mark.xdist_group("history")


class Disturbance:
    """A fault that is brought about in the middle of a run, and from when to when it was felt."""

    def __init__(self, bring_about=lambda: None):
        self._bring_about = bring_about
        self._began, self._ended = float("inf"), float("-inf")
        self.error = None

    def __call__(self):
        self._began = time.monotonic()
        try:
            self._bring_about()
        except BaseException as error:
            self.error = error
            raise
        finally:
            self._ended = time.monotonic()

    def lag(self, began):
        """Return how old an answer may be that was asked for then."""
        return CUT_OFF_LAG if self._began <= began <= self._ended + CUT_OFF_LAG else FOLLOWED_LAG


def run(tmp_path, store, fault=lambda: None, seconds=SECONDS, *, tags=True):
    """Run the processes, let the fault come soon, and return what they read, acknowledged and lacked."""
    truth = tmp_path / "truth"
    truth.write_bytes(bytes(8 * KEYS))
    running = []
    for number in range(PROCESSES):
        settings = tmp_path / f"settings-{number}.json"
        settings.write_text(json.dumps({
            "store": store, "truth": str(truth), "seconds": seconds, "processes": PROCESSES, "number": number,
            "tags": tags,
        }))  # fmt: skip
        command = [sys.executable, str(Path(__file__).with_name("history.py")), str(settings), str(number)]
        running.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    middle = threading.Timer(SECONDS / 2, fault)
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
        if middle.ident is not None:
            middle.join()
        for one in running:
            one.kill()
            one.wait()
            one.stdin.close()
            one.stdout.close()
    reads = [Read(*line[1:]) for line in told if line[0] == "r"]
    acknowledged = [Acknowledged(*line[1:]) for line in told if line[0] == "w"]
    return reads, acknowledged, [Starved(*line[1:]) for line in told if line[0] == "s"]


def judge(reads, acknowledged, starved, lag):
    """Every call answered in time, nothing stale, and something to be judged: reads from every tier, invalidations."""
    found = stale(reads, acknowledged, lag, starved)
    if found:
        read = found[0][0]
        said = [f"{len(found)} of {len(reads)} reads are stale, {Counter(read.tier for read, _ in found)}"]
        said += [f"the oldest by {max(staleness(reads, acknowledged)):.3f} s"]
        said += [f"{read} where {must} was acknowledged" for read, must in found[:10]]
        pytest.fail("\n".join([*said, "the first one's key:", *trace(reads, acknowledged, read.key, read.began)]))
    assert max(read.took for read in reads) < CALL_SECONDS
    assert len(acknowledged) > 20
    assert {"memory", "load"} < {read.tier for read in reads}


def judge_disturbed(tmp_path, server, bring_about, lasts=0.5, **beside):
    """Disturb a server for some seconds in a run, which goes on long enough for all to be as before."""
    disturbance = Disturbance(bring_about)
    # Before the fault, until it is felt no more, and for some seconds after that.
    seconds = SECONDS / 2 + lasts + CUT_OFF_LAG + SECONDS
    reads, acknowledged, starved = run(tmp_path, {"redis": server.url} | beside, disturbance, seconds)
    assert disturbance.error is None
    judge(reads, acknowledged, starved, disturbance.lag)
    felt_until = disturbance._ended + CUT_OFF_LAG
    assert any(one.at > felt_until for one in acknowledged), "nothing was judged after the fault"
    nearest = "memcached" if beside else "redis"
    assert any(read.began > felt_until and read.tier == nearest for read in reads), "the store was not found again"


def test_checker_finds_a_stale_read():
    """The judge can find what it looks for, and minds the lag."""
    acknowledged = [Acknowledged(1, 5, 10.0)]
    early, late = Read(1, 4, 11.0, 0.0, "memory"), Read(1, 4, 13.0, 0.0, "redis")
    reads = [early, late, Read(1, 5, 13.0, 0.0, "load"), Read(2, 0, 13.0, 0.0, "load")]
    assert stale(reads, acknowledged, 2.0) == [(late, 5)]
    assert stale(reads, acknowledged, 0.5) == [(early, 5), (late, 5)]
    assert stale(reads, acknowledged, lambda began: 2.0 if began < 12 else 4.0) == []
    assert staleness(reads, acknowledged) == [1.0, 3.0]


def test_checker_minds_the_first_of_several_acknowledgements():
    """How outdated an answer is counts from the first invalidation that it missed."""
    acknowledged = [Acknowledged(1, 3, 30.0), Acknowledged(1, 1, 10.0), Acknowledged(1, 2, 20.0)]
    reads = [Read(1, 1, 35.0, 0.0, "memory"), Read(1, 0, 10.0, 0.0, "memory")]
    assert stale(reads, acknowledged, 1.0) == [(reads[0], 3)]
    assert stale(reads, acknowledged, 10.0) == [(reads[0], 2)]
    assert staleness(reads, acknowledged) == [15.0]
    assert trace(reads, acknowledged, 1, 35.0)[-1] == "+0.0000 process 0 read 1 from memory, took 0.0000"


def test_checker_forgives_what_a_starved_process_could_not_hear():
    """Only the reader's own process, and only the time between the acknowledgement and the read."""
    acknowledged, read = [Acknowledged(1, 5, 10.0)], Read(1, 4, 13.0, 0.0, "memory", 2)
    assert stale([read], acknowledged, 1.0, [Starved(2, 10.5, 12.8)]) == []
    for idle in (Starved(1, 10.5, 12.8), Starved(2, 7.0, 11.5), Starved(2, 12.5, 20.0)):
        assert stale([read], acknowledged, 1.0, [idle]) == [(read, 5)]


def test_processes_that_share_a_file_serve_nothing_stale(tmp_path):
    """Law 8: over the file store."""
    judge(*run(tmp_path, {"disk": str(tmp_path / "cache.db")}), FOLLOWED_LAG)


def test_processes_that_share_a_redis_serve_nothing_stale(tmp_path, own_redis):
    """Law 8: over Redis, undisturbed."""
    judge(*run(tmp_path, {"redis": own_redis().url}), FOLLOWED_LAG)


@pytest.mark.parametrize("store", ["disk", "redis"])
def test_processes_that_share_a_memcached_beside_a_store_serve_nothing_stale(tmp_path, memcached_url, own_redis, store):
    """Law 8: what memcached keeps of the time before an invalidation is as good as gone."""
    settings = {"redis": own_redis().url} if store == "redis" else {"disk": str(tmp_path / "cache.db")}
    reads, acknowledged, starved = run(tmp_path, settings | {"memcached": memcached_url})
    judge(reads, acknowledged, starved, FOLLOWED_LAG)


def test_processes_that_share_a_memcached_alone_serve_nothing_stale(tmp_path, memcached_url):
    """Law 8: by key; each memory serves what it holds for as long as one that is cut off."""
    settings = {"memcached": memcached_url}
    reads, acknowledged, starved = run(tmp_path, settings, seconds=SECONDS + LOST_SECONDS, tags=False)
    judge(reads, acknowledged, starved, LOST_SECONDS + FOLLOWED_LAG)
    assert "memcached" in {read.tier for read in reads}


def test_redis_that_comes_back_empty_leaves_nothing_stale_in_memcached(tmp_path, own_redis, memcached_url):
    """Law 8: the server with the marks has forgotten them, the one with the answers has not."""
    server = own_redis()

    def fault():
        server.kill()
        server.restart()

    judge_disturbed(tmp_path, server, fault, memcached=memcached_url)


def test_killed_and_restarted_redis_leaves_nothing_stale(tmp_path, own_redis):
    """Law 8: the server dies and comes back with what it had written down."""
    server = own_redis(appendonly=True)
    server.cli("CONFIG", "SET", "appendfsync", "always")

    def fault():
        server.kill()
        server.restart(keep_data=True)

    judge_disturbed(tmp_path, server, fault)


def test_redis_that_comes_back_empty_leaves_nothing_stale(tmp_path, own_redis):
    """Law 8: the server dies and has forgotten everything."""
    server = own_redis()

    def fault():
        server.kill()
        server.restart()

    judge_disturbed(tmp_path, server, fault)


@pytest.mark.parametrize("seconds", [3.0])
def test_paused_redis_leaves_nothing_stale(tmp_path, own_redis, seconds):
    """Law 8: the server stands still for a while, and goes on."""
    server = own_redis()

    def fault():
        server.pause()
        time.sleep(seconds)
        server.resume()

    judge_disturbed(tmp_path, server, fault, seconds)
