"""The semantic tier through a cache: what it finds, what it serves, what it computes, and what it tells."""

from __future__ import annotations

import threading

import pytest
from instruments import GUARD, Compass, Crew, Origin

import semcache
from semcache import life
from semcache.tiers import semantic as semantic_tier

pytestmark = pytest.mark.semantic

# Angles from 0, where every text points that is not named here.
NEAR, FAR = {"near": 10, "nearer": 5}, {"far": 60}


def fill(cache, texts):
    """Store each text under itself; in shadow, so that none is answered by its neighbour's."""
    with semcache.context(mode="shadow"):
        for text in texts:
            cache.get_or_load(cache.request(text=text), lambda text=text: text)
    cache.flush()


class Choosy:
    """Serves one text, and says of the others what it is told to."""

    def __init__(self, wanted, otherwise=semcache.Verdict.REJECT):
        self.wanted = wanted
        self.otherwise = otherwise
        self.judged = []

    def decide(self, text, neighbour):
        self.judged.append((text, neighbour.text))
        verdict = semcache.Verdict.REUSE if neighbour.text == self.wanted else self.otherwise
        return semcache.Decision(verdict, "choosy", neighbour.similarity)


def test_nearest_is_served_with_its_similarity(open_near, ask):
    """Of several near matches the nearest answers; the event tells its key, the cosine and the policy's word."""
    cache = open_near(NEAR | FAR)
    fill(cache, NEAR | FAR)
    with semcache.trace() as seen:
        assert ask(cache, cache.request(text="asked"), lambda: "loaded") == "nearer"
    (event,) = seen.lookups
    assert (event.kind, event.tier, event.neighbour) == ("hit", "semantic", cache.request(text="nearer").key)
    assert event.similarity == pytest.approx(0.9962, abs=2e-4)
    assert (event.decision.verdict, event.decision.cut) == (semcache.Verdict.REUSE, 0.9)


@pytest.mark.parametrize(("angle", "is_served"), [(25, True), (26, False)])
def test_threshold_serves_from_its_cut_on(open_near, angle, is_served):
    """The cut is a cosine: 0.9 lies between 25 and 26 degrees."""
    cache = open_near({"stored": angle})
    fill(cache, ["stored"])
    assert cache.get_or_load(cache.request(text="asked"), lambda: "loaded") == ("stored" if is_served else "loaded")


def test_without_a_policy_near_matches_are_recorded_and_not_served(open_near):
    """The default is shadow: found, told in event and explain, never served."""
    cache = open_near(NEAR, policy=None)
    fill(cache, NEAR)
    assert cache.get_or_load(cache.request(text="asked"), lambda: "loaded") == "loaded"
    event = semcache.last()
    assert (event.kind, event.reason) == ("miss", "shadow: no policy is set")
    assert event.decision.similarity == pytest.approx(0.9962, abs=2e-4)
    assert cache.stats().not_served["shadow: no policy is set"] >= 1


def test_policy_that_rejects_the_nearest_is_asked_about_the_next(open_near):
    """Each of the neighbours is judged, nearest first, until one may be served."""
    policy = Choosy("near")
    cache = open_near(NEAR, policy=policy)
    fill(cache, NEAR)
    policy.judged.clear()
    assert cache.get_or_load(cache.request(text="asked"), lambda: "loaded") == "near"
    assert policy.judged == [("asked", "nearer"), ("asked", "near")]


def test_policy_that_would_explore_serves_nothing(open_near):
    """EXPLORE loads: until a policy learns from that, it is a miss with its reason."""
    cache = open_near(NEAR, policy=Choosy("none", semcache.Verdict.EXPLORE))
    fill(cache, NEAR)
    assert cache.get_or_load(cache.request(text="asked"), lambda: "loaded") == "loaded"
    assert semcache.last().reason == "choosy"


def test_miss_embeds_once_for_search_and_put(open_near):
    """Nothing is computed twice: the vector made for the search travels in the miss to the put."""
    embedder = Compass(FAR)
    cache = open_near(embedder=embedder)
    fill(cache, ["stored"])
    embedder.asked.clear()
    assert cache.get_or_load(cache.request(text="far"), lambda: "far's") == "far's"
    cache.flush()
    assert embedder.asked == ["far"]
    assert cache.stats().tiers["semantic"]["rows"] == 2


def test_empty_scope_is_not_embedded_before_the_load(open_near):
    """With nothing to compare with, the load does not wait for an embedding: that comes behind the answer."""
    embedder = Compass()
    cache = open_near(embedder=embedder)
    embedder.asked.clear()
    before_the_load = []
    cache.get_or_load(cache.request(text="first"), lambda: before_the_load.extend(embedder.asked))
    cache.flush()
    assert (before_the_load, embedder.asked) == ([], ["first"])


