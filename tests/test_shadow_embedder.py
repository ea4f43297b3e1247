"""A shadow embedder: what its near matches are and how often they are right, learned before it answers anybody."""

from __future__ import annotations

import math
import os
import signal
import threading

import pytest
from instruments import GUARD, Compass, Origin

import semcache
from semcache import shadowing
from semcache.policy.label import Label, Source

pytestmark = pytest.mark.semantic

PAY, HOW, FAR = "how do I pay my bill", "in which way do I pay my bill", "where is my parcel"
OLD = {PAY: 0, HOW: 80, FAR: 160}
NEW = {PAY: 0, HOW: 8, FAR: 90}


@pytest.fixture
def open_beside(open_cache):
    """Make caches in which only the shadow embedder takes the two texts for near, ready to answer."""

    def open_one(*, embedder=None, shadow=None, is_ready=True, **settings):
        settings = {"policy": None, "tenant": semcache.SHARED, "audit": 1.0} | settings
        cache = open_cache(
            embedder=embedder or Compass(OLD, identity="old"),
            shadow_embedder=shadow or Compass(NEW, identity="new"), **settings,
        )  # fmt: skip
        cache.warm()
        if shadow is None or (shadow.gate is None and is_ready):
            cache.chain.shadowing.tier.batcher.warm().result(GUARD)
        return cache

    return open_one


def look(cache, text, answer):
    """Ask, and have all that is done behind be done; answers what the caller was given."""
    given = cache.get_or_load(cache.request(text=text), answer if callable(answer) else lambda: answer)
    assert cache.flush(GUARD)
    return given


def shadow(cache):
    return cache.shadow_policy.status().others


def teach(policy, cache, count, identity, *, is_right=True):
    """Give a policy labels of the family of our texts."""
    request = cache.request(text=PAY)
    request.embedder = identity
    policy.within(request)
    for number in range(count):
        at = b"%d" % number
        policy.learn(Label(request.family, at, at, "a", "b", 0.99, 0.99, is_right, Source.AUDIT))


@pytest.mark.parametrize(("fresh", "wrong"), [("by card", 0), ("By wire.", 1)])
def test_its_near_matches_are_labelled_as_those_in_use_are(open_beside, ask, fresh, wrong):
    """The texts are far for the embedder in use, and near for the other: that one alone has a label, and says so."""
    cache = open_beside()
    for text, answer in ((PAY, "By card."), (HOW, fresh)):
        assert ask(cache, cache.request(text=text), lambda answer=answer: answer) == answer
        assert cache.flush(GUARD)
    told = shadow(cache)
    assert (told.labels, told.wrong.count, told.asked, told.near) == (1, wrong, 2, 1)
    assert (cache.policy.status().others.labels, cache.policy.status().others.asked) == (0, 2)
    status = cache.policy.status()
    assert (status.embedder, status.shadow.embedder, status.shadow.others.labels) == ("old", "new", 1)
    assert "the shadow embedder, new, would serve:" in str(status)
    assert cache.stats().shadow == "in shadow, by new: Shadow(): 1 labels, nothing near is served"
    assert (cache.stats().tiers["shadow"]["rows"], cache.stats().tiers["semantic"]["rows"]) == (2, 2)


def test_nothing_that_it_finds_is_served(open_beside):
    """Whatever its cut allows: only the embedder in use answers (law 11)."""
    cache = open_beside(policy=semcache.ErrorBudget(0.05), audit=0.0)
    teach(cache.shadow_policy, cache, 400, "new")
    assert cache.shadow_policy.status().families[0].cut is not None
    look(cache, PAY, "By card.")
    assert look(cache, HOW, "By wire.") == "By wire."
    assert cache.stats().hits.get("semantic", 0) == 0


def test_no_caller_waits_for_it(open_beside, ask):
    """It holds its vectors back; both callers have had their answers long before."""
    gate = threading.Event()
    cache = open_beside(shadow=Compass(NEW, identity="new", gate=gate))
    for text in (PAY, HOW):
        assert ask(cache, cache.request(text=text), lambda text=text: text) == text
        assert cache.chain.crew.wait(GUARD)
        assert cache.semantic.flush(GUARD)
    gate.set()
    assert cache.flush(GUARD)
    assert cache.stats().tiers["shadow"]["rows"] == 2


