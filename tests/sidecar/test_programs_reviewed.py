"""What a review of programs on a sidecar found: what is told while it is lost, keys of others, sidecars that err."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue

import msgpack
import proxies
import pytest
from instruments import GUARD
from proxies import Running
from test_programs import ask, guarded, near, program, settled, token, told_by, until

import semcache
from semcache.marks import Marks
from semcache.model import Entry, Facets, Hit, Request
from semcache.plan import run
from semcache.sidecar.reach import Reach
from semcache.sidecar.serve import Sidecar
from semcache.sidecar.settings import Server, Settings
from semcache.stores.sidecar_address import addresses_of
from semcache.stores.sidecar_follow import Positions
from semcache.stores.sidecar_link import SidecarLink
from semcache.stores.wire import facets_of, facets_told, pair_of
from semcache.testing import ManualClock
from semcache.tiers.sidecar import SidecarTier

__all__ = ["guarded", "near", "program"]


class Rubbish:
    """A server that answers each operation with what it is told to, and says what is put in `frames` as control."""

    def __init__(self, answer=None, status=200, log="L"):
        self.frames: Queue = Queue()
        self.put_frame(log)
        self.asked = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                """Say nothing."""

            def do_POST(self):
                ops = msgpack.unpackb(self.rfile.read(int(self.headers["content-length"])), strict_map_key=False)
                outer.asked.append(ops)
                told = outer.answer(ops)
                if told is None:
                    self.close_connection = True
                    return
                self.send_response(outer.status)
                self.send_header("content-length", str(len(told)))
                self.end_headers()
                self.wfile.write(told)

            def do_GET(self):
                self.send_response(outer.status)
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                while (frame := outer.frames.get()) is not None:
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(frame), frame))
                self.close_connection = True

        self.status = status
        miss = [True, {"reason": None, "log": log, "position": 5}]
        self.answer = answer or (lambda ops: msgpack.packb([miss] * len(ops)))
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=[0.01], daemon=True).start()

    def put_frame(self, log="L", position=5, marks=(), *, is_lost=False):
        frame = {"position": position, "log": log, "marks": list(marks), "mode": None, "is_lost": is_lost}
        self.frames.put(msgpack.packb(frame))

    def close(self):
        self.frames.put(None)
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def rubbish():
    made = []

    def make(**how):
        made.append(Rubbish(**how))
        return made[-1]

    yield make
    for one in made:
        one.close()


def tier_of(url, clock=None, **how):
    clock = clock or ManualClock()
    return SidecarTier(
        url, namespace="tests", clock=clock, decode=lambda data: data, marks=Marks(clock.monotonic, 3600.0),
        on_fault=lambda *_: None, **how,
    )  # fmt: skip


# Invalidations


def test_what_is_told_while_the_sidecars_store_is_lost_reaches_memory(serve, program):
    """Law 8: once it is found again, memory is trusted anew."""
    sidecar = serve()
    one = program(sidecar)
    ask(one)
    settled(one)
    before = len(one.log.marks)
    sidecar.programs.control.is_lost = True
    until(lambda: one.explain(one.request(text="a", function="f")).remaining <= 5.0)
    sidecar.cache.invalidate(function="f")
    until(lambda: len(one.log.marks) > before)
    sidecar.programs.control.is_lost = False
    until(lambda: one.memory.stats()["entries"] == 0)


def test_log_without_a_name_yet_changes_no_position():
    """A sidecar that has just begun says so before it has found its store: births and marks still compare."""
    positions = Positions()
    positions.turn_to("A", 1000)
    positions.hear(1000)
    positions.turn_to("B", 10)
    born = positions.hear(20)
    positions.turn_to("", 1)
    positions.turn_to("B", 21)
    assert positions.here(22) > born


def test_another_log_empties_memory_though_it_was_lost_at_first(rubbish, program):
    """What the first of its frames says is not forgotten."""
    server = rubbish(log="L")
    one = program(server.url)
    ask(one)
    assert one.memory.stats()["entries"] == 1
    server.put_frame("M", 7, is_lost=True)
    server.put_frame("M", 8)
    until(lambda: one.memory.stats()["entries"] == 0)


def test_birth_in_another_log_is_none_in_this():
    """Law 8: what began to load before the change tells nothing of what was invalidated meanwhile."""
    positions = Positions()
    positions.turn_to("A", 1000)
    born = positions.hear(1010)
    positions.turn_to("B", 500)
    assert positions.there(born) == ("B", 0)
    assert positions.there(positions.hear(501)) == ("B", 501)


def entry(key, value=b"V", born=1, **about):
    return {"value": value, "born": born, "lives": [60.0, 0.0, 0.0, 0.0, 0.0, 60.0], "tier": "memory"} | about


def test_invalidation_that_the_sidecar_could_not_keep_holds_here(serve, program, tmp_path):
    """Law 8: what was dropped here is not taken from the sidecar again when it is back."""
    path, store = tmp_path / "sidecar.sock", tmp_path / "cache.db"
    sidecar = serve(cache={"disk": store}, unix=str(path))
    one = program(f"unix://{path}", memory=0)
    until(lambda: one.log.name and one.log.position() > 1)
    ask(one)
    settled(one, sidecar.cache)
    sidecar.close()
    with pytest.raises(semcache.InvalidationError):
        one.invalidate(function="f")
    serve(cache={"disk": store}, unix=str(path))
    until(lambda: one.stats().tiers["sidecar"]["following"])
    until(lambda: not ask(one, "other", "B")[1].faults)
    assert ask(one, answer="new")[0] == "new"


def test_what_waits_to_be_sent_is_not_found_once_it_was_invalidated(rubbish):
    """Law 8, by whom whatever: the mark came over the control stream."""
    holding = threading.Event()
    server = rubbish(answer=lambda ops: holding.wait(GUARD) and None)
    tier = tier_of(server.url, timeout=0.05)
    tier.join()
    request = Request(b"k" * 20, facets=Facets("tests", "f", "", "", "", (), ()))
    run(tier.put(request, Entry(b"V", 60.0, born=5), None))
    assert isinstance(run(tier.get(request)), Hit)
    tier._marks.mark("function", "f", 6)
    with pytest.raises(semcache.TierError):  # it asks
        run(tier.get(request))
    holding.set()
    tier.close()


def test_what_too_many_marks_have_dropped_is_told_to_who_begins(serve):
    """Law 8: past their bound old marks give way to a floor, of which programs are to hear too."""
    sidecar = serve()
    marks = sidecar.cache.log.marks
    marks._most = 10
    for number in range(20):
        marks.mark("tag", str(number), sidecar.cache.log.position() + number)
    with sidecar.http.stream("GET", "/semcache/v1/control") as stream:
        frame = msgpack.unpackb(next(stream.iter_raw()))
    assert any(facet == "namespace" for facet, *_ in frame["marks"])


@pytest.mark.parametrize("tag", ["x" * 2000, "\ud800"], ids=["long", "surrogate"])
def test_mark_of_any_name_is_told(tag, serve, program):
    """No name that somebody invalidates by cuts programs off from all that follows."""
    sidecar = serve()
    one = program(sidecar)
    sidecar.cache.invalidate(tag=tag)
    sidecar.cache.invalidate(tag="next")
    until(lambda: any(value == "next" for _, value, _ in one.log.marks.since(0)))
    again = program(sidecar)
    until(lambda: any(value == "next" for _, value, _ in again.log.marks.since(0)))


def test_pinned_answer_that_the_sidecar_does_not_keep_is_told(serve, program):
    """Whoever curates wants to know."""
    one = program(serve(cache={"max_value": "1kB"}))
    with pytest.raises(semcache.TierError):
        one.put(one.request(text="a", function="f"), value="x" * 5000, pinned=True)


# Tenants


def test_key_that_was_told_back_means_nothing_of_anothers(guarded, program):
    """A program hears of all keys that are invalidated: by none of them does it reach what is not its own."""
    one, two = (program(semcache.Sidecar(guarded.url, token=name)) for name in ("one", "two"))
    ask(one, "a", "T1's")
    settled(one, guarded.cache)
    assert ask(one, "b", "near")[1].tier == "semantic"
    settled(one, guarded.cache)
    request = one.request(text="a", function="f")
    assert one.blast(request.key)
    heard = {value for facet, value, _ in two.log.marks.since(0) if facet == "key"}
    one.put(request, value="T1's again")
    settled(one, guarded.cache)

    def told():
        return {value for facet, value, _ in two.log.marks.since(0) if facet == "key"} - heard

    until(told)
    (key,) = told()
    assert two.blast(key) == []
    assert not two.report_wrong(key=key)
    assert two.invalidate(key=key) == 0
    assert two.invalidate(key=key, dry_run=True) == 0
    assert all(said == "miss" for _, said in two.explain(Request(key, facets=request.facets)).said if _ != "memory")
    fresh = program(semcache.Sidecar(guarded.url, token="one"), memory=0)
    assert ask(fresh, "a", "?")[0] == "T1's again"


def test_names_that_a_program_may_have_fit_between_a_worker_and_its_owner():
    """Laid over with its tenant they are longer, and more."""
    reach = Reach("T1", "desk", "tests", b"of ours")
    names = tuple(f"{number:04}{'🙂' * 1020}" for number in range(256))
    laid = reach.facets(Facets("desk", "f", "", "🙂" * 1024, "m", names[:3], names))
    assert facets_of(msgpack.unpackb(msgpack.packb(facets_told(laid))), "tests") == laid
    for pair in (("tag", names[0]), ("tenant", "🙂" * 1024)):
        assert pair_of(list(reach.pair(pair))) == reach.pair(pair)


@pytest.mark.parametrize("facets", [["x" * 1025, "", "", "", [], []], ["", "", "", "", ["t"] * 257, []]])
def test_names_without_bounds_are_refused(facets, sidecar):
    """As they are of those who are no workers."""
    is_well, told = told_by(sidecar, ["find", {"key": b"k" * 20, "facets": facets}])
    assert (is_well, told[0]) == (False, "unreadable")


def test_failure_tells_no_tenant_how_its_names_are_kept(serve):
    """Who knows by what its keys are laid over could name others'."""
    sidecar = serve(cache={"disk": "/dev/null/all.db"}, tokens=(token("one", "T1", "cache"),), secret="of ours")
    message = ["mark", [["key", b"k" * 20]]]
    answer = sidecar.http.post(
        "/semcache/v1/cache", content=msgpack.packb([message]),
        headers={"content-type": "application/msgpack", "x-semcache-token": "one"},
    )  # fmt: skip
    is_well, (reason, said) = msgpack.unpackb(answer.content)[0]
    assert (is_well, reason in ("unkept", "unreachable")) == (False, True)
    reach = Reach("T1", "", "tests", sidecar._sidecar._proxy._service._credentials.secret_of(b"programs"))
    assert reach.key(b"k" * 20).hex() not in said


