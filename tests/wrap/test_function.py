"""Cached functions, sync and async: what comes back, what is kept, and what they look like from outside."""

from __future__ import annotations

import asyncio
import gc
import inspect
import pickle
import pydoc
import subprocess
import sys
import textwrap
import weakref
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import NamedTuple

import pytest

import semcache


class OriginError(Exception):
    """What an origin raises."""


def call(function, *args, **kwargs):
    """Call a function of either colour."""
    answer = function(*args, **kwargs)
    return asyncio.run(answer) if inspect.iscoroutine(answer) else answer


def coloured(colour, body):
    """Return a def or an async def that does the same."""
    if colour == "sync":

        def ask(*args, **kwargs):
            return body(*args, **kwargs)

        return ask

    async def aask(*args, **kwargs):
        await asyncio.sleep(0)
        return body(*args, **kwargs)

    return aask


both = pytest.mark.parametrize("colour", ["sync", "async"])


@both
@pytest.mark.parametrize("value", [None, False, 0, "", [], {}, (), 0.0, b""], ids=repr)
def test_empty_answer_is_an_answer(cache, colour, value):
    """What is false is cached like what is true, and comes back as what it was."""
    calls = []

    def body():
        calls.append(1)
        return value

    ask = semcache.cached(cache, version="1")(coloured(colour, body))
    for _ in range(2):
        answer = call(ask)
        assert answer == value
        assert type(answer) is type(value)
    assert len(calls) == 1


@both
def test_hit_is_a_fresh_object(cache, colour):
    """Law 9: who mutates an answer, loaded or hit, changes nobody else's."""
    ask = semcache.cached(cache, version="1")(coloured(colour, lambda: {"steps": ["a"]}))
    first = call(ask)
    first["steps"].append("b")
    second = call(ask)
    assert second == {"steps": ["a"]}
    second["steps"].append("c")
    assert call(ask) == {"steps": ["a"]}


@both
def test_argument_reaches_the_origin_as_it_was(cache, colour):
    """Law 1: no argument is altered on its way."""
    seen = []
    ask = semcache.cached(cache, version="1")(coloured(colour, lambda *args, **kwargs: seen.append((args, kwargs))))
    history = ["a"]
    call(ask, history, options=(1, 2))
    [((argument,), options)] = seen
    assert argument is history
    assert options == {"options": (1, 2)}


@both
def test_origins_error_is_raised_unchanged_and_not_cached(cache, colour):
    """Law 7: the same object goes up, with its cause and context, and the next call loads again."""
    error = OriginError("no")
    errors = [error, OriginError("no again")]

    def body():
        try:
            {}["inner"]
        except KeyError as cause:
            raise errors.pop(0) from cause

    ask = semcache.cached(cache, version="1")(coloured(colour, body))

    async def handling():
        try:
            int("the caller is handling an error of its own")
        except ValueError:
            with pytest.raises(OriginError) as raised:
                await ask() if colour == "async" else ask()
        return raised

    raised = asyncio.run(handling())
    assert raised.value is error
    assert isinstance(error.__cause__, KeyError)
    assert isinstance(error.__context__, KeyError)
    assert any(entry.name == "body" for entry in raised.traceback)
    with pytest.raises(OriginError, match="again"):
        call(ask)
    stats = cache.stats()
    assert (stats.misses, stats.loads, stats.load_errors) == (2, 2, 2)
    assert stats.faults == {}


@both
def test_origins_error_is_let_go(cache, colour):
    """An error is not kept alive by the frames it passed: what its origin held is freed with it."""

    def body():
        raise OriginError("no")

    ask = semcache.cached(cache, version="1")(coloured(colour, body))

    async def watch():
        try:
            await ask() if colour == "async" else ask()
        except OriginError as error:
            return weakref.ref(error)

    gc.collect()
    gc.disable()
    try:
        assert asyncio.run(watch())() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration, GeneratorExit, KeyboardInterrupt, SystemExit])
