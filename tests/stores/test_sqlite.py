"""The store's file under several processes, kills, forks and faults: nothing kept is lost or wrong, nothing stops."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
from contextlib import closing, suppress
from hashlib import shake_128
from pathlib import Path

import pytest

from semcache.errors import InvalidationError, TierError
from semcache.model import Entry, Facets, Hit, Request
from semcache.plan import run
from semcache.tier import SystemClock
from semcache.tiers.disk import DiskTier

ATTEMPTS = 20

PRELUDE = """
    import os, sys
    from hashlib import shake_128

    from semcache.errors import TierError
    from semcache.model import Entry, Facets, Hit, Request
    from semcache.plan import run
    from semcache.tier import SystemClock
    from semcache.tiers.disk import DiskTier

    def say(line):
        sys.stdout.write(f"{line}\\n")
        sys.stdout.flush()

    def open_tier(path=sys.argv[1], **changes):
        changes["on_fault"] = lambda reason, error: say(f"fault {reason}")
        changes = {"timeout": 30.0} | changes
        return DiskTier(path, namespace="shop", ttl=10**6, clock=SystemClock(), **changes)

    def request(name, **facets):
        return Request(name.encode().ljust(16, b"."), b"scope", name, Facets("shop", **facets), embedder="e")

    def right(name):
        return shake_128(name.encode()).digest(50 + 37 * len(name) * sum(name.encode()) % 9000)

    def put(tier, name, **facets):
        try:
            born = tier.position()
        except TierError:  # as where the file is not begun yet; the lookup goes on as well
            born = 1
        run(tier.put(request(name, **facets), Entry(right(name), born=born), None))

    def mark(tier, facet, value):
        return next(tier.mark([(facet, value)])).future

    def get(tier, name):
        found = run(tier.get(request(name)))
        return found.entry.value if isinstance(found, Hit) else None
"""


def right(name):
    """The one right value of a name."""
    return shake_128(name.encode()).digest(50 + 37 * len(name) * sum(name.encode()) % 9000)


def request(name, **facets):
    return Request(name.encode().ljust(16, b"."), b"scope", name, Facets("shop", **facets), embedder="e")


def put(tier, name, **facets):
    run(tier.put(request(name, **facets), Entry(right(name), born=tier.position()), None))


def mark(tier, facet, value):
    return next(tier.mark([(facet, value)])).future


def get(tier, name):
    found = run(tier.get(request(name)))
    return found.entry.value if isinstance(found, Hit) else None


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache.db"


@pytest.fixture
def faults():
    return []


@pytest.fixture
def open_tier(path, faults):
    """Open disk tiers on the same file; all are closed at the end."""
    opened = []

    def open_one(at=path, on_fault=lambda reason, error: faults.append((reason, str(error))), **changes):
        changes = {"namespace": "shop", "ttl": 10**6, "clock": SystemClock()} | changes
        opened.append(DiskTier(at, on_fault=on_fault, **changes))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


@pytest.fixture
def start():
    """Start other Pythons with the helpers of the prelude; none outlives the test."""
    started = []

    def start_one(code, *arguments):
        program = textwrap.dedent(PRELUDE) + textwrap.dedent(code)
        process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start_one
    for process in started:
        if process.poll() is None:
            process.kill()
        if not process.stdout.closed:
            process.communicate(timeout=60)


def finish(process):
    """Wait for a process that is to end well; returns its lines."""
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out.splitlines()


def ask(path, question):
    with closing(sqlite3.connect(path)) as other:
        return other.execute(question).fetchall()


def empty_wal(path):
    """Move all into the file proper; fails where a reader or writer is in mid-transaction."""
    assert ask(path, "PRAGMA wal_checkpoint(TRUNCATE)") == [(0, 0, 0)]


STRAYS = (
    "SELECT key FROM entries LEFT JOIN log USING (position, key) WHERE log.kind IS NULL",
    "SELECT key FROM log WHERE kind = 'added' AND key NOT IN (SELECT key FROM entries)",
    "SELECT position FROM log WHERE kind = 'marked' AND position NOT IN (SELECT position FROM marks)",
    "SELECT id FROM facets WHERE id NOT IN (SELECT facets FROM entries)",
    "SELECT id FROM entries WHERE facets NOT IN (SELECT id FROM facets)",
    "SELECT value FROM labels WHERE facets NOT IN (SELECT id FROM facets)",
    "SELECT id FROM facets WHERE length(labels) > 0 AND id NOT IN (SELECT facets FROM labels)",
    "SELECT value FROM meta WHERE name = 'pinned' AND value != (SELECT total(is_pinned) FROM entries)",
    "SELECT value FROM meta WHERE name = 'pinned_bytes' AND value != (SELECT total(is_pinned * size) FROM entries)",
)


def assert_sound(path):
    """Check the whole file: pages, values, and that entries, index rows, facets and marks go together."""
    assert ask(path, "PRAGMA integrity_check") == [("ok",)]
    assert [ask(path, question) for question in STRAYS] == [[]] * len(STRAYS)
    for key, value in ask(path, "SELECT key, value FROM entries"):
        assert value == right(key.rstrip(b".").decode())


def until_it_works(tier, name):
    """Put until the tier has recovered behind its callers' backs."""
    for _ in range(ATTEMPTS):
        with suppress(TierError):
            put_born_now(tier, name)
            if tier.flush(timeout=10) and get(tier, name) == right(name):
                return
        tier.flush(timeout=10)  # which also waits for the file that a failed call has asked for
    pytest.fail(f"the tier did not recover in {ATTEMPTS} attempts")


