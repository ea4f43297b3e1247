"""What lookups saved and loads cost: told by the answers, booked by day, stage and model, summed over all processes."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instruments import GUARD, Crew, Origin, watch_flights

import semcache
from semcache import Usage, UsageRow, meter
from semcache.errors import ConfigurationError, TierError
from semcache.meter import MEASURES, day_of, name_of, read_name
from semcache.testing import ManualClock

DAY = 86_400.0
COLUMNS = ("day", "stage", "model", "tenant")
COST = Usage(prompt_tokens=100, completion_tokens=20, money=0.25)


def counts(row):
    """A row without its seconds, which are the wall's, and without what is zero."""
    return {name: value for name, value in asdict(row).items() if value and not name.endswith("seconds")}


def told(cache, by="stage", since="30d"):
    """The rows of one column, by its value."""
    rows = {getattr(row, by): counts(row) for row in cache.usage(since, by)}
    return {value: {name: row[name] for name in row if name != by} for value, row in rows.items()}


@pytest.fixture(params=["disk", "redis"])
def store(request, tmp_path):
    """What makes a cache use one store of both."""
    if request.param == "disk":
        return {"disk": tmp_path / "cache.db"}
    return {"redis": request.getfixturevalue("redis_url")}


def ask(cache, part="q", usage=lambda _: COST, load=lambda: "answer", **more):
    return cache.get_or_load(cache.request(part, **more), load, usage=usage)


# What one call tells


def test_function_is_booked_on_its_name(open_cache):
    """A cached function's loads and hits stand under its name, with what `usage` said of the one load."""
    asked = []

    def usage(answer):
        asked.append(answer)
        return COST

    cache = open_cache()

    @semcache.cached(cache, usage=usage)
    def answer(question):
        return question.upper()

    for _ in range(4):
        assert answer("why") == "WHY"
    assert asked == ["WHY"]
    (row,) = cache.usage()
    assert counts(row) == {
        "stage": answer.__semcache_name__, "hits": 3, "loads": 1, "saved_prompt_tokens": 300,
        "saved_completion_tokens": 60, "saved_money": 0.75, "spent_prompt_tokens": 100,
        "spent_completion_tokens": 20, "spent_money": 0.25,
    }  # fmt: skip
    assert row.model == ""
    assert semcache.last().usage == COST


@pytest.mark.parametrize("traced", [False, True])
def test_stage_is_the_contexts_then_the_calls(open_cache, traced):
    """`stage=` of `cached` replaces the name, and the context's replaces both, in a load as in a hit."""
    cache = open_cache(observers=[lambda event: None] if traced else [])

    @semcache.cached(cache, stage="answer")
    def answer(question):
        return question

    answer("a")
    answer("a")
    assert semcache.last().stage == "answer"
    with semcache.context(stage="evaluation"):
        answer("a")
        answer("b")
        with semcache.context(tenant="t"):
            assert (answer("b"), semcache.last().stage) == ("b", "evaluation")
        answer([object()])  # has no key
        assert semcache.last().kind == "bypass"
    assert told(cache) == {"answer": {"hits": 1, "loads": 1}, "evaluation": {"hits": 1, "loads": 3}}


def test_request_carries_stage_and_model(open_cache):
    """`cache.request(stage=, model=)` says what is booked; neither is in the key twice or by itself."""
    cache = open_cache()
    for stage in ("a", "a", "b"):
        ask(cache, model="m", stage=stage)
    ask(cache, function="f")
    assert {(row.stage, row.model, row.hits, row.loads) for row in cache.usage()} == {
        ("a", "m", 1, 1), ("b", "m", 1, 0), ("f", "", 0, 1),
    }  # fmt: skip
    assert cache.request("q", stage="a").key == cache.request("q", stage="b").key
    ask(cache, "r", model="m", stage="s")
    event = semcache.last()
    assert (event.stage, event.model, event.tenant, event.usage) == ("s", "m", "", COST)


def test_awaited_answer_is_measured(open_cache):
    """`usage` is given what was awaited, in coroutines and in aget_or_load."""
    cache, asked = open_cache(), []

    @semcache.cached(cache, stage="s", usage=asked.append)
    async def answer(question):
        return question

    async def load():
        return "loaded"

    async def main():
        await answer("a")
        await cache.aget_or_load(cache.request("q", stage="s"), load, usage=asked.append)
        return await cache.ausage(by="stage")

    (row,) = asyncio.run(main())
    assert asked == ["a", "loaded"]
    assert (row.stage, row.loads) == ("s", 2)


