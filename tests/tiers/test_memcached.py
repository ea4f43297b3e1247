"""The memcached tier against real memcacheds: its contract, late puts and tombstones, faults, bounds and forks."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from textwrap import dedent

import pytest
from instruments import GUARD, Crew

from semcache.errors import ConfigurationError, DecodeError, InvalidationError, MissingExtraError, TierError
from semcache.marks import Marks
from semcache.model import Entry, Facets, Hit, Lives, Miss, Request, Usage
from semcache.plan import arun, run
from semcache.stores import header
from semcache.stores.memcached import buried_at, expiry, outranks, tombstone
from semcache.stores.memcached_link import MAX_CONNECTIONS, MemcachedLink
from semcache.stores.outbox import MAX_ENTRIES
from semcache.testing import ManualClock
from semcache.testing.contract import TTL_SECONDS, TierContract, drive_async, drive_sync
from semcache.testing.contract import request as contract_request
from semcache.tiers.memcached import MemcachedTier

HOUR = 3600.0
DAY = 86400.0
SHORT = 0.05


class TestContract(TierContract):
    """With a store beside it that keeps the marks, and is followed."""

    keeps_marks = True

    @pytest.fixture(autouse=True)
    def _server(self, memcached_url):
        self.url = memcached_url

    def make(self, clock: ManualClock):
        self.faults = []
        tier = MemcachedTier(
            self.url, namespace="contract", ttl=TTL_SECONDS, clock=clock, timeout=GUARD,
            marks=Marks(clock.monotonic, HOUR), keeps_marks=self.keeps_marks,
            on_fault=lambda reason, error: self.faults.append((reason, error)),
        )  # fmt: skip
        tier.find("log")
        return tier


class TestContractAlone(TestContract):
    """Without one: it can be invalidated by key, and says so where it cannot."""

    keeps_marks = False

    def test_removed_function_misses_and_the_others_stay(self, tier, drive, clock):
        """Law 8: what cannot be kept is not promised."""
        with pytest.raises(InvalidationError, match=r"only invalidate by key, not by function.*add disk= or redis="):
            self.invalidate(tier, drive, "function", "m.f", 5)

    def test_put_born_before_the_mark_is_refused(self, tier, drive):
        """Law 8: of a key, what was invalidated while it was loading is not kept; what is loaded afterwards is."""
        asked = contract_request("a")
        self.invalidate(tier, drive, "key", asked.key, 5)
        drive(tier.put(asked, Entry(b"stale", born=4), None))
        self.settle(tier)
        assert isinstance(drive(tier.get(asked)), Miss)
        drive(tier.put(asked, Entry(b"fresh", born=5), None))
        self.settle(tier)
        assert drive(tier.get(asked)).entry.value == b"fresh"


@pytest.fixture(params=[drive_sync, drive_async], ids=["sync", "async"])
def drive(request):
    return request.param


@pytest.fixture
def faults():
    return []


@pytest.fixture
def open_tier(memcached_url, clock, faults):
    """Open tiers, on the shared server unless told otherwise, each with marks of its own; all are closed at the end."""
    opened = []

    def open_one(url=memcached_url, **changes):
        settings = {"namespace": "shop", "ttl": DAY, "clock": clock, "timeout": GUARD, "keeps_marks": False}
        settings["marks"] = Marks(clock.monotonic, HOUR)
        settings["on_fault"] = lambda reason, error: faults.append((reason, str(error)))
        opened.append(MemcachedTier(url, **(settings | changes)))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


def request(name="k", lives=None, **facets):
    asked = Request(name.encode().ljust(20, b"."), facets=Facets("shop", **facets))
    return replace(asked, lives=lives) if lives else asked


def entry(value=b"value", **fields):
    return Entry(value, **({"born": 1} | fields))


def put(tier, asked, put):
    """Put an entry, and wait until it is at the server or refused."""
    run(tier.put(asked, put, None))
    assert tier.flush(GUARD)


def get(tier, asked=None):
    found = run(tier.get(asked or request()))
    return found.entry.value if isinstance(found, Hit) else None


def name_of(asked, namespace="shop"):
    return f"semcache:{namespace}:v:{asked.key.hex()}"


def seconds_left(server, asked):
    """Return the life that the server gives an item; None where it has none."""
    answer = server.cli(f"mg {name_of(asked)} t")
    return int(answer.removeprefix("HD t")) if answer.startswith("HD") else None


def before(tier, command, act):
    """Let others act just before a tier first sends a command."""
    exchange, waiting = tier._link.exchange, [act]

    def intercepted(asked, timeout):
        if asked[0][0] == command and waiting:
            waiting.pop()()
        return exchange(asked, timeout)

    tier._link.exchange = intercepted


# What is kept


def test_entry_comes_back_with_all_it_said(open_tier, drive, clock):
    """Age, births, usage and grace come from another process as they were put."""
    put(open_tier(), request(), entry(born=7, age=3.0, load_seconds=0.5, grace=9.0, usage=Usage(1, 2, 0.25)))
    clock.advance(1.0)
    found = drive(open_tier().get(request()))
    assert isinstance(found, Hit)
    assert (found.tier, found.key, found.entry.born, found.entry.age) == ("memcached", request().key, 7, 4.0)
    assert (found.entry.load_seconds, found.entry.grace, found.entry.usage) == (0.5, 9.0, Usage(1, 2, 0.25))
    assert found.entry.facets.namespace == "shop"


@pytest.mark.parametrize(("keeps_marks", "longest"), [(True, 100.0), (False, 500.0)])
def test_own_ttl_longer_than_the_tiers_is_cut_beside_a_store(open_tier, keeps_marks, longest):
    """Law 5: an entry's own ttl sets its life in the store, which memcached is where it stands alone."""
    tier = open_tier(ttl=100.0, keeps_marks=keeps_marks)
    tier.find("log")
    put(tier, request(), entry(life=500.0, own_ttl=True))
    assert longest - 1 < run(tier.get(request())).entry.life <= longest


