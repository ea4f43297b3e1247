"""curl: the protocols as they are written in shell scripts, over TCP and a Unix socket."""

from __future__ import annotations

import json
import subprocess

from instruments import GUARD
from processes import CHAT
from servers import find_program


def curl(url, body=None, *more):
    """Return status, headers in small letters, and the body."""
    sent = [] if body is None else ["-H", "content-type: application/json", "-d", json.dumps(body)]
    ran = subprocess.run(
        [find_program("curl"), "-sS", "-i", "-H", "authorization: Bearer k", *sent, *more, url],
        capture_output=True, text=True, timeout=GUARD, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    head, _, told = ran.stdout.partition("\n\n")
    first, *lines = head.splitlines()
    return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines), told


def chat(text="Do you ship?", **more):
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


def test_plain_call_misses_and_then_hits(start, models):
    """As the README has it."""
    url = start().url + CHAT
    first, second = curl(url, chat()), curl(url, chat())
    assert (first[1]["x-semcache"], second[1]["x-semcache"]) == ("miss", "hit")
    assert second[2] == first[2]
    assert "semcache; hit; ttl=" in second[1]["cache-status"]
    assert models.calls == 1


def test_stream_arrives_as_it_comes(start, models):
    """With -N the first events are there while the server behind still speaks, and again from the cache."""
    url = start().url + CHAT
    held = models.hold(after=2)
    command = [find_program("curl"), "-sSN", "-H", "authorization: Bearer k", "-d", json.dumps(chat(stream=True)), url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reading:
        first = reading.stdout.readline()
        assert held.reached.wait(GUARD)
        held.go.set()
        rest = reading.stdout.read()
    assert reading.returncode == 0
    assert json.loads(first.removeprefix("data: "))["object"] == "chat.completion.chunk"
    assert rest.rstrip().endswith("data: [DONE]")
    again = curl(url, chat(stream=True), "-N")
    assert (again[1]["x-semcache"], again[2]) == ("hit", first + rest)


def test_unix_socket_is_the_same_sidecar(start, models, tmp_path):
    """What was asked over TCP is there."""
    path = tmp_path / "semcache.sock"
    sidecar = start("--unix", str(path))
    curl(sidecar.url + CHAT, chat())
    answered = curl(f"http://semcache{CHAT}", chat(), "--unix-socket", str(path))
    assert (answered[0], answered[1]["x-semcache"]) == (200, "hit")
    assert models.calls == 1


def test_cache_control_is_followed(start, models):
    """No answer where it is only wanted from the cache; a new one where that is wanted; none kept."""
    url = start().url + CHAT
    only = curl(url, chat(), "-H", "cache-control: only-if-cached")
    assert (only[0], only[1]["x-semcache"]) == (504, "bypass")
    assert curl(url, chat(), "-H", "cache-control: no-store")[1]["x-semcache"] == "bypass"
    assert curl(url, chat())[1]["x-semcache"] == "miss"
    assert curl(url, chat(), "-H", "cache-control: only-if-cached")[1]["x-semcache"] == "hit"
    assert curl(url, chat(), "-H", "cache-control: no-cache")[1]["x-semcache"] == "miss"
    assert curl(url, chat(), "-H", "cache-control: max-age=0")[1]["x-semcache"] == "miss"
    assert models.calls == 4


def test_error_and_what_is_not_cached_pass_through(start, models):
    """The status, the headers and the body of the server behind."""
    sidecar = start()
    models.fail(429, retry_after=9)
    status, headers, told = curl(sidecar.url + CHAT, chat())
    assert (status, headers["retry-after"]) == (429, "9")
    assert "error" in json.loads(told)
    assert json.loads(curl(f"{sidecar.url}/v1/models")[2])["data"][0]["id"] == "m"
