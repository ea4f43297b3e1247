"""The contract of a tier, as tests: subclass TierContract in your own test module, say how your tier is made.

    class TestMyTier(TierContract):
        def make(self, clock): return MyTier(ttl=100.0, clock=clock)

Every test runs in both colours, on a clock that stands still until the test moves it. After each test the tier is
asked whether its counts agree with what can be read from it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import inf
from typing import Any

import pytest

from semcache.codec import Codec
from semcache.keys import digest
from semcache.model import Entry, Facets, Hit, Miss, Request
from semcache.plan import Plan, arun, run
from semcache.testing.clock import ManualClock
from semcache.tier import Tier

TTL_SECONDS = 100.0

Drive = Callable[[Plan[Any]], Any]


def drive_sync(plan: Plan[Any]) -> Any:
    """Carry out a plan in this thread."""
    return run(plan)


def drive_async(plan: Plan[Any]) -> Any:
    """Carry out a plan on a loop of its own."""
    return asyncio.run(arun(plan))


def request(name: str, function: str = "contract.f") -> Request:
    """Make a request of a name; its text is the name, so that a near tier can take it too."""
    facets = Facets("contract", function, "1")
    return Request(digest(name.encode()), digest(b"scope"), f"text {name}", facets, tenanted=True, embedder="e")


def entry(value: object = "answer", **about: Any) -> Entry:
    """Make an entry of a value."""
    return replace(Entry(Codec().encode(value), born=1), **about)


class TierContract:
    """What every tier keeps. Its ttl must be TTL_SECONDS, without jitter."""

    @pytest.fixture(params=[drive_sync, drive_async], ids=["sync", "async"])
    def drive(self, request: pytest.FixtureRequest) -> Drive:
        """Carry plans out in one colour or the other."""
        drive: Drive = request.param
        return drive

    @pytest.fixture
    def clock(self) -> ManualClock:
        """Make the clock of the tier."""
        return ManualClock()

    @pytest.fixture
    def tier(self, clock: ManualClock) -> Iterator[Tier]:
        """Make the tier, close it, and hold it to its own counts."""
        tier = self.make(clock)
        yield tier
        self.settle(tier)
        assert all(count >= 0 for count in tier.stats().values())
        tier.close()
        tier.close()

    def make(self, clock: ManualClock) -> Tier:  # noqa: ARG002 - a subclass has use for it
        """Make a tier on this clock."""
        raise AssertionError("say in your subclass how your tier is made")

    def settle(self, tier: Tier) -> None:
        """Wait until what was put can be read; a tier with values elsewhere puts them there too."""
        assert tier.flush(30.0)

    def put(self, tier: Tier, drive: Drive, asked: Request, put: Entry) -> None:
        """Put an entry, born at `self.born` unless it says otherwise."""
        drive(tier.put(asked, replace(put, born=self.born(tier)) if put.born == 1 else put, None))

    def born(self, tier: Tier) -> int:  # noqa: ARG002 - a subclass whose tier keeps the log has use for it
        """Return where a load that begins now is born."""
        return 1

    def invalidate(self, tier: Tier, drive: Drive, facet: str, value: str | bytes, position: int) -> None:
        """Drop by facet, as a cache does when the log has taken the mark."""
        drive(tier.remove(facet, value, position))

    def value(self, found: Hit | Miss) -> Any:
        """Return the value of a hit, or the Miss."""
        return Codec().decode(found.entry.value) if isinstance(found, Hit) else found

    def test_get_unknown_key_misses(self, tier: Tier, drive: Drive) -> None:
        """What was never put is a miss."""
        assert isinstance(drive(tier.get(request("a"))), Miss)

    def test_get_after_put_returns_the_bytes(self, tier: Tier, drive: Drive) -> None:
        """What was put comes back, byte by byte, and says what its load took."""
        kept = entry({"answer": [1, None, "x"]}, load_seconds=1.5)
        self.put(tier, drive, request("a"), kept)
        self.settle(tier)
        found = drive(tier.get(request("a")))
        assert isinstance(found, Hit)
        assert (found.entry.value, found.entry.load_seconds) == (kept.value, 1.5)

    def test_put_twice_keeps_the_later(self, tier: Tier, drive: Drive) -> None:
        """A put overwrites."""
        self.put(tier, drive, request("a"), entry("old"))
        self.put(tier, drive, request("a"), entry("new"))
        self.settle(tier)
        assert self.value(drive(tier.get(request("a")))) == "new"

    def test_keys_do_not_meet(self, tier: Tier, drive: Drive) -> None:
        """Each key has its own answer."""
        for name in ("a", "b", "c"):
            self.put(tier, drive, request(name), entry(name))
        self.settle(tier)
        assert [self.value(drive(tier.get(request(name)))) for name in ("c", "a", "b")] == ["c", "a", "b"]

    def test_entry_lives_to_its_ttl_and_no_longer(self, tier: Tier, drive: Drive, clock: ManualClock) -> None:
        """An entry is found until the tier's ttl has passed."""
        self.put(tier, drive, request("a"), entry())
        self.settle(tier)
        clock.advance(TTL_SECONDS - 0.5)
        assert isinstance(drive(tier.get(request("a"))), Hit)
        clock.advance(0.6)
        assert isinstance(drive(tier.get(request("a"))), Miss)

    def test_hit_does_not_lengthen_a_life(self, tier: Tier, drive: Drive, clock: ManualClock) -> None:
        """Law 5: reading an entry again and again leaves its end where it was."""
        self.put(tier, drive, request("a"), entry())
        self.settle(tier)
        for _ in range(9):
            clock.advance(TTL_SECONDS / 10)
            assert isinstance(drive(tier.get(request("a"))), Hit)
        clock.advance(TTL_SECONDS / 10)
        assert isinstance(drive(tier.get(request("a"))), Miss)

    def test_life_shorter_than_the_ttl_holds(self, tier: Tier, drive: Drive, clock: ManualClock) -> None:
        """Law 5: what remains of an entry's life bounds its life here."""
        self.put(tier, drive, request("a"), entry(life=30.0))
        self.settle(tier)
        clock.advance(29.5)
        found = drive(tier.get(request("a")))
        assert isinstance(found, Hit)
        assert found.entry.life <= 0.5
        clock.advance(1.0)
        assert isinstance(drive(tier.get(request("a"))), Miss)

    def test_infinite_life_is_the_tiers_ttl(self, tier: Tier, drive: Drive) -> None:
        """Law 5: a tier tells what remains, never more than its ttl."""
        self.put(tier, drive, request("a"), entry(life=inf))
        self.settle(tier)
        found = drive(tier.get(request("a")))
        assert isinstance(found, Hit)
        assert 0 < found.entry.life <= TTL_SECONDS

    def test_removed_key_misses_and_the_others_stay(self, tier: Tier, drive: Drive) -> None:
        """Law 8: an invalidated key is a miss at once."""
        for name in ("a", "b"):
            self.put(tier, drive, request(name), entry(name))
        self.settle(tier)
        self.invalidate(tier, drive, "key", request("a").key, 5)
        self.settle(tier)
        assert isinstance(drive(tier.get(request("a"))), Miss)
        assert self.value(drive(tier.get(request("b")))) == "b"

    def test_removed_function_misses_and_the_others_stay(self, tier: Tier, drive: Drive) -> None:
        """Law 8: an invalidated function is a miss for all its keys."""
        self.put(tier, drive, request("a", "m.f"), entry("a"))
        self.put(tier, drive, request("b", "m.g"), entry("b"))
        self.settle(tier)
        self.invalidate(tier, drive, "function", "m.f", 5)
        self.settle(tier)
        assert isinstance(drive(tier.get(request("a", "m.f"))), Miss)
        assert self.value(drive(tier.get(request("b", "m.g")))) == "b"

    def test_put_born_before_the_mark_is_refused(self, tier: Tier, drive: Drive) -> None:
        """Law 8: what was invalidated while it was loading is not kept; what is loaded afterwards is."""
        born = self.born(tier)
        self.invalidate(tier, drive, "function", "contract.f", 5)
        drive(tier.put(request("a"), entry("stale", born=born), None))
        self.settle(tier)
        assert isinstance(drive(tier.get(request("a"))), Miss)
        self.put(tier, drive, request("a"), entry("fresh", born=2**60))
        self.settle(tier)
        assert self.value(drive(tier.get(request("a")))) == "fresh"

    def test_clock_going_back_lengthens_no_life(self, tier: Tier, drive: Drive, clock: ManualClock) -> None:
        """A wall clock set back may cost hits; it never serves an entry past its ttl."""
        self.put(tier, drive, request("a"), entry())
        self.settle(tier)
        clock.set_time(clock.time() - 10 * TTL_SECONDS)
        clock.advance(TTL_SECONDS + 1)
        assert isinstance(drive(tier.get(request("a"))), Miss)