def test_unusual_error_is_raised_unchanged(cache, kind):
    """A function may raise what would end a generator, or the program."""

    @semcache.cached(cache, ignore="kind")
    def ask(question):
        raise kind(question)

    for question in ("q", "p"):
        with pytest.raises(kind) as raised:
            ask(question)
        assert raised.value.args == (question,)


def test_unusual_error_of_a_coroutine_is_as_without_the_cache(cache):
    """Python makes a RuntimeError of a coroutine's StopIteration; so do we, and the flight lands."""

    @semcache.cached(cache)
    async def ask():
        raise StopIteration

    with pytest.raises(RuntimeError, match="StopIteration"):
        asyncio.run(ask())


class Opaque:
    """What cannot be encoded."""


@both
def test_answer_that_cannot_be_encoded_is_given_and_counted(cache, colour):
    """The caller gets what the origin returned; it is a counted fault, and nothing is stored."""
    made = []

    def body():
        made.append(Opaque())
        return made[-1]

    ask = semcache.cached(cache, version="1")(coloured(colour, body))
    assert call(ask) is made[0]
    assert call(ask) is made[1]
    assert cache.stats().faults == {"codec: EncodeError": 2}
    assert cache.stats().tiers["memory"]["entries"] == 0


@both
def test_answer_over_max_value_is_given_and_not_kept(colour):
    """An answer over max_value is the caller's alone."""
    with semcache.Cache(max_value=100) as cache:
        ask = semcache.cached(cache, version="1")(coloured(colour, lambda: "x" * 200))
        assert call(ask) == call(ask) == "x" * 200
        assert cache.stats().not_served == {"not kept: over max_value": 2}
        assert cache.stats().tiers["memory"]["entries"] == 0


@both
def test_when_says_what_is_kept(cache, colour):
    """when= sees the answer; what it does not want is given and not kept."""
    answers = ["", "yes", "never loaded"]
    ask = semcache.cached(cache, version="1", when=bool)(coloured(colour, lambda: answers.pop(0)))
    assert [call(ask) for _ in range(3)] == ["", "yes", "yes"]
    assert cache.stats().not_served == {"not kept: when": 1}


@both
def test_when_that_raises_costs_a_hit_not_the_call(cache, colour):
    """The user's own predicate may fail; the answer is given, not kept, and the fault is counted."""
    ask = semcache.cached(cache, version="1", when=lambda answer: answer.upper())(coloured(colour, lambda: 1))
    assert call(ask) == call(ask) == 1
    assert cache.stats().faults == {"when: AttributeError": 2}


def test_ttl_is_the_life_of_an_answer(cache, clock):
    """ttl= sets an entry's own life, longer or shorter than the tier's; without it the tier's holds."""

    @semcache.cached(cache, ttl="10s")
    def short():
        return 1

    @semcache.cached(cache, ttl="2d")
    def long():
        return 1

    @semcache.cached(cache)
    def plain():
        return 1

    def hits():
        before = [function.cache_info().hits for function in (short, plain, long)]
        for function in (short, plain, long):
            function()
        after = [function.cache_info().hits for function in (short, plain, long)]
        return [late - early for early, late in zip(before, after, strict=True)]

    assert hits() == [0, 0, 0]
    clock.advance(8.9)
    assert hits() == [1, 1, 1]
    clock.advance(1.2)
    assert hits() == [0, 1, 1]
    clock.advance(3600)
    assert hits() == [0, 0, 1]
    clock.advance(2 * 86400)
    assert hits() == [0, 0, 0]


def test_age_is_the_answers(cache, clock):
    """An event tells how old the answer is."""

    @semcache.cached(cache)
    def ask():
        return 1

    ask()
    clock.advance(7)
    ask()
    assert semcache.last().age == 7


# What they look like from outside


def plain(question: str, locale: str = "en") -> str:
    """Answer a question."""
    return question


