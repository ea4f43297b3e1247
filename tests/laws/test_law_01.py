"""Law 1: exact is exact."""

from __future__ import annotations

import functools
import subprocess
import sys
import warnings

import pytest

import semcache


def test_argument_changed_in_any_place_loads_anew(open_cache):
    """Law 1: the key covers every argument: positional, defaulted, of *args, keyword only, of **kwargs."""
    calls = []

    @semcache.cached(open_cache(), version="1")
    def function(first, second=2, *rest, third=3, **options):
        calls.append((first, second, rest, third, options))
        return len(calls)

    function(1)
    for args, kwargs in [((0,), {}), ((1, 0), {}), ((1, 2, 0), {}), ((1,), {"third": 0}), ((1,), {"x": 3})]:
        before = len(calls)
        assert function(*args, **kwargs) == before + 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        (1, 1.0),
        (1, "1"),
        (0, False),
        (None, "None"),
        ([1], (1,)),
        ("a", b"a"),
        ([1, [2]], [[1], 2]),
        ({}, []),
    ],
)
def test_values_of_different_types_do_not_meet(open_cache, one, other):
    """Law 1: what Python takes for equal, or prints alike, may change the answer."""

    @semcache.cached(open_cache())
    def function(value):
        return repr(value)

    assert [function(one), function(other)] == [repr(one), repr(other)]


def test_spellings_of_one_call_are_one_key(open_cache):
    """Law 1: a call is what its function is given, however it is written; defaults are filled in."""
    cache, calls = open_cache(), []

    @semcache.cached(cache, version="1")
    def simple(first, second=2):
        calls.append(simple)

    @semcache.cached(cache, version="1")
    def function(first, /, second=2, *rest, third=3):
        calls.append(function)

    for args, kwargs in [((1,), {}), ((1, 2), {}), ((), {"first": 1, "second": 2}), ((), {"second": 2, "first": 1})]:
        simple(*args, **kwargs)
    for args, kwargs in [((1,), {}), ((1, 2), {}), ((1,), {"third": 3, "second": 2})]:
        function(*args, **kwargs)
    assert calls == [simple, function]


def test_arguments_reach_the_origin_as_they_are(open_cache):
    """Law 1: no argument is swallowed or altered on its way, be it text, tenant, ignored or without a key."""
    seen = []

    @semcache.cached(open_cache(), text="text", tenant="tenant", ignore="ignored", version="1")
    def function(text, tenant, ignored, *rest, **options):
        seen.append((text, tenant, ignored, rest, options))

    text, tenant, ignored, rest = "t" * 3, ["a"], object(), [object()]
    with pytest.warns(semcache.SemcacheWarning):
        function(text, tenant, ignored, rest, option=rest)
    (given,) = seen
    assert given[0] is text
    assert given[1] is tenant
    assert given[2] is ignored
    assert given[3][0] is rest
    assert given[4]["option"] is rest


def test_unkeyable_argument_is_a_counted_bypass_and_one_warning(open_cache):
    """Law 1: what cannot be keyed at a call is never guessed: the origin is called, and the argument named, once."""
    cache = open_cache()

    @semcache.cached(cache)
    def function(first, second):
        return object()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        answers = [function(1, {"handle": object()}) for _ in range(3)]
    assert len({id(answer) for answer in answers}) == 3
    assert cache.stats().bypasses == {"unkeyable": 3}
    assert function.cache_info() == (0, 0, 3)
    (warning,) = caught
    assert "argument 'second'['handle']" in str(warning.message)
    assert semcache.last().faults[0][:2] == ("key", "UnkeyableError")


def test_unkeyable_default_is_an_error_at_decoration(open_cache):
    """Law 1: what can be known to have no key is refused where it is written, by its name."""
    with pytest.raises(semcache.ConfigurationError, match="argument 'handle'"):

        @semcache.cached(open_cache())
        def function(question, handle=object()):  # noqa: B008 - what is refused
            return question


def test_arguments_of_a_partial_are_keyed(open_cache):
    """Law 1: what functools.partial has filled in changes the answer like any other argument."""

    def function(model, question):
        return f"{model}: {question}"

    cache = open_cache()
    small, large = (semcache.cached(cache)(functools.partial(function, model)) for model in ("small", "large"))
    for _ in range(2):
        assert [small("q"), large("q")] == ["small: q", "large: q"]
    assert (cache.stats().misses, cache.stats().hits) == (2, {"memory": 2})


def test_main_is_named_by_its_file(tmp_path):
    """Law 1: a script and its import are one module; two scripts are not."""
    script = tmp_path / "shop_script.py"
    script.write_text("""
import semcache
@semcache.cached(semcache.Cache())
def f(x):
    return x
f(1)
print(semcache.last().function)
""")
    ran = [
        subprocess.run([sys.executable, *how], check=True, capture_output=True, text=True, cwd=tmp_path).stdout
        for how in ([str(script)], ["-c", "import shop_script"])
    ]
    assert ran == ["shop_script.f\n"] * 2


def test_closures_that_differ_do_not_meet(open_cache):
    """Law 1: free variables enter the version, read once, at decoration."""
    cache = open_cache()

    def make(prompt):
        @semcache.cached(cache)
        def function(question):
            return f"{prompt} {question}"

        return function

    assert [make("short:")("q"), make("long:")("q")] == ["short: q", "long: q"]


def test_mutable_closure_is_refused_with_the_mend(open_cache):
    """Law 1: what may change unseen is refused at decoration, unless version= or ignore= says what it means."""
    settings = {"temperature": 0}

    def function(question):
        return settings, question

    with pytest.raises(semcache.ConfigurationError, match=r"'settings'.*version=.*ignore='settings'"):
        semcache.cached(open_cache())(function)
    semcache.cached(open_cache(), version="1")(function)
    semcache.cached(open_cache(), ignore="settings")(function)


def test_source_that_changed_does_not_meet_the_old(open_cache):
    """Law 1: the function itself is part of what can change the answer."""
    cache, answers = open_cache(), []
    for body in ("'old'", "'new'"):
        scope = {"__name__": "shop"}
        exec(f"def function(question):\n    return {body}", scope)
        answers.append(semcache.cached(cache)(scope["function"])("q"))
    assert answers == ["old", "new"]


def test_ignored_argument_is_not_keyed(open_cache):
    """Law 1: only what the user switched off by name is left out of the key."""
    calls = []

    @semcache.cached(open_cache(), ignore=["trace_id"], version="1")
    def function(question, trace_id):
        calls.append(trace_id)

    function("q", "a")
    function("q", trace_id="b")
    assert calls == ["a"]