def test_what_it_is_behind_with_is_left_out_and_told(open_beside, monkeypatch):
    """The queue has an end; past it texts are counted, and an event says so."""
    monkeypatch.setattr(shadowing, "MOST_WAITING", 3)
    gate, heard = threading.Event(), []
    embedder = Compass(NEW, identity="new", gate=gate)
    cache = open_beside(shadow=embedder, observers=[heard.append])
    cache.chain.shadowing.tier.unready()
    look_at = [f"text {number}" for number in range(12)]
    for text in look_at:
        cache.get_or_load(cache.request(text=text), lambda text=text: text)
    with cache.chain.shadowing._lock:
        assert len(cache.chain.shadowing._waiting) <= 3
    gate.set()
    assert cache.flush(GUARD)
    monkeypatch.setattr(shadowing, "MOST_BYTES", 0)
    look(cache, FAR, "On its way.")
    left_out = cache.shadow_policy.status().unlabelled["the shadow embedder is behind"]
    assert left_out >= 1
    assert cache.stats().faults["shadow: full"] >= left_out
    assert any(event.kind == "fault" and event.tier == "shadow" for event in heard)


def test_one_that_fails_costs_its_labels_alone(open_beside):
    """Callers have their answers, near matches of the embedder in use go on, and an event tells of it."""

    class Broken(Compass):
        def __call__(self, texts):
            raise OSError("no memory")

    cache = open_beside(
        shadow=Broken(identity="new"), is_ready=False, policy=semcache.Threshold(0.9, guards=None), audit=0.0,
        embedder=Compass({PAY: 0, HOW: 5}, identity="old"),
    )  # fmt: skip
    look(cache, PAY, "By card.")
    assert look(cache, HOW, "By wire.") == "By card."
    assert look(cache, FAR, "On its way.") == "By card."
    assert any(what.startswith("shadow: ") for what in cache.stats().faults)


def test_one_that_cannot_be_loaded_holds_nobody_up(open_beside):
    """What is flushed are answers, and they are kept; nor does an audit load for what nobody compares."""

    class Absent(Compass):
        def load(self):
            raise OSError("no such model")

    cache = open_beside(
        shadow=Absent(identity="new"), is_ready=False, policy=semcache.Threshold(0.9, guards=None),
        embedder=Compass({PAY: 0, HOW: 5}, identity="old"),
    )  # fmt: skip
    look(cache, PAY, "By card.")
    assert look(cache, HOW, "By wire.") == "By card."
    assert cache.stats().faults["shadow: load"] >= 1


def test_closing_waits_for_nothing_that_it_has_not_looked_at(open_beside):
    """It holds its vectors back, and the cache is closed all the same."""
    gate = threading.Event()
    embedder = Compass(NEW, identity="new", gate=gate)
    cache = open_beside(shadow=embedder)
    for text in (PAY, HOW, FAR):
        cache.get_or_load(cache.request(text=text), lambda: "answer")
    assert embedder.entered.wait(GUARD)
    closing = threading.Thread(target=cache.close)
    closing.start()
    gate.set()
    closing.join(GUARD)
    assert not closing.is_alive()
    assert cache.stats().tiers["shadow"]["waiting"] == 0


def test_its_sample_is_drawn_at_the_rate_of_the_policy_in_use(open_beside):
    """Whether the embedder in use has a match or none: else its labels would be of other matches than it would serve.

    Once the policy in use serves, that is the rate `audit`; before, half.
    """
    cache = open_beside(policy=semcache.ErrorBudget(0.05), audit=0.2)
    request = cache.request(text=PAY)

    def share():
        drawn = cache.chain.shadowing._is_drawn
        return sum(drawn(request, semcache.model.Evidence()) for _ in range(2000)) / 2000

    assert 0.45 < share() < 0.55
    teach(cache.policy, cache, 400, "old")
    assert 0.16 < share() < 0.24


@pytest.mark.parametrize(("audit", "labels"), [(1.0, 1), (0.0, 0)])
def test_what_the_policy_in_use_serves_is_labelled_where_it_was_drawn(open_beside, audit, labels):
    """A match that is served is not loaded: of the sample it is for both, or for neither."""
    near = {PAY: 0, HOW: 5}
    cache = open_beside(
        policy=semcache.ErrorBudget(0.05), audit=audit, embedder=Compass(near, identity="old"),
        shadow=Compass(near, identity="new"),
    )  # fmt: skip
    teach(cache.policy, cache, 400, "old")
    look(cache, PAY, "By card.")
    look(cache, HOW, "By wire.")
    told = shadow(cache)
    assert (told.labels, told.near, told.informing) == (labels, 1, 0)
    assert cache.policy.status().families[0].labels == 400 + labels