def test_jitter_shortens_the_life(open_tier):
    tier = open_tier(ttl=100.0, jitter=0.5, random=lambda: 0.5)
    put(tier, request(), entry())
    assert run(tier.get(request())).entry.life == pytest.approx(75.0)


def test_stale_entry_is_given_to_who_takes_it(open_tier, clock):
    """Past its life it is a hit for requests with a grace alone, and never past `max_age`."""
    tier = open_tier(ttl=100.0)
    put(tier, request(), entry(grace=50.0, limit=130.0))
    clock.advance(120.0)
    patient = request(lives=Lives(stale_if_error=50.0))
    assert get(tier) is None
    assert run(tier.get(patient)).entry.life == pytest.approx(-20.0)
    clock.advance(11.0)
    assert get(tier, patient) is None


def test_entry_from_the_future_is_a_miss_and_overwritten(open_tier, clock):
    """A clock that went back costs hits; what is loaded then is kept."""
    tier = open_tier()
    put(tier, request(), entry(b"future", born=9))
    clock.set_time(clock.time() - 100.0)
    assert get(tier) is None
    put(tier, request(), entry(b"now", born=2))
    assert get(tier) == b"now"


def test_pending_entry_is_readable_at_once(open_tier, drive, memcached_server):
    """A process reads its own writes while the server has not answered."""
    tier, gate = open_tier(), threading.Event()
    before(tier, "add", lambda: gate.wait(GUARD))
    drive(tier.put(request(), entry(b"mine"), None))
    assert drive(tier.get(request())).entry.value == b"mine"
    assert memcached_server.cli(f"mg {name_of(request())} t") == "EN"
    assert tier.stats()["pending"] == 1
    gate.set()
    assert tier.flush(GUARD)
    assert tier.stats() == {"pending": 0, "pending_bytes": 0, "written": 1, "refused": 0, "lost": 0}


def test_server_is_told_how_long_an_entry_may_be_of_use(open_tier, memcached_server):
    """The server's expiry is the end of life and grace, some time later; beyond 30 days it is a date."""
    tier = open_tier(ttl=90 * DAY)
    for life in (100.0, 29 * DAY, 30 * DAY, 40 * DAY):
        put(tier, request(str(life)), entry(life=life, grace=40.0))
        assert seconds_left(memcached_server, request(str(life))) == pytest.approx(life + 100.0, abs=3)


def test_expiry_is_never_for_ever():
    """Zero means for ever to a memcached, and a negative number at once."""
    assert [expiry(seconds) for seconds in (0.001, 1.0, 1.5, 30 * DAY)] == [1, 1, 2, 30 * DAY]
    assert expiry(float("inf")) == 2**31 - 1


def test_sliding_entry_lives_on_with_its_hits(open_tier, memcached_server):
    """A hit has the server keep it for its life anew, and not each hit is a write."""
    tier = open_tier(ttl=1000.0)
    put(tier, request(), entry(life=500.0, own_ttl=True, slide=500.0, limit=700.0))
    assert memcached_server.cli(f"touch {name_of(request())} 50") == "TOUCHED"
    hit = run(tier.get(request()))
    assert hit.entry.slide == 500.0
    assert tier.flush(GUARD)
    assert seconds_left(memcached_server, request()) == pytest.approx(500, abs=3)
    assert memcached_server.cli(f"touch {name_of(request())} 50") == "TOUCHED"
    assert get(tier) == b"value"
    assert tier.flush(GUARD)
    assert seconds_left(memcached_server, request()) == pytest.approx(50, abs=3)


