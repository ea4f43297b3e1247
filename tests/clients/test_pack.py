"""Calls that go in a pack: one call of the model, and each an answer of its own, as if it had been sent alone."""

from __future__ import annotations

import asyncio
import threading
import warnings

import pytest
from dialects import Asking, calls_of
from hypothesis import given, settings
from hypothesis import strategies as st
from instruments import GUARD

import semcache
from semcache.testing import Reply
from semcache.testing.protocols import last_text
from semcache.wrap.clients.shares import shares_of_usage


@pytest.fixture
def asking(asking_by_messages):
    return asking_by_messages


@pytest.fixture(autouse=True)
def _answers_line_by_line(models):
    """A model that answers each line of what it is asked."""
    models.reply = lambda body: "\n".join(f"Answer to: {line}" for line in last_text(body).split("\n"))


def join(requests):
    """Put the questions into one, a line each."""
    lines = [request["messages"][-1]["content"] for request in requests]
    return {**requests[0], "messages": [{"role": "user", "content": "\n".join(lines)}]}


@pytest.fixture
def pack(asking):
    """Gather in packs, in the client's colour."""

    def gather(client, requests, most=4, **settings):
        settings = {"join": join, "split": lambda answer, _: asking.text(answer).split("\n")} | settings
        return asking.call(semcache.gather, client, requests, pack=most, **settings)

    return gather


def sent(models):
    """Return the texts of the calls so far, in order."""
    return sorted(last_text(asked.body) for asked in models.asked)


def expected(texts):
    return [f"Answer to: {text}" for text in texts]


def test_missing_calls_are_sent_together_and_each_is_found_alone(asking, models, cache, pack):
    """Ten questions of which one is known and two are equal: two packs, and ten entries."""
    client = asking.cached(models, cache)
    asking.ask(client, "d", max_tokens=100)
    answers = pack(client, calls_of("abcdefghia"))
    assert asking.texts(answers) == expected("abcdefghia")
    assert {type(answer) for answer in answers} == {asking.types()[0]}
    assert sent(models) == ["a\nb\nc\ne", "d", "f\ng\nh\ni"]
    assert asking.ask(client, "c", max_tokens=100) == answers[2]
    assert pack(client, calls_of("ihg")) == answers[8:5:-1]
    assert models.calls == 3


def test_answers_of_a_pack_have_ids_and_shares_of_its_usage(asking, models, cache, pack):
    """Ids are told apart, and tokens add up to what the pack has used, in the answers and in what is booked."""
    client = asking.cached(models, cache)
    with semcache.trace() as traced:
        answers = pack(client, calls_of(["a a a", "b", "c"]))
    bare = asking.ask(asking.client(models), "a a a\nb\nc", max_tokens=100)
    assert len({answer.id for answer in answers}) == 3
    names = [name for name, told in bare.usage.to_dict().items() if isinstance(told, int)]
    assert len(names) > 1
    for name in names:
        assert sum(getattr(answer.usage, name) for answer in answers) == getattr(bare.usage, name)
    spent = sum(event.usage.prompt_tokens + event.usage.completion_tokens for event in traced.lookups)
    assert spent == sum(getattr(bare.usage, name) for name in names if name != "total_tokens")
    assert {event.kind for event in traced.lookups} == {"miss"}


@settings(max_examples=30)
@given(usage=st.dictionaries(st.text("abc_"), st.integers(0, 9999)), number=st.integers(1, 9))
def test_shares_add_up(usage, number):
    """Whatever is counted, the shares are the whole; a total is the sum of its parts in each."""
    parts = {"prompt_tokens": usage.get("a", 7), "completion_tokens": usage.get("b", 3)}
    whole = usage | parts | {"total_tokens": sum(parts.values()), "tier": "x", "details": {"cached": 5, "none": None}}
    told = shares_of_usage(whole, number)
    assert len(told) == number
    assert all(sum(share[name] for share in told) == whole[name] for name in usage.keys() | parts.keys())
    assert sum(share["details"]["cached"] for share in told) == 5
    assert all(
        share["total_tokens"] == share["prompt_tokens"] + share["completion_tokens"] and share["tier"] == "x"
        for share in told
    )
    assert sum(share["total_tokens"] for share in told) == whole["total_tokens"]


