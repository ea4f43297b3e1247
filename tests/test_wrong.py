"""Reports of wrong answers: what is never served again, what goes, who learns, and what is said where nothing is."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from instruments import GUARD, Compass, Crew, until, watch_flights

import semcache
from semcache import wrong
from semcache.blocks import KEEP_SECONDS, Block, words_of
from semcache.errors import ConfigurationError, TierError
from semcache.policy.label import Source

pytestmark = pytest.mark.semantic

# "parcel" is stored; the others are asked. Of what is as near to "letter" as to "parcel", nothing is served.
DEGREES = {"parcel": 0, "letter": 20, "note": 12, "packet": 5, "box": -20, "invoice": 90, "bill": 95}
STORES = ["memory", "disk", "redis"]


@pytest.fixture(params=STORES)
def store(request, tmp_path):
    """Settings of one kind of store: memory alone is one too."""
    if request.param == "disk":
        return {"disk": tmp_path / "cache.db"}
    return {"redis": request.getfixturevalue("redis_url")} if request.param == "redis" else {}


@pytest.fixture
def open_store(open_near, store):
    """Open caches with an index over a store, as processes have them."""
    return lambda **more: open_near(DEGREES, **store, **more)


@pytest.fixture(params=["sync", "async"])
def report(request):
    """Report in one colour, then the other."""
    if request.param == "sync":
        return lambda cache, **what: cache.report_wrong(**what)
    return lambda cache, **what: asyncio.run(cache.areport_wrong(**what))


def put(cache, text="parcel", **more):
    cache.get_or_load(cache.request(text=text, **more), lambda: f"about {text}")
    assert cache.flush(GUARD)


def asked(cache, text, **more):
    """Ask, and keep nothing that is loaded: the answer, "new" where there is none."""
    return cache.get_or_load(cache.request(text=text, **more), lambda: "new", when=lambda _: False)


def why():
    """Say why the nearest was not served at the last lookup."""
    return semcache.last().decision.reason


def test_near_match_that_was_wrong_is_not_served_again(open_store, report):
    """Law 8: the pair is blocked; the entry stays for its own text, and the reason is told."""
    cache = open_store()
    put(cache)
    assert asked(cache, "letter") == "about parcel"
    said = report(cache, hit=semcache.last())
    pair = (cache.request(text="letter").key, cache.request(text="parcel").key)
    assert (bool(said), said.blocked, said.closed, said.entries, said.is_durable) == (True, (pair,), (), (), True)
    assert asked(cache, "letter") == "new"
    assert why() == "reported: wrong for this text"
    assert asked(cache, " LETTER?") == "new"
    assert asked(cache, "parcel") == "about parcel"
    put(cache, "letter")
    assert cache.stats().not_served["reported: wrong for this text"] == 1


def test_text_as_near_to_the_reported_one_is_not_served_either(open_store):
    """What lies nearer to the entry than half way is served on, what lies farther off is not."""
    cache = open_store()
    put(cache)
    assert asked(cache, "letter") == "about parcel"
    cache.report_wrong(hit=semcache.last())
    assert asked(cache, "note") == "new"
    assert why() == "reported: wrong for a text that this one is as near to"
    assert asked(cache, "box") == "new"
    assert asked(cache, "packet") == "about parcel"


def test_explanation_names_the_report_that_skips_the_nearest(open_store):
    """Where another is served in its place, and where none is, the line of the nearest says why it was not."""
    cache = open_store(policy=semcache.Threshold(0.7, guards=None))
    put(cache)
    assert asked(cache, "note") == "about parcel"
    cache.report_wrong(hit=semcache.last())
    skipped, box = cache.request(text="parcel").key, cache.request(text="box")
    told = cache.explain(cache.request(text="note"))
    assert (told.tier, told.reported) == (None, {skipped: "reported: wrong for this text"})
    cache.put(box, value="about box")
    assert cache.flush(GUARD)
    told = cache.explain(cache.request(text="note"))
    assert (told.tier, told.neighbours[0].text, told.reported) == (
        "semantic", "parcel", {skipped: "reported: wrong for this text"},
    )  # fmt: skip
    assert "'parcel'  reported: wrong for this text" in str(told)


def test_entry_that_was_wrong_for_two_texts_answers_its_own_alone(open_store):
    """The second text closes it for everything near."""
    cache = open_store()
    put(cache)
    for text, closed in (("letter", ()), ("packet", (cache.request(text="parcel").key,))):
        assert asked(cache, text) == "about parcel"
        assert cache.report_wrong(hit=semcache.last()).closed == closed
    assert asked(cache, "parcel packet") == "new"  # which points where "parcel" does
    assert why().startswith("reported: wrong for several texts")
    assert asked(cache, "parcel") == "about parcel"


def test_entry_goes_with_its_pair_where_that_is_asked_for(open_store):
    """`drop` invalidates it as well; what is loaded anew for its key is not served to the reported text either."""
    cache = open_store()
    put(cache)
    assert asked(cache, "letter") == "about parcel"
    said = cache.report_wrong(hit=semcache.last(), drop=True)
    assert (len(said.blocked), said.entries, said.dropped) == (1, (cache.request(text="parcel").key,), 1)
    assert asked(cache, "parcel") == "new"
    put(cache)
    assert asked(cache, "letter") == "new"


@pytest.mark.parametrize("is_found", [True, False], ids=["hit", "miss"])
def test_exact_answer_that_was_wrong_goes_everywhere(open_store, report, is_found):
    """A hit, or a miss that stored, is invalidated: nobody is given it again."""
    cache = open_store()
    put(cache)
    if is_found:
        assert asked(cache, "parcel") == "about parcel"
    said = report(cache, hit=semcache.last())
    assert (said.blocked, said.entries, said.dropped) == ((), (cache.request(text="parcel").key,), 1)
    assert asked(cache, "parcel") == asked(cache, "letter") == "new"


@pytest.mark.parametrize("what", ["key", "hex", "text"])
def test_report_finds_the_near_match_by_what_was_asked(open_store, report, what):
    """Law 8: the ledger knows what was given to a key, and to a text, however it is spelt."""
    cache = open_store()
    put(cache)
    assert asked(cache, "letter") == "about parcel"
    key = semcache.last().key
    said = report(cache, **{"key": {"key": key}, "hex": {"key": key.hex()}, "text": {"text": "Letter."}}[what])
    assert (said.blocked, said.entries) == (((key, cache.request(text="parcel").key),), ())
    assert asked(cache, "letter") == "new"


@pytest.mark.parametrize("what", ["key", "text"])
def test_report_finds_the_entry_by_what_was_asked(open_store, what):
    """Where an answer of its own stands, that one was given."""
    cache = open_store()
    put(cache)
    asked_key = cache.request(text="parcel").key
    said = cache.report_wrong(**({"key": asked_key} if what == "key" else {"text": "parcel"}))
    assert (said.blocked, said.entries, said.dropped) == ((), (asked_key,), 1)
    assert asked(cache, "parcel") == "new"


@pytest.mark.parametrize("what", [{"key": b"\0" * 20}, {"text": "invoice"}, {"response_id": "chatcmpl-none"}])
def test_what_is_not_known_is_said_and_nothing_is_done(open_store, what):
    """The result is false, and says why."""
    cache = open_store()
    put(cache)
    said = cache.report_wrong(**what)
    assert not said
    assert said.reason
    assert "nothing was done" in str(said)
    assert asked(cache, "parcel") == asked(cache, "letter") == "about parcel"


def test_call_that_went_by_the_cache_has_nothing_to_report(open_store):
    """Of a bypass no answer is kept."""
    cache = open_store()
    with semcache.context(mode="off"):
        asked(cache, "parcel")
    said = cache.report_wrong(hit=semcache.last())
    assert (bool(said), said.reason) == (False, "it went by the cache, or failed: no answer of it is kept")


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ({}, "takes one of hit=, key=, response_id=, text=; got 0"),
        ({"key": b"k", "text": "t"}, "got 2"),
        ({"key": "xyz"}, "a key is bytes or their 40 hex digits"),
        ({"key": b"k", "tenant": "acme"}, "tenant= says whose text= it was"),
        ({"hit": "letter"}, "hit= is the event of a lookup"),
        ({"hit": semcache.Event("fault")}, "hit= is the event of a lookup"),
        ({"hit": semcache.Event("hit", namespace="other", key=b"k")}, "of namespace 'other'"),
        ({"text": ""}, "text= is text"),
        ({"response_id": ""}, "response_id= is the id"),
    ],
)
def test_argument_that_means_nothing_raises(open_near, what, told):
    """Law 10: only what can mean nothing raises, with the mend."""
    with pytest.raises(ConfigurationError, match=told):
        open_near(DEGREES).report_wrong(**what)


def test_text_without_an_index_raises(open_cache):
    """Nobody could find what was near."""
    with pytest.raises(ConfigurationError, match="give the cache an embedder="):
        open_cache().report_wrong(text="parcel")


def test_text_of_a_tenant_means_that_tenants_alone(open_near, store):
    """Of two tenants who asked the same, one's pair and one's entry are meant."""
    cache = open_near(DEGREES, **store, tenant=None)
    for tenant in ("acme", "zenith"):
        put(cache, tenant=tenant)
        assert asked(cache, "letter", tenant=tenant) == "about parcel"
    said = cache.report_wrong(text="letter", tenant="acme")
    assert [asked_key for asked_key, _ in said.blocked] == [cache.request(text="letter", tenant="acme").key]
    assert asked(cache, "letter", tenant="acme") == "new"
    assert asked(cache, "letter", tenant="zenith") == "about parcel"
    assert cache.report_wrong(text="parcel", tenant="zenith").dropped == 1
    assert asked(cache, "parcel", tenant="acme") == "about parcel"


# All who share the store


@pytest.mark.parametrize("store", ["disk", "redis"], indirect=True)
def test_block_reaches_the_others_and_outlives_a_restart(open_store):
    """Law 8: other processes hear of it by the log; whoever starts later knows it before it serves anything near."""
    one, other = open_store(), open_store()
    put(one)
    until(lambda: asked(other, "letter") == "about parcel")
    assert asked(one, "letter") == "about parcel"
    one.report_wrong(hit=semcache.last())
    until(lambda: len(other.blocks))
    assert asked(other, "letter") == "new"
    one.close()
    other.close()
    later = open_store(memory=0)
    assert asked(later, "letter") == "new"
    assert asked(later, "packet") == "about parcel"


@pytest.mark.parametrize("store", ["disk", "redis"], indirect=True)
def test_report_finds_what_another_process_was_given(open_store):
    """A row is in the store some seconds after it was noted, and at once where its process is asked to flush."""
    one, other = open_store(), open_store()
    put(one)
    assert asked(one, "letter") == "about parcel"
    assert one.flush(GUARD)
    assert other.report_wrong(text="letter").blocked
    until(lambda: len(one.blocks))
    assert asked(one, "letter") == "new"


def test_redis_that_lost_its_blocks_is_told_them_anew(open_near, redis_url, redis_server):
    """Who lives through a loss writes what it knows, as with marks."""
    cache = open_near(DEGREES, redis=redis_url)
    put(cache)
    assert asked(cache, "letter") == "about parcel"
    cache.report_wrong(hit=semcache.last())
    redis_server.cli("FLUSHALL")
    cache.redis._store._verify_at = 0.0  # it looks each second whether the log is whole: now
    until(cache.store.reports.blocked)
    assert cache.store.reports.blocked()[0].words == words_of("letter")


def reported(cache):
    """Report what is wrong for "letter"."""
    put(cache)
    assert asked(cache, "letter") == "about parcel"
    assert cache.report_wrong(hit=semcache.last()).is_durable


def begun_anew(path):
    """Say whether a damaged file was moved aside, and another stands in its place."""
    return path.with_name(f"{path.name}.damaged-1").exists() and path.exists()


def test_damaged_file_hands_its_blocks_on(open_near, tmp_path):
    """What was reported is read from a file that is moved aside, and holds for who starts on the new one."""
    path, faults = tmp_path / "cache.db", []
    cache = open_near(DEGREES, disk=path)
    reported(cache)
    cache.close()
    with closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'entries'").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * 100)
    cache = open_near(DEGREES, disk=path, observers=[lambda event: faults.extend(event.faults)])
    asked(cache, "parcel")
    until(lambda: any("reports of wrong answers taken over: 1" in message for _, _, message in faults))
    cache.close()
    assert begun_anew(path)
    cache = open_near(DEGREES, disk=path, memory=0)
    put(cache)
    assert asked(cache, "letter") == "new"
    assert why() == "reported: wrong for this text"
    assert asked(cache, "packet") == "about parcel"


def test_file_of_which_nothing_can_be_read_says_that_its_blocks_are_lost(open_near, tmp_path):
    """Whoever reads the log knows that what was reported is to be reported again."""
    path, faults = tmp_path / "cache.db", []
    cache = open_near(DEGREES, disk=path)
    reported(cache)
    cache.close()
    path.write_bytes(b"\xff" * 10_000)
    open_near(DEGREES, disk=path, observers=[lambda event: faults.extend(event.faults)]).close()
    assert begun_anew(path)
    assert "those that cannot be read are lost: report again what is still wrong" in " ".join(
        message for _, _, message in faults
    )


def test_file_that_was_begun_anew_is_told_what_its_processes_know(open_near, tmp_path):
    """Who lives through the loss of a file writes what was reported into the next, as into a Redis."""
    path = tmp_path / "cache.db"
    cache = open_near(DEGREES, disk=path)
    reported(cache)
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    put(cache, "bill")  # the next write begins another
    until(lambda: path.exists() and cache.store.reports.blocked())
    assert cache.store.reports.blocked()[0].words == words_of("letter")


@pytest.mark.parametrize("store", ["disk", "redis"], indirect=True)
def test_store_that_cannot_keep_a_report_is_told_by_the_result(open_store, monkeypatch):
    """Law 10: nothing raises; this process has blocked the pair all the same."""
    cache = open_store()
    put(cache)
    assert asked(cache, "letter") == "about parcel"

    def fails(_blocks):
        raise TierError("space", "the disk is full")

    monkeypatch.setattr(type(cache.store.reports), "block", lambda _self, blocks: fails(blocks))
    said = cache.report_wrong(hit=semcache.last())
    assert (said.is_durable, said.reason) == (False, "the store could not keep it, report it again: the disk is full")
    assert asked(cache, "letter") == "new"


@pytest.mark.parametrize("store", ["disk", "redis"], indirect=True)
@pytest.mark.parametrize("what", [{"key": b"k"}, {"text": "letter"}, {"response_id": "chatcmpl-1"}])
def test_report_to_a_store_that_is_closed_fails_nobody(open_store, what):
    """Law 10: the result says that nothing could be asked."""
    cache = open_store()
    cache.close()
    said = cache.report_wrong(**what)
    assert (bool(said), said.reason.startswith("the store or the index could not be asked")) == (False, True)


def test_exact_answer_in_a_store_that_is_closed_is_not_dropped_durably(open_store):
    """It is gone from this process, and the result says that it may not be elsewhere."""
    cache = open_store()
    put(cache)
    event = semcache.last()
    cache.close()
    said = cache.report_wrong(hit=event)
    assert said.is_durable is (cache.store is None)


def test_report_holds_in_its_process_where_a_memcached_stands_alone(open_near, memcached_url):
    """There is no log to tell others by: the pair is blocked here, and an exact answer goes as its key does."""
    cache = open_near(DEGREES, memcached=memcached_url)
    put(cache)
    assert asked(cache, "letter") == "about parcel"
    assert cache.report_wrong(hit=semcache.last()).blocked
    assert asked(cache, "letter") == "new"
    assert asked(cache, "parcel") == "about parcel"
    assert cache.report_wrong(hit=semcache.last()).entries
    cache.memory.clear()
    assert asked(cache, "parcel") == "new"


# Bounds


def test_of_too_many_blocks_the_oldest_go_with_their_entries(open_store, monkeypatch):
    """Past the bound a block gives way, and what it kept from being served is gone first."""
    monkeypatch.setattr(wrong, "MAX_BLOCKS", 1)
    cache = open_store()
    put(cache)
    put(cache, "invoice")
    assert asked(cache, "letter") == "about parcel"
    first = semcache.last()
    assert asked(cache, "bill") == "about invoice"
    second = semcache.last()
    cache.report_wrong(hit=first)
    cache.clock.advance(1)
    cache.report_wrong(hit=second)
    assert [block.stored for block in cache.blocks.listed()] == [second.neighbour]
    assert asked(cache, "parcel") == asked(cache, "letter") == "new"
    if cache.store is not None:
        assert [block.stored for block in cache.store.reports.blocked()] == [second.neighbour]


def test_old_block_goes_when_its_entry_is_gone(open_store):
    """A block is kept for ninety days, and as long as the entry stands."""
    cache = open_store()
    old = cache.clock.time() - KEEP_SECONDS - 1
    put(cache, "invoice")
    stands = Block(cache.request(text="invoice").key, b"words of the one", 0.9, old)
    gone = Block(b"no such entry", b"words of another", 0.9, old)
    cache.blocks.take([stands, gone])
    if cache.store is not None:
        cache.store.reports.block([stands, gone])
    put(cache)
    assert asked(cache, "letter") == "about parcel"
    said = cache.report_wrong(hit=semcache.last())
    left = [said.blocked[0][1], stands.stored]
    assert sorted(block.stored for block in cache.blocks.listed()) == sorted(left)
    if cache.store is not None:
        assert sorted(block.stored for block in cache.store.reports.blocked()) == sorted(left)


# Who learns


class Learning(semcache.Threshold):
    """A threshold that remembers what it was taught."""

    def __init__(self):
        super().__init__(0.9, guards=None)
        self.labels = []

    def learn(self, label):
        self.labels.append(label)


def test_policy_that_learns_is_told(open_near):
    """A pair that was reported is a label: wrong, by a person."""
    cache = open_near(DEGREES, policy=Learning())
    put(cache)
    assert asked(cache, "letter") == "about parcel"
    event = semcache.last()
    assert cache.report_wrong(hit=event).learned == 1
    (label,) = cache.policy.labels
    assert (label.asked, label.stored, label.text, label.neighbour) == (
        event.key, event.neighbour, "letter", "parcel"
    )  # fmt: skip
    assert (label.is_right, label.source, label.similarity) == (False, Source.REPORT, event.similarity)


def test_policy_that_fails_to_learn_fails_nobody(open_near):
    """The pair is blocked, and the fault counted."""
    policy = Learning()
    policy.learn = lambda _: 1 / 0
    cache = open_near(DEGREES, policy=policy)
    put(cache)
    asked(cache, "letter")
    said = cache.report_wrong(hit=semcache.last())
    assert (len(said.blocked), said.learned) == (1, 0)
    assert cache.stats().faults["policy: learn"] == 1


def test_observers_are_told(open_near):
    """A report is an event."""
    seen = []
    cache = open_near(DEGREES, observers=[seen.append])
    put(cache)
    asked(cache, "letter")
    cache.report_wrong(hit=semcache.last())
    (event,) = [event for event in seen if event.kind == "reported"]
    assert (event.key, event.neighbour) == (cache.request(text="letter").key, cache.request(text="parcel").key)


# Never again

ANGLES = st.integers(-25, 25)


def never_again(open_one, calls):
    """Ask, report and restart as told; no pair that was reported is ever served."""
    cache, reported = open_one(), set()
    texts = {cache.request(text=text).key: text for text in "sabcdef"}
    for text, then in [("s", "go on"), *calls]:
        cache.get_or_load(cache.request(text=text), lambda text=text: text)
        event = semcache.last()
        cache.flush()
        if event.neighbour is not None:
            assert (text, texts[event.neighbour]) not in reported
            if then == "report":
                assert cache.report_wrong(hit=event).is_durable
                reported.add((text, texts[event.neighbour]))
        if then == "restart":
            cache.close()
            cache = open_one()
    cache.close()


def calls_that(*then):
    return st.lists(st.tuples(st.sampled_from("sabcdef"), st.sampled_from(then)), max_size=30)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls_that("go on", "report"), st.lists(ANGLES, min_size=7))
def test_no_pair_that_was_reported_is_served_again(open_near, calls, angles):
    """Law 8: whatever is asked, loaded and reported in between, and whatever else is near."""
    never_again(lambda: open_near(dict(zip("sabcdef", angles, strict=False))), calls)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls_that("go on", "report", "restart"), st.lists(ANGLES, min_size=7), st.uuids())
def test_no_pair_that_was_reported_is_served_after_a_restart(open_near, tmp_path, calls, angles, name):
    """Law 8: nor by whoever opens the store next."""
    path = tmp_path / f"{name}.db"
    never_again(lambda: open_near(dict(zip("sabcdef", angles, strict=False)), disk=path), calls)


# The ledger


def test_blast_tells_who_else_was_given_an_answer(open_store):
    """Rows of the entry, by its own key or by that of a call it was given to, the latest first."""
    cache = open_store()
    put(cache)
    for text in ("letter", "packet"):
        assert asked(cache, text) == "about parcel"
        cache.clock.advance(1)
    for key in (cache.request(text="parcel").key, cache.request(text="letter").key.hex()):
        rows = asyncio.run(cache.ablast(key)) if isinstance(key, bytes) else cache.blast(key)
        assert [(row.text, row.neighbour) for row in rows] == [("packet", "parcel"), ("letter", "parcel")]
        assert rows[0].similarity == pytest.approx(0.9962, abs=2e-4)
        assert rows[0].at - rows[1].at == 1
    assert cache.blast(b"\0" * 20) == []


def test_rows_are_redacted_and_cut_short(open_near):
    """No secret stands in a row, and no long text."""
    secret = "mail me at ann.lee@example.com" + " please" * 100
    cache = open_near({secret: 3})
    put(cache)
    assert asked(cache, secret) == "about parcel"
    (row,) = cache.blast(semcache.last().key)
    assert row.text.startswith("mail me at [email:")
    assert len(row.text.encode()) <= 256
    assert row.words == words_of(secret)


@pytest.mark.parametrize("store", ["memory", "disk"], indirect=True)
def test_rows_are_kept_for_seven_days(open_store):
    """What is older is not told."""
    cache = open_store()
    put(cache)
    assert asked(cache, "letter") == "about parcel"
    key = semcache.last().key
    cache.clock.advance(7 * 86_400 - 1)
    assert len(cache.blast(key)) == 1
    cache.clock.advance(2)
    assert cache.blast(key) == []


def test_rows_tell_no_tenant_and_are_narrowed_by_one(open_near, store):
    """Law 2: tenants are digests; who names one, or asks inside its context, is told its rows alone."""
    cache = open_near(DEGREES, **store, tenant=None)
    put(cache, tenant="acme")
    assert asked(cache, "letter", tenant="acme") == "about parcel"
    key = semcache.last().key
    (row,) = cache.blast(key)
    assert row.tenant
    assert b"acme" not in b"".join(part for part in row if isinstance(part, bytes))
    assert cache.blast(key, tenant="acme") == [row]
    assert cache.blast(key, tenant="zenith") == []
    with semcache.context(tenant="zenith"):
        assert cache.blast(key) == []


@pytest.mark.parametrize("store", ["disk", "redis"], indirect=True)
def test_rows_wait_where_the_store_is_away(open_store, monkeypatch):
    """What could not be handed over is handed over later; a report that needs it says so."""
    cache = open_store()
    put(cache)
    assert asked(cache, "letter") == "about parcel"
    kept = type(cache.store.reports)
    away = lambda *_: (_ for _ in ()).throw(TierError("unreachable", "it is away"))  # noqa: E731
    with monkeypatch.context() as patched:
        patched.setattr(kept, "serve", away)
        patched.setattr(kept, "serve_now", away)
        cache.flush(GUARD)
        said = cache.report_wrong(text="letter")
        assert (bool(said), "it is away" in said.reason) == (False, True)
        with pytest.raises(TierError, match="it is away"):
            cache.blast(b"\0" * 20)
    assert cache.report_wrong(text="letter").blocked


def test_followers_of_a_near_match_have_rows_too(open_near):
    """Who was given what a leader found was given it as well."""
    embedder = Compass(DEGREES)
    cache = open_near(embedder=embedder)
    put(cache)
    flights = watch_flights(cache)
    embedder.gate = threading.Event()
    with Crew(2) as crew:
        calls = [crew.submit(asked, cache, "letter") for _ in range(2)]
        flights.wait_for(2)
        embedder.gate.set()
        assert [call.result(GUARD) for call in calls] == ["about parcel"] * 2
    assert len(cache.blast(cache.request(text="letter").key)) == 2


def test_who_reads_along_a_near_match_has_a_row_too(open_near):
    """A stream that was found nearly may have readers who did not look for it themselves."""
    embedder = Compass(DEGREES)
    cache = open_near(embedder=embedder)

    @semcache.cached(cache, text="question", version="1")
    def answer(question):
        yield f"about {question}"

    assert list(answer("parcel")) == ["about parcel"]
    assert cache.flush(GUARD)
    flights = watch_flights(cache)
    embedder.gate = threading.Event()
    with Crew(2) as crew:
        readers = [crew.submit(lambda: (list(answer("letter")), semcache.last())) for _ in range(2)]
        until(lambda: any(stream._readers == 2 for stream in answer.cache_info.__self__.bound.streams.values()))
        embedder.gate.set()
        read = [reader.result(GUARD) for reader in readers]
    assert [items for items, _ in read] == [["about parcel"]] * 2
    assert sorted(event.tier for _, event in read) == ["flight", "semantic"]
    assert len({event.neighbour for _, event in read}) == 1
    assert len(cache.blast(read[0][1].key)) == 2
    assert len(flights) == 0


def test_what_is_reported_again_teaches_nothing_again(open_store):
    """Three clicks on one thumb are one fact."""
    cache = open_store()
    put(cache)
    assert asked(cache, "letter") == "about parcel"
    cache.policy.learn = (learned := []).append
    hit = semcache.last()
    assert [cache.report_wrong(hit=hit).learned for _ in range(3)] == [1, 0, 0]
    assert len(learned) == 1
