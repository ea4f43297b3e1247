"""Programs whose store is a sidecar: one trip for all but memory, invalidations at once, no harm where it is gone."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
import time

import msgpack
import pytest
from instruments import GUARD, Compass
from proxies import Running

import semcache
from semcache.sidecar.credentials import Token
from semcache.sidecar.settings import Server, Settings

NEAR = {"embedder": Compass({"a": 0, "b": 5, "far": 90}), "policy": semcache.Threshold(0.9, guards=None)}


def until(condition):
    """Wait for what another process, or thread, is about to do."""
    deadline = time.monotonic() + GUARD
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.002)


@pytest.fixture
def program(open_cache):
    """Open caches of programs on a sidecar; each follows it when it is returned."""

    def open_one(sidecar, namespace="tests", **settings):
        url = sidecar.url if isinstance(sidecar, Running) else sidecar
        cache = open_cache(namespace, **({"sidecar": url, "tenant": "t"} | settings))
        cache.log.start()
        until(lambda: cache.stats().tiers["sidecar"]["following"])
        until(lambda: cache.log.name)
        return cache

    return open_one


@pytest.fixture
def near(serve):
    sidecar = serve(cache=NEAR)
    sidecar.cache.warm()
    return sidecar


def ask(cache, text="a", answer="A", **about):
    """Look a text up, loading `answer`; what came, and how."""
    value = cache.get_or_load(cache.request(text=text, function="f", **about), lambda: answer)
    return value, semcache.last()


def settled(*caches):
    for cache in caches:
        assert cache.flush(GUARD)


def test_what_one_program_loads_another_is_given(serve, program):
    """Exactly, and then from its own memory."""
    sidecar = serve()
    one, other = program(sidecar), program(sidecar)
    ask(one)
    settled(one)
    value, event = ask(other, answer="B")
    assert (value, event.tier) == ("A", "sidecar")
    assert ask(other, answer="B")[1].tier == "memory"


def test_what_waits_to_be_sent_is_found(serve, program):
    """By a program without a memory of its own too."""
    sidecar = serve()
    one = program(sidecar, memory=0)
    ask(one)
    assert ask(one, answer="B")[0] == "A"


def test_near_match_is_served_and_never_kept_as_exact(near, program):
    """Law 3: the sidecar's policy lets it through, and neither memory nor store has it under the text that asked."""
    one, other = program(near), program(near)
    ask(one)
    settled(one, near.cache)
    for _ in range(2):
        value, event = ask(other, "b", "B")
        assert (value, event.tier) == ("A", "semantic")
        assert event.similarity == pytest.approx(0.9962, abs=1e-4)
        assert {"embed", "search", "decide"} <= event.stages.keys()
    assert other.memory.stats()["entries"] == 0


def test_near_matches_stay_within_tenant_and_scope(near, program):
    """Law 2, across processes; and none is served to who named no tenant."""
    one = program(near)
    ask(one)
    settled(one, near.cache)
    assert ask(program(near, tenant="u"), "b", "B")[0] == "B"
    assert ask(program(near), "b", "B", model="m")[0] == "B"
    assert ask(program(near, tenant=None), "b", "B")[0] == "B"


def test_vector_of_a_miss_is_used_by_its_put(near, program):
    """Nothing is embedded twice."""
    one = program(near)
    ask(one, "a")
    settled(one, near.cache)
    embedder = NEAR["embedder"]
    embedder.asked.clear()
    ask(one, "far", "F")
    settled(one, near.cache)
    assert embedder.asked == ["far"]


def test_invalidation_reaches_the_memory_of_others(serve, program):
    """Law 8, over the control stream."""
    sidecar = serve()
    one, other = program(sidecar), program(sidecar)
    ask(one)
    settled(one)
    ask(other)
    assert one.invalidate(function="f") == 1
    until(lambda: other.memory.stats()["entries"] == 0)
    assert ask(other, answer="new")[0] == "new"
    settled(other)
    assert ask(one, answer="newer")[0] == "new"


