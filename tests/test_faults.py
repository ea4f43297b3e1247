"""Faults and bad input, met through a whole cache: the caller gets the origin's answer or its error, unchanged, within
the tier's budget; the event names the fault; nothing stored is lost or wrong.

What each part does about its own faults is tested beside the part.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from contextlib import closing
from pathlib import Path

import pytest
from instruments import GUARD, Compass, Crew, Origin

import semcache
from semcache.log import LOST_SECONDS
from semcache.marks import Changes

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="limits and users as Linux has them")


def run_script(script, *arguments, command=(), **environment):
    """Run a script in a process of its own, which `command` begins; what it printed, line by line."""
    python = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(script)]
    ran = subprocess.run(
        [*command, *python, *map(str, arguments)],
        check=False, capture_output=True, text=True, timeout=8 * GUARD, env=os.environ | environment,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def assert_works_without(cache, ask, name):
    """Ask twice for an answer and twice for an error; the tier of that name may be any way it likes."""
    error = ValueError("the origin's own")
    for number in range(2):
        assert ask(cache, cache.request("good", number), lambda number=number: number) == number
        with pytest.raises(ValueError, match="the origin's own") as raised:
            ask(cache, cache.request("bad", number), Origin(error))
        assert raised.value is error
    assert any(fault.startswith(f"{name}: ") for fault in cache.stats().faults), cache.stats().faults


# The disk


def damage_whole(path):
    path.write_bytes(b"not a database, and longer than a header of one " * 100)


def begin_as_another_program(path):
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("CREATE TABLE theirs (x)")
        file.execute("INSERT INTO theirs VALUES ('precious')")


def begin_as_a_later_version(path):
    semcache.Cache("tests", disk=path).close()
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("PRAGMA user_version = 999")


def put_a_file_in_its_folders_place(path):
    path.parent.rmdir()
    path.parent.write_text("in the way")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (damage_whole, "damaged"),
        (begin_as_another_program, "version"),
        (begin_as_a_later_version, "version"),
        (put_a_file_in_its_folders_place, "unreachable"),
    ],
)
def test_file_that_cannot_be_used_costs_hits_alone(open_cache, tmp_path, ask, spoil, reason):
    """A damaged file, another program's, another version's, none that can be made: misses, named; theirs is left."""
    path = tmp_path / "folder" / "cache.db"
    path.parent.mkdir()
    spoil(path)
    before = path.read_bytes() if path.exists() else None
    heard = []
    cache = open_cache(disk=path, observers=[heard.append])
    assert_works_without(cache, ask, "disk")
    assert reason in {fault[1] for event in heard for fault in event.faults}
    if reason == "version":
        assert path.read_bytes() == before
    if reason == "damaged":  # moved aside, and begun anew
        assert cache.flush()
        assert cache.stats().tiers["disk"]["entries"] == 2
        assert path.with_name("cache.db.damaged-1").read_bytes() == before


def test_file_that_cannot_be_used_opens_the_breaker_and_recovers(open_cache, tmp_path, clock):
    """When the path is mended, the store is used again, without a new start."""
    path = tmp_path / "folder" / "cache.db"
    path.parent.write_text("in the way")
    cache = open_cache(disk=path, memory=0)
    for number in range(20):
        cache.get_or_load(cache.request(number), Origin())
    assert cache.stats().faults["disk: open"] > cache.stats().faults["disk: unreachable"] > 0
    path.parent.unlink()
    number = 0
    while semcache.last().faults:  # the file is begun behind the callers, soon after the first who puts
        number += 1
        clock.advance(10)
        cache.get_or_load(cache.request("mended", number), Origin())
    assert cache.flush()
    assert cache.get_or_load(cache.request("mended", number), Origin("not again")) == "answer"
    assert semcache.last().tier == "disk"


def test_file_that_is_not_begun_yet_is_no_loss(open_cache, tmp_path):
    """An empty file that could not be begun at once has no log to lose: nothing is told, and it is followed at once."""
    path = tmp_path / "cache.db"
    path.touch()
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        cache = open_cache(disk=path)
        holder.execute("ROLLBACK")
    assert cache.stats().faults == {"disk: busy": 1}
    cache.warm()
    assert cache.disk.join() == Changes(0)
    open_cache(disk=path).set_mode("exact")
    deadline = time.monotonic() + GUARD
    while cache.mode != "exact":
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert cache.stats().faults == {"disk: busy": 1}


def test_memory_is_trusted_for_seconds_where_the_file_was_never_there(open_cache, tmp_path, clock):
    """Law 8: a store that cannot be followed from the start is told once, and memory serves for seconds."""
    (tmp_path / "folder").write_text("in the way")
    lost = threading.Event()
    cache = open_cache(
        disk=tmp_path / "folder" / "cache.db", observers=[lambda event: event.reason == "unfollowed" and lost.set()]
    )
    request = cache.request("a")
    cache.get_or_load(request, lambda: "old")
    assert lost.wait(GUARD)
    assert cache.get_or_load(request, lambda: "new") == "old"
    clock.advance(LOST_SECONDS + 1)
    assert cache.get_or_load(request, lambda: "new") == "new"
    assert cache.stats().faults["disk: unfollowed"] == 1


def test_damaged_cell_is_loaded_anew_and_its_neighbours_stand(open_cache, tmp_path, ask):
    """An entry whose bytes are not what was written is a miss that is named, and is overwritten."""
    cache = open_cache(disk=tmp_path / "cache.db", memory=0)
    damaged, sound = cache.request("damaged"), cache.request("sound")
    for request in (damaged, sound):
        ask(cache, request, lambda: "old")
    cache.flush()
    with closing(sqlite3.connect(tmp_path / "cache.db")) as file, file:
        file.execute("UPDATE entries SET value = zeroblob(length(value)) WHERE key = ?", (damaged.key,))
    with semcache.trace() as seen:
        assert ask(cache, damaged, lambda: "new") == "new"
        assert ask(cache, sound, lambda: "new") == "old"
    assert [(event.kind, [fault[:2] for fault in event.faults]) for event in seen.lookups] == [
        ("miss", [("disk", "damaged")]), ("hit", []),
    ]  # fmt: skip
    cache.flush()
    assert ask(cache, damaged, lambda: "newer") == "new"


@ON_LINUX
def test_full_disk_costs_hits_alone(tmp_path):
    """A disk that is full loses nothing that is stored, and serves nothing wrong; with room again, all goes on."""
    lines = run_script(
        """
        import resource, semcache, sys
        cache = semcache.Cache("tests", disk=sys.argv[1], memory=0, timeouts=semcache.Timeouts(disk="10s"))
        ask = lambda name, word: cache.get_or_load(cache.request(name), lambda: word)
        kept = [ask(number, "x" * 1000) for number in range(100)]
        assert cache.flush(30)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
        for number in range(200):
            word = f"{number}" * 2000
            assert ask(("full", number), word) == word
        cache.flush(30)
        print(sorted(cache.stats().faults))
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert [ask(number, "lost") for number in range(100)] == kept
        for number in range(200):
            assert ask(("full", number), f"{number}" * 2000) == f"{number}" * 2000
        assert ask("room", "again") == "again"
        assert cache.flush(30)
        assert ask("room", "lost") == "again"
        print(cache.stats().hits["disk"] >= 100)
        """,
        tmp_path / "cache.db",
    )
    faults, goes_on = lines
    assert "disk: " in faults
    assert goes_on == "True"


@ON_LINUX
def test_readonly_file_costs_hits_alone(tmp_path_factory):
    """A file that may only be read makes misses, named; the origin answers."""
    lines = run_script(
        """
        import os, semcache, sys, tempfile
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "cache.db")
            with semcache.Cache("tests", disk=path) as cache:
                cache.get_or_load(cache.request("a"), lambda: "old")
            for name in os.listdir(folder):
                os.chmod(os.path.join(folder, name), 0o444)
            os.chmod(folder, 0o555)
            if os.geteuid() == 0:
                os.setegid(65534)
                os.seteuid(65534)
            heard = []
            cache = semcache.Cache("tests", disk=path, observers=[heard.append])
            assert cache.get_or_load(cache.request("a"), lambda: "new") in ("old", "new")
            assert cache.get_or_load(cache.request("b"), lambda: "b") == "b"
            assert cache.get_or_load(cache.request("b"), lambda: "c") == "b"  # memory has it
            try:
                cache.invalidate(key=cache.request("a").key)
            except semcache.InvalidationError as error:
                print("told")
            assert cache.get_or_load(cache.request("a"), lambda: "newer") == "newer"
            print({fault[0] for event in heard for fault in event.faults} == {"disk"})
            cache.close()
            if os.getuid() == 0:
                os.seteuid(0)
            os.chmod(folder, 0o755)
        """
    )
    assert lines == ["told", "True"]


@pytest.fixture(scope="session")
def in_namespace():
    """What begins a command that may mount: a file system of its own, which ends with it."""
    command = ["unshare", "--user", "--map-root-user", "--mount"]
    try:
        ran = subprocess.run(
            [*command, "mount", "-t", "tmpfs", "none", "/mnt"],
            check=False, capture_output=True, text=True, timeout=GUARD,
        )  # fmt: skip
    except OSError as error:
        pytest.skip(f"no file system can be mounted for a test: {error}")
    if ran.returncode:
        pytest.skip(f"no file system can be mounted for a test: {ran.stderr}")
    return command


@pytest.fixture(params=["limit", "file system"])
def full(request):
    """How a disk comes to be full: the name of the way, and what begins a command that goes it."""
    return request.param, [] if request.param == "limit" else request.getfixturevalue("in_namespace")


# What the scripts below begin with: a cache asked and told in one colour, in a folder that is full, or read-only.
STORED = """
import asyncio, os, resource, semcache, subprocess, sys
colour, memory, how, folder = sys.argv[1:]
path, filler = os.path.join(folder, "cache.db"), os.path.join(folder, "filler")
limits = resource.getrlimit(resource.RLIMIT_FSIZE)