def test_sliding_life_is_bounded_by_ttl_and_max_age(open_tier, clock, memcached_server):
    tier = open_tier(ttl=100.0)
    put(tier, request("long"), entry(slide=500.0))
    assert run(tier.get(request("long"))).entry.life == pytest.approx(100.0)
    put(tier, request(), entry(slide=500.0, limit=170.0))
    assert seconds_left(memcached_server, request()) == pytest.approx(100, abs=3)
    clock.advance(120.0)
    assert run(tier.get(request())).entry.life == pytest.approx(50.0)
    assert tier.flush(GUARD)
    assert seconds_left(memcached_server, request()) == pytest.approx(50, abs=3)
    clock.advance(60.0)
    assert get(tier) is None


def test_pinned_entry_is_the_stores(open_tier):
    """With a store beside it a pinned entry is passed over; alone, it is refused with the mend."""
    beside = open_tier(keeps_marks=True)
    beside.find("log")
    put(beside, request(), entry(is_pinned=True))
    assert get(beside) is None
    with pytest.raises(TierError, match="add disk= or redis=") as raised:
        run(open_tier().put(request(), entry(is_pinned=True), None))
    assert raised.value.reason == "unpinned"


# Invalidation


def test_late_put_of_another_process_is_refused(open_tier, drive):
    """Law 8: what any process began to load before the key was invalidated is not kept; what came after is."""
    one, other = open_tier(), open_tier()
    put(one, request(), entry(b"old"))
    assert drive(one.remove("key", request().key, 5)) == 1
    put(other, request(), entry(b"late", born=4))
    assert (get(one), get(other), other.stats()["refused"]) == (None, None, 1)
    put(other, request(), entry(b"new", born=5))
    assert (get(one), get(other)) == (b"new", b"new")


def test_tombstone_stands_as_long_as_a_load_may_take(open_tier, memcached_server):
    run(open_tier().remove("key", request().key, 5))
    assert seconds_left(memcached_server, request()) == pytest.approx(HOUR, abs=3)


def test_tombstone_is_a_plain_miss(open_tier, drive):
    """It is ours: no fault, and nothing to count."""
    run(open_tier().remove("key", request().key, 5))
    found = drive(open_tier().get(request()))
    assert isinstance(found, Miss)
    assert found.reason is None


def test_tombstone_of_a_later_position_stays(open_tier):
    """Two invalidations that cross: the later one holds."""
    one, other = open_tier(), open_tier()
    run(one.remove("key", request().key, 9))
    assert run(other.remove("key", request().key, 5)) == 0
    put(other, request(), entry(born=7))
    assert get(other) is None


def test_invalidation_leaves_what_was_born_later(open_tier):
    """An entry whose load began at the mark, or after it, stays."""
    tier = open_tier()
    put(tier, request("at"), entry(b"at", born=5))
    put(tier, request("after"), entry(b"after", born=6))
    other = open_tier()
    assert [run(other.remove("key", request(name).key, 5)) for name in ("at", "after")] == [0, 0]
    assert (get(tier, request("at")), get(tier, request("after"))) == (b"at", b"after")


def test_of_two_entries_the_younger_stays(open_tier):
    """A slow process does not put back what a later load has replaced."""
    one, other = open_tier(), open_tier()
    put(one, request(), entry(b"later", born=8))
    put(other, request(), entry(b"slow", born=3))
    assert (get(other), other.stats()["refused"]) == (b"later", 1)


def test_entry_that_is_over_keeps_nobody_out(open_tier, clock):
    """What has expired is overwritten, also by an entry that was born before it."""
    tier = open_tier()
    put(tier, request(), entry(b"later", born=8, life=10.0))
    clock.advance(11.0)
    put(tier, request(), entry(b"slow", born=3))
    assert get(tier) == b"slow"


@pytest.mark.parametrize("command", ["add", "gets", "cas"])
def test_invalidation_between_look_and_write_is_not_overwritten(open_tier, command):
    """Law 8: wherever in a write the tombstone comes, it stays."""
    one, other = open_tier(), open_tier()
    put(one, request(), entry(b"old"))
    before(other, command, lambda: run(one.remove("key", request().key, 5)))
    put(other, request(), entry(b"late", born=2))
    assert (get(one), get(other), other.stats()["refused"]) == (None, None, 1)


