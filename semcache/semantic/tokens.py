"""From texts to token ids, once for each text: what counts them for law 12 and what the model is given are the same.

Laws:
- the ids are the tokenizer's own. Where it is BERT's and a text plain ASCII, words seen before are not asked again:
  such a text splits at spaces and punctuation, and each word's ids are its own, whatever stands beside it;
- all else goes through the tokenizer, many texts in slices on threads: its Rust code lets go of Python while it works.
  These threads are ours, so nothing has to be switched on for the process, and one made by fork makes its own.
"""

from __future__ import annotations

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING, Any

from semcache.semantic.ranges import ranged
from semcache.semantic.threads import usable_cpus

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MOST_TEXTS = 8192
_MOST_WORDS = 100_000
_SLICE = 32
_MOST_THREADS = 8
_WORD = re.compile(r"[A-Za-z0-9]+|[!-/:-@\[-`{-~]")
# What BERT's normalizer drops, and no word boundary may be made of.
_CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"


class Tokens:
    """The ids of texts by a tokenizer (of the package `tokenizers`) that neither truncates nor pads.

    Those of the texts asked last are remembered, so that to count them and to embed them is to split them once. Any
    thread may call it.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[str, list[int]] = {}
        self._words = _Words.of(tokenizer)
        # By process: threads do not go through a fork.
        self._pools: dict[int, ThreadPoolExecutor] = {}

    @property
    def knows_words(self) -> bool:
        """Whether words are looked up where that is safe."""
        return self._words is not None

    def prepare(self, texts: Sequence[str]) -> None:
        """Split many texts at once, ahead of who asks for each."""
        with ranged("tokenize"):
            self._prepare(texts)

    def _prepare(self, texts: Sequence[str]) -> None:
        missing = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if self._words is not None:
            for text in missing:
                ids = self._words(text)
                if ids is not None:
                    self._keep(text, ids)
            missing = [text for text in missing if text not in self._texts]
        if not missing:
            return
        slices = [missing[at : at + _SLICE] for at in range(0, len(missing), _SLICE)]
        encode = self._encode_slice
        done = map(encode, slices) if len(slices) == 1 or usable_cpus() == 1 else self._pool().map(encode, slices)
        for some, found in zip(slices, done, strict=True):
            for text, ids in zip(some, found, strict=True):
                self._keep(text, ids)

    def __call__(self, text: str) -> list[int]:
        """Return a text's ids, special tokens included; who asks must not change them."""
        ids = self._texts.get(text)
        if ids is None:
            ids = self._words(text) if self._words is not None else None
            ids = self._tokenizer.encode(text).ids if ids is None else ids
            self._keep(text, ids)
        return ids

    def _keep(self, text: str, ids: list[int]) -> None:
        if len(self._texts) >= _MOST_TEXTS:
            self._texts = {}
        self._texts[text] = ids

    def _encode_slice(self, texts: list[str]) -> list[list[int]]:
        encode = getattr(self._tokenizer, "encode_batch_fast", self._tokenizer.encode_batch)
        return [encoding.ids for encoding in encode(texts)]

    def _pool(self) -> ThreadPoolExecutor:
        pool = self._pools.get(os.getpid())
        if pool is None:
            threads = min(usable_cpus(), _MOST_THREADS)
            pool = self._pools[os.getpid()] = ThreadPoolExecutor(threads, thread_name_prefix="semcache-tokens")
        return pool


class _Words:
    """The ids of plain texts, word by word; None of any other text."""

    def __init__(self, tokenizer: Any, told: dict[str, Any], head: list[int], tail: list[int]) -> None:
        self._tokenize: Callable[[str], list[Any]] = tokenizer.model.tokenize
        self._lowers = bool(told["normalizer"]["lowercase"])
        self._head, self._tail = head, tail
        added = [re.escape(token["content"]) for token in told.get("added_tokens", ())]
        # Tokens that stand for themselves, as "[MASK]", are found before words are.
        self._other = re.compile("|".join([_CONTROL, *added]), re.IGNORECASE)
        self._firsts = {token["content"][:1].swapcase() for token in told.get("added_tokens", ())}
        self._firsts |= {first.swapcase() for first in self._firsts}
        self._known: dict[str, list[int]] = {}

    @classmethod
    def of(cls, tokenizer: Any) -> _Words | None:
        """Return the words of a tokenizer that splits as BERT's does; None of any other."""
        told = json.loads(tokenizer.to_str())
        kinds = [(told.get(part) or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model")]
        if kinds != ["BertNormalizer", "BertPreTokenizer", "WordPiece"] or not told["normalizer"]["clean_text"]:
            return None
        letter, both = tokenizer.encode("a").ids, tokenizer.encode("a b").ids
        specials = tokenizer.encode("").ids
        at = next((place for place in range(len(specials) + 1) if letter[:place] == specials[:place] == both[:place]
                   and letter[place + 1 :] == specials[place:] == both[place + 2 :]), None)  # fmt: skip
        return None if at is None else cls(tokenizer, told, specials[:at], specials[at:])

    def __call__(self, text: str) -> list[int] | None:
        if not text.isascii():
            return None
        # The expression is slow, and hardly a text needs it.
        is_plain = text.isprintable()
        for first in self._firsts:
            is_plain = is_plain and first not in text
        if not is_plain and self._other.search(text):
            return None
        words = _WORD.findall(text.lower() if self._lowers else text)
        try:
            return [*self._head, *chain.from_iterable(map(self._known.__getitem__, words)), *self._tail]
        except KeyError:
            known = [self._known.get(word) or self._learn(word) for word in words]
            return [*self._head, *chain.from_iterable(known), *self._tail]

    def _learn(self, word: str) -> list[int]:
        if len(self._known) >= _MOST_WORDS:
            self._known.clear()
        ids = self._known[word] = [token.id for token in self._tokenize(word)]
        return ids