def mount(*options):
    subprocess.run(["mount", *options, folder], check=True)

def make():
    return semcache.Cache("tests", disk=path, memory=memory, timeouts=semcache.Timeouts(disk="10s"))

def ask(cache, name, word):
    request = cache.request(name)
    if colour == "sync":
        return cache.get_or_load(request, lambda: word)
    return asyncio.run(cache.aget_or_load(request, lambda: word))

def invalidate(cache, name):
    key = cache.request(name).key
    try:
        cache.invalidate(key=key) if colour == "sync" else asyncio.run(cache.ainvalidate(key=key))
    except semcache.InvalidationError:
        return False
    return True

def fill():
    if how == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(path), limits[1]))
        return
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(512))
        except OSError as error:
            assert error.errno == 28, error

def make_room():
    if how == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    else:
        mount("-o", "remount,size=64m")
"""


@ON_LINUX
@pytest.mark.parametrize("memory", ["64MB", "0"])
@pytest.mark.parametrize("colour", ["sync", "async"])
def test_full_file_system_keeps_its_promises(tmp_path, full, colour, memory):
    """Callers have the origin's answers; an acknowledged invalidation holds, one that raised holds in its process."""
    how, command = full
    lines = run_script(
        STORED
        + """
if how != "limit":
    mount("-t", "tmpfs", "-o", "size=8m", "none")
cache = make()
for number in range(40):
    ask(cache, number, f"old {number}" + "x" * 10_000)
assert cache.flush(30)
told = {number: invalidate(cache, number) for number in range(10)}
fill()
for number in range(60):
    assert ask(cache, ("new", number), f"{number}" * 20_000) == f"{number}" * 20_000
cache.flush(30)
told |= {number: invalidate(cache, number) for number in range(10, 20)}
for number in told:
    assert ask(cache, number, f"fresh {number}") == f"fresh {number}"
    assert memory == "0" or ask(cache, number, "not again") == f"fresh {number}"
for number in range(20, 40):
    assert ask(cache, number, "lost").startswith(f"old {number}")
cache.flush(30)
print(*sorted(cache.stats().faults), sep=", ")
print(sum(told.values()))
make_room()
other = make()
for number, acknowledged in told.items():
    found = ask(other, number, "loaded")
    assert found in (f"fresh {number}", "loaded") or not acknowledged, (number, found)
for number in range(20, 40):
    assert ask(other, number, "lost").startswith(f"old {number}")
other.close()
for number in range(40):
    assert invalidate(cache, number)
    assert ask(cache, number, "again") == "again"
assert cache.flush(30)
other = make()
assert [ask(other, number, "lost") for number in range(40)] == ["again"] * 40
other.close()
cache.close()
""",
        colour, memory, how, tmp_path, command=command,
    )  # fmt: skip
    faults, acknowledged = lines
    assert {"disk: space", "disk: io"} & set(faults.split(", ")), faults
    assert 10 <= int(acknowledged) < 20