def test_both_draw_one_sample(open_beside):
    """Of matches that both have, some served and some loaded, each label of the one is a label of the other."""
    texts = {f"{PAY}, {'very ' * number}soon": number * 0.01 for number in range(24)}
    cache = open_beside(
        policy=semcache.ErrorBudget(0.05), audit=0.5, embedder=Compass(texts, identity="old"),
        shadow=Compass(texts, identity="new"), seed=7,
    )  # fmt: skip
    teach(cache.policy, cache, 400, "old")
    for text in texts:
        look(cache, text, "By card.")
    mine = cache.policy.status().families[0].labels - 400
    assert 3 < mine < 21
    assert shadow(cache).labels == mine


def test_what_was_not_drawn_informs(open_beside):
    """Once the policy in use serves and audits nothing, no match of the other's is of the sample, be it loaded."""
    texts = [f"{PAY}, {'very ' * number}soon" for number in range(12)]
    cache = open_beside(
        policy=semcache.ErrorBudget(0.05), audit=0.0, embedder=Compass(dict(zip(texts, range(0, 360, 30), strict=True)),
        identity="old"), shadow=Compass(dict(zip(texts, range(12), strict=True)), identity="new"),
    )  # fmt: skip
    teach(cache.policy, cache, 400, "old")
    for text in texts:
        look(cache, text, "By card.")
    told = shadow(cache)
    assert (told.labels, told.near, told.informing) == (0, 11, 11)


@pytest.mark.parametrize(("audit", "given"), [(1.0, "By wire."), (0.0, "By card.")])
def test_of_what_a_threshold_serves_the_share_audit_is_loaded(open_beside, audit, given):
    """Else a shadow embedder's labels would be of what the threshold does not serve alone."""
    near = {PAY: 0, HOW: 5}
    cache = open_beside(
        policy=semcache.Threshold(0.9), audit=audit, embedder=Compass(near, identity="old"),
        shadow=Compass(near, identity="new"),
    )  # fmt: skip
    look(cache, PAY, "By card.")
    assert look(cache, HOW, "By wire.") == given
    assert (shadow(cache).labels, shadow(cache).near) == (int(audit), 1)
    assert cache.stats().not_served == ({"audit": 1} if audit else {})


def test_an_audit_whose_load_fails_serves_what_it_would_have(open_beside):
    """And nobody is asked for another in the next seconds."""
    near = {PAY: 0, HOW: 5, FAR: 6}
    cache = open_beside(policy=semcache.Threshold(0.9), embedder=Compass(near, identity="old"))
    look(cache, PAY, "By card.")
    origin = Origin(OSError("down"))
    assert look(cache, HOW, origin) == "By card."
    assert look(cache, FAR, origin) == "By card."
    assert origin.calls == 1


def test_curated_answers_are_its_neighbours_too(open_beside):
    """What `put` stores is found by it as by the one in use, and counts as no request."""
    cache = open_beside()
    cache.put(cache.request(text=PAY), value="By card.", pinned=True)
    assert cache.flush(GUARD)
    look(cache, HOW, "by card")
    assert (shadow(cache).labels, shadow(cache).asked) == (1, 1)


def test_after_the_switch_a_cache_begins_with_what_was_learned(open_beside, open_near, store):
    """The labels stand under the new embedder: who is made with it serves at once, and the old one's count no more."""
    cache = open_beside(policy=semcache.ErrorBudget(0.05), **store)
    teach(cache.shadow_policy, cache, 400, "new")
    teach(cache.policy, cache, 7, "old")
    look(cache, PAY, "By card.")
    before = cache.shadow_policy.status().families[0]
    cache.close()
    new = open_near(embedder=Compass(NEW, identity="new"), policy=semcache.ErrorBudget(0.05), audit=0.0, **store)
    new.flush(GUARD)
    (after,) = new.policy.status().families
    assert (after.labels, after.cut, after.state) == (before.labels, before.cut, "open")
    new.get_or_load(new.request(text=FAR), lambda: "On its way.")
    new.reindex()
    assert look(new, HOW, "By wire.") == "By card."