@pytest.mark.parametrize("stands", [True, False])
def test_late_put_between_look_and_tombstone_is_replaced(open_tier, stands):
    """Law 8: wherever in an invalidation a late put comes, it goes."""
    one, other = open_tier(), open_tier()
    if stands:
        put(one, request(), entry(b"old"))
    before(one, "cas" if stands else "add", lambda: put(other, request(), entry(b"late", born=2)))
    assert run(one.remove("key", request().key, 5)) == 1
    assert (get(one), get(other)) == (None, None)


def test_slide_does_not_shorten_a_tombstone(open_tier, memcached_server):
    """A hit that another process invalidates before it slides leaves the tombstone as it is."""
    one, other = open_tier(), open_tier()
    put(one, request(), entry(slide=100.0))
    before(one, "cas", lambda: run(other.remove("key", request().key, 5)))
    assert get(one) == b"value"
    assert one.flush(GUARD)
    assert seconds_left(memcached_server, request()) == pytest.approx(HOUR, abs=3)


def test_invalidated_pending_entry_is_neither_read_nor_written(open_tier, drive):
    """Law 8: what waits to be written is dropped with its key, and what waits of others stays."""
    tier, gate, held = open_tier(), threading.Event(), threading.Event()
    before(tier, "add", lambda: (held.set(), gate.wait(GUARD)))
    for name in ("writing", "waiting", "other"):
        run(tier.put(request(name), entry(), None))
        assert held.wait(GUARD)
    for name in ("writing", "waiting"):
        assert drive(tier.remove("key", request(name).key, 5)) == 1
        assert get(tier, request(name)) is None
    gate.set()
    assert tier.flush(GUARD)
    assert [get(open_tier(), request(name)) for name in ("writing", "waiting", "other")] == [None, None, b"value"]


def test_put_after_an_invalidation_here_is_not_readable_meanwhile(open_tier):
    """Law 8: a late put of this very process is not even read from its queue."""
    tier = open_tier()
    run(tier.remove("key", request().key, 5))
    run(tier.put(request(), entry(born=4), None))
    assert get(tier) is None
    assert tier.stats()["refused"] == 1


def test_invalidation_that_is_contended_gives_up_aloud(open_tier):
    """It never says that it is durable where it is not."""
    tier, born = open_tier(), itertools.count(1)
    exchange, other = tier._link.exchange, MemcachedLink(tier._link._address)

    def contended(asked, timeout):
        if asked[0][0] in ("add", "cas"):
            other.exchange([("set", asked[0][1], b"foreign %d" % next(born), 100)], timeout)
        return exchange(asked, timeout)

    tier._link.exchange = contended
    with pytest.raises(InvalidationError, match=r"try again.*changed by others"):
        run(tier.remove("key", request().key, 5))
    other.close()


def test_puts_and_invalidations_of_many_processes_at_once(open_tier):
    """Law 8 under load: at the end no key has an entry born before its last invalidation."""
    tiers, positions, lock = [open_tier() for _ in range(6)], itertools.count(2), threading.Lock()
    latest, removed = [1], dict.fromkeys("abc", 0)

    def work(number):
        chance = random.Random(number)
        for _ in range(150):
            name = chance.choice("abc")
            born = latest[0]
            if chance.random() < 0.8:
                run(tiers[number].put(request(name), entry(b"%d" % born, born=born), None))
                continue
            with lock:
                position = latest[0] = next(positions)
            run(tiers[number].remove("key", request(name).key, position))
            with lock:
                removed[name] = max(removed[name], position)

    with Crew(len(tiers)) as crew:
        list(crew.map(work, range(len(tiers))))
    assert all(tier.flush(GUARD) for tier in tiers)
    assert all(removed.values())
    for tier, name in itertools.product(tiers, removed):
        found = run(tier.get(request(name)))
        assert isinstance(found, Miss) or found.entry.born >= removed[name]


# Marks


@pytest.mark.parametrize("about", [{"tags": ("faq",)}, {"documents": ("docs@v7",)}])
def test_tags_and_documents_are_refused_without_marks(open_tier, drive, about):
    """What could not be invalidated by them is not taken, and the error says what to do."""
    tier = open_tier()
    with pytest.raises(TierError, match="add disk= or redis=") as raised:
        drive(tier.put(request(**about), entry(), None))
    assert raised.value.reason == "unmarked"
    with pytest.raises(TierError):
        drive(tier.put(request(), entry(facets=Facets("shop", **about)), None))
    assert get(tier) is None


