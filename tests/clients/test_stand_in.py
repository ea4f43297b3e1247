"""The stand-in speaks each protocol as the real SDKs expect it, and fails as it is told to."""

from __future__ import annotations

import threading

import anthropic
import httpx
import openai
import pydantic
import pytest

from semcache.testing import Reply, StandIn
from semcache.testing.protocols import last_text

ASKED = [{"role": "user", "content": "Do you ship to Austria?"}]


@pytest.fixture
def openai_client(models):
    with openai.OpenAI(base_url=models.openai_url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def anthropic_client(models):
    with anthropic.Anthropic(base_url=models.anthropic_url, api_key="none", max_retries=0) as client:
        yield client


def test_openai_client_is_answered_whole_and_in_pieces(models, openai_client):
    """The SDK reads a plain answer, and a stream with its usage at the end."""
    answer = openai_client.chat.completions.create(model="m", messages=ASKED)
    chunks = list(
        openai_client.chat.completions.create(
            model="m", messages=ASKED, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert answer.choices[0].message.content == text == "Answer to: Do you ship to Austria?"
    assert answer.usage == chunks[-1].usage
    assert (models.calls, answer.id, chunks[0].id) == (2, "chatcmpl-1", "chatcmpl-2")
    assert answer._request_id == "req_1"


def test_anthropic_client_is_answered_whole_and_in_pieces(models, anthropic_client):
    """The SDK reads a message, and makes the same message of a stream."""
    models.reply = lambda _: Reply("Let me look.", "tools", ("find", {"country": "Austria"}))
    answer = anthropic_client.messages.create(model="m", max_tokens=9, messages=ASKED)
    with anthropic_client.messages.stream(model="m", max_tokens=9, messages=ASKED) as stream:
        streamed = stream.get_final_message()
    assert streamed.stop_reason == answer.stop_reason == "tool_use"
    assert streamed.content[1].input == answer.content[1].input == {"country": "Austria"}
    assert streamed.content[0].text == answer.content[0].text == "Let me look."
    assert streamed.usage == answer.usage


@pytest.mark.skipif(not hasattr(anthropic.types, "ThinkingBlock"), reason="this anthropic knows no thinking")
def test_anthropic_client_is_told_what_was_thought(models, anthropic_client):
    """A reply's reasoning is a block of its own, before what is said, whole and in pieces."""
    models.reply = lambda _: Reply("Yes.", reasoning="Austria is near.")
    answer = anthropic_client.messages.create(model="m", max_tokens=9, messages=ASKED)
    with anthropic_client.messages.stream(model="m", max_tokens=9, messages=ASKED) as stream:
        streamed = stream.get_final_message()
    assert [block.type for block in streamed.content] == ["thinking", "text"]
    assert streamed.content[0].thinking == answer.content[0].thinking == "Austria is near."
    assert streamed.content[0].signature == "signed_2"


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (Reply("Yes, we do.", reasoning="Austria is near."), "completed"),
        (Reply("Let me look.", "tools", ("find", {"country": "Austria"})), "completed"),
        (Reply("I cannot say.", "refusal"), "completed"),
        (Reply("Half of", "length"), "incomplete"),
        (Reply("I must not say.", "filter"), "incomplete"),
        (Reply(extra={"status": "failed", "error": {"code": "server_error", "message": "no"}}), "failed"),
    ],
    ids=["reasoning", "tool", "refusal", "length", "filter", "failed"],
)
def test_responses_are_those_of_the_sdk(models, openai_client, reply, status):
    """Each event and answer is one of the SDK's types to the letter, and the deltas add up to the answer."""
    types = pytest.importorskip("openai.types.responses", reason="this openai has no responses")
    if reply.reasoning and not hasattr(types, "ResponseReasoningSummaryTextDeltaEvent"):
        pytest.skip("this openai knows no reasoning")
    models.reply = lambda _: reply
    answer = openai_client.responses.create(model="m", input="Do you ship?")
    events = list(openai_client.responses.create(model="m", input="Do you ship?", stream=True))
    known = pydantic.TypeAdapter(types.ResponseStreamEvent)
    assert types.Response.model_validate(answer.to_dict()) == answer
    assert [type(known.validate_python(event.to_dict())) for event in events] == [type(event) for event in events]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert answer.status == status
    assert (events[0].type, events[-1].type) == ("response.created", f"response.{status}")
    assert repr(events[-1].response).replace("_2'", "_1'") == repr(answer)
    deltas = "".join(event.delta for event in events if event.type.endswith(".delta"))
    assert deltas == reply.reasoning + reply.text + ('{"country": "Austria"}' if reply.tool else "")


def test_responses_count_what_was_asked_and_thought(models, openai_client):
    """Usage tells its details, of an input that is a string as of one that is a list."""
    pytest.importorskip("openai.types.responses", reason="this openai has no responses")
    models.reply = lambda body: Reply(last_text(body), reasoning="I think")
    parts = [{"role": "user", "content": [{"type": "input_text", "text": "Do you ship?"}]}]
    answers = [openai_client.responses.create(model="m", input=asked) for asked in ("Do you ship?", parts)]
    assert [answer.output_text for answer in answers] == ["Do you ship?"] * 2
    assert answers[0].usage.input_tokens == 3
    assert answers[0].usage.output_tokens == 6
    assert answers[0].usage.output_tokens_details.reasoning_tokens == 2


def test_failures_come_as_they_were_ordered(models, openai_client):
    """An error has its status and its Retry-After; the next call is well again."""
    models.fail(429, retry_after=7)
    with pytest.raises(openai.RateLimitError) as caught:
        openai_client.chat.completions.create(model="m", messages=ASKED)
    assert caught.value.response.headers["retry-after"] == "7"
    models.drop(after=2)
    with pytest.raises(httpx.RemoteProtocolError):
        list(openai_client.chat.completions.create(model="m", messages=ASKED, stream=True))
    models.drop()
    with pytest.raises(openai.APIConnectionError):
        openai_client.chat.completions.create(model="m", messages=ASKED)
    assert openai_client.chat.completions.create(model="m", messages=ASKED).choices
    assert models.calls == 4


def test_stream_stands_still_until_it_is_let_go(models, openai_client):
    """Who holds a stream sees what came before, and nothing after."""
    held = models.hold(after=2)
    stream = openai_client.chat.completions.create(model="m", messages=ASKED, stream=True)
    before = [next(stream), next(stream)]
    assert held.reached.wait(30)
    held.go.set()
    assert len(before) + len(list(stream)) > 5


def test_close_leaves_no_thread(models):
    """A stand-in ends, also one that was never started."""
    StandIn().close()
    with StandIn() as other:
        assert httpx.get(f"{other.url}/v1/models").json()["data"][0]["id"] == "m"
        assert httpx.get(f"{other.url}/nothing").status_code == 404
        assert other.others == ["/v1/models", "/nothing"]
    assert not other._thread.is_alive() or not other._thread.join(30)
    assert other._thread not in threading.enumerate()


@pytest.mark.parametrize("path", ["chat/completions", "responses", "embeddings", "messages"])
@pytest.mark.parametrize(
    "body", [b"{bad", b"", b"\xff", b"{}", b"[]", b'{"model": "m"}', b'{"model": 1, "input": "a", "messages": [{}]}']
)
def test_body_that_is_no_request_is_refused_in_the_protocols_words(models, path, body):
    """As a real server would: 400, told as that vendor tells it; no model was called, and the next call is answered."""
    with httpx.Client(base_url=models.url) as client:
        refused = client.post(f"/v1/{path}", content=body)
        told = refused.json()
        assert (refused.status_code, told["error"]["type"]) == (400, "invalid_request_error")
        assert ("type" in told) is (path == "messages")
        assert (models.calls, models.others) == (0, [f"/v1/{path}"])
        sent = {"model": "m", "messages": ASKED, "input": "Do you ship?", "max_tokens": 9}
        assert client.post(f"/v1/{path}", json=sent).status_code == 200


def test_response_that_goes_on_needs_no_input(models):
    """What is asked stands elsewhere then."""
    sent = {"model": "m", "previous_response_id": "resp_1"}
    assert httpx.post(f"{models.openai_url}/responses", json=sent).status_code == 200
