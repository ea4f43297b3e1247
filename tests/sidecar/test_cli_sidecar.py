"""The commands that ask a sidecar: what they print, and what they say where they cannot."""

from __future__ import annotations

import io
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from instruments import GUARD
from proxies import PATHS, told
from test_credentials import token

import semcache
from semcache.cli import main
from semcache.cli.sidecar import PROOFS
from semcache.sidecar import credentials

CALL = {"model": "m", "messages": [{"role": "user", "content": "Do you ship?"}]}


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch):
    for name in ("NAMESPACE", "REDIS", "DISK", "EMBEDDER", "SIDECAR", "TOKEN"):
        monkeypatch.delenv(f"SEMCACHE_{name}", raising=False)


@pytest.fixture
def command(capsys):
    """Run a command: its status, what it wrote to stdout and stderr."""

    def run_one(*arguments):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stopped:
            status = stopped.code
        return (status, *capsys.readouterr())

    return run_one


@pytest.fixture
def call(tmp_path):
    path = tmp_path / "call.json"
    path.write_text(json.dumps(CALL))
    return path


def test_stats_of_a_sidecar_are_those_of_a_store(command, sidecar):
    """The same table and the same JSON."""
    sidecar.chat()
    sidecar.chat()
    status, out, err = command("stats", "--sidecar", sidecar.url)
    assert (status, err) == (0, "")
    assert "openai.chat.completions" in out
    status, out, _ = command("stats", "--sidecar", sidecar.url, "--by", "model", "--json")
    assert json.loads(out)["rows"][0]["hits"] == 1
    assert command("stats", "--sidecar", sidecar.url, "--csv")[1].startswith("stage,model,hits")


def test_sidecar_without_usage_says_so(command, sidecar):
    """As of a store."""
    status, _, err = command("stats", "--sidecar", sidecar.url)
    assert status == 1
    assert "nothing was booked" in err


def test_mode_is_shown_and_set(command, sidecar, monkeypatch):
    """By the environment too, where no store is given."""
    monkeypatch.setenv("SEMCACHE_SIDECAR", sidecar.url)
    assert command("mode")[:2] == (0, f"live: all replicas of {sidecar.url}\n")
    assert command("mode", "off")[1] == f"off (it was live): all replicas of {sidecar.url}\n"
    assert told(sidecar.chat()) == "bypass"
    assert json.loads(command("mode", "--json")[1])["mode"] == "off"


@pytest.mark.parametrize("which", ["--tag=faq", "--model=m", "--everything", "--key"])
def test_invalidation_counts_and_drops(command, sidecar, which):
    """By what is named."""
    key = sidecar.chat(headers={"x-semcache-tags": "faq"}).headers["x-semcache-key"]
    which = f"--key={key}" if which == "--key" else which
    assert "would drop 1 entry" in command("invalidate", which, "--dry-run", "--sidecar", sidecar.url)[1]
    assert command("invalidate", which, "--sidecar", sidecar.url)[1].startswith("dropped 1 entry: ")
    status, out, _ = command("invalidate", which, "--sidecar", sidecar.url)
    assert (status, "is it the right name?" in out) == (0, True)
    assert json.loads(command("invalidate", which, "--sidecar", sidecar.url, "--json")[1])["entries"] == 0
    assert told(sidecar.chat()) == "miss"


@pytest.mark.semantic
def test_blast_of_a_sidecar(command, serve):
    """The same table."""
    from instruments import Compass

    near = {"embedder": Compass({"a": 0, "b": 10}), "policy": semcache.Threshold(0.9, guards=None)}
    sidecar = serve(cache=near)
    key = sidecar.chat("a").headers["x-semcache-key"]
    assert sidecar.cache.flush(GUARD)
    sidecar.chat("b")
    status, out, _ = command("blast", key, "--sidecar", sidecar.url)
    assert status == 0
    assert "1 near match of 1 call" in out
    assert json.loads(command("blast", key, "--sidecar", sidecar.url, "--json")[1])["rows"][0]["text"] == "b"
    assert "nobody was given it" in command("blast", "0" * 40, "--sidecar", sidecar.url)[1]


