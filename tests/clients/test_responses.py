"""OpenAI's responses in a cached client: what rests on the server's state, items of all kinds, what a replay tells."""

from __future__ import annotations

import json
from contextlib import closing
from itertools import groupby

import openai
import pydantic
import pytest
from dialects import ASKED, Asking, OneWay

import semcache
from semcache.testing import Reply
from semcache.testing.protocols import last_text

types = pytest.importorskip("openai.types.responses", reason="this openai has no responses")

# What came last of the kinds of items below.
KNOWS_ALL = hasattr(types.response_content_part_added_event, "PartReasoningText")
SEARCH = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}}
CITED = {"type": "url_citation", "start_index": 0, "end_index": 3, "title": "Shop", "url": "http://127.0.0.1/"}
LIKELY = {"token": "Yes", "logprob": -0.1, "bytes": [89, 101, 115], "top_logprobs": []}
SAID = {"type": "output_text", "text": "Yes.", "annotations": [], "logprobs": []}


def message(*parts):
    return {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": list(parts)}


# Items of kinds that only some models or tools make.
ITEMS = [
    {
        "id": "rs_1", "type": "reasoning", "status": "completed", "encrypted_content": "gAAA",
        "summary": [{"type": "summary_text", "text": "A shop."}, {"type": "summary_text", "text": "It ships."}],
        "content": [{"type": "reasoning_text", "text": "Where is Austria?"}],
    },
    SEARCH,
    {"id": "ctc_1", "type": "custom_tool_call", "call_id": "c_1", "name": "find", "input": "Austria"},
    {"id": "mcp_1", "type": "mcp_call", "server_label": "s", "name": "find", "arguments": "{}", "output": "yes"},
    {"id": "mcpr_1", "type": "mcp_approval_request", "server_label": "s", "name": "find", "arguments": "{}"},
    {"id": "ci_1", "type": "code_interpreter_call", "status": "completed", "code": "1 + 1", "container_id": "c"},
    {"id": "ci_2", "type": "code_interpreter_call", "status": "completed", "code": None, "container_id": "c"},
    {"type": "function_call", "call_id": "call_1", "name": "find", "arguments": '{"country": "Austria"}'},
    message({**SAID, "annotations": [CITED], "logprobs": [LIKELY]}, {**SAID, "text": ""}),
]  # fmt: skip


@pytest.fixture
def asking():
    """The responses API in the plain colour."""
    with closing(Asking("openai-responses", is_async=False)) as made:
        yield made


@pytest.fixture
def near(open_near):
    """A cache to which all texts look the same: only scopes tell them apart."""
    return open_near(embedder=OneWay())


# What the server keeps


@pytest.mark.parametrize(
    ("parameters", "state"),
    [
        ({"conversation": "conv_1"}, "conversation"),
        ({"conversation": {"id": "conv_1"}}, "conversation"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt without version"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "item_reference"),
        ({"input": [{"id": "msg_1"}, {"role": "user", "content": ASKED}]}, "item_reference"),
    ],
    ids=["id", "conversation", "previous", "background", "prompt", "reference", "bare-reference"],
)
def test_what_rests_on_the_servers_state_goes_by_the_cache(asking, models, cache, parameters, state):
    """Law 1: what the server keeps and may change is in no key, so such calls are asked each time, and counted."""
    client = asking.cached(models, cache)
    for _ in range(2):
        assert asking.ask(client, ASKED, extra_body=parameters).status == "completed"
        assert (asking.event.kind, asking.event.reason) == ("bypass", f"state of the server: {state}")
    assert asking.read(client, ASKED, extra_body=parameters)
    assert asking.event.kind == "bypass"
    assert models.calls == 3


def test_what_names_no_state_is_cached(asking, models, cache):
    """The same parameters, given as nothing, keep nobody from a hit."""
    client = asking.cached(models, cache)
    nothing = {"conversation": None, "previous_response_id": None, "background": False, "prompt": None}
    for _ in range(2):
        asking.ask(client, ASKED, extra_body=nothing)
    assert models.calls == 1


def test_prompt_of_a_version_is_a_parameter(asking, models, cache):
    """A version of a prompt does not change: it is in the key, with its variables."""
    client = asking.cached(models, cache)
    for version, place, calls in (("1", "Graz", 1), ("1", "Graz", 1), ("2", "Graz", 2), ("1", "Linz", 3)):
        prompt = {"id": "pmpt_1", "version": version, "variables": {"place": place}}
        asking.ask(client, ASKED, extra_body={"prompt": prompt})
        assert models.calls == calls


def test_answer_that_was_not_stored_serves_nobody_who_goes_on_from_it(asking, models, cache):
    """store is in the key: who asked for a stored response is given no id that leads nowhere; ignore= waives that."""
    client = asking.cached(models, cache)
    assert asking.ask(client, ASKED, store=False).id != asking.ask(client, ASKED, store=True).id
    assert models.calls == 2
    careless = asking.cached(models, cache, ignore="store")
    assert asking.ask(careless, ASKED, store=False).id == asking.ask(careless, ASKED).id


# What is in the key


def test_documented_parameters_are_in_no_key(asking, models, cache):
    """Who asks, and how the prompt is cached at the server, changes no answer."""
    client = asking.cached(models, cache)
    asking.ask(client, ASKED)
    unimportant = {"user": "anna", "safety_identifier": "a", "prompt_cache_key": "k", "service_tier": "flex"}
    asking.ask(client, ASKED, extra_body=unimportant)
    asking.read(client, ASKED, extra_body={"stream_options": {"include_obfuscation": False}})
    assert models.calls == 1


@pytest.mark.semantic
def test_nothing_of_another_input_is_near(asking, models, near):
    """What is said around the text, in items of any kind, and each parameter that shapes the answer must be equal."""
    client = asking.cached(models, near)
    question = {"role": "user", "content": ASKED}
    image = {"type": "input_image", "detail": "auto", "image_url": "data:image/png;base64,AAAA"}
    calls = [
        {"input": ASKED},
        {"instructions": "Answer in German."},
        {"include": ["reasoning.encrypted_content"]},
        {"truncation": "auto"},
        {"max_output_tokens": 100},
        {"reasoning": {"effort": "high"}},
        {"text": {"format": {"type": "json_object"}}},
        {"tools": [{"type": "web_search"}]},
        {"input": [{"role": "developer", "content": "Be brief."}, question]},
        {"input": [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "Yes."}, question]},
        {"input": [{"id": "rs_1", "type": "reasoning", "summary": []}, question]},
        {"input": [{"id": "rs_2", "type": "reasoning", "summary": []}, question]},
        {"input": [{"type": "function_call_output", "call_id": "1", "output": "yes"}, question]},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": ASKED}]}]},
        {"input": [{"role": "user", "content": [image, {"type": "input_text", "text": ASKED}]}]},
    ]
    for parameters in calls:
        asking.ask(client, ASKED, **parameters)
        near.flush()
        assert asking.event.kind == "miss", parameters
    assert models.calls == len(calls)


@pytest.mark.semantic
def test_string_and_message_are_one_text(asking, models, near):
    """An input that is a string is the user's message: found again, near too, also where it is spelled as a message."""
    client = asking.cached(models, near)
    first = asking.ask(client, input=ASKED)
    near.flush()
    assert asking.ask(client, input=ASKED) == first
    assert asking.event.tier == "memory"
    assert asking.ask(client, input="Is Austria shipped to?") == first
    assert asking.event.tier == "semantic"
    assert asking.ask(client, input=[{"role": "user", "content": "Is Austria shipped to?"}]) == first
    assert (asking.event.tier, models.calls) == ("semantic", 1)


@pytest.mark.semantic
def test_last_part_that_is_text_may_match_nearly(asking, models, near):
    """Of a message in parts the text is that of its last part of text; the parts beside it must be equal."""
    client = asking.cached(models, near)
    image = {"type": "input_image", "detail": "auto", "image_url": "data:image/png;base64,AAAA"}
    for text, tier in ((ASKED, None), ("Is Austria shipped to?", "semantic")):
        asking.ask(client, input=[{"role": "user", "content": [image, {"type": "input_text", "text": text}]}])
        near.flush()
        assert asking.event.tier == tier
    assert models.calls == 1


# What is not kept


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"output": [SEARCH, message(SAID)]}, "tool calls"),
        ({"status": "failed", "error": {"code": "server_error", "message": "it broke"}}, "status failed"),
        ({"output": [{"id": "rs_1", "type": "reasoning", "summary": []}]}, "empty"),
        ({"output": [{**message(SAID), "status": "incomplete"}]}, "message incomplete"),
    ],
    ids=["tools", "failed", "reasoning", "item"],
)
def test_what_is_no_whole_answer_of_the_model_alone_is_not_kept(asking, models, cache, extra, reason):
    """Law 7: what a tool of the server found, what failed and what says nothing is returned, and asked again."""
    models.reply = lambda _: Reply("Yes.", extra=extra)
    client = asking.cached(models, cache)
    for ask in (asking.ask, asking.read):
        for _ in range(2):
            assert ask(client, ASKED)
            assert asking.event.reason == f"not kept: {reason}"
    assert models.calls == 4