async def aplain(question: str) -> str:
    """Answer a question, in time."""
    return question


def items(question: str):
    """Answer a question, word by word."""
    yield question


async def aitems(question: str):
    """Answer a question, word by word, in time."""
    yield question


@pytest.mark.parametrize("function", [plain, aplain, items, aitems])
def test_wrapper_looks_like_its_function(cache, function):
    """Whatever inspects a cached function sees what it saw before."""
    wrapped = semcache.cached(cache)(function)
    assert inspect.isfunction(wrapped)
    for is_kind in (
        inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction,
        asyncio.iscoroutinefunction,
    ):  # fmt: skip
        assert is_kind(wrapped) is is_kind(function)
    assert inspect.signature(wrapped) == inspect.signature(function)
    for name in ("__name__", "__qualname__", "__module__", "__doc__", "__annotations__"):
        assert getattr(wrapped, name) == getattr(function, name)
    assert wrapped.__wrapped__ is function
    assert function.__doc__ in pydoc.render_doc(wrapped)


@pytest.mark.parametrize("function", [plain, aplain, items, aitems])
def test_wrapper_of_a_partial_is_of_the_functions_kind(cache, function):
    """functools.partial hides what it holds; the wrapper does not."""
    wrapped = semcache.cached(cache)(partial(function, "q"))
    assert inspect.iscoroutinefunction(wrapped) is inspect.iscoroutinefunction(function)
    assert inspect.isgeneratorfunction(wrapped) is inspect.isgeneratorfunction(function)
    assert inspect.isasyncgenfunction(wrapped) is inspect.isasyncgenfunction(function)
    assert "question" not in inspect.signature(wrapped).parameters
    assert wrapped.__name__ == function.__name__


module_cache = semcache.Cache("module")


@semcache.cached(module_cache)
def at_module_level(question):
    return question


def test_wrapper_travels_to_another_process_by_name():
    """A cached function can be handed to a pool of processes."""
    assert pickle.loads(pickle.dumps(at_module_level)) is at_module_level


def test_bare_decorator_and_decorator_with_arguments_agree(cache):
    """`cached`, `cached()` and `cached(cache)` are spellings of one decorator."""
    assert semcache.cached(plain)("q") == semcache.cached()(plain)("q") == semcache.cached(cache)(plain)("q") == "q"


def test_original_function_stays_within_reach(cache):
    """`__wrapped__` calls the origin, past the cache."""
    wrapped = semcache.cached(cache)(plain)
    assert wrapped.__wrapped__("q") == "q"
    assert wrapped.cache_info() == (0, 0, 0)


# Asking, counting, invalidating


@both
def test_counts_are_told(cache, colour):
    """cache_info counts this function's calls, and stats sums all."""
    ask = semcache.cached(cache, version="1")(coloured(colour, lambda question: question))
    other = semcache.cached(cache, version="1")(plain)
    for question in ("a", "a", "b", "a"):
        call(ask, question)
    other("a")
    assert ask.cache_info() == (2, 2, 0)
    assert ask.cache_info().hits == 2
    assert other.cache_info() == (0, 1, 0)
    stats = cache.stats()
    assert stats.hits == {"memory": 2}
    assert (stats.misses, stats.loads, stats.shared) == (3, 3, 0)
    assert stats.hit_rate == 2 / 5
    assert set(stats.stages) >= {"key", "memory", "load", "put"}
    assert all(seconds > 0 for seconds in stats.stages.values())


def test_counts_of_many_hits_are_exact(cache):
    """Hits are noted first and summed later; none is lost on the way."""
    ask = semcache.cached(cache)(plain)
    for _ in range(10_001):
        ask("q")
    assert ask.cache_info() == (10_000, 1, 0)
    assert cache.stats().hits == {"memory": 10_000}


