"""What waits for a server: read while it waits, in order, bounded, and never lost without a word."""

from __future__ import annotations

import threading

import pytest
from instruments import GUARD

from semcache.errors import TierError
from semcache.stores.outbox import Outbox, Write


class Server:
    """Takes what is sent, while `gate` is set; raises the first of `errors` instead, while there are some."""

    def __init__(self):
        self.taken, self.errors, self.faults = [], [], []
        self.gate, self.asked = threading.Event(), threading.Event()
        self.gate.set()

    def __call__(self, batch):
        self.asked.set()
        assert self.gate.wait(GUARD)
        if self.errors:
            raise self.errors.pop(0)
        self.taken += [write.what for write in batch]
        return [write.what != "refused" for write in batch]


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def open_outbox(server):
    opened = []

    def open_one(**settings):
        settings = {"covers": lambda pairs, born: False, "on_fault": server.faults.append, "batch": 1} | settings
        opened.append(Outbox("outbox", server, **settings))
        return opened[-1]

    yield open_one
    server.gate.set()
    for outbox in opened:
        outbox.close(GUARD)


def entry(key, what="value", born=1):
    return Write(key, what, what.encode(), born, [("key", key), ("tag", "faq")], len(what))


def held(outbox, server):
    """Put an entry that the server holds on to, so that what comes now waits."""
    server.gate.clear()
    outbox.put(entry(b"held"))
    assert server.asked.wait(GUARD)


def test_of_two_entries_that_wait_the_younger_stays(open_outbox, server):
    """A slow load of this process does not hide, or replace, what a later one has brought."""
    outbox = open_outbox()
    held(outbox, server)
    outbox.put(entry(b"k", "later", born=8))
    outbox.put(entry(b"k", "slow", born=3))
    assert outbox.pending[b"k"].what == "later"
    server.gate.set()
    assert outbox.flush(GUARD)
    assert server.taken == ["value", "later"]
    assert outbox.counts == {"written": 2, "refused": 1, "lost": 0}


def test_what_is_invalidated_while_it_waits_is_not_sent(open_outbox, server):
    """Law 8: by whatever facet, and what is on its way is not read from the queue any more."""
    outbox = open_outbox()
    held(outbox, server)
    outbox.put(entry(b"k", "old"))
    outbox.put(entry(b"k2", "young", born=9))
    assert outbox.drop([("tag", "faq")], 5) == 2
    assert set(outbox.pending) == {b"k2"}
    server.gate.set()
    assert outbox.flush(GUARD)
    assert server.taken == ["value", "young"]


def test_server_that_is_away_loses_all_that_waits(open_outbox, server):
    """What waits would fare no better; it is counted, told once, and what comes then is written."""
    outbox = open_outbox(passes=lambda error: False, is_away=lambda error: True)
    held(outbox, server)
    for number in range(10):
        outbox.put(entry(b"%d" % number))
    server.errors.append(TierError("unreachable"))
    server.gate.set()
    assert not outbox.flush(GUARD)
    assert outbox.flush(GUARD)  # said once
    assert (outbox.counts["lost"], len(server.faults), server.taken) == (11, 1, [])
    outbox.put(entry(b"k"))
    assert outbox.flush(GUARD)
    assert server.taken == ["value"]


def test_what_passes_is_tried_again(open_outbox, server):
    """Twice; the third time it is lost, and what waits is still sent where the server is not away."""
    outbox = open_outbox()
    server.errors += [TierError("loading")] * 2
    outbox.put(entry(b"k", "first"))
    assert outbox.flush(GUARD)
    server.errors += [TierError("loading")] * 3
    outbox.put(entry(b"k", "second"))
    assert not outbox.flush(GUARD)
    outbox.put(entry(b"k", "third"))
    assert outbox.flush(GUARD)
    assert (server.taken, outbox.counts["lost"], len(server.faults)) == (["first", "third"], 1, 1)


def test_refusals_and_what_is_not_missed_are_counted_as_such(open_outbox, server):
    """Only entries count; a sliding that fails is no loss."""
    outbox = open_outbox(passes=lambda error: False)
    outbox.put(entry(b"k", "refused"))
    assert outbox.flush(GUARD)
    server.errors.append(TierError("late"))
    outbox.put(Write(b"k", "slide", size=8))
    assert outbox.flush(GUARD)
    assert outbox.counts == {"written": 0, "refused": 1, "lost": 0}
    assert len(server.faults) == 1


def test_closed_outbox_counts_what_it_could_not_send(open_outbox, server):
    """Nothing is lost without a word, and nothing more is taken."""
    outbox = open_outbox()
    held(outbox, server)
    outbox.put(entry(b"k"))
    outbox.close(0.01)
    assert outbox.counts["lost"] == 1
    with pytest.raises(TierError) as raised:
        outbox.put(entry(b"k"))
    assert raised.value.reason == "closed"


def test_fault_that_cannot_be_told_ends_nothing(open_outbox, server):
    """The thread lives on, whatever its listener or the server does."""

    def deaf(error):
        raise RuntimeError

    outbox = open_outbox(on_fault=deaf, passes=lambda error: False)
    server.errors.append(KeyError("no error of ours"))
    outbox.put(entry(b"k"))
    assert not outbox.flush(GUARD)
    outbox.put(entry(b"k", "again"))
    assert outbox.flush(GUARD)
    assert server.taken == ["again"]
