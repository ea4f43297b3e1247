"""The stand-in speaks both protocols as the real SDKs expect them, and fails as it is told to."""

from __future__ import annotations

import threading

import anthropic
import httpx
import openai
import pytest

from semcache.testing import Reply, StandIn

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
