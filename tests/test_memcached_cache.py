"""A cache over a memcached: alone, where only keys can be invalidated, and beside a store that keeps the marks."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from textwrap import dedent

import pytest
from instruments import GUARD, Crew, Origin, until

import semcache
from semcache.log import LOST_SECONDS
from semcache.testing import ManualClock

SHORT = semcache.Timeouts(memcached="50ms")
UNFOLLOWED = "memcached: the log is not followed"


@pytest.fixture
def alone(memcached_url):
    """Settings of caches that share a memcached and nothing else."""
    return {"memcached": memcached_url}


@pytest.fixture(params=["disk", "redis"])
def beside(request, memcached_url, tmp_path):
    """Settings of caches that share a memcached and a store that keeps the marks."""
    if request.param == "redis":
        return {"memcached": memcached_url, "redis": request.getfixturevalue("redis_url")}
    return {"memcached": memcached_url, "disk": tmp_path / "c.db"}


def said(cache, request):
    """Return what each tier says of a request."""
    return dict(cache.explain(request).said)


def followed(cache):
    """Wait until a cache follows its store's log, and so believes what memcached has; the cache."""
    request = cache.request("whatever")
    cache.get_or_load(request, lambda: None)
    until(lambda: said(cache, request)["memcached"] != UNFOLLOWED)
    return cache


def keep(cache, request, answer):
    """Look up, and wait until what was loaded is kept."""
    given = cache.get_or_load(request, lambda: answer)
    assert cache.flush(GUARD)
    return given


# What there is


@pytest.mark.parametrize(
    ("stores", "tiers"),
    [
        ([], ["memory", "memcached"]), (["disk"], ["memory", "disk", "memcached"]),
        (["redis"], ["memory", "memcached", "redis"]),
    ],
)  # fmt: skip
def test_tiers_stand_nearest_first(open_cache, tmp_path, stores, tiers):
    """A file is nearer than a server; of two servers the one that may forget comes first."""
    where = {"disk": tmp_path / "c.db", "redis": "redis://127.0.0.1:1"}
    cache = open_cache(memcached="memcached://127.0.0.1:1", **{name: where[name] for name in stores})
    assert [tier.name for tier in cache.tiers] == tiers


def test_settings_that_cannot_be_are_refused(open_cache, alone):
    """A namespace is wanted, and an address that can be one."""
    with pytest.raises(semcache.ConfigurationError, match="name the service"):
        open_cache("", **alone)
    for url in ("localhost:11211", "redis://x", 7):
        with pytest.raises(semcache.ConfigurationError, match="memcached://host:11211"):
            open_cache(memcached=url)


def test_caches_share_answers(open_cache, alone, ask):
    """What one has loaded the others find, and it fills their memory."""
    one, other = open_cache(**alone), open_cache(**alone)
    request = one.request("a", function="f")
    assert ask(one, request, lambda: "loaded") == "loaded"
    assert one.flush(GUARD)
    assert ask(other, request, lambda: "not loaded") == "loaded"
    assert other.stats().hits == {"memcached": 1}
    assert other.probe(request.key) is not None


def test_answers_are_found_beside_a_store(open_cache, beside, ask):
    """Beside a store it is asked for what is not nearer, and given what is loaded."""
    one = followed(open_cache(**beside, memory=0))
    request = one.request("a", function="f", tags="faq")
    ask(one, request, lambda: "loaded")
    assert one.flush(GUARD)
    assert said(one, request) == {"memcached": "hit", one.store.name: "hit"}


def test_ttl_and_own_ttl(open_cache, alone, clock, ask):
    """Law 5: entries live as long as TTL(memcached=) says, or as they say themselves, since it is the store."""
    cache = open_cache(**alone, memory=0, ttl=semcache.TTL(memcached="1h", jitter=0))
    plain, own = cache.request("plain"), cache.request("own", ttl="2h")
    for request in (plain, own):
        ask(cache, request, lambda: "old")
    assert cache.flush(GUARD)
    clock.advance(3600 - 1)
    assert [ask(cache, request, lambda: "new") for request in (plain, own)] == ["old", "old"]
    clock.advance(1)
    assert [ask(cache, request, lambda: "new") for request in (plain, own)] == ["new", "old"]


# Alone