@ON_LINUX
@pytest.mark.parametrize("memory", ["64MB", "0"])
@pytest.mark.parametrize("colour", ["sync", "async"])
def test_readonly_file_system_keeps_its_promises(tmp_path, in_namespace, colour, memory):
    """Callers have the origin's answers, or what stands; an invalidation raises, and holds in its process."""
    lines = run_script(
        STORED
        + """
mount("-t", "tmpfs", "none")
with make() as cache:
    ask(cache, "a", "old")
    ask(cache, "b", "other")
mount("-o", "remount,ro")
cache = make()
assert ask(cache, "a", "new") in ("old", "new")
assert ask(cache, "b", "loaded") in ("other", "loaded")
assert not invalidate(cache, "a")
assert ask(cache, "a", "newer") == "newer"
assert memory == "0" or ask(cache, "a", "not again") == "newer"
print(*sorted(cache.stats().faults), sep=", ")
mount("-o", "remount,rw")
deadline = 10_000
while not invalidate(cache, "a"):
    deadline -= 1
    assert deadline
number = 0
while ask(cache, ("again", number), "lost") != "kept":  # the breaker lets one try every now and then
    number += 1
    ask(cache, ("again", number), "kept")
    cache.flush(30)
cache.close()
late = make()
assert ask(late, "a", "loaded") == "loaded"
assert ask(late, "b", "lost") == "other"
late.close()
""",
        colour, memory, "", tmp_path, command=in_namespace,
    )  # fmt: skip
    (faults,) = lines
    assert {"disk: readonly", "disk: unreachable"} & set(faults.split(", ")), faults


# The clock


