"""Labels without people, through a cache: what is compared, behind whom, and what becomes of it."""

from __future__ import annotations

import asyncio
import os
import signal
import threading

import pytest
from instruments import GUARD, Origin

import semcache
from semcache.labelling import JUDGE_SECONDS, answer_text
from semcache.policy.label import Label, Source

pytestmark = pytest.mark.semantic

WORDS = ("how do I pay my bill", "in which way do I pay my bill")


def asked_twice(cache, ask, first, second, *, texts=WORDS):
    """Load one text's answer, then ask another's, near to it; returns what the second caller was given."""
    ask(cache, cache.request(text=texts[0]), lambda: first)
    cache.flush()
    answer = ask(cache, cache.request(text=texts[1]), second if callable(second) else lambda: second)
    cache.flush()
    return answer


def told(cache):
    return cache.policy.status().others


def opened(policy, cache, count=400):
    """Have labels of a good family open its near matches."""
    request = cache.request(text=WORDS[0])
    policy.within(request)
    for number in range(count):
        at = b"%d" % number
        policy.learn(Label(request.family, at, at, "a", "b", 0.97, 0.97, True, Source.AUDIT))
    return policy


@pytest.mark.parametrize(("fresh", "wrong"), [("By card.", 0), ("by card", 0), ("In 7 days", 1), ("By wire.", 1)])
def test_what_was_loaded_is_compared_with_its_near_match(open_near, ask, fresh, wrong):
    """In shadow every near match makes a label, behind the caller: right where the comparator knows it is."""
    cache = open_near(policy=None, audit=1.0)
    assert asked_twice(cache, ask, "By card.", fresh) == fresh
    assert (told(cache).labels, told(cache).wrong.count) == (1, wrong)
    assert (told(cache).asked, told(cache).near) == (2, 1)


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_judge_of_either_colour_decides_where_texts_do_not(open_near, ask, colour):
    """It is given the stored answer and the fresh one, once, by threads and tasks alike."""
    seen = []

    def judge(cached, fresh):
        seen.append((cached, fresh))
        return True

    async def ajudge(cached, fresh):
        await asyncio.sleep(0)
        return judge(cached, fresh)

    policy = semcache.ErrorBudget(0.05, judge=judge if colour == "sync" else ajudge)
    cache = open_near(policy=policy, audit=1.0)

    def asking(cache, request, load):
        async def wait_for_labels():
            answer = await cache.aget_or_load(request, load)
            for _ in range(1000):
                if not cache.chain.labelling._waiting:
                    break
                await asyncio.sleep(0.001)
            return answer

        is_async = ask.__code__.co_names[0] == "asyncio"
        return asyncio.run(wait_for_labels()) if is_async else ask(cache, request, load)

    asked_twice(cache, asking, "By card.", "You pay by card.")
    assert seen == [("By card.", "You pay by card.")]
    assert (told(cache).labels, told(cache).wrong.count) == (1, 0)


def test_a_judge_that_raises_does_not_know(open_near, ask):
    """That counts as wrong, its caller has his answer, and the status says what was raised."""

    def judge(cached, fresh):
        raise OSError("no model today")

    cache = open_near(policy=semcache.ErrorBudget(0.05, judge=judge), audit=1.0)
    assert asked_twice(cache, ask, "By card.", "You pay by card.") == "You pay by card."
    assert (told(cache).labels, told(cache).wrong.count) == (1, 1)
    assert "no model today" in str(cache.policy.status())