def test_invalidation_by_key_reaches_other_processes(alone):
    """Law 8: what one process invalidates by its key, no other serves, now or after it started anew."""
    code = """
        import sys, semcache
        cache = semcache.Cache("tests", memcached=sys.argv[1], timeouts=semcache.Timeouts(memcached="10s"))
        print(cache.get_or_load(cache.request("a", function="f"), lambda: sys.argv[2]), semcache.last().tier)
        cache.close()
    """

    def elsewhere(answer):
        ran = subprocess.run(
            [sys.executable, "-c", dedent(code), alone["memcached"], answer],
            capture_output=True, text=True, timeout=GUARD, check=True,
        )  # fmt: skip
        return ran.stdout.split()

    assert elsewhere("old") == ["old", "None"]
    with semcache.Cache("tests", timeouts=semcache.Timeouts(memcached="10s"), **alone) as here:
        request = here.request("a", function="f")
        assert here.get_or_load(request, lambda: "not loaded") == "old"
        assert here.invalidate(key=request.key, dry_run=True) == 1
        assert here.invalidate(key=request.key) == 1
        assert here.invalidate(key=request.key, dry_run=True) == 0
        assert here.get_or_load(request, lambda: "new") == "new"
    assert elsewhere("newer") == ["newer", "None"]


def test_memory_is_believed_for_seconds_alone(open_cache, alone, clock, ask):
    """Law 8: nobody tells the others' memory, so it serves what it has for as long as who is cut off, and no longer."""
    one, other = open_cache(**alone), open_cache(**alone)
    request = one.request("a", ttl="1h", stale_while_revalidate="1h", stale_if_error="1h")
    keep(one, request, "old")
    assert ask(other, request, lambda: "not loaded") == "old"
    one.invalidate(key=request.key)
    clock.advance(LOST_SECONDS - 0.1)
    assert ask(other, request, lambda: "not loaded") == "old"
    clock.advance(0.1)
    assert ask(other, request, lambda: "new") == "new"


def test_load_that_began_before_is_not_kept_however_clocks_differ(open_cache, alone, clock):
    """Law 8: a birth of a clock that is ahead is still older than an invalidation that came after it."""
    ahead = ManualClock(clock.time() + 0.9)
    one, other = open_cache(**alone, memory=0), open_cache(**alone, memory=0, clock=ahead)
    request, origin = other.request("a"), Origin("old", hold=True)
    with Crew(1) as crew:
        loading = crew.submit(other.get_or_load, request, origin)
        assert origin.entered.wait(GUARD)
        clock.advance(0.01)
        one.invalidate(key=request.key)
        origin.go.set()
        assert loading.result(GUARD) == "old"
    other.flush(GUARD)
    assert one.get_or_load(request, lambda: "new") == "new"


def test_what_is_loaded_a_second_after_an_invalidation_is_kept(open_cache, alone, clock, ask):
    """A mark lies ahead by what clocks may differ by, and no further, however many there are."""
    cache = open_cache(**alone)
    request = cache.request("a")
    for _ in range(100):
        cache.invalidate(key=request.key)
    clock.advance(1.0)
    assert ask(cache, request, lambda: "kept") == "kept"
    assert ask(cache, request, lambda: "not loaded") == "kept"


def test_load_after_a_clock_was_set_right_is_not_kept(open_cache, alone, clock):
    """Law 8: births go back with a clock: else they would outlive invalidations for as long as it was ahead."""
    ahead = ManualClock(clock.time() + 3600)
    one, other = open_cache(**alone, memory=0), open_cache(**alone, memory=0, clock=ahead)
    keep(other, other.request("another"), "whatever")
    ahead.set_time(clock.time())
    request, origin = other.request("a"), Origin("old", hold=True)
    with Crew(1) as crew:
        loading = crew.submit(other.get_or_load, request, origin)
        assert origin.entered.wait(GUARD)
        one.invalidate(key=request.key)
        origin.go.set()
        assert loading.result(GUARD) == "old"
    other.flush(GUARD)
    assert one.get_or_load(request, lambda: "new") == "new"