def test_processes_learn_of_it_together(open_beside, store):
    """Neither has labels enough, both together have; the policy in use is told nothing of them."""
    one, other = (open_beside(policy=semcache.ErrorBudget(0.05), **store) for _ in range(2))
    for cache, first in ((one, 0), (other, 1000)):
        request = cache.request(text=PAY)
        for number in range(first, first + 80):
            at = b"%d" % number
            cache.shadow_policy.learn(Label(request.family, at, at, "a", "b", 0.99, 0.99, True, Source.AUDIT))
    for cache in (one, other, one):
        assert cache.flush(GUARD)
    for cache in (one, other):
        (told,) = cache.shadow_policy.status().families
        assert (told.labels, told.state) == (160, "open")
        assert cache.policy.status().families == ()


def test_what_was_reindexed_is_found_by_it(open_beside, open_near, tmp_path):
    """Rows that stand in the store under its name are its neighbours, from the start and as they come."""
    path = tmp_path / "cache.db"
    new = open_near(embedder=Compass(NEW, identity="new"), policy=None, disk=path)
    look(new, PAY, "By card.")
    cache = open_beside(disk=path)
    look(cache, FAR, "On its way.")
    look(cache, HOW, "by card")
    assert shadow(cache).labels == 1


def test_stored_rows_are_those_of_the_embedder_in_use_alone(open_beside, tmp_path):
    """Its index is in memory: nothing of it is written, so nobody else finds with it."""
    cache = open_beside(disk=tmp_path / "cache.db")
    look(cache, PAY, "By card.")
    assert [len(list(cache.store.rows(name))) for name in ("old", "new")] == [1, 0]


def test_its_scores_are_taught_by_its_own_vectors(open_beside):
    """Law 11: where scores are learned, each embedder's are of its own vectors, and stand under its own name."""
    cache = open_beside(policy=semcache.ErrorBudget(0.05, learn_score=True))
    used, beside = (learns.teaching for learns in cache.chain.learning)
    assert (used._whose, beside._whose) == ("old", "new")
    for teaching, degrees in ((used, OLD[HOW]), (beside, NEW[HOW])):
        vector = teaching._embed(HOW).result(GUARD)
        assert vector[0] == pytest.approx(math.cos(math.radians(degrees)), abs=1e-5)


def test_a_shadow_of_nothing_is_refused(open_cache):
    """With the mend: it learns beside another embedder, and not beside itself."""
    with pytest.raises(semcache.ConfigurationError, match="give embedder= too"):
        open_cache(shadow_embedder=Compass())
    with pytest.raises(semcache.ConfigurationError, match="is the embedder in use"):
        open_cache(embedder=Compass(), shadow_embedder=Compass())
    assert open_cache(embedder=Compass()).shadow_policy is None


def test_a_child_of_a_fork_learns_by_itself(open_beside):
    """Queue, thread and index are the parent's; the child begins its own."""
    cache = open_beside()
    look(cache, PAY, "By card.")
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        cache.warm()
        cache.chain.shadowing.tier.batcher.warm().result(GUARD)
        look(cache, FAR, "On its way.")
        look(cache, HOW, "by card")
        os._exit(0 if shadow(cache).asked == 2 else 1)
    assert os.waitpid(child, 0)[1] == 0
    look(cache, HOW, "by card")
    assert shadow(cache).labels == 1


def test_two_real_embedders(open_cache):
    """A sentence-transformers model beside itself with another prefix: two identities, both of which learn."""
    from semcache.semantic.embedder import SentenceTransformerEmbedder

    cache = open_cache(
        embedder=SentenceTransformerEmbedder(device="cpu"), tenant=semcache.SHARED, audit=1.0,
        shadow_embedder=SentenceTransformerEmbedder(device="cpu", prompt="question: "),
    )  # fmt: skip
    cache.warm()
    look(cache, "How do I reset my password?", "In your settings.")
    look(cache, "How can I reset my password?", "in your settings")
    status = cache.policy.status()
    assert status.embedder != status.shadow.embedder
    assert [(told.others.labels, told.others.wrong.count) for told in (status, status.shadow)] == [(1, 0), (1, 0)]