def test_explanation_of_a_call_and_of_a_key(command, sidecar, call, monkeypatch):
    """From a file, from stdin, and what stands there."""
    key = sidecar.chat(key=None).headers["x-semcache-key"]
    how = ("--path", PATHS["openai"], "--sidecar", sidecar.url)
    status, out, err = command("explain", call, *how)
    assert (status, err) == (0, "")
    assert out.startswith(f"key {key}: hit in memory")
    assert "tenant nobody" in out
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({**CALL, "temperature": 1})))
    assert command("explain", "-", *how)[1].startswith("it goes by the cache: sampling: temperature")
    out = command("explain", "--key", key, "--sidecar", sidecar.url)[1]
    assert "tenant nobody; function openai.chat.completions; model m" in out
    assert "memory: " in out
    other = command("explain", call, *how, "--header", "anthropic-version: 1", "--json")[1]
    assert json.loads(other)["answers"][0]["tier"] is None


@pytest.mark.parametrize(
    ("arguments", "mend"),
    [
        ((), "CALL.json"), (("FILE",), "--path"), (("FILE", "--key", "0" * 40), "CALL.json"),
        (("--key", "0" * 40, "--path", "/v1"), "leave out --path"),
        (("FILE", "--path", "/v1/models"), "/v1/embeddings"),
        (("FILE", "--path", "/v1/responses", "--header", "authorization: Bearer x"), "--tenant"),
        (("FILE", "--path", "/v1/responses", "--header", "nonsense"), "'NAME: VALUE'"), (("--key", "12"), "pattern"),
    ],
)  # fmt: skip
def test_explanation_that_cannot_be_meant(command, sidecar, call, arguments, mend):
    """Status 2 and one line."""
    typed = [call if one == "FILE" else one for one in arguments]
    status, out, err = command("explain", *typed, "--sidecar", sidecar.url)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert mend in err


def test_key_that_is_not_there_is_status_1(command, sidecar):
    """It was asked rightly."""
    assert command("explain", "--key", "0" * 40, "--sidecar", sidecar.url)[0] == 1


@pytest.mark.parametrize("name", PATHS)
def test_curated_answers_are_found_by_proxied_calls(command, sidecar, models, tmp_path, name):
    """In each protocol, by the words of the template."""
    bodies = {
        "openai": {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "{question}"}]},
        "openai-responses": {"input": "{question}"},
        "anthropic": {"messages": [{"role": "user", "content": "{question}"}], "max_tokens": 9},
    }  # fmt: skip
    template, faq = tmp_path / "call.json", tmp_path / "faq.csv"
    template.write_text(json.dumps({"model": "m", **bodies[name]}))
    faq.write_text('question,answer\n"Do you ship?","Yes, we do."\nWhen?,"Soon, ""sooner""."\n')
    how = ("--body", template, "--path", PATHS[name], "--sidecar", sidecar.url, "--tag", "faq")
    assert "would put 2 answers" in command("load", faq, *how, "--dry-run")[1]
    status, out, err = command("load", faq, *how)
    assert (status, err) == (0, "")
    assert out == f"put 2 answers, pinned: {sidecar.url}, for tenant nobody\n"
    asked = json.loads(json.dumps({"model": "m", **bodies[name]}).replace("{question}", "When?"))
    answer = sidecar.post(PATHS[name], asked, key=None)
    assert (told(answer), models.calls) == ("hit", 0)
    assert 'Soon, \\"sooner\\".' in answer.text
    assert command("invalidate", "--tag", "faq", "--sidecar", sidecar.url)[1].startswith("dropped 2 entries")


def test_curated_answers_that_cannot_be_put(command, sidecar, tmp_path, call):
    """Nothing is put where a row is wrong, or the template has no place for the question."""
    faq = tmp_path / "faq.csv"
    faq.write_text("question,answer\na,b\na,c\n")
    template = tmp_path / "template.json"
    template.write_text(json.dumps({"model": "m", "messages": [{"role": "user", "content": "{question}"}]}))
    how = ("--path", PATHS["openai"], "--sidecar", sidecar.url)
    assert command("load", faq, "--body", template, *how)[0] == 1
    assert sidecar.cache.stats().tiers["memory"]["entries"] == 0
    for arguments, mend in (
        (("--body", call, *how), "{question}"), (("--body", template, "--sidecar", sidecar.url), "--path"),
        (("--body", template, *how, "--model", "m"), "leave out --model"),
        (("--function", "f", "--sidecar", sidecar.url), "--body"), (("--body", template, "--path", "/v1"), "--sidecar"),
    ):  # fmt: skip
        status, _, err = command("load", faq, *arguments)
        assert (status, mend in err) == (2, True), err


