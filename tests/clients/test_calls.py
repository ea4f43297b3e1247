"""What a cached client does with calls that differ, fail, break off, or are none of its business."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import warnings

import anthropic
import openai
import pytest
from dialects import ASKED, Asking

import semcache
from semcache.testing import Reply

# What is not kept


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply("Half of", "length"), "length"),
        (Reply("I cannot say.", "refusal"), "refusal"),
        (Reply("I must not say.", "filter"), "filter"),
        (Reply("", "stop"), "empty"),
        (Reply("", "tools", ("find", {"country": "Austria"})), "tool calls"),
    ],
    ids=lambda told: told if isinstance(told, str) else "",
)
def test_answers_that_are_not_worth_keeping_are_not_kept(asking, models, cache, reply, reason):
    """Law 7: what was refused, cut, filtered or is empty is returned, not kept, and the event says why."""
    told = {
        "openai": {"filter": "content_filter"}, "anthropic": {"filter": "refusal", "length": "max_tokens"},
        "openai-responses": {"filter": "content_filter", "length": "max_output_tokens"},
    }[asking.way].get(reason, reason)  # fmt: skip
    models.reply = lambda _: reply
    client = asking.cached(models, cache)
    for calls in (1, 2):
        assert asking.ask(client, ASKED).to_dict()
        assert (asking.event.kind, asking.event.reason.split(" ")[:2]) == ("miss", ["not", "kept:"])
        assert asking.event.reason.endswith(told)
        asking.read(client, ASKED)
        assert asking.event.reason.endswith(told)
        assert models.calls == 2 * calls


def test_tool_calls_are_kept_where_that_is_asked_for(asking, models, cache):
    """With tool_calls=True a call of a tool is an answer like any other, plain and streamed."""
    models.reply = lambda _: Reply("", "tools", ("find", {"country": "Austria"}))
    client = asking.cached(models, cache, tool_calls=True)
    first = asking.ask(client, ASKED)
    assert asking.ask(client, ASKED) == first
    assert models.calls == 1
    chunks = asking.read(client, ASKED)
    assert models.calls == 1
    if asking.way == "openai":
        called = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
        assert called[0].function.arguments == first.choices[0].message.tool_calls[0].function.arguments
    streamed = asking.read(client, "else", usage=True)
    assert streamed
    answer = asking.ask(client, "else")
    assert models.calls == 2
    told = answer.to_dict()
    assert "Austria" in repr(told)
    assert told["usage"]


def test_errors_reach_the_caller_as_they_are(asking, models, cache):
    """Law 7: the SDK's error, from the call itself, plain and streamed; the next call asks again."""
    client = asking.cached(models, cache)
    models.fail(429, retry_after=3, times=2)
    for ask in (asking.ask, asking.read):
        with pytest.raises(asking.rate_limit) as caught:
            ask(client, ASKED)
        assert caught.value.response.headers["retry-after"] == "3"
    assert asking.text(asking.ask(client, ASKED))
    assert models.calls == 3


def test_sdk_retries_as_before(asking, models, cache):
    """The SDK's own retries are inside the load: a failure that it mends is no failure."""
    client = asking.cached(models, cache, client_settings={"max_retries": 1})
    models.fail(500, retry_after=0.01)
    assert asking.text(asking.ask(client, ASKED)) == f"Answer to: {ASKED}"
    assert models.calls == 2
    asking.ask(client, ASKED)
    assert models.calls == 2


def test_stream_that_is_closed_early_is_not_kept(asking, models, cache):
    """Who reads three chunks and closes has kept nothing, and holds no connection."""
    client = asking.cached(models, cache)
    assert len(asking.read(client, ASKED, limit=3)) == 3
    assert asking.event.reason == "not kept: closed before its end"
    assert asking.streamed(asking.read(client, ASKED)) == f"Answer to: {ASKED}"
    assert models.calls == 2


def test_stream_that_breaks_off_is_not_kept(asking, models, cache):
    """A connection that is cut in mid-stream is the caller's error, as the SDK raises it, and nothing is kept."""
    import httpx

    client = asking.cached(models, cache)
    models.drop(after=3)
    with pytest.raises(httpx.RemoteProtocolError):
        asking.read(client, ASKED)
    assert asking.streamed(asking.read(client, ASKED)) == f"Answer to: {ASKED}"
    assert models.calls == 2


