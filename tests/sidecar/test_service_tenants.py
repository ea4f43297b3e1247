"""Who may ask what of the service: by every endpoint of the table, and that tenants see nothing of one another."""

from __future__ import annotations

import pytest
from instruments import GUARD
from proxies import PATHS, told
from test_credentials import token

import semcache
from semcache.sidecar.service import Table

ROWS = [row for row in Table().rows if not row.path.endswith("*")]
ALL = ["proxy", "cache", "read", "admin"]
TOKENS = (
    token("operator", "*", rights=["read", "admin"]), token("looker", "*", rights=["read"]),
    token("acme", "acme", rights=ALL), token("acme-looks", "acme", rights=["read"]), token("acme-calls", "acme"),
    token("bolt", "bolt", rights=ALL),
)  # fmt: skip
CHAT = PATHS["openai"]
CALLER = {"authorization": "Bearer sk-1"}


def asked(text):
    return {"model": "m", "messages": [{"role": "user", "content": text}]}


def by(name):
    return {} if name is None else {"x-semcache-token": name}


def expected(row, name):
    """Return which refusals a caller may be given before anything is read of what it asks."""
    if not row.rights:
        return ()
    if name in (None, "nobody"):
        return (401,)
    rights = {"operator": {"read", "admin"}, "acme": set(ALL), "acme-calls": {"proxy", "cache"}}.get(name, {"read"})
    is_refused = rights.isdisjoint(row.rights) or (row.is_of_all and name.startswith("acme"))
    return (403,) if is_refused else ()


@pytest.fixture(scope="module")
def shared():
    """A sidecar that is asked, and keeps nothing."""
    from proxies import Running

    from semcache.sidecar.settings import Server, Settings
    from semcache.testing import StandIn

    with StandIn() as models, semcache.Cache("tests") as cache:
        running = Running(Settings(upstream=(Server(models.url),), port=0, tokens=TOKENS), cache)
        yield running
        running.close()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.method} {row.path}")
@pytest.mark.parametrize("name", ["operator", "looker", "acme", "acme-looks", "acme-calls", "nobody", None])
def test_every_endpoint_asks_for_its_right(shared, row, name):
    """Of the table, and so of each that is added to it: 401 without a token, 403 without right or reach."""
    body = {"json": {}} if row.method == "POST" else {}
    refusals = expected(row, name)
    with shared.http.stream(row.method, row.path, headers=by(name), **body) as answer:  # one of them has no end
        if refusals:
            answer.read()
    if refusals:
        assert answer.status_code in refusals
        assert set(answer.json()) == {"error"}
    else:
        assert answer.status_code not in (401, 403)


def test_metrics_are_an_operators(shared):
    """They tell of all tenants."""
    codes = [shared.http.get("/metrics", headers=by(name)).status_code for name in ("looker", "acme", None)]
    assert codes == [200, 403, 401]


class Tenants:
    """A sidecar with the same calls of two tenants in it: "a", and of acme "b", which was given a's answer."""

    def __init__(self, sidecar):
        self.sidecar = sidecar
        self.keys = {}
        for name in ("acme", "bolt"):
            for text in ("a", "b"):
                answer = sidecar.chat(text, headers={**by(name), "x-semcache-tags": "faq"})
                self.keys[name, text] = answer.headers["x-semcache-key"]
                assert sidecar.cache.flush(GUARD)
        self.entry = self.keys["acme", "a"]

    def post(self, path, body, name):
        return self.sidecar.http.post(f"/semcache/v1/{path}", json=body, headers=by(name) | CALLER)

    def stands(self, name):
        """Say whether the answer to "a" is still there for a tenant."""
        answer = self.post("explain", {"key": self.keys[name, "a"]}, name)
        assert answer.status_code in (200, 404)
        return answer.status_code == 200