def test_mark_does_not_go_back_with_a_clock(open_cache, alone, clock):
    """Law 8: what began to load before a clock was set back is older than what is invalidated after."""
    one, other = open_cache(**alone, memory=0), open_cache(**alone, memory=0)
    keep(one, one.request("another"), "whatever")
    request, origin = other.request("a"), Origin("old", hold=True)
    with Crew(1) as crew:
        loading = crew.submit(other.get_or_load, request, origin)
        assert origin.entered.wait(GUARD)
        clock.set_time(clock.time() - 3600)
        one.invalidate(key=request.key)
        origin.go.set()
        assert loading.result(GUARD) == "old"
    other.flush(GUARD)
    assert keep(one, request, "new") == "new"
    clock.advance(3602)
    assert keep(one, request, "newer") == "newer"
    assert keep(other, request, "not loaded") == "newer"


@pytest.mark.parametrize("facet", ["tag", "function", "tenant", "model", "version", "document", "namespace"])
def test_only_keys_can_be_invalidated(open_cache, alone, facet):
    """Law 8: what cannot be kept is not promised; this process has forgotten all the same."""
    cache = open_cache(**alone)
    value = "tests" if facet == "namespace" else "x"
    facets = {facet: value} if facet in ("function", "model", "version") else {}
    with semcache.context(
        tenant="x" if facet == "tenant" else None, tags=["x"] if facet == "tag" else [],
        documents=["x"] if facet == "document" else [],
    ):  # fmt: skip
        request = cache.request("a", **facets)
    keep(cache, request, "old")
    assert cache.probe(request.key) is not None
    for dry_run in (True, False):
        with pytest.raises(semcache.InvalidationError, match=f"only invalidate by key, not by {facet}.*add disk="):
            cache.invalidate(**{facet: value}, dry_run=dry_run)
    assert cache.probe(request.key) is None
    assert cache.get_or_load(request, lambda: "new") == "new"


def test_answers_with_tags_are_refused_and_close_nothing(open_cache, alone, ask):
    """What could not be invalidated is not kept, which is told; it says nothing of the server."""
    cache, other = open_cache(**alone), open_cache(**alone, memory=0)
    with semcache.context(mode="refresh"):  # puts alone: a reading that went well would let a breaker start over
        for number in range(8):
            ask(cache, cache.request(number, tags="faq"), lambda: "tagged")
    assert cache.stats().faults == {"memcached: unmarked": 8}
    request = cache.request("plain")
    ask(cache, request, lambda: "kept")
    assert cache.flush(GUARD)
    assert ask(other, request, lambda: "not loaded") == "kept"
    assert ask(other, other.request(0, tags="faq"), lambda: "loaded") == "loaded"


@pytest.mark.semantic
def test_near_matches_find_their_answers_in_it(open_near, alone):
    """Law 4: with no store beside it, it is where a near match's answer is fetched, and where it may be gone."""
    one = open_near({"stored": 0, "asked": 1, "again": 2}, **alone, memory=0)
    request = one.request(text="stored")
    keep(one, request, "answer")
    assert one.get_or_load(one.request(text="asked"), lambda: "not loaded") == "answer"
    with semcache.Cache("tests", **alone, clock=one.clock) as other:
        other.invalidate(key=request.key)
    assert one.get_or_load(one.request(text="again"), lambda: "new") == "new"


# Beside a store


FACETS = {
    "function": "f", "tag": "faq", "tenant": "acme", "model": "m", "version": "7", "document": "d1",
    "namespace": "tests",
}  # fmt: skip


@pytest.mark.parametrize("facet", FACETS)
def test_invalidation_in_the_store_holds_in_memcached(open_cache, beside, facet):
    """Law 8: by whatever facet, what one process invalidates in the store no other serves from memcached."""
    one, other = (followed(open_cache(**beside, memory=0)) for _ in range(2))
    with semcache.context(tags=["faq", "other"], documents=["d1", "d2"], tenant="acme"):
        request = one.request("a", function="f", version="7", model="m")
    asked = other.request("a", function="f", version="7", model="m", tenant="acme")  # who asks need not name the tags
    keep(one, request, "old")
    assert said(other, asked)["memcached"] == "hit"
    assert one.invalidate(**{facet: FACETS[facet]}) >= 1
    until(lambda: said(other, asked)["memcached"] != "hit")
    assert other.get_or_load(asked, lambda: "new") == "new"


