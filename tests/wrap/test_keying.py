"""What a call's key is made of: the arguments, whole, however they are spelled."""

from __future__ import annotations

import inspect
import typing
from abc import ABC
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import semcache
from semcache import ConfigurationError, SemcacheWarning, UnkeyableError


class Connection:
    """A class whose objects have no key."""


def key_of(function, *args, **kwargs):
    return function.explain(*args, **kwargs).key


def test_call_spelled_in_any_way_has_one_key(cache):
    """Positional, keyword and default spellings of one call are one key."""
    calls = []

    @semcache.cached(cache, version="1")
    def answer(question, locale="en", limit=3):
        calls.append(question)
        return question

    answer("q")
    answer(question="q")
    answer("q", "en")
    answer("q", limit=3)
    answer(limit=3, locale="en", question="q")
    answer("q", "en", 3)
    assert calls == ["q"]
    assert answer.cache_info() == (5, 1, 0)


@pytest.mark.parametrize("other", [("p",), ("q", "de"), ("q", "en", 4), ("q", "en", 3.0), ("q", "en", True)])
def test_argument_that_differs_is_another_key(cache, other):
    """Law 1: the key covers every argument, with its type."""

    @semcache.cached(cache)
    def answer(question, locale="en", limit=3):
        return question

    assert key_of(answer, "q") != key_of(answer, *other)


def test_variadic_arguments_are_keyed(cache):
    """*args and **kwargs are keyed; the order of keywords is not, and the two are not confused."""

    @semcache.cached(cache)
    def answer(first, *rest, **options):
        return first, rest, options

    assert key_of(answer, 1, a=1, b=2) == key_of(answer, 1, b=2, a=1) == key_of(answer, first=1, a=1, b=2)
    different = [((1,), {}), ((1, 2), {}), ((1, 2, 3), {}), ((1,), {"a": 2}), ((1,), {"b": 2}), ((1, (2,)), {})]
    assert len({key_of(answer, *args, **kwargs) for args, kwargs in different}) == len(different)
    assert answer(1, 2, a=3) == answer(1, 2, a=3) == (1, (2,), {"a": 3})


def test_positional_only_and_keyword_only_arguments_are_keyed(cache):
    """A keyword that has a positional-only argument's name goes to **kwargs, as in the call itself."""

    @semcache.cached(cache)
    def answer(first, /, *, strict=False, **options):
        return first, strict, options

    assert key_of(answer, 1) == key_of(answer, 1, strict=False)
    assert key_of(answer, 1) != key_of(answer, 1, strict=True)
    assert key_of(answer, 1, first=2) != key_of(answer, 2, first=1)
    assert answer(1, first=2) == answer(1, first=2) == (1, False, {"first": 2})


def test_positional_only_argument_alone_is_no_keyword(cache):
    """Where there is no **kwargs, a positional-only argument by keyword is the function's own TypeError."""

    @semcache.cached(cache)
    def answer(first, /, second=2):
        return first

    assert answer(1) == 1
    with pytest.raises(TypeError, match="positional-only"):
        answer(first=1)
    assert key_of(answer, 1, second=2) == key_of(answer, 1)


def test_function_without_arguments_has_one_key(cache):
    """A call of nothing is a call."""
    calls = []

    @semcache.cached(cache, version="1")
    def today():
        calls.append(1)
        return "today"

    assert today() == today() == "today"
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((), {}), ((1, 2, 3), {}), ((1,), {"first": 1}), ((1,), {"other": 1}), ((), {"second": 1})],
)
def test_call_that_does_not_fit_raises_the_functions_own_error(cache, args, kwargs):
    """A call that does not fit raises what it would raise without the cache, and is counted as a bypass."""

    def plain(first, second=2):
        return first

    with pytest.raises(TypeError) as expected:
        plain(*args, **kwargs)
    wrapped = semcache.cached(cache)(plain)
    with pytest.raises(TypeError) as raised:
        wrapped(*args, **kwargs)
    assert str(raised.value) == str(expected.value)
    assert raised.type is TypeError
    assert wrapped.cache_info() == (0, 0, 1)
    assert cache.stats().bypasses == {"the arguments do not fit the function": 1}


