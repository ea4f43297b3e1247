"""Who is who: callers' keys as keyed digests, tokens with tenants and rights, and no way into another's answers."""

from __future__ import annotations

import hashlib

import pytest
from instruments import GUARD
from proxies import PATHS, told

from semcache.errors import ConfigurationError
from semcache.sidecar.credentials import Credentials, Token


def token(text, tenant, **more):
    table = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "tenant": tenant} | more
    return Token.read(table, "tests")


def test_callers_with_different_keys_do_not_meet(sidecar, models):
    """The key goes upstream, and as a digest into the tenant."""
    sidecar.chat(key="sk-1")
    assert told(sidecar.chat(key="sk-2")) == "miss"
    assert told(sidecar.chat(key=None)) == "miss"
    assert told(sidecar.chat(key="sk-1")) == "hit"
    assert [asked.headers.get("authorization") for asked in models.asked] == ["Bearer sk-1", "Bearer sk-2", None]


@pytest.mark.parametrize("header", ["x-api-key", "api-key", "cookie"])
def test_key_in_another_header_is_a_key(sidecar, header):
    """As other protocols put it; without any, a cookie may say who asks."""
    one = {header: "one"}
    sidecar.chat(key=None, headers=one)
    assert told(sidecar.chat(key=None, headers=one)) == "hit"
    assert told(sidecar.chat(key=None, headers={header: "two"})) == "miss"


def test_no_key_is_stored_or_logged(serve, models, tmp_path, caplog):
    """Neither in the file nor in what is said."""
    caplog.set_level(0)
    sidecar = serve(cache={"disk": tmp_path / "cache.db"}, secret="of ours")
    sidecar.chat(key="sk-very-secret")
    models.fail(401)
    sidecar.chat("again", key="sk-very-secret")
    assert sidecar.cache.flush(GUARD)
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"very-secret" not in stored
    assert b"of ours" not in stored
    assert "very-secret" not in "".join(record.getMessage() for record in caplog.records if "httpx" not in record.name)


def test_sidecars_with_one_secret_share_what_a_caller_has(serve, models, tmp_path):
    """With another secret, or none, the digest is another, and nothing is found."""
    disk = {"cache": {"disk": tmp_path / "cache.db"}}
    first = serve(**disk, secret="one")
    first.chat()
    assert first.cache.flush(GUARD)
    assert told(serve(**disk, secret="one").chat()) == "hit"
    assert told(serve(**disk, secret="two").chat()) == "miss"
    assert told(serve(**disk).chat()) == "miss"


def test_token_says_who_asks(serve, models):
    """Without one nothing is answered; the header does not go upstream."""
    sidecar = serve(tokens=(token("t-a", "acme"), token("t-b", "bolt")))
    for headers in ({}, {"x-semcache-token": "t-c"}, {"x-semcache-token": ""}):
        refused = sidecar.chat(headers=headers)
        assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
        assert sidecar.http.get("/v1/models", headers=headers).status_code == 401
    assert models.calls == 0
    assert told(sidecar.chat(headers={"x-semcache-token": "t-a"})) == "miss"
    assert told(sidecar.chat(headers={"x-semcache-token": "t-a"})) == "hit"
    assert told(sidecar.chat(headers={"x-semcache-token": "t-b"})) == "miss"
    assert all("x-semcache-token" not in asked.headers for asked in models.asked)


def test_token_with_a_key_behind_it_stands_where_the_sdk_puts_its_key(serve, models, monkeypatch):
    """All who have it share one tenant; what goes upstream is the key behind."""
    monkeypatch.setenv("TEST_KEY", "sk-real")
    sidecar = serve(tokens=(token("v-1", "acme", upstream_key_env="TEST_KEY"),))
    assert told(sidecar.chat(key="v-1")) == "miss"
    assert told(sidecar.post(PATHS["anthropic"], {"model": "m", "max_tokens": 1, "messages": [
        {"role": "user", "content": "x"}]}, key=None, headers={"x-api-key": "v-1"})) == "miss"  # fmt: skip
    assert told(sidecar.chat(key=None, headers={"x-semcache-token": "v-1"})) == "hit"
    assert models.asked[0].headers["authorization"] == "Bearer sk-real"
    assert models.asked[1].headers["x-api-key"] == "sk-real"
    assert sidecar.chat(key="sk-real").status_code == 401


def test_tenant_of_a_header_cannot_be_anothers(serve):
    """It parts the own tenant, however it is written."""
    sidecar = serve(tokens=(token("t-a", "acme"), token("t-b", "bolt")))
    sidecar.chat(headers={"x-semcache-token": "t-a", "x-semcache-tenant": "x"})
    for name in ("acme/x", "../acme/x", "acme%2Fx", "x"):
        headers = {"x-semcache-token": "t-b", "x-semcache-tenant": name}
        assert told(sidecar.chat(headers=headers)) == "miss"


def test_token_without_the_right_is_told_so(serve, models):
    """403, and nothing is asked."""
    sidecar = serve(tokens=(token("t", "acme", rights=["read"]),))
    refused = sidecar.chat(headers={"x-semcache-token": "t"})
    assert (refused.status_code, refused.json()["error"]["type"]) == (403, "permission_error")
    assert models.calls == 0


@pytest.mark.parametrize(
    ("table", "mend"),
    [
        ({"sha256": "12"}, "64 hexadecimal digits"), ({"tenant": "a"}, "--new-token"), ({"tenants": "a"}, "`tenants`"),
        ({"sha256": "0" * 64}, "give it a tenant"), ({"sha256": "0" * 64, "tenant": ""}, "`tenant` is text"),
        ({"sha256": "0" * 64, "tenant": "a", "rights": ["all"]}, "proxy, cache, read, admin"),
    ],
)  # fmt: skip
def test_token_that_is_configured_wrongly_names_the_mend(table, mend):
    """As it is read."""
    with pytest.raises(ConfigurationError, match=mend):
        Token.read(table, "file: [[token]]")


def test_key_of_a_token_that_the_environment_lacks_is_told_at_the_start():
    """Not at the first call."""
    with pytest.raises(ConfigurationError, match="NO_SUCH_KEY"):
        Credentials([token("t", "acme", upstream_key_env="NO_SUCH_KEY")], "s", {})
