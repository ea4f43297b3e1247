"""Cached methods: `self` enters a key only by its `__semcache_key__`."""

from __future__ import annotations

import asyncio
import gc
import inspect
import pickle
import pydoc
import weakref
from abc import ABC, abstractmethod
from dataclasses import dataclass

import pydantic
import pytest

import semcache
from semcache import ConfigurationError, SemcacheWarning

cache = semcache.Cache("methods", memory=0)  # for what only looks at classes


class Model:
    """An object that says what its answers depend on."""

    def __init__(self, name):
        self.name = name
        self.calls = 0

    def __semcache_key__(self):
        return self.name

    @semcache.cached(cache)
    def ask(self, question: str) -> str:
        """Answer a question."""
        return question

    @semcache.cached(cache)
    async def aask(self, question: str) -> str:
        """Answer a question, in time."""
        return question

    @semcache.cached(cache)
    def items(self, question: str):
        """Answer a question, word by word."""
        yield question

    @semcache.cached(cache)
    async def aitems(self, question: str):
        """Answer a question, word by word, in time."""
        yield question


def classes(cache):
    """Return a class with a key and one without, whose methods count their calls."""

    class Plain:
        def __init__(self, name="a"):
            self.name = name
            self.calls = 0

        @semcache.cached(cache)
        def ask(self, question):
            self.calls += 1
            return self.name, question

    class Keyed(Plain):
        def __semcache_key__(self):
            return self.name

    return Plain, Keyed


def test_object_with_a_key_is_cached_by_it(cache):
    """Two objects with one key are one; with two keys they are two."""
    _, keyed = classes(cache)
    one, same, other = keyed("a"), keyed("a"), keyed("b")
    assert one.ask("q") == same.ask("q") == same.ask(question="q") == ("a", "q")
    assert other.ask("q") == ("b", "q")
    assert (one.calls, same.calls, other.calls) == (1, 0, 1)


def test_object_that_changes_has_another_key(cache):
    """The key is asked at each call."""
    _, keyed = classes(cache)
    model = keyed("a")
    assert model.ask("q") == ("a", "q")
    model.name = "b"
    assert model.ask("q") == ("b", "q")


def test_object_without_a_key_is_bypassed_with_one_warning_at_the_first_access(cache):
    """The warning comes with the first bound access, at the caller's line, and names the mend."""
    plain, _ = classes(cache)
    model = plain()
    with pytest.warns(SemcacheWarning, match=r"Plain\.ask is not cached: .* has no __semcache_key__\(\)") as warned:
        ask = model.ask
    assert warned[0].filename == __file__
    assert ask("q") == model.ask("q") == plain().ask("q") == ("a", "q")  # warnings are errors here: there is no second
    assert model.calls == 2
    assert plain.ask.cache_info() == (0, 0, 3)
    assert cache.stats().bypasses == {"unkeyable": 3}


def test_dataclass_is_no_key_for_its_methods(cache):
    """`self` enters by __semcache_key__ alone: a dataclass may hold more than its answers depend on."""

    @dataclass
    class Model:
        name: str

        @semcache.cached(cache)
        def ask(self, question):
            return question

    with pytest.warns(SemcacheWarning, match="__semcache_key__"):
        assert Model("a").ask("q") == "q"
    assert Model.ask.cache_info() == (0, 0, 1)


def test_self_that_is_ignored_or_left_out_of_the_key_needs_none(cache):
    """ignore="self" and key= say that the object does not matter, or what of it does."""

    class Model:
        def __init__(self, name):
            self.name = name

        @semcache.cached(cache, ignore="self")
        def ignoring(self, question):
            return question

        @semcache.cached(cache, ignore="self")
        def nothing(self):
            return 1

        @semcache.cached(cache, key=lambda self, question: (self.name, question))
        def keyed(self, question):
            return self.name

    assert Model("a").ignoring("q") == Model("b").ignoring("q") == "q"
    assert Model("a").nothing() == Model("b").nothing() == 1
    assert [Model("a").keyed("q"), Model("b").keyed("q"), Model("a").keyed("q")] == ["a", "b", "a"]
    assert Model.ignoring.cache_info() == Model.nothing.cache_info() == (1, 1, 0)
    assert Model.keyed.cache_info() == (1, 2, 0)
    semcache.check(Model)