def test_a_judge_that_hangs_makes_nobody_wait(open_near, clock):
    """The caller has his answer at once; when the judge's time is up it does not know, whatever it says later."""
    go = threading.Event()

    def judge(cached, fresh):
        return go.wait(GUARD)

    cache = open_near(policy=semcache.ErrorBudget(0.05, judge=judge), audit=1.0)
    cache.get_or_load(cache.request(text=WORDS[0]), lambda: "By card.")
    cache.semantic.flush()
    assert cache.get_or_load(cache.request(text=WORDS[1]), lambda: "You pay by card.") == "You pay by card."
    assert told(cache).labels == 0
    clock.advance(JUDGE_SECONDS)
    cache.chain.labelling.sweep()
    assert (told(cache).labels, told(cache).wrong.count) == (1, 1)
    go.set()
    cache.flush()
    assert told(cache).labels == 1


def test_what_a_guard_refuses_is_no_near_match(open_near, ask):
    """It would not have been served at any cut, so it says nothing of a cut."""
    cache = open_near(policy=None, audit=1.0)
    asked_twice(cache, ask, "yes", "no", texts=("do I pay 6 euros", "do I pay 7 euros"))
    assert (told(cache).labels, told(cache).near, told(cache).asked) == (0, 0, 2)


def test_answers_that_are_not_kept_are_not_compared(open_near):
    """What `when` refuses, as an answer that was cut off, says nothing of what stands."""
    cache = open_near(policy=None, audit=1.0)
    cache.get_or_load(cache.request(text=WORDS[0]), lambda: "By card.")
    cache.flush()
    cache.get_or_load(cache.request(text=WORDS[1]), lambda: "", when=bool)
    cache.flush()
    assert told(cache).labels == 0


def test_structures_are_compared_as_json(open_near, ask):
    """The order of names says nothing; a number does."""
    cache = open_near(policy=None, audit=1.0)
    asked_twice(cache, ask, {"days": 7, "by": "card"}, {"by": "card", "days": 7})
    assert (told(cache).labels, told(cache).wrong.count) == (1, 0)
    assert answer_text({"a": object()}) is None
    assert answer_text(b"bytes") is None


def test_streams_are_compared_by_their_text(open_near):
    """In which pieces a text came says nothing of it."""
    cache = open_near(policy=None, audit=1.0)
    pieces = iter([["By ", "card."], ["By card", "."]])

    @semcache.cached(cache, text="question", version="1")
    def answer(question):
        yield from next(pieces)

    for text in WORDS:
        assert "".join(answer(text)) == "By card."
        cache.flush()
    assert (told(cache).labels, told(cache).wrong.count) == (1, 0)


def test_a_drawn_match_is_loaded_though_it_would_be_served(open_near, ask):
    """The caller is given the fresh answer, the event says why, and the label is one of the sample."""
    policy = semcache.ErrorBudget(0.05)
    cache = open_near(policy=policy, audit=1.0)
    opened(policy, cache)
    assert asked_twice(cache, ask, "By card.", "By wire.") == "By wire."
    assert cache.policy.status().families[0].wrong.count == 1
    assert cache.stats().not_served["audit"] == 1


def test_a_match_that_is_not_drawn_is_served(open_near, ask):
    """With an audit of none of them, what is open is served, and nothing is loaded."""
    policy = semcache.ErrorBudget(0.05)
    cache = open_near(policy=policy, audit=0)
    opened(policy, cache)
    origin = Origin("By wire.")
    assert asked_twice(cache, ask, "By card.", origin) == "By card."
    assert origin.calls == 0


