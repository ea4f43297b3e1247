"""What the tests of clients share: a stand-in for the models' servers."""

from __future__ import annotations

from contextlib import closing

import pytest
from dialects import EVERY, EVERY_ID, EVERY_WITH_MESSAGES, Asking, OneWay

import semcache
from semcache.testing import StandIn


@pytest.fixture
def models():
    with StandIn() as server:
        yield server


@pytest.fixture
def cache(open_cache):
    """A cache in memory."""
    return open_cache()


@pytest.fixture(params=EVERY, ids=EVERY_ID)
def asking(request):
    """Each protocol in each colour."""
    with closing(Asking(*request.param)) as made:
        yield made


@pytest.fixture(params=EVERY_WITH_MESSAGES, ids=lambda told: f"{told[0]}-{'async' if told[1] else 'sync'}")
def asking_by_messages(request):
    """Each protocol whose calls have messages, in each colour."""
    with closing(Asking(*request.param)) as made:
        yield made


@pytest.fixture
def plain():
    """OpenAI's client in the plain colour."""
    with closing(Asking("openai", is_async=False)) as made:
        yield made


@pytest.fixture
def claude():
    """Anthropic's client in the plain colour."""
    with closing(Asking("anthropic", is_async=False)) as made:
        yield made


@pytest.fixture(params=["memory", "disk", "redis", pytest.param("semantic", marks=pytest.mark.semantic)])
def tier(request):
    return request.param


@pytest.fixture
def hitting(request, open_cache, tier, tmp_path):
    """A cache in which an answer is found again in that tier."""

    def settings():
        if tier == "redis":
            return {"memory": 0, "redis": request.getfixturevalue("redis_url")}
        if tier == "disk":
            return {"memory": 0, "disk": tmp_path / "answers.db"}
        if tier == "semantic":
            return {"embedder": OneWay(), "policy": semcache.Threshold(0.9, guards=None), "tenant": semcache.SHARED}
        return {}

    made = open_cache(**settings())
    if tier == "semantic":
        made.warm()
    return made
