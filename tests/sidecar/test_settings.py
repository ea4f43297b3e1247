"""The table of settings: flags before environment before file, one message for what is wrong, and no secret printed."""

from __future__ import annotations

import tomllib
from argparse import ArgumentParser

import pytest

from semcache.errors import ConfigurationError
from semcache.sidecar.credentials import Credentials
from semcache.sidecar.serve import cache_of
from semcache.sidecar.settings import PREFIX, Settings, add_settings, read

FILE = """
port = 9000
namespace = "shop"
redis = "redis://user:pass@localhost:6379/0"
secret = "of ours"

[ttl]
redis = "2d"

[[upstream]]
url = "https://api.openai.com/v1"

[[upstream]]
url = "https://api.anthropic.com"
models = ["claude-*"]

[[token]]
sha256 = "{digest}"
tenant = "acme"
""".format(digest="0" * 64)


def parsed(*arguments):
    parser = ArgumentParser()
    parser.add_argument("--config")
    add_settings(parser)
    return parser.parse_args(arguments)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "semcache.toml"
    path.write_text(FILE)
    return path


def test_flag_goes_before_environment_before_file(file):
    """And each says where it was taken from."""
    told = {f"{PREFIX}PORT": "9001", f"{PREFIX}NAMESPACE": "other", f"{PREFIX}CONFIG": str(file)}
    resolved = read(parsed("--port", "9002"), told)
    assert (resolved.settings.port, resolved.settings.namespace, resolved.settings.ttl_redis) == (9002, "other", "2d")
    assert resolved.taken["port"] == "--port"
    assert resolved.taken["namespace"] == "SEMCACHE_NAMESPACE"
    assert resolved.taken["ttl_redis"] == str(file)
    assert [server.url for server in resolved.settings.upstream] == [
        "https://api.openai.com", "https://api.anthropic.com"
    ]  # fmt: skip


def test_upstream_of_a_flag_stands_for_those_of_the_file(file):
    """With or without /v1."""
    for url in ("http://localhost:1", "http://localhost:1/v1", "http://localhost:1/"):
        (server,) = read(parsed("--config", str(file), "--upstream", url), {}).settings.upstream
        assert server.url == "http://localhost:1"


def test_printed_settings_are_a_file_that_says_the_same_and_no_secret(file, tmp_path):
    """But for what it hides."""
    resolved = read(parsed("--config", str(file)), {})
    told = resolved.told()
    assert "of ours" not in told
    assert "pass" not in told
    again = tmp_path / "again.toml"
    tables = tomllib.loads(told)
    assert tables["ttl"]["redis"] == "2d"
    assert tables["upstream"][1] == {"url": "https://api.anthropic.com", "models": ["claude-*"]}
    again.write_text(told)
    same = read(parsed("--config", str(again)), {}).settings
    assert (same.port, same.upstream, same.tokens) == (9000, resolved.settings.upstream, resolved.settings.tokens)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("redis://h:6379/0?password=hunter2", "redis://h:6379/0?password=..."),
        ("redis://h/0?db=1&PassWord=hunter2&timeout=5", "redis://h/0?db=1&PassWord=...&timeout=5"),
        ("rediss://u:hunter2@h/0?ssl_keyfile_password=hunter2", "rediss://...@h/0?ssl_keyfile_password=..."),
        ("redis://h/0?timeout=5", "redis://h/0?timeout=5"),
    ],
)
def test_printed_addresses_have_no_secret_in_their_query(url, told):
    """What looks like one is cut, whatever it is of."""
    printed = read(parsed("--upstream", "http://a", "--redis", url), {}).told()
    assert f'redis = "{told}"' in printed
    assert "hunter2" not in printed


def test_model_patterns_say_which_server_is_asked():
    """The first that has it; without patterns a server has all."""
    from semcache.sidecar.refusals import RefusedError
    from semcache.sidecar.settings import Server
    from semcache.sidecar.upstream import Upstream

    upstream = Upstream(
        [Server("http://a", ("gpt-*", "o?")), Server("http://b", ("claude-*",))], connect=1, read=1, connections=1
    )
    assert upstream.of("o3").url == "http://a"
    assert upstream.of("claude-4").url == "http://b"
    with pytest.raises(RefusedError, match="names no model"):  # a key is of one provider, and goes to no other
        upstream.of(None)
    with pytest.raises(RefusedError, match="llama"):
        upstream.of("llama")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prot = 1", "key `prot` is no setting of semcache serve; did you mean `port`?"),
        ("zzz = 1", "--print-config` lists them"),
        ("[ttl]\nredsi = '1d'", "did you mean `ttl.redis`?"),
        ("port = 'x'", "key `port`: it is a whole number, as 8400; got 'x'"),
        ("port = true", "whole number"),
        ("tool_calls = 'yes'", "true or false"),
        ("audit = []", "it is a number"),
        ("port = 1\nport = 2", "it is no TOML"),
        ("upstream = 'ftp://x'", "as https://api.openai.com"),
        ("[[upstream]]\nurl = 'http://a'\nmodel = 'x'", "key `model` is none of a server's"),
        ("[[upstream]]\nurl = 'http://a'\nmodels = 'x'", "models are patterns"),
        ("token = 1", "a table for each"),
        ("log = 'xml'\nupstream = 'http://a'", '"text" or "json"'),
        ("host = '0.0.0.0'\nupstream = 'http://a'", "--new-token"),
        ("tls_cert = 'a'\nupstream = 'http://a'", "the certificate and its key"),
        ("tls_client_ca = 'a'\nupstream = 'http://a'", "give tls_cert and tls_key"),
        ("sampling = 'some'\nupstream = 'http://a'", '"zero" or "any"'),
        ("port = 70000", "key `port`: a port is from 0 to 65535; got 70000"),
        ("health_port = -1", "key `health_port`: a port is from 0 to 65535; got -1"),
        ("upstream = 'http://a:70000'", "as https://api.openai.com"),
        ("upstream = 'http://[a'", "as https://api.openai.com"),
        ("[[upstream]]\nurl = 'http://u:pw@a'", "got 'http://...@a': let callers send the key, or give it by"),
        ("upstream = 'ftp://u:pw@a/?api_key=pw'", "got 'ftp://...@a/?api_key=...'"),
        ("upstream = 'http://a'\n[limit]\nrequests = -4", "limit.requests: it is at least 1"),
        ("", "which server is behind?"),
    ],
)
def test_what_is_wrong_is_one_message_that_names_file_key_and_mend(tmp_path, text, told):
    """Before anything listens."""
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as raised:
        read(parsed("--config", str(path)), {})
    assert told in str(raised.value)
    assert "pw" not in str(raised.value)
    if "upstream = 'http" not in text and text:
        assert str(path) in str(raised.value)


