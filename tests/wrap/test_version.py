"""What a version is made of: changed code does not serve the old code's answers, and nothing else changes it."""

from __future__ import annotations

import functools
import importlib.util
import math
import re
import subprocess
import sys
import textwrap
from datetime import date
from decimal import Decimal
from enum import Enum

import pytest

import semcache
from semcache import ConfigurationError


class Colour(Enum):
    RED = 1
    BLUE = 2


def load(folder, source, name="service"):
    """Import a module from source text, anew each time."""
    path = folder / f"{name}.py"
    path.write_text(textwrap.dedent(source), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


def versions(folder, *sources):
    """Return the version of `ask` in each source."""
    return [version(load(folder, "import semcache, functools\n" + textwrap.dedent(source)).ask) for source in sources]


def version(function):
    return function.__semcache_version__


def make(value):
    """Return a function that closes over a value."""

    @semcache.cached
    def ask(question):
        return question, value

    return ask


def test_source_that_changes_changes_the_version(tmp_path):
    """Law 1: changed code does not serve the old code's answers."""
    one, two, same = versions(
        tmp_path,
        "@semcache.cached\ndef ask(q):\n    return q + 'a'\n",
        "@semcache.cached\ndef ask(q):\n    return q + 'b'\n",
        "\n\n\n@semcache.cached\ndef ask(q):\n    return q + 'a'\n",
    )
    assert one != two
    assert one == same


def test_decorators_arguments_leave_the_version(tmp_path):
    """A ttl that is tuned does not empty the cache."""
    one, two, three = versions(
        tmp_path,
        "@semcache.cached\ndef ask(q):\n    return q\n",
        "@semcache.cached(ttl='5m',\n    when=lambda answer: bool(answer),\n)\ndef ask(q):\n    return q\n",
        "ask = None\n\nif True:\n    @semcache.cached(ttl='1h')\n    def ask(q):\n        return q\n",
    )
    assert one == two == three


def test_decorator_below_ours_enters_the_version(tmp_path):
    """A decorator between us and the function is code that makes the answer."""
    source = """
        def loud(function):
            @functools.wraps(function)
            def wrapper(q):
                return function(q) {change}
            return wrapper

        @semcache.cached
        @loud
        def ask(q):
            return q {own}
    """
    plain, louder, other = versions(
        tmp_path,
        source.format(change="+ '!'", own=""),
        source.format(change="+ '!!'", own=""),
        source.format(change="+ '!'", own="+ '?'"),
    )
    assert len({plain, louder, other}) == 3


def test_version_given_replaces_source_and_closure(cache):
    """version= says when answers change; what is closed over is then the owner's affair."""
    history = []

    def first(question):
        return history, 1

    def second(question):
        return history, 2

    one, two = (semcache.cached(cache, version="7")(function) for function in (first, second))
    assert version(one) == version(two) == "7"
    assert one.explain("q").key != two.explain("q").key  # they are two functions by name


@pytest.mark.parametrize(
    ("value", "other"),
    [
        ("a", "b"), (1, 2), (1, 1.0), (1, True), (None, 0), (b"a", "a"), ((1, "a"), (1, "b")), (range(3), range(4)),
        (frozenset({1}), frozenset({2})), (date(2020, 1, 1), date(2020, 1, 2)), (Decimal("1.0"), Decimal("1.00")),
        (Colour.RED, Colour.BLUE), (len, sum), (math, re), (math.sin, math.cos),
    ],
)  # fmt: skip
def test_closed_over_value_enters_the_version(value, other):
    """Law 1: immutable values, functions and modules that are closed over enter the version."""
    assert version(make(value)) == version(make(value))
    assert version(make(value)) != version(make(other))


class Connection:
    pass


@pytest.mark.parametrize(
    "value",
    [
        [], {}, set(), bytearray(b"a"), Connection(), Connection, (1, []), ((), {}), [].append, Connection().__eq__,
        functools.partial(len, []), (Colour.RED, []), Colour,
    ],
    ids=lambda value: re.sub(" at 0x[0-9a-f]+", "", repr(value)),  # the same in every process
)  # fmt: skip
def test_closed_over_value_that_may_change_is_refused(value):
    """Law 1: what may change unseen is refused, and the message holds both mends, which work."""
    with pytest.raises(ConfigurationError, match=r"closes over 'value', .*: pass version= .* or ignore='value'"):
        make(value)

    @semcache.cached(ignore="value")
    def ignoring(question):
        return value

    @semcache.cached(version="1")
    def versioned(question):
        return value


def test_closed_over_function_enters_the_version_with_its_closure():
    """Functions are followed, to what they close over, also within functools.partial."""

    def prompts(prefix, suffix):
        def prompt(question):
            return prefix + question

        return make(functools.partial(prompt, suffix)), make(prompt)

    partial, plain = prompts("a", "x")
    other_partial, other_plain = prompts("b", "x")
    assert version(plain) != version(other_plain)
    assert version(partial) != version(other_partial)
    assert version(partial) != version(prompts("a", "y")[0])
    assert version(partial) == version(prompts("a", "x")[0])
    assert version(partial) != version(plain)


def test_closed_over_function_that_holds_what_may_change_is_refused_with_the_way():
    """The message leads from our function to the value, and names the variable that can be ignored."""

    def prompts(history):
        def prompt(question):
            return [*history, question]

        @semcache.cached(ignore="prompt")
        def ignoring(question):
            return prompt(question)

        @semcache.cached
        def ask(question):
            return prompt(question)

    with pytest.raises(
        ConfigurationError, match=r"closes over 'prompt', which closes over 'history', which is a list.*ignore='prompt'"
    ):
        prompts([])


def test_closed_over_variable_that_is_not_set_yet_is_refused():
    """What is read once cannot be read before it is there."""
    with pytest.raises(ConfigurationError, match="closes over 'later', which is not set yet"):

        @semcache.cached
        def ask(question):
            return later

    later = 1


def test_closed_over_by_a_changed_function_that_was_wrapped(cache):
    """A wrapper around a cached function is code of its own, though functools.wraps makes it look like the function."""

    def wrapped(end):
        def loud(function):
            @functools.wraps(function)
            def wrapper(question):
                return function(question) + end

            return wrapper

        @loud
        @semcache.cached(cache)
        def inner(question):
            return question

        @semcache.cached(cache)
        def outer(question):
            return inner(question)

        return outer

    assert wrapped("!")("q") == "q!"
    assert wrapped("?")("q") == "q?"


def test_cached_function_that_is_closed_over_enters_with_its_version():
    """A cached function brings the version that it has: its own version= holds for those who call it too."""

    def chain(number, given):
        history = []

        @semcache.cached(version=given)
        def inner(question):
            return history, number

        @semcache.cached
        def outer(question):
            return inner(question)

        return outer

    assert version(chain(1, "1")) == version(chain(2, "1"))
    assert version(chain(1, "1")) != version(chain(1, "2"))


def test_function_cached_twice_has_two_versions(cache):
    """A cache over a cache: the outer entry is never taken for the inner one."""

    def loud(function):
        @functools.wraps(function)
        def wrapper(question):
            return function(question).upper()

        return wrapper

    @semcache.cached(cache)
    def plain(question):
        return question

    outer = semcache.cached(cache)(loud(plain))
    assert outer("q") == "Q"
    assert outer("q") == "Q"
    assert plain("q") == "q"
    assert semcache.cached(cache)(plain)("q") == "q"


def test_recursive_function_is_versioned_and_cached(cache):
    """A function may close over itself, before it is decorated and after."""

    @semcache.cached(cache)
    def fibonacci(n):
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

    assert fibonacci(30) == 832040
    assert fibonacci.cache_info().misses == 31

    def even(n):
        return n == 0 or odd(n - 1)

    def odd(n):
        return n != 0 and even(n - 1)

    assert semcache.cached(cache)(even)(10) is True


def test_two_lambdas_on_one_line_have_two_versions(cache):
    """Law 1: a line's text does not tell its lambdas apart; what was compiled does."""
    one, two = semcache.cached(cache)(lambda q: q + "a"), semcache.cached(cache)(lambda q: q + "b")
    assert version(one) != version(two)
    assert one("q") == "qa"
    assert two("q") == "qb"


def compiled(source):
    """Return `ask` of source text that no file holds."""
    namespace = {"__name__": "nowhere", "semcache": semcache}
    exec(compile(textwrap.dedent(source), "<nowhere>", "exec"), namespace)
    return namespace["ask"]


def test_function_without_source_is_versioned_by_what_was_compiled():
    """Law 1: without source the version is of bytecode, constants and names, nested functions included."""
    sources = [
        "@semcache.cached\ndef ask(q):\n    return q + 'a'\n",
        "@semcache.cached\ndef ask(q):\n    return q + 'b'\n",
        "@semcache.cached\ndef ask(q):\n    return upper(q)\n",
        "@semcache.cached\ndef ask(q):\n    return lower(q)\n",
        "@semcache.cached\ndef ask(q):\n    return [x + 1 for x in q]\n",
        "@semcache.cached\ndef ask(q):\n    def inner(x): return x + 2\n    return inner(q)\n",
        "@semcache.cached\ndef ask(q):\n    def inner(x): return x + 3\n    return inner(q)\n",
    ]
    assert len({version(compiled(source)) for source in sources}) == len(sources)
    assert version(compiled(sources[0])) == version(compiled(sources[0]))


PROGRAM = """
import semcache

@semcache.cached(semcache.Cache("shop"))
def ask(question):
    return question

print(ask.__semcache_name__, ask.__semcache_version__, ask.explain("q").key.hex())
"""


def run(*arguments, stdin=None, cwd):
    done = subprocess.run(
        [sys.executable, *arguments], input=stdin, cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_main_is_named_by_its_files_stem(tmp_path):
    """A script, and the same file imported or run as a module, share their entries."""
    (tmp_path / "shop.py").write_text(PROGRAM, encoding="utf-8")
    script = run("shop.py", cwd=tmp_path)
    assert script[0] == "shop.ask"
    assert run("-c", "import shop", cwd=tmp_path) == script
    assert run("-m", "shop", cwd=tmp_path) == script


def test_program_from_stdin_is_versioned_by_what_was_compiled(tmp_path):
    """Law 1: there is no source to read, and the version is still the same in the next process."""
    first = run("-", stdin=PROGRAM, cwd=tmp_path)
    assert first == run("-", stdin=PROGRAM, cwd=tmp_path)
    changed = run("-", stdin=PROGRAM.replace("return question", "return question * 2"), cwd=tmp_path)
    assert changed[:1] == first[:1]
    assert changed[1] != first[1]


def test_builtin_needs_a_version(cache):
    """What has neither source nor bytecode is refused with the mend, which works."""
    plain = functools.lru_cache(lambda question: question)
    with pytest.raises(ConfigurationError, match="pass version="):
        semcache.cached(cache)(plain)
    assert semcache.cached(cache, version="1")(plain)("q") == "q"


def test_version_of_a_generator_function_tells_its_items_from_an_answer(cache):
    """What is stored for a generator is a list of items, whatever version= says."""

    def make(kind):
        if kind == "items":

            @semcache.cached(cache, version="1")
            def ask(question):
                yield question
        else:

            @semcache.cached(cache, version="1")
            def ask(question):
                return question

        return ask

    assert list(make("items")("q")) == ["q"]
    assert make("answer")("q") == "q"
    assert list(make("items")("q")) == ["q"]