def test_top_shows_what_a_sidecar_does(command, sidecar):
    """Once, for a terminal and for a pipe."""
    sidecar.chat()
    sidecar.chat()
    status, out, err = command("top", "--once", "--sidecar", sidecar.url)
    assert (status, err) == (0, "")
    for shown in ("mode live", "50.0% hits", "1 misses", "memory", "openai.chat.completions"):
        assert shown in out
    shown = json.loads(command("top", "--once", "--json", "--sidecar", sidecar.url)[1])
    assert shown["stats"]["stats"]["hits"] == {"memory": 1}


@pytest.mark.parametrize("is_terminal", [False, True])
def test_view_that_is_live_ends_when_it_is_stopped(command, sidecar, monkeypatch, is_terminal):
    """It draws rates of what it was told twice: in place on a terminal, one below the other in a pipe."""
    pytest.importorskip("rich")
    monkeypatch.setattr("sys.stdout.isatty", lambda: is_terminal)
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        sidecar.chat()
        if len(slept) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("semcache.cli.top.time.sleep", sleep)
    status, out, _ = command("top", "--sidecar", sidecar.url, "--interval", "500ms")
    assert (status, slept) == (0 if is_terminal else 130, [0.5] * 3)
    assert "lookups a second" in out


def test_socket_file_is_a_sidecar(command, serve, tmp_path):
    """By its path."""
    path = tmp_path / "semcache.sock"
    serve(unix=str(path))
    assert command("mode", "--sidecar", f"unix://{path}")[0] == 0


def test_token_comes_from_the_environment(command, serve, monkeypatch):
    """Where it is wanted, and what is said without one, or with another's."""
    sidecar = serve(tokens=(token("o", "*", rights=["read"]), token("t", "acme", rights=["read"])))
    for value, mend in (("", "SEMCACHE_TOKEN"), ("x", "none that this sidecar knows"), ("t", "operator"), ("o", "")):
        monkeypatch.setenv("SEMCACHE_TOKEN", value)
        status, _, err = command("mode", "--sidecar", sidecar.url)
        assert (status, mend in err) == (2 if mend else 0, True), err
    status, _, err = command("mode", "off", "--sidecar", sidecar.url)
    assert (status, "admin" in err) == (2, True)
    monkeypatch.setenv("SEMCACHE_TOKEN", "a\nb")
    assert command("mode", "--sidecar", sidecar.url)[0] == 2


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8400", "ftp://a", "http://", "http://a:99999", "unix://", "http://u:secret@a", "http://a/x",
            "http://a?b=c", "http://[::1"],
)  # fmt: skip
def test_address_that_is_none_is_said(command, url):
    """Status 2, one line, and no password."""
    status, out, err = command("mode", "--sidecar", url)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "secret" not in err


def test_sidecar_and_store_are_not_given_together(command, sidecar, monkeypatch):
    """The store goes before the environment's sidecar."""
    status, _, err = command("mode", "--sidecar", sidecar.url, "--disk", "x.db")
    assert (status, "leave out --disk" in err) == (2, True)
    monkeypatch.setenv("SEMCACHE_SIDECAR", sidecar.url)
    status, _, err = command("mode", "--disk", "/nowhere/x.db", "--namespace", "n")
    assert (status, "no such file" in err) == (1, True)
    monkeypatch.setenv("SEMCACHE_DISK", "/nowhere/x.db")
    assert command("mode", "--namespace", "n")[0] == 1


def test_sidecar_that_is_not_there_is_status_1(command):
    """With what to look at."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    status, _, err = command("mode", "--sidecar", f"http://127.0.0.1:{port}")
    assert (status, "is the sidecar running" in err) == (1, True)


def test_what_is_no_sidecar_is_said(command):
    """Another server at the address: no trace, status 1."""

    class Other(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        status, _, err = command("mode", "--sidecar", f"http://127.0.0.1:{server.server_port}")
    assert (status, "is it one" in err) == (1, True)


def test_headers_that_prove_who_asks_are_the_sidecars():
    """Those that a command refuses are among those that say it."""
    assert {name.encode() for name in PROOFS} <= credentials.PROOFS
    keys = {*credentials.KEY_HEADERS, credentials.TOKEN_HEADER, credentials.COOKIE}
    assert keys <= {name.encode() for name in PROOFS}
