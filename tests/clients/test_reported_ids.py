"""Reports by the id of a client's answer: it is known again in every protocol, plain and streamed, and by others."""

from __future__ import annotations

import pytest
from dialects import Asking, OneWay

import semcache

ASKED, NEAR = "Do you ship to Austria?", "Is Austria shipped to?"


def id_in(chunks):
    """Return the id that a stream told."""
    first = chunks[0]
    return getattr(first, "id", None) or (getattr(first, "message", None) and first.message.id) or first.response.id


@pytest.fixture
def plain():
    """OpenAI's client in the plain colour."""
    made = Asking("openai", is_async=False)
    yield made
    made.close()


@pytest.fixture(params=["memory", "disk", "redis"])
def store(request, tmp_path):
    if request.param == "redis":
        return {"redis": request.getfixturevalue("redis_url")}
    return {"disk": tmp_path / "answers.db"} if request.param == "disk" else {}


@pytest.mark.parametrize("is_stream", [False, True], ids=["plain", "stream"])
def test_answer_is_found_by_its_id(asking, models, open_cache, is_stream):
    """What was loaded goes everywhere by the id that its caller holds, and is loaded anew."""
    cache = open_cache()
    client = asking.cached(models, cache)
    told = id_in(asking.read(client, ASKED)) if is_stream else asking.ask(client, ASKED).id
    assert asking.event.response_id == told
    said = cache.report_wrong(response_id=told)
    assert (said.entries, said.dropped) == ((asking.event.key,), 1)
    assert asking.ask(client, ASKED).id != told
    assert models.calls == 2


def test_id_is_known_to_other_processes(plain, models, open_cache, store):
    """The store keeps ids for seven days, for whoever is told that an answer was wrong."""
    one = open_cache(**store)
    told = plain.ask(plain.cached(models, one), ASKED).id
    assert one.flush()
    other = open_cache(**store) if store else one
    assert other.report_wrong(response_id=told).dropped == 1
    if "disk" in store:  # Redis' own clock does not stand still
        one.clock.advance(7 * 86_400 + 1)
        assert not other.report_wrong(response_id=told)


@pytest.mark.semantic
@pytest.mark.parametrize("is_stream", [False, True], ids=["plain", "stream"])
def test_id_of_an_answer_that_was_given_nearly_blocks_the_pair(plain, models, open_cache, is_stream):
    """Who loaded it and who was given it hold one id: the entry goes, and is not given to the other text again."""
    cache = open_cache(embedder=OneWay(), policy=semcache.Threshold(0.9, guards=None), tenant=semcache.SHARED)
    cache.warm()
    client = plain.cached(models, cache)
    told = plain.ask(client, ASKED).id
    cache.flush()
    assert (id_in(plain.read(client, NEAR)) if is_stream else plain.ask(client, NEAR).id) == told
    assert (plain.event.tier, plain.event.response_id) == ("semantic", told)
    said = cache.report_wrong(response_id=told)
    stored = plain.event.neighbour
    assert (said.blocked, said.entries, said.dropped) == (((plain.event.key, stored),), (stored,), 1)
    assert plain.ask(client, ASKED).id != told
    cache.flush()
    assert plain.text(plain.ask(client, NEAR)) == f"Answer to: {NEAR}"


def test_answer_without_an_id_is_nobodys(plain, models, open_cache):
    """An id that is not told by the stored answer is not known."""
    cache = open_cache()
    plain.ask(plain.cached(models, cache), ASKED)
    said = cache.report_wrong(response_id="chatcmpl-of-another")
    assert (bool(said), "no answer with the id" in said.reason) == (False, True)
