"""The scope: of each of its ingredients, a near match that would be served if it were left out.

Every text here has the same vector, and the policy serves whatever is found: only the scope keeps answers apart.
"""

from __future__ import annotations

import pytest
from instruments import Compass

import semcache

pytestmark = pytest.mark.semantic


@pytest.fixture
def open_blind(open_near):
    """Make caches to which all texts are alike, of one tenant."""
    return lambda **settings: open_near(
        **{"policy": semcache.Threshold(-1.0, guards=None), "tenant": "acme"} | settings
    )


def answer_of(cache, *parts, **about):
    """Look up; what is loaded is named after what asked."""
    answer = cache.get_or_load(cache.request(*parts, **about), lambda: (parts, about))
    cache.flush()
    return answer


def test_requests_that_differ_in_the_text_alone_meet(open_blind):
    """The control: with nothing to keep them apart, the second is answered by the first."""
    cache = open_blind()
    first = answer_of(cache, "part", text="one", function="f", version="1", model="m")
    assert answer_of(cache, "part", text="two", function="f", version="1", model="m") == first
    assert semcache.last().tier == "semantic"


@pytest.mark.parametrize(
    ("parts", "about"),
    [
        (("other part",), {}),
        (("part", "and another"), {}),
        ((), {}),
        (("part",), {"tenant": "zenith"}),
        (("part",), {"tenant": semcache.SHARED}),
        (("part",), {"function": "g"}),
        (("part",), {"version": "2"}),
        (("part",), {"model": "m-large"}),
    ],
    ids=["part", "part more", "part less", "tenant", "tenant shared", "function", "version", "model"],
)
def test_requests_that_differ_elsewhere_do_not_meet(open_blind, parts, about):
    """Parts, tenant, function, version, model: in whatever two requests differ, their near matches are two's."""
    cache = open_blind()
    plain = {"function": "f", "version": "1", "model": "m"}
    answer_of(cache, "part", text="one", **plain)
    asked = plain | about | {"text": "two"}
    assert answer_of(cache, *parts, **asked) == (parts, asked)


def test_namespaces_on_one_file_do_not_meet(open_blind, tmp_path):
    """The namespace: neither near nor exact answers cross, before a restart or after."""
    path = tmp_path / "cache.db"
    shop = open_blind(namespace="shop", disk=path)
    answer_of(shop, text="one")
    billing = open_blind(namespace="billing", disk=path)
    assert shop.request(text="one").scope != billing.request(text="one").scope
    assert answer_of(billing, "billing's", text="one") == (("billing's",), {"text": "one"})
    for text in ("one", "two"):
        request = billing.request(text=text)
        assert billing.get_or_load(request, lambda: "billing's") == "billing's"
    assert shop.get_or_load(shop.request(text="two"), lambda: "loaded") == ((), {"text": "one"})


def test_embedders_do_not_meet(open_blind, tmp_path):
    """The embedder's identity: two of them in one namespace, on one store, have two scopes and two indexes."""
    path = tmp_path / "cache.db"
    one, other = (open_blind(embedder=Compass(identity=name), disk=path) for name in ("one", "other"))
    assert one.request(text="a").scope != other.request(text="a").scope
    answer_of(one, text="stored")
    later = open_blind(embedder=Compass(identity="other"), disk=path)
    for cache in (other, later):
        assert answer_of(cache, text="asked") == ((), {"text": "asked"})
        cache.invalidate(key=cache.request(text="asked").key)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("two", "b", 1), {}),
        (("two", "a", 2), {}),
        (("two", "a", 1, "rest"), {}),
        (("two", "a"), {"third": "c"}),
        (("two", "a"), {"more": 1}),
    ],
    ids=["positional", "default", "rest", "keyword only", "options"],
)
def test_calls_that_differ_in_another_argument_do_not_meet(open_blind, args, kwargs):
    """Every argument of a decorated function but its text is in the scope."""
    cache = open_blind()

    @semcache.cached(cache, text="question", version="1")
    def function(question, first, second=1, *rest, third="t", **options):
        return (question, first, second, *rest), {"third": third, **options}

    control = function("one", "a")
    cache.flush()
    assert function("control", "a") == control
    assert function(*args, **kwargs)[0][0] == "two"