def test_stream_is_measured_by_its_items(open_cache):
    """A generator's usage is asked once, with all its items, and its hits save that."""
    cache, asked = open_cache(), []

    def usage(items):
        asked.append(items)
        return COST

    @semcache.cached(cache, stage="s", usage=usage)
    def spell(word):
        yield from word

    @semcache.cached(cache, stage="async", usage=usage)
    async def aspell(word):
        for letter in word:
            yield letter

    async def read():
        return [letter async for letter in aspell("de")]

    assert [list(spell("abc")), list(spell("abc"))] == [["a", "b", "c"]] * 2
    assert [asyncio.run(read()), asyncio.run(read())] == [["d", "e"]] * 2
    assert asked == [["a", "b", "c"], ["d", "e"]]
    expected = {
        "hits": 1, "loads": 1, "saved_prompt_tokens": 100, "saved_completion_tokens": 20, "saved_money": 0.25,
        "spent_prompt_tokens": 100, "spent_completion_tokens": 20, "spent_money": 0.25,
    }  # fmt: skip
    assert told(cache) == {"s": expected, "async": expected}


def test_stream_read_by_two_is_spent_once(open_cache):
    """Who read along saved what the stream's one load cost, which is asked once."""
    cache, asked = open_cache(), []

    def usage(items):
        asked.append(items)
        return COST

    @semcache.cached(cache, stage="s", usage=usage)
    def spell(word):
        yield from word

    first, second = spell("abc"), spell("abc")
    assert next(first) == next(second) == "a"
    assert [list(second), list(first)] == [["b", "c"]] * 2
    (row,) = cache.usage()
    assert (row.hits, row.loads, row.saved_prompt_tokens, row.spent_prompt_tokens) == (1, 1, 100, 100)
    assert asked == [["a", "b", "c"]]


def test_follower_saves_what_its_leader_spent(open_cache):
    """Of those who wait for one load, one spends and the others save."""
    cache, origin = open_cache(), Origin(hold=True)
    flights = watch_flights(cache)
    with Crew() as crew:
        leader = crew.submit(ask, cache, load=origin)
        assert origin.entered.wait(GUARD)
        followers = [crew.submit(ask, cache, load=origin) for _ in range(3)]
        flights.wait_for(4)
        origin.go.set()
        assert {waiting.result(GUARD) for waiting in [leader, *followers]} == {"answer"}
    (row,) = cache.usage()
    assert (row.hits, row.loads, row.saved_prompt_tokens, row.spent_prompt_tokens) == (3, 1, 300, 100)


@pytest.mark.semantic
def test_near_hits_are_counted_apart(open_near):
    """A near match saves what its neighbour's load cost, and is no exact hit."""
    cache = open_near({"stored": 0, "asked": 1})
    ask(cache, text="stored")
    assert cache.flush(GUARD)
    assert ask(cache, text="asked", load=lambda: "new") == "answer"
    (row,) = cache.usage()
    assert (row.hits, row.near_hits, row.loads, row.saved_money) == (0, 1, 1, 0.25)


@pytest.mark.parametrize("mode", ["off", "refresh"])
def test_load_past_the_cache_is_spent(open_cache, mode):
    """Every load costs, whether its answer is kept or not."""
    cache = open_cache()
    with semcache.context(mode=mode):
        for _ in range(2):
            ask(cache, stage="s")
    assert told(cache)["s"]["spent_prompt_tokens"] == 200


def test_load_behind_a_stale_answer_is_taken_off_what_it_saved(open_cache, clock):
    """No caller asked for it: a stale hit saves, the load behind it spends, and of its cost nothing is saved."""
    cache = open_cache()
    lives = {"ttl": 1, "stale_while_revalidate": 100}
    ask(cache, stage="s", **lives)
    clock.advance(2)
    ask(cache, stage="s", **lives)
    assert cache.flush(GUARD)
    assert told(cache) == {
        "s": {
            "hits": 1, "loads": 2, "spent_prompt_tokens": 200, "spent_completion_tokens": 40, "spent_money": 0.5,
        },
    }  # fmt: skip
    ask(cache, stage="s", **lives)
    assert told(cache)["s"]["saved_money"] == 0.25