@pytest.mark.parametrize(
    ("facet", "value"),
    [
        ("tag", "faq"), ("document", "d"), ("function", "f"), ("version", "1"), ("model", "m"), ("tenant", "t"),
        ("namespace", "shop"),
    ],
)  # fmt: skip
def test_mark_makes_what_was_born_before_it_a_miss(open_tier, clock, drive, facet, value):
    """Law 8: with marks, a hit is asked for its own facets, whatever tags who asks has named."""
    marks = Marks(clock.monotonic, HOUR)
    tier = open_tier(keeps_marks=True, marks=marks)
    tier.find("log")
    own = Facets("", "f", "1", "t", "m", ("faq",), ("d",))
    asked = request(function="f", version="1", tenant="t", model="m")
    put(tier, asked, entry(born=4, facets=own))
    marks.mark(facet, "another", 9)
    assert drive(tier.get(asked)).entry.facets == replace(own, namespace="shop")
    marks.mark(facet, value, 5)
    assert isinstance(drive(tier.get(asked)), Miss)
    put(tier, asked, entry(b"again", born=5, facets=own))
    assert get(tier, asked) == b"again"


def test_mark_covers_an_entry_that_names_no_facets_of_its_own(open_tier, clock):
    """Law 8: what the key implies, the request knows."""
    marks = Marks(clock.monotonic, HOUR)
    tier = open_tier(keeps_marks=True, marks=marks)
    tier.find("log")
    put(tier, request(function="f"), entry(born=4))
    assert get(tier, request(function="f")) == b"value"
    marks.mark("function", "f", 5)
    assert get(tier, request(function="f")) is None


def test_mark_that_comes_before_the_write_is_honoured(open_tier, clock):
    """Law 8: what is invalidated while it waits is not written."""
    marks = Marks(clock.monotonic, HOUR)
    tier, gate, held = open_tier(keeps_marks=True, marks=marks), threading.Event(), threading.Event()
    tier.find("log")
    before(tier, "add", lambda: (held.set(), gate.wait(GUARD)))
    run(tier.put(request("first"), entry(), None))
    assert held.wait(GUARD)
    for tag in ("faq", "news", "misc"):
        run(tier.put(request(tag, tags=(tag,)), entry(), None))
    marks.mark("tag", "faq", 5)  # as the follower does, that heard of it
    assert run(tier.remove("tag", "news", 5)) == 0
    assert [get(tier, request(tag)) for tag in ("faq", "news", "misc")] == [None, None, b"value"]
    assert tier.stats()["pending"] == 3
    gate.set()
    assert tier.flush(GUARD)
    assert (tier.stats()["written"], tier.stats()["refused"]) == (2, 1)


def test_log_that_is_not_followed_makes_everything_a_miss(open_tier, clock, drive):
    """Law 8: who cannot hear of invalidations believes what is here for so long as he was told, and no longer."""
    tier, followed = open_tier(keeps_marks=True), open_tier(keeps_marks=True)
    followed.find("log")
    put(followed, request(), entry())
    put(tier, request("b"), entry())
    assert drive(tier.get(request())) == Miss("memcached: the log is not followed")
    assert get(followed, request("b")) is None  # what nobody could be told of is not even kept
    tier.find("log")
    assert get(tier) == b"value"
    tier.lose(5.0)
    clock.advance(4.0)
    tier.lose(5.0)
    assert get(tier) == b"value"
    clock.advance(1.0)
    assert get(tier) is None
    tier.find("log")
    assert get(tier) == b"value"


# Foreign hands


@pytest.mark.parametrize("foreign", [b"", b"\x00", b"\x00garbage", b"\x01", b"not ours at all" * 10])
def test_foreign_bytes_are_a_miss_and_overwritten(open_tier, drive, memcached_server, foreign):
    """Law 9: whatever stands there, it breaks nothing, and the next answer takes its place; so does a tombstone."""
    tier = open_tier()
    memcached_server.client(default_noreply=False).set(name_of(request()), foreign, expire=100)
    with pytest.raises(DecodeError):
        drive(tier.get(request()))
    put(tier, request(), entry(b"ours"))
    assert get(tier) == b"ours"
    memcached_server.client(default_noreply=False).set(name_of(request()), foreign, expire=100)
    run(tier.remove("key", request().key, 5))
    assert get(tier) is None


def test_answer_at_anothers_key_is_nobodys(open_tier, memcached_server):
    """Law 9: bytes that were moved are not an answer."""
    tier = open_tier()
    put(tier, request("a"), entry())
    client = memcached_server.client(default_noreply=False)
    client.set(name_of(request("b")), client.get(name_of(request("a"))))
    with pytest.raises(DecodeError):
        get(tier, request("b"))


def test_flush_by_others_is_a_miss(open_tier, memcached_server):
    """Who empties the server costs hits alone."""
    tier = open_tier()
    put(tier, request(), entry())
    assert memcached_server.cli("flush_all") == "OK"
    assert get(tier) is None
    put(tier, request(), entry(b"again"))
    assert get(tier) == b"again"


