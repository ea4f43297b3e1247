"""A sidecar of several processes: workers that answer calls, and one that owns the cache."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
import threading
from pathlib import Path

import httpx
import pytest
from instruments import GUARD
from processes import CHAT, Process, asked
from test_programs import ask, program, settled, until

import semcache
from semcache.sidecar.crowd import Crowd, added, summed
from semcache.sidecar.owner import Owner
from semcache.sidecar.settings import Server, Settings
from semcache.testing import StandIn

__all__ = ["program"]

TOKENS = {"one": "T1", "two": "T2", "sees": "*"}


@pytest.fixture(scope="module")
def behind():
    with StandIn() as server:
        yield server


@pytest.fixture(scope="module")
def sidecar(behind, tmp_path_factory):
    """A sidecar with two workers, and tokens of two tenants and an operator."""
    config = tmp_path_factory.mktemp("workers") / "semcache.toml"
    rights = {"T1": '["proxy", "cache"]', "T2": '["proxy", "cache"]', "*": '["read", "admin"]'}
    config.write_text("".join(
        f'[[token]]\nsha256 = "{hashlib.sha256(name.encode()).hexdigest()}"\n'
        f'tenant = "{tenant}"\nrights = {rights[tenant]}\n'
        for name, tenant in TOKENS.items()
    ))  # fmt: skip
    process = Process(
        "--upstream", behind.url, "--workers", "2", "--config", str(config), "--namespace", "tests",
        "--timeout-owner", "20s",
    )  # fmt: skip
    yield process
    assert process.stop()[0] == 0


def call(sidecar, text, token="one"):
    """Ask over a connection of its own, so that any of the workers may take it."""
    answer = httpx.post(
        sidecar.url + CHAT, json=asked(text), timeout=GUARD,
        headers={"authorization": "Bearer k", "x-semcache-token": token},
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    return answer.headers


def look(sidecar, path, token="sees", **body):
    headers = {"x-semcache-token": token}
    with httpx.Client(base_url=sidecar.url, headers=headers, timeout=GUARD) as client:
        return client.post(path, json=body) if body else client.get(path)


def counted(sidecar, name, **labels):
    told = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in look(sidecar, "/metrics").text.splitlines() if not line.startswith("#")
    }  # fmt: skip
    return sum(
        value for at, value in told.items()
        if at.startswith(f"{name}{{") and all(f'{label}="{one}"' in at for label, one in labels.items())
    )  # fmt: skip


def both(sidecar, text, token="one"):
    """Ask until both workers have answered; how each call was."""
    seen = []
    until(lambda: seen.append(call(sidecar, text, token)["x-semcache-tier"]) or "sidecar" in seen)
    return seen


def test_what_one_worker_loads_the_other_finds(sidecar, behind):
    """At their owner; the server behind is asked once."""
    assert call(sidecar, "shared")["x-semcache"] == "miss"
    before = len(behind.asked)
    both(sidecar, "shared")
    assert len(behind.asked) == before


def test_what_is_counted_is_of_all(sidecar):
    """Metrics, stats, the dashboard's sums and the latest lookups."""
    calls = counted(sidecar, "semcache_lookup_seconds_count")
    hits = counted(sidecar, "semcache_hits_total")

    # Each beside what itself told before: a worker that another test has killed took what nobody had looked at with it.
    def stats():
        return sum(look(sidecar, "/semcache/v1/stats").json()["stats"]["hits"].values())

    def live():
        return sum(look(sidecar, "/semcache/v1/live").json()["hits"].values())

    in_stats, in_live = stats(), live()
    call(sidecar, "counted")
    times = len(both(sidecar, "counted"))
    until(lambda: counted(sidecar, "semcache_lookup_seconds_count") >= calls + times + 1)
    until(lambda: counted(sidecar, "semcache_hits_total") >= hits + times)
    until(lambda: stats() >= in_stats + times)
    until(lambda: live() >= in_live + times)
    rows = []

    def has_all():
        rows[:] = look(sidecar, "/semcache/v1/lookups?search=counted&limit=500").json()["lookups"]
        return len(rows) >= min(times + 1, 100)  # of many the latest are kept

    until(has_all)
    assert len({row["number"] for row in rows}) == len(rows)
    assert [row["at"] for row in rows] == sorted((row["at"] for row in rows), reverse=True)


