"""Many calls of a client as one: only what is missing is sent, each call once, so many at a time."""

from __future__ import annotations

import asyncio
import threading

import openai
import pytest
from dialects import Asking, calls_of
from instruments import GUARD

import semcache
from semcache.testing import Reply
from semcache.testing.protocols import last_text


@pytest.fixture
def asking(asking_by_messages):
    return asking_by_messages


# What is sent


def test_only_what_is_missing_is_sent_and_each_call_once(asking, models, cache):
    """Answers are the SDK's own, in order; what was asked before is found, and equal calls are one."""
    client = asking.cached(models, cache)
    known = asking.ask(client, "a", max_tokens=100)
    answers = asking.call(semcache.gather, client, calls_of("abcbab"))
    assert asking.texts(answers) == [f"Answer to: {text}" for text in "abcbab"]
    assert {type(answer) for answer in answers} == {asking.types()[0]}
    assert models.calls == 3
    assert answers[0] == known
    assert answers[1] == answers[3] == answers[5]
    assert asking.call(semcache.gather, client, calls_of("abc")) == answers[:3]
    assert asking.ask(client, "c", max_tokens=100) == answers[2]
    assert models.calls == 3


def test_equal_calls_are_given_answers_of_their_own(asking, models, cache):
    """Law 9: who alters an answer alters nobody else's, however it came."""
    models.reply = lambda _: Reply("told", extra={"of": {"vendor": ["x"]}})
    client = asking.cached(models, cache)
    first, second, third = asking.call(semcache.gather, client, calls_of("aaa"))
    assert first == second == third
    second.of["vendor"].append("y")
    assert first.of == third.of == {"vendor": ["x"]}
    assert asking.call(semcache.gather, client, calls_of("a"))[0].of == {"vendor": ["x"]}


def test_what_is_not_kept_is_given_to_all_equal_calls(asking, models, cache):
    """A refusal is kept nowhere, and yet three equal calls are one."""
    models.reply = lambda _: Reply("I cannot say.", "refusal")
    client = asking.cached(models, cache)
    first, second, _ = asking.call(semcache.gather, client, calls_of("aaa"))
    assert first == second
    assert models.calls == 1
    asking.call(semcache.gather, client, calls_of("a"))
    assert models.calls == 2


def test_what_stands_in_a_store_takes_one_trip(plain, models, open_cache, redis_url):
    """Of 100 calls 90 stand in Redis: one command finds them, and 10 calls are sent."""
    cache = open_cache(redis=redis_url, memory=0)
    client = plain.cached(models, cache)
    asked = [f"question {number}" for number in range(100)]
    semcache.gather(client, calls_of(asked[:90]))
    assert cache.flush(GUARD)
    trips = []
    exchange = cache.redis._store.link.exchange
    cache.redis._store.link.exchange = lambda commands, timeout: trips.append(commands) or exchange(commands, timeout)
    answers = semcache.gather(client, calls_of(asked))
    assert plain.texts(answers) == [f"Answer to: {text}" for text in asked]
    assert models.calls == 100
    assert [len(commands[0]) for commands in trips[:1]] == [101]  # MGET and its keys
    assert len(trips) == 11  # and each that is missing is looked up once more, behind its flight


def test_trip_that_fails_costs_no_call_of_the_model(plain, models, open_cache, redis_url):
    """Law 10: where all at once is too much for the store's time, each is asked for alone before it is sent."""
    cache = open_cache(redis=redis_url, memory=0)
    client = plain.cached(models, cache)
    first = semcache.gather(client, calls_of("abc"))
    assert cache.flush(GUARD)
    exchange = cache.redis._store.link.exchange

    def late(commands, timeout):
        if commands[0][0] == "MGET":
            raise TimeoutError
        return exchange(commands, timeout)

    cache.redis._store.link.exchange = late
    assert semcache.gather(client, calls_of("abc")) == first
    assert models.calls == 3
    assert cache.stats().faults == {"redis: late": 1}


def test_no_more_are_under_way_than_may_be(asking, models, cache):
    """So many at a time, and no more: three come together twice, and no fourth while they are there."""
    together, fourth = threading.Barrier(3), threading.Event()
    inside, most, lock = [], [], threading.Lock()

    def reply(body):
        with lock:
            inside.append(body)
            most.append(len(inside))
            if len(inside) > 3:
                fourth.set()
        together.wait(GUARD)
        fourth.wait(0.1)
        with lock:
            inside.remove(body)
        return last_text(body)

    models.reply = reply
    client = asking.cached(models, cache)
    answers = asking.call(semcache.gather, client, calls_of("abcdef"), max_concurrency=3)
    assert asking.texts(answers) == list("abcdef")
    assert max(most) == 3


