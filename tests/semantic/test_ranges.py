"""Ranges for a profiler: nothing without CUDA; with it, one each for tokenizing, embedding and search."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from instruments import Compass, Origin

from semcache.semantic import ranges


class Cuda:
    """What torch.cuda says of a device, and the ranges that were opened in it."""

    def __init__(self, *, is_used, has_nvtx=True):
        self.is_used = is_used
        self.has_nvtx = has_nvtx
        self.opened = []
        self.nvtx = self

    def is_initialized(self):
        return self.is_used

    def mark(self, name):
        if not self.has_nvtx:
            raise RuntimeError("NVTX functions not installed. Are you sure you have a CUDA build?")

    @contextmanager
    def range(self, name):
        self.opened.append(name)
        yield


def lookup(open_near):
    cache = open_near(embedder=Compass())
    cache.get_or_load(cache.request(text="stored"), Origin())
    cache.flush()
    cache.get_or_load(cache.request(text="asked"), Origin())
    return cache


@pytest.mark.semantic
@pytest.mark.parametrize("is_used", [False, True])
def test_embedding_and_search_are_ranges_where_cuda_is_in_use(open_near, monkeypatch, is_used):
    """Around each batch of the worker; where CUDA is not in use nothing is asked of it."""
    cuda = Cuda(is_used=is_used)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    lookup(open_near)
    assert set(cuda.opened) == ({"semcache.embed", "semcache.search"} if is_used else set())


@pytest.mark.parametrize("module", [None, SimpleNamespace()], ids=["no torch", "half imported"])
def test_without_torch_a_range_is_nothing(monkeypatch, module):
    """And imports none."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    if module is not None:
        monkeypatch.setitem(sys.modules, "torch", module)
    assert ranges.ranged("embed") is ranges.ranged("search")
    with ranges.ranged("embed"):
        assert sys.modules.get("torch") is module


@pytest.mark.semantic
def test_tokenizing_is_a_range(monkeypatch):
    """Of many texts at once, as a GPU is given them."""
    from tokenizers import Tokenizer, models

    from semcache.semantic.tokens import Tokens

    cuda = Cuda(is_used=True)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    Tokens(Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, "[UNK]"))).prepare(["a", "b"])
    assert cuda.opened == ["semcache.tokenize"]


@pytest.mark.semantic
def test_torch_without_nvtx_embeds_all_the_same(open_near, monkeypatch):
    """As on AMD's GPUs: there is no range, and no fault either."""
    cuda = Cuda(is_used=True, has_nvtx=False)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    cache = lookup(open_near)
    assert cuda.opened == []
    assert cache.stats().faults == {}
