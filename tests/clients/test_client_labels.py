"""What clients answer is compared by the text that its reader sees, in every protocol and form."""

from __future__ import annotations

import pytest
from dialects import OneWay

import semcache
from semcache.policy.label import Label, Source
from semcache.testing import Reply

pytestmark = pytest.mark.semantic


@pytest.mark.parametrize("forms", ["plain", "streamed", "mixed"])
def test_a_clients_answers_are_compared_as_texts(asking, models, open_cache, forms):
    """Ids, times and pieces differ from answer to answer, and say nothing; the text does."""
    cache = open_cache(embedder=OneWay(), tenant=semcache.SHARED, audit=1.0)
    cache.warm()
    client = asking.cached(models, cache)
    replies = {"how do I pay": "By card.", "how can I pay": "By card.", "how might I pay": "By wire."}
    models.reply = lambda told: Reply(next(reply for text, reply in replies.items() if text in repr(told)))
    for number, text in enumerate(replies):
        is_plain = forms == "plain" or (forms == "mixed" and number % 2 == 0)
        (asking.ask if is_plain else asking.read)(client, text)
        cache.flush()
    told = cache.policy.status().families[0]
    assert (told.labels, told.wrong.count) == (2, 1)
    assert told.about.endswith(" m")


@pytest.mark.parametrize("form", ["plain", "streamed"])
def test_an_audited_call_that_fails_is_answered_by_its_near_match(asking, models, open_cache, form):
    """The SDK's error is not the caller's where an answer was at hand; what it was given is stored for nobody."""
    policy = semcache.ErrorBudget(0.05)
    cache = open_cache(embedder=OneWay(), tenant=semcache.SHARED, audit=1.0, policy=policy)
    cache.warm()
    client = asking.cached(models, cache)
    ask = asking.ask if form == "plain" else asking.read
    told = ask(client, "how do i pay")
    cache.flush()
    for number in range(400):
        at = b"%d" % number
        policy.learn(Label(b"some", at, at, "a", "b", 0.99, 0.99, True, Source.AUDIT))
    models.fail(500, times=1)
    again = ask(client, "how can i pay")
    assert models.calls == 2
    assert (asking.event.kind, asking.event.tier, asking.event.faults[-1][0]) == ("hit", "semantic", "origin")
    says = asking.text if form == "plain" else asking.streamed
    assert says(again) == says(told)
