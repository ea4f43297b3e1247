"""A stream that a cosine cannot tell apart and a score can: what is asked for is one word, the others are manners."""

from __future__ import annotations

from random import Random
from zlib import crc32

from recordings import chat

MANNERS = ("please", "kindly", "hello", "hey", "gently", "softly", "maybe", "just", "simply", "thanks")
_LOUD, _QUIET = 1.0, 1.0


class Words:
    """An embedder that adds up words' vectors: manners are loud in it, and what is asked for is not."""

    identity = "words"

    def __call__(self, texts):
        import numpy as np

        return np.stack([sum(self._word(word) for word in text.split()) for text in texts]).astype(np.float32)

    @staticmethod
    def _word(word):
        import numpy as np

        vector = np.random.default_rng(crc32(word.encode())).standard_normal(12)
        return vector * (_LOUD if word in MANNERS else _QUIET)


def things(number=12):
    """Return so many words that stand for what is asked for."""
    random = Random(7)
    return ["".join(random.choices("bdfgklmnprstvz", k=3) + random.choices("aeiou", k=3)) for _ in range(number)]


def slots(requests, number=12, seed=1, **fields):
    """Return a recording's lines: the answer is the thing's, whatever the manners."""
    random, known, told = Random(seed), things(number), {}
    while len(told) < requests:
        thing = random.choice(known)
        text = " ".join([*random.sample(MANNERS, 3), "bring", "me", thing])
        told.setdefault(text, thing)
    return [chat(text, ts, thing, **fields) for ts, (text, thing) in enumerate(told.items())]


def labels(lines, most=8):
    """Return labels of each text and the nearest before it, and all texts' vectors."""
    import json

    import numpy as np

    from semcache.policy.label import Label, Source

    told = [json.loads(line) for line in lines]
    texts = [one["request"]["messages"][-1]["content"] for one in told]
    matrix = Words()(texts)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    found = []
    for place in range(1, len(texts)):
        near = matrix[:place] @ matrix[place]
        for other in np.argsort(-near)[:most].tolist():
            is_right = told[place]["answer_id"] == told[other]["answer_id"]
            similarity = float(near[other])
            found.append(
                Label(b"", b"", b"", texts[place], texts[other], similarity, similarity, is_right, Source.MISS)
            )
    return found, dict(zip(texts, matrix, strict=True))