def test_an_audited_match_is_served_where_its_load_fails(open_near, ask):
    """Nobody is given an error in the place of an answer that was at hand; then the origin is left alone a while."""
    policy = semcache.ErrorBudget(0.05)
    cache = open_near({WORDS[1]: 1, "pay my bill, but how": 2}, policy=policy, audit=1.0)
    opened(policy, cache)
    origin = Origin(OSError("down"))
    with semcache.trace() as seen:
        assert asked_twice(cache, ask, "By card.", origin) == "By card."
    event = seen.lookups[-1]
    assert (event.kind, event.tier, event.faults[0][0]) == ("hit", "semantic", "origin")
    assert origin.calls == 1
    assert ask(cache, cache.request(text="pay my bill, but how"), origin) == "By card."
    assert origin.calls == 1


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_audited_streams_fall_back_on_their_near_match(open_near, colour):
    """A stream that is drawn is loaded, too; where that fails before its first item, the near answer is read."""
    policy = semcache.ErrorBudget(0.05)
    cache = open_near(policy=policy, audit=1.0)
    answers = Origin(["By ", "card."])

    if colour == "sync":

        @semcache.cached(cache, text="question", version="1")
        def answer(question):
            yield from answers()

        def read(question):
            return "".join(answer(question))
    else:

        @semcache.cached(cache, text="question", version="1")
        async def answer(question):
            for piece in answers():
                yield piece

        def read(question):
            async def pieces():
                return "".join([piece async for piece in answer(question)])

            return asyncio.run(pieces())

    assert read(WORDS[0]) == "By card."
    cache.flush()
    request = answer.request(WORDS[0])
    policy.within(request)
    for number in range(400):
        at = b"%d" % number
        policy.learn(Label(request.family, at, at, "a", "b", 0.99, 0.99, True, Source.AUDIT))
    answers.answer = ["By wire", "."]
    assert read(WORDS[1]) == "By wire."
    cache.flush()
    assert policy.status().families[0].wrong.count == 1
    answers.answer = OSError("down")
    with semcache.trace() as seen:
        assert read("may I pay my bill, and how") in ("By card.", "By wire.")
    assert (seen.lookups[-1].kind, seen.lookups[-1].tier, seen.lookups[-1].failed) == ("hit", "semantic", False)
    cache.flush()
    assert cache.explain(answer.request("may I pay my bill, and how")).tier != "memory"


def test_the_origins_own_disagreement_is_measured(open_near, clock):
    """An identical request that is loaded anew is compared with what it was answered before."""
    cache = open_near(policy=None)
    for answer in ("By card.", "by card", "By wire."):
        cache.get_or_load(cache.request(text=WORDS[0], ttl="10m", stale_if_error="1d"), lambda answer=answer: answer)
        cache.flush()
        clock.advance(601)
    assert (told(cache).origin.count, told(cache).origin.labels) == (1, 2)


def test_a_client_of_ours_never_hears_of_the_comparison(open_near, ask, monkeypatch):
    """Where there is no thread to be had, there is no label, and that is counted."""
    cache = open_near(policy=None, audit=1.0)
    monkeypatch.setattr(cache.chain.labelling._crew, "start_thread", lambda _plan: False)
    assert asked_twice(cache, ask, "By card.", "By wire.") == "By wire."
    assert told(cache).labels == 0
    assert cache.policy.status().unlabelled == {"too many at once": 1}


def test_labels_a_second_are_bounded(open_near):
    """A flood of misses asks no judge more often than it may be asked."""
    asked = []

    def judge(cached, fresh):
        asked.append(fresh)
        return True

    cache = open_near(policy=semcache.ErrorBudget(0.05, judge=judge), audit=1.0)
    for number in range(40):
        request = cache.request("same", text=f"how do I pay {'so ' * number}")
        cache.get_or_load(request, lambda: f"answer {'so ' * len(asked)}")
        cache.flush()
    assert len(asked) <= 20
    assert cache.policy.status().unlabelled["too many a second"] >= 19


@pytest.mark.parametrize("audit", [-0.1, 1.1, "2%", True])
def test_an_audit_that_is_no_share_is_refused(open_cache, audit):
    """Before any store is opened."""
    with pytest.raises(semcache.ConfigurationError, match="audit is a share"):
        semcache.Cache(audit=audit)