def test_failed_load_is_counted_and_costs_time_alone(open_cache):
    """`usage` is not asked of an error."""
    cache, asked = open_cache(), []
    with pytest.raises(ValueError, match="no"):
        ask(cache, usage=asked.append, load=Origin(ValueError("no")), stage="s")
    assert asked == []
    assert told(cache) == {"s": {"loads": 1, "load_errors": 1}}
    assert cache.usage()[0].spent_seconds > 0


def _raises(_answer):
    raise KeyError("usage")


@pytest.mark.parametrize(
    ("usage", "fault"),
    [
        (_raises, "KeyError"),
        (lambda _: {"prompt_tokens": 1}, "TypeError"),
        (lambda _: Usage(-1), "ValueError"),
        (lambda _: Usage(money=float("nan")), "ValueError"),
        (lambda _: Usage(prompt_tokens=2**70), "ValueError"),
        (lambda _: Usage(prompt_tokens=None), "TypeError"),
    ],
)
def test_usage_that_fails_is_a_fault_and_no_callers(open_cache, usage, fault):
    """Law 10: the caller has its answer, which is kept; what went wrong is counted."""
    cache = open_cache()
    assert [ask(cache, usage=usage, stage="s") for _ in range(2)] == ["answer"] * 2
    assert cache.stats().faults == {f"usage: {fault}": 1}
    assert told(cache) == {"s": {"hits": 1, "loads": 1}}


@pytest.mark.parametrize("given", [{"stage": ""}, {"stage": 7}, {"usage": "tokens"}])
def test_what_cannot_be_a_stage_or_usage_is_refused(open_cache, given):
    """Wrong settings are told at decoration."""
    with pytest.raises(ConfigurationError, match=next(iter(given))):
        semcache.cached(open_cache(), **given)
    if "stage" in given:
        with pytest.raises(ConfigurationError, match="stage"):
            open_cache().request("q", **given)
        with pytest.raises(ConfigurationError, match="stage"), semcache.context(**given):
            pass


# Sums


operations = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from(["a", "b|%"]),
        st.sampled_from(["", "m"]),
        st.sampled_from([None, "t1", "t2"]),
        st.sampled_from([0.0, 0.0, 0.0, 40_000.0]),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(operations)
def test_rows_are_a_dictionarys_sums(done):
    """Whatever is asked, on whatever day: each row is the sum of what a plain dictionary counts."""
    clock, expected, seen = ManualClock(), {}, set()
    life = semcache.TTL(memory="300d", jitter=0)
    with semcache.Cache("sums", clock=clock, ttl=life, tenant_usage=True) as cache:

        @semcache.cached(cache, usage=lambda part: Usage(part, 2 * part, part / 4), tenant="tenant")
        def answer(part, tenant):
            return part

        for part, stage, model, tenant, passes in done:
            clock.advance(passes)
            day = day_of(clock.time())
            for who in ("function", "request"):
                if who == "function":
                    with semcache.context(stage=stage):
                        answer(part, tenant)
                    at, key = (day, stage, "", tenant or ""), (part, tenant)
                else:
                    ask(cache, part, lambda _, part=part: Usage(part, 2 * part, part / 4), lambda: 0, stage=stage,
                        model=model, tenant=tenant)  # fmt: skip
                    at, key = (day, stage, model, tenant or ""), (part, model, tenant, "request")
                sums = expected.setdefault(at, dict.fromkeys(MEASURES, 0))
                is_hit, kind = key in seen, "saved" if key in seen else "spent"
                seen.add(key)
                sums["hits" if is_hit else "loads"] += 1
                sums[f"{kind}_prompt_tokens"] += part
                sums[f"{kind}_completion_tokens"] += 2 * part
                sums[f"{kind}_money"] += part / 4
        # A memory hit of a function is summed later; a midnight between is seen at the next lookup of another kind.
        days = {day for day, *_ in expected}
        by = COLUMNS if len(days) <= 1 else COLUMNS[1:]
        wanted = {}
        for at, sums in expected.items():
            row = wanted.setdefault(at if len(days) <= 1 else at[1:], dict.fromkeys(MEASURES, 0))
            for name, amount in sums.items():
                row[name] += amount
        rows = {tuple(getattr(row, column) for column in by): asdict(row) for row in cache.usage("400d", by)}
        assert rows.keys() == wanted.keys()
        for at, row in rows.items():
            assert {name: row[name] for name in MEASURES if "seconds" not in name} == {
                name: amount for name, amount in wanted[at].items() if "seconds" not in name
            }