def test_clock_that_goes_back_serves_nothing_past_its_life(open_cache, tmp_path, clock, ask):
    """A wall clock set back costs hits; no entry lives longer, and what is loaded is right."""
    cache = open_cache(disk=tmp_path / "cache.db", ttl=semcache.TTL(memory=50, disk=100, jitter=0))
    words = iter(range(100))
    request = cache.request("a")
    first = ask(cache, request, lambda: next(words))
    cache.flush()
    clock.set_time(clock.time() - 1000)
    clock.advance(60)
    second = ask(cache, request, lambda: next(words))
    assert second != first
    cache.flush()
    clock.advance(60)
    assert ask(cache, request, lambda: next(words)) == second
    clock.advance(60)
    assert ask(cache, request, lambda: next(words)) not in (first, second)


def test_clock_that_jumps_ahead_expires_and_does_no_harm(open_cache, tmp_path, clock):
    """A wall clock set ahead ends lives in the store early; set right again, nothing from the future is served."""
    cache = open_cache(disk=tmp_path / "cache.db", memory=0)
    request = cache.request("a")
    assert cache.get_or_load(request, lambda: "old") == "old"
    cache.flush()
    clock.set_time(clock.time() + 10 * 86400)
    assert cache.get_or_load(request, lambda: "from the future") == "from the future"
    cache.flush()
    clock.set_time(clock.time() - 10 * 86400)
    assert cache.get_or_load(request, lambda: "now") == "now"
    assert "the clock went back" in semcache.last().reason


# Forks


FORK = """
import os, semcache, sys, threading
from random import Random
path, forks = sys.argv[1], 12
cache = semcache.Cache("tests", disk=path, timeouts=semcache.Timeouts(disk="10s", semantic="10s"){more})
def ask(name):
    return cache.get_or_load(cache.request(name, text=f"text {{name}}", tenant=None), lambda: name)
stop = threading.Event()
def hammer(seed):
    draw = Random(seed)
    while not stop.is_set():
        name = draw.randrange(50)
        assert ask(name) == name
        if draw.random() < 0.02:
            cache.invalidate(function="nobody's")
threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(4)]
for thread in threads:
    thread.start()
for fork in range(forks):
    child = os.fork()
    if not child:
        try:
            for name in range(60):
                assert ask(name) == name
                assert ask((fork, name)) == (fork, name)
            assert cache.flush(30)
            cache.invalidate(key=cache.request((fork, 1), text=f"text {{(fork, 1)}}", tenant=None).key)
            cache.close()
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    for name in range(60):
        assert ask(name) == name
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status))
stop.set()
for thread in threads:
    thread.join()
assert cache.flush(30)
again = semcache.Cache("tests", disk=path)
def get(name):
    return again.get_or_load(again.request(name, text=f"text {{name}}", tenant=None), lambda: "lost")
print(sum(get(name) == name for name in range(50)), sum(get((fork, 0)) == (fork, 0) for fork in range(forks)))
import sqlite3
print(sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone()[0])
os._exit(0)
"""


@ON_LINUX
def test_fork_among_busy_threads_leaves_both_at_work(tmp_path):
    """Parent and child go on, neither waits for a lock of the other's; the store they share stays sound."""
    lines = run_script(FORK.format(more=""), tmp_path / "cache.db")
    assert lines == ["0"] * 12 + ["50 12", "ok"]


@ON_LINUX
@pytest.mark.semantic
def test_fork_with_an_index_leaves_both_at_work(tmp_path):
    """The worker thread stays behind: the child has one of its own, and its index anew."""
    script = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom instruments import Compass\n" + FORK
    lines = run_script(script.format(more=", embedder=Compass()"), tmp_path / "cache.db")
    assert lines == ["0"] * 12 + ["50 12", "ok"]


@ON_LINUX
def test_child_of_a_fork_does_not_wait_for_its_parents_load(tmp_path):
    """A flight that is in the air at the fork lands in the parent alone; the child loads for itself."""
    lines = run_script(
        """
        import os, semcache, threading
        cache = semcache.Cache()
        entered, go = threading.Event(), threading.Event()
        def load():
            entered.set()
            go.wait()
            return "parent's"
        leader = threading.Thread(target=lambda: print(cache.get_or_load(cache.request("a"), load), flush=True))
        leader.start()
        entered.wait()
        child = os.fork()
        if not child:
            print(cache.get_or_load(cache.request("a"), lambda: "child's"), cache.stats().faults, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        go.set()
        leader.join()
        """
    )
    assert lines == ["child's {}", "parent's"]


# The loader


class Unencodable:
    """An answer that cannot be stored."""


class Broken:
    """An answer that raises when it is looked into."""

    __module__ = None


@pytest.mark.parametrize("kind", [Unencodable, Broken])
def test_answer_that_cannot_be_encoded_is_given_all_the_same(open_cache, tmp_path, ask, kind):
    """The caller gets the origin's own object; the event names the fault; the next caller loads."""
    cache = open_cache(disk=tmp_path / "cache.db")
    answers = [kind(), kind()]
    with semcache.trace() as seen:
        assert [ask(cache, cache.request("a"), lambda answer=answer: answer) for answer in answers] == answers
    assert [event.faults[0][0] for event in seen.lookups] == ["codec", "codec"]