def test_invalidate_drops_one_call(cache):
    """invalidate takes what the call takes, in any spelling."""
    ask = semcache.cached(cache)(plain)
    ask("a")
    ask("b")
    assert ask.invalidate(locale="en", question="a") == 1
    assert ask.invalidate("a") == 0
    ask("a")
    ask("b")
    assert ask.cache_info() == (1, 3, 0)


def test_cache_clear_drops_all_calls_of_one_function(cache):
    """cache_clear leaves other functions' answers alone."""
    ask, other = semcache.cached(cache)(plain), semcache.cached(cache)(lambda question: question)
    ask("a")
    ask("b")
    other("a")
    assert ask.cache_clear() == 2
    ask("a")
    other("a")
    assert ask.cache_info() == (0, 3, 0)
    assert other.cache_info() == (1, 1, 0)
    assert cache.invalidate(function=other) == 1


def test_explain_reads_well(cache, clock):
    """explain tells which tier would answer and why the others would not, and loads nothing."""
    ask = semcache.cached(cache)(plain)
    assert str(ask.explain("q")) == f"key {ask.explain('q').key.hex()}: miss\n  memory: miss"
    ask("q")
    clock.advance(5)
    told = ask.explain("q")
    assert told.tier == "memory"
    first, second, third = str(told).splitlines()
    assert first == f"key {told.key.hex()}: hit in memory"
    assert second.startswith("  stored 5 s ago, ")
    assert third == "  memory: hit"
    assert ask.cache_info() == (0, 1, 0)
    assert cache.stats().loads == 1


# What is stored outlives the process


class Mood(Enum):
    GOOD = "good"


class Place(NamedTuple):
    city: str


@dataclass
class Note:
    mood: Mood
    place: Place


PROGRAM = """
import sys
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple
import semcache

class Mood(Enum):
    GOOD = "good"

class Place(NamedTuple):
    city: str

@dataclass
class Note:
    mood: Mood
    place: Place

cache = semcache.Cache("notes", disk=sys.argv[1], timeouts=semcache.Timeouts(disk="10s"))

@semcache.cached(cache)
def mood() -> Mood:
    return Mood.GOOD

@semcache.cached(cache)
def places() -> list[Place | None]:
    return [Place("Graz"), None]

@semcache.cached(cache)
def notes() -> dict[str, Note]:
    return {"a": Note(Mood.GOOD, Place("Graz"))}

print(mood(), places(), notes(), cache.stats().hits, cache.stats().faults)
cache.close()
"""


def test_classes_in_the_return_annotation_are_read_by_the_next_process(tmp_path):
    """Enums, named tuples and dataclasses named in the annotation need no registering by hand."""
    script = tmp_path / "notes.py"
    script.write_text(textwrap.dedent(PROGRAM), encoding="utf-8")
    first, second = (
        subprocess.run(
            [sys.executable, str(script), str(tmp_path / "cache.db")],
            capture_output=True, text=True, timeout=60, check=True,
        ).stdout
        for _ in range(2)
    )  # fmt: skip
    assert first.endswith("{} {}\n")
    assert second.endswith("{'disk': 3} {}\n")
    assert first.split(" {}")[0] == second.split(" {'disk'")[0]


def test_sync_users_never_load_asyncio():
    """Law 13: asyncio is imported only when an async call is made; generators too do without."""
    program = """
        import sys
        import semcache

        cache = semcache.Cache()

        @semcache.cached(cache)
        def ask(question):
            return question

        @semcache.cached(cache)
        def items(question):
            yield question

        class Model:
            def __semcache_key__(self):
                return 1

            @semcache.cached(cache)
            def ask(self, question):
                return question

        for _ in range(2):
            assert ask("q") == Model().ask("q") == next(items("q")) == "q"
            assert list(items("q")) == ["q"]
        ask.explain("q"), ask.invalidate("q"), cache.stats(), semcache.last()
        cache.close()
        print(sorted({"asyncio", "numpy", "torch", "faiss", "sqlite3"} & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"