def test_invalidation_by_key_holds_in_memcached(open_cache, beside, memcached_server):
    """Law 8: by its key too; who invalidates drops it from the server, once, and nobody else does."""
    one, other = (followed(open_cache(**beside)) for _ in range(2))
    request = one.request("a")
    keep(one, request, "old")
    keep(other, request, "not loaded")
    before = memcached_server.client().stats()[b"cmd_set"]
    assert one.invalidate(key=request.key) == 1
    until(lambda: other.probe(request.key) is None)
    assert memcached_server.client().stats()[b"cmd_set"] == before + 1
    assert said(other, request)["memcached"] == "miss"
    assert other.get_or_load(request, lambda: "new") == "new"


def test_log_that_was_begun_anew_is_another(open_cache, beside, redis_server):
    """Law 8: where the store lost its marks, what memcached still has of the time before is not believed."""
    one = followed(open_cache(**beside))
    request = one.request("a", tags="faq")
    keep(one, request, "old")
    one.invalidate(tag="faq")
    one.close()
    if "disk" in beside:
        for path in beside["disk"].parent.glob("c.db*"):
            path.unlink()
    else:
        redis_server.cli("FLUSHALL")
    late = followed(open_cache(**beside))
    assert late.get_or_load(request, lambda: "new") == "new"


def test_store_that_is_replaced_while_it_is_followed_is_another(open_cache, beside, redis_server):
    """Law 8: the same for a process that lives through it."""
    one = followed(open_cache(**beside))
    request = one.request("a", tags="faq")
    keep(one, request, "old")
    assert said(one, request)["memcached"] == "hit"
    if "disk" in beside:
        for path in beside["disk"].parent.glob("c.db*"):
            path.unlink()
        keep(one, one.request("begins a file"), "whatever")
    else:
        redis_server.cli("FLUSHALL")
    # The follower names the new log first, by which memcached is asked, and drops what memory holds then.
    until(lambda: {said(one, request)[name] for name in ("memory", "memcached")} == {"miss"})
    assert one.get_or_load(request, lambda: "new") == "new"


def test_stores_that_share_a_memcached_do_not_meet(open_cache, alone, tmp_path):
    """Law 8: the files of two hosts know nothing of each other's invalidations, nor of those who have none."""
    caches = [followed(open_cache(**alone, disk=tmp_path / name, memory=0)) for name in ("a.db", "b.db")]
    caches.append(open_cache(**alone, memory=0))
    request = caches[0].request("a")
    for number, cache in enumerate(caches):
        assert keep(cache, request, number) == number
    assert [said(cache, request)["memcached"] for cache in caches] == ["hit"] * 3


def test_mark_is_kept_as_long_as_memcached_keeps_what_it_means(open_cache, beside, clock, redis_server):
    """Law 8: also where the store keeps its own entries for minutes, and with a grace on top."""
    ttl = semcache.TTL(memory="1m", disk="1m", redis="1m", semantic="1m", memcached="2d", jitter=0)
    one = followed(open_cache(**beside, memory=0, ttl=ttl))
    request = one.request("a", tags="faq", stale_if_error="1d")
    keep(one, request, "old")
    one.invalidate(tag="faq")
    clock.advance(3 * 86400 - 60)
    for number in range(3):
        keep(one, one.request("swept", number), "whatever")
    late = followed(open_cache(**beside, memory=0, ttl=ttl))
    with pytest.raises(ValueError, match="the origin's"):
        late.get_or_load(request, Origin(ValueError("the origin's")))
    if "redis" in beside:
        assert redis_server.cli("PTTL", "semcache:tests:marks") > 3 * 86400_000


def test_answer_that_comes_back_to_the_file_keeps_its_tags(open_cache, alone, tmp_path):
    """Law 8: what the file evicted and memcached brings back can be invalidated by what it was put with."""
    cache = followed(open_cache(**alone, disk=tmp_path / "c.db", disk_size="300kB", memory=0))
    keep(cache, cache.request("a", tags="faq"), "tagged")
    for number in range(40):
        keep(cache, cache.request(number), bytes(20_000))
    request = cache.request("a")
    assert said(cache, request) == {"disk": "miss", "memcached": "hit"}
    assert keep(cache, request, "not loaded") == "tagged"
    assert said(cache, request)["disk"] == "hit"
    assert cache.invalidate(tag="faq") == 1