def put_born_now(tier, name):
    """Put as a lookup does where the position cannot be read."""
    try:
        born = tier.position()
    except TierError:
        born = 1
    run(tier.put(request(name), Entry(right(name), born=born), None))


# Several processes


def test_processes_that_begin_at_once_share_one_file(path, open_tier, start):
    """Processes that open a file that is not there yet begin it once, and keep what each of them puts."""
    code = """
        sys.stdin.readline()
        tier = open_tier()
        for n in range(50):
            put(tier, f"{sys.argv[2]}-{n}")
        assert tier.flush()
        tier.close()
    """
    processes = [start(code, path, who) for who in range(4)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        assert set(finish(process)) <= {"fault busy"}  # who waited for the file to be begun may say so
    tier = open_tier()
    assert all(get(tier, f"{who}-{n}") == right(f"{who}-{n}") for who in range(4) for n in range(50))
    assert_sound(path)


def test_processes_at_work_together_leave_a_sound_file(path, open_tier, start):
    """A mix of reads, writes and invalidations by several processes gives each only right values, and a whole file."""
    code = """
        import random
        choose = random.Random(int(sys.argv[2]))
        tier = open_tier(max_bytes=400_000)
        for n in range(400):
            name = f"n{choose.randrange(120)}"
            what = choose.random()
            if what < 0.5:
                assert get(tier, name) in (None, right(name))
            elif what < 0.90:
                put(tier, name, function=f"f{len(name)}")
            elif what < 0.93:
                put(tier, name, tags=(f"t{len(name)}", "all"))
            elif what < 0.95 and name < "n13":
                run(tier.put(request(name), Entry(right(name), born=tier.position(), is_pinned=True), None))
            elif what < 0.98:
                mark(tier, "key", request(name).key).result()
            else:
                mark(tier, *choose.choice([("function", "f3"), ("tag", "t3"), ("tag", "all")])).result()
        assert tier.flush()
        tier.close()
    """
    open_tier().close()
    for process in [start(code, path, who) for who in range(3)]:
        assert set(finish(process)) <= {"fault busy"}
    assert_sound(path)
    assert ask(path, "SELECT count(*) FROM entries")[0][0] > 0


def test_killed_writer_loses_nothing_that_was_flushed(path, open_tier, start):
    """After `kill -9` in mid-write the file is whole, has all that was flushed, and every value is its key's."""
    code = """
        tier = open_tier()
        for n in range(10**6):
            put(tier, f"{sys.argv[2]}-{n}", function="f")
            if n % 20 == 19:
                assert tier.flush()
                say(n)
    """
    flushed = {}
    for lines in (1, 7, 25):
        process = start(code, path, lines)
        for _ in range(lines):
            flushed[lines] = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
    tier = open_tier()
    for lines, last in flushed.items():
        for n in range(last + 1):
            assert get(tier, f"{lines}-{n}") == right(f"{lines}-{n}")
    assert_sound(path)


def test_killed_process_keeps_its_invalidations(path, open_tier, start):
    """Law 8: an invalidation is durable when it returns, though the process is killed the moment after."""
    code = """
        tier = open_tier()
        put(tier, "a", function="f")
        assert tier.flush()
        say(tier.position())
        mark(tier, "function", "f").result()
        os.kill(os.getpid(), 9)
    """
    process = start(code, path)
    born = int(process.communicate(timeout=60)[0])
    tier = open_tier()
    assert get(tier, "a") is None
    run(tier.put(request("a", function="f"), Entry(right("a"), born=born), None))
    assert tier.flush()
    assert get(tier, "a") is None


def test_reads_leave_no_transaction_open(path, open_tier):
    """A read ends when it returns: the WAL can be emptied while readers are idle, so it does not grow for ever."""
    tier = open_tier()
    put(tier, "a")
    tier.flush()
    assert (get(tier, "a"), get(tier, "b")) == (right("a"), None)
    assert list(tier.rows("e"))
    empty_wal(path)


# Forks


def test_child_reads_and_writes_on_its_own(path, open_tier, start):
    """A forked child has connections, a thread and a queue of its own, and outlives its parent's closing."""
    code = """
        tier = open_tier()
        put(tier, "before")
        assert tier.flush()
        assert get(tier, "before") == right("before")
        parent_waits, child_reads = os.pipe()
        child_waits, parent_ends = os.pipe()
        if os.fork():
            os.close(child_reads)
            put(tier, "parent")
            assert tier.flush()
            os.read(parent_waits, 1)
            tier.close()
            os._exit(0)  # which ends the child's waiting
        os.close(parent_ends)
        assert get(tier, "before") == right("before")
        put(tier, "early")
        assert tier.flush()
        os.close(child_reads)
        os.read(child_waits, 1)
        assert get(tier, "parent") == right("parent")
        put(tier, "late")
        assert get(tier, "late") == right("late")
        assert tier.flush()
        say("child is done")
        sys.stdin.readline()
        os._exit(0)  # without closing
    """
    process = start(code, path)
    assert process.stdout.readline() == "child is done\n"
    tier = open_tier()  # while the child still has the file open
    for name in ("before", "parent", "early", "late"):
        assert get(tier, name) == right(name)
    tier.close()
    assert finish(process) == []
    assert_sound(path)


def test_what_waits_at_the_fork_is_the_parents(path, open_tier, start):
    """What waited to be written when the process forked is written once, by the parent."""
    code = """
        import sqlite3
        tier = open_tier()
        holder = sqlite3.connect(sys.argv[1], isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        put(tier, "waits")
        child = os.fork()
        if not child:
            os._exit(get(tier, "waits") is not None or not tier.flush())
        assert os.waitpid(child, 0)[1] == 0
        assert get(tier, "waits") == right("waits")
        holder.execute("ROLLBACK")
        assert tier.flush()
        holder.close()
        tier.close()
    """
    assert finish(start(code, path)) == []
    assert get(open_tier(), "waits") == right("waits")


def test_child_replaces_a_damaged_file(path, open_tier, start):
    """A forked child that finds the file damaged, when its parent has gone, begins it anew as any process does."""
    code = """
        tier = open_tier()
        put(tier, "a")
        assert tier.flush()
        child_waits, parent_ends = os.pipe()
        if os.fork():
            tier.close()
            os._exit(0)
        os.close(parent_ends)
        os.read(child_waits, 1)
        with open(sys.argv[1], "r+b") as file:
            file.write(b"damage" * 1000)
        try:
            get(tier, "a")
        except TierError as error:
            say(error.reason)
        tier.flush()
        put(tier, "b")
        assert tier.flush()
        assert get(tier, "b") == right("b")
        tier.close()
    """
    assert sorted(finish(start(code, path))) == ["damaged", "fault damaged"]
    assert Path(f"{path}.damaged-1").exists()
    assert get(open_tier(), "b") == right("b")


def test_forks_among_reading_threads_do_no_harm(path, start):
    """Forking while other threads read and write leaves parent and children at work."""
    code = """
        import threading
        tier = open_tier()
        stop = threading.Event()

        def work(who):
            n = 0
            while not stop.is_set():
                n += 1
                put(tier, f"{who}-{n % 50}")
                assert get(tier, f"{who}-{n % 50}") == right(f"{who}-{n % 50}")

        threads = [threading.Thread(target=work, args=(who,)) for who in range(3)]
        for thread in threads:
            thread.start()
        for n in range(5):
            child = os.fork()
            if not child:
                put(tier, f"child-{n}")
                os._exit(not (tier.flush(30) and get(tier, f"child-{n}") == right(f"child-{n}")))
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        for thread in threads:
            thread.join()
        assert tier.flush()
        assert all(get(tier, f"child-{n}") == right(f"child-{n}") for n in range(5))
        tier.close()
    """
    assert set(finish(start(code, path))) <= {"fault busy"}  # on a slow machine one process may outrun the other
    assert_sound(path)


# Faults


def test_full_disk_keeps_what_stands(path, open_tier, start):
    """Where the file cannot grow, puts are lost and told, reads go on, and writing resumes when there is room."""
    code = """
        import resource
        tier = open_tier()
        put(tier, "first")
        assert tier.flush()
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
        lost = 0
        for n in range(300):
            put(tier, f"{n}-" + "x" * 50)
            lost += not tier.flush()
        say(f"lost {lost > 0}")
        assert tier.stats()["lost"] > 0
        assert get(tier, "first") == right("first")
        assert all(get(tier, f"{n}-" + "x" * 50) in (None, right(f"{n}-" + "x" * 50)) for n in range(300))
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        put(tier, "last")
        assert tier.flush()
        assert get(tier, "last") == right("last")
        tier.close()
    """
    lines = finish(start(code, path))
    assert "lost True" in lines
    assert {line for line in lines if line != "lost True"} <= {"fault space", "fault io"}
    tier = open_tier()
    assert [get(tier, "first"), get(tier, "last")] == [right("first"), right("last")]
    assert_sound(path)


@pytest.mark.parametrize("what", ["directory", "file"])
def test_readonly_path_is_told_and_harmless(what, start):
    """Where this user may not write, reads give right values or TierError, puts are told, and nothing changes."""
    code = """
        import semcache.stores.sqlite, urllib.parse  # while everything can be imported
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        tier = open_tier()
        reasons = set()
        for n in range(3):
            try:
                assert get(tier, "a") == right("a")
            except TierError as error:
                reasons.add(error.reason)
            try:
                run(tier.put(request("b"), Entry(right("b"), born=1), None))
                assert not tier.flush()
            except TierError as error:
                reasons.add(error.reason)
        try:
            mark(tier, "function", "f").result()
        except Exception as error:
            say(type(error).__name__)
        tier.close()
        assert reasons <= {"readonly", "unreachable"}, reasons
    """
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "cache.db")
        tier = DiskTier(path, namespace="shop", ttl=10**6, clock=SystemClock(), on_fault=lambda *_: None)
        put(tier, "a")
        tier.close()
        content = path.read_bytes()
        path.chmod(0o444)
        Path(directory).chmod(0o555 if what == "directory" else 0o777)
        lines = finish(start(code, path))
        Path(directory).chmod(0o755)
        assert path.read_bytes() == content
    assert "InvalidationError" in lines
    assert {line for line in lines if line.startswith("fault")} <= {"fault readonly", "fault unreachable"}
    assert any(line.startswith("fault") for line in lines)


