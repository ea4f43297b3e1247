"""The default cache: built at its first use, from `configure(...)` or the environment."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from threading import Barrier

import pytest
from waiting import PATIENCE

import semcache
from semcache import ConfigurationError
from semcache.wrap import default


@pytest.fixture(autouse=True)
def _of_its_own(monkeypatch):
    """Each test builds the default cache anew, in a clean environment."""
    import os

    for name in list(os.environ):
        if name.startswith("SEMCACHE_"):
            monkeypatch.delenv(name)
    default.reset()
    yield
    default.reset()


def ask(question):
    return question


def built():
    return default.default_cache()


def test_default_cache_is_memory_alone():
    """With nothing set, the bare decorator caches in memory."""
    function = semcache.cached(ask)
    assert function("q") == function("q") == "q"
    assert function.cache_info() == (1, 1, 0)
    assert [tier.name for tier in built().tiers] == ["memory"]
    assert built().namespace == ""


def test_default_cache_is_shared_by_bare_decorators():
    """`@cached` and `@cached(ttl=...)` without a cache use the same one."""
    semcache.cached(ask)("q")
    semcache.cached(ttl="5m")(ask)("q")
    assert built().stats().hits == {"memory": 1}


def test_decoration_builds_nothing(monkeypatch):
    """Law 13: a module full of decorators builds no cache; its first call does."""
    monkeypatch.setenv("SEMCACHE_MEMORY", "much")
    function = semcache.cached(ask)
    with pytest.raises(ConfigurationError, match="memory must be a number of bytes"):
        function("q")


def test_configure_sets_what_the_first_call_builds():
    """configure takes what Cache takes."""
    semcache.configure(namespace="shop", memory="1MB", mode="off")
    function = semcache.cached(ask)
    assert function("q") == "q"
    assert function.cache_info() == (0, 0, 1)
    assert built().namespace == "shop"


def test_configure_after_decoration_and_twice_is_in_time():
    """What counts is the first call; the latest word before it holds, whole."""
    function = semcache.cached(ask)
    semcache.configure(namespace="shop", mode="off")
    semcache.configure(namespace="desk")
    function("q")
    assert (built().namespace, built().mode) == ("desk", "live")


def test_configure_too_late_is_refused_with_the_mend():
    """A cache in use cannot be configured any more."""
    semcache.cached(ask)("q")
    with pytest.raises(ConfigurationError, match=r"call configure\(\) before the first cached call, or make a Cache"):
        semcache.configure(namespace="late")
    assert built().namespace == ""


def test_configure_of_an_unknown_setting_is_refused_at_once():
    """A setting that is mistyped is named where it is typed, not at some later call."""
    with pytest.raises(ConfigurationError, match="memroy= is no setting of a Cache; it has namespace, memory"):
        semcache.configure(memroy="1MB")


def test_environment_sets_the_default_cache(monkeypatch, tmp_path):
    """SEMCACHE_ and the setting's name, in capitals."""
    for name, value in {
        "NAMESPACE": "shop", "MEMORY": "2MB", "DISK": str(tmp_path / "cache.db"), "DISK_SIZE": "10MB",
        "MODE": "exact", "MAX_VALUE": "1kB", "POLICY": "shadow",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"SEMCACHE_{name}", value)
    cache = built()
    assert (cache.namespace, cache.mode) == ("shop", "exact")
    assert [tier.name for tier in cache.tiers] == ["memory", "disk"]
    assert cache.chain.max_value_bytes == 1000
    assert (tmp_path / "cache.db").exists() or cache.disk is not None


@pytest.mark.parametrize("said", ["environment", "configure"])
def test_memcached_of_the_default_cache(monkeypatch, memcached_url, said):
    """SEMCACHE_MEMCACHED, or configure(memcached=)."""
    if said == "environment":
        monkeypatch.setenv("SEMCACHE_NAMESPACE", "shop")
        monkeypatch.setenv("SEMCACHE_MEMCACHED", memcached_url)
    else:
        semcache.configure(namespace="shop", memcached=memcached_url)
    function = semcache.cached(ask)
    assert function("q") == function("q") == "q"
    assert built().flush(PATIENCE)
    assert built().stats().tiers["memcached"]["written"] == 1


def test_configure_wins_over_the_environment(monkeypatch):
    """What the program says holds; the rest is the environment's."""
    monkeypatch.setenv("SEMCACHE_NAMESPACE", "from the environment")
    monkeypatch.setenv("SEMCACHE_MODE", "exact")
    semcache.configure(namespace="from the program")
    assert (built().namespace, built().mode) == ("from the program", "exact")


def test_empty_environment_variable_is_none(monkeypatch):
    """An empty variable says nothing, as in a shell script that leaves one out."""
    monkeypatch.setenv("SEMCACHE_DISK", "")
    assert [tier.name for tier in built().tiers] == ["memory"]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("MODE", "fast", "mode is one of"), ("MEMORY", "-1", "memory must be"), ("POLICY", "tight", "a policy is"),
        ("POLICY", "threshold:2", "-1"), ("POLICY", "threshold:", "a policy is"), ("DISK", "/tmp/x.db", "namespace"),
    ],
)  # fmt: skip
def test_environment_that_is_wrong_is_refused(monkeypatch, name, value, says):
    """Wrong configuration raises ConfigurationError with the mend."""
    monkeypatch.setenv(f"SEMCACHE_{name}", value)
    with pytest.raises(ConfigurationError, match=says):
        built()


def test_policy_from_the_environment(monkeypatch):
    """SEMCACHE_POLICY=threshold:0.92 is Threshold(0.92); without an embedder that is what there is to say of it."""
    monkeypatch.setenv("SEMCACHE_POLICY", "threshold:0.92")
    with pytest.warns(semcache.SemcacheWarning, match="no embedder="):
        assert repr(built().policy) == "Threshold(0.92)"
    assert default.policy_of("shadow") is None


def test_default_cache_is_built_once_by_many_threads(pool):
    """Threads that come at once get one cache, and share its answers."""
    barrier = Barrier(8)
    function = semcache.cached(ask)

    def work():
        barrier.wait(PATIENCE)
        function("q")
        return id(built())

    assert len({one.result(PATIENCE) for one in [pool.submit(work) for _ in range(8)]}) == 1
    info = function.cache_info()
    assert (info.hits, info.misses) == (7, 1)


def test_default_cache_is_flushed_at_exit(tmp_path):
    """What a program stored is there for the next one, without a word from it."""
    program = """
        import semcache

        semcache.configure(timeouts=semcache.Timeouts(disk="20s"))

        @semcache.cached
        def ask(question):
            print("loaded")
            return question

        print(ask("q"))
    """
    (tmp_path / "program.py").write_text(textwrap.dedent(program), encoding="utf-8")
    settings = {"SEMCACHE_NAMESPACE": "shop", "SEMCACHE_DISK": str(tmp_path / "cache.db")}
    outputs = [
        subprocess.run(
            [sys.executable, "program.py"], cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=60,
            check=True,
        ).stdout
        for _ in range(2)
    ]  # fmt: skip
    assert outputs == ["loaded\nq\n", "q\n"]