def test_an_alarm_is_an_event_and_a_warning(open_near, caplog):
    """Observers hear of what opens and closes; an alarm stands in the log too."""
    heard = []
    policy = semcache.ErrorBudget(0.05)
    cache = open_near(policy=policy, audit=1.0, observers=[heard.append])
    opened(policy, cache, 1000)
    opened_at = len(heard)
    request = cache.request(text=WORDS[0])
    for number in range(60):
        at = b"bad %d" % number
        policy.learn(Label(request.family, at, at, "a", "b", 0.97, 0.97, False, Source.AUDIT))
    reasons = [event.reason for event in heard if event.kind == "policy"]
    assert opened_at
    assert any("opened" in reason for reason in reasons)
    assert any("alarm" in reason for reason in reasons)
    assert "alarm" in caplog.text


def test_answers_that_change_close_the_family_through_the_cache(open_near):
    """With every hit audited, the origin's new answers close what was open within 200 requests."""
    policy = semcache.ErrorBudget(0.05)
    cache = open_near({f"how do I pay {number}": 0.01 * number for number in range(99)}, policy=policy, audit=1.0)
    opened(policy, cache, 1000)
    cache.get_or_load(cache.request(text=WORDS[0]), lambda: "By card.")
    cache.flush()
    words = iter(f"how do I pay {'so ' * number}" for number in range(1, 200))
    asked = 0
    while policy.status().families[0].state == "open":
        asked += 1
        origin = Origin("By wire." if asked % 4 == 0 else "By card.")
        cache.get_or_load(cache.request(text=next(words)), origin)
        cache.flush()
    assert asked < 200
    assert policy.status().families[0].alarms <= 1


def test_explain_says_what_the_policy_waits_for(open_near):
    """It is asked without learning from the question."""
    cache = open_near(policy=semcache.ErrorBudget(0.05))
    cache.get_or_load(cache.request(text=WORDS[0]), lambda: "By card.")
    cache.flush()
    told = cache.explain(cache.request(text=WORDS[1]))
    assert told.decision.reason == "no cut is open for all other families together"
    assert cache.policy.status().others.asked == 1


def test_stats_say_what_was_learned(open_near):
    """In a few words; the whole is the policy's status."""
    policy = semcache.ErrorBudget(0.05)
    cache = open_near(policy=policy)
    assert cache.stats().policy == "ErrorBudget(0.05, confidence=0.95): 0 labels, nothing near is served"
    opened(policy, cache)
    assert cache.stats().policy.endswith(": 400 labels, near matches from 0.95 on are served")


def test_caches_refuse_a_policy_that_learns_for_another(open_near):
    """Until that one is closed."""
    policy = semcache.ErrorBudget(0.05)
    first = open_near(policy=policy)
    with pytest.raises(semcache.ConfigurationError, match="one for each cache"):
        open_near(policy=policy)
    first.close()
    assert open_near(policy=policy).policy is policy


def test_a_load_that_the_collector_ends_is_counted_where_it_holds_the_lock(open_near):
    """A half-read stream may be closed in any thread at any moment, also in one that is counting already."""
    cache = open_near(policy=None, audit=1.0)
    request = cache.request(text=WORDS[0])

    def count():
        with cache.policy._lock, cache.chain.labelling._lock:
            cache.policy.saw(request, None)
            cache.chain.labelling.sweep()
            str(cache.policy.status())

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    thread.join(GUARD)
    assert not thread.is_alive()
    assert told(cache).asked == 1


def test_a_child_of_a_fork_is_told_of_the_policy_without_an_embedder(open_cache):
    """What another thread held at the fork is nobody's there, whether the policy learns or not."""
    cache = open_cache()
    is_held, go = threading.Event(), threading.Event()

    def hold():
        with cache.policy._lock:
            is_held.set()
            go.wait(GUARD)

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    assert is_held.wait(GUARD)
    child = os.fork()
    if child == 0:
        signal.alarm(5)
        is_told = "nothing near is served" in cache.stats().policy
        os._exit(0 if is_told else 1)
    status = os.waitpid(child, 0)[1]
    go.set()
    thread.join(GUARD)
    assert status == 0
