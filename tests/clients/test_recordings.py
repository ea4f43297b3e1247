"""Recorded traffic through a cached client: no answer of another conversation, prompt or place is ever given.

The embedder takes all texts for one, and the policy serves every near match: what keeps answers apart is their scope
alone. SEMCACHE_RECORDINGS names a folder of further recordings, in the format of docs/traffic.md.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from dialects import OneWay

import semcache

_OURS = Path(__file__).parents[2] / "examples" / "traffic" / "support.jsonl"
_FOLDER = os.environ.get("SEMCACHE_RECORDINGS")
_MORE = ("conversations.jsonl", "localized.jsonl")
RECORDINGS = [_OURS, *([Path(_FOLDER) / name for name in _MORE] if _FOLDER else [])]


def frame(body):
    """Return all of a request but what its last message says, and whether it is to be streamed."""
    *earlier, last = body["messages"]
    rest = {name: item for name, item in body.items() if name not in ("messages", "stream", "stream_options")}
    return json.dumps([rest, earlier, {**last, "content": None}], sort_keys=True)


@pytest.mark.semantic
@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.stem)
def test_no_answer_of_another_frame_is_given(plain, models, open_near, recording):
    """Law 2: with a vector that is the same for every text, a near match still has all else in common."""
    models.reply = frame
    cache = open_near(embedder=OneWay(), max_value="10MB")
    client = plain.cached(models, cache)
    found = {"near": 0, "exact": 0}
    requests = [json.loads(line)["request"] for line in recording.read_text().splitlines()]
    for place, body in enumerate(requests):
        if place % 3:
            told = plain.text(plain.ask(client, **body))
        else:
            told = plain.streamed(plain.read(client, usage=True, **body))
        assert told == frame(body)
        event = semcache.last()
        if event.is_hit:
            found["near" if event.similarity is not None else "exact"] += 1
        if place % 20 == 0:
            cache.flush()
    assert models.calls == len(requests) - sum(found.values())
    # A recording in which no two requests share a frame has no near match to give.
    frames = [frame(body) for body in requests]
    assert bool(found["near"]) == (len(set(frames)) < len(frames))
