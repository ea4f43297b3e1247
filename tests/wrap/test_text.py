"""text=: what of a call may match nearly, and that everything else must be equal (laws 2 and 3)."""

from __future__ import annotations

import asyncio

import pytest
from waiting import Counter

import semcache
from semcache import SHARED, SemcacheWarning
from semcache.policy.threshold import UnmeasuredThresholdWarning

pytestmark = pytest.mark.semantic


class FirstWord:
    """An embedder for which two texts are alike if their first words are."""

    identity = "first-word"

    def __call__(self, texts):
        import numpy as np

        vectors = np.zeros((len(texts), 64), dtype=np.float32)
        for row, text in enumerate(texts):
            vectors[row, sum((text.split() or [""])[0].lower().encode()) % 64] = 1
        return vectors


def make(**settings):
    settings = {"policy": semcache.Threshold(0.9, guards=None), "tenant": SHARED, **settings}
    with pytest.warns(UnmeasuredThresholdWarning):
        return semcache.Cache(embedder=FirstWord(), timeouts=semcache.Timeouts(semantic="20s"), **settings)


@pytest.fixture
def near():
    with make() as cache:
        cache.warm()
        yield cache


def ask_in(cache, **options):
    """Return a cached function of a question and a locale."""
    loads = Counter()

    @semcache.cached(cache, version="1", **options)
    def ask(question, locale="en"):
        return f"{question}|{locale}|{loads()}"

    return ask


def tier_of(cache, function, *args, **kwargs):
    """Call a function and say which tier answered, once all that it stored can be found."""
    function(*args, **kwargs)
    cache.flush()
    return semcache.last().tier


def test_text_argument_matches_nearly(near):
    """Another wording is answered with the stored answer; another first word is not."""
    ask = ask_in(near, text="question")
    assert tier_of(near, ask, "refund please") is None
    assert ask("refund now") == "refund please|en|1"
    event = semcache.last()
    assert (event.kind, event.tier) == ("hit", "semantic")
    assert event.similarity == pytest.approx(1.0)
    assert event.neighbour == ask.explain("refund please").key
    assert tier_of(near, ask, "delivery now") is None


@pytest.mark.parametrize("spell", [lambda ask, q, loc: ask(q, loc), lambda ask, q, loc: ask(locale=loc, question=q)])
def test_everything_beside_the_text_must_be_equal(near, spell):
    """Law 2: another value of any other argument is another scope."""
    ask = ask_in(near, text="question")
    assert tier_of(near, ask, "refund please", "en") is None
    assert spell(ask, "refund now", "de") == "refund now|de|2"
    assert spell(ask, "refund now", "en") == "refund please|en|1"


def test_ignored_argument_is_no_part_of_the_scope(near):
    """What cannot change the answer cannot keep texts apart."""
    ask = ask_in(near, text="question", ignore="locale")
    ask("refund please", "en")
    near.flush()
    assert ask("refund now", "de") == "refund please|en|1"


def test_functions_and_versions_are_scopes(near):
    """Law 2: two functions, or two versions of one, never answer each other's texts."""

    def make(version):
        @semcache.cached(near, text="question", version=version)
        def ask(question):
            return version

        return ask

    @semcache.cached(near, text="question", version="1")
    def other(question):
        return "other"

    assert tier_of(near, make("1"), "refund please") is None
    assert tier_of(near, make("2"), "refund now") is None
    assert tier_of(near, other, "refund now") is None
    assert tier_of(near, make("1"), "refund now") == "semantic"


def test_near_match_is_never_stored_as_exact(near):
    """Law 3: the same rewording is a near match each time, and nothing is indexed under it."""
    ask = ask_in(near, text="question")
    ask("refund please")
    near.flush()
    assert [tier_of(near, ask, "refund now") for _ in range(3)] == ["semantic"] * 3
    assert near.stats().tiers["semantic"]["rows"] == 1
    assert near.stats().tiers["memory"]["entries"] == 1
    assert ask.explain("refund now").tier == "semantic"


