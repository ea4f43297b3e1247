"""OpenAI's embeddings on a cached client: each input by itself, only what is missing is sent, in the SDK's types."""

from __future__ import annotations

import asyncio
import base64
import struct
from contextlib import closing

import openai
import pytest
from dialects import Asking
from instruments import GUARD
from openai.types import CreateEmbeddingResponse

import semcache
from semcache.testing import Reply
from semcache.testing.protocols import vector_of

STORES = ["memory", "disk", "redis"]


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def asking(request):
    """OpenAI's client in each colour."""
    with closing(Asking("openai", request.param)) as made:
        yield made


@pytest.fixture(params=STORES)
def cache(request, open_cache, tmp_path):
    """A cache whose answers are found in one tier."""
    if request.param == "memory":
        return open_cache()
    where = tmp_path / "cache.db" if request.param == "disk" else request.getfixturevalue("redis_url")
    return open_cache(memory=0, **{request.param: where})


@pytest.fixture
def quick(open_cache):
    """A cache in memory."""
    return open_cache()


def embed(asking, client, told, **parameters):
    """Call the client's own method, and note how its last input was answered."""
    return asking.call(client.embeddings.create, **{"model": "m", "input": told} | parameters)


def sent(models):
    """What each request to the server asked for."""
    return [asked.body["input"] for asked in models.asked]


def test_only_the_missing_inputs_are_sent_once(asking, models, cache):
    """In one request, in the caller's order, duplicates once; the answer is as the uncached client's own."""
    plain, client = asking.client(models), asking.cached(models, cache)
    embed(asking, client, ["a", "b"])
    assert cache.flush(GUARD)
    texts = ["c", "b", "d", "a", "c"]
    found = embed(asking, client, texts)
    assert cache.flush(GUARD)
    again = embed(asking, client, texts)
    assert sent(models) == [["a", "b"], ["c", "d"]]
    expected = embed(asking, plain, texts)
    assert type(found) is CreateEmbeddingResponse
    assert found.to_dict() == again.to_dict() == expected.to_dict()
    assert [row.embedding for row in found.data] == [vector_of(text, 16) for text in texts]


def test_one_text_is_the_same_entry_as_in_a_list(asking, models, quick):
    """A str is sent as a str, and found for a list."""
    client = asking.cached(models, quick)
    assert embed(asking, client, "a").data[0].embedding == vector_of("a", 16)
    assert embed(asking, client, ["a", "b"]).data[0].embedding == vector_of("a", 16)
    assert sent(models) == ["a", ["b"]]


@pytest.mark.parametrize("tokens", [[1, 2, 3], [[1, 2], [3]]], ids=["one", "several"])
def test_tokens_are_keyed_exactly(asking, models, quick, tokens):
    """A list of tokens is an input; several are several, and none is the text that looks like it."""
    client = asking.cached(models, quick)
    first, again = embed(asking, client, tokens), embed(asking, client, tokens)
    assert first.to_dict() == again.to_dict()
    assert sent(models) == [tokens]
    embed(asking, client, "[1, 2, 3]")
    embed(asking, client, [1, 2])
    assert sent(models)[1:] == (["[1, 2, 3]", [1, 2]] if tokens == [1, 2, 3] else ["[1, 2, 3]"])


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_encoding_is_as_it_was_asked_for(asking, models, quick, encoding):
    """Base64 stays text of the same bytes, float a list; the two are entries of their own."""
    client = asking.cached(models, quick)
    found = [embed(asking, client, ["a"], encoding_format=encoding).data[0].embedding for _ in range(2)]
    expected = vector_of("a", 16)
    if encoding == "base64":
        assert struct.unpack("<16f", base64.b64decode(found[1])) == tuple(expected)
    else:
        assert found[1] == expected
    assert found[0] == found[1]
    assert models.calls == 1
    embed(asking, client, ["a"])  # the SDK asks for base64 by itself
    assert models.calls == (1 if encoding == "base64" else 2)


def test_what_changes_a_vector_is_in_the_key_and_the_user_is_not(asking, models, quick):
    """Law 1: model, dimensions, headers, extra parameters; `user` and tracing are known to change nothing."""
    client = asking.cached(models, quick)
    embed(asking, client, "a")
    embed(asking, client, "a", user="somebody", extra_headers={"x-request-id": "7"}, timeout=5)
    assert models.calls == 1
    others = [
        {"model": "other"}, {"dimensions": 4}, {"extra_headers": {"x-shop": "1"}}, {"extra_body": {"task": "query"}},
        {"extra_query": {"version": "2"}},
    ]  # fmt: skip
    for number, other in enumerate(others, 2):
        embed(asking, client, "a", **other)
        assert models.calls == number
    assert len(embed(asking, client, "a", dimensions=4).data[0].embedding) == 4
    assert models.calls == 6


def test_usage_is_the_sum_of_what_was_recorded(asking, models, quick):
    """The shares of one request add up to what it billed; of hits it is what their load was billed."""
    client = asking.cached(models, quick)
    texts = ["one", "one two three", "one two"]
    assert embed(asking, client, texts).usage.prompt_tokens == 6
    assert embed(asking, client, texts[::-1]).usage.total_tokens == 6
    embed(asking, client, "four more words now")
    assert embed(asking, client, [*texts, "four more words now"]).usage.prompt_tokens == 10
    (row,) = quick.usage(by=("stage", "model"))
    assert (row.stage, row.model, row.spent_prompt_tokens, row.saved_prompt_tokens) == (
        "openai.embeddings",
        "m",
        10,
        16,
    )


