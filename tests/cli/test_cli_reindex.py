"""`semcache reindex`: a store's texts under the new embedder's name."""

from __future__ import annotations

import pytest
from instruments import GUARD, Compass
from servers import _free_port

import semcache
from semcache.testing import StandIn

pytestmark = pytest.mark.semantic


@pytest.fixture
def models():
    with StandIn() as made:
        yield made


@pytest.fixture
def old(open_service, store):
    """A service with the old embedder, which has stored two texts."""
    cache = open_service(**store, embedder=Compass(identity="old"), tenant=semcache.SHARED)
    for text in ("Where is my parcel?", "May I return it?"):
        cache.get_or_load(cache.request(text=text), lambda: "answer")
    assert cache.flush(GUARD)
    return cache


@pytest.mark.usefixtures("old")
def test_texts_are_embedded_by_the_new_one(open_service, store, typed, told, models):
    """Counted first, then done, then nothing is left to do; a service that starts has the rows."""
    asked = ("reindex", "--embedder", models.openai_url, *typed)
    assert told(*asked, "--dry-run")["found"] == {"old": 2}
    done = told(*asked, "--quiet")
    assert (done["found"], done["embedded"], done["is_dry_run"]) == ({"old": 2}, 2, False)
    assert told(*asked, "--quiet")["found"] == {}
    cache = open_service(**store, embedder=models.openai_url)
    cache.warm()
    assert cache.stats().tiers["semantic"]["rows"] == 2
    assert done["embedder"] == cache.embedder_identity


@pytest.mark.usefixtures("old")
def test_what_was_done_is_said_in_a_line(typed, semcache_command, models):
    """The line on stdout says how many texts of whom; progress goes to stderr."""
    status, out, err = semcache_command("reindex", "--embedder", models.openai_url, *typed)
    assert status == 0
    assert out.startswith("embedded 2 texts (2 of old) by ")
    assert err == "reindex 2 ...\n"


def test_embedder_is_to_be_named(typed, semcache_command):
    """Without it there is nothing to embed with."""
    status, _, err = semcache_command("reindex", *typed)
    assert status == 2
    assert "--embedder MODEL" in err


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_unknown_namespace_is_a_wrong_use(store, typed, semcache_command, models, more):
    """A mistyped one would be an empty one, of which all is done; a file says which it has."""
    asked = [*typed, "--namespace", "typo"]
    status, out, err = semcache_command("reindex", "--embedder", models.openai_url, *asked, *more)
    assert (status, out) == (2, "")
    assert "nothing stands in namespace 'typo'" in err
    assert "is it the right name?" in err
    assert ("it holds 'tests'" in err) == ("disk" in store)


@pytest.mark.usefixtures("old")
def test_embedder_that_cannot_be_had_is_told_by_a_dry_run(typed, semcache_command):
    """What would fail then fails now: it is loaded, though nothing is embedded."""
    url = f"http://127.0.0.1:{_free_port()}/v1#model"
    status, out, err = semcache_command("reindex", "--embedder", url, *typed, "--dry-run")
    assert (status, out) == (1, "")
    assert url.partition("#")[0] in err