def test_text_callable_is_cut_out_of_its_template(near):
    """Texts in equal templates share a scope; in different ones they do not."""

    @semcache.cached(near, text=lambda messages, **_: messages[-1]["content"].removeprefix("Q: "), version="1")
    def chat(messages, model="small"):
        return messages[-1]["content"]

    def messages(question, system="Be kind.", template="Q: {}"):
        return [{"role": "system", "content": system}, {"role": "user", "content": template.format(question)}]

    assert tier_of(near, chat, messages("refund please")) is None
    assert tier_of(near, chat, messages("refund now")) == "semantic"
    assert tier_of(near, chat, messages("refund now", system="Be brief.")) is None
    assert tier_of(near, chat, messages("refund now", template="{}")) is None
    assert tier_of(near, chat, messages("refund now"), model="large") is None
    assert tier_of(near, chat, messages("refund soon", system="Be brief.")) == "semantic"
    assert tier_of(near, chat, [*messages("delivery"), *messages("refund now")]) is None


def test_text_that_stands_elsewhere_too_is_cut_out_there(near):
    """A text that the arguments repeat differs in all its places at once."""

    @semcache.cached(near, text=lambda question, echo: question, version="1")
    def ask(question, echo):
        return question

    assert tier_of(near, ask, "refund please", "say: refund please") is None
    assert tier_of(near, ask, "refund now", "say: refund now") == "semantic"
    assert tier_of(near, ask, "refund now", "say: refund please") is None


def test_text_callable_may_say_what_the_rest_is(near):
    """(text, rest): the rest alone is what must be equal; the exact key still covers all."""

    @semcache.cached(near, text=lambda question, locale, user: (question.lower(), locale), version="1")
    def ask(question, locale, user):
        return f"{question} {user}"

    assert ask("REFUND please", "en", "ann") == "REFUND please ann"
    near.flush()
    assert ask("refund now", "en", "bob") == "REFUND please ann"
    assert tier_of(near, ask, "refund now", "de", "bob") is None


def test_text_that_does_not_stand_in_the_arguments_is_exact_only(near):
    """What cannot be cut out cannot be compared: the reason is in the event, and counted."""

    @semcache.cached(near, text=lambda question: question.upper(), version="1")
    def ask(question):
        return question

    assert ask("refund please") == "refund please"
    assert semcache.last().reason == "the text does not stand in the arguments as it is"
    near.flush()
    assert ask("refund now") == "refund now"
    assert ask("refund now") == "refund now"
    assert semcache.last().tier == "memory"
    assert "the text does not stand in the arguments" in str(ask.explain("refund soon"))


@pytest.mark.parametrize("text", [None, 3, ["refund"], ""])
def test_text_that_is_none_is_exact_only(near, text):
    """A call without a text is an exact one."""
    ask = ask_in(near, text="question")
    assert tier_of(near, ask, text) is None
    assert "text" in semcache.last().reason
    assert tier_of(near, ask, text) == "memory"


def test_text_callable_that_raises_is_a_bypass(near):
    """The user's own callable may fail; the call goes on."""

    @semcache.cached(near, text=lambda question: question["missing"], version="1")
    def ask(question):
        return question

    with pytest.warns(SemcacheWarning, match="text= .*KeyError"):
        assert ask({}) == {}
    assert ask.cache_info() == (0, 0, 1)


def test_key_with_text_keeps_apart_what_the_key_keeps_apart(near):
    """key= alone makes the key: what is in it beside the text must be equal (law 2)."""

    @semcache.cached(near, text="question", key=lambda user, question, locale: (question, locale), version="1")
    def ask(user, question, locale):
        return f"{question} {locale}"

    assert ask("ann", "refund please", "en") == "refund please en"
    near.flush()
    assert ask("bob", "refund now", "en") == "refund please en"
    assert ask("bob", "refund now", "de") == "refund now de"

    @semcache.cached(near, text="question", key=lambda question, locale: f"{locale}:{question}", version="1")
    def joined(question, locale):
        return f"{question} {locale}"

    assert joined("refund please", "en") == "refund please en"
    near.flush()
    assert joined("refund now", "de") == "refund now de"
    assert joined("refund now", "en") == "refund please en"


# Whose near matches may meet


def test_tenants_near_matches_never_meet(near):
    """Law 2: the tenant is part of the scope, whoever names it."""
    ask = ask_in(near, text="question")
    for tenant in ("acme", "globex"):
        with semcache.context(tenant=tenant):
            assert tier_of(near, ask, "refund please") is None
    with semcache.context(tenant="acme"):
        assert ask("refund now") == "refund please|en|1"
    with semcache.context(tenant="globex"):
        assert ask("refund now") == "refund please|en|2"
    assert tier_of(near, ask, "refund now") is None

    @semcache.cached(near, text="question", tenant="customer", ignore="customer", version="1")
    def named(question, customer):
        return customer

    assert tier_of(near, named, "refund please", "acme") is None
    assert tier_of(near, named, "refund now", "globex") is None
    assert named("refund soon", "acme") == "acme"