def test_row_on_its_way_makes_its_scope_searched(open_near):
    """A second question right behind the first finds it, though the first is still being embedded."""
    embedder = Compass()
    cache = open_near(embedder=embedder)
    embedder.gate = threading.Event()
    embedder.entered.clear()
    cache.get_or_load(cache.request(text="first"), lambda: "first's")
    assert embedder.entered.wait(GUARD)
    with Crew(1) as crew:
        second = crew.submit(cache.get_or_load, cache.request(text="second"), Origin("loaded"))
        embedder.gate.set()
        assert second.result(GUARD) == "first's"


def test_index_is_rebuilt_from_the_store(open_near, tmp_path):
    """A process that starts has the index of the one before, without embedding anything again."""
    first = open_near(NEAR, disk=tmp_path / "cache.db")
    fill(first, NEAR)
    first.close()
    embedder = Compass(NEAR)
    second = open_near(embedder=embedder, disk=tmp_path / "cache.db")
    assert second.stats().tiers["semantic"]["rows"] == 2
    assert set(embedder.asked) <= {"dimension", "warm"}
    assert second.get_or_load(second.request(text="asked"), lambda: "loaded") == "nearer"


def test_exact_mode_leaves_no_row_for_the_next_start(open_near, tmp_path):
    """What was asked in exact mode is indexed neither now nor by the process that comes after."""
    first = open_near(disk=tmp_path / "cache.db")
    with semcache.context(mode="exact"):
        first.get_or_load(first.request(text="stored"), lambda: "stored")
    first.close()
    second = open_near(disk=tmp_path / "cache.db")
    assert second.stats().tiers["semantic"]["rows"] == 0


def test_invalidation_does_not_load_the_model(open_cache):
    """To drop a key from an index that is not there, no embedder is started."""
    embedder = Compass()
    cache = open_cache(embedder=embedder)
    cache.invalidate(key=b"k" * 20)
    assert cache.semantic.batcher.state == "idle"


def test_invalidated_key_leaves_the_index(open_near):
    """An invalidation by key takes the row at once."""
    cache = open_near()
    fill(cache, ["stored"])
    cache.invalidate(key=cache.request(text="stored").key)
    cache.flush()
    assert cache.stats().tiers["semantic"]["rows"] == 0


def test_explain_tells_the_neighbours_and_why_not(open_near):
    """Explain names the nearest rows, nearest first, with similarity, cut and reason, and serves nothing."""
    cache = open_near(NEAR | FAR, policy=semcache.Threshold(0.999, guards=None))
    fill(cache, NEAR | FAR)
    explanation = cache.explain(cache.request(text="asked"))
    assert [near.text for near in explanation.neighbours] == ["nearer", "near", "far"]
    assert (explanation.tier, explanation.decision.cut) == (None, 0.999)
    assert explanation.said[-1] == ("semantic", "below the cut: similarity 0.9961 < 0.999")
    assert (explanation.similarity, explanation.cut) == (pytest.approx(0.9962, abs=2e-4), 0.999)
    told = str(explanation)
    assert "0.9961  'nearer'" in told
    assert "below the cut: similarity 0.9961 < 0.999" in told
    assert cache.stats().loads == 3


def test_miss_below_the_cut_names_the_cut_and_the_similarity(open_near):
    """What `last` tells of a near match that is not near enough are both numbers; the sums count it by kind alone."""
    cache = open_near(NEAR, policy=semcache.Threshold(0.999, guards=None))
    fill(cache, ["near", "nearer"])
    for text in ("asked", "asked too"):
        assert cache.get_or_load(cache.request(text=text), lambda: "loaded") == "loaded"
        if text == "asked":
            event = semcache.last()
    assert (event.similarity, event.cut) == (pytest.approx(0.9962, abs=2e-4), 0.999)
    assert event.reason == "below the cut: similarity 0.9961 < 0.999"
    assert "0.9961" in repr(event)
    assert cache.stats().not_served["below the cut"] >= 1
    assert not any(reason.startswith("below the cut:") for reason in cache.stats().not_served)


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("exact", [("memory", "miss"), ("semantic", "not asked: mode: exact")]),
        ("refresh", [("memory", "not asked: mode: refresh"), ("semantic", "not asked: mode: refresh")]),
        ("off", [("memory", "not asked: mode: off"), ("semantic", "not asked: mode: off")]),
        ("shadow", [("memory", "miss"), ("semantic", "mode: shadow")]),
    ],
)
def test_explain_tells_what_a_lookup_in_that_mode_would_do(open_near, mode, said):
    """What a mode does not ask or serve, explain does not promise."""
    cache = open_near()
    fill(cache, ["stored"])
    with semcache.context(mode=mode):
        explanation = cache.explain(cache.request(text="asked"))
    assert (explanation.tier, explanation.said) == (None, said)