def test_stream_that_ends_too_early_is_not_kept(asking, models, cache):
    """A stream that a proxy ended before the model did is no error to the SDK, and no answer to us."""
    client = asking.cached(models, cache)
    models.drop(after=4, quietly=True)
    asking.read(client, ASKED, usage=True)
    assert asking.event.reason == "not kept: it did not end well"
    assert asking.streamed(asking.read(client, ASKED)) == f"Answer to: {ASKED}"
    assert models.calls == 2


# Streams that are shared


def test_second_stream_follows_the_first_live(plain, models, cache):
    """Who asks for a stream in flight is given what came so far, then what comes; the model is asked once."""
    client = plain.cached(models, cache)
    held = models.hold(after=3)
    first = plain.create(client, ASKED, stream=True)
    begun = [next(first) for _ in range(3)]
    second = plain.create(client, ASKED, stream=True)
    assert [next(second) for _ in range(3)] == begun
    assert held.reached.wait(30)
    held.go.set()
    chunks = begun + list(second)
    assert plain.streamed(chunks) == f"Answer to: {ASKED}"
    assert begun + list(first) == chunks
    assert {type(chunk) for chunk in chunks} == {plain.types()[1]}
    assert models.calls == 1


def test_follower_reads_on_when_the_first_closes(plain, models, cache):
    """The first to ask has no privilege: closing its stream cuts nobody else's, which is then kept."""
    client = plain.cached(models, cache)
    first = plain.create(client, ASKED, stream=True)
    next(first)
    second = plain.create(client, ASKED, stream=True)
    first.close()
    assert plain.streamed(list(second)) == f"Answer to: {ASKED}"
    plain.read(client, ASKED)
    assert (plain.event.tier, models.calls) == ("memory", 1)


def test_async_streams_share_one_origin(models, cache):
    """Tasks too: ten readers, one call of the model; and a cancelled one takes nothing from the others."""
    asking = Asking("anthropic", is_async=True)
    client = asking.cached(models, cache)
    held = models.hold(after=3)

    async def read():
        async with await asking.create(client, ASKED, stream=True) as stream:
            return [chunk async for chunk in stream]

    async def main():
        tasks = [asyncio.create_task(read()) for _ in range(10)]
        await asyncio.to_thread(held.reached.wait, 30)
        tasks[0].cancel()
        held.go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    cancelled, *read_by_others = asking.run(main())
    asking.close()
    assert isinstance(cancelled, asyncio.CancelledError)
    assert {asking.streamed(chunks) for chunks in read_by_others} == {f"Answer to: {ASKED}"}
    assert models.calls == 1


def test_many_threads_ask_the_model_once(plain, models, cache):
    """Law 6: plain calls of one request at once are one load."""
    client = plain.cached(models, cache)
    models.latency = 0.05
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(plain.create(client, ASKED))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(answers) == 8
    assert all(answer == answers[0] for answer in answers)
    assert models.calls == 1


def test_stream_that_nobody_reads_is_closed(plain, models, cache):
    """A stream that is dropped unread is ended with it, and kept nowhere."""
    client = plain.cached(models, cache)
    plain.create(client, ASKED, stream=True)
    assert semcache.last().reason == "not kept: closed before its end"


# What is in the key


@pytest.mark.parametrize(
    "left_out",
    [
        {"metadata": {"a": "b"}},
        {"extra_body": {"service_tier": "auto"}},
        {"timeout": 60},
        {"extra_headers": {"traceparent": "00-1", "X-Request-ID": "7"}},
    ],
    ids=["metadata", "service_tier", "timeout", "traces"],
)
def test_what_cannot_change_the_answer_is_in_no_key(asking, models, cache, left_out):
    """Documented parameters and trace headers are sent, and make no difference."""
    client = asking.cached(models, cache)
    asking.ask(client, ASKED)
    asking.ask(client, ASKED, **left_out)
    assert models.calls == 1


def test_ignore_adds_to_the_list(plain, models, cache):
    """A parameter or header that is named in ignore= is sent, and makes no difference."""
    client = plain.cached(models, cache, ignore=["seed", "X-Shop"])
    plain.ask(client, ASKED, seed=1, extra_headers={"x-shop": "1"})
    plain.ask(client, ASKED, seed=2, extra_headers={"x-shop": "2"})
    plain.ask(client, ASKED, top_p=0.5)
    assert models.calls == 2
    assert (models.asked[0].body["seed"], models.asked[0].headers["x-shop"]) == (1, "1")