def test_functions_and_versions_do_not_meet(open_blind):
    """Two functions of one cache, or one function before and after a change, have two scopes."""
    cache = open_blind()

    def make(name, version):
        def function(question):
            return f"{name} {version}: {question}"

        function.__qualname__ = name
        return semcache.cached(cache, text="question", version=version)(function)

    make("f", "1")("stored")
    cache.flush()
    assert make("g", "1")("asked") == "g 1: asked"
    assert make("f", "2")("asked") == "f 2: asked"
    assert make("f", "1")("asked again") == "f 1: stored"


def test_objects_of_methods_do_not_meet(open_blind):
    """What an object's answers depend on is in the scope of its methods."""
    cache = open_blind()

    class Assistant:
        def __init__(self, prompt):
            self.prompt = prompt

        def __semcache_key__(self):
            return self.prompt

        @semcache.cached(cache, text="question", version="1")
        def answer(self, question):
            return f"{self.prompt}: {question}"

    Assistant("brief").answer("one")
    cache.flush()
    assert Assistant("long").answer("two") == "long: two"
    assert Assistant("brief").answer("two") == "brief: one"


def test_conversations_do_not_meet(open_blind):
    """Where a callable cuts the text out of a conversation, the earlier turns are in the scope, and so is the role."""
    cache = open_blind()

    def last_turn(messages):
        return messages[-1]["content"]

    @semcache.cached(cache, text=last_turn, version="1")
    def chat(messages):
        return [message["content"] for message in messages]

    def turns(*contents, role="user"):
        return [{"role": role, "content": content} for content in contents]

    chat(turns("Which card?", "one"))
    cache.flush()
    assert chat(turns("Which account?", "two")) == ["Which account?", "two"]
    assert chat(turns("two")) == ["two"]
    assert chat(turns("Which card?", "two", role="assistant")) == ["Which card?", "two"]
    assert chat(turns("Which card?", "three")) == ["Which card?", "one"]


def test_text_that_stands_elsewhere_too_is_in_the_scope_there(open_blind):
    """A text that occurs in another argument is cut out there too: both occurrences must be the text's."""
    cache = open_blind()

    @semcache.cached(cache, text=lambda question, subject: question, version="1")
    def function(question, subject):
        return question, subject

    function("one", "about one")
    cache.flush()
    assert function("two", "about one") == ("two", "about one")
    assert function("three", "about three") == ("one", "about one")


def test_text_that_is_not_in_the_arguments_is_exact_only(open_blind):
    """Where the text cannot be cut out of the call, the rest cannot be told from it, and nothing near is served."""
    cache = open_blind()

    @semcache.cached(cache, text=lambda question: question.casefold(), version="1")
    def function(question):
        return question

    function("ONE")
    cache.flush()
    assert function("TWO") == "TWO"
    assert semcache.last().reason == "the text does not stand in the arguments as it is"


def test_text_and_rest_told_by_the_user_make_the_scope(open_blind):
    """A callable may return (text, rest) itself; the rest is then all that must be equal."""
    cache = open_blind()

    @semcache.cached(cache, text=lambda question, locale: (question.casefold(), locale), version="1")
    def function(question, locale):
        return question, locale

    function("ONE", "en")
    cache.flush()
    assert function("TWO", "de") == ("TWO", "de")
    assert function("TWO", "en") == ("ONE", "en")


def test_key_of_the_users_own_makes_the_scope_too(open_blind):
    """With `key=`, the text is cut out of what it returns; the rest of it keeps near matches apart."""
    cache = open_blind()

    def key(question, locale, trace):
        return [question, locale]

    @semcache.cached(cache, key=key, text="question", version="1")
    def function(question, locale, trace):
        return question, locale

    function("one", "en", 1)
    cache.flush()
    assert function("two", "de", 2) == ("two", "de")
    assert function("two", "en", 3) == ("one", "en")