def test_day_is_the_lookups_own(open_cache, clock):
    """At midnight, in UTC, what was counted so far stays with its day; `since` names the first day that is told."""
    cache = open_cache()
    first = day_of(clock.time())
    for _ in range(3):
        ask(cache, ttl="10d")
    clock.advance(DAY)
    ask(cache, ttl="10d")
    second = day_of(clock.time())
    assert told(cache, "day") == {
        first: {"hits": 2, "loads": 1} | {
            "saved_prompt_tokens": 200, "saved_completion_tokens": 40, "saved_money": 0.5, "spent_prompt_tokens": 100,
            "spent_completion_tokens": 20, "spent_money": 0.25,
        },
        second: {"hits": 1, "saved_prompt_tokens": 100, "saved_completion_tokens": 20, "saved_money": 0.25},
    }  # fmt: skip
    assert told(cache, "day", second).keys() == told(cache, "day", "60s").keys() == {second}
    assert told(cache, "day", first).keys() == told(cache, "day", "1d").keys() == {first, second}


def test_rows_come_in_the_columns_order(open_cache):
    """A row tells the columns that were asked for, and no others; no column at all is one row of everything."""
    cache = open_cache()
    for stage, model in (("b", "x"), ("a", "y"), ("a", "x")):
        ask(cache, (stage, model), stage=stage, model=model)
    assert [(row.stage, row.model, row.day) for row in cache.usage()] == [
        ("a", "x", None), ("a", "y", None), ("b", "x", None),
    ]  # fmt: skip
    assert [(row.model, row.stage, row.loads) for row in cache.usage(by="model")] == [("x", None, 2), ("y", None, 1)]
    (row,) = cache.usage(by=())
    assert (row.loads, row.spent_money) == (3, 0.75)
    assert open_cache("empty").usage() == []
    assert UsageRow().hits == 0


@pytest.mark.parametrize("given", [{"by": "tier"}, {"by": ("stage", "tier")}, {"since": "soon"}, {"since": 0}])
def test_question_that_makes_no_sense_is_refused(open_cache, given):
    """What rows are told by, and since when, is checked."""
    with pytest.raises(ConfigurationError):
        open_cache().usage(**given)


@given(st.sampled_from(MEASURES), st.tuples(*[st.text(max_size=50)] * 3))
def test_name_is_read_as_it_was_made(measure, row):
    """Whatever stage, model and tenant are called: their sums find back."""
    assert read_name(name_of(measure, row)) == (measure, row)


@pytest.mark.parametrize("name", ["hits", "hits|a", "misses|a|b", "hits|a|b|c|d", "", "hits|a|b\n|"])
def test_foreign_name_is_no_row(name):
    """What somebody else counts in our store is left out."""
    told = read_name(name)
    assert told is None or told[0] == "hits"
    assert name.count("|") in (2, 3) or told is None


def test_rows_of_a_day_are_bounded(open_cache, monkeypatch):
    """Past a number of rows, new ones are counted as "other": a stage made of a user's text fills no memory."""
    monkeypatch.setattr(meter, "MOST_ROWS", 3)
    cache = open_cache()
    for number in range(10):
        ask(cache, number, stage=f"stage {number}")
    ask(cache, 2, stage="stage 2")
    rows = told(cache)
    assert rows.keys() == {"stage 0", "stage 1", "stage 2", "other"}
    assert (rows["other"]["loads"], rows["stage 2"]["hits"]) == (7, 1)


# Tenants


