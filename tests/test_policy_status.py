"""What a policy's status tells of where it works: what stands in the way of near matches, and what others learned."""

from __future__ import annotations

import pytest
from instruments import Compass, until

import semcache
from semcache.model import Neighbour, Request
from semcache.policy.label import Label, Source
from semcache.policy.status import Offer, Share
from semcache.policy.tuned import Proof

pytestmark = pytest.mark.semantic


@pytest.fixture
def budgeted(open_cache):
    """Make a cache with an error budget whose texts all point to one direction."""

    def make(**settings):
        cache = open_cache(**{"embedder": Compass(), "policy": semcache.ErrorBudget(0.05)} | settings)
        cache.warm()
        return cache

    return make


def ask(cache, *parts, **named):
    cache.get_or_load(cache.request(*parts, **named), lambda: "loaded")
    cache.flush()


def learn(cache, count):
    request = cache.request(text="how do I pay")
    cache.policy.within(request)
    for number in range(count):
        at = b"%d" % number
        cache.policy.learn(Label(request.family, at, at, "a", "b", 0.99, 0.99, True, Source.AUDIT))


def test_status_names_a_missing_tenant_with_its_mend(budgeted):
    """Where nobody said whose answers may meet, no label makes anything be served; one call's word is enough for it."""
    cache = budgeted()
    learn(cache, 200)
    (told,) = cache.policy.status().obstacles
    assert "nobody said whose answers may meet (no call has come yet)" in told
    assert "set tenant= on the cache or the call" in told
    assert told in str(cache.policy.status())
    ask(cache, text="one")
    assert "no call so far named one" in cache.policy.status().obstacles[0]
    ask(cache, text="two", tenant="acme")
    (told,) = cache.policy.status().obstacles
    assert told.startswith("1 of 2 calls named no tenant")


def test_stats_name_what_keeps_an_open_cut_from_serving(budgeted):
    """The line that says from where on near matches are served does not stand alone where none is."""
    cache = budgeted()
    learn(cache, 200)
    assert "are served; nobody said whose answers may meet" in cache.stats().policy


def test_stats_of_a_threshold_without_an_embedder_say_so(open_cache):
    """It would decide nothing, ever."""
    with pytest.warns(semcache.SemcacheWarning):
        cache = open_cache(policy=semcache.Threshold(0.9))
    assert cache.stats().policy.startswith("Threshold(0.9); the cache has no embedder=")


def test_status_has_nothing_to_say_where_near_matches_can_be_served(budgeted):
    """A cache with embedder and tenant is in nobody's way."""
    cache = budgeted(tenant=semcache.SHARED)
    ask(cache, text="one")
    assert cache.policy.status().obstacles == ()


def test_status_names_calls_that_can_be_compared_with_no_other(budgeted):
    """Calls without a text, and those that must match exactly, are counted by why."""
    cache = budgeted(tenant=semcache.SHARED)
    ask(cache, "part")
    (told,) = cache.policy.status().obstacles
    assert "no call so far could be compared with another (the call has no text: 1): text=" in told
    ask(cache, text="one")
    ask(cache, text="two", exact_only="it has tools")
    (told,) = cache.policy.status().obstacles
    assert told == "2 calls could be compared with no other (the call has no text: 1, it has tools: 1)"


@pytest.mark.parametrize(
    ("mode", "said"), [("shadow", "nothing near is served"), ("exact", "nothing near is looked for")]
)
def test_status_names_a_mode_that_serves_nothing_near(budgeted, mode, said):
    """The kill switch shows where one looks for the reason."""
    cache = budgeted(tenant=semcache.SHARED)
    cache.set_mode(mode)
    (told,) = cache.policy.status().obstacles
    assert told.startswith(f"mode: {mode}, so {said}")


def test_status_of_a_closed_cache_says_so(budgeted):
    """Nothing is looked up any more, nor read."""
    cache = budgeted()
    cache.close()
    assert cache.policy.status().obstacles == ("the cache is closed, so its callers go to their origins",)


@pytest.mark.parametrize("make", [lambda: semcache.ErrorBudget(0.05), lambda: semcache.Shadow(judge=str.__eq__)])
def test_policy_without_an_embedder_warns_once(open_cache, make):
    """It would decide nothing, ever; the warning names the mend, and status() says it too."""
    with pytest.warns(semcache.SemcacheWarning, match="no embedder=.* give it one") as warned:
        cache = open_cache(policy=make())
    assert len(warned) == 1
    assert warned[0].filename.endswith("conftest.py")
    ask(cache, text="one")
    assert "the cache has no embedder=" in str(cache.policy.status())