def test_misfit_in_explain_names_the_argument(cache):
    """Asking about a call that does not fit says what does not."""

    @semcache.cached(cache)
    def answer(question):
        return question

    with pytest.raises(TypeError, match="question"):
        answer.explain()
    with pytest.raises(TypeError, match="other"):
        answer.invalidate("q", other=1)


@given(st.data())
def test_key_agrees_with_what_the_function_receives(data):
    """Two calls have one key exactly if the function would receive the same arguments."""

    def plain(a, b=2, /, c=3, *rest, d=4, **options):
        return [a, b, c, rest, d, options]

    values = st.integers(1, 4)
    keywords = st.dictionaries(st.sampled_from(["a", "c", "d", "x"]), values, max_size=3)
    calls = [(data.draw(st.lists(values, max_size=4)), data.draw(keywords)) for _ in range(2)]
    received = []
    for args, kwargs in calls:
        try:
            received.append(plain(*args, **kwargs))
        except TypeError:
            return
    cache = semcache.Cache(memory=0)
    wrapped = semcache.cached(cache)(plain)
    keys = [key_of(wrapped, *args, **kwargs) for args, kwargs in calls]
    assert (keys[0] == keys[1]) == (received[0] == received[1])


# What cannot be keyed, at decoration


def test_annotation_that_cannot_be_keyed_is_refused_by_name(cache):
    """Law 1: what cannot be keyed is an error at decoration that names the argument and the mend."""

    def ask(question: str, connection: Connection) -> str: ...

    ask.__annotations__ = {"question": str, "connection": Connection}
    with pytest.raises(ConfigurationError, match=r"'connection' of .*Connection cannot be keyed; name it in ignore="):
        semcache.cached(cache)(ask)
    semcache.cached(cache, ignore="connection")(ask)
    semcache.cached(cache, key=lambda question, connection: question)(ask)


def test_default_that_cannot_be_keyed_is_refused_by_name(cache):
    """A default value enters the key too, and is refused where it cannot, unless key= makes the key."""

    connection = Connection()

    def ask(question, connection=connection): ...

    with pytest.raises(ConfigurationError, match=r"'connection' of .*Connection cannot be keyed"):
        semcache.cached(cache)(ask)
    semcache.cached(cache, ignore=["connection"])(ask)
    semcache.cached(cache, key=lambda question, connection=None: question)(ask)


class Message(typing.TypedDict):
    role: str


class Base(ABC):  # noqa: B024 - that is the case
    """A base class of things that may have keys."""


class Keyed:
    def __semcache_key__(self):
        return 1


@dataclass
class Record:
    name: str


class Colour(Enum):
    RED = 1


class Pair(typing.NamedTuple):
    first: int


@pytest.mark.parametrize(
    "kind",
    [
        typing.Any, object, str, int, dict, list[str], Message, list[Message], Base, Keyed, Record, Colour, Enum, Pair,
        Path, Mapping, Mapping[str, int], int | None, type, Exception, Callable[[int], int], typing.Literal["a"],
    ],
    ids=str,
)  # fmt: skip
def test_annotation_that_may_be_keyed_is_taken(cache, kind):
    """What an annotation does not rule out is met at the call."""

    def ask(value): ...

    ask.__annotations__ = {"value": kind}
    semcache.cached(cache)(ask)


@pytest.mark.parametrize("kind", [Iterator, Connection, type(lambda: 0), type(typing)], ids=str)
def test_annotation_that_is_never_keyed_is_refused(cache, kind):
    """Iterators, functions, modules and classes without a form are refused."""

    def ask(value): ...

    ask.__annotations__ = {"value": kind}
    with pytest.raises(ConfigurationError, match="argument 'value' of"):
        semcache.cached(cache)(ask)