def test_answer_that_cannot_be_encoded_is_loaded_by_each_who_waits(open_cache):
    """What cannot be copied is not shared: followers load for themselves, and say why."""
    from instruments import watch_flights

    cache = open_cache()
    flights, origin = watch_flights(cache), Origin(Unencodable(), hold=True)
    with Crew() as crew:
        callers = [crew.submit(cache.get_or_load, cache.request("a"), origin) for _ in range(4)]
        flights.wait_for(4)
        origin.go.set()
        assert [caller.result(GUARD) for caller in callers] == [origin.answer] * 4
    assert origin.calls == 4
    assert cache.stats().faults["flight: unshared"] == 3


def test_answer_over_the_bound_is_given_shared_and_not_kept(open_cache, tmp_path, ask):
    """An answer over max_value is the callers', and nobody else's; the event says so."""
    cache = open_cache(disk=tmp_path / "cache.db", max_value="1kB")
    origin = Origin("x" * 2000)
    with semcache.trace() as seen:
        assert [ask(cache, cache.request("a"), origin) for _ in range(2)] == ["x" * 2000] * 2
    assert {event.reason for event in seen.lookups} == {"not kept: over max_value"}
    assert origin.calls == 2


def test_answer_larger_than_memory_is_given(open_cache, ask):
    """An answer that is larger than the whole tier evicts nothing and is counted."""
    cache = open_cache(memory=5000)
    assert ask(cache, cache.request("small"), lambda: "small") == "small"
    assert ask(cache, cache.request("large"), lambda: "x" * 10_000) == "x" * 10_000
    assert ask(cache, cache.request("small"), lambda: "lost") == "small"
    assert cache.stats().tiers["memory"]["too_large"] == 1


def test_cancelled_load_keeps_nothing(open_cache):
    """A caller that is cancelled while it loads leaves no flight and no entry behind; its load is cancelled too."""
    cache = open_cache()
    ended = []

    async def main():
        entered = asyncio.Event()

        async def load():
            entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(True)

        task = asyncio.create_task(cache.aget_or_load(cache.request("a"), load))
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await cache.aget_or_load(cache.request("a"), lambda: "loaded")

    assert asyncio.run(main()) == "loaded"
    assert ended == [True]


def test_load_that_times_out_raises_its_callers_own_timeout(open_cache):
    """A caller's own deadline works as it does without a cache."""
    cache = open_cache()

    async def main():
        async def load():
            await asyncio.Event().wait()

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await cache.aget_or_load(cache.request("a"), load)

    asyncio.run(main())


@pytest.mark.parametrize("leaver", ["leader", "follower"])
def test_callers_that_are_cancelled_leave_no_noise(open_cache, caplog, leaver):
    """Futures that nobody waits for any more are reported by nobody, also when their loop is gone."""
    import gc

    cache = open_cache()
    held = Origin(hold=True)

    async def main():
        from instruments import watch_flights

        flights = watch_flights(cache)
        first = asyncio.create_task(cache.aget_or_load(cache.request("a"), lambda: asyncio.to_thread(held)))
        await asyncio.to_thread(held.entered.wait, GUARD)
        second = asyncio.create_task(cache.aget_or_load(cache.request("a"), lambda: "second's"))
        await asyncio.to_thread(flights.wait_for, 2)
        (first if leaver == "leader" else second).cancel()
        held.go.set()
        return await asyncio.gather(first, second, return_exceptions=True)

    answers = asyncio.run(main())
    gc.collect()
    assert [isinstance(answer, asyncio.CancelledError) for answer in answers].count(True) == 1
    assert caplog.records == []


# Observers, policies, predicates


def test_observer_that_raises_breaks_nothing_and_is_logged_once(open_cache, caplog, ask):
    """An observer is a guest: its error is its own, and the others are told all the same."""
    heard = []

    def broken(event):
        raise RuntimeError("observer's own")

    cache = open_cache(observers=[broken, heard.append])
    with caplog.at_level(logging.ERROR, "semcache"):
        for _ in range(3):
            assert ask(cache, cache.request("a"), lambda: "loaded") == "loaded"
        with pytest.raises(ValueError, match="origin's own"):
            ask(cache, cache.request("b"), Origin(ValueError("origin's own")))
    assert len(heard) == 4
    assert len(caplog.records) == 1


def test_predicate_that_raises_keeps_nothing_and_is_named(open_cache, ask):
    """A `when` that raises has not said that the answer is worth keeping."""
    cache = open_cache()
    with semcache.trace() as seen:
        for _ in range(2):
            assert ask(cache, cache.request("a"), lambda: "loaded", when=lambda answer: 1 / 0) == "loaded"
    assert [event.faults[0][:2] for event in seen.lookups] == [("when", "ZeroDivisionError")] * 2