def test_index_stays_within_its_bound(open_near):
    """What is over the bound goes, and is counted; what is left is found."""
    cache = open_near(semantic=5000)
    fill(cache, [f"text {number}" for number in range(100)])
    counts = cache.stats().tiers["semantic"]
    assert counts["bytes"] <= 5000
    assert counts["evictions"] == 100 - counts["rows"] > 0


def test_cache_whose_embedder_hangs_can_be_closed(open_near, monkeypatch):
    """Closing waits some seconds for an embedder, not for ever."""
    from semcache.semantic.batcher import Batcher

    monkeypatch.setattr(life, "_EXIT_SECONDS", 0.01)
    monkeypatch.setattr(Batcher.close, "__defaults__", (0.01,))
    embedder = Compass()
    cache = open_near(embedder=embedder)
    embedder.gate = threading.Event()
    embedder.entered.clear()
    cache.get_or_load(cache.request(text="hangs"), lambda: "answer")
    assert embedder.entered.wait(GUARD)
    cache.close()
    assert not embedder.gate.is_set()
    embedder.gate.set()


def test_rounds_share_one_deadline(open_near, monkeypatch):
    """However many neighbours are gone, and whatever rounds that takes, the tier's budget is one."""
    cache = open_near(timeouts=semcache.Timeouts(semantic="30s"))
    fill(cache, [f"text {number}" for number in range(9)])
    waited = []
    plain = semantic_tier.Exchange

    def note(peer, asked, timeout):
        waited.append(timeout)
        cache.clock.advance(10)
        return plain(peer, asked, timeout)

    monkeypatch.setattr(semantic_tier, "Exchange", note)
    cache.memory._entries.clear()
    assert cache.get_or_load(cache.request(text="asked"), lambda: "loaded") == "loaded"
    assert waited == [30.0, 20.0, 10.0]


def test_near_lookups_of_one_call_are_one_search(open_near):
    """What get_or_load_many does not find exactly is embedded and searched for in one step, and served as ever."""
    texts = {f"stored {number}": 2 * number for number in range(30)}
    cache = open_near(texts | {f"asked {number}": 2 * number for number in range(30)})
    fill(cache, texts)
    before = cache.stats().tiers["semantic"]
    requests = [cache.request(text=f"asked {number}") for number in range(30)]
    answers = cache.get_or_load_many(requests, lambda missing: ["loaded"] * len(missing))
    assert answers == [f"stored {number}" for number in range(30)]
    after = cache.stats().tiers["semantic"]
    assert (after["batches"] - before["batches"], after["batched"] - before["batched"]) == (1, 30)


class Ranking(Choosy):
    """Wants the farthest first, and remembers what it was given."""

    def rank(self, text, vector, neighbours):
        self.given = vector, list(neighbours)
        for place, neighbour in enumerate(neighbours):
            neighbour.score = float(place)
        return sorted(neighbours, key=lambda one: -one.score)


def test_policy_that_ranks_is_asked_in_its_own_order(open_near):
    """It is given eight neighbours at most, with their vectors, at once, and asked about them as it ranked them."""
    policy = Ranking("text 9")
    texts = {f"text {number}": 10 + number for number in range(10)}
    cache = open_near(texts, policy=policy)
    fill(cache, texts)
    policy.judged.clear()
    told = str(cache.explain(cache.request(text="asked")))
    vector, neighbours = policy.given
    assert [one.text for one in neighbours] == [f"text {number}" for number in range(8)]
    assert [float(one.vector @ vector) for one in neighbours] == pytest.approx([one.similarity for one in neighbours])
    assert policy.judged[0] == ("asked", "text 7")
    assert "score 7.0000" in told


def test_policy_that_does_not_rank_pays_nothing_for_it(open_near):
    """Without rank() four neighbours are looked at, and no vector is copied."""
    seen = []

    class Plain(Choosy):
        def decide(self, text, neighbour):
            seen.append(neighbour)
            return super().decide(text, neighbour)

    texts = {f"text {number}": 10 + number for number in range(10)}
    cache = open_near(texts, policy=Plain("none"))
    fill(cache, texts)
    seen.clear()
    cache.get_or_load(cache.request(text="asked"), lambda: "loaded")
    assert len(seen) == 4
    assert all(one.vector is None and one.score is None for one in seen)


def test_policy_whose_ranking_fails_is_a_miss(open_near):
    """Law 10: what a policy raises reaches no caller."""

    class Broken(Choosy):
        def rank(self, text, vector, neighbours):
            raise ValueError("no score")

    cache = open_near(NEAR, policy=Broken("near"))
    fill(cache, NEAR)
    assert cache.get_or_load(cache.request(text="asked"), lambda: "loaded") == "loaded"
