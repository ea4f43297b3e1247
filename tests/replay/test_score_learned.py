"""A learned score: what it says, when it is believed, how it is kept, and what it is refused for."""

from __future__ import annotations

import json
from base64 import b64encode
from dataclasses import replace
from random import Random

import pytest
from slots import Words, labels, slots

from semcache import ConfigurationError, Neighbour, Request, Verdict
from semcache.policy import Tuned, within
from semcache.policy.features import NAMES, apart, compare, rarities, read
from semcache.policy.guards import GUARDS
from semcache.policy.label import Label, Source
from semcache.policy.score import Score, fit
from semcache.policy.tuned import Proof, _digest

pytestmark = pytest.mark.semantic


@pytest.fixture(scope="module")
def taught():
    return labels(slots(150), 5)


@pytest.fixture(scope="module")
def score(taught):
    return fit(*taught, embedder="words")


def losses(score, told, vectors):
    """Return the log loss of each label."""
    import numpy as np

    rates = [
        score.rate(one.text, vectors[one.text], [one.neighbour], vectors[one.neighbour][None], [one.similarity])[0]
        for one in told
    ]
    right = np.array([one.is_right for one in told])
    return -np.log(np.where(right, rates, 1 - np.array(rates)).clip(1e-9))


def test_score_tells_apart_what_a_cosine_cannot(score):
    """On texts that it never saw, it knows better than the cosine."""
    fresh, vectors = labels(slots(70, seed=2), 3)
    rates = losses(score, fresh, vectors)
    cosine = losses(replace(score, correction=None), fresh, vectors)
    assert rates.mean() < 0.95 * cosine.mean()


def test_same_labels_make_the_same_score(taught, score):
    """Training is reproducible, bit by bit."""
    assert fit(*taught, embedder="words").dump() == score.dump()


def test_score_is_symmetric(taught, score):
    """Whoever of a pair asks first, it has one score."""
    told, vectors = taught
    for one in told[:50]:
        there = score.rate(one.text, vectors[one.text], [one.neighbour], vectors[one.neighbour][None], [one.similarity])
        back = score.rate(one.neighbour, vectors[one.neighbour], [one.text], vectors[one.text][None], [one.similarity])
        assert there == back


def test_batch_says_what_single_pairs_say(taught, score):
    """Scored together or alone, it is the same."""
    import numpy as np

    told, vectors = taught
    text, others = told[-1].text, [one.neighbour for one in told[-8:]]
    near = [one.similarity for one in told[-8:]]
    together = score.rate(text, vectors[text], others, np.stack([vectors[one] for one in others]), near)
    alone = [
        score.rate(text, vectors[text], [other], vectors[other][None], [similarity])[0]
        for other, similarity in zip(others, near, strict=True)
    ]
    assert together == pytest.approx(alone, abs=1e-6)


@pytest.mark.parametrize("number", [0, 1, 20])
def test_few_labels_leave_the_cosine(number, taught):
    """Before there is evidence the score ranks as the cosine does."""
    told, vectors = taught
    score = fit(told[:number], vectors, embedder="words")
    assert score.correction is None
    rates = score.rate("a", None, ["b"] * 3, None, [0.2, 0.5, 0.9])
    assert rates == sorted(rates)
    assert rates[0] < rates[-1]


@pytest.mark.parametrize("number", [80, 200])
def test_score_is_never_worse_than_the_cosine_beyond_the_interval(number):
    """Where only the cosine tells, little evidence makes nothing worse on fresh pairs, in any of three draws."""
    random = Random(number)
    told, vectors = labels(slots(130, seed=3), 5)

    def noisy(one):
        return replace(one, is_right=random.random() < max(0.0, 2 * one.similarity - 1))

    fresh = [noisy(one) for one in told[-300:]]
    for seed in range(3):
        drawn = [noisy(one) for one in random.sample(told[:-300], number)]
        score = fit(drawn, vectors, embedder="words", seed=seed)
        cosine = replace(score, correction=None, base=_base(drawn))
        worse = losses(score, fresh, vectors) - losses(cosine, fresh, vectors)
        assert worse.mean() <= 2 * worse.std() / len(worse) ** 0.5 + 1e-9