def test_lookups_of_a_tenant_are_its_own(sidecar):
    """In whichever worker they were."""
    call(sidecar, "whose", "one")
    call(sidecar, "whose", "two")
    for tenant in ("T1", "T2"):

        def own(tenant=tenant):
            rows = look(sidecar, "/semcache/v1/lookups?search=whose", token="sees").json()["lookups"]
            return [row for row in rows if row["tenant"].startswith(tenant)]

        until(lambda own=own: len(own()) == 1)
    assert look(sidecar, "/semcache/v1/lookups", token="one").status_code == 403


def test_invalidation_reaches_every_worker(sidecar):
    """And the mode of all does."""
    call(sidecar, "gone")
    both(sidecar, "gone")
    assert look(sidecar, "/semcache/v1/invalidate", everything=True).json()["entries"] >= 1
    until(lambda: call(sidecar, "gone")["x-semcache"] == "miss")
    assert look(sidecar, "/semcache/v1/mode", mode="off").status_code == 200
    seen = []
    until(lambda: seen.append(call(sidecar, "gone")["x-semcache"]) or seen[-6:] == ["bypass"] * 6)
    look(sidecar, "/semcache/v1/mode", mode="live")
    until(lambda: call(sidecar, "gone")["x-semcache"] == "hit")


def test_programs_of_tenants_stay_apart_behind_workers(sidecar, program):
    """What a worker has laid over their keys and names stays there on its way to the owner."""
    one, two, again = (program(semcache.Sidecar(sidecar.url, token=name)) for name in ("one", "two", "one"))
    ask(one, "a", "T1's", tags="faq")
    settled(one)
    assert ask(two, "a", "T2's", tags="faq")[0] == "T2's"
    settled(two)
    two.invalidate(tag="faq")
    fresh = program(semcache.Sidecar(sidecar.url, token="one"), memory=0)
    until(lambda: ask(fresh, "a", "?")[0] == "T1's")
    ask(again, "a", "?")
    one.invalidate(tag="faq")
    until(lambda: again.memory.stats()["entries"] == 0)


def workers_of(sidecar):
    """Return the numbers of a sidecar's workers."""
    pid = sidecar.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_worker_that_dies_is_begun_anew(sidecar):
    """Calls go on, and no sum goes back."""
    call(sidecar, "survives")
    both(sidecar, "survives")
    loads = counted(sidecar, "semcache_loads_total")
    first, second = workers_of(sidecar)
    os.kill(first, signal.SIGKILL)
    until(lambda: len(set(workers_of(sidecar)) - {first}) == 2)
    until(lambda: call(sidecar, "survives")["x-semcache"] == "hit")
    assert second in workers_of(sidecar)
    assert counted(sidecar, "semcache_loads_total") >= loads


def test_page_and_states_are_served_by_any(sidecar):
    """The dashboard too, from the owner."""
    for _ in range(4):
        assert httpx.get(f"{sidecar.url}/livez").status_code == 200
        until(lambda: httpx.get(f"{sidecar.url}/readyz").status_code == 200)
        assert "<!doctype html>" in httpx.get(f"{sidecar.url}/").text
        assert httpx.get(f"{sidecar.url}/semcache/v1/stats").status_code == 401


def test_signal_lets_open_streams_of_workers_end(behind):
    """Sent to all its processes, as a terminal and a service manager do: status 0, nothing said, no process left."""
    sidecar = Process("--upstream", behind.url, "--workers", "2", start_new_session=True)
    held = behind.hold(after=2)
    answers = []
    reader = threading.Thread(target=lambda: answers.append(sidecar.post({**asked("s"), "stream": True}).text))
    reader.start()
    assert held.reached.wait(GUARD)
    workers = workers_of(sidecar)
    os.killpg(sidecar.process.pid, signal.SIGTERM)
    reader.join(0.3)  # it would be cut at once, as by a second signal
    held.go.set()
    reader.join(GUARD)
    status, errors = sidecar.stop(None)
    assert (status, errors.replace(_no_secret(errors), "")) == (0, "")
    assert answers[0].rstrip().endswith("[DONE]")
    assert not any(_lives(pid) for pid in workers)