def test_check_tells_early(cache):
    """semcache.check refuses a class whose methods could not be cached, and names them."""
    plain, keyed = classes(cache)
    with pytest.raises(ConfigurationError, match=r"^ask: .*Plain has no __semcache_key__"):
        semcache.check(plain)
    semcache.check(keyed)
    semcache.check(Model)

    class Derived(plain):
        @semcache.cached(cache)
        def explain(self):
            return 1

    with pytest.raises(ConfigurationError, match=r"^ask, explain: "):
        semcache.check(Derived)
    semcache.check(int)


def test_subclass_that_overrides_has_answers_of_its_own(cache):
    """A method and its override are two functions; one that calls the other shares its answers."""
    _, keyed = classes(cache)

    class Loud(keyed):
        @semcache.cached(cache)
        def ask(self, question):
            return [*super().ask(question), "!"]

    assert keyed("a").ask("q") == ("a", "q")
    assert Loud("a").ask("q") == Loud("a").ask("q") == ["a", "q", "!"]
    assert Loud.ask.cache_info() == (1, 1, 0)


def test_objects_of_two_classes_with_one_key_are_two(cache):
    """An inherited method answers for the class of its object, too."""
    _, keyed = classes(cache)

    class Other(keyed):
        pass

    one, other = keyed("a"), Other("a")
    one.ask("q")
    other.ask("q")
    assert (one.calls, other.calls) == (1, 1)


def test_classmethod_and_staticmethod_in_either_order(cache):
    """cached stands below or above classmethod and staticmethod; a subclass's call is its own."""

    class Base:
        suffix = "!"

        @classmethod
        @semcache.cached(cache)
        def below(cls, question):
            return question + cls.suffix

        @semcache.cached(cache)
        @classmethod
        def above(cls, question):
            return question + cls.suffix

        @staticmethod
        @semcache.cached(cache)
        def static_below(question):
            return question

        @semcache.cached(cache)
        @staticmethod
        def static_above(question):
            return question

    # A class made inside a function has no name to key it by: these stand for classes of a module.
    Base.__qualname__ = "Base"
    Loud = type("Loud", (Base,), {"suffix": "!!"})  # noqa: N806
    for _ in range(2):
        assert (Base.below("q"), Base().below("q"), Loud.below("q")) == ("q!", "q!", "q!!")
        assert (Base.above("q"), Base().above("q"), Loud.above("q")) == ("q!", "q!", "q!!")
        assert (Base.static_below("q"), Base().static_below("q")) == ("q", "q")
        assert (Base.static_above("q"), Base().static_above("q")) == ("q", "q")
    assert Base.below.cache_info() == Base.above.cache_info() == (4, 2, 0)
    assert Base.static_below.cache_info() == Base.static_above.cache_info() == (3, 1, 0)
    semcache.check(Base)


def test_method_called_through_its_class(cache):
    """`Class.method(object, ...)` is the same call, and takes what asks about it."""
    _, keyed = classes(cache)
    model = keyed("a")
    assert keyed.ask(model, "q") == model.ask("q") == ("a", "q")
    assert model.calls == 1
    assert keyed.ask.explain(model, "q").tier == "memory"
    assert keyed.ask.invalidate(model, "q") == 1
    model.ask("q")
    assert model.calls == 2


def test_method_cached_twice_is_cached_in_both(cache):
    """A cache over a cache is a method still."""
    inner = semcache.Cache("inner")

    class Model:
        def __init__(self, name):
            self.name = name

        def __semcache_key__(self):
            return self.name

        @semcache.cached(cache)
        @semcache.cached(inner)
        def ask(self, question):
            return self.name, question

    assert Model("a").ask("q") == Model("a").ask("q") == ("a", "q")
    assert Model("b").ask("q") == ("b", "q")
    assert cache.stats().hits == {"memory": 1}
    assert inner.stats().misses == 2