def test_tools_of_the_server_are_kept_where_that_is_asked_for(asking, models, cache):
    """With tool_calls=True what they found is an answer like any other, but for a call that failed."""
    client = asking.cached(models, cache, tool_calls=True)
    failed = {**SEARCH, "status": "failed"}
    for place, (output, calls) in enumerate(
        (([SEARCH, message(SAID)], 1), ([SEARCH], 2), ([failed, message(SAID)], 4))
    ):
        models.reply = lambda _, output=output: Reply(extra={"output": output})
        for _ in range(2):
            assert asking.ask(client, str(place)).output[0].type == "web_search_call"
        assert models.calls == calls
    assert asking.event.reason == "not kept: web_search_call failed"


def test_sampling_is_not_cached(asking, models, cache):
    """A temperature above 0 goes by the cache."""
    client = asking.cached(models, cache)
    with pytest.warns(semcache.SemcacheWarning, match="openai.responses"):
        asking.ask(client, ASKED, temperature=0.5)
    assert asking.event.reason == "sampling: temperature"


# Replays


def told(chunks):
    """Return the events of a stream without how finely its text was cut, its numbers and the number of the call."""
    events = [chunk.to_dict(warnings=False) for chunk in chunks]
    assert [event.pop("sequence_number") for event in events] == list(range(len(events)))
    joined = []
    for kind, group in groupby(events, key=lambda event: event["type"]):
        pieces = list(group)
        if kind.endswith(".delta"):
            pieces = [{**pieces[0], "delta": "".join(piece["delta"] for piece in pieces)}]
        joined += pieces
    return json.dumps(joined, sort_keys=True).replace('_2"', '_1"')