def test_only_what_agrees_in_all_but_the_text_is_packed(asking, models, cache, pack):
    """Law 2: another model, another turn before, another parameter, or no text of the user's: no common pack."""
    client = asking.cached(models, cache, tenant="user" if asking.package == "openai" else None, history="last:0")
    turns = [{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "Yes."}]
    spoken = [{**one, "messages": turns + one["messages"]} for one in calls_of("ef")]
    others = [
        {**one, "messages": [{**turns[0], "content": "Rum?"}, turns[1], *one["messages"]]} for one in calls_of("n")
    ]
    ending = [{**one, "messages": one["messages"] + turns[1:]} for one in calls_of("gh")]
    requests = [*calls_of("ab"), *calls_of("cd", model="other"), *spoken, *others, *ending, *calls_of("ij", top_p=0.5)]
    said = ["Yes.", "Yes.", "a\nb", "c\nd", "e\nf", "i\nj", "n"]
    if asking.package == "openai":
        requests = [{"user": "one", **request} for request in requests]
        requests += [*calls_of("kl", user="acme"), *calls_of("m", user="other")]
        said += ["k\nl", "m"]
    pack(client, requests)
    assert sent(models) == sorted(said)


def test_context_is_that_of_the_pack(asking, models, cache, pack):
    """What a tenant's pack has brought is that tenant's alone."""
    client = asking.cached(models, cache)
    with semcache.context(tenant="acme", tags=["faq"]):
        pack(client, calls_of("ab"))
        pack(client, calls_of("ab"))
    assert models.calls == 1
    pack(client, calls_of("a"))
    assert models.calls == 2
    assert cache.invalidate(tag="faq") == 2


def test_split_may_return_answers(asking, models, cache, pack):
    """The SDK's own, or plain data, with whatever the user puts in."""
    client = asking.cached(models, cache)

    def split(answer, number):
        whole = [answer.to_dict() | {"id": f"mine-{place}", "vendor": place} for place in range(number)]
        return [whole[0], asking.types()[0].model_validate(whole[1])]

    answers = pack(client, calls_of("ab"), split=split)
    assert [(answer.id, answer.vendor) for answer in answers] == [("mine-0", 0), ("mine-1", 1)]
    assert pack(client, calls_of("ab")) == answers
    assert models.calls == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"split": lambda *_: ["one"]}, "list of 3"), ({"split": lambda *_: "abc"}, "a str"),
        ({"split": lambda *_: [1, 2, 3]}, "to_dict"), ({"split": lambda *_: [{}, {}, {}]}, "split="),
        ({"split": lambda _: []}, "split="), ({"join": lambda _: None}, "NoneType"),
        ({"join": lambda _: {"model": "m"}}, "join="), ({"join": lambda asked: {**asked[0], "stream": True}}, "stream"),
        ({"join": lambda asked: {**asked[0], "no_such_thing": 1}}, "no_such_thing"),
    ],
)  # fmt: skip
def test_pack_that_comes_to_nothing_is_sent_one_by_one(asking, models, cache, pack, settings, said):
    """Law 10: what join or split does wrong costs a warning and the pack; each call is answered, and kept, alone."""
    client = asking.cached(models, cache)
    with semcache.trace() as traced, pytest.warns(semcache.SemcacheWarning, match="one by one") as warned:
        answers = pack(client, calls_of("abc"), **settings)
    assert asking.texts(answers) == expected("abc")
    assert said in str(warned[0].message)
    in_vain = 1 if "split" in settings else 0
    assert models.calls == 3 + in_vain
    assert [event.kind for event in traced.lookups].count("miss") == 3
    assert sum(event.kind == "bypass" and event.usage is not None for event in traced.lookups) == in_vain
    assert sum(name.startswith("pack: ") for name in cache.stats().faults) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        assert pack(client, calls_of("abc"), **settings) == answers
        pack(client, calls_of("de"), **settings)


