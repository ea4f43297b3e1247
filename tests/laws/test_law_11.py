"""Law 11: vectors of one embedder never meet another's."""

from __future__ import annotations

import threading

import pytest
from instruments import GUARD, Compass

import semcache
from semcache.policy.label import Label, Source

pytestmark = pytest.mark.semantic


def test_identity_is_in_the_scope(open_near):
    """Law 11: two embedders' requests have two scopes, and one key: exact entries are shared."""
    one, other = (open_near(embedder=Compass(identity=name)).request(text="a") for name in ("one", "other"))
    assert one.scope != other.scope
    assert one.key == other.key


def test_two_embedders_work_side_by_side_on_one_store(open_near, tmp_path):
    """Law 11: during a rollout each process's index is of its own embedder; exact answers are everybody's."""
    path = tmp_path / "cache.db"
    old = open_near(embedder=Compass(identity="old"), disk=path)
    old.get_or_load(old.request(text="stored"), lambda: "old")
    old.flush()
    new = open_near(embedder=Compass(identity="new"), disk=path)
    assert new.stats().tiers["semantic"]["rows"] == 0
    assert new.get_or_load(new.request(text="asked"), lambda: "new") == "new"
    assert new.get_or_load(new.request(text="stored"), lambda: "loaded") == "old"
    new.flush()
    restarted = [open_near(embedder=Compass(identity=name), disk=path) for name in ("old", "new")]
    answers = [cache.get_or_load(cache.request(text="asked again"), lambda: "loaded") for cache in restarted]
    assert answers == ["old", "new"]


def test_late_vector_is_not_attached_to_another_embedders_row(open_near, tmp_path):
    """Law 11: a vector that comes when another embedder has written the key anew is no vector of that row."""
    path, gates = tmp_path / "cache.db", [threading.Event(), threading.Event()]
    embedders = [Compass({"stored": angle}, identity=name) for name, angle in (("old", 0), ("new", 90))]
    old, new = (open_near(embedder=embedder, disk=path) for embedder in embedders)
    for embedder, gate in zip(embedders, gates, strict=True):
        embedder.entered.clear()
        embedder.gate = gate
    old.get_or_load(old.request(text="stored"), lambda: "old")
    assert embedders[0].entered.wait(GUARD)
    old.disk.flush(GUARD)
    with semcache.context(mode="refresh"):
        new.get_or_load(new.request(text="stored"), lambda: "new")
    assert embedders[1].entered.wait(GUARD)
    new.disk.flush(GUARD)
    gates[0].set()
    old.flush()
    (row,) = new.disk.rows("new")
    assert row.vector is None
    gates[1].set()
    new.flush()
    (row,) = new.disk.rows("new")
    assert row.vector.tolist() == pytest.approx([0, 1], abs=1e-3)


@pytest.mark.parametrize("identity", [None, "", 7])
def test_embedder_without_a_name_is_refused(open_cache, identity):
    """Law 11: a callable embedder must say whose vectors it makes."""
    embedder = Compass()
    embedder.identity = identity
    with pytest.raises(semcache.ConfigurationError, match="identity"):
        open_cache(embedder=embedder)


def test_labels_of_one_embedder_open_nothing_for_another(open_near, tmp_path):
    """Law 11: what was learned of one's near matches says nothing of another's, in whatever process."""
    caches = {
        name: open_near(
            embedder=Compass(identity=name), policy=semcache.ErrorBudget(0.05), audit=0.0, disk=tmp_path / "cache.db"
        )
        for name in ("old", "new")
    }  # fmt: skip
    old = caches["old"]
    request = old.request(text="stored")
    for number in range(400):
        at = b"%d" % number
        old.policy.learn(Label(request.family, at, at, "a", "b", 0.99, 0.99, True, Source.AUDIT))
    for cache in (old, caches["new"]):
        assert cache.flush(GUARD)
    given = {}
    for name, cache in caches.items():
        cache.get_or_load(cache.request(name, text="stored"), lambda: "stored")
        assert cache.flush(GUARD)
        given[name] = cache.get_or_load(cache.request(name, text="asked"), lambda: "loaded")
    assert given == {"old": "stored", "new": "loaded"}
