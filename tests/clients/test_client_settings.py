"""What a cached client was told wrongly, or not at all: nobody is given another's answer, and the mend is said."""

from __future__ import annotations

import openai
import pytest
from dialects import ASKED

import semcache
from semcache.testing import Reply


def test_call_that_does_not_say_whose_it_is_goes_by_the_cache(plain, models, cache):
    """A parameter that says the tenant, and is missing or misspelt, makes no two users share an answer."""
    client = plain.cached(models, cache, tenant="usr")
    with pytest.warns(semcache.SemcacheWarning, match="no parameter 'usr'"):
        plain.ask(client, ASKED, user="a")
    assert (plain.event.kind, plain.event.reason) == ("bypass", "unkeyable")
    plain.ask(client, ASKED, user="b")
    assert models.calls == 2
    for user in ("a", "b", "a"):
        plain.ask(client, ASKED, extra_body={"usr": user})
    assert models.calls == 4


@pytest.mark.parametrize(
    ("settings", "mend"),
    [
        ({"documents": lambda answer: ["a"]}, "pipeline"),
        ({"tenant": ""}, "tenant="),
        ({"ignore": "messages"}, "messages"),
        ({"ignore": ["seed", "model"]}, "model"),
        ({"ignore": 5}, "ignore="),
        ({"tags": 5}, "tags="),
    ],
    ids=["documents", "tenant", "messages", "model", "ignored number", "tag number"],
)
def test_what_cannot_be_meant_is_refused(plain, models, cache, settings, mend):
    """A setting that would be ignored, or give one call another's answer, is an error that says so."""
    with pytest.raises(semcache.ConfigurationError, match=mend):
        plain.cached(models, cache, **settings)


def test_client_is_given_first_and_made(models, cache):
    """A class, a module, or the cache in the first place: the message says what to write."""
    with pytest.raises(semcache.ConfigurationError, match=r"OpenAI\(\), cache"):
        semcache.cached(openai.OpenAI, cache)
    with pytest.raises(semcache.ConfigurationError, match="client first"):
        semcache.cached(cache, openai.OpenAI(base_url=models.openai_url, api_key="k"))
    for wrong in (openai, "client", 5):
        with pytest.raises(semcache.ConfigurationError, match="takes a client"):
            semcache.cached(wrong, cache)


def test_explain_tells_why_a_call_goes_by_the_cache(plain, models, cache):
    """What is never looked up is no miss."""
    client = plain.cached(models, cache)
    asked = {"model": "m", "messages": [{"role": "user", "content": ASKED}]}
    told = client.explain(**asked, temperature=1)
    assert told.said == [("memory", "not asked: sampling: temperature")]
    assert client.explain(**asked, temperature=0).said == [("memory", "miss")]
    anyhow = plain.cached(models, cache, sampling="any")
    assert anyhow.explain(**asked, temperature=1).said == [("memory", "miss")]


def test_plain_answer_is_replayed_word_by_word_where_a_rate_is_asked_for(asking, models, cache, clock):
    """What was loaded plainly comes in one piece at once, or, at a rate, in pieces that a reader can watch."""
    text = "Yes, we ship to all of Austria, within three days; to Tyrol it takes four."
    models.reply = lambda _: Reply(text)
    client = asking.cached(models, cache)
    asking.ask(client, ASKED)
    at_once = asking.read(client, ASKED, usage=True)
    before = clock.monotonic()
    paced = asking.read(asking.cached(models, cache, replay_rate=5), ASKED, usage=True)
    assert asking.streamed(paced) == asking.streamed(at_once) == text
    assert len(paced) == len(at_once) + len(text.split()) - 1
    assert clock.monotonic() - before == pytest.approx((len(paced) - 1) / 5)
    assert models.calls == 1


def test_predicate_that_raises_is_told_once(plain, models, cache):
    """Nothing is kept where when= fails, and somebody should know."""
    client = plain.cached(models, cache, when=lambda answer: answer["x"])
    with pytest.warns(semcache.SemcacheWarning, match="when= raised"):
        plain.ask(client, ASKED)
    plain.ask(client, ASKED)
    assert models.calls == 2


def test_warnings_name_the_users_own_line(plain, models, cache):
    """The SDK's code stands between us and who called: a warning names whoever called the SDK."""
    client = plain.cached(models, cache, tenant="usr")
    with pytest.warns(semcache.SemcacheWarning) as told:
        plain.ask(client, ASKED)
    assert told[0].filename.endswith("dialects.py")


def test_prices_of_stats_are_those_that_made_its_money(plain, models, open_cache):
    """The day beside the money is that of the table it was made with."""
    table = {"here": {"as_of": "2026-11-15", "models": {"m": {"input": 1.0, "output": 2.0}}}}
    cache = open_cache(prices={"providers": table})
    plain.ask(plain.cached(models, cache), ASKED)
    assert cache.stats().prices == "USD 2026-11-15"