@pytest.mark.semantic
@pytest.mark.parametrize("word", [ZeroDivisionError(), None, "reuse", True])
def test_policy_that_raises_or_says_nonsense_serves_nothing(open_near, ask, word):
    """Where the policy fails, nothing near is served, and the event names the fault."""

    class Policy:
        def decide(self, text, neighbour):
            if isinstance(word, Exception):
                raise word
            return word

    cache = open_near(policy=Policy())
    ask(cache, cache.request(text="stored"), lambda: "stored")
    cache.flush()
    with semcache.trace() as seen:
        assert ask(cache, cache.request(text="asked"), lambda: "loaded") == "loaded"
    (event,) = seen.lookups
    assert [fault[0] for fault in event.faults] == ["semantic"]


@pytest.mark.semantic
def test_policy_without_a_tenant_says_so_once(open_near):
    """A policy that could serve but finds no tenant: the reason in event and explain, and one warning."""
    cache = open_near(tenant=None)
    cache.get_or_load(cache.request(text="stored"), lambda: "stored")
    cache.flush()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(3):
            request = cache.request(text=f"asked {number}")
            assert cache.get_or_load(request, lambda: "loaded") == "loaded"
            assert semcache.last().reason == "no tenant"
            assert semcache.last().decision.similarity == 1.0
    assert [warning.category for warning in caught] == [semcache.SemcacheWarning]
    assert "semcache.SHARED" in str(caught[0].message)
    assert ("semantic", "no tenant") in cache.explain(cache.request(text="another")).said
    assert cache.stats().not_served == {"no tenant": 3}


# Embedders


class Faulty(Compass):
    """An embedder that does something else when it is told to."""

    fault = None

    def __call__(self, texts):
        vectors = super().__call__(texts)
        return vectors if self.fault is None else self.fault(vectors)


def raising(error):
    def fault(vectors):
        raise error

    return fault


FAULTS = {
    "raises": raising(RuntimeError("no device")),
    "raises timeout": raising(TimeoutError("behind a URL")),
    "exits": raising(SystemExit()),
    "gives NaN": lambda vectors: vectors * float("nan"),
    "gives infinity": lambda vectors: vectors * float("inf"),
    "gives zeros": lambda vectors: vectors * 0,
    "gives too few": lambda vectors: vectors[:-1],
    "gives too many": lambda vectors: vectors.repeat(2, axis=0),
    "gives another dimension": lambda vectors: vectors.repeat(2, axis=1),
    "gives a row": lambda vectors: vectors[0],
    "gives integers": lambda vectors: vectors.astype(int),
    "gives text": lambda vectors: "vectors",
    "gives nothing": lambda vectors: None,
}


@pytest.mark.semantic
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_embedder_that_fails_costs_near_matches_alone(open_near, tmp_path, ask, fault):
    """Whatever an embedder does, the origin answers, the fault is named, and what was indexed stands."""
    embedder, heard = Faulty({"stored": 0, "failed": 90}), []
    cache = open_near(embedder=embedder, disk=tmp_path / "cache.db", observers=[heard.append])
    ask(cache, cache.request(text="stored"), lambda: "stored")
    assert cache.flush()
    embedder.fault = fault
    with semcache.trace() as seen:
        assert ask(cache, cache.request(text="failed"), lambda: "failed's") == "failed's"
    cache.flush()
    assert [fault[0] for fault in seen.lookups[0].faults] == ["semantic"]
    assert any(event.kind == "fault" and event.tier == "semantic" for event in heard)
    embedder.fault = None
    assert ask(cache, cache.request(text="asked"), lambda: "loaded") == "stored"
    assert ask(cache, cache.request(text="failed"), lambda: "lost") == "failed's"
    assert cache.stats().tiers["semantic"]["rows"] == 1


@pytest.mark.semantic
def test_embedder_that_fails_opens_the_breaker_and_recovers(open_near, clock):
    """After some failures the semantic tier is left alone; by the clock it is tried again, and found well."""
    embedder = Faulty()
    cache = open_near(embedder=embedder, ttl=semcache.TTL(memory="1d", semantic="1d", jitter=0))
    cache.get_or_load(cache.request(text="stored"), lambda: "stored")
    cache.flush()
    embedder.fault = raising(RuntimeError("no device"))
    for number in range(10):
        cache.get_or_load(cache.request(text=f"failed {number}"), lambda: "loaded")
    faults = cache.stats().faults
    assert (faults["semantic: RuntimeError"], faults["semantic: open"]) == (5, 5)
    cache.flush()
    embedder.fault = None
    assert cache.get_or_load(cache.request(text="too early"), lambda: "loaded") == "loaded"
    clock.advance(10)
    assert cache.get_or_load(cache.request(text="asked"), lambda: "loaded") == "stored"
    assert cache.get_or_load(cache.request(text="asked again"), lambda: "loaded") == "stored"