def test_page_of_another_name_is_refused_by_every_worker(behind):
    """What is handed to the owner comes over a socket, by which no name would be looked at (DNS rebinding)."""
    sidecar = Process("--upstream", behind.url, "--workers", "2")
    for _ in range(4):
        for path in ("/", "/metrics", "/semcache/v1/stats", "/semcache/v1/lookups"):
            until(lambda path=path: httpx.get(sidecar.url + path).status_code == 200)
            assert httpx.get(sidecar.url + path, headers={"host": "evil.example"}).status_code == 403, path
    head = httpx.head(f"{sidecar.url}/")
    assert int(head.headers["content-length"]) == len(httpx.get(f"{sidecar.url}/").content)
    changed = httpx.get(f"{sidecar.url}/", headers={"if-none-match": head.headers["etag"]})
    assert (changed.status_code, changed.headers.get("content-length")) == (304, None)
    long = {"path": CHAT, "body": asked("x" * (2 << 20))}
    assert httpx.post(f"{sidecar.url}/semcache/v1/explain", json=long, timeout=GUARD).status_code == 200
    assert sidecar.stop()[0] == 0


def test_workers_end_when_their_owner_was_killed(behind):
    """Nobody would begin them anew, nor tell them of invalidations."""
    sidecar = Process("--upstream", behind.url, "--workers", "2")
    until(lambda: len(workers_of(sidecar)) == 2)
    sidecar.post(asked("before"))
    workers = workers_of(sidecar)
    sidecar.stop(signal.SIGKILL)
    until(lambda: not any(_lives(pid) for pid in workers))


def _no_secret(errors):
    return next((line for line in errors.splitlines(keepends=True) if "no secret" in line), "")


def _lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_sums_of_metrics_are_of_each_sample():
    """By name and labels; what one process alone has is there too."""
    one = '# HELP a_total n\n# TYPE a_total counter\na_total{x="1"} 2.0\n'
    two = '# HELP a_total n\n# TYPE a_total counter\na_total{x="1"} 3.0\na_total{x="2"} 1.0\n# TYPE b gauge\nb 4.0\n'
    lines = added([one, two]).decode().splitlines()
    assert [line for line in lines if not line.startswith("#")] == ['a_total{x="1"} 5.0', 'a_total{x="2"} 1.0', "b 4.0"]


def test_sums_are_of_numbers_in_whatever_depth():
    """Of texts the first stands."""
    told = [{"a": 1, "by": {"x": 1}, "of": "one"}, {"a": 2, "by": {"x": 2, "y": 3}, "of": "two"}, {}]
    assert summed(told) == {"a": 3, "by": {"x": 3, "y": 3}, "of": "one"}


def test_worker_that_ended_is_counted_on_in_one_sum_and_holds_nothing():
    """However often it is begun anew; what its tiers held is gone with it."""
    crowd = Crowd()
    told = (
        "# HELP a_total n\n# TYPE a_total counter\na_total 2.0\n"
        '# HELP semcache_tier n\n# TYPE semcache_tier gauge\nsemcache_tier{figure="entries"} 7.0\n'
    )
    for _ in range(3):
        crowd._latest = {(1, "metrics"): told, (1, "stats"): {"loads": 2, "tiers": {"memory": {"entries": 7}}}}
        crowd.ended(1)
        crowd.ended(1)
    assert len(crowd._past_metrics) == 1
    assert "a_total 6.0" in crowd._past_metrics[0]
    assert "semcache_tier" not in crowd._past_metrics[0]
    assert summed(crowd._past_stats) == {"loads": 6, "tiers": {}}


def test_worker_that_cannot_be_begun_is_begun_later(behind, monkeypatch):
    """Where the machine has no room for a process at the moment."""
    begun, is_begun, real = [], asyncio.Event(), asyncio.create_subprocess_exec

    async def begin(*arguments, **how):
        begun.append(arguments)
        if len(begun) == 1:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        is_begun.set()
        return await real(sys.executable, "-c", "import os\nwhile os.read(0, 4096)[-1:] not in b'e': pass", **how)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", begin)

    async def keep(owner):
        keeping = asyncio.create_task(owner._keep(0))
        async with asyncio.timeout(GUARD):
            await is_begun.wait()
            owner.end()
            await keeping

    owner = Owner(Settings(upstream=(Server(behind.url),), port=0, workers=2))
    owner.listen()
    try:
        asyncio.run(keep(owner))
    finally:
        owner.close()
        owner.cache.close()