def test_sums_are_told_by_the_names_that_were_booked(guarded, program):
    """A tenant's usage by tenant is of its own tenants."""
    one = program(semcache.Sidecar(guarded.url, token="one"), tenant_usage=True)
    ask(one)
    settled(one)
    assert [row.tenant for row in one.usage(by="tenant")] == ["t"]


def test_page_of_another_name_is_refused_by_workers_too(serve, models, open_cache):
    """What a worker hands on comes over a socket, by which the owner would ask for no name."""
    owner = serve()
    said = []

    async def elsewhere(scope, _receive, send):
        said.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    class Handing(Running):
        def __init__(self, settings, cache):
            proxies.Sidecar, kept = (lambda made, held: Sidecar(made, held, elsewhere=elsewhere)), proxies.Sidecar
            try:
                super().__init__(settings, cache)
            finally:
                proxies.Sidecar = kept

    worker = Handing(Settings(upstream=(Server(models.url),), port=0), open_cache(sidecar=owner.url))
    try:
        for path in ("/semcache/v1/stats", "/", "/metrics"):
            assert worker.http.get(path, headers={"host": "evil.example"}).status_code == 403, path
        assert said == []
        assert worker.http.get("/semcache/v1/stats").status_code == 200
    finally:
        worker.close()


# Sidecars that answer badly