def test_annotation_that_cannot_be_resolved_tells_nothing(cache):
    """A name that is imported for type checkers only is no reason to refuse."""

    @semcache.cached(cache)
    def ask(value: NowhereToBeFound):  # noqa: F821
        return value

    assert ask(1) == 1


# What cannot be keyed, at a call


def test_unkeyable_at_a_call_is_a_counted_bypass_and_one_warning(cache):
    """Law 1: the call works, is counted as a bypass, and one warning names the argument."""
    calls = []

    @semcache.cached(cache, version="1")
    def ask(question, connection=None):
        calls.append(question)
        return question

    with pytest.warns(SemcacheWarning) as warned:
        answers = [ask("q", one) for one in (Connection(), Connection(), [Connection()], {"main": Connection()})]
    assert answers == calls == ["q"] * 4
    [warning] = warned
    assert "ask is not cached for this call: argument 'connection'" in str(warning.message)
    assert "ignore=" in str(warning.message)
    assert ask.cache_info() == (0, 0, 4)
    assert cache.stats().bypasses == {"unkeyable": 4}
    assert cache.stats().faults == {"key: UnkeyableError": 4}
    assert semcache.last().kind == "bypass"


def test_unkeyable_warning_points_at_the_callers_line(cache):
    """A warning is of use where it names the line to mend, not one of ours."""

    @semcache.cached(cache)
    def ask(connection):
        return 1

    @semcache.cached(cache)
    def items(connection):
        yield 1

    for call in (lambda: ask(Connection()), lambda: list(items(Connection()))):
        with pytest.warns(SemcacheWarning) as warned:
            call()
        assert warned[0].filename == __file__


def test_unkeyable_deep_inside_is_named_with_its_place(cache):
    """The message leads to the value, however deep it lies."""

    @semcache.cached(cache)
    def ask(question, options):
        return question

    with pytest.warns(SemcacheWarning, match=r"argument 'options'\['a'\]\[1\]: a .*Connection cannot be keyed"):
        ask("q", {"a": [1, Connection()]})


def test_unkeyable_under_warnings_as_errors_is_logged(cache, caplog):
    """Who turns warnings into errors still gets the answer."""

    @semcache.cached(cache)
    def ask(connection):
        return 1

    assert ask(Connection()) == 1  # warnings are errors in this suite
    assert "argument 'connection'" in caplog.text


def test_key_method_that_raises_is_a_bypass_that_says_so(cache):
    """An error in __semcache_key__ is never taken for a call that does not fit."""

    class Broken:
        def __semcache_key__(self):
            raise TypeError("no key today")

    @semcache.cached(cache)
    def ask(value):
        return 1

    with pytest.warns(SemcacheWarning, match="no key today"):
        assert ask(Broken()) == 1
    assert cache.stats().bypasses == {"unkeyable": 1}


def test_unkeyable_in_explain_is_raised(cache):
    """Who asks about a call that has no key is told."""

    @semcache.cached(cache)
    def ask(value):
        return 1

    with pytest.raises(UnkeyableError):
        ask.explain(Connection())


# ignore=, key=


def test_ignored_argument_is_not_keyed(cache):
    """ignore= names arguments that cannot change the answer; they still reach the function."""
    seen = []

    @semcache.cached(cache, version="1", ignore=("connection", "trace"))
    def ask(connection, question, *, trace=None):
        seen.append((connection, trace))
        return question

    first, second = Connection(), Connection()
    assert ask(first, "q", trace=1) == ask(second, "q", trace=2) == ask(question="q", connection=second) == "q"
    assert seen == [(first, 1)]
    assert key_of(ask, first, "q") != key_of(ask, first, "p")