@pytest.fixture
def tenants(serve, near, request):
    kind, store = getattr(request, "param", "memory"), {}
    if kind == "redis":
        store = {"redis": request.getfixturevalue("redis_url")}
    elif kind == "disk":
        store = {"disk": request.getfixturevalue("tmp_path") / "cache.db"}
    return Tenants(serve(cache=near | store, tokens=TOKENS, secret="s"))


@pytest.fixture
def near():
    from instruments import Compass

    return {"embedder": Compass({"a": 0, "b": 10}), "policy": semcache.Threshold(0.9, guards=None)}


everywhere = pytest.mark.parametrize("tenants", ["memory", "disk", "redis"], indirect=True)


@pytest.mark.semantic
@everywhere
def test_key_tells_its_tenant_and_operators_alone(tenants):
    """What is another's looks like what is not there."""
    for name in ("acme", "operator", "acme-looks", "looker"):
        told = tenants.post("explain", {"key": tenants.entry}, name).json()["stands"]
        assert told["tenant"].startswith("acme/key-")
        assert told["tags"] == ["faq"]
        assert told["tiers"][0]["remaining"] > 0
    others = tenants.post("explain", {"key": tenants.entry}, "bolt")
    nothing = tenants.post("explain", {"key": "0" * 40}, "bolt")
    assert (others.status_code, others.text) == (404, nothing.text)


@pytest.mark.semantic
def test_call_is_explained_for_who_asks(tenants):
    """With the neighbours of its own tenant; another's may be named by an operator alone."""
    call = {"path": CHAT, "body": asked("b")}
    own = tenants.post("explain", call, "acme").json()
    assert own["tenant"].startswith("acme/key-")
    named = {**call, "tenant": own["tenant"]}
    assert tenants.post("explain", named, "operator").json()["tenant"] == own["tenant"]
    assert tenants.post("explain", named, "bolt").status_code == 403
    assert tenants.post("explain", {**call, "tenant": "acme"}, "acme").json()["answers"][0]["neighbours"] == []


@pytest.mark.semantic
@pytest.mark.parametrize("which", ["a", "b"])
def test_blast_tells_ones_own_alone(tenants, which):
    """By the key of the entry, and of the call that it was given to; once the entry is gone too."""
    key = tenants.keys["acme", which]
    for _ in range(2):
        own = tenants.post("blast", {"key": key}, "acme").json()["rows"]
        assert [(row["text"], row["stored_text"]) for row in own] == [("b", "a")]
        assert len(tenants.post("blast", {"key": key}, "operator").json()["rows"]) == 1
        assert tenants.post("blast", {"key": key}, "bolt").json()["rows"] == []
        whose = tenants.post("explain", {"path": CHAT, "body": asked("x")}, "acme").json()["tenant"]
        assert tenants.post("blast", {"key": key, "tenant": whose}, "bolt").status_code == 403
        tenants.post("invalidate", {"tenant": "acme"}, "acme")


@pytest.mark.semantic
@everywhere
@pytest.mark.parametrize(
    "which", [{"key": ...}, {"tag": "faq"}, {"text": "b"}, {"tenant": "acme"}, {"text": "b", "tenant": "acme"}],
    ids="-".join,
)  # fmt: skip
def test_invalidation_drops_ones_own_alone(tenants, which):
    """Counted and dropped: another's stands; what is another's by name is refused."""
    body = {name: tenants.entry if value is ... else value for name, value in which.items()}
    others = tenants.post("invalidate", body, "bolt")
    if "tenant" in which or "key" in which:
        assert others.status_code in (403, 404)
        assert tenants.stands("bolt")
    else:
        assert others.json()["entries"] == 1
        assert not tenants.stands("bolt")
    assert tenants.stands("acme")
    assert tenants.post("invalidate", {**body, "dry_run": True}, "acme").json()["entries"] == 1
    assert tenants.stands("acme")
    assert tenants.post("invalidate", body, "acme").json()["entries"] == 1
    assert not tenants.stands("acme")
    assert told(tenants.sidecar.chat("a", headers=by("acme"))) == "miss"