def test_invalidation_of_the_sidecar_itself_reaches_programs(serve, program):
    """As the operator's, and a proxied caller's neighbour's."""
    sidecar = serve()
    one = program(sidecar)
    ask(one)
    settled(one)
    sidecar.cache.invalidate(namespace="tests")
    until(lambda: one.memory.stats()["entries"] == 0)


def test_what_was_invalidated_while_it_loaded_is_not_kept(serve, program):
    """Law 8: it is born before the mark."""
    sidecar = serve()
    one, other = program(sidecar), program(sidecar)

    def load():
        other.invalidate(function="f")
        return "old"

    request = one.request(text="a", function="f")
    assert one.get_or_load(request, load) == "old"
    settled(one)
    assert ask(other, answer="new")[0] == "new"


def test_invalidation_by_text_is_the_sidecars(near, program):
    """All entries near to it go, of the tenant that is named."""
    one, other = program(near), program(near, tenant="u")
    for cache in (one, other):
        ask(cache)
        settled(cache)
    settled(near.cache)
    assert one.invalidate(text="b", tenant="t", dry_run=True) == 1
    assert one.invalidate(text="b", tenant="t") == 1
    until(lambda: one.memory.stats()["entries"] == 0)
    assert ask(other, answer="new")[0] == "A"


def test_mode_of_all_reaches_programs(serve, program):
    """The kill switch, from whichever of them."""
    sidecar = serve()
    one, other = program(sidecar), program(sidecar)
    one.set_mode("off")
    until(lambda: other.mode == "off" and sidecar.cache.mode == "off")
    one.set_mode("live")
    until(lambda: other.mode == "live" and sidecar.cache.mode == "live")


def test_many_are_one_trip(serve, program):
    """And what one load brought all others find."""
    sidecar = serve()
    one, other = program(sidecar), program(sidecar, memory=0)
    requests = [one.request(text=str(number), function="f") for number in range(20)]
    assert one.get_or_load_many(requests, lambda places: [f"answer {place}" for place in places])[7] == "answer 7"
    settled(one)
    before = sidecar.programs.native.counts["find", "hit"]
    found = other.get_or_load_many(requests, lambda places: pytest.fail(f"loaded {places}"))
    assert found == [f"answer {number}" for number in range(20)]
    assert sidecar.programs.native.counts["find", "hit"] == before + 20


def test_pinned_answers_stand_in_the_sidecar(serve, program):
    """They are there when the call returns."""
    sidecar = serve()
    one, other = program(sidecar), program(sidecar)
    one.put(one.request(text="a", function="f"), value="curated", pinned=True)
    assert ask(other, answer="B")[0] == "curated"


def test_tasks_ask_as_threads_do(serve, program):
    """On loops that come and go."""
    sidecar = serve()
    one = program(sidecar, memory=0)

    async def asked(answer):
        async def load():
            return answer

        request = one.request(text="a", function="f")
        return await asyncio.gather(*(one.aget_or_load(request, load) for _ in range(5)))

    assert asyncio.run(asked("A")) == ["A"] * 5
    settled(one)
    assert asyncio.run(asked("B")) == ["A"] * 5


def test_explain_tells_what_the_sidecars_tiers_say(near, program):
    """With its neighbours, and nothing is loaded or counted."""
    one = program(near)
    ask(one)
    settled(one, near.cache)
    told = one.explain(one.request(text="b", function="f"))
    assert told.tier == "sidecar: semantic"
    assert [neighbour.text for neighbour in told.neighbours] == ["a"]
    assert ("sidecar: memory", "miss") in told.said
    assert near.cache.stats().tiers["memory"]["entries"] == 1


def test_near_match_that_is_reported_is_served_no_more(near, program):
    """By its event; the blast radius is told before."""
    one, other = program(near), program(near)
    ask(one)
    settled(one, near.cache)
    _, event = ask(other, "b", "B")
    assert [row.text for row in other.blast(event.neighbour)] == ["b"]
    reported = other.report_wrong(hit=event)
    assert reported.blocked == ((event.key, event.neighbour),)
    assert ask(other, "b", "B")[0] == "B"
    assert ask(program(near, memory=0), "a", "B")[0] == "A"


