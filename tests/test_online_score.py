"""A score that is taught while the cache is used: by which labels, when it takes over, what processes share of it."""

from __future__ import annotations

import numpy as np
import pytest
from instruments import GUARD

import semcache
from semcache.model import Neighbour, Request
from semcache.policy import lessons
from semcache.policy.label import Label, Source
from semcache.policy.lessons import Lessons
from semcache.policy.score import Score
from semcache.policy.scoring import COSINE, STEP
from semcache.policy.tally import SEASON_DAYS, SEASONS, Family, Trial

SEASON_SECONDS = SEASON_DAYS * 86_400


class Letters:
    """An embedder of two dimensions: all texts are near to each other, whatever they say."""

    dimension = 2

    def __init__(self, identity="letters"):
        self.identity = identity
        self.fails = False

    def __call__(self, texts):
        if self.fails:
            raise OSError("no memory")
        angles = np.radians([sum(map(ord, text)) % 10 for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def pair(number, *, is_right):
    """Texts of a pair: what says the same is about as long, what does not goes on and on."""
    stored = f"tell me about case {number}"
    asked = f"tell me of case {number}" if is_right else f"{stored} {' '.join(f'and part {part}' for part in range(9))}"
    return asked, stored


def label(number, *, is_right=True, source=Source.MISS, stored=None, asked=None):
    texts = pair(number, is_right=is_right)
    keys = asked or b"asked %d" % number, stored or b"stored %d" % number
    one, other = Letters()(texts)
    cosine = float(one @ other)
    return Label(b"family", *keys, *texts, cosine, cosine, is_right, source)


class Bench:
    """A policy on a clock of our own, whose two scores are functions of the number in a text."""

    def __init__(self, policy=None):
        self.now, self.count, self.told = SEASON_SECONDS * 100.0, 0, []
        self.policy = policy or semcache.ErrorBudget(0.05, learn_score=True)
        self.policy.bind(lambda: True, lambda: self.now, 0.02, lambda what, _: self.told.append(what))
        self.policy.within(self.request)

    request = Request(b"asked", b"scope", "how do i pay", embedder="e", family=b"family")

    def label(self, count, rates, *, is_right=True):
        for _ in range(count):
            self.count += 1
            at = b"%d" % self.count
            neighbour = Neighbour(at, rates[COSINE], "b", rates=rates)
            self.policy.saw(self.request, neighbour)
            told = tuple(self.policy.rates_of(neighbour).items())
            self.policy.learn(
                Label(b"family", at, at, "a", "b", rates[COSINE], rates[COSINE], is_right, Source.AUDIT, told)
            )

    def serves(self, similarity, score=None):
        neighbour = Neighbour(b"stored", similarity, "how to pay", score=score)
        return self.policy.within(self.request).decide("how do i pay", neighbour).verdict.value == "reuse"


def score_of(embedder="e"):
    return Score(embedder, 2, (0.0, 1.0), 300)


# The labels that teach


def test_what_proves_does_not_teach():
    """The sample that bounds are made of is kept apart; misses, reports and pairs teach."""
    known = Lessons()
    for number, source in enumerate(Source):
        known.take(label(number, source=source), 0)
    assert {one.source for one in known.read()} == set(Source) - {Source.AUDIT}


def test_pairs_are_bounded_by_hash_and_by_entry(monkeypatch):
    """Whoever comes first or last, the same pairs stay; a popular entry teaches so much and no more."""
    monkeypatch.setattr(lessons, "MOST", 50)
    forth, back = Lessons(), Lessons()
    for number in range(200):
        forth.take(label(number), 0)
        back.take(label(199 - number), 0)
    assert len(forth) == 50
    assert [one.asked for one in forth.read()] == [one.asked for one in back.read()]
    popular = Lessons()
    for number in range(100):
        popular.take(label(number, stored=b"popular"), 0)
    assert len(popular) == 20


def test_of_a_pair_one_label_counts_and_a_wrong_one_stays():
    """A pair that was wrong once is no right one."""
    known = Lessons()
    for is_right in (True, False, True):
        known.take(label(1, is_right=is_right), 0)
    assert [one.is_right for one in known.read()] == [False]


def test_pairs_grow_old():
    """What was labelled some seasons ago teaches nothing today."""
    known = Lessons()
    known.take(label(1), 0)
    known.take(label(2), 1)
    known.forget(SEASONS)
    assert [one.asked for one in known.read()] == [b"asked 2"]


def test_a_score_is_due_when_pairs_of_both_kinds_have_doubled():
    """So few are taught: each begins tests, and spends alpha."""
    known = Lessons()
    for number in range(lessons.FEWEST):
        known.take(label(number), 0)
    assert not known.is_due
    for number in range(1000, 1000 + lessons.FEWEST_OF_A_KIND):
        known.take(label(number, is_right=False), 0)
    assert known.is_due
    known.wait_for(2 * len(known))
    assert not known.is_due
    assert known.due_at == 2 * (lessons.FEWEST + lessons.FEWEST_OF_A_KIND)


def test_without_the_switch_no_text_is_kept():
    """A policy that was not asked to learn a score has no pairs, and says nothing of any."""
    bench = Bench(semcache.ErrorBudget(0.05))
    bench.policy.learn(label(1))
    assert bench.policy.lessons is None
    assert bench.policy.status().score is None


# A score beside the one in use


def test_the_old_one_serves_until_the_new_one_has_proved_more():
    """No label from before counts for the new one, nothing that is open closes meanwhile, and then it takes over."""
    bench = Bench()
    bench.label(200, {COSINE: 0.97})
    bench.label(100, {COSINE: 0.85}, is_right=False)
    assert bench.serves(0.97)
    assert bench.policy.challenge(COSINE + STEP, score_of(), COSINE, 100)
    assert bench.serves(0.97)
    assert not bench.policy.promote()
    for _ in range(60):
        bench.label(5, {COSINE: 0.97, COSINE + STEP: 0.99})
        bench.label(5, {COSINE: 0.85, COSINE + STEP: 0.97})
        bench.label(3, {COSINE: 0.85, COSINE + STEP: 0.72}, is_right=False)
        assert bench.serves(0.97) or bench.policy.generation != COSINE
        bench.policy.promote()
    assert bench.policy.generation == COSINE + STEP
    assert bench.serves(0.85, score=0.99)
    assert not bench.serves(0.97, score=0.72)
    assert "score 4 has taken over" in bench.told
    assert (bench.policy.status().score.used, bench.policy.status().score.tested) == (COSINE + STEP, None)


def test_a_score_that_proves_nothing_does_not_take_over():
    """It may be tested for as long as evidence counts; what was open stays open all the while."""
    bench = Bench()
    bench.label(200, {COSINE: 0.97})
    bench.policy.challenge(COSINE + STEP, score_of(), COSINE, 100)
    for _ in range(40):
        bench.label(9, {COSINE: 0.97, COSINE + STEP: 0.9})
        bench.label(1, {COSINE: 0.8, COSINE + STEP: 0.99}, is_right=False)
        assert not bench.policy.promote()
        assert bench.serves(0.97)


def test_no_two_tests_of_a_family_have_one_number():
    """Whatever seasons turn and alarms come while a score is tested beside another: alpha is spent once."""
    family, numbers = Family("f", 0), []
    for season, alarms in [(0, 0), (0, 1), (1, 1), (2, 1), (2, 2), (3, 2)]:
        family.alarms = alarms
        generations = [COSINE] if season < 1 else [COSINE, COSINE + STEP]
        for generation in generations:
            family.add(Trial(season, generation, alarms), "right", 3, 5.0)
        for generation in generations:
            beside = COSINE + STEP if generation == COSINE else None
            numbers += [(family.number(test), test) for test in family.begun(season, generation, beside)]
    by_number = dict(numbers)
    assert all(by_number[number] == test for number, test in numbers)
    assert any(test.generation == COSINE and test.season == 1 for _, test in numbers)


def test_a_score_of_another_embedder_is_refused():
    """Law 11: what rates one's vectors says nothing of another's."""
    bench = Bench()
    assert not bench.policy.challenge(COSINE + STEP, score_of("other"), COSINE, 100)
    assert bench.policy.newest == COSINE


def booked(*policies):
    return {(day, name): 1.0 for policy in policies for day, names in policy.taken().items() for name in names}


def test_of_two_that_would_teach_at_once_neither_does():
    """Each has said so before it looked, so each sees the other; one alone is free to."""
    one, other = Bench().policy, Bench().policy
    number = one.claim()
    assert other.claim() == number
    assert one.is_ours(number) is None
    store = booked(one, other)
    for policy in (one, other):
        policy.take_over(store)
        assert policy.is_ours(number) is False
    again = one.claim()
    store |= booked(one)
    for policy in (one, other):
        policy.take_over(store)
    assert (again > number, one.is_ours(again), other.is_claimed()) == (True, True, True)


def test_a_claim_that_was_given_up_is_free():
    """A number under which nothing was begun is the next one's: what it would cost of alpha is not lost."""
    one, other = Bench().policy, Bench().policy
    number = one.claim()
    store = booked(one)
    one.take_over(store)
    assert one.is_ours(number)
    one.release(number)
    for day, names in one.taken().items():
        for name, amount in names.items():
            store[day, name] = store.get((day, name), 0.0) + amount
    other.take_over(store)
    assert (other.is_claimed(), other.claim()) == (False, number)


# Through caches


@pytest.fixture
def open_learning(open_cache):
    """Make caches whose policy learns a score, of two dimensions, so that teaching is quick."""

    def open_one(**settings):
        settings = {
            "embedder": Letters(), "tenant": semcache.SHARED, "audit": 0.0,
            "policy": semcache.ErrorBudget(0.05, guards=None, learn_score=True),
        } | settings  # fmt: skip
        cache = open_cache(**settings)
        cache.warm()
        return cache

    return open_one


def fill(cache):
    """Give the policy labelled pairs enough to teach a score."""
    request = cache.request(text="x")
    cache.policy.within(request)
    for number in range(240):
        is_right = number % 2 == 0
        one = label(number, is_right=is_right)
        cache.policy.learn(Label(request.family, *_fields(one)))


def teach(cache):
    """Have a score taught, and wait for it."""
    fill(cache)
    for _ in range(4):  # claimed, seen to be ours, taught, published
        cache.chain.labelling.teaching._looks = 7
        cache.chain.labelling.teaching.look()
        assert cache.flush(GUARD)
        assert cache.chain.labelling.teaching.flush(GUARD)


def _fields(one):
    return (one.asked, one.stored, one.text, one.neighbour, one.similarity, one.score, one.is_right, one.source)


def prove(cache, count=500, first=1000):
    """Have the policy labels of the sample, rated as the tier rates matches."""
    request = cache.request(text="x")
    for number in range(first, first + count):
        is_right = number % 2 == 0
        asked, stored = pair(number, is_right=is_right)
        vectors = cache.semantic.batcher.settings.embedder([asked, stored])
        near = Neighbour(b"%d" % number, float(vectors[0] @ vectors[1]), stored, vectors[1])
        (near,) = cache.policy.rate(asked, vectors[0], [near])
        cache.policy.saw(request, near)
        rates = tuple(cache.policy.rates_of(near).items())
        cache.policy.learn(Label(
            request.family, b"%d" % number, near.key, asked, stored, near.similarity, near.similarity, is_right,
            Source.AUDIT, rates,
        ))  # fmt: skip


def given(cache, number, *, is_right):
    """Ask a text whose other one is stored, in a scope of its own."""
    asked, stored = pair(number, is_right=is_right)
    cache.get_or_load(cache.request(text=stored, tenant=str(number)), lambda: "stored")
    assert cache.flush(GUARD)
    return cache.get_or_load(cache.request(text=asked, tenant=str(number)), lambda: "loaded")


@pytest.mark.semantic
def test_a_score_is_taught_proved_and_serves(open_learning):
    """Where the cosine of right and wrong pairs is the same, the cosine serves nothing, and what was learned does."""
    cache = open_learning()
    teach(cache)
    assert cache.policy.status().score.tested == COSINE + STEP
    assert "is tested beside it" in str(cache.policy.status())
    prove(cache)
    assert cache.policy.promote()
    assert given(cache, 3000, is_right=True) == "stored"
    assert semcache.last().decision.score > 0.7
    assert given(cache, 3001, is_right=False) == "loaded"
    assert "rated by score 4" in str(cache.policy.status())


@pytest.mark.semantic
def test_what_is_loaded_and_not_drawn_teaches(open_learning):
    """Each near match of a lookup proves or teaches, never both."""
    cache = open_learning(seed=3)
    for number in range(16):
        cache.get_or_load(cache.request(text=f"case {'very ' * number}"), lambda number=number: f"answer {number % 3}")
        assert cache.flush(GUARD)
    told = cache.policy.status().others
    assert told.near == 15
    assert 0 < len(cache.policy.lessons) == told.near - told.labels < 15


@pytest.mark.semantic
def test_processes_share_a_score_and_a_restart_keeps_it(open_learning, store):
    """One teaches, the other takes it from the store; who begins later has score, counts and all."""
    one, other = open_learning(**store), open_learning(**store)
    teach(one)
    assert one.policy.challenger == COSINE + STEP
    for _ in range(2):
        assert other.flush(GUARD)
    assert other.policy.challenger == COSINE + STEP
    assert other.policy.scores[COSINE + STEP].dump() == one.policy.scores[COSINE + STEP].dump()
    prove(one, 300)
    prove(other, 300, first=2000)
    for cache in (one, other, one, other):
        assert cache.flush(GUARD)
    assert [cache.policy.generation for cache in (one, other)] == [COSINE + STEP] * 2
    for cache in (one, other):
        cache.close()
    again = open_learning(**store)
    for _ in range(2):
        assert again.flush(GUARD)
    assert again.policy.generation == COSINE + STEP
    assert given(again, 3000, is_right=True) == "stored"
    other_embedder = open_learning(embedder=Letters("another"), **store)
    for _ in range(2):
        assert other_embedder.flush(GUARD)
    assert other_embedder.policy.newest == COSINE


@pytest.mark.semantic
def test_processes_that_would_teach_at_once_end_with_one_score(open_learning, tmp_path):
    """They give way to each other until one is alone; the other takes what that one taught, and teaches none."""
    caches = [open_learning(disk=tmp_path / "cache.db") for _ in range(2)]
    for cache in caches:
        fill(cache)
    for _ in range(60):
        for cache in caches:
            assert cache.flush(GUARD)
        if all(cache.policy.challenger for cache in caches):
            break
        assert all(cache.chain.labelling.teaching.flush(GUARD) for cache in caches)
    assert [cache.policy.challenger for cache in caches] == [COSINE + STEP] * 2
    assert [cache.policy.is_due() for cache in caches] == [False, False]
    one, other = (cache.policy.scores[COSINE + STEP].dump() for cache in caches)
    assert one == other


@pytest.mark.semantic
def test_an_embedder_that_fails_gives_the_number_back(open_learning, tmp_path):
    """Nobody hears of it but the faults, and the next turn may teach."""
    embedder = Letters()
    cache = open_learning(disk=tmp_path / "cache.db", embedder=embedder)
    fill(cache)
    embedder.fails = True
    for _ in range(3):
        assert cache.flush(GUARD)
        assert cache.chain.labelling.teaching.flush(GUARD)
    assert cache.stats().faults["score: OSError"] == 1
    embedder.fails = False
    for _ in range(30):
        assert cache.flush(GUARD)
        assert cache.chain.labelling.teaching.flush(GUARD)
    assert cache.policy.challenger == COSINE + STEP


@pytest.mark.semantic
def test_a_score_outlives_the_seasons(open_learning, tmp_path, clock):
    """Counts that are too old go, and what says which score there is with them: who has it says so anew."""
    one = open_learning(disk=tmp_path / "cache.db")
    teach(one)
    taught_in = one.policy._taught_in
    for _ in range(SEASONS + 1):
        clock.advance(SEASON_SECONDS)
        for _ in range(2):
            assert one.flush(GUARD)
    assert one.policy.generation == COSINE + STEP
    again = open_learning(disk=tmp_path / "cache.db")
    for _ in range(2):
        assert again.flush(GUARD)
    assert again.policy.generation == COSINE + STEP
    assert again.policy._ready[COSINE + STEP] == (COSINE, taught_in)


@pytest.mark.semantic
def test_a_score_that_was_damaged_in_the_store_is_a_fault(open_learning, tmp_path):
    """What is none is told of and left alone; the cosine goes on."""
    one = open_learning(disk=tmp_path / "cache.db")
    one.policy.within(one.request(text="x"))

    class Broken:
        def dump(self):
            return b"no score"

    one.chain.labelling.teaching._shelf.keep("letters", COSINE + STEP, Broken())
    one.policy.publish(COSINE + STEP)
    for _ in range(20):
        assert one.flush(GUARD)
    assert one.policy.newest == COSINE
    assert sum(count for what, count in one.stats().faults.items() if what.startswith("score: ")) == 10


@pytest.mark.semantic
def test_pairs_that_tell_nothing_teach_nothing(open_learning):
    """A score that its held out pairs do not bear out begins no test."""
    cache = open_learning()
    request = cache.request(text="x")
    cache.policy.within(request)
    for number in range(240):
        one = label(number)
        cache.policy.learn(Label(request.family, *_fields(one)[:6], number % 3 == 0, Source.MISS))
    teaching = cache.chain.labelling.teaching
    teaching._looks = 7
    teaching.look()
    assert teaching.flush(GUARD)
    assert (cache.policy.newest, cache.policy.status().score.needed) == (COSINE, 480)
    assert cache.policy.claim() == COSINE + STEP