@pytest.mark.parametrize(
    "make", [lambda: semcache.Threshold(0.9), lambda: semcache.Tuned(0.05, 0.95, "compass", Proof(0.9, 100, 0))]
)
def test_status_of_a_policy_that_learns_nothing_names_obstacles_too(open_cache, make):
    """What it serves does not stand alone where its cache serves nothing; of two caches the later one is told of."""
    policy = make()
    assert policy.status().obstacles == ()
    with pytest.warns(semcache.SemcacheWarning):
        cache = open_cache(policy=policy)
    (told,) = policy.status().obstacles
    assert told.startswith("the cache has no embedder=")
    assert told in str(policy.status())
    cache.close()
    assert policy.status().obstacles == ("the cache is closed, so its callers go to their origins",)
    open_cache(policy=policy, embedder=Compass())
    assert policy.status().obstacles == ()


def test_cache_without_policy_and_embedder_does_not_warn(open_cache):
    """Nobody asked for near matches."""
    cache = open_cache()
    assert "the cache has no embedder=" in cache.policy.status().obstacles[0]


def test_status_of_a_new_process_reads_what_others_learned(budgeted, store):
    """Nobody need wait for the next hand over: what stands in the store is read when it is asked for."""
    settings = store | {"tenant": semcache.SHARED}
    cache = budgeted(**settings)
    learn(cache, 200)
    until(lambda: cache.flush() and cache.store.tallied(cache.policy.days()))
    again = budgeted(**settings)
    status = again.policy.status()
    assert (status.obstacles, status.families[0].state, status.families[0].labels) == ((), "open", 200)


def test_status_says_that_what_others_learned_could_not_be_read(budgeted, store, monkeypatch):
    """ "No near match was met yet" is not the whole truth then; the next status asks again."""
    cache = budgeted(**store, tenant=semcache.SHARED)

    def fail(*_):
        raise semcache.TierError("unreachable", "no route")

    with monkeypatch.context() as patched:
        patched.setattr(cache.store, "tallied", fail)
        (told,) = cache.policy.status().obstacles
        assert told.startswith("what other processes have learned is not read yet")
    assert cache.policy.status().obstacles == ()


def budget(*labels):
    """Return a budget's policy that has seen a request of each family, with so many right labels."""
    policy = semcache.ErrorBudget(0.05)
    policy.bind(lambda: True, lambda: 1e9, 0.02, lambda _what, _name: None)
    for place, count in enumerate(labels):
        request = Request(b"asked", b"scope", "how do i pay", embedder="e", family=b"%d" % place)
        policy.saw(request, Neighbour(b"stored", 0.95, "how to pay"))
        for number in range(count):
            at = b"%d-%d" % (place, number)
            policy.learn(Label(request.family, at, at, "a", "b", 0.95, 0.95, True, Source.AUDIT))
    return policy


def test_a_lone_family_is_told_once():
    """Where there is but one family, all others together are that one."""
    told = str(budget(20).status())
    assert told.count("20 labels") == 1
    assert "all other families" not in told
    assert "the others' cut decides" not in told


def test_a_lone_family_with_labels_enough_tells_what_others_would_be_served():
    """A new family begins with the cut that the same labels have opened for all others."""
    told = str(budget(200).status())
    assert told.count("200 labels") == 1
    assert "any other family: open from 0.95 on, by the same labels" in told


def test_several_families_are_told_with_all_others_together():
    """Their sum is news."""
    assert "all other families together: closed; 40 labels" in str(budget(20, 20).status())


def test_what_is_missing_is_told_once():
    """A budget's own line says it; the offers beside it are of other budgets."""
    assert str(budget(20).status()).count("95 labels are missing") == 1


def test_wrong_share_stands_beside_the_labels_that_it_is_of():
    """An interval of what the cut serves is not to be read as one of all labels; those are told too."""
    policy = budget(150)
    for number in range(50):
        at = b"wrong %d" % number
        policy.learn(Label(b"0", at, at, "a", "b", 0.72, 0.72, False, Source.AUDIT))
    told = policy.status().families[0]
    assert (told.labels, told.wrong.labels, told.wrong.count) == (200, 150, 0)
    assert f"open from {told.cut:g} on; 150 labels from there on (200 in all), 0.00% [0.00%, 2.43%] wrong" in str(told)


@pytest.mark.parametrize(
    ("days", "told"),
    [(38 / 24 / 3600, "1 min"), (0.01, "15 min"), (1 / 24, "60 min"), (0.1, "3 h"), (0.99, "24 h"), (1.94, "1.9 days")],
)
def test_time_until_labels_are_there_is_told_in_a_unit_that_shows_it(days, told):
    """Below an hour minutes: whole hours would make one of a minute and of fifty."""
    offer = Offer(0.05, None, 0.0, Share(0, 20), 38, days)
    assert str(offer).endswith(f"38 labels are missing, in about {told} at this rate")
