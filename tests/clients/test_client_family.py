"""A cached client and a recording of its calls name one scope family."""

from __future__ import annotations

import json

import openai
import pytest

import semcache
from semcache.replay.recording import prepare
from semcache.traffic import parse
from semcache.wrap.clients.client import engine_of
from semcache.wrap.clients.early import posted


class Plain:
    identity = "plain"

    def __call__(self, texts):
        return [[1.0, 0.0]] * len(texts)


class ByFamily(semcache.Shadow):
    def within(self, request):
        return self


@pytest.mark.semantic
def test_client_and_recording_name_one_family():
    """What was tuned on a recording of chats holds for the same chats of a cached client, whatever was said before."""
    turns = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "earlier"}]
    body = {"model": "m", "messages": [*turns, {"role": "user", "content": "hi there"}], "temperature": 0}
    recorded = {**body, "messages": [turns[0], body["messages"][-1]]}
    with semcache.Cache(embedder=Plain(), policy=ByFamily(), tenant=semcache.SHARED) as cache:
        cache.warm()
        asked = prepare([parse(json.dumps({"ts": 0, "kind": "llm", "request": recorded}))], cache, []).asked[0]
        client = semcache.cached(openai.OpenAI(api_key="k", base_url="http://localhost:1/v1"), cache)
        engine = engine_of(client, body)
        request = engine.request(client, posted(client, engine, body))
    assert request.family == asked.request.family != b""