def test_wrong_answer_goes_everywhere(serve, program):
    """From the memory of who reports it at once."""
    sidecar = serve()
    one, other = program(sidecar), program(sidecar)
    ask(one)
    settled(one)
    ask(other)
    reported = other.report_wrong(key=other.request(text="a", function="f").key)
    assert reported.dropped == 1
    assert ask(other, answer="new")[0] == "new"
    until(lambda: ask(one, answer="newer")[0] != "A")


def test_policy_learns_of_programs_loads(serve, program):
    """Labels come from what they load though there was a near match."""
    policy = semcache.ErrorBudget(0.1, guards=None)
    sidecar = serve(cache={"embedder": Compass({"a": 0, "b": 5}), "policy": policy, "audit": 1.0})
    sidecar.cache.warm()
    one = program(sidecar)
    ask(one, "a", "same")
    settled(one, sidecar.cache)
    ask(one, "b", "same")
    settled(one, sidecar.cache)
    assert sum(family.labels for family in policy.status().families) == 1


def test_policy_that_is_adopted_sees_what_programs_find(serve, program):
    """As soon as it decides: the one before it is asked no more."""
    sidecar = serve(cache={"embedder": Compass({"a": 0, "b": 5}), "policy": semcache.ErrorBudget(0.1, guards=None)})
    sidecar.cache.warm()
    one = program(sidecar)
    ask(one, "a", "same")
    settled(one, sidecar.cache)
    policy = semcache.ErrorBudget(0.05, guards=None)
    sidecar.cache.adopt(policy)
    before = sum(family.near for family in policy.status().families)
    ask(one, "b", "same")
    settled(one, sidecar.cache)
    assert sum(family.near for family in policy.status().families) == before + 1


def test_sums_are_booked_once_for_all(serve, program):
    """By which program whatever."""
    sidecar = serve()
    one, other = program(sidecar), program(sidecar)
    ask(one)
    settled(one)
    ask(other)
    settled(other)
    assert [(row.loads, row.hits) for row in one.usage(by="stage")] == [(1, 1)]
    assert [(row.loads, row.hits) for row in sidecar.cache.usage(by="stage")] == [(1, 1)]


@pytest.mark.parametrize("store", ["disk", "redis"])
def test_store_behind_the_sidecar_is_the_programs_too(store, serve, program, tmp_path, request):
    """What was stored outlives the sidecar, and invalidations of another process come through it."""
    place = tmp_path / "cache.db" if store == "disk" else request.getfixturevalue("redis_url")
    sidecar = serve(cache={store: place})
    one = program(sidecar, memory=0)
    until(lambda: not sidecar.programs.control.is_lost)
    until(lambda: one.log.name and one.log.position() > 1)
    ask(one)
    settled(one, sidecar.cache)
    sidecar.close()
    again = program(serve(cache={store: place}))
    assert ask(again, answer="B")[0] == "A"
    beside = semcache.Cache("tests", **{store: place})
    beside.invalidate(function="f")
    beside.close()
    until(lambda: again.memory.stats()["entries"] == 0)


def test_sidecar_that_is_gone_is_a_miss_and_comes_back(serve, program, models, open_cache, tmp_path):
    """Law 10: callers go on; an invalidation cannot be kept, and says so."""
    path = tmp_path / "sidecar.sock"
    sidecar = serve(unix=str(path))
    one = program(f"unix://{path}")
    ask(one)
    sidecar.close()
    value, event = ask(one, "b", "B")
    assert (value, event.faults[0][:2]) == ("B", ("sidecar", "unreachable"))
    with pytest.raises(semcache.InvalidationError, match="try again"):
        one.invalidate(function="f")
    assert ask(one, answer="new")[0] == "new"
    again = serve(unix=str(path))
    until(lambda: one.stats().tiers["sidecar"]["following"])
    until(lambda: ask(one, "c", "C") and one.flush(GUARD) and again.cache.memory.stats()["entries"])