def test_join_that_alters_what_it_is_given_alters_no_call(asking, models, cache, pack):
    """Law 1: what is sent for a call is what its caller gave, and its key is that."""

    def careless(requests):
        requests[0]["messages"][0]["content"] = "altered"
        return join(requests)

    client = asking.cached(models, cache)
    requests = calls_of("ab")
    with pytest.warns(semcache.SemcacheWarning, match="one by one"):
        answers = pack(client, requests, join=careless, split=lambda *_: [])
    assert requests == calls_of("ab")
    assert asking.texts(answers) == expected("ab")
    assert sent(models) == ["a", "altered\nb", "b"]


@pytest.mark.parametrize("finish", ["length", "filter"])
def test_pack_that_was_cut_or_filtered_is_not_kept(asking, models, cache, pack, finish):
    """Law 7: why the pack's answer is not worth keeping holds for each of its calls, and each says it."""
    client = asking.cached(models, cache)
    whole = asking.ask(asking.client(models), "a").to_dict()  # which ended well, whatever the pack's answer did
    models.reply = lambda body: Reply("\n".join(expected(last_text(body).split("\n"))), finish)
    for calls, split in (
        (2, lambda answer, _: asking.text(answer).split("\n")),
        (3, lambda _, number: [whole] * number),
    ):
        with semcache.trace() as traced:
            assert asking.texts(pack(client, calls_of("abc"), split=split))[0] == "Answer to: a"
        assert models.calls == calls
        assert len(traced.lookups) == 3
        assert all(event.reason.startswith("not kept: ") for event in traced.lookups)


def test_error_of_a_pack_is_the_error_of_its_calls(asking, models, cache, pack):
    """What the SDK raises for the pack is raised, or stands in the places of its calls, and only there."""
    client = asking.cached(models, cache)
    models.fail(429)
    with pytest.raises(asking.rate_limit):
        pack(client, calls_of("ab"))
    models.fail(429)
    told = pack(client, calls_of("abcde"), most=3, max_concurrency=1, return_errors=True)
    assert all(isinstance(error, asking.rate_limit) for error in told[:3])
    assert asking.texts(told[3:]) == expected("de")
    assert models.calls == 3


def test_lone_call_is_sent_as_it_is(asking, models, cache, pack):
    """One that has nobody to go with is not joined."""
    client = asking.cached(models, cache)
    answers = pack(client, calls_of("abc"), most=2)
    assert sent(models) == ["a\nb", "c"]
    assert answers[2].id == asking.ask(client, "c", max_tokens=100).id
    assert "-3" not in answers[2].id[-4:]


def test_predicates_are_asked_of_each_answer(asking, models, cache, pack):
    """`when` says of each of a pack's answers whether it is kept."""
    client = asking.cached(models, cache, when=lambda answer: "b" not in asking.text(answer))
    pack(client, calls_of("abc"))
    pack(client, calls_of("abc"))
    assert sent(models) == ["a\nb\nc", "b"]