def test_process_that_is_cut_off_believes_memcached_for_seconds_alone(open_cache, alone, own_redis, clock, ask):
    """Law 8: who hears of no invalidations serves what is there for so long, and again when he does."""
    server = own_redis(appendonly=True)
    cache = followed(open_cache(**alone, redis=server.url, memory=0))
    request = cache.request("a")
    keep(cache, request, "old")
    server.kill()
    until(lambda: "redis: unfollowed" in cache.stats().faults)
    clock.advance(LOST_SECONDS - 0.1)
    assert ask(cache, request, lambda: "not loaded") == "old"
    clock.advance(0.1)
    assert ask(cache, request, lambda: "new") == "new"
    server.restart(keep_data=True)
    until(lambda: said(cache, request)["memcached"] == "hit")


# Faults


@pytest.fixture(params=["alone", "disk"])
def faulty(request, own_memcached, open_cache, tmp_path):
    """A memcached of one's own, and what opens caches over it, alone or beside a file."""
    server = own_memcached()
    store = {"disk": tmp_path / "c.db"} if request.param == "disk" else {}

    def open_one(**settings):
        cache = open_cache(memcached=server.url, memory=0, **(store | settings))
        return followed(cache) if store else cache

    return server, open_one


def works(cache, ask):
    """The caller has the origin's answer, and its error, as they are."""
    error = ValueError("the origin's own")
    for number in range(4):
        assert ask(cache, cache.request("good", number), lambda number=number: number) == number
        with pytest.raises(ValueError, match="the origin's own") as raised:
            ask(cache, cache.request("bad", number), Origin(error))
        assert raised.value is error


def recovers(cache, clock, ask):
    """Soon after the server is back, its tier answers again."""
    deadline = time.monotonic() + GUARD
    for number in itertools.count():
        assert time.monotonic() < deadline, cache.stats().faults
        clock.advance(10)  # past any breaker's pause
        request = cache.request("again", number)
        ask(cache, request, lambda: "stored")
        cache.flush(GUARD)
        if said(cache, request)["memcached"] == "hit":
            return


def test_server_that_is_absent_costs_hits_alone_and_is_found_when_it_comes(faulty, clock, ask):
    """Law 10: absent at start: the origin answers, the fault says so; when the server starts it is used."""
    server, open_one = faulty
    server.kill()
    cache = open_one()
    works(cache, ask)
    assert {"memcached: unreachable", "memcached: open"} <= cache.stats().faults.keys()
    server.start()
    recovers(cache, clock, ask)


def test_server_that_is_killed_has_forgotten_and_is_used_again(faulty, clock, ask):
    """Law 10: what it held is loaded anew, or found in the store."""
    server, open_one = faulty
    cache = open_one()
    kept = cache.request("kept")
    keep(cache, kept, "old")
    server.kill()
    works(cache, ask)
    server.start()
    recovers(cache, clock, ask)
    assert ask(cache, kept, lambda: "new") == ("old" if cache.store else "new")


def test_paused_server_is_late_and_then_left_alone(faulty, clock, ask):
    """Law 10: each lookup waits its budget at most, then the breaker opens; resumed, the server is used again."""
    server, open_one = faulty
    cache = open_one(timeouts=SHORT)
    keep(cache, cache.request("a"), "stored")
    server.pause()
    for number in range(8):
        assert ask(cache, cache.request("paused", number), lambda: "loaded") == "loaded"
    assert {"memcached: late", "memcached: open"} <= cache.stats().faults.keys()
    server.resume()
    recovers(cache, clock, ask)
    assert ask(cache, cache.request("a"), lambda: "new") == "stored"


def test_invalidation_while_it_is_away_raises_where_it_is_the_store(faulty):
    """Law 8: alone, what cannot be kept is not promised; beside a store the mark is what counts."""
    server, open_one = faulty
    cache = open_one()
    request = cache.request("a")
    keep(cache, request, "old")
    server.kill()
    if cache.store is None:
        with pytest.raises(semcache.InvalidationError, match="try again"):
            cache.invalidate(key=request.key)
    else:
        assert cache.invalidate(key=request.key) == 1
    assert cache.get_or_load(request, lambda: "new") == "new"