GARBAGE = [
    {"stages": [["embed", "fast"]]}, {"stages": [[7, 7]]}, {"reason": ["x"]}, {"reason": {}}, {"stages": {}},
    {"stages": [], "decision": ["reuse", [], "x", "y", {}, "z"]}, {"position": True}, {"log": 7},
    entry(b"", usage=["x", {}, None]), entry(b"", usage=[-1, 0, 0.0]), entry(b"", facets=7), entry(b"", similarity=0.9),
    entry(b"", lives=[1]), entry(b"", tier=["memory"]), 7, None, {"audited": 7},
]  # fmt: skip


@pytest.mark.parametrize("told", GARBAGE, ids=repr)
def test_answer_that_is_none_is_a_miss(told, rubbish, open_cache):
    """Law 10, whatever a sidecar says."""
    if isinstance(told, dict):
        told = {"log": "L", "position": 5, "reason": None} | told
    server = rubbish(answer=lambda ops: msgpack.packb([[True, told]] * len(ops)))
    cache = open_cache(sidecar=server.url, tenant="t")
    value, event = ask(cache)
    assert (value, event.kind) == ("A", "miss")
    assert {name for name, *_ in event.faults} == {"sidecar"}


@pytest.mark.parametrize("told", [b"", b"\xc1", b"\x93", b"\x91\x01", b"\x91\x91\xc2", b"\x91\x92\xc2\x01"], ids=repr)
def test_answer_that_is_no_message_is_a_miss(told, rubbish, open_cache):
    """Law 10."""
    cache = open_cache(sidecar=rubbish(answer=lambda _: told).url)
    value, event = ask(cache)
    assert (value, event.faults[0][:2]) == ("A", ("sidecar", "reply"))