@pytest.mark.parametrize(
    "reply",
    [
        Reply("Yes, we ship."),
        Reply("Yes, we ship.", reasoning="Austria is near."),
        Reply("Let me look.", "tools", ("find", {"country": "Austria"})),
        Reply(extra={"output": [SEARCH, message(SAID)]}),
    ],
    ids=["text", "reasoning", "tool", "search"],
)
def test_plain_answer_is_replayed_in_the_events_of_the_server(asking, models, cache, reply):
    """What was loaded plainly and is replayed as a stream are the events that the server sends, from first to last."""
    models.reply = lambda _: reply
    cached, bare = asking.cached(models, cache, tool_calls=True), asking.client(models)
    asking.ask(cached, ASKED)
    replayed = asking.read(cached, ASKED)
    assert (asking.event.kind, models.calls) == ("hit", 1)
    assert told(replayed) == told(asking.read(bare, ASKED))


@pytest.mark.skipif(not KNOWS_ALL, reason="this openai does not know items of all kinds")
def test_replayed_items_of_all_kinds_are_the_sdks(asking, models, cache):
    """Each event of a replay is one of the SDK's types to the letter, and its helper makes the same answer of them."""
    models.reply = lambda _: Reply(extra={"output": ITEMS, "completed_at": 1_700_000_001})
    client = asking.cached(models, cache, tool_calls=True)
    answer = asking.ask(client, ASKED)
    chunks = asking.read(client, ASKED)
    known = pydantic.TypeAdapter(types.ResponseStreamEvent)
    for chunk in chunks:
        assert type(known.validate_python(chunk.to_dict())) is type(chunk)
    with client.responses.stream(model="m", input=[{"role": "user", "content": ASKED}]) as stream:
        final = stream.get_final_response()
    assert chunks[-1].response == answer
    assert final.output_text == answer.output_text == "Yes."
    assert [item.type for item in final.output] == [item["type"] for item in ITEMS]
    assert chunks[0].response.completed_at is None
    assert all(getattr(chunk, "item_id", "none") for chunk in chunks)
    opened = [chunk.part for chunk in chunks if chunk.type == "response.content_part.added"]
    assert [(part.text, getattr(part, "annotations", [])) for part in opened] == [("", [])] * 3
    kinds = {chunk.type for chunk in chunks}
    assert {"response.reasoning_text.delta", "response.output_text.annotation.added"} <= kinds
    assert {"response.custom_tool_call_input.done", "response.mcp_call_arguments.done"} <= kinds
    assert models.calls == 1