def test_namespaces_do_not_meet(open_tier):
    """Law 14: each has its own keys, whatever its name is made of."""
    names = ["shop", "shöp", "a b", "a:v:b", "a%20b", "x\n"]
    tiers = [open_tier(namespace=name) for name in names]
    for name, tier in zip(names, tiers, strict=True):
        put(tier, request(), entry(name.encode()))
    assert [get(tier).decode() for tier in tiers] == names


# Faults


def error_of(drive, plan):
    with pytest.raises(TierError) as raised:
        drive(plan)
    return raised.value.reason


def test_server_that_is_absent_is_an_error_at_once(open_tier, own_memcached, drive, faults):
    """Law 10: nobody listens: reads say so, writes are lost and told, and a caller never hears of it from a put."""
    server = own_memcached()
    server.kill()
    tier = open_tier(server.url)
    assert error_of(drive, tier.get(request())) == "unreachable"
    drive(tier.put(request(), entry(), None))
    assert not tier.flush(GUARD)
    assert tier.flush(GUARD)  # said once
    assert {reason for reason, _ in faults} == {"unreachable"}
    assert tier.stats() == {"pending": 0, "pending_bytes": 0, "written": 0, "refused": 0, "lost": 1}
    with pytest.raises(InvalidationError, match=r"try again.*memcached://127"):
        drive(tier.remove("key", request().key, 5))


def test_server_begun_anew_is_used_at_once(open_tier, own_memcached, drive):
    """An idle connection that the server closed is replaced by the first who finds it so, with no error."""
    server = own_memcached()
    tier = open_tier(server.url)
    put(tier, request(), entry())
    tier._link._idle.append(tier._link._open(time.monotonic() + GUARD))
    server.restart()
    assert isinstance(drive(tier.get(request())), Miss)
    assert len(tier._link._idle) == 1  # the other one is gone too
    put(tier, request(), entry(b"again"))
    assert get(tier) == b"again"
    server.kill()
    assert error_of(drive, tier.get(request())) == "unreachable"
    server.start()
    put(tier, request(), entry(b"once more"))
    assert get(tier) == b"once more"


def test_paused_server_is_late(open_tier, own_memcached, drive):
    """Law 10: within the deadline there is an error, with a connection that was open and with a new one."""
    server = own_memcached()
    tier, new = open_tier(server.url, timeout=SHORT), open_tier(server.url, timeout=SHORT)
    put(tier, request(), entry())
    server.pause()
    assert [error_of(drive, each.get(request())) for each in (tier, tier, new)] == ["late"] * 3
    run(tier.put(request("b"), entry(b"meanwhile"), None))
    assert get(tier, request("b")) == b"meanwhile"
    server.resume()
    patient = open_tier(server.url)
    assert get(patient) == b"value"


def test_tasks_do_not_block_their_loop(open_tier, own_memcached):
    """While the server is silent, the loop goes on; who is cancelled is cancelled, and nobody else."""
    server = own_memcached()
    tier = open_tier(server.url)
    put(tier, request(), entry())

    async def look():
        found = await arun(tier.get(request()))
        return found.entry.value

    async def main():
        server.pause()
        tasks = [asyncio.create_task(look()) for _ in range(100)]
        for _ in range(10):
            await asyncio.sleep(0)
        tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        server.resume()
        return await asyncio.gather(*tasks[1:])

    assert asyncio.run(main()) == [b"value"] * 99


def test_trickle_of_bytes_is_late(open_tier, drive):
    """Law 10: the deadline is for the whole reply, however many packets it comes in."""
    hung_up = threading.Event()

    def trickle(server):
        with server.accept()[0] as connection, suppress(OSError):
            connection.recv(1000)
            connection.sendall(b"VALUE %s 0 40 1\r\n" % name_of(request()).encode())
            for _ in range(40):
                hung_up.wait(SHORT / 10)  # slower than the deadline as a whole, faster than it from byte to byte
                connection.sendall(b".")
            connection.sendall(b"\r\nEND\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server, Crew(1) as crew:
        serving = crew.submit(trickle, server)
        tier = open_tier(f"memcached://127.0.0.1:{server.getsockname()[1]}", timeout=SHORT)
        assert error_of(drive, tier.get(request())) == "late"
        hung_up.set()
        serving.result(GUARD)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"VALUE what ever\r\n", b"ERROR Too many\r\n"])
