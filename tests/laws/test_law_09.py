"""Law 9: bytes below the wrapper, msgpack only."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path

import msgpack
import pytest
from instruments import Crew, Origin, watch_flights

import semcache
from semcache.codec import Codec
from semcache.model import Entry
from semcache.plan import run

PACKAGE = Path(semcache.__file__).parent


def put_bytes(cache, request, data):
    """Write bytes into the cell of a request, as another program or version would."""
    run(cache.disk.put(request, Entry(data, born=cache.disk.position()), None))
    assert cache.flush()


@pytest.mark.parametrize("source", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_source_knows_no_pickle_eval_or_yaml(source):
    """Law 9: no way leads from stored bytes to running code."""
    forbidden = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "yaml", "eval", "exec", "compile", "__import__"}
    tree = ast.parse(source.read_text())
    imported = {
        name.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (node.names if isinstance(node, ast.Import) else [ast.alias(node.module or "")])
    }
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not forbidden & (imported | called)


@pytest.mark.parametrize(
    "foreign",
    [
        b"", b"\x01", b"\x00", b"hello", pickle.dumps("stolen"), msgpack.packb("stolen"),
        b"\x02\x00" + msgpack.packb("new"),
        b"\x01\x07" + msgpack.packb("packed otherwise"), Codec().encode("cut")[:-1], Codec().encode("longer") + b"x",
        Codec().encode({"a": [1, 2]})[:4] + b"\xc1\xc1", b"\x01\x00" + msgpack.packb(msgpack.ExtType(99, b"")),
        b"\x01\x01" + b"not zstd",
    ],
    ids=repr,
)  # fmt: skip
def test_bytes_that_are_not_ours_are_a_miss_and_overwritten(open_cache, tmp_path, ask, foreign):
    """Law 9: an entry begins with a version byte; what is not ours, damaged, or another version's is loaded anew."""
    cache = open_cache(disk=tmp_path / "cache.db", memory=0)
    request = cache.request("a")
    put_bytes(cache, request, foreign)
    assert ask(cache, request, lambda: "loaded") == "loaded"
    assert cache.stats().faults == {"disk: DecodeError": 1}
    cache.flush()
    assert ask(cache, request, Origin("again")) == "loaded"
    assert cache.stats().hits == {"disk": 1}


def test_class_named_in_foreign_bytes_is_not_imported(open_cache, tmp_path):
    """Law 9: no stored bytes can make us import or call anything."""
    import sys

    cache = open_cache(disk=tmp_path / "cache.db", memory=0)
    request = cache.request("a")
    record = msgpack.packb(["antigravity.Class", {}])
    put_bytes(cache, request, b"\x01\x00" + msgpack.packb(msgpack.ExtType(15, record)))
    assert cache.get_or_load(request, lambda: "loaded") == "loaded"
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("tier", ["memory", "disk"])
def test_hit_that_is_mutated_changes_nobody_elses(open_cache, tmp_path, tier):
    """Law 9: each caller has an answer of his own: the loader, and all who hit."""
    cache = open_cache(disk=tmp_path / "cache.db", memory=0 if tier == "disk" else "64MB")

    @semcache.cached(cache)
    def function():
        return {"items": [1]}

    for _ in range(3):
        answer = function()
        assert answer == {"items": [1]}
        answer["items"].append(2)
        answer["more"] = True
        cache.flush()
    assert semcache.last().tier == tier


def test_shared_answer_that_is_mutated_changes_nobody_elses(open_cache):
    """Law 9: nor do those who shared a flight share an object, be it with its leader."""
    cache = open_cache()
    flights, request, origin = watch_flights(cache), cache.request("a"), Origin({"items": [1]}, hold=True)
    with Crew() as crew:
        callers = [crew.submit(cache.get_or_load, request, origin) for _ in range(5)]
        flights.wait_for(5)
        origin.go.set()
        answers = [caller.result() for caller in callers]
    assert len({id(answer["items"]) for answer in answers}) == 5


def test_items_that_are_mutated_change_nobody_elses(open_cache):
    """Law 9: the same for the items of a stream, while it comes and replayed."""

    @semcache.cached(open_cache())
    def function():
        yield {"items": [1]}
        yield {"items": [2]}

    for _ in range(2):
        one, other = function(), function()
        next(one)["items"].append(3)
        assert next(other) == {"items": [1]}
        assert (list(one), list(other)) == ([{"items": [2]}], [{"items": [2]}])