@pytest.mark.semantic
def test_embedder_that_cannot_load_is_a_miss_and_tried_again(open_cache, clock, ask):
    """A model that cannot be loaded makes misses; `warm` raises its error; later it is tried again."""

    class Absent(Compass):
        error = OSError("no such model")

        def load(self):
            if self.error:
                raise self.error

    embedder = Absent()
    cache = open_cache(embedder=embedder, policy=semcache.Threshold(0.9, guards=None), tenant=semcache.SHARED)
    with pytest.raises(OSError, match="no such model"):
        cache.warm()
    with semcache.trace() as seen:
        assert ask(cache, cache.request(text="stored"), lambda: "stored") == "stored"
    assert seen.lookups[0].reason == "the embedder is failed"
    assert cache.stats().faults == {"semantic: load": 1}
    embedder.error = None
    clock.advance(100)
    cache.warm()
    with semcache.context(mode="refresh"):
        ask(cache, cache.request(text="stored"), lambda: "stored")
    cache.flush()
    assert ask(cache, cache.request(text="asked"), lambda: "loaded") == "stored"


@pytest.mark.semantic
def test_model_that_is_not_there_is_a_miss_with_the_mend():
    """A real sentence-transformers name that nobody has, without a network: answers, a named fault, the mend."""
    lines = run_script(
        """
        import semcache
        cache = semcache.Cache(embedder="nobody/no-such-model", policy=None, tenant=semcache.SHARED)
        for text in ("one", "two"):
            assert cache.get_or_load(cache.request(text=text), lambda: text) == text
        try:
            cache.warm()
        except semcache.ConfigurationError as error:
            print("no-such-model" in str(error))
        assert cache.get_or_load(cache.request(text="one"), lambda: "lost") == "one"
        print(cache.stats().faults)
        """,
        HF_HUB_OFFLINE="1",
    )
    assert lines == ["True", "{'semantic: load': 1}"]


@pytest.mark.semantic
def test_slow_embedder_costs_its_budget_and_what_it_brings_late_is_kept(open_near):
    """The lookup goes on after its deadline; the vector that comes late serves the next."""
    embedder = Compass({"stored": 90})
    cache = open_near(embedder=embedder, timeouts=semcache.Timeouts(semantic="50ms"))
    cache.get_or_load(cache.request(text="stored"), lambda: "stored")
    cache.flush()
    embedder.gate, order = threading.Event(), []
    timer = threading.Timer(GUARD / 2, embedder.gate.set)  # in case it does not go on
    timer.start()
    assert cache.get_or_load(cache.request(text="slow"), lambda: order.append("loaded") or "slow's") == "slow's"
    order.append("let go" if not embedder.gate.is_set() else "had to be let go")
    embedder.gate.set()
    timer.cancel()
    assert order == ["loaded", "let go"]
    cache.flush()
    assert cache.get_or_load(cache.request(text="like slow"), lambda: "loaded") == "slow's"


@pytest.mark.semantic
@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\0",
        "x" * 100_000,
        "\ud800",
        "a\ud800b",
        "\U0010ffff",
        "\N{COMBINING ACUTE ACCENT}" * 1000,
        "🏦" * 5000,
    ],
    ids=["empty", "blank", "null", "long", "surrogate", "surrogate inside", "unassigned", "combining", "emoji"],
)
def test_odd_text_is_answered_and_harms_nothing(open_near, tmp_path, ask, text):
    """Empty, enormous or broken text: its own exact answer, and no harm to the others'."""
    cache = open_near({"stored": 90}, disk=tmp_path / "cache.db")
    ask(cache, cache.request(text="stored"), lambda: "stored")
    for _ in range(2):
        assert ask(cache, cache.request(text=text), lambda: "odd") == "odd"
        cache.flush()
    assert cache.stats().loads == 2
    again = open_near({"stored": 90, "asked": 90}, disk=tmp_path / "cache.db")
    assert ask(again, again.request(text=text), lambda: "lost") == "odd"
    assert ask(again, again.request(text="asked"), lambda: "loaded") == "stored"


# A closed cache


def test_closed_cache_calls_its_origins(open_cache, tmp_path, ask):
    """Later calls go to their origins, each of them, and close again does nothing."""
    cache = open_cache(disk=tmp_path / "cache.db")

    @semcache.cached(cache, version="1")
    def function(x):
        return object()

    ask(cache, cache.request("a"), lambda: "kept")
    cache.close()
    cache.close()
    assert ask(cache, cache.request("a"), lambda: "loaded") == "loaded"
    assert function(1) is not function(1)
    with semcache.context(mode="live"):
        assert ask(cache, cache.request("a"), lambda: "loaded too") == "loaded too"
    assert cache.flush()


# Configuration


