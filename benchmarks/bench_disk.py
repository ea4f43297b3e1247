"""What does a hit in the disk store cost, beside SQLite itself?"""

from __future__ import annotations

import sqlite3

import diskcache

import semcache

ANSWER = "Your parcel left our warehouse on Monday and should reach you within three working days. " * 2
QUESTIONS = [f"Where is my parcel number {number}?" for number in range(2000)]


def test_disk_hit(pairs, tmp_path):
    """The bar: 3 times a bare SELECT by key from a table of the same rows; memory is off, so hits are the disk's."""
    cache = semcache.Cache(namespace="bench", memory=0, disk=tmp_path / "ours.db", timeouts=LONG)
    ours = semcache.cached(cache)(lambda question: ANSWER)
    for question in QUESTIONS:
        ours(question)
    cache.flush()
    bare = sqlite3.connect(tmp_path / "bare.db")
    bare.execute("PRAGMA journal_mode=WAL")
    bare.execute("CREATE TABLE entries (key BLOB PRIMARY KEY, value BLOB, expires REAL)")
    keys = [number.to_bytes(20) for number in range(len(QUESTIONS))]
    bare.executemany("INSERT INTO entries VALUES (?, ?, 1e12)", [(key, ANSWER.encode()) for key in keys])
    bare.commit()
    peer = diskcache.Cache(str(tmp_path / "peer"))
    for question in QUESTIONS:
        peer[question] = ANSWER
    select = "SELECT value, expires FROM entries WHERE key = ?"

    def all_ours():
        for question in QUESTIONS:
            ours(question)

    def all_bare():
        for key in keys:
            bare.execute(select, (key,)).fetchone()

    def all_peer():
        for question in QUESTIONS:
            peer[question]

    assert ours(QUESTIONS[7]) == ANSWER
    assert semcache.last().tier == "disk"
    pairs(
        "2,000 disk hits of a decorated function / the bare SQLite SELECT",
        all_ours,
        all_bare,
        bar=3.0,
        peers={"diskcache": all_peer},
        number=1,
        rounds=21,
        unit="ms",
    )
    hits = cache.stats().hits
    assert set(hits) == {"disk"}, hits
    cache.close()
    bare.close()
    peer.close()


LONG = semcache.Timeouts(disk="5s", semantic="30s")