def test_memory_is_believed_for_no_longer_than_the_stream_is_lost(serve, program, clock):
    """As of any log that cannot be heard."""
    sidecar = serve()
    one = program(sidecar)
    ask(one)
    settled(one)
    sidecar.close()
    until(lambda: not one.stats().tiers["sidecar"]["following"])
    until(lambda: one.explain(one.request(text="a", function="f")).remaining <= 5.0)
    clock.advance(5.1)
    assert ask(one, answer="new")[0] == "new"


def test_next_sidecar_of_the_list_is_asked(serve, program):
    """And as its log is another, what memory holds is worth nothing."""
    first, second = serve(), serve()
    one = program([first.url, second.url])
    ask(one)
    settled(one)
    first.close()
    until(lambda: one.stats().tiers["sidecar"]["following"] and one.memory.stats()["entries"] == 0)
    assert ask(one, answer="B")[0] == "B"
    settled(one)
    assert second.cache.memory.stats()["entries"] == 1
    assert one.invalidate(function="f") == 1
    assert ask(one, answer="C")[0] == "C"


def test_namespaces_of_one_sidecar_do_not_meet(near, program):
    """Neither keys nor near matches nor invalidations of one are another's; the sidecar's own drops all."""
    shop, desk = program(near, "shop"), program(near, "desk")
    ask(shop, "a", "shop's", tags="faq")
    settled(shop, near.cache)
    assert ask(desk, "a", "desk's", tags="faq")[0] == "desk's"
    settled(desk, near.cache)
    assert ask(program(near, "shop"), "b", "?")[0] == "shop's"
    for facet in ({"tag": "faq"}, {"function": "f"}, {"namespace": "desk"}, {"tenant": "t"}):
        desk.invalidate(**facet)
        assert ask(desk, "a", "new", tags="faq")[0] == "new"
        settled(desk)
        assert ask(program(near, "shop"), "a", "?")[0] == "shop's"
    near.cache.invalidate(tag="faq")
    until(lambda: shop.memory.stats()["entries"] == desk.memory.stats()["entries"] == 0)


def token(text, tenant, *rights):
    return Token.read(
        {"sha256": hashlib.sha256(text.encode()).hexdigest(), "tenant": tenant, "rights": list(rights)}, "tests"
    )  # fmt: skip


@pytest.fixture
def guarded(serve):
    tokens = (token("one", "T1", "cache"), token("two", "T2", "cache"), token("calls", "T3", "proxy"))
    sidecar = serve(cache=NEAR | {"tenant_usage": True}, tokens=tokens, secret="of ours")
    sidecar.cache.warm()
    return sidecar


def test_tenants_of_tokens_never_meet(guarded, program):
    """The very same calls, of programs that name the same tenant and namespace."""
    one, two = (program(semcache.Sidecar(guarded.url, token=name)) for name in ("one", "two"))
    ask(one, "a", "T1's", tags="faq")
    settled(one, guarded.cache)
    assert ask(two, "a", "T2's", tags="faq")[0] == "T2's"
    settled(two, guarded.cache)
    assert ask(two, "b", "near T2's")[0] == "T2's"
    settled(two, guarded.cache)
    key = one.request(text="a", function="f").key
    facets = {"tag": "faq", "function": "f", "tenant": "t", "namespace": "tests", "key": key, "text": "a"}
    for facet in ({name: value} for name, value in facets.items()):
        two.invalidate(**facet)
        fresh = program(semcache.Sidecar(guarded.url, token="one"), memory=0)
        assert ask(fresh, "a", "?")[0] == "T1's", facet
    assert [len(cache.blast(key)) for cache in (one, two)] == [0, 1]
    assert not two.report_wrong(key=key)
    assert [row.loads for row in one.usage(by="stage")] == [1]


def test_marks_of_one_tenant_are_not_told_to_another(guarded, program):
    """Not even that there was one."""
    one, two = (program(semcache.Sidecar(guarded.url, token=name)) for name in ("one", "two"))
    before = len(two.log.marks)
    one.invalidate(tag="a secret tag")
    two.invalidate(tag="mine")
    until(lambda: len(two.log.marks) > before)
    told = [value for _, value, _ in two.log.marks.since(0)]
    assert "mine" in told
    assert not any("secret" in str(value) for value in told)