def test_server_that_is_no_memcached_is_an_error(open_tier, drive, answer):
    """Law 10: nonsense is an error of ours, whatever it does to the client."""

    def serve(server):
        with server.accept()[0] as connection:
            connection.recv(1000)
            connection.sendall(answer)
            connection.recv(1000)

    with socket.create_server(("127.0.0.1", 0)) as server, Crew(1) as crew:
        serving = crew.submit(serve, server)
        tier = open_tier(f"memcached://127.0.0.1:{server.getsockname()[1]}")
        assert error_of(drive, tier.get(request())) == "reply"
        serving.result(GUARD)


def test_answer_over_the_item_size_is_lost_and_told(open_tier, faults):
    """A caller never hears of it; the fault names the mend, and what comes next is kept."""
    tier = open_tier()
    run(tier.put(request("large"), entry(bytes(2**20)), None))
    assert not tier.flush(GUARD)
    assert [(reason, "memcached -I" in text) for reason, text in faults] == [("large", True)]
    put(tier, request("small"), entry(bytes(2**20 - 1000)))
    assert (get(tier, request("large")), len(get(tier, request("small")))) == (None, 2**20 - 1000)


def test_queue_is_bounded(open_tier):
    """Law 10: where the writer is stuck, a put says that there is no more room, by number and by bytes."""
    tier, gate, held = open_tier(), threading.Event(), threading.Event()
    before(tier, "add", lambda: (held.set(), gate.wait(GUARD)))
    run(tier.put(request("first"), entry(), None))
    assert held.wait(GUARD)
    large = bytes(10 * 2**20)
    for number in range(6):
        run(tier.put(request(f"large {number}"), entry(large), None))
    assert error_of(drive_sync, tier.put(request("larger"), entry(large), None)) == "full"
    for number in range(MAX_ENTRIES - 6):
        run(tier.put(request(str(number)), entry(b"v"), None))
    assert error_of(drive_sync, tier.put(request("one more"), entry(b"v"), None)) == "full"
    run(tier.put(request("0"), entry(b"v"), None))  # in the place of another
    assert tier.stats()["pending"] == MAX_ENTRIES + 1
    assert run(tier.remove("key", request("large 0").key, 5)) == 1
    tier._writer._clear()
    gate.set()
    assert tier.flush(GUARD)


def test_connections_are_bounded(open_tier, drive):
    """Who finds all of them in use waits for his deadline at most."""
    tier = open_tier(timeout=SHORT)
    for _ in range(MAX_CONNECTIONS):
        tier._link._free.acquire()
    assert error_of(drive, tier.get(request())) in ("pool", "late")
    for _ in range(MAX_CONNECTIONS):
        tier._link._free.release()


def test_task_that_finds_no_thread_is_late(open_tier):
    """Law 10: where every thread waits for the server, a task waits no longer than it would itself."""
    tier, gate = open_tier(timeout=SHORT), threading.Event()
    busy = [tier._link._executor().submit(gate.wait, GUARD) for _ in range(100)]
    assert error_of(drive_async, tier.get(request())) == "late"
    assert not any(each.done() for each in busy)
    gate.set()


def test_many_threads_share_the_connections(open_tier, own_memcached):
    server = own_memcached()
    tier = open_tier(server.url)
    put(tier, request(), entry())
    with Crew(2 * MAX_CONNECTIONS) as crew:
        assert set(crew.map(lambda _: get(tier), range(1000))) == {b"value"}
    assert 1 <= len(tier._link._idle) <= MAX_CONNECTIONS


def test_fault_that_cannot_be_told_ends_nothing(open_tier, own_memcached):
    """The writer's thread lives on, whatever its listener does."""

    def on_fault(reason, error):
        raise RuntimeError(reason)

    server = own_memcached()
    tier = open_tier(server.url, on_fault=on_fault)
    run(tier.put(request(), entry(bytes(2**21)), None))
    assert not tier.flush(GUARD)
    put(tier, request(), entry(b"small"))
    assert get(tier) == b"small"


# Life


def test_closed_tier_says_so(open_tier, drive):
    """What was put is written first; closing twice is closing."""
    tier = open_tier()
    run(tier.put(request(), entry(), None))
    tier.close()
    tier.close()
    for plan in (tier.get(request()), tier.put(request(), entry(), None), tier.remove("key", request().key, 5)):
        assert error_of(drive, plan) == "closed"
    assert get(open_tier()) == b"value"


@pytest.mark.parametrize(
    "url",
    [
        "", "host:11211", "redis://host", "memcached://", "memcached://host:port", "memcached://host:99999",
        "memcached://host/path", "memcached://host?x=1", "memcached://a,b", "memcached://a:1,b:2", "memcached://u@host",
        None, 11211, ("host", 1),
    ],
)  # fmt: skip
def test_address_that_cannot_be_one_is_refused(open_tier, url):
    """A wrong address is an error at construction, which shows a right one."""
    with pytest.raises(ConfigurationError, match="memcached://host:11211"):
        open_tier(url)