def test_error_is_the_sdks_and_what_was_found_is_kept(asking, models, quick):
    """Law 7: nothing of a failed request is kept, and nothing that stands is lost."""
    client = asking.cached(models, quick)
    embed(asking, client, ["a"])
    models.fail(429, retry_after=7)
    with pytest.raises(openai.RateLimitError) as raised:
        embed(asking, client, ["a", "b"])
    assert raised.value.response.headers["retry-after"] == "7"
    embed(asking, client, ["a", "b"])
    assert sent(models) == [["a"], ["b"], ["b"]]


@pytest.mark.parametrize(
    "answer",
    [
        {"data": []},
        {"data": [{"object": "embedding", "index": 5, "embedding": [1.0]}]},
        {"data": [{"object": "embedding", "embedding": [1.0]}]},
        {"data": "none"},
    ],
    ids=["none", "index", "unnumbered", "text"],
)
def test_answer_that_is_no_list_of_embeddings_is_the_callers_and_not_kept(asking, models, quick, answer):
    """Law 10: the caller is given what the SDK makes of it, be it an error, as without a cache."""

    def outcome(client):
        try:
            return embed(asking, client, ["a"]).to_dict(warnings=False)
        except Exception as error:  # noqa: BLE001 - whatever the SDK raises
            return type(error)

    models.reply = lambda body: Reply(extra=answer)
    expected = outcome(asking.client(models))
    client = asking.cached(models, quick)
    with pytest.warns(semcache.SemcacheWarning, match="embeddings"):
        assert outcome(client) == expected
    models.reply = lambda body: Reply()
    assert embed(asking, client, ["a"]).data[0].embedding == vector_of("a", 16)
    assert quick.stats().bypasses["not known as embeddings"] == 1


def test_vendors_fields_and_a_missing_usage_come_back(asking, models, quick):
    """Unknown fields of the answer and of each embedding are as they were; no usage is made up."""

    def told(body):
        rows = [
            {"object": "embedding", "index": place, "embedding": [1.0, 2.0], "score": place}
            for place, _ in enumerate(body["input"])
        ]
        return Reply(extra={"data": rows[::-1], "usage": None, "vendor": "v"})

    models.reply = told
    client = asking.cached(models, quick)
    first, again = embed(asking, client, ["a", "b"]), embed(asking, client, ["b", "a"])
    assert (again.vendor, [row.score for row in again.data]) == ("v", [1, 0])
    assert first.usage is again.usage is None
    assert models.calls == 1


def test_raw_responses_and_what_is_not_known_go_through(models, quick):
    """with_raw_response, and a body that overrides the inputs, are asked as they are."""
    asking = Asking("openai", is_async=False)
    client = asking.cached(models, quick)
    for _ in range(2):
        raw = client.embeddings.with_raw_response.create(model="m", input="a")
        assert raw.parse().data[0].embedding == vector_of("a", 16)
        client.embeddings.create(model="m", input="a", extra_body={"input": "b"})
    assert models.calls == 4
    assert quick.stats().misses == 0
    asking.close()


def test_mode_off_sends_the_whole_and_refresh_sends_all_once(asking, models, quick):
    """The switches hold here too."""
    client = asking.cached(models, quick)
    embed(asking, client, ["a"])
    with semcache.context(mode="off"):
        assert len(embed(asking, client, ["a", "a"]).data) == 2
    with semcache.context(mode="refresh"):
        embed(asking, client, ["a", "b"])
    assert sent(models) == [["a"], ["a", "a"], ["a", "b"]]


def test_tenants_tags_and_invalidation(asking, models, quick):
    """Facets are as those of other calls: by function, model, tag, tenant."""
    client = asking.cached(models, quick, tenant="user", tags="t")
    embed(asking, client, ["a", "b"], user="acme")
    embed(asking, client, ["a"], user="globex")
    assert sent(models) == [["a", "b"], ["a"]]
    assert quick.invalidate(tenant="globex") == 1
    assert quick.invalidate(tag="t", dry_run=True) == 2
    assert quick.invalidate(model="m", dry_run=True) == 2
    assert quick.invalidate(function="openai.embeddings") == 2


def test_copies_of_a_client_are_cached_like_it(models, quick):
    """with_options of the copy; the client that was given asks as ever."""
    asking = Asking("openai", is_async=False)
    client = asking.cached(models, quick)
    client.with_options(timeout=3).embeddings.create(model="m", input="a")
    client.embeddings.create(model="m", input="a")
    assert models.calls == 1
    asking.close()


def test_overlapping_calls_at_once_send_each_input_once(models, quick):
    """Law 6: tasks that want each other's inputs wait for them."""

    async def main():
        async with openai.AsyncOpenAI(base_url=models.openai_url, api_key="none") as client:
            cached = semcache.cached(client, quick)
            orders = [["a", "b", "c"], ["c", "b", "d"], ["d", "a", "e"]]
            answers = await asyncio.gather(*(cached.embeddings.create(model="m", input=order) for order in orders))
            for order, answer in zip(orders, answers, strict=True):
                assert [row.embedding for row in answer.data] == [vector_of(text, 16) for text in order]

    asyncio.run(main())
    assert sorted(text for asked in sent(models) for text in asked) == list("abcde")