@pytest.mark.parametrize("option", ["ignore", "text", "tenant"])
def test_option_that_names_no_argument_is_refused(cache, option):
    """A name that is mistyped is an error at decoration that lists the names there are."""

    def ask(question, locale): ...

    with pytest.raises(ConfigurationError, match=f"{option}='quesiton' names no argument.*question, locale"):
        semcache.cached(cache, **{option: "quesiton"})(ask)


def test_key_callable_alone_makes_the_key(cache):
    """key= takes the call's arguments and returns what alone makes the key."""
    calls = []

    @semcache.cached(cache, version="1", key=lambda connection, question: question.strip().lower())
    def ask(connection, question):
        calls.append(question)
        return question

    assert ask(Connection(), "Why?") == ask(Connection(), " why? ") == "Why?"
    assert calls == ["Why?"]
    ask(Connection(), "How?")
    assert calls == ["Why?", "How?"]


def test_key_callable_that_raises_is_a_bypass_that_says_so(cache):
    """The user's own callable may fail; the call goes on."""

    @semcache.cached(cache, key=lambda question: 1 / 0)
    def ask(question):
        return question

    with pytest.warns(SemcacheWarning, match=r"key=, text= or tenant= raised ZeroDivisionError"):
        assert ask("q") == "q"
    assert cache.stats().bypasses == {"key, text or tenant failed": 1}


def test_key_callable_that_returns_what_has_no_key_is_a_bypass_that_says_so(cache):
    """What key= returns is keyed like any argument."""

    @semcache.cached(cache, key=lambda question: Connection())
    def ask(question):
        return question

    with pytest.warns(SemcacheWarning, match=r"key=: a .*Connection cannot be keyed"):
        assert ask("q") == "q"


def test_call_that_does_not_fit_warns_of_no_callable(cache):
    """Where the call itself is wrong, key= is not blamed."""

    @semcache.cached(cache, key=lambda question: question)
    def ask(question):
        return question

    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        ask()
    assert cache.stats().bypasses == {"the arguments do not fit the function": 1}


# functools.partial and bound methods


def test_partial_arguments_are_keyed(cache):
    """Law 1: functools.partial's arguments are keyed, positional and keyword ones, with version= too."""

    def ask(model, question, *, locale="en"):
        return model, question, locale

    for version in (None, "1"):
        small = semcache.cached(cache, version=version)(partial(ask, "small"))
        large = semcache.cached(cache, version=version)(partial(ask, "large"))
        german = semcache.cached(cache, version=version)(partial(ask, "large", locale="de"))
        nested = semcache.cached(cache, version=version)(partial(partial(ask, "tiny"), locale="de"))
        assert small("q") == ("small", "q", "en")
        assert large("q") == ("large", "q", "en")
        assert german("q") == ("large", "q", "de")
        assert nested("q") == ("tiny", "q", "de")
        assert german("q", locale="fr") == ("large", "q", "fr")
        assert german("q") == ("large", "q", "de")
        assert len({key_of(one, "q") for one in (small, large, german, nested)}) == 4


def test_partial_argument_that_changes_is_keyed_as_it_is_now(cache):
    """Law 1: a list that partial holds is read at each call, not once."""
    history = ["hello"]

    def ask(history, question):
        return [*history, question]

    wrapped = semcache.cached(cache)(partial(ask, history))
    assert wrapped("q") == ["hello", "q"]
    history.append("there")
    assert wrapped("q") == ["hello", "there", "q"]


def test_partial_argument_without_a_key_is_refused_or_ignored(cache):
    """A partial argument is refused, ignored and named like any other."""

    def ask(connection, question, customer):
        return question

    bound = partial(ask, Connection(), customer="acme")
    with pytest.raises(ConfigurationError, match=r"'connection' of .*Connection cannot be keyed"):
        semcache.cached(cache)(bound)
    wrapped = semcache.cached(cache, ignore="connection", tenant="customer")(bound)
    assert wrapped("q") == wrapped("q") == "q"
    assert wrapped.cache_info() == (1, 1, 0)
    assert str(inspect.signature(wrapped)) == "(question, *, customer='acme')"