def test_method_travels_to_another_process_by_name():
    """A cached method can be handed to a pool of processes, on its class and on its object."""
    assert pickle.loads(pickle.dumps(Model.ask)) is Model.ask
    assert pickle.loads(pickle.dumps(Model("a").ask))("q") == "q"


def test_property_over_a_cached_method(cache):
    """A property may be made of one."""

    class Model:
        def __semcache_key__(self):
            return 1

        @property
        @semcache.cached(cache)
        def answer(self):
            return 42

    assert Model().answer == Model().answer == 42


def test_pydantic_model_takes_cached_methods(cache):
    """A cached method is no field."""

    class Model(pydantic.BaseModel):
        name: str

        def __semcache_key__(self):
            return self.name

        @semcache.cached(cache)
        def ask(self, question: str) -> str:
            return self.name + question

    assert Model(name="a").ask("q") == Model(name="a").ask("q") == "aq"
    assert list(Model.model_fields) == ["name"]
    assert Model.ask.cache_info() == (1, 1, 0)


def test_abstract_method_stays_abstract(cache):
    """abc sees through the decorator, in either order."""

    class Base(ABC):
        @semcache.cached(cache)
        @abstractmethod
        def ask(self, question): ...

        @abstractmethod
        @semcache.cached(cache)
        def tell(self, question): ...

    assert Base.__abstractmethods__ == {"ask", "tell"}


@pytest.mark.parametrize(
    ("name", "is_kind"),
    [
        ("ask", inspect.isfunction), ("aask", inspect.iscoroutinefunction), ("items", inspect.isgeneratorfunction),
        ("aitems", inspect.isasyncgenfunction), ("aask", asyncio.iscoroutinefunction),
    ],
)  # fmt: skip
def test_method_looks_like_its_function(name, is_kind):
    """On the class, on an object and in the class's own dictionary."""
    assert is_kind(getattr(Model, name))
    assert is_kind(vars(Model)[name])
    assert is_kind(getattr(Model("a"), name)) or is_kind is inspect.isfunction
    assert inspect.ismethod(getattr(Model("a"), name))
    assert list(inspect.signature(getattr(Model, name)).parameters) == ["self", "question"]
    assert list(inspect.signature(getattr(Model("a"), name)).parameters) == ["question"]
    assert getattr(Model, name).__qualname__ == f"Model.{name}"
    assert getattr(Model("a"), name).__self__.name == "a"


def test_help_shows_methods_as_methods():
    """The documentation of a class is what it was."""
    text = pydoc.plain(pydoc.render_doc(Model))
    methods = text.partition("Methods defined here:")[2].partition("-----")[0]
    for name in ("ask", "aask", "items", "aitems"):
        assert f"{name}(self, question" in methods
    assert "Answer a question, word by word." in methods


def test_async_method_and_generators_are_cached(cache):
    """Methods of every kind are."""
    log = []

    class Model:
        def __semcache_key__(self):
            return 1

        @semcache.cached(cache, version="1")
        async def ask(self, question):
            log.append("ask")
            return question

        @semcache.cached(cache, version="1")
        def items(self, question):
            log.append("items")
            yield from question

        @semcache.cached(cache, version="1")
        async def aitems(self, question):
            log.append("aitems")
            for letter in question:
                yield letter

    async def use():
        return await Model().ask("ab"), list(Model().items("ab")), [letter async for letter in Model().aitems("ab")]

    assert asyncio.run(use()) == asyncio.run(use()) == ("ab", ["a", "b"], ["a", "b"])
    assert sorted(log) == ["aitems", "ask", "items"]


def test_class_is_let_go(cache):
    """A cached method keeps no class alive that once bound it."""
    plain, keyed = classes(cache)

    def make():
        class Temporary(keyed):
            pass

        Temporary("a").ask("q")
        return weakref.ref(Temporary)

    semcache.last()
    made = make()
    gc.collect()
    assert made() is None
    assert plain is not keyed