def test_organisation_and_base_url_are_in_the_key(plain, models, cache):
    """Whom a client asks, as whom, is in the key; which key it shows is not."""
    for settings in ({}, {"organization": "o"}, {"project": "p"}, {"default_headers": {"x-place": "Graz"}}):
        plain.ask(plain.cached(models, cache, client_settings=settings), ASKED)
    assert models.calls == 4
    plain.ask(plain.cached(models, cache, client_settings={"api_key": "another"}), ASKED)
    assert models.calls == 4


@pytest.mark.parametrize("parameter", ["temperature", "n"])
def test_sampling_is_not_cached_unless_it_is_said_to_be(plain, models, cache, parameter):
    """A temperature above 0, or several answers, go by the cache with an event and one warning that names the mend."""
    asked = {parameter: 2 if parameter == "n" else 0.7}
    client = plain.cached(models, cache)
    with pytest.warns(semcache.SemcacheWarning, match='sampling="any"'):
        plain.ask(client, ASKED, **asked)
    assert (plain.event.kind, plain.event.reason) == ("bypass", f"sampling: {parameter}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain.ask(client, ASKED, **asked)
        plain.read(client, ASKED, temperature=0.7)
    assert models.calls == 3
    anyhow = plain.cached(models, cache, sampling="any")
    assert plain.ask(anyhow, ASKED, **asked) == plain.ask(anyhow, ASKED, **asked)
    assert models.calls == 4


@pytest.mark.semantic
def test_tool_results_are_exact_only(asking, models, open_near):
    """Where the last message is not the user's words, nothing near is looked for, and the same is found again."""
    cache = open_near()
    client = asking.cached(models, cache)
    if asking.way == "openai-responses":
        call = {"type": "function_call", "call_id": "1", "name": "find", "arguments": "{}"}
        result = {"type": "function_call_output", "call_id": "1", "output": "yes"}
        turns = [{"role": "user", "content": ASKED}, call, result]
    elif asking.way == "openai":
        call = {"id": "1", "type": "function", "function": {"name": "find", "arguments": "{}"}}
        turns = [
            {"role": "user", "content": ASKED},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "yes"},
        ]
    else:
        turns = [
            {"role": "user", "content": ASKED},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "find", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "yes"}]},
        ]
    asking.ask(client, turns)
    assert asking.event.reason == "the last message is not the user's"
    asking.ask(client, turns)
    assert (asking.event.tier, models.calls) == ("memory", 1)


@pytest.mark.semantic
def test_text_is_taken_out_of_its_template(plain, models, open_near):
    """text= takes the question out of the message; what stands around it must be equal."""
    cache = open_near({"ship?": 0, "deliver?": 5})
    client = plain.cached(models, cache, text=lambda message: message.rpartition("Question: ")[2])
    plain.ask(client, "Page 1. Question: ship?")
    cache.flush()
    plain.ask(client, "Page 2. Question: ship?")
    assert plain.event.kind == "miss"
    cache.flush()
    plain.ask(client, "Page 1. Question: deliver?")
    assert (plain.event.tier, models.calls) == ("semantic", 2)


def test_text_callable_that_fails_goes_by_the_cache(plain, models, cache):
    """Law 10: what the user's own callable raises fails no call."""
    client = plain.cached(models, cache, text=lambda message: message.nothing)
    with pytest.warns(semcache.SemcacheWarning, match="nothing"):
        assert plain.text(plain.ask(client, ASKED)) == f"Answer to: {ASKED}"
    assert (plain.event.kind, plain.event.reason) == ("bypass", "text or tenant failed")


def test_tenants_do_not_meet(plain, models, cache):
    """tenant= names a parameter of the call, which need not be in the key otherwise."""
    client = plain.cached(models, cache, tenant="user")
    for user in ("anna", "ben", "anna"):
        plain.ask(client, ASKED, user=user)
    assert models.calls == 2


# Usage, facets, modes


def test_usage_is_booked_as_the_model_tells_it(asking, models, cache):
    """Tokens are the answer's own, of a miss as spent and of a hit as saved, by model and stage."""
    client = asking.cached(models, cache, stage="answer")
    answer = asking.ask(client, ASKED)
    asking.ask(client, ASKED)
    asking.read(client, ASKED)
    [row] = cache.usage(by=("stage", "model"))
    used = answer.usage.prompt_tokens if asking.way == "openai" else answer.usage.input_tokens
    assert (row.stage, row.model, row.hits) == ("answer", "m", 2)
    assert row.saved_prompt_tokens == 2 * used


