"""The sidecar tier: all that another process has, in one round trip: its memory, its store, its near matches.

To the lookup it is an exact store that keeps the log; what it finds may be a near match all the same, which the
sidecar's policy has let through. Labels, audits, reports and the ledger are the sidecar's.

Laws: a lookup is one trip, and no more than its timeout; puts are sent behind the caller and are read from the queue
meanwhile; an invalidation is kept by the sidecar when the call returns, or it raises (law 8); a sidecar that is gone is
a miss (law 10), and the next of the list, where there is one, is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from semcache.errors import DecodeError, TierError
from semcache.explain import Explanation
from semcache.ledger import Served, Taken
from semcache.log import LOST_SECONDS
from semcache.marks import Between, Changes, Marks, Pair
from semcache.model import Entry, Evidence, Facets, Hit, Miss, Mode, Neighbour, Request
from semcache.plan import Exchange, Plan, run
from semcache.stores import header
from semcache.stores.fork import forking
from semcache.stores.outbox import Outbox, Sent, Write
from semcache.stores.sidecar_address import addresses_of
from semcache.stores.sidecar_follow import Following, Positions
from semcache.stores.sidecar_link import Op, SidecarLink
from semcache.stores.sidecar_owed import Owed
from semcache.stores.wire import entry_told, facets_of, found_of, request_told
from semcache.tier import Clock

# For what nobody's answer waits for: writes, invalidations, sums.
PATIENT_SECONDS = 5.0
_CLOSE_SECONDS = 5.0
_LAST_SECONDS = 1.0
_BATCH = 64


class SidecarTier:
    """All that the sidecar at `sidecar` has: an address, a semcache.Sidecar, or a list of these, of which one is asked.

    `timeout` is how long a lookup waits, in seconds; `decode` reads an answer; `marks` are this process's. Raises
    ConfigurationError for an address that can never work; a sidecar that is away makes misses.
    """

    name = "sidecar"
    exact = True

    def __init__(
        self, sidecar: Any, *, namespace: str, clock: Clock, marks: Marks, decode: Callable[[bytes], Any],
        on_fault: Callable[[str, BaseException], None], timeout: float = 0.3,
    ) -> None:  # fmt: skip
        self._namespace = namespace
        self._now = clock.time
        self._marks = marks
        self._decode = decode
        self._timeout = timeout
        self._is_closed = False
        self._patience = PATIENT_SECONDS
        self._positions = Positions()
        self._link = SidecarLink(addresses_of(sidecar), (("x-semcache-namespace", namespace),) if namespace else ())
        self._following = Following(self._link, marks, self._positions)
        self._owed = Owed(lambda name, told: run(self._ask(name, told, self._patience)))
        self._outbox: Outbox[Op] = Outbox(
            "semcache-sidecar", self._send, covers=marks.cover, batch=_BATCH,
            on_fault=lambda error: on_fault(getattr(error, "reason", "lost"), error),
            passes=lambda error: getattr(error, "reason", "") in ("busy", "pool"),
            is_away=lambda error: getattr(error, "reason", "") in ("unreachable", "late"), debts=self._owed,
        )  # fmt: skip
        forking().add(self)

    # Lookups

    def get(self, request: Request) -> Plan[Hit | Miss]:
        """Have the sidecar look a request up; what waits here to be sent is found too."""
        self._check()
        waiting = self._waiting(request)
        if waiting is not None:
            return waiting
        replies = yield Exchange(self._link, [self._find(request)], self._timeout)
        return self._found(request, replies.values[0], replies.waited_ns)

    def get_many(self, requests: Sequence[Request]) -> Plan[list[Hit | Miss | BaseException | None]]:
        """Look many up as `get` does each, in one trip."""
        self._check()
        replies = yield Exchange(self._link, [self._find(request) for request in requests], self._timeout)
        found: list[Hit | Miss | BaseException | None] = []
        for request, told in zip(requests, replies.values, strict=True):
            try:
                found.append(self._waiting(request) or self._found(request, told, replies.waited_ns))
            except (TierError, DecodeError) as error:
                found.append(error)
        return found

    @staticmethod
    def _find(request: Request) -> Op:
        return "find", request_told(request)

    def _found(self, request: Request, told: Any, waited_ns: int) -> Hit | Miss:
        """Return what a sidecar found. Raises TierError and DecodeError."""
        if isinstance(told, TierError):
            # What it does not understand says nothing of how it is.
            raise DecodeError(str(told)) if told.reason == "unreadable" else told
        found = found_of(told, request, self.name)
        audited = found_of(told["audited"], request, self.name) if "audited" in told else None
        births = self._heard(told)
        for hit in (found, audited):
            if isinstance(hit, Hit):
                self._place(hit, births)
        if isinstance(found, Hit) and self._is_dropped(request, found):
            found = Miss(None, found.evidence)
        found.waited_ns = waited_ns
        if isinstance(audited, Hit) and not self._is_dropped(request, audited):
            found.evidence = found.evidence or Evidence()
            found.evidence.audited = audited, self._decode(audited.entry.value)
        return found

    @staticmethod
    def _place(hit: Hit, births: Callable[[int], int] | None) -> None:
        entry = hit.entry
        if births is not None:
            entry.born = births(entry.born)
            return
        # Of another sidecar than is followed, until it is: any mark is newer, and nobody tells of its own.
        entry.born, entry.life, entry.limit = 0, min(entry.life, LOST_SECONDS), min(entry.limit, LOST_SECONDS)

    def _is_dropped(self, request: Request, hit: Hit) -> bool:
        """Say whether it was invalidated by what is known here: what no sidecar could keep, or another one did."""
        return self._marks.cover((hit.entry.facets or request.facets).pairs(hit.key), hit.entry.born)

    def _heard(self, told: Mapping[str, Any]) -> Callable[[int], int] | None:
        """Take note of the position that came with an answer; return what makes its births ours."""
        positions, log, position = self._positions, told.get("log"), told.get("position")
        if not isinstance(log, str) or type(position) is not int:
            raise DecodeError("it does not say where its log stands")
        if not positions.log:
            positions.turn_to(log, position)
        births = positions.births_of(log)
        if births is not None:
            positions.latest = max(positions.latest, births(position))
        return births

    def _waiting(self, request: Request) -> Hit | None:
        pending = self._outbox.pending
        write = pending.get(request.key) if pending else None
        if write is None or write.data is None or self._marks.cover(write.pairs or (), write.born):
            return None
        entry = header.read(request.key, write.data, self._now())
        return None if entry is None else Hit(entry, self.name, request.key)

    def explained(self, request: Request) -> Plan[Explanation]:
        """Have the sidecar tell how it would answer. Raises TierError."""
        self._check()
        told = yield from self._ask("explain", request_told(request))
        explanation = Explanation()
        explanation.key, explanation.tier = request.key, told["tier"]
        explanation.similarity, explanation.age, explanation.remaining = (
            told[name] for name in ("similarity", "age", "remaining")
        )
        explanation.said = [(str(tier), str(said)) for tier, said in told["said"]]
        explanation.reported = dict(told["reported"])
        explanation.neighbours = [
            Neighbour(key, near, text, None, score) for key, near, text, score in told["neighbours"]
        ]
        return explanation

    # Writing

    def put(self, request: Request, entry: Entry, evidence: Evidence | None) -> Plan[None]:  # noqa: ARG002 - it kept its own
        """Send an entry behind the caller; a pinned one at once.

        Raises TierError("full") where too much waits, and what the sidecar says of a pinned one.
        """
        self._check()
        log, born = self._positions.there(entry.born)
        if not born or not log:
            raise TierError("unmarked", "nothing is heard of invalidations: what is loaded is not kept in the sidecar")
        told = {"request": request_told(request), "entry": entry_told(entry) | {"born": born}}
        op: Op = ("put", told | {"log": log})
        if entry.is_pinned:
            if not (yield from self._ask(*op)):
                raise TierError(
                    "unpinned", "the sidecar does not keep it: it is over its max_value, or its mode is off"
                )
            return
        facets = (entry.facets or request.facets).of(self._namespace)
        life = min(entry.life, entry.limit, LOST_SECONDS)  # while it waits here
        data = header.write(request.key, entry, facets, life, self._now())
        pairs = facets.pairs(request.key)
        self._outbox.put(Write(request.key, op, data, entry.born, pairs, len(data) + 512))

    def _send(self, batch: list[Write[Op]]) -> Sent:
        replies = self._link.exchange([write.what for write in batch], self._patience)
        return [told if isinstance(told, TierError) else bool(told) for told in replies.values]

    def _ask(self, name: str, told: Any, timeout: float = PATIENT_SECONDS) -> Plan[Any]:
        """Have one operation carried out. Raises TierError."""
        replies = yield Exchange(self._link, [(name, told)], timeout)
        if isinstance(replies.values[0], TierError):
            raise replies.values[0]
        return replies.values[0]

    def _check(self) -> None:
        if self._is_closed:
            raise TierError("closed", "the sidecar tier was closed")

    # The log

    def remove(self, facet: str, value: str | bytes, position: int) -> Plan[int]:  # noqa: ARG002 - the sidecar gives its own
        """Invalidate durably, as `mark` does; how many entries went."""
        _, removed = yield from self.mark([(facet, value)])
        return removed

    def mark(self, pairs: list[Pair]) -> Plan[tuple[int, int]]:
        """Invalidate durably; the marks' position, and how many entries went. Raises TierError."""
        self._check()
        told = yield from self._ask("mark", [list(pair) for pair in pairs])
        log, there, dropped = told
        positions = self._positions
        if not positions.log:
            positions.turn_to(log, there)
        position = positions.hear(there) if log == positions.log else self.beyond(positions.latest)
        for facet, value in pairs:
            self._marks.mark(facet, value, position)
        self._outbox.drop(pairs, position)
        return position, int(dropped)

    def count(self, pairs: list[Pair]) -> Plan[int]:
        """Return how many entries an invalidation of these would drop. Raises TierError."""
        return int((yield from self._ask("count", [list(pair) for pair in pairs])))

    def forget_near(self, text: str, similarity: float, whose: Pair | None, *, dry_run: bool) -> Plan[int]:
        """Invalidate what is near to a text, and has a facet value where one is given. Raises TierError."""
        told = {"text": text, "similarity": similarity, "whose": whose, "dry_run": dry_run}
        return int((yield from self._ask("forget_near", told, timeout=60.0)))

    def lacking(self, keys: list[bytes], pair: Pair) -> Plan[list[bytes]]:  # noqa: ARG002 - the sidecar has looked
        """Return none: who invalidates by a text has the sidecar do it."""
        return []
        yield

    def facets_of(self, key: bytes) -> Plan[Facets | None]:
        """Return the facets of the entry of a key; None where there is none. Raises TierError."""
        told = yield from self._ask("find", request_told(Request(key, mode="exact")))
        if not isinstance(told, dict) or "value" not in told:
            return None
        return facets_of(told["facets"], self._namespace) if "facets" in told else Facets(self._namespace)

    def switch(self, mode: Mode) -> Plan[None]:
        """Set the mode of all who use the namespace. Raises TierError."""
        yield from self._ask("switch", mode)

    def position(self) -> int:
        """Return the latest position that was heard of."""
        return self._positions.latest

    def beyond(self, known: int) -> int:
        """Return a position of this process alone, after all births so far."""
        return Between(max(known, self._positions.latest))

    def join(self) -> Changes:
        """Begin to follow the control stream. Raises TierError."""
        return self._following.join()

    def follow(self, since: int) -> Changes:  # noqa: ARG002 - the stream knows what it has told
        """Return what came; waits some tenths of a second for it. Raises TierError."""
        return self._following.follow()

    def rest(self) -> None:
        """Let the follower wait no longer."""
        self._following.rest()

    def attach(self, key: bytes, vector: Any, embedder: str) -> None:
        """Do nothing: the sidecar embeds what it is sent."""

    def rows(self, embedder: str) -> Iterator[NoReturn]:  # noqa: ARG002 - the index is the sidecar's
        """Return none: the index is the sidecar's."""
        return iter(())

    # Reports and sums

    def serve(self, taken: Taken, put_back: Callable[[Taken], None]) -> None:
        """Send the ids of answers, behind the caller."""
        self._owed.name(taken.names)
        try:
            self._outbox.pay()
        except TierError:
            put_back(Taken([], taken.names))

    def serve_now(self, taken: Taken) -> None:
        """Send the ids of answers. Raises TierError."""
        if taken.names:
            run(self._ask("names", [[name, key] for name, key in taken.names.items()]))

    def report(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """Report an answer as wrong. Raises TierError."""
        reported: dict[str, Any] = run(self._ask("wrong", dict(told)))
        return reported

    def blast(self, key: bytes, tenant: str | None) -> list[Served]:
        """Return who was given the answer of a call nearly. Raises TierError."""
        return [Served(*row) for row in run(self._ask("blast", {"key": key, "tenant": tenant}))]

    def book(self, day: str, amounts: Mapping[str, float]) -> None:
        """Send sums of a day, behind the caller. Raises TierError where too much is owed already."""
        self._owed.book(day, amounts)
        self._outbox.pay()

    def booked(self, since_day: str) -> dict[tuple[str, str], float]:
        """Return what all have booked, by day and name, from a day on. Raises TierError."""
        self._owed.send()
        return {(day, name): float(amount) for day, name, amount in run(self._ask("booked", since_day))}

    def tallied(self, days: list[str]) -> dict[tuple[str, str], float]:  # noqa: ARG002 - the policy is the sidecar's
        """Return nothing: what is learned is the sidecar's."""
        return {}

    # Life

    def stats(self) -> Mapping[str, int | float]:
        """Return what this process sent, lost and has waiting; what the sidecar holds it says itself."""
        return dict(self._outbox.sizes()) | {"following": int(self._following.is_on)}

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until the sidecar has all that was put; False where the time was up, or something was lost."""
        return self._outbox.flush(timeout)

    def close(self) -> None:
        """Send what waits, for some seconds at most, and close every connection."""
        if self._is_closed:
            return
        forking().discard(self)
        self._patience = _LAST_SECONDS  # of each message that is sent from now on
        self._outbox.close(_CLOSE_SECONDS)
        self._is_closed = True
        self.rest()
        self._link.close()

    def before_fork(self) -> None:
        """Nothing to hold: what is under way goes on in the parent alone."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Begin anew, with connections and a queue of one's own."""
        self._link.after_fork()
        self._outbox.after_fork()
        self._following.after_fork()