def test_details_of_usage_and_thought_are_kept(asking, models, cache):
    """A hit says what was thought and what of the tokens that took, plain and streamed."""
    models.reply = lambda _: Reply("Yes.", reasoning="Austria is near.")
    client = asking.cached(models, cache)
    chunks = asking.read(client, ASKED)
    answer = asking.ask(client, ASKED)
    assert (asking.event.kind, models.calls) == ("hit", 1)
    assert answer == chunks[-1].response
    assert answer.output[0].summary[0].text == "Austria is near."
    assert answer.usage.output_tokens_details.reasoning_tokens == 3
    assert asking.event.usage.completion_tokens == answer.usage.output_tokens == 5


# What passes through


class Ships(pydantic.BaseModel):
    """What an answer is parsed as."""

    ships: bool


def test_other_calls_of_responses_pass_through(asking, models, cache):
    """parse, retrieve, cancel and compact are the SDK's, and its errors too."""
    models.reply = lambda _: '{"ships": true}'
    client = asking.cached(models, cache)
    for _ in range(2):
        assert client.responses.parse(model="m", input=ASKED, text_format=Ships).output_parsed == Ships(ships=True)
    assert models.calls == 2
    others = [lambda: client.responses.retrieve("resp_1")]
    if hasattr(client.responses, "compact"):  # newer ones have these too
        others.append(lambda: client.responses.cancel("resp_1"))
        others.append(lambda: client.responses.compact(model="m", input=ASKED))
    for call in others:
        with pytest.raises(openai.NotFoundError):
            call()
    assert (models.calls, len(models.others)) == (2, len(others))


def test_stream_that_is_parsed_is_cached(asking, models, cache):
    """responses.stream with a format is a stream like any other, whose text the SDK parses at a hit too."""
    models.reply = lambda _: '{"ships": true}'
    client = asking.cached(models, cache)
    for _ in range(2):
        with client.responses.stream(model="m", input=ASKED, text_format=Ships) as stream:
            assert stream.get_final_response().output_parsed == Ships(ships=True)
    assert models.calls == 1


def test_answers_are_invalidated_by_their_function(asking, models, cache):
    """They are those of openai.responses, not of chat completions."""
    client = asking.cached(models, cache)
    asking.ask(client, ASKED)
    assert cache.invalidate(function="openai.chat.completions") == 0
    assert cache.invalidate(function="openai.responses") == 1
    asking.ask(client, ASKED)
    assert models.calls == 2


# Many at once


def test_calls_are_gathered_and_packed_as_those_with_messages(asking, models, cache):
    """The endpoint is told by `input`; a text out of a pack becomes a response that says it alone."""
    client = asking.cached(models, cache)
    models.reply = lambda body: "\n".join(f"Answer to: {line}" for line in last_text(body).split("\n"))

    def calls(texts):
        return [asking.parameters(text) for text in texts]

    def join(requests):
        return asking.parameters("\n".join(request["input"][-1]["content"] for request in requests))

    def split(answer, _):
        return answer.output_text.split("\n")

    gathered = semcache.gather(client, calls("aba"))
    assert [answer.output_text for answer in gathered] == ["Answer to: a", "Answer to: b", "Answer to: a"]
    packed = semcache.gather(client, calls("abcd"), pack=4, join=join, split=split)
    assert [answer.output_text for answer in packed] == [f"Answer to: {text}" for text in "abcd"]
    assert {type(answer) for answer in packed} == {asking.types()[0]}
    assert asking.ask(client, "d") == packed[3]
    assert models.calls == 3