def test_answers_can_be_invalidated_by_model_and_tag(plain, models, cache):
    """An answer has the model's name and the tags that the client was given."""
    client = plain.cached(models, cache, tags="faq")
    plain.ask(client, ASKED)
    assert cache.invalidate(model="m") == 1
    plain.ask(client, ASKED)
    assert cache.invalidate(tag="faq") == 1
    plain.ask(client, ASKED)
    assert models.calls == 3


def test_modes_hold_for_clients(asking, models, cache):
    """off goes by the cache, refresh loads anew."""
    client = asking.cached(models, cache)
    for mode, calls in (("off", 2), ("refresh", 4)):
        with semcache.context(mode=mode):
            asking.ask(client, ASKED)
            asking.read(client, ASKED)
        assert models.calls == calls
    asking.ask(client, ASKED)
    assert asking.event.kind == ("miss" if asking.way == "openai" else "hit")


def test_stream_without_usage_serves_no_plain_call(plain, models, cache):
    """A plain answer tells its usage: where the stream did not, the plain call loads, and serves both from then on."""
    client = plain.cached(models, cache)
    plain.read(client, ASKED)
    answer = plain.ask(client, ASKED)
    assert (models.calls, plain.event.kind) == (2, "miss")
    assert plain.ask(client, ASKED) == answer
    assert plain.streamed(plain.read(client, ASKED)) == plain.text(answer)
    assert models.calls == 2


def test_usage_comes_only_to_who_asks_for_it(plain, models, cache):
    """A stream that was recorded with its usage is replayed without it where it is not asked for."""
    client = plain.cached(models, cache)
    assert plain.read(client, ASKED, usage=True)[-1].usage
    chunks = plain.read(client, ASKED)
    assert models.calls == 1
    assert all(chunk.choices and "usage" not in chunk.to_dict() for chunk in chunks)


def test_unknown_fields_are_kept(asking, models, cache):
    """What a vendor adds of its own is in hits as in misses."""
    models.reply = lambda _: Reply("Yes.", extra={"vendor": {"place": "Graz"}})
    client = asking.cached(models, cache)
    asking.ask(client, ASKED)
    assert asking.ask(client, ASKED).vendor == {"place": "Graz"}
    assert models.calls == 1


# What passes through


def test_what_is_not_cached_passes_through(asking, models, cache):
    """Raw and streamed responses, other endpoints, and copies work as the SDK's; copies are cached too."""
    client = asking.cached(models, cache)
    assert isinstance(client, asking.kind)
    assert type(client).__name__ == asking.kind.__name__
    asking.ask(client, ASKED)
    asking.ask(client.with_options(timeout=30), ASKED)
    assert models.calls == 1
    calls, asked = asking.calls(client), asking.parameters(ASKED)
    others = "/models" if asking.package == "openai" else "/v1/models"

    async def araw():
        raw = await calls.with_raw_response.create(**asked)
        async with calls.with_streaming_response.create(**asked) as response:
            streamed = await response.parse()
        return raw, streamed, await client.get(others, cast_to=object)

    def raw():
        raw = calls.with_raw_response.create(**asked)
        with calls.with_streaming_response.create(**asked) as response:
            return raw, response.parse(), client.get(others, cast_to=object)

    whole, streamed, listed = asking.run(araw()) if asking.is_async else raw()
    assert whole.headers["x-request-id"] == "req_2"
    assert asking.text(whole.parse()) == asking.text(streamed) == f"Answer to: {ASKED}"
    assert listed["data"][0]["id"] == "m"
    assert (models.calls, len(models.others)) == (3, 1)


def test_stream_helpers_of_the_sdks_are_cached(asking, models, cache):
    """messages.stream, chat.completions.stream and responses.stream read our streams as their own."""
    client = asking.cached(models, cache)
    calls, asked = asking.calls(client), asking.parameters(ASKED)
    if not hasattr(calls, "stream"):  # older ones have it in beta alone
        calls = client.beta.chat.completions
    final = {"openai": "completion", "anthropic": "message", "openai-responses": "response"}[asking.way]

    def last(stream):
        return getattr(stream, f"get_final_{final}")()

    async def aread():
        async with calls.stream(**asked) as stream:
            return await last(stream)

    def read():
        with calls.stream(**asked) as stream:
            return last(stream)

    answers = [asking.run(aread()) if asking.is_async else read() for _ in range(2)]
    assert asking.text(answers[0]) == asking.text(answers[1]) == f"Answer to: {ASKED}"
    assert models.calls == 1