def test_calls_in_a_pack_are_waited_for(models, cache):
    """Law 6: who asks for what a pack is loading is given it, and what others load goes in no pack."""
    asking = Asking("openai", is_async=False)
    client = asking.cached(models, cache)
    line_by_line, begun, go = models.reply, threading.Event(), threading.Event()

    def reply(body):
        if "b" in last_text(body):
            begun.set()
            assert go.wait(GUARD)
        else:
            go.set()
        return line_by_line(body)

    models.reply = reply
    told = []
    settings = {"pack": 4, "join": join, "split": lambda answer, _: asking.text(answer).split("\n")}
    first = threading.Thread(target=lambda: told.extend(semcache.gather(client, calls_of("abc"), **settings)))
    first.start()
    assert begun.wait(GUARD)
    with semcache.trace() as traced:
        answers = semcache.gather(client, calls_of("cde"), **settings)
    first.join(GUARD)
    assert asking.texts(told) + asking.texts(answers) == expected("abccde")
    assert answers[0] == told[2]
    assert sent(models) == ["a\nb\nc", "d\ne"]
    assert [event.kind for event in traced.lookups] == ["miss", "miss", "hit"]
    asking.close()


def test_follower_of_a_pack_that_comes_to_nothing_is_answered(models, cache):
    """Law 6: who waits for a call of a pack that is given up boards anew, and no error of ours reaches it."""
    asking = Asking("anthropic", is_async=True)
    client = asking.cached(models, cache)
    begun, go = threading.Event(), threading.Event()
    line_by_line = models.reply

    def reply(body):
        if "\n" in last_text(body):
            begun.set()
            assert go.wait(GUARD)
        return line_by_line(body)

    models.reply = reply

    async def main():
        packed = asyncio.create_task(
            semcache.gather(client, calls_of("abc"), pack=3, join=join, split=lambda *_: []),
        )
        await asyncio.to_thread(begun.wait, GUARD)
        other = asyncio.create_task(asking.create(client, "b", max_tokens=100))
        await asyncio.to_thread(go.set)  # meanwhile it boards
        return [*await packed, await other]

    with pytest.warns(semcache.SemcacheWarning, match="one by one"):
        answers = asking.run(main())
    assert asking.texts(answers) == expected("abcb")
    assert answers[1] == answers[3]
    assert models.calls == 4
    asking.close()


@pytest.mark.semantic
def test_near_match_goes_in_no_pack(asking, models, open_near, pack):
    """What has a near match is not sent, and is told once, also where the rest of its pack comes to nothing."""
    cache = open_near({"a": 0, "b": 5, "c": 90, "d": 180})
    client = asking.cached(models, cache)
    asking.ask(client, "a", max_tokens=100)
    cache.flush()
    with semcache.trace() as traced, pytest.warns(semcache.SemcacheWarning, match="one by one"):
        assert asking.texts(pack(client, calls_of("bcd"), split=lambda *_: [])) == expected("acd")
    assert sorted(str(event.tier) for event in traced.lookups) == ["None", "None", "None", "semantic"]
    assert sent(models) == ["a", "c", "c\nd", "d"]


@pytest.mark.parametrize(
    ("altered", "why"), [({"model": "big"}, "another model"), ({"temperature": 1}, "sampling: temperature")]
)
def test_pack_asks_what_its_calls_ask(asking, models, cache, pack, altered, why):
    """Law 1: an answer of another model, or one that was drawn, is kept under no call's key."""
    client = asking.cached(models, cache)
    with pytest.warns(semcache.SemcacheWarning, match=why):
        answers = pack(client, calls_of("ab"), join=lambda requests: join(requests) | altered)
    assert asking.texts(answers) == expected("ab")
    assert {answer.model for answer in answers} == {"m"}
    assert models.calls == 2


def test_pack_whose_answer_rests_on_what_the_server_keeps_is_not_sent(claude, models, cache):
    """Law 1: what the server keeps, and may change, is in no key of the calls that `join` lets ask about it."""
    client = claude.cached(models, cache)
    with pytest.warns(semcache.SemcacheWarning, match="state of the server: container"):
        semcache.gather(
            client, calls_of("ab"), pack=2, join=lambda requests: join(requests) | {"container": "box_1"},
            split=lambda answer, _: claude.text(answer).split("\n"),
        )  # fmt: skip
    assert sent(models) == ["a", "b"]
