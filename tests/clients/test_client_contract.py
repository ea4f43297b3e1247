"""The contract of a cached client, in every protocol, both colours and every tier: the SDK's types, the model's words.

The real SDKs over real HTTP; what the model was asked is counted where it stands.
"""

from __future__ import annotations

import re

import pytest
from dialects import OneWay

import semcache

FIRST = "Do you ship to Austria?"


def _without_ids(told):
    """Return all that an answer or a chunk says, but for the number of the call in its ids."""
    return re.sub(r"(?<=[-_])\d+'", "'", repr(told.to_dict()))


@pytest.fixture
def second(tier):
    """What is asked the second time: the same, or, where the semantic tier is to answer, another text."""
    return "Is Austria shipped to?" if tier == "semantic" else FIRST


def test_plain_answer_is_found_again(asking, models, hitting, tier, second):
    """A hit is the SDK's own answer, equal to the first in all it says, and the model is asked once."""
    client = asking.cached(models, hitting)
    first = asking.ask(client, FIRST)
    hitting.flush()
    found = asking.ask(client, second)
    assert (asking.event.kind, asking.event.tier) == ("hit", tier)
    assert type(found) is type(first) is asking.types()[0]
    assert found == first
    assert found.to_dict() == first.to_dict()
    assert asking.text(found) == f"Answer to: {FIRST}"
    assert found._request_id == first._request_id == "req_1"
    assert models.calls == 1


def test_stream_is_found_again(asking, models, hitting, tier, second):
    """A stream is replayed chunk by chunk, as it came, and the model is asked once."""
    client = asking.cached(models, hitting)
    first = asking.read(client, FIRST, usage=True)
    assert asking.event.kind == "miss"
    hitting.flush()
    found = asking.read(client, second, usage=True)
    assert (asking.event.kind, asking.event.tier) == ("hit", tier)
    assert found == first
    assert [type(chunk) for chunk in found] == [type(chunk) for chunk in first]
    assert asking.streamed(found) == f"Answer to: {FIRST}"
    assert models.calls == 1


def test_plain_call_and_stream_share_an_entry(asking, models, hitting, tier, second):
    """What was loaded plainly is replayed as a stream."""
    client = asking.cached(models, hitting)
    answer = asking.ask(client, FIRST)
    hitting.flush()
    chunks = asking.read(client, second, usage=True)
    assert asking.event.tier == tier
    assert asking.streamed(chunks) == asking.text(answer)
    assert models.calls == 1


def test_stream_with_its_usage_serves_a_plain_call(asking, models, hitting, tier, second):
    """What was streamed with its usage is one answer, with that usage."""
    client = asking.cached(models, hitting)
    chunks = asking.read(client, FIRST, usage=True)
    hitting.flush()
    answer = asking.ask(client, second)
    assert asking.event.tier == tier
    assert type(answer) is asking.types()[0]
    assert asking.text(answer) == asking.streamed(chunks)
    assert _without_ids(answer) == _without_ids(asking.ask(asking.client(models), FIRST))
    assert answer.id.endswith("1")
    assert models.calls == 2  # the second was the uncached client's


def test_answer_is_that_of_the_client_itself(asking, models, open_cache):
    """A cached client gives what the client gives, at a miss and at a hit, plain and streamed."""
    cached, bare = asking.cached(models, open_cache()), asking.client(models)
    plain = [_without_ids(asking.ask(client)) for client in (bare, cached, cached)]
    streamed = [[_without_ids(chunk) for chunk in asking.read(client, "else")] for client in (bare, cached, cached)]
    assert models.calls == 4
    assert plain[0] == plain[1] == plain[2]
    assert streamed[0] == streamed[1] == streamed[2]


@pytest.mark.semantic
def test_nothing_of_another_conversation_is_served(asking, models, open_near):
    """Where all texts look the same, only what is equal in all else is near: an earlier turn, a prompt, a model."""
    cache = open_near(embedder=OneWay())
    client = asking.cached(models, cache)

    def turns(*said):
        roles = ["user", "assistant"] * len(said)
        return [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]

    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    other = {"type": "image_url", "image_url": {"url": "data:image/png;base64,BBBB"}}
    calls = [
        ("How much?", {}),
        (turns("Do you sell tea?", "Yes.", "How much?"), {}),
        (turns("Do you sell coffee?", "Yes.", "How much?"), {}),
        ("How much?", {"model": "other"}),
        ("How much?", {"temperature": 0}),
        ("How much?", {"top_p": 0.5}),
        ("How much?", {"extra_body": {"unknown": 1}}),
        ("How much?", {"extra_headers": {"x-place": "Vienna"}}),
        ("How much?", {"extra_query": {"place": "Graz"}}),
        ([{"role": "user", "content": [image, {"type": "text", "text": "How much?"}]}], {}),
        ([{"role": "user", "content": [other, {"type": "text", "text": "How much?"}]}], {}),
    ]
    for text, parameters in calls:
        asking.ask(client, text, **parameters)
        cache.flush()
        assert asking.event.kind == "miss", (text, parameters)
    assert models.calls == len(calls)
    asking.ask(client, "What does it cost?")
    assert asking.event.tier == "semantic"
    with semcache.context(tenant="acme"):
        asking.ask(client, "What does it cost?")
    assert models.calls == len(calls) + 1