def test_near_match_without_a_tenant_is_not_served():
    """Nobody said whose answers may meet: the match is found, not served, and one warning says so."""
    with make(tenant=None) as cache:
        cache.warm()
        ask = ask_in(cache, text="question")
        ask("refund please")
        cache.flush()
        with pytest.warns(SemcacheWarning, match=r"semcache\.SHARED") as warned:
            assert ask("refund now") == "refund now|en|2"
        assert warned[0].filename == __file__
        assert semcache.last().reason == "no tenant"
        assert ask("refund soon") == "refund soon|en|3"  # warnings are errors here: there is no second
        assert "no tenant" in str(ask.explain("refund today"))
        with semcache.context(tenant=SHARED):
            assert tier_of(cache, ask, "refund at once") == "semantic"


@pytest.mark.parametrize(("mode", "reason"), [("shadow", "mode: shadow"), ("exact", None), ("refresh", None)])
def test_modes_that_serve_no_near_match(near, mode, reason):
    """shadow looks and learns, exact does not look, refresh reads nothing."""
    ask = ask_in(near, text="question")
    ask("refund please")
    near.flush()
    with semcache.context(mode=mode):
        assert ask("refund now") == "refund now|en|2"
        assert semcache.last().reason == reason


def test_policy_none_is_shadow():
    """Without a policy near matches are recorded, and none is served."""
    with semcache.Cache(
        embedder=FirstWord(), tenant=SHARED, timeouts=semcache.Timeouts(semantic="20s")
    ) as cache:  # fmt: skip
        cache.warm()
        ask = ask_in(cache, text="question")
        ask("refund please")
        cache.flush()
        assert ask("refund now") == "refund now|en|2"
        assert semcache.last().decision.similarity == pytest.approx(1.0)


# Every kind of function


def test_async_functions_and_streams_match_nearly(near):
    """The kinds of functions differ in nothing here."""

    @semcache.cached(near, text="question", version="1")
    async def ask(question):
        return question

    @semcache.cached(near, text="question", version="1")
    def items(question):
        yield from question.split()
        return len(question)

    @semcache.cached(near, text="question", version="1")
    async def aitems(question):
        for word in question.split():
            yield word

    async def both():
        async def read(question):
            return [item async for item in aitems(question)]

        first = await ask("refund please"), await read("refund please")
        await asyncio.to_thread(near.flush)
        return first, (await ask("refund now"), await read("refund now"))

    first, second = asyncio.run(both())
    assert first == second == ("refund please", ["refund", "please"])
    assert semcache.last() is None or semcache.last().tier != "memory"
    assert list(items("refund please")) == ["refund", "please"]
    near.flush()
    assert list(items("refund now")) == ["refund", "please"]
    assert semcache.last().tier == "semantic"
    assert items.cache_info() == ask.cache_info() == aitems.cache_info() == (1, 1, 0)


def test_method_matches_nearly_within_its_object(near):
    """The object's key is part of the scope."""

    class Model:
        def __init__(self, name):
            self.name = name

        def __semcache_key__(self):
            return self.name

        @semcache.cached(near, text="question", version="1")
        def ask(self, question):
            return self.name

    assert tier_of(near, Model("small").ask, "refund please") is None
    assert tier_of(near, Model("large").ask, "refund now") is None
    assert Model("small").ask("refund soon") == "small"
    assert semcache.last().tier == "semantic"


def test_stream_closed_early_is_not_indexed(near):
    """Law 7: what did not complete answers no other wording either."""

    @semcache.cached(near, text="question", version="1")
    def items(question):
        yield from question.split()

    reading = items("refund please")
    next(reading)
    reading.close()
    near.flush()
    assert list(items("refund now")) == ["refund", "now"]


def test_explain_shows_the_neighbours(near):
    """explain tells the best similarity, the policy's word and the nearest texts."""
    ask = ask_in(near, text="question")
    ask("refund please")
    near.flush()
    told = ask.explain("refund now")
    assert told.tier == "semantic"
    assert [neighbour.text for neighbour in told.neighbours] == ["refund please"]
    text = str(told)
    assert "hit in semantic" in text
    assert "memory: miss" in text
    assert "similarity 1.0000 >= 0.9" in text
    assert "1.0000  'refund please'" in text
    assert near.stats().loads == 1