def test_mode_of_all_is_no_tenants(guarded, program):
    """With a token a program may narrow its own mode alone."""
    one = program(semcache.Sidecar(guarded.url, token="one"))
    with pytest.raises(semcache.TierError, match="operator"):
        one.set_mode("off")
    assert guarded.cache.mode == "live"


@pytest.mark.parametrize("told", ["calls", "unknown", ""])
def test_token_without_the_right_is_refused(told, guarded, open_cache):
    """Its callers go on, and the fault says why."""
    cache = open_cache(sidecar=semcache.Sidecar(guarded.url, token=told))
    value, event = ask(cache)
    assert (value, event.faults[0][:2]) == ("A", ("sidecar", "refused"))


def test_put_of_another_log_is_not_kept(serve, program):
    """A birth says nothing there."""
    sidecar = serve()
    one = program(sidecar)
    told = msgpack.packb([["put", {
        "request": {"key": b"k" * 20, "facets": ["f", "", "", "", [], []]}, "log": "another",
        "entry": {"value": b"\x01\x00\xa1A", "born": 1 << 60, "lives": [60.0, 0.0, 0.0, 0.0, 0.0, 60.0]},
    }]])  # fmt: skip
    answer = sidecar.http.post("/semcache/v1/cache", content=told, headers={"content-type": "application/msgpack"})
    assert msgpack.unpackb(answer.content) == [[True, False]]
    assert one.stats().tiers["sidecar"]["lost"] == 0
    assert sidecar.cache.memory.stats()["entries"] == 0


DEEP = b"\x91" * 100_000
BOMB = b"\xdd\xff\xff\xff\xff"
KEYED = b"\x91\x81\x80\x01"  # a map whose key is a map


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", DEEP, BOMB, KEYED, b"\x80", b"\x90", msgpack.packb([["find", {}]] * 1025)]
)
def test_what_is_no_message_is_refused(body, sidecar):
    """And the sidecar goes on."""
    answer = sidecar.http.post("/semcache/v1/cache", content=body, headers={"content-type": "application/msgpack"})
    assert answer.status_code == 400
    assert told_by(sidecar, ["count", []]) == [True, 0]


WRONG = [
    None, 1, "find", [], ["find"], ["nothing", 1], ["find", None], ["find", {"key": "text"}],
    ["find", {"key": b"short"}], ["find", {"key": b"k" * 20, "facets": [1, 2, 3]}], ["put", []],
    ["put", {"request": {}, "entry": {}}], ["mark", [["shape", "round"]]], ["mark", "tag"], ["forget_near", None],
    ["forget_near", {"text": 1}], ["switch", "refresh"], ["names", [[1]]], ["book", [[b"n", "2026-11-27", []]]],
    ["book", [[b"n", "2026-11-27", {"hits|f|m": "x"}]]], ["wrong", {}], ["blast", {"key": 1}], ["booked", 7],
    ["explain", {"key": b"k" * 20, "facets": ["f", "", "", "", [], []], "mode": "x"}],
]  # fmt: skip


@pytest.mark.parametrize("operation", WRONG, ids=repr)
def test_operation_that_is_none_fails_alone(operation, sidecar):
    """The next one of the message is carried out."""
    first, second = told_by(sidecar, operation, ["count", [["tag", "x"]]], whole=True)
    assert first[0] is False
    assert second == [True, 0]