def test_answer_without_end_is_given_up(rubbish, monkeypatch):
    """It takes no more memory than an answer may."""
    monkeypatch.setattr("semcache.stores.sidecar_answer.MOST_BYTES", 1 << 20)
    server = rubbish(answer=lambda _: bytes(2 << 20))
    link = SidecarLink(addresses_of(server.url))
    with pytest.raises(semcache.TierError, match="over"):
        link.exchange([("find", {})], GUARD)
    with pytest.raises(semcache.TierError, match="over"):
        asyncio.run(link.aexchange([("find", {})], GUARD))


@pytest.mark.parametrize("status", [500, 502, 503])
def test_sidecar_that_answers_for_another_that_is_not_there_is_passed_over(status, rubbish, serve, program):
    """As a gateway's 502: the next of the list is asked, and followed."""
    first, second = rubbish(status=status), serve()
    one = program([first.url, second.url])
    ask(one)
    settled(one)
    assert second.cache.memory.stats()["entries"] == 1
    assert asyncio.run(SidecarLink(addresses_of([first.url, second.url])).aexchange([("count", [])], GUARD)).values


def test_callers_own_mistake_leaves_the_tier_open(serve, program):
    """What a sidecar refuses for what it is says nothing of the sidecar."""
    one = program(serve(), memory=0)
    for number in range(20):
        one.get_or_load(one.request(text="x" * (2 << 20) + str(number), function="f"), lambda: "A")
    value, event = ask(one)
    assert (value, event.faults) == ("A", [])


def test_text_that_is_no_unicode_goes_through(serve, program):
    """Half a surrogate pair, as a broken JSON string has it: neither it nor what is sent with it is lost."""
    sidecar = serve()
    one, other = program(sidecar), program(sidecar)
    ask(one, "\ud800", "A", tenant="\udfff")
    assert one.flush(GUARD), one.stats()
    value, event = ask(other, "\ud800", "B", tenant="\udfff")
    assert (value, event.faults) == ("A", [])