def test_unreachable_path_is_a_miss_with_a_reason(open_tier, faults):
    """A path that cannot be made is no error at construction; every call says what is wrong."""
    tier = open_tier(Path("/dev/null/cache.db"))
    assert [reason for reason, _ in faults] == ["unreachable"]
    calls = (
        lambda: get(tier, "a"),
        tier.position,
        lambda: run(tier.put(request("a"), Entry(b"1"), None)),
        lambda: list(tier.rows("e")),
        lambda: tier.book("2026-11-27", {"hits": 1.0}),
        lambda: tier.booked("2026-11-27"),
        lambda: run(tier.count([("function", "f")])),
        tier.join,
        lambda: tier.follow(1),
    )
    for call in calls:
        with pytest.raises(TierError) as told:
            call()
        assert told.value.reason == "unreachable"
    with pytest.raises(InvalidationError):
        mark(tier, "function", "f").result()
    assert tier.stats()["entries"] == 0
    assert tier.flush()


def garble(path, begin, end, seed=0):
    with path.open("r+b") as file:
        file.seek(begin)
        file.write(random.Random(seed).randbytes(end - begin))


def _all_random(path):
    path.write_bytes(random.Random(1).randbytes(50_000))


def _truncate(path):
    os.truncate(path, path.stat().st_size // 2)


DAMAGES = {
    "random bytes": _all_random,
    "truncated": _truncate,
    "header": lambda path: garble(path, 0, 100),
    "schema": lambda path: garble(path, 100, 4096),
    "pages": lambda path: garble(path, 4096, path.stat().st_size),
    "some pages": lambda path: garble(path, path.stat().st_size // 2, path.stat().st_size // 2 + 20_000),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file_is_kept_aside_and_begun_anew(path, open_tier, faults, damage):
    """A damaged file is moved aside and told of; until then and after, no wrong value is read; then all works."""
    names = [f"old-{n}" for n in range(100)]
    tier = open_tier()
    for name in names:
        put(tier, name)
    tier.close()
    DAMAGES[damage](path)
    damaged = path.read_bytes()
    tier = open_tier()
    for name in names:
        with suppress(TierError):
            assert get(tier, name) in (None, right(name))
    until_it_works(tier, "new")
    for name in names:
        with suppress(TierError):
            assert get(tier, name) in (None, right(name))
    until_it_works(tier, "newer")
    tier.close()
    aside = Path(f"{path}.damaged-1")
    assert "damaged" in [reason for reason, _ in faults]
    assert aside.stat().st_size >= len(damaged) // 2
    assert str(aside) in " ".join(message for _, message in faults)
    assert_sound(path)


def test_damaged_file_is_not_taken_from_who_uses_it(path, open_tier, faults):
    """A damaged file stays where it is while another store has it open, and is replaced when that has closed."""
    user = open_tier()
    put(user, "a")
    user.flush()
    empty_wal(path)
    garble(path, 0, 4096)
    other = open_tier()
    with pytest.raises(TierError):
        get(other, "a")
    assert path.exists()
    assert not Path(f"{path}.damaged-1").exists()
    assert "damaged" in [reason for reason, _ in faults]
    user.close()
    until_it_works(other, "b")
    assert Path(f"{path}.damaged-1").exists()


def test_damaged_file_is_replaced_once(path, open_tier, faults):
    """Where the file that was begun anew is damaged too, the disk is at fault: the tier says so and leaves it."""
    _all_random(path)
    tier = open_tier()
    put(tier, "a")
    tier.flush()
    empty_wal(path)
    garble(path, 0, path.stat().st_size)
    for _ in range(ATTEMPTS):
        if any("check the disk" in message for _, message in faults):
            break
        with suppress(TierError):
            put_born_now(tier, "b")
            tier.flush()
    else:
        pytest.fail("nobody was told")
    assert not Path(f"{path}.damaged-2").exists()


def test_altered_value_is_not_served(path, open_tier):
    """A value whose bytes were altered, so that SQLite cannot tell, is a fault and is overwritten by the next put."""
    tier = open_tier()
    put(tier, "a")
    put(tier, "b")
    tier.close()
    content = path.read_bytes()
    place = content.index(right("a")) + 10
    garble(path, place, place + 1, seed=2)
    assert path.read_bytes() != content
    tier = open_tier()
    with pytest.raises(TierError) as told:
        get(tier, "a")
    assert told.value.reason == "damaged"
    assert get(tier, "b") == right("b")
    until_it_works(tier, "a")
    assert path.exists()
    assert not Path(f"{path}.damaged-1").exists()


@pytest.mark.parametrize("whose", ["another version", "another program"])
def test_file_of_others_is_left_alone(path, open_tier, faults, whose):
    """A file of another schema, or another program's, is not touched; every call says so, with the mend."""
    if whose == "another version":
        tier = open_tier()
        put(tier, "a")
        tier.close()
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("PRAGMA user_version = 99")
    else:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("CREATE TABLE theirs (x)")
    content = path.read_bytes()
    tier = open_tier()
    assert [reason for reason, _ in faults] == ["version"]
    for call in (lambda: get(tier, "a"), lambda: run(tier.put(request("a"), Entry(b"1"), None)), tier.position):
        with pytest.raises(TierError, match="give another path") as told:
            call()
        assert told.value.reason == "version"
    assert path.read_bytes() == content
    path.unlink()
    until_it_works(tier, "a")


def test_file_held_by_another_is_a_miss_until_released(path, open_tier):
    """A file that another process has locked is a fault within the deadline; what is put meanwhile is written later."""
    open_tier().close()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        tier = open_tier()
        for call in (lambda: get(tier, "a"), tier.position):
            with pytest.raises(TierError) as told:
                call()
            assert told.value.reason == "busy"
        put_born_now(tier, "a")
        assert get(tier, "a") == right("a")
    assert tier.flush()
    assert get(tier, "a") == right("a")


def test_batch_that_finds_the_file_held_is_kept(path, open_tier, monkeypatch):
    """What cannot be written because another process holds the file for long is told, and written later."""
    monkeypatch.setattr("semcache.stores.writer.PATIENCE_SECONDS", 0.0)
    told = threading.Event()
    tier = open_tier(on_fault=lambda reason, error: reason == "busy" and told.set())
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        put(tier, "a")
        assert told.wait(timeout=60)
        put(tier, "b")
        assert not tier.flush(timeout=0)
        other.execute("ROLLBACK")
    tier.flush()
    assert ask(path, "SELECT count(*) FROM entries") == [(2,)]
    assert tier.stats()["lost"] == 0


def test_file_that_was_removed_is_begun_anew(path, open_tier):
    """Who removes the files of a running store, to clear it, has a new one with the next write."""
    tier = open_tier()
    put(tier, "a")
    tier.flush()
    for each in path.parent.iterdir():
        each.unlink()
    put(tier, "b")
    assert tier.flush()
    assert (get(tier, "a"), get(tier, "b")) == (None, right("b"))
    tier.close()
    assert ask(path, "SELECT count(*) FROM entries") == [(1,)]


def test_new_file_begins_past_the_old_one(path, open_tier):
    """Law 8: births of a file that is gone are never newer than a mark in the one begun in its place."""
    tier = open_tier()
    for n in range(10):
        put(tier, f"n{n}")
    tier.flush()
    born = tier.position()
    tier.close()
    path.unlink()
    tier = open_tier()
    position, _ = mark(tier, "function", "f").result()
    assert position > born


def test_record_that_cannot_be_written_is_no_others_loss(path, open_tier, faults):
    """One record that SQLite refuses is dropped and told; those of the same transaction are kept."""
    tier = open_tier()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        put(tier, "a")
        put(tier, "bad", tenant="half a surrogate \ud800")
        put(tier, "b")
        other.execute("ROLLBACK")
    assert not tier.flush()
    assert tier.flush()
    assert [get(tier, name) for name in ("a", "bad", "b")] == [right("a"), None, right("b")]
    assert [reason for reason, _ in faults] == ["record"]
    assert tier.stats()["lost"] == 1


def test_text_that_cannot_be_encoded_costs_only_its_index_row(open_tier, faults):
    """An entry whose text is no Unicode is kept, and found by its key alone."""
    tier, asked = open_tier(), request("a")
    asked.text = "half a surrogate \ud800"
    run(tier.put(asked, Entry(b"1", born=tier.position()), None))
    assert tier.flush()
    assert run(tier.get(asked)).entry.value == b"1"
    assert (list(tier.rows("e")), faults) == ([], [])


def test_writer_outlives_who_listens(open_tier):
    """What the listener to faults raises stops nobody."""

    def refuse(reason, error):
        raise RuntimeError(reason)

    tier = open_tier(on_fault=refuse)
    put(tier, "bad", tenant="\ud800")
    assert not tier.flush()
    put(tier, "a")
    assert tier.flush()
    assert get(tier, "a") == right("a")


def test_files_are_not_executable_and_named_after_the_path(path, open_tier):
    """A store keeps its files beside the path it was given, and nowhere else."""
    tier = open_tier()
    put(tier, "a")
    tier.flush()
    names = {each.name for each in path.parent.iterdir()}
    assert names == {"cache.db", "cache.db-wal", "cache.db-shm", "cache.db-lock"}
    assert not any(each.stat().st_mode & stat.S_IXUSR for each in path.parent.iterdir())
    tier.close()
    assert {each.name for each in path.parent.iterdir()} == {"cache.db", "cache.db-lock"}