def test_calls_that_ask_for_answers_that_differ_are_each_sent(asking, models, cache):
    """A bypass is nobody else's: two equal calls with a temperature are two."""
    client = asking.cached(models, cache)
    with pytest.warns(semcache.SemcacheWarning, match="sampling"):
        answers = asking.call(semcache.gather, client, calls_of("aa", temperature=1))
    assert models.calls == 2
    assert answers[0].id != answers[1].id


def test_cache_that_is_off_is_out_of_the_way(asking, models, open_cache):
    """Switched off, every call is sent."""
    client = asking.cached(models, open_cache(mode="off"))
    assert asking.texts(asking.call(semcache.gather, client, calls_of("aa"))) == ["Answer to: a"] * 2
    assert models.calls == 2


def test_nothing_is_nothing(asking, models, cache):
    """No request is no answer; the requests may come of a generator."""
    client = asking.cached(models, cache)
    assert asking.call(semcache.gather, client, []) == []
    assert asking.texts(asking.call(semcache.gather, client, iter(calls_of("a")))) == ["Answer to: a"]


# Errors


def test_first_error_is_raised_and_no_further_call_is_begun(asking, models, cache):
    """Law 7: the SDK's error as it was; what was loaded before it is kept, what was not begun is not sent."""

    def reply(body):
        if last_text(body) == "a":
            models.fail(429)  # the next one
        return last_text(body)

    models.reply = reply
    client = asking.cached(models, cache)
    with pytest.raises(asking.rate_limit):
        asking.call(semcache.gather, client, calls_of("abcb"), max_concurrency=1)
    assert models.calls == 2
    assert asking.texts(asking.call(semcache.gather, client, calls_of("abc"))) == list("abc")
    assert models.calls == 4


def test_errors_stand_in_their_places_where_that_is_asked_for(asking, models, cache):
    """With return_errors the others are answered, equal calls share their error, and it is not kept."""

    def reply(body):
        if last_text(body) == "a":
            models.fail(429)
        return last_text(body)

    models.reply = reply
    client = asking.cached(models, cache)
    first, error, last, again = asking.call(
        semcache.gather, client, calls_of("abcb"), max_concurrency=1, return_errors=True
    )
    assert asking.texts([first, last]) == ["a", "c"]
    assert isinstance(error, asking.rate_limit)
    assert again is error
    assert models.calls == 3
    assert asking.texts(asking.call(semcache.gather, client, calls_of("b"))) == ["b"]


def test_call_that_the_sdk_refuses_fails_in_its_place(asking, models, cache):
    """What the SDK says of a wrong argument it says in that call's place."""
    client = asking.cached(models, cache)
    requests = [*calls_of("a"), *calls_of("b", no_such_thing=1)]
    answer, error = asking.call(semcache.gather, client, requests, return_errors=True)
    assert asking.text(answer) == "Answer to: a"
    assert isinstance(error, TypeError)
    assert "no_such_thing" in str(error)


def test_what_is_no_gathering_is_told_at_once(asking, models, cache):
    """Wrong settings, streams and what is no call raise before anything is asked, in both colours."""
    client = asking.cached(models, cache)
    for settings in ({"max_concurrency": 0}, {"pack": 2}, {"pack": 0, "join": len, "split": len}, {"join": len}):
        with pytest.raises(semcache.ConfigurationError):
            semcache.gather(client, calls_of("a"), **settings)
    with pytest.raises(semcache.ConfigurationError, match="cached"):
        semcache.gather(asking.client(models), calls_of("a"))
    streamed = [*calls_of("a"), *calls_of("b", stream=True)]
    for wrong, said in (
        ([{"model": "m"}], "messages="), (["a"], "request 0"), (streamed, "request 1"),
        (calls_of("a", extra_body={"stream": True}), "stream"),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=said):
            semcache.gather(client, wrong)
    assert models.calls == 0


# Others, and colours


def test_calls_that_others_have_begun_are_waited_for(plain, models, cache):
    """Law 6: what another thread loads is not sent, and what it waits for may be ours."""
    client = plain.cached(models, cache)
    begun, go = threading.Event(), threading.Event()

    def reply(body):
        if last_text(body) == "a":
            begun.set()
            assert go.wait(GUARD)
        else:
            go.set()
        return last_text(body)

    models.reply = reply
    other = threading.Thread(target=lambda: plain.create(client, "a", max_tokens=100))
    other.start()
    assert begun.wait(GUARD)
    assert plain.texts(semcache.gather(client, calls_of("ab"))) == ["a", "b"]
    other.join(GUARD)
    assert models.calls == 2


def test_two_gatherings_send_each_call_once(plain, models, cache):
    """Law 6: two threads that gather the same, in packs or not, share what each of them loads."""
    client = plain.cached(models, cache)
    models.reply = lambda body: last_text(body).upper()
    answers = {}

    def work(number, settings):
        asked = "abcdefgh" if number % 2 else "hgfedcba"
        answers[number] = "".join(plain.texts(semcache.gather(client, calls_of(asked), **settings)))

    threads = [threading.Thread(target=work, args=(number, {"max_concurrency": 2})) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GUARD)
    assert answers == {number: "ABCDEFGH" if number % 2 else "HGFEDCBA" for number in range(6)}
    assert models.calls == 8


