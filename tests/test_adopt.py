"""A cache that runs goes on with another policy: what is served changes with it, and what was learned is kept."""

from __future__ import annotations

import pytest
from instruments import GUARD, Compass

import semcache

pytestmark = pytest.mark.semantic
NEAR = {f"{n} {kind}": n * 45 + step for n in range(3) for kind, step in (("stored", 0), ("asked", 3))}


def ask(cache, text, answer="answer"):
    return cache.get_or_load(cache.request("q", text=text), lambda: answer)


def served(cache, number):
    """Say whether a reworded text is answered by what stands."""
    ask(cache, f"{number} stored", "stored")
    assert cache.flush(GUARD)
    return ask(cache, f"{number} asked", "loaded") == "stored"


def known(cache):
    """Return how many labels the policy has."""
    status = cache.policy.status()
    families = [*status.families, *([status.others] if status.others else [])]
    return sum(family.labels + family.informing for family in families)


@pytest.fixture
def cache(open_near):
    return open_near(NEAR, policy=None)


def test_policy_is_exchanged_while_calls_go_on(cache):
    """Nothing near before, what the new one serves after, nothing again behind a stricter one."""
    assert not served(cache, 0)
    cache.adopt(semcache.Threshold(0.9, guards=None))
    assert served(cache, 1)
    cache.adopt(semcache.Threshold(0.9999, guards=None))
    assert not served(cache, 2)
    assert "0.9999" in cache.stats().policy


@pytest.mark.parametrize("shared", [False, True])
def test_what_was_learned_goes_over(open_near, tmp_path, shared):
    """From shadow to a budget and back: every label counts, with a store that has them and without one."""
    degrees = {f"{n} {kind}": n * 20 + step for n in range(12) for kind, step in (("stored", 0), ("asked", 2))}
    cache = open_near(degrees, policy=None, **({"disk": tmp_path / "cache.db"} if shared else {}))
    for number in range(12):
        assert not served(cache, number)
    assert cache.flush(GUARD)
    labels = known(cache)
    assert labels >= 12
    for policy in (semcache.ErrorBudget(0.05), None):
        cache.adopt(policy)
        assert known(cache) == labels


def test_policy_that_cannot_be_taken_leaves_the_old_one(open_near, cache):
    """Another cache's, one with a second stage, one beside a shadow embedder."""
    before = cache.policy
    taken = semcache.ErrorBudget(0.01)
    open_near(policy=taken)
    for policy, why in ((taken, "another cache"), (semcache.ErrorBudget(0.01, learn_score=True), "score to learn")):
        with pytest.raises(semcache.ConfigurationError, match=why):
            cache.adopt(policy)
    assert cache.policy is before
    beside = open_near(shadow_embedder=Compass(identity="other"))
    with pytest.raises(semcache.ConfigurationError, match="shadow_embedder"):
        beside.adopt(None)


def test_policy_with_a_second_stage_is_not_exchanged(open_near):
    """The stage belongs to the index, and would go on refusing."""

    class Doubtful:
        identity, sure_from = "doubtful", 1.0

    cache = open_near(policy=semcache.Threshold(0.9, guards=None))
    cache.semantic.second = Doubtful()
    cache.policy.cross_encoder = cache.semantic.second
    with pytest.raises(semcache.ConfigurationError, match="second stage"):
        cache.adopt(None)
