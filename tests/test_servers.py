"""The servers that other tests talk to, pause and kill."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis
import servers
from instruments import GUARD
from redis.backoff import NoBackoff
from redis.retry import Retry
from servers import MemcachedServer, RedisServer


def wait_until(true):
    deadline = time.monotonic() + GUARD
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def impatient(server, **settings):
    return server.client(socket_timeout=0.1, retry=Retry(NoBackoff(), 0), **settings)


def test_a_redis_answers_on_its_port_and_on_its_socket(redis_server, redis_url):
    with redis.Redis.from_url(redis_url) as by_port, redis.Redis.from_url(redis_server.unix_url) as by_socket:
        by_port.set("k", b"v")
        assert by_socket.get("k") == b"v"
    assert redis_server.cli("CONFIG", "GET", "save") == {b"save": b""}


@pytest.mark.parametrize("key", ["one", "two"])
def test_the_shared_redis_is_empty_for_each_test(redis_server, redis_url, key):
    assert redis_server.cli("DBSIZE") == 0
    redis_server.cli("SET", key, "left behind")


def test_a_paused_redis_answers_when_it_goes_on(own_redis):
    server = own_redis()
    client = impatient(server)
    assert client.ping()
    server.pause()
    with pytest.raises(redis.TimeoutError):
        client.ping()
    server.resume()
    assert client.ping()


def test_a_killed_redis_comes_back_on_its_port_and_has_forgotten(own_redis):
    server = own_redis()
    client, url = impatient(server), server.url
    client.set("k", "v")
    server.kill()
    assert not server.running
    with pytest.raises(redis.ConnectionError):
        client.ping()
    server.start()
    assert server.url == url
    assert client.get("k") is None


@pytest.mark.parametrize("keep_data", [True, False])
def test_a_redis_restarts_with_its_data_or_without(own_redis, keep_data):
    server = own_redis(appendonly=True)
    server.cli("SET", "k", "v")
    server.restart(keep_data=keep_data)
    assert server.cli("GET", "k") == (b"v" if keep_data else None)


def test_a_killed_redis_keeps_what_it_appended(own_redis):
    server = own_redis(appendonly=True)
    server.cli("SET", "k", "v")
    server.kill()
    assert server.start().cli("GET", "k") == b"v"


def test_a_redis_takes_a_password_and_settings(own_redis):
    server = own_redis(password="open-sesame", args=["--maxmemory", "3mb"])
    assert server.cli("CONFIG", "GET", "maxmemory") == {b"maxmemory": b"3145728"}
    with redis.Redis.from_url(server.url) as client:
        assert client.ping()
    with pytest.raises(redis.AuthenticationError):
        impatient(server, password=None).ping()


def test_a_redis_that_does_not_start_says_why(own_redis):
    with pytest.raises(RuntimeError, match=r"(?s)ended with status 1.*no-such-setting"):
        own_redis(args=["--no-such-setting", "1"])


def test_a_memcached_answers(memcached_server, memcached_url):
    assert memcached_server.cli("version").startswith("VERSION 1.")
    client = memcached_server.client()
    client.set("k", b"v")
    assert client.get("k") == b"v"
    assert memcached_url == f"memcached://127.0.0.1:{memcached_server.port}"


@pytest.mark.parametrize("key", ["one", "two"])
def test_the_shared_memcached_is_empty_for_each_test(memcached_server, memcached_url, key):
    client = memcached_server.client()
    assert client.get_many(["one", "two"]) == {}
    client.set(key, b"left behind")


def test_a_paused_memcached_answers_when_it_goes_on(own_memcached):
    server = own_memcached()
    client = server.client(timeout=0.1)
    server.pause()
    with pytest.raises(TimeoutError):
        client.version()
    server.resume()
    assert client.version()


@pytest.mark.parametrize("end", [MemcachedServer.stop, MemcachedServer.kill])
def test_a_memcached_comes_back_on_its_port_and_has_forgotten(own_memcached, end):
    server = own_memcached()
    url = server.url
    server.client().set("k", b"v")
    end(server)
    with pytest.raises(OSError, match="refused"):
        server.client().get("k")
    server.start()
    assert server.url == url
    assert server.client().get("k") is None
    server.restart()
    assert server.client().get("k") is None


def test_a_memcached_whose_port_is_taken_says_why(own_memcached):
    first = own_memcached()
    with pytest.raises(RuntimeError, match=r"(?s)ended with status.*in use"):
        own_memcached(port=first.port)


def test_a_server_that_does_not_start_leaves_nothing():
    server = RedisServer(args=["--no-such-setting", "1"])
    with pytest.raises(RuntimeError, match="ended with status 1"), server:
        pass
    assert not server.folder.exists()


@pytest.mark.parametrize("kind", [RedisServer, MemcachedServer])
def test_a_paused_server_can_be_stopped_and_leaves_nothing(kind):
    with kind() as server:
        server.pause()
        server.stop()
        assert not server.running
        assert server.folder.is_dir()
    assert not server.folder.exists()


def test_a_server_ends_with_its_parent_however_that_ends():
    parent = (
        "import servers, time; s = servers.RedisServer().start(); print(s.pid, s.folder, flush=True); time.sleep(999)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent], cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True
    ) as process:
        pid, folder = process.stdout.readline().split()
        server = os.pidfd_open(int(pid))
        process.kill()
    try:
        assert select.select([server], [], [], GUARD)[0], "the server outlived its parent"
    finally:
        os.close(server)
    wait_until(lambda: not Path(folder).exists())


def test_a_server_that_is_missing_is_an_error_with_its_mend(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(servers, "_HERE", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no redis-server .*: make servers"):
        RedisServer()