def test_file_that_is_not_there_is_named(tmp_path):
    """With what the system says of it."""
    with pytest.raises(ConfigurationError, match=r"gone\.toml.*No such file"):
        read(parsed("--config", str(tmp_path / "gone.toml")), {})


def test_wrong_flag_and_variable_are_named():
    """As they were typed."""
    with pytest.raises(ConfigurationError, match=r"--port: it is a whole number"):
        read(parsed("--port", "x"), {})
    with pytest.raises(ConfigurationError, match=r"SEMCACHE_LIMIT_REQUESTS: it is a whole number"):
        read(parsed(), {f"{PREFIX}LIMIT_REQUESTS": "many"})


def test_secret_is_no_flag(capsys):
    """Every user of a machine can read what others have typed."""
    with pytest.raises(SystemExit):
        parsed("--secret", "x")
    printed = capsys.readouterr().err
    assert "SEMCACHE_SECRET" in printed
    assert "of --config" in printed
    for typed in (["--secret", "hunter2"], ["--secret=hunter2"]):
        with pytest.raises(SystemExit):
            parsed("--upstream", "http://a", *typed)
    assert "hunter2" not in capsys.readouterr().err
    assert read(parsed("--upstream", "http://a"), {f"{PREFIX}SECRET": "x"}).settings.secret == "x"


def test_defaults_listen_at_this_machine_alone():
    """And serve no near match."""
    settings = Settings()
    assert settings.is_local
    assert settings.policy == "shadow"


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (("--memory", "much"), "--memory: memory must be a number of bytes"),
        (("--redis", "redis://h/0"), "as in --namespace shop"),
        (("--ttl-redis", "soon"), "--ttl-redis: ttl of redis must be"),
        (("--policy", "none"), "--policy: a policy is"),
        (("--policy", "threshold:1.5"), "--policy: a threshold is a cosine"),
        (("--policy", "budget:2"), "--policy: max_wrong is a share"),
        (("--policy", "budget:x"), "--policy: an error budget is a share"),
        (("--record", "/no/x/y", "--namespace", "a"), "--record: --record /no/x/y: there is no folder"),
        (("--shadow-embedder", "http://a/v1#b"), "give --embedder too"),
        (("--prices", "/no"), "--prices: /no: the table of prices"),
    ],
)
def test_what_the_cache_refuses_is_told_in_the_words_of_who_typed_it(typed, told):
    """The flag, not the argument of a class that its owner never saw."""
    resolved = read(parsed("--upstream", "http://a", *typed), {})
    with pytest.raises(ConfigurationError) as raised:
        cache_of(resolved.settings)
    assert told in resolved.named(str(raised.value))


def test_token_that_lacks_its_key_is_told_with_its_file_alone(tmp_path):
    """Not as of a setting whose value happens to be the token's name."""
    path = tmp_path / "semcache.toml"
    digest = "0" * 64
    path.write_text(
        "upstream = 'http://a'\nnamespace = 'shop'\n[[token]]\ntenant = 'shop'\n"
        f"sha256 = '{digest}'\nupstream_key_env = 'NOT_THERE'"
    )
    resolved = read(parsed("--config", str(path)), {})
    with pytest.raises(ConfigurationError) as raised:
        Credentials(resolved.settings.tokens, "s", {})
    assert resolved.named(str(raised.value)) == (
        f"{path}: token shop: its upstream_key_env is NOT_THERE, which the environment lacks"
    )


def test_policy_of_a_file_is_named_with_its_key(tmp_path):
    """And the file."""
    path = tmp_path / "semcache.toml"
    path.write_text("upstream = 'http://a'\npolicy = 'threshold:1.5'")
    resolved = read(parsed("--config", str(path)), {})
    with pytest.raises(ConfigurationError) as raised:
        cache_of(resolved.settings)
    assert resolved.named(str(raised.value)).startswith(f"{path}: key `policy`: a threshold is a cosine")


def test_variable_and_key_of_the_file_are_named_as_they_were_typed(tmp_path):
    """Where the value was taken from."""
    path = tmp_path / "semcache.toml"
    path.write_text('[ttl]\nredis = "soon"')
    resolved = read(parsed("--upstream", "http://a", "--config", str(path)), {f"{PREFIX}MEMORY": "much"})
    assert resolved.named("memory must be").startswith("SEMCACHE_MEMORY: ")
    assert resolved.named("ttl of redis must be").startswith(f"{path}: key `ttl.redis`: ")
    assert resolved.named("something else, with x=1") == "something else, with x=1"