def test_partial_with_arguments_that_do_not_fit_is_refused(cache):
    """What can never be called is an error at decoration."""

    def ask(question): ...

    with pytest.raises(ConfigurationError, match="cannot be called as it is"):
        semcache.cached(cache)(partial(ask, 1, 2))


def test_bound_method_is_keyed_with_its_object(cache):
    """Law 1: two objects' methods are two functions, with version= too; an object without a key is refused."""

    class Model:
        def __init__(self, name):
            self.name = name

        def ask(self, question):
            return self.name, question

    class KeyedModel(Model):
        def __semcache_key__(self):
            return self.name

    for version in (None, "1"):
        with pytest.raises(ConfigurationError, match=r"argument 'self' of .*__semcache_key__"):
            semcache.cached(cache, version=version)(Model("a").ask)
        small = semcache.cached(cache, version=version)(KeyedModel("small").ask)
        large = semcache.cached(cache, version=version)(KeyedModel("large").ask)
        assert small("q") == ("small", "q")
        assert large("q") == ("large", "q")
        assert large("q") == ("large", "q")


# tenant=, text=, ttl=, when=: what they say about a call


def test_tenant_enters_the_key(cache):
    """Two tenants never share an entry, whether an argument's name or a callable tells them apart."""

    @semcache.cached(cache, tenant="customer", ignore="customer")
    def named(question, customer=None):
        return question, customer

    @semcache.cached(cache, tenant=lambda question, customer: customer, ignore="customer")
    def called(question, customer):
        return question, customer

    assert named("q", "acme") == ("q", "acme")
    assert named("q", "globex") == ("q", "globex")
    assert named("q", customer="acme") == ("q", "acme")
    assert key_of(named, "q", 7) == key_of(named, "q", "7") != key_of(named, "q")
    assert called("q", "acme") == ("q", "acme")
    assert called("q", "globex") == ("q", "globex")


def test_tenant_shared_adds_nothing_to_the_key(cache):
    """Who shares with everybody has the key of who says nothing."""

    def ask(question):
        return question

    plain, shared = semcache.cached(cache)(ask), semcache.cached(cache, tenant=semcache.SHARED)(ask)
    assert key_of(plain, "q") == key_of(shared, "q")


def test_tenant_that_is_none_of_ours_is_a_bypass(cache):
    """A tenant that is no text and no number is a mistake, and never a shared answer."""

    @semcache.cached(cache, tenant="customer")
    def ask(question, customer):
        return question

    with pytest.warns(SemcacheWarning, match="tenant= raised .*a tenant is text"):
        assert ask("q", ["acme"]) == "q"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("text", 3), ("key", "question"), ("tenant", 3), ("ttl", 0), ("ttl", -1), ("ttl", "soon"), ("version", 2),
        ("when", True),
    ],
)  # fmt: skip
def test_option_of_the_wrong_kind_is_refused(cache, option, value):
    """Wrong configuration raises at decoration and names the option."""
    with pytest.raises(ConfigurationError, match=option):
        semcache.cached(cache, **{option: value})


def test_text_that_is_ignored_is_refused(cache):
    """The text must be in the key."""
    with pytest.raises(ConfigurationError, match="the text must be in the key"):
        semcache.cached(cache, text="question", ignore="question")(lambda question: question)


@pytest.mark.parametrize(
    "target", [3, "x", type, property(lambda self: 1), object()], ids=["number", "text", "class", "property", "object"]
)
def test_cached_of_what_is_no_function_is_refused(target):
    """`cached` says what it takes."""
    with pytest.raises(ConfigurationError, match="cached takes a function"):
        semcache.cached(target)


def test_cached_of_a_callable_object_says_what_to_do(cache):
    """An object with __call__ has no name and no source; a function around it has."""

    class Asker:
        def __call__(self, question):
            return question

    with pytest.raises(ConfigurationError, match="wrap it in one"):
        semcache.cached(cache)(Asker())
