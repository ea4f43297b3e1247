"""Fixtures of all tests: a clock that stands still, and caches that are closed, and looked over, after each test."""

from __future__ import annotations

import asyncio
import re
import warnings
from functools import cache

import pytest
from instruments import Compass
from servers import MemcachedServer, RedisServer

import semcache
from semcache import life
from semcache.events import remember
from semcache.policy.threshold import UnmeasuredThresholdWarning
from semcache.testing import ManualClock
from semcache.wrap import default


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keep modules of one xdist_group in one process, and begin with them.

    pytest-xdist 3.8 tells groups by an attribute that pytest 9.2 reads no more; a module says its own by its text.
    """
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadGroupScheduling

    @cache
    def group_of(path):
        found = re.search(r'xdist_group\("(\w+)"\)', (config.rootpath / path).read_text(encoding="utf-8"))
        return found and found[1]

    class Together(LoadGroupScheduling):
        def _split_scope(self, nodeid):
            return group_of(nodeid.partition("::")[0]) or super()._split_scope(nodeid)

    return Together(config, log)


@pytest.fixture(autouse=True)
def _no_cache_outlives_a_test():
    """Close whatever a test has opened, the default cache too, and forget its last lookup."""
    remember(None)
    yield
    default.reset()
    for one in list(life._live):
        one.close()


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def open_cache(clock):
    """Make caches on a clock that stands still, with time enough for every tier.

    Afterwards no flight may be in the air, no bound exceeded.
    """
    opened = []

    def open_one(namespace="tests", **settings):
        patient = semcache.Timeouts(
            disk="10s", redis="10s", memcached="10s", sidecar="30s", semantic="30s", flight="30s"
        )
        settings = {"clock": clock, "ttl": semcache.TTL(jitter=0), "timeouts": patient} | settings
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnmeasuredThresholdWarning)
            opened.append(semcache.Cache(namespace, **settings))
        return opened[-1]

    yield open_one
    for one in opened:
        tiers = one.stats().tiers
        one.close()
        assert len(one.chain.flights) == 0, "a flight is still in the air"
        assert all(count >= 0 for counts in tiers.values() for count in counts.values()), tiers


@pytest.fixture(params=["disk", "redis"])
def store(request, tmp_path):
    """Settings of an exact store that several caches share."""
    if request.param == "disk":
        return {"disk": tmp_path / "cache.db"}
    return {"redis": request.getfixturevalue("redis_url")}


@pytest.fixture(params=["sync", "async"])
def ask(request):
    """Look up in one colour, then the other: ask(cache, request, load)."""
    if request.param == "sync":
        return lambda own, asked, load, **more: own.get_or_load(asked, load, **more)

    return lambda own, asked, load, **more: asyncio.run(own.aget_or_load(asked, load, **more))


@pytest.fixture
def open_near(open_cache):
    """Make caches that serve near matches of 0.9 and more among texts of given directions, and are ready to."""

    def open_one(degrees=None, **settings):
        settings = {
            "embedder": Compass(degrees), "policy": semcache.Threshold(0.9, guards=None), "tenant": semcache.SHARED,
        } | settings  # fmt: skip
        cache = open_cache(**settings)
        cache.warm()
        return cache

    return open_one


def _own(kind):
    """Make servers of a test's own, started, which it may pause and kill."""
    started = []

    def start_one(**options):
        started.append(kind(**options))
        return started[-1].start()

    yield start_one
    for server in started:
        server.close()


@pytest.fixture(scope="session")
def redis_server():
    """The Redis that tests share; one that pauses, kills or configures it makes an `own_redis`."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_url(redis_server):
    """The URL of the Redis that tests share, emptied."""
    redis_server.cli("FLUSHALL")
    return redis_server.url


@pytest.fixture
def own_redis():
    yield from _own(RedisServer)


@pytest.fixture(scope="session")
def memcached_server():
    """The memcached that tests share; one that pauses, kills or configures it makes an `own_memcached`."""
    with MemcachedServer() as server:
        yield server


@pytest.fixture
def memcached_url(memcached_server):
    """The URL of the memcached that tests share, emptied."""
    assert memcached_server.cli("flush_all") == "OK"
    return memcached_server.url


@pytest.fixture
def own_memcached():
    yield from _own(MemcachedServer)