def test_correction_that_helps_only_below_all_cuts_is_not_believed():
    """It betters the log loss, by pairs that nobody would serve, and makes nothing better where cuts lie."""
    import numpy as np

    from semcache.policy.score import _believed

    random = np.random.default_rng(0)
    high = np.arange(1000) < 100
    offsets = np.where(high, 1.5, -1.0).astype(np.float32)
    right = (random.random(1000) < np.where(high, 0.82, 0.02)).astype(np.float32)
    below = np.where(high, random.normal(0, 1, 1000), -2.5).astype(np.float32)
    above = np.where(high, 4 * right - 2, 0).astype(np.float32)

    def log_loss(odds):
        return float((np.logaddexp(0, odds) - right * odds).mean())

    assert log_loss(offsets + below) < log_loss(offsets) - 0.1
    assert _believed([below], offsets, right) is None
    found = _believed([below, above], offsets, right)
    assert found is not None
    assert found[0] == 2


def test_score_learns_which_words_may_be_lacking():
    """Where only the word that one text lacks tells, be it as rare as others, a score tells fresh pairs apart by it."""
    import numpy as np

    random = np.random.default_rng(1)
    words = [f"word{number}" for number in range(8)]

    def pair(number):
        word = words[number % len(words)]
        return Label(b"", b"", b"", f"ask {number}", f"ask {number} {word}", 0.9, 0.9, number % 2 == 0, Source.MISS)

    told = [pair(number) for number in range(900)]
    vectors = {text: (one := random.standard_normal(4, dtype=np.float32)) / np.linalg.norm(one)
               for label in told for text in (label.text, label.neighbour)}  # fmt: skip
    score = fit(told[:800], vectors, embedder="words")
    assert score.correction is not None
    cosine = losses(replace(score, correction=None), told[800:], vectors)
    assert losses(score, told[800:], vectors).mean() < 0.8 * cosine.mean()


def test_score_is_told_what_a_guard_refuses():
    """Be it for an order of words, which no other number tells."""
    one, two, three = map(read, ("fly from Rome to Oslo", "fly from Oslo to Rome", "please fly from Rome to Oslo"))
    rarity = rarities([one, two, three])
    assert dict(zip(NAMES, compare(one, two, rarity), strict=True))["refused by a guard"] == 1
    assert dict(zip(NAMES, compare(one, three, rarity), strict=True))["refused by a guard"] == 0


def _base(drawn):
    import numpy as np

    from semcache.policy.score import _odds

    right = np.array([one.is_right for one in drawn], np.float32)
    return _odds(np.array([one.similarity for one in drawn], np.float32), right)


def test_pair_is_right_only_where_all_its_labels_say_so():
    """One wrong label, or one of a comparator that does not know, makes a pair wrong; texts without vectors are out."""
    import numpy as np

    vectors = {"a": np.ones(2, np.float32), "b": np.ones(2, np.float32)}
    known = [Label(b"", b"", b"", *pair, 0.9, 0.9, said, Source.MISS)
             for pair, said in ((("a", "b"), True), (("b", "a"), None), (("a", "c"), True))]  # fmt: skip
    score = fit(known, vectors, embedder="words")
    assert score.labels == 1
    assert score.rate("a", None, ["b"], None, [0.9])[0] < 0.5


def test_features_are_symmetric_and_finite():
    """Each text is compared as well with none of its words, in other letters, and very long."""
    texts = ["", "Turn on the lamp", "turn off lamp 7", "Wie spät ist es?", "何時ですか", "a" * 5000, "\ud800 odd"]
    rarity = rarities(map(read, texts))
    for one in texts:
        for two in texts:
            numbers = compare(read(one), read(two), rarity)
            assert len(numbers) == len(NAMES)
            assert numbers == compare(read(two), read(one), rarity)
            assert all(abs(number) < 100 for number in numbers)
            assert sorted(apart(read(one), read(two))) == sorted(apart(read(two), read(one)))


# Kept


def test_score_comes_back_as_it_was(taught, score):
    """What is stored says what was learned, to the last bit."""
    told, vectors = taught
    again = Score.load(score.dump())
    assert (losses(again, told[:30], vectors) == losses(score, told[:30], vectors)).all()
    assert (again.embedder, again.labels) == ("words", score.labels)
    plain = fit([], vectors, embedder="words")
    assert Score.load(plain.dump()) != plain or Score.load(plain.dump()).base == plain.base


def _changed(score, **arrays):
    import numpy as np
    from safetensors.numpy import load, save

    data = score.dump()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    told = json.loads(header["semcache_score"]) | arrays.pop("told", {})
    known = {name: array for name, array in (load(data) | arrays).items() if array is not None}
    return save({name: np.ascontiguousarray(one) for name, one in known.items()}, {"semcache_score": json.dumps(told)})