def told_by(sidecar, *operations, whole=False):
    answer = sidecar.http.post(
        "/semcache/v1/cache", content=msgpack.packb(list(operations)), headers={"content-type": "application/msgpack"}
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    answers = msgpack.unpackb(answer.content)
    return answers if whole else answers[0]


def test_program_loads_no_model_no_index_and_no_client_of_a_store(serve):
    """Law 13, for who has it all in another process."""
    sidecar = serve()
    code = (
        "import sys, semcache\n"
        f"cache = semcache.Cache('tests', sidecar={sidecar.url!r})\n"
        "assert cache.get_or_load(cache.request(text='a'), lambda: 'A') == 'A'\n"
        "assert cache.flush(30), cache.stats().faults\n"
        "cache.close()\n"
        "print(sorted({'torch', 'faiss', 'redis', 'numpy', 'uvicorn', 'aiohttp'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=GUARD, check=False)
    assert (ran.stdout.strip(), ran.stderr) == ("[]", "")


WRONG_SETTINGS = [
    ({"sidecar": 7}, "http://host:8400"), ({"sidecar": "host:8400"}, "http://host:8400"), ({"sidecar": []}, "address"),
    ({"sidecar": "http://a b"}, "address"), ({"sidecar": "http://h:99999"}, "address"),
    ({"sidecar": "http://token@host"}, "SEMCACHE_TOKEN"), ({"sidecar": "unix://relative"}, "unix:///"),
    ({"sidecar": "http://h", "redis": "redis://x"}, "redis="), ({"sidecar": "http://h", "embedder": "m"}, "embedder="),
    ({"sidecar": "http://h", "policy": "budget:0.1"}, "policy="), ({"sidecar": "http://h", "disk": "f"}, "disk="),
    ({"sidecar": semcache.Sidecar("https://h", ca="/nowhere.pem")}, "nowhere.pem"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "told"), WRONG_SETTINGS, ids=repr)
def test_setting_that_cannot_work_is_told(settings, told):
    """At construction, with the mend."""
    with pytest.raises(semcache.ConfigurationError, match=told):
        semcache.Cache("tests", **settings)


def test_default_cache_takes_the_sidecar_of_the_environment(serve, monkeypatch):
    """SEMCACHE_SIDECAR, with the token of SEMCACHE_TOKEN."""
    sidecar = serve(tokens=(token("one", "T1", "cache"),))
    monkeypatch.setenv("SEMCACHE_SIDECAR", sidecar.url)
    monkeypatch.setenv("SEMCACHE_TOKEN", "one")

    @semcache.cached
    def f():
        return "A"

    assert f() == "A"
    assert semcache.last().faults == []


def test_near_matches_are_found_through_a_worker(near, open_cache, program, models):
    """Text and scope reach the owner, whose embedder and policy they are."""
    worker = Running(Settings(upstream=(Server(models.url),), port=0), open_cache(sidecar=near.url))
    try:
        one, other = program(worker), program(worker)
        ask(one)
        settled(one, worker.cache, near.cache)
        value, event = ask(other, "b", "B")
        assert (value, event.tier) == ("A", "semantic")
        assert ask(program(worker, tenant="u"), "b", "B")[0] == "B"
    finally:
        worker.close()


def test_first_fault_of_a_sidecar_is_logged(open_cache, caplog):
    """Once for each kind: one that is never reached is else easily overlooked."""
    cache = open_cache(sidecar="http://127.0.0.1:9")
    ask(cache)
    ask(cache, "b")
    cache.stats()
    told = [record.getMessage() for record in caplog.records if "sidecar: unreachable" in record.getMessage()]
    assert len(told) == 1


def test_running_sidecar_ends_its_streams_when_it_ends(serve, program):
    """Who follows does not keep it from ending."""
    sidecar = serve(timeout_drain="30s")
    one = program(sidecar)
    sidecar.close()
    until(lambda: not one.stats().tiers["sidecar"]["following"])


def test_answers_of_a_sidecar_behind_a_sidecar(serve, program, open_cache, models):
    """Its store is another's: operations and marks go through."""
    owner = serve()
    between = open_cache(sidecar=owner.url)
    worker = Running(Settings(upstream=(Server(models.url),), port=0), between)
    try:
        one, other = program(worker), program(owner)
        until(lambda: not worker.programs.control.is_lost)
        until(lambda: one.log.name == between.log.name == other.log.name)
        ask(one)
        settled(one, between)
        assert ask(other, answer="B")[0] == "A"
        other.invalidate(function="f")
        until(lambda: one.memory.stats()["entries"] == between.memory.stats()["entries"] == 0)
    finally:
        worker.close()