def test_gathering_in_a_loop_does_not_wait_for_a_task_that_it_blocks(models, open_cache):
    """Law 6: who blocks the very loop whose task leads a call sends it itself, and never from a thread of its own."""
    cache = open_cache(timeouts=semcache.Timeouts(flight="2s"))
    ahead, behind = Asking("openai", is_async=True), Asking("openai", is_async=False)
    client, blocking = ahead.cached(models, cache), behind.cached(models, cache)

    async def main():
        first = asyncio.create_task(ahead.create(client, "a", max_tokens=100))
        await asyncio.sleep(0)
        assert len(cache.chain.flights) == 1
        gathered = semcache.gather(blocking, calls_of("abc"))
        return [await first, *gathered]

    with semcache.trace() as traced:
        answers = ahead.run(main())
    assert ahead.texts(answers) == [f"Answer to: {text}" for text in "aabc"]
    assert [event.faults for event in traced.lookups] == [[]] * 4
    assert models.calls == 4
    ahead.close()
    behind.close()


def test_who_is_cancelled_leaves_nothing_behind(models, cache):
    """Cancelled, the calls under way have ended, the others are not begun; a later call is answered."""
    asking = Asking("anthropic", is_async=True)
    client = asking.cached(models, cache)
    both, go = threading.Barrier(3), threading.Event()

    def reply(body):
        if not go.is_set():
            both.wait(GUARD)
            assert go.wait(GUARD)
        return last_text(body)

    models.reply = reply

    async def main():
        before = asyncio.all_tasks()
        task = asyncio.create_task(semcache.gather(client, calls_of("abcdef"), max_concurrency=2))
        await asyncio.to_thread(both.wait, GUARD)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(cache.chain.flights) == 0
        assert asyncio.all_tasks() == before
        go.set()
        return await semcache.gather(client, calls_of("ac"))

    assert asking.texts(asking.run(main())) == ["a", "c"]
    assert models.calls == 4
    asking.close()


# What is said of them


def test_context_holds_for_all_calls(asking, models, cache):
    """Tenant, tags and stage are those of the context, and a trace has every lookup."""
    client = asking.cached(models, cache)
    asking.call(semcache.gather, client, calls_of("ab"))
    with semcache.context(tenant="acme", tags=["faq"], stage="bulk"), semcache.trace() as traced:
        asking.call(semcache.gather, client, calls_of("aabc"))
    assert sorted(event.kind for event in traced.lookups) == ["hit", "miss", "miss", "miss"]
    assert {event.stage for event in traced.lookups} == {"bulk"}
    assert models.calls == 5
    assert cache.invalidate(tag="faq") == 3
    asking.call(semcache.gather, client, calls_of("ab"))
    assert models.calls == 5


def test_events_are_those_of_the_calls(asking, models, cache):
    """Each call is a hit or a miss once; equal ones are shared, and the latest is told."""
    client = asking.cached(models, cache)
    asking.call(semcache.gather, client, calls_of("a"))
    with semcache.trace() as traced:
        asking.call(semcache.gather, client, calls_of("abcb"), max_concurrency=1)
        if not asking.is_async:
            assert semcache.last() is traced.lookups[-1]
    told = [(event.kind, event.tier, event.shared) for event in traced.lookups]
    assert told == [("hit", "memory", False), ("miss", None, False), ("miss", None, False), ("hit", "flight", True)]
    assert traced.lookups[3].usage == traced.lookups[1].usage
    stats = cache.stats()
    assert (sum(stats.hits.values()), stats.misses, stats.loads) == (2, 3, 3)


def test_hits_of_the_file_are_told(asking, models, open_cache, tmp_path):
    """What the file has is a hit of its own, for equal calls too."""
    cache = open_cache(memory=0, disk=tmp_path / "answers.db")
    client = asking.cached(models, cache)
    asking.call(semcache.gather, client, calls_of("ab"))
    assert cache.flush(GUARD)
    with semcache.trace() as traced:
        asking.call(semcache.gather, client, calls_of("aba"))
    assert [(event.kind, event.tier, event.shared) for event in traced.lookups] == [("hit", "disk", False)] * 3
    assert models.calls == 2


@pytest.mark.parametrize("name", ["OpenAI", "AsyncOpenAI"])
def test_copies_of_a_client_gather_too(models, cache, name):
    """A copy with other options is a cached client like the first."""
    asking = Asking("openai", is_async=name.startswith("Async"))
    client = asking.cached(models, cache).with_options(timeout=GUARD)
    assert isinstance(client, getattr(openai, name))
    assert asking.texts(asking.call(semcache.gather, client, calls_of("aa"))) == ["Answer to: a"] * 2
    assert models.calls == 1
    asking.close()