@pytest.mark.semantic
@pytest.mark.parametrize(
    ("which", "entries"),
    [({"model": "m"}, 2), ({"function": "openai.chat.completions"}, 2), ({"version": "1"}, 2), ({"document": "d"}, 0),
     ({"everything": True}, 2)],
)  # fmt: skip
def test_what_means_all_tenants_is_an_operators_to_drop(tenants, which, entries):
    """A tenant is told so, and nothing goes."""
    refused = tenants.post("invalidate", which, "bolt")
    assert refused.status_code == 403
    assert "operator" in refused.json()["error"]["mend"]
    assert tenants.stands("acme")
    assert tenants.post("invalidate", which, "operator").json()["entries"] == entries


@pytest.mark.semantic
def test_operator_drops_by_tag_and_text_what_all_tenants_have(tenants):
    """A tag as it was typed is everybody's."""
    assert tenants.post("invalidate", {"tag": "faq", "dry_run": True}, "operator").json()["entries"] == 2
    assert tenants.post("invalidate", {"text": "a"}, "operator").json()["entries"] == 2


def test_tag_that_looks_like_anothers_own_is_not(serve):
    """No caller can name what is meant by another tenant's tag."""
    sidecar = serve(tokens=TOKENS, secret="s")
    for tag in ("acme/faq", "acme/", ",acme/faq", "faq"):
        sidecar.chat(tag, headers={**by("bolt"), "x-semcache-tags": tag})
    for body in ({"tag": "faq"}, {"tag": "acme/faq"}, {"tenant": "acme"}):
        answer = sidecar.http.post("/semcache/v1/invalidate", json=body, headers=by("acme"))
        assert answer.json()["entries"] == 0


@pytest.mark.semantic
@everywhere
@pytest.mark.parametrize("which", ["key", "text", "response_id", "near"])
def test_report_is_of_ones_own_answer(tenants, which):
    """Another's is not found, and nothing is done to it."""
    answer = tenants.sidecar.chat("a", headers=by("acme")).json()
    body = {
        "key": {"key": tenants.entry}, "near": {"key": tenants.keys["acme", "b"]}, "text": {"text": "a"},
        "response_id": {"response_id": answer["id"]},
    }[which]  # fmt: skip
    others = tenants.post("wrong", body, "bolt")
    assert (others.status_code, tenants.stands("bolt")) == ((200, False) if which == "text" else (404, True))
    assert tenants.stands("acme")
    assert tenants.post("wrong", {"text": "a", "tenant": "acme"}, "bolt").status_code == 403
    assert tenants.post("wrong", body, "acme").json()["done"]
    assert tenants.stands("acme") == (which == "near")


def test_curated_answer_is_put_for_ones_own_tenant(serve, models):
    """And found by its callers; another tenant's is an operator's to put."""
    sidecar = serve(tokens=TOKENS, secret="s")
    call = {"path": CHAT, "body": asked("a"), "answer": "curated"}
    put = sidecar.http.post("/semcache/v1/entries", json=call, headers=by("acme") | CALLER).json()
    assert sidecar.chat("a", headers=by("acme")).json()["choices"][0]["message"]["content"] == "curated"
    assert told(sidecar.chat("a", headers=by("bolt"))) == "miss"
    other = {**call, "answer": "wrong", "tenant": put["tenant"]}
    assert sidecar.http.post("/semcache/v1/entries", json=other, headers=by("bolt")).status_code == 403
    assert sidecar.http.post("/semcache/v1/entries", json=other, headers=by("operator")).json()["key"] == put["key"]
    assert models.calls == 1


def test_operators_token_is_none_for_calls(serve):
    """It is for looking and switching, and is refused with more when it is configured."""
    sidecar = serve(tokens=TOKENS)
    assert sidecar.chat(headers=by("operator")).status_code == 403
    for more in ({"rights": ["read", "proxy"]}, {}, {"rights": ["read"], "upstream_key_env": "X"}):
        with pytest.raises(semcache.ConfigurationError, match="operator's token"):
            token("o", "*", **more)