@pytest.mark.parametrize(
    ("settings", "mend"),
    [
        ({"disk": "cache.db"}, 'namespace="shop"'),
        ({"namespace": None}, "namespace is text"),
        ({"namespace": "a", "disk": 5}, "path of a file"),
        ({"namespace": "a", "disk": ""}, "path of a file"),
        ({"namespace": "a", "disk": "/"}, "give the path of a file in it"),
        ({"namespace": "a", "disk": "x.db", "disk_size": "1kB"}, "at least"),
        ({"mode": "on"}, "live, shadow, exact, refresh, off"),
        ({"memory": -1}, '"64MB"'),
        ({"memory": "64 apples"}, '"64MB"'),
        ({"memory": 1.5}, '"64MB"'),
        ({"memory": True}, '"64MB"'),
        ({"semantic": "much"}, '"64MB"'),
        ({"disk_size": None}, '"64MB"'),
        ({"gpu_memory": "much"}, '"64MB"'),
        ({"max_value": "-1MB"}, '"64MB"'),
        ({"ttl": "5m"}, "semcache.TTL"),
        ({"timeouts": 3}, "semcache.Timeouts"),
        ({"policy": 0.9}, "semcache.Threshold"),
        ({"policy": semcache.Threshold}, "semcache.Threshold"),
        ({"tenant": ""}, "has a name"),
        ({"tenant": ["a"]}, "semcache.SHARED"),
        ({"compress": "gzip"}, '"zstd"'),
        ({"observers": ["print"]}, "callables"),
    ],
)  # fmt: skip
def test_wrong_setting_is_refused_with_the_mend(settings, mend):
    """What is wrong is an error at construction, and its message says what is right."""
    with pytest.raises(semcache.ConfigurationError) as refused:
        semcache.Cache(**settings)
    assert mend in str(refused.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: semcache.TTL(memory=-1),
        lambda: semcache.TTL(disk=0),
        lambda: semcache.TTL(semantic="soon"),
        lambda: semcache.TTL(disk=float("inf")),
        lambda: semcache.TTL(disk=float("nan")),
        lambda: semcache.TTL(memory=True),
        lambda: semcache.TTL(jitter=1),
        lambda: semcache.TTL(jitter=-0.1),
        lambda: semcache.Timeouts(disk=0),
        lambda: semcache.Timeouts(flight="-1s"),
        lambda: semcache.Threshold(1.01),
        lambda: semcache.Threshold(-1.01),
        lambda: semcache.Threshold(float("nan")),
        lambda: semcache.Threshold("0.9"),
        lambda: semcache.Threshold(True),
        lambda: semcache.cached(ttl=-1),
        lambda: semcache.cached(text=5),
        lambda: semcache.cached(text="answer")(lambda question: question),
        lambda: semcache.cached(tenant="owner")(lambda question: question),
        lambda: semcache.cached(ignore="trace")(lambda question: question),
        lambda: semcache.cached(ignore="question", text="question")(lambda question: question),
        lambda: semcache.cached(when="good")(lambda question: question),
        lambda: semcache.cached(key="question")(lambda question: question),
        lambda: semcache.cached(version=1)(lambda question: question),
        lambda: semcache.cached(5),
        lambda: semcache.cached(int),
        lambda: semcache.context(mode="on").__enter__(),
        lambda: semcache.context(ttl=-1).__enter__(),
        lambda: semcache.context(tenant="").__enter__(),
        lambda: semcache.register(int),
    ],
)
def test_wrong_argument_is_refused_where_it_is_written(make):
    """Lives, cuts, names: what can never work is said at once."""
    with pytest.raises(semcache.ConfigurationError):
        make()


@pytest.mark.semantic
@pytest.mark.parametrize(
    ("settings", "mend"),
    [
        ({"embedder": 5}, "list[str] to float32[n, d]"),
        ({"embedder": lambda texts: texts}, "identity"),
        ({"embedder": Compass(), "memory": 0}, "memory= or disk="),
        ({"embedder": "http://"}, "host"),
        ({"embedder": ""}, "embedder"),
        ({"embedder": "all-MiniLM-L6-v2", "device": "abacus"}, "device"),
    ],
)
def test_wrong_embedder_is_refused_with_the_mend(settings, mend):
    """The same for embedders, whose models are not even loaded yet."""
    with pytest.raises(semcache.ConfigurationError) as refused:
        semcache.Cache(**settings)
    assert mend in str(refused.value)


def test_refused_settings_leave_no_file_open(tmp_path):
    """A cache that could not be made has opened nothing."""
    with pytest.raises(semcache.ConfigurationError):
        semcache.Cache("tests", disk=tmp_path / "cache.db", compress="gzip")
    with pytest.raises(semcache.ConfigurationError):
        semcache.Cache("tests", disk=tmp_path / "cache.db", embedder=5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "setting", "extra"),
    [
        ("faiss", "embedder='all-MiniLM-L6-v2'", "semantic"),
        ("numpy", "embedder='all-MiniLM-L6-v2'", "semantic"),
        ("torch", "embedder='all-MiniLM-L6-v2'", "semantic"),
        ("zstandard", "compress='zstd'", "compress"),
    ],
)
def test_missing_extra_is_named_with_its_command(module, setting, extra):
    """What is not installed is said at construction, with the command that installs it; all else works without."""
    (line,) = run_script(
        f"""
        import sys
        sys.modules[{module!r}] = None
        import semcache
        assert semcache.Cache().get_or_load(semcache.Cache().request("a"), lambda: "b") == "b"
        try:
            semcache.Cache({setting})
        except semcache.MissingExtraError as error:
            print(error.extra, "pip install 'tiered-semcache[" + error.extra + "]'" in str(error))
        """
    )
    assert line == f"{extra} True"