def test_password_is_not_shown(open_tier):
    with pytest.raises(ConfigurationError) as raised:
        open_tier("memcached://user:secret@host")
    assert "secret" not in str(raised.value)


def test_port_and_addresses_of_a_name(open_tier, memcached_server):
    """A name is tried at all its addresses; the port has a default."""
    tier = open_tier(f"memcached://localhost:{memcached_server.port}")
    put(tier, request(), entry())
    assert get(tier) == b"value"
    assert open_tier("memcached://[::1]/")._link.where == "memcached://[::1]:11211"


def test_namespace_too_long_for_a_key_is_refused(open_tier):
    """Memcached's keys have 250 bytes: what cannot be one is an error at construction, which says by how much."""
    longest = "n" * (250 - len("semcache::v:") - 40)
    tier = open_tier(namespace=longest)
    put(tier, request(), entry())
    assert get(tier) == b"value"
    with pytest.raises(ConfigurationError, match="1 bytes too long"):
        open_tier(namespace=longest + "n")
    with pytest.raises(ConfigurationError, match="shorten"):
        open_tier(namespace="ö" * 34)


def test_missing_client_names_the_extra(open_tier, monkeypatch):
    monkeypatch.setitem(sys.modules, "pymemcache", None)
    with pytest.raises(MissingExtraError, match=r"memcached=.*tiered-semcache\[memcached\]"):
        open_tier()


def test_module_loads_no_client():
    """Law 13: the client is loaded with the first tier."""
    code = "import sys, semcache.tiers.memcached; sys.exit('pymemcache' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=GUARD, check=False).returncode == 0


def test_records_tell_themselves_apart():
    """A tombstone is of its own length, and keeps out what was born before it alone."""
    assert [buried_at(data) for data in (tombstone(2**60), b"", b"\0", b"\1" + bytes(8))] == [2**60, None, None, None]
    assert [outranks(tombstone(5), b"k", born, 0.0) for born in (4, 5)] == [True, False]
    standing = header.write(b"k", entry(born=5), Facets(), 10.0, 100.0)
    assert [outranks(standing, b"k", born, 101.0) for born in (4, 5, 6)] == [True, False, False]
    assert not outranks(standing, b"another", 4, 101.0)
    assert not outranks(standing, b"k", 4, 111.0)


def test_forked_child_has_connections_and_a_queue_of_its_own(memcached_url):
    """A child reads and writes beside its parent; what waited at the fork is the parent's to write."""
    code = """
        import os, sys, threading
        from semcache.marks import Marks
        from semcache.model import Entry, Facets, Hit, Request
        from semcache.plan import run
        from semcache.tier import SystemClock
        from semcache.tiers.memcached import MemcachedTier

        tier = MemcachedTier(
            sys.argv[1], namespace="shop", ttl=100.0, clock=SystemClock(), timeout=30.0, keeps_marks=True,
            marks=Marks(SystemClock.monotonic, 3600.0), on_fault=lambda reason, error: print(reason, error),
        )
        tier.find("log")

        def request(name):
            return Request(name.encode().ljust(20), facets=Facets("shop"))

        def put(name):
            run(tier.put(request(name), Entry(name.encode(), born=1), None))

        def get(name):
            found = run(tier.get(request(name)))
            return isinstance(found, Hit) and found.entry.value == name.encode()

        put("before")
        assert tier.flush(30)
        exchange, gate = tier._link.exchange, threading.Event()
        tier._link.exchange = lambda *asked: gate.wait(30) and exchange(*asked)
        put("waiting")
        tier._link._lock.acquire()  # as a thread might hold it
        child = os.fork()
        gate.set()
        if not child:
            assert not get("before"), "the child does not follow the log yet"
            tier.find("log")
            assert tier.stats()["pending"] == 0
            assert get("before")
            for number in range(50):
                put(f"child {number}")
            assert tier.flush(30)
            tier.close()
            os._exit(0)
        tier._link._lock.release()
        assert tier.flush(30)
        for number in range(50):
            put(f"parent {number}")
        assert tier.flush(30)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert get("waiting")
        assert all(get(f"{who} {number}") for who in ("child", "parent") for number in range(50))
        tier.close()
        print("done")
    """
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", dedent(code), memcached_url],
        capture_output=True, text=True, timeout=GUARD * 3, check=False, env=os.environ,
    )  # fmt: skip
    assert (ran.stdout, ran.stderr, ran.returncode) == ("done\n", "", 0)