@pytest.mark.parametrize(
    "change",
    [
        lambda score: score.dump()[:-10],
        lambda score: b"",
        lambda score: b"x" * 400,
        lambda score: _changed(score, told={"version": 2}),
        lambda score: _changed(score, told={"base": "none"}),
        lambda score: _changed(score, told={"dimension": 13}),
        lambda score: _changed(score, rarity=None),
        lambda score: _changed(score, level=__import__("numpy").array([float("nan")], "float32")),
    ],
)
def test_what_is_no_score_is_refused(change, score):
    """Damaged bytes, another version, other shapes, what is no number: a ValueError, never a score."""
    data = change(score)
    with pytest.raises(ValueError, match=r"."):
        Score.load(data)


def policy(score, **given):
    made = {"budget": 0.05, "confidence": 0.95, "embedder": "words", "others": Proof(0.9, 400, 2), "guards": GUARDS}
    return Tuned(**(made | {"score": score} | given))


def test_policy_with_a_score_comes_back_as_it_was(score, tmp_path):
    """One file holds cuts, guards and score."""
    path = tmp_path / "policy.json"
    policy(score).write(path)
    read_ = Tuned.read(path)
    assert (read_.kind, read_.guards, read_.cuts) == ("score", GUARDS, [0.9])
    assert read_.score is not None
    assert read_.score.dump() == score.dump()
    assert "from 0.9 of the learned score on" in str(read_)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda told: told | {"score": "?"}, "is damaged"),
        (lambda told: told | {"score": b64encode(b"x" * 99).decode()}, "is damaged"),
        (lambda told: {name: one for name, one in told.items() if name != "score"}, "is damaged: KeyError"),
        (lambda told: told | {"embedder": "other"}, "holds a score of another embedder's vectors"),
        (lambda told: told | {"kind": "crystal"}, "kind 'crystal'"),
    ],
)
def test_policy_with_a_damaged_score_is_refused(change, message, score, tmp_path):
    """What does not fit together is refused when it is read, with the mend."""
    path = tmp_path / "policy.json"
    policy(score).write(path)
    told = change(json.loads(path.read_text()))
    del told["digest"]
    path.write_text(json.dumps({**told, "digest": _digest(told)}))
    with pytest.raises(ConfigurationError, match="make it anew with `semcache tune") as caught:
        Tuned.read(path)
    assert message in str(caught.value)


def test_changed_score_is_refused(score, tmp_path):
    """The digest is over the score too."""
    path = tmp_path / "policy.json"
    policy(score).write(path)
    told = json.loads(path.read_text())
    told["score"] = b64encode(replace(score, base=(9.0, 9.0)).dump()).decode()
    path.write_text(json.dumps(told))
    with pytest.raises(ConfigurationError, match="was changed by hand"):
        Tuned.read(path)


def test_policy_ranks_by_the_score_and_lets_guards_refuse(score):
    """The best one comes first though another is nearer; what is too far away has no score and is not served."""
    texts = ["please kindly hey bring me bofi", "hello just maybe bring me bofi", "please kindly hello bring me 7 bofi"]
    vectors = Words()(texts)
    vectors /= (vectors**2).sum(1, keepdims=True) ** 0.5
    asked, vector = "please kindly hello bring me bofi", Words()(["please kindly hello bring me bofi"])[0]
    vector /= (vector @ vector) ** 0.5
    near = sorted(
        (Neighbour(text.encode(), float(one @ vector), text, one) for text, one in zip(texts, vectors, strict=True)),
        key=lambda one: -one.similarity,
    )
    near.append(Neighbour(b"far", 0.2, "far", vectors[0]))
    near.append(Neighbour(b"bare", 0.99, "bare"))
    decider = within(policy(score, others=Proof(0.0, 400, 0)), Request(b"k", embedder="words"))
    ranked = decider.rank(asked, vector, near)
    rated = [one.score for one in ranked if one.score is not None]
    assert len(rated) == 3
    assert rated == sorted(rated, reverse=True)
    decisions = {one.key: decider.decide(asked, one) for one in ranked}
    assert decisions[b"far"].verdict is decisions[b"bare"].verdict is Verdict.REJECT
    assert decisions[texts[2].encode()].guard == "numbers"
    assert decisions[texts[0].encode()].verdict is Verdict.REUSE
    assert decisions[texts[0].encode()].score is not None
