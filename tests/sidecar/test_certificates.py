"""TLS whose clients show certificates: who has none is let in by nobody, and whose it is makes the tenant."""

from __future__ import annotations

import ssl
import subprocess

import httpx
import pytest
from instruments import GUARD, until
from proxies import told
from test_credentials import token

from semcache.sidecar.settings import Server, Settings


def openssl(folder, *command):
    subprocess.run(["openssl", *command], cwd=folder, check=True, capture_output=True, timeout=GUARD)


def issue(folder, name, subject, *more):
    """Have the authority sign a certificate."""
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key") if name != "ca" else ()
    openssl(folder, "req", "-x509", *key, "-out", f"{name}.pem", "-days", "2", "-subj", subject, *signed, *more)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates")
    issue(folder, "ca", "/CN=authority")
    issue(folder, "server", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")
    for name in ("shop", "desk"):
        issue(folder, name, f"/O=acme/CN={name}")
    return folder


@pytest.fixture
def secure(serve, certificates):
    def start(**settings):
        files = {f"tls_{kind}": str(certificates / f"server.{end}") for kind, end in (("cert", "pem"), ("key", "key"))}
        return serve(**files, tls_client_ca=str(certificates / "ca.pem"), **settings)

    return start


@pytest.fixture
def client_of(certificates):
    """Make clients of a sidecar, with a certificate or without one."""
    opened = []

    def make(sidecar, name=None):
        context = ssl.create_default_context(cafile=certificates / "ca.pem")
        if name is not None:
            context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
        opened.append(httpx.Client(base_url=sidecar.url, verify=context, timeout=GUARD))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def ask(client, key="sk-1", **headers):
    body = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
    sent = {"authorization": f"Bearer {key}"} if key else {}
    return client.post("/v1/chat/completions", json=body, headers=sent | headers)


def test_without_a_certificate_nothing_is_answered(secure, client_of, models):
    """The connection is not even made."""
    with pytest.raises(httpx.TransportError):
        ask(client_of(secure()))
    assert models.calls == 0


def test_subject_of_the_certificate_is_the_tenant(secure, client_of, models):
    """Two that share a key share no answer, and one may not say that it is the other."""
    sidecar = secure()
    shop, desk = client_of(sidecar, "shop"), client_of(sidecar, "desk")
    assert [told(ask(shop)), told(ask(shop))] == ["miss", "hit"]
    forged = {"x-semcache-client-certificate": "organizationName=acme,commonName=shop"}
    assert told(ask(desk, **forged)) == "miss"
    assert told(ask(desk)) == "hit"
    assert told(ask(shop, key="sk-2")) == "miss"
    assert not any(name.startswith("x-semcache") for one in models.asked for name in one.headers)


def test_nobody_says_by_a_header_whose_certificate_it_has(serve):
    """Where none is wanted there is none, whatever is written."""
    sidecar = serve()
    sidecar.chat()
    assert told(sidecar.chat(headers={"x-semcache-client-certificate": "commonName=shop"})) == "hit"


def test_token_says_who_asks_where_both_are_there(secure, client_of):
    """The certificate opens the door, the token names the tenant."""
    sidecar = secure(tokens=(token("t", "acme"),))
    shop, desk = client_of(sidecar, "shop"), client_of(sidecar, "desk")
    assert ask(shop).status_code == 401
    assert told(ask(shop, **{"x-semcache-token": "t"})) == "miss"
    assert told(ask(desk, **{"x-semcache-token": "t"})) == "hit"


def test_certificate_is_taken_anew(secure, client_of, certificates, models, caplog):
    """After SIGHUP new connections are shown the new one; one that cannot be read changes nothing."""
    sidecar = secure()
    settings = Settings(upstream=(Server(models.url),), port=0)
    own = certificates / "server.pem"
    before = own.read_bytes()

    def renewed(word):
        caplog.clear()
        sidecar.renew(lambda: settings)
        until(lambda: any(word in record.getMessage() for record in caplog.records))

    try:
        issue(certificates, "server", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")
        renewed("were taken anew")
        after = own.read_bytes()
        assert after != before
        shown = client_of(sidecar, "shop")
        assert ask(shown).status_code == 200
        tls = shown._transport._pool.connections[0]._connection._network_stream.get_extra_info("ssl_object")
        assert ssl.DER_cert_to_PEM_cert(tls.getpeercert(True)).encode() == after
        own.write_text("nonsense")
        renewed("all stays as it was: tls_cert, tls_key")
        assert ask(client_of(sidecar, "shop")).status_code == 200
    finally:
        own.write_bytes(after)