def test_more_than_a_message_may_have_are_asked_in_some(serve, program):
    """And all are found."""
    sidecar = serve()
    one, other = program(sidecar), program(sidecar, memory=0)
    requests = [one.request(text=str(number), function="f") for number in range(1100)]
    one.get_or_load_many(requests, list)
    settled(one)
    found = other.get_or_load_many(requests, lambda places: pytest.fail(f"loaded {len(places)}"))
    assert found == list(range(1100))


def test_message_of_very_many_parts_is_refused(sidecar):
    """Small as it is, it would take many times its bytes."""
    body = b"\x91\x92\xa4find\xdd" + (1 << 20).to_bytes(4, "big") + b"\x90" * (1 << 20)
    answer = sidecar.http.post("/semcache/v1/cache", content=body, headers={"content-type": "application/msgpack"})
    assert answer.status_code == 400
    assert "parts" in answer.text


def test_values_of_ones_own_are_found(sidecar):
    """As docs/sidecar.md says to programs in other languages."""
    facets, key = ["f", "", "", "", [], []], b"k" * 20
    where = told_by(sidecar, ["find", {"key": key, "facets": facets}])[1]
    put = {"request": {"key": key, "facets": facets}, "log": where["log"]}
    put["entry"] = {"value": b"any bytes", "born": where["position"], "lives": [60.0, 0.0, 0.0, 0.0, 0.0, 60.0]}
    assert told_by(sidecar, ["put", put]) == [True, True]
    assert told_by(sidecar, ["find", {"key": key, "facets": facets}])[1]["value"] == b"any bytes"


BAD = [
    ["mark", []], ["mark", [["tag", "x"]] * 5000], ["count", [["tag", "x"]] * 5000],
    ["book", [[b"n" * 1000, "2026-11-27", {}]]],
    ["book", [[b"n", "2026-11-27", {"hits|f|m": float("inf")}]]], ["book", [[b"n", "someday", {}]]],
    ["find", {"key": b"k" * 20, "facets": [""] * 4 + [[], []], "scope": b"s" * 20, "text": "a", "family": b"f" * 500}],
]  # fmt: skip


@pytest.mark.parametrize("operation", BAD, ids=lambda one: repr(one)[:60])
def test_operation_without_bounds_is_refused(operation, sidecar):
    """And is none of the sidecar's own failures."""
    is_well, told = told_by(sidecar, operation)
    assert (is_well, told[0]) == (False, "unreadable")


def test_streams_are_bounded(serve):
    """As calls are."""
    sidecar = serve(limit_requests=2)
    with sidecar.http.stream("GET", "/semcache/v1/control"), sidecar.http.stream("GET", "/semcache/v1/control"):
        assert sidecar.http.get("/semcache/v1/control").status_code == 503


# Time


def test_connecting_takes_no_longer_than_its_time(monkeypatch):
    """However many addresses a name has."""
    asked = []

    def connect(self, address):
        asked.append(self.gettimeout())
        now[0] += 0.2
        raise TimeoutError

    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{n}", 1)) for n in range(1, 6)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(socket.socket, "connect", connect)
    link = SidecarLink(addresses_of("http://many.example:1"))
    with pytest.raises(semcache.TierError, match="time"):
        link.exchange([("count", [])], 0.3)
    assert asked == [pytest.approx(0.3), pytest.approx(0.1)]


def test_sums_wait_for_nobody(rubbish):
    """A sidecar that does not answer delays neither lookups' thread nor the follower's; what is owed is sent later."""
    holding = threading.Event()
    server = rubbish(answer=lambda ops: msgpack.packb([[holding.wait(GUARD), None]] * len(ops)))
    tier = tier_of(server.url)
    tier.book("2026-11-27", {"hits|f|m": 1.0})
    assert not tier.flush(0)  # it was not waited for
    holding.set()
    assert tier.flush(GUARD)
    assert [op[0] for ops in server.asked for op in ops] == ["book"]
    tier.close()
