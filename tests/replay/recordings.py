"""Recordings made by hand, and an embedder whose vectors can be told without a model."""

from __future__ import annotations

import json
from random import Random

from semcache.replay.run import replay
from semcache.replay.settings import Settings
from semcache.ttl import TTL

HOURS = "opening hours of the shop in town"


class Letters:
    """An embedder that counts letters: texts of the same letters have one vector, those of no common one are apart."""

    identity = "letters"

    def __call__(self, texts):
        import numpy as np

        rows = [[text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts]
        return np.asarray(rows, dtype=np.float32) + np.float32(1e-3)


def chat(text, ts=0, answer_id=None, *, model="m", system="be kind", **fields):
    """Return the line of a chat completion."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    body = {"model": model, "messages": messages, **fields.pop("body", {})}
    told = {"ts": ts, "kind": "llm", "request": body, **fields}
    return json.dumps(told | ({} if answer_id is None else {"answer_id": answer_id}))


def run(lines, **settings):
    """Replay lines; exact only, and without jitter, unless told otherwise."""
    defaults = {"embedder": None, "ttl": TTL(jitter=0.0)}
    return replay(lines, Settings(**(defaults | settings)), lambda *_: None)


def tiers(replayed):
    """Return which tier answered each request."""
    return [outcome.tier for outcome in replayed.outcomes]


def reworded(text, number):
    """Return the first word's letters in another order: the same vector, and words that no guard knows."""
    first, _, rest = text.partition(" ")
    letters = list(first)
    while "".join(letters) == first:
        Random(number).shuffle(letters)
        number += 1000
    return f"{''.join(letters)} {rest}"


def repeats(pairs, wrong=0, *, start=0, **fields):
    """Return lines of so many pairs of a text and its rewording, the first `wrong` of which have another answer."""
    lines = []
    for number in range(pairs):
        # Each pair in a scope of its own, so that it finds no other; they share a family.
        turns = [{"role": "user", "content": f"turn {number}"}, {"role": "assistant", "content": "yes"}]
        for place, text in enumerate((HOURS, reworded(HOURS, number))):
            answer = f"{number}-{place}" if number < wrong else str(number)
            body = {"model": "m", "messages": [*turns, {"role": "user", "content": text}]}
            told = {"ts": start + 2 * number + place, "kind": "llm", "request": body}
            lines.append(json.dumps({**told, **(fields or {"answer_id": answer})}))
    return lines
