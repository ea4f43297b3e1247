"""SIGHUP: policy, tokens and keys are taken anew while calls go on, or all stays as it was."""

from __future__ import annotations

import hashlib
import os
import signal
import threading

import pytest
from instruments import GUARD, Compass, until
from processes import Process, asked
from proxies import told
from test_credentials import token

from semcache.errors import ConfigurationError
from semcache.sidecar.credentials import Credentials
from semcache.sidecar.serve import cache_of
from semcache.sidecar.settings import Server, Settings

NAME = "semcache.sidecar"


@pytest.fixture
def renew(caplog):
    """Have a sidecar take its settings anew; what it said of that."""

    def renew_one(sidecar, read):
        before = len(caplog.records)
        sidecar.renew(read)
        until(lambda: any(record.name == NAME for record in caplog.records[before:]))
        return next(record.getMessage() for record in caplog.records[before:] if record.name == NAME)

    return renew_one


def settings(models, **more):
    return Settings(upstream=(Server(models.url),), port=0, **more)


@pytest.mark.semantic
def test_policy_is_taken_anew(serve, models, renew):
    """What is served near changes with it, and what stands in memory stays."""
    near = {"embedder": Compass({"a": 0, "b": 10, "c": 20}), "policy": None}
    sidecar = serve(cache=near)
    sidecar.cache.warm()
    sidecar.chat("a")
    assert sidecar.cache.flush(GUARD)
    assert told(sidecar.chat("b")) == "miss"
    assert sidecar.cache.flush(GUARD)
    said = renew(sidecar, lambda: settings(models, policy="threshold:0.9"))
    assert said == "the settings were taken anew: policy threshold:0.9, 0 tokens"
    assert told(sidecar.chat("a")) == "hit"
    assert (told(hit := sidecar.chat("c")), hit.headers["x-semcache-tier"]) == ("hit", "semantic")


def test_tokens_and_their_keys_are_taken_anew(serve, models, renew, tmp_path):
    """A new token is let in, one that is gone is not, and a key is read again; the tenants stay who they are."""
    key = tmp_path / "key"
    key.write_text("sk-old\n")
    own = token("v", "acme", upstream_key_file=str(key))
    sidecar = serve(tokens=(own, token("t-a", "bolt")))
    sidecar.chat(key="v")
    assert told(sidecar.chat("x", headers={"x-semcache-token": "t-a"})) == "miss"
    key.write_text("sk-new\n")
    renew(sidecar, lambda: settings(models, tokens=(own, token("t-b", "bolt"))))
    assert told(sidecar.chat(key="v")) == "hit"
    sidecar.chat("other", key="v")
    assert [call.headers["authorization"] for call in models.asked if "sk-1" not in call.headers["authorization"]] == [
        "Bearer sk-old", "Bearer sk-new"
    ]  # fmt: skip
    assert sidecar.chat(headers={"x-semcache-token": "t-a"}).status_code == 401
    assert told(sidecar.chat("x", headers={"x-semcache-token": "t-b"})) == "hit"


def test_wrong_settings_leave_all_as_it_was_and_say_so_in_a_line(serve, models, renew):
    """A file that is no TOML, a policy that is none, a key that is not there: none of it is taken."""
    sidecar = serve(tokens=(token("t-a", "acme"),))
    policy = sidecar.cache.policy

    def broken():
        raise ConfigurationError("semcache.toml: it is no TOML")

    for read, why in (
        (broken, "it is no TOML"),
        (lambda: settings(models, policy="threshold:7", tokens=(token("t-b", "acme"),)), "a threshold is a cosine"),
        (lambda: settings(models, tokens=(token("v", "a", upstream_key_env="NO_SUCH_KEY"),)), "NO_SUCH_KEY"),
        (lambda: settings(models, tokens=(token("v", "a", upstream_key_file="/no/key"),)), "/no/key cannot be read"),
    ):
        said = renew(sidecar, read)
        assert said.startswith("the settings were not taken anew, all stays as it was: ")
        assert why in said
        assert "\n" not in said
    assert sidecar.cache.policy is policy
    assert sidecar.chat(headers={"x-semcache-token": "t-a"}).status_code == 200


def test_what_wants_a_new_start_is_named(serve, models, renew):
    """As the file calls it."""
    sidecar = serve()
    for _ in range(2):  # it stays so until there was one
        said = renew(sidecar, lambda: settings(models, ttl_redis="2d", limit_requests=7))
        assert said.endswith("; these want a new start: limit.requests, ttl.redis")
    assert "new start" not in renew(sidecar, lambda: settings(models))


@pytest.mark.parametrize("written", ["", "two\nlines", "schlüssel"])
def test_key_file_holds_one_key_in_a_line(tmp_path, written):
    """Anything else would break the header that it goes in."""
    (tmp_path / "key").write_text(written)
    with pytest.raises(ConfigurationError, match="no key in a line"):
        Credentials([token("v", "a", upstream_key_file=str(tmp_path / "key"))], "s")
    with pytest.raises(ConfigurationError, match="not in both"):
        token("v", "a", upstream_key_file="a", upstream_key_env="b")


def test_signal_drops_no_call(models, tmp_path):
    """SIGHUP in the middle of a stream: it ends whole, and the new token is known after it."""
    file = tmp_path / "semcache.toml"

    def write(*names):
        tables = [f'[[token]]\nsha256 = "{hashlib.sha256(name.encode()).hexdigest()}"\ntenant = "a"' for name in names]
        file.write_text("\n".join([f'upstream = "{models.url}"', *tables]))

    write("one")
    sidecar = Process("--config", str(file))
    try:
        held, answers = models.hold(after=2), []
        reader = threading.Thread(
            target=lambda: answers.append(
                sidecar.post({**asked(), "stream": True}, headers={"x-semcache-token": "one"}).text
            )
        )
        reader.start()
        assert held.reached.wait(GUARD)
        write("one", "two")
        os.kill(sidecar.process.pid, signal.SIGHUP)
        assert "2 tokens" in sidecar.said("taken anew")
        assert sidecar.post(asked(), headers={"x-semcache-token": "two"}).status_code == 200
        file.write_text("nonsense")
        os.kill(sidecar.process.pid, signal.SIGHUP)
        assert "it is no TOML" in sidecar.said("not taken anew")
        assert sidecar.post(asked(), headers={"x-semcache-token": "two"}).status_code == 200
        held.go.set()
        reader.join(GUARD)
        assert answers[0].rstrip().endswith("[DONE]")
    finally:
        sidecar.stop(signal.SIGKILL)


@pytest.mark.semantic
def test_shadow_embedder_is_compared_and_never_served():
    """As `Cache` has it."""
    made = cache_of(Settings(embedder="http://127.0.0.1:1/v1#a", shadow_embedder="http://127.0.0.1:1/v1#b"))
    with made:
        assert made.shadow_policy is not None