def test_response_of_a_stream_can_be_read(plain, models, cache):
    """Who reads the events off a stream's response finds them there, at a miss and at a hit."""
    client = plain.cached(models, cache)
    told = []
    for _ in range(2):
        response = plain.create(client, ASKED, stream=True).response
        told.append([line for line in response.iter_lines() if line])
        assert response.headers["x-request-id"] == "req_1"
    assert told[0] == told[1]
    assert all(line.startswith("data: {") for line in told[0])
    assert models.calls == 1


def test_resources_made_before_are_not_those_of_the_copy(plain, models, cache):
    """A resource that was used before the client was cached is bound to that; the copy has its own."""
    client = plain.client(models)
    plain.ask(client, ASKED)
    cached = semcache.cached(client, cache)
    plain.ask(cached, ASKED)
    plain.ask(cached, ASKED)
    assert models.calls == 2


def test_the_client_itself_is_not_touched(plain, models, cache):
    """Nothing is patched: the client that was given asks the model each time."""
    client = plain.client(models)
    assert client.chat.completions.create
    semcache.cached(client, cache)
    plain.ask(client, ASKED)
    plain.ask(client, ASKED)
    assert models.calls == 2
    assert type(client) is openai.OpenAI


def test_azure_and_default_cache_are_taken(models):
    """A client that inherits from a known one is known; without a cache the default one is taken."""
    azure = openai.AzureOpenAI(azure_endpoint=models.url, api_key="none", api_version="1", azure_deployment="m")
    assert isinstance(semcache.cached(azure), openai.AzureOpenAI)
    with openai.OpenAI(base_url=models.openai_url, api_key="none") as client:
        cached = semcache.cached(client)
        for _ in range(2):
            cached.chat.completions.create(model="m", messages=[{"role": "user", "content": ASKED}])
    azure.close()
    assert models.calls == 1


# Settings


def test_wrong_settings_are_refused(plain, models, cache, monkeypatch):
    """What a client cannot be told is an error that names the mend."""
    client = plain.client(models)
    wrong = [
        {"key": len}, {"text": "question"}, {"sampling": "some"}, {"stale_if_error": "1h"}, {"tenant": 7},
        {"version": 2}, {"when": 1},
    ]  # fmt: skip
    for settings in wrong:
        with pytest.raises(semcache.ConfigurationError):
            semcache.cached(client, cache, **settings)
    with pytest.raises(semcache.ConfigurationError, match="cached already"):
        semcache.cached(semcache.cached(client, cache), cache)
    with pytest.raises(semcache.ConfigurationError, match="for clients"):
        semcache.cached(cache, sampling="any")
    with pytest.raises(semcache.ConfigurationError, match="OpenAI"):
        semcache.cached(anthropic.AnthropicBedrock(aws_region="x", aws_access_key="x", aws_secret_key="x"), cache)
    monkeypatch.setattr(openai, "__version__", "0.28.1")
    with pytest.raises(semcache.ConfigurationError, match=r"openai>=1\.60,<3"):
        semcache.cached(client, cache)


def test_importing_semcache_imports_no_sdk():
    """Law 13: a dialect is told by a client's class, and no SDK is imported for it."""
    script = "import semcache, sys; assert not {'openai', 'anthropic', 'httpx', 'pydantic'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_anthropics_own_tools_are_calls_of_tools(models, cache):
    """What the provider's tools found is of a world that changes; what failed is kept never; a container has state."""
    asking = Asking("anthropic", is_async=False)
    used = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "x"}}
    found = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []}
    failed = {**found, "content": {"type": "web_search_tool_result_error", "error_code": "unavailable"}}
    for result, settings, kept in ((found, {}, False), (found, {"tool_calls": True}, True),
                                   (failed, {"tool_calls": True}, False)):  # fmt: skip
        content = [used, result, {"type": "text", "text": "Yes."}]
        models.reply = lambda _, content=content: Reply("Yes.", extra={"content": content})
        client = asking.cached(models, cache, version=repr((result, settings)), **settings)
        asking.ask(client, ASKED)
        asking.ask(client, ASKED)
        assert (asking.event.kind == "hit") is kept, (result, settings)
    asking.ask(asking.cached(models, cache), ASKED, extra_body={"container": "cntr_1"})
    assert asking.event.reason == "state of the server: container"
    asking.close()