def test_tenant_is_counted_only_where_asked(open_cache, store):
    """No tenant's name leaves the process in a counter or an event, unless the cache was made for it."""
    events = []
    cache = open_cache(observers=[events.append], **store)
    asking = open_cache(observers=[events.append], tenant_usage=True, **store)
    for one in (cache, asking):
        for _ in range(2):
            ask(one, id(one), tenant="acme", stage="s")
        ask(one, id(one), tenant=semcache.SHARED, stage="s")
    assert cache.flush(GUARD)
    assert asking.flush(GUARD)
    lookups = [event.tenant for event in events if event.kind in ("hit", "miss")]
    assert lookups == ["", "", "", "acme", "acme", ""]
    told_rows = told(cache, "tenant")
    assert {tenant: (row["hits"], row["loads"]) for tenant, row in told_rows.items()} == {"": (1, 3), "acme": (1, 1)}


# Stores


def test_processes_sum_into_one_store_and_restarts_change_nothing(open_cache, store):
    """Two caches book on one day; what they booked is told by both, and by one that is opened when they are closed."""
    here, there = open_cache(**store), open_cache(**store)
    ask(here, stage="s", model="m")
    assert here.flush(GUARD)
    for _ in range(3):
        assert ask(there, load=lambda: "new", stage="s", model="m") == "answer"  # the usage is kept with the entry
    here.close()
    there.close()
    for _ in range(2):
        with open_cache(**store) as cache:
            (row,) = cache.usage()
    assert (row.stage, row.model, row.hits, row.loads) == ("s", "m", 3, 1)
    assert (row.saved_prompt_tokens, row.saved_money, row.spent_completion_tokens) == (300, 0.75, 20)
    assert row.saved_seconds != 0


def test_namespaces_are_told_apart(open_cache, store):
    """What another service saved is not ours."""
    ours, theirs = open_cache("ours", **store), open_cache("theirs", **store)
    ask(theirs, stage="s")
    assert theirs.flush(GUARD)
    assert ours.usage() == []


def test_counts_are_booked_while_the_cache_is_used(open_cache, clock, store):
    """Nobody need flush: the thread that follows the log hands over what was counted, some seconds later at most."""
    cache, other = open_cache(**store), open_cache(**store)
    ask(cache, stage="s")
    assert cache.flush(GUARD)
    for _ in range(5):
        ask(cache, stage="s")
    assert told(other)["s"].get("hits") is None
    clock.advance(10)
    deadline = time.monotonic() + GUARD
    while told(other)["s"].get("hits") != 5:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_redis_that_is_away_is_owed_all_counts(open_cache, own_redis):
    """While the server is away nothing is lost, and calls go on; it is told once it is there, each lookup once."""
    server = own_redis()
    server.kill()
    cache = open_cache(redis=server.url)
    for number in range(5):
        ask(cache, number, stage="s")
        cache.flush(GUARD)
    with pytest.raises(TierError, match="refused"):
        cache.usage()
    server.start()
    ask(cache, "more", stage="s")
    assert told(cache)["s"]["loads"] == 6
    with open_cache(redis=server.url) as other:
        assert told(other)["s"]["loads"] == 6


def test_file_that_is_away_is_owed_all_counts(open_cache, tmp_path):
    """The same of a file whose folder cannot be made yet."""
    folder = tmp_path / "folder"
    folder.write_text("in the way")
    cache = open_cache(disk=folder / "cache.db")
    for number in range(5):
        ask(cache, number, stage="s")
        cache.flush(GUARD)
    with pytest.raises(TierError, match="directory"):
        cache.usage()
    folder.unlink()
    folder.mkdir(exist_ok=True)  # the writer may have been quicker
    deadline = time.monotonic() + GUARD
    while True:  # the writer looks for the file again behind the call that asks for it
        assert time.monotonic() < deadline
        cache.flush(GUARD)
        try:
            if cache.usage():
                break
        except TierError:
            continue
    with open_cache(disk=folder / "cache.db") as other:
        deadline = time.monotonic() + GUARD
        while told(other)["s"]["loads"] != 5:
            assert time.monotonic() < deadline
            cache.flush(GUARD)


def test_child_of_a_fork_books_its_own_counts_alone(open_cache, store):
    """What the parent has counted and not booked yet is booked once, by the parent."""
    cache = open_cache(**store)
    for number in range(5):
        ask(cache, number, stage="s")
    child = os.fork()
    if not child:
        try:
            ask(cache, "child", stage="s")
            cache.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    ask(cache, 0, stage="s")
    assert cache.flush(GUARD)
    row = told(cache)["s"]
    assert (row["loads"], row["hits"]) == (6, 1)
