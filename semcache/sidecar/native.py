"""The cache service: the operations of programs that have their own memory tier here and all else in this process.

Laws: a lookup asks the tiers as the cache's own callers do, and loads nothing; what it learned on the way is kept for
the put that follows, so that nothing is embedded twice and the policy learns of other programs' loads too; what came
from another log is not kept, as its birth tells nothing here; one operation's failure is its own.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from copy import copy
from math import isfinite
from threading import Lock
from typing import Any

from msgpack import packb, unpackb

from semcache.cache import Cache
from semcache.chain import Chain
from semcache.commands import stricter
from semcache.errors import ConfigurationError, DecodeError, InvalidationError, SemcacheError, TierError
from semcache.explain import explain
from semcache.finding import find
from semcache.keep import keep
from semcache.keys import of_embedder
from semcache.ledger import Taken, tenant_digest
from semcache.lookup import compare
from semcache.marks import Pair
from semcache.model import SWITCHED, Evidence, Facets, Hit, Miss, Request
from semcache.plan import Plan, arun, run
from semcache.reported import Reported
from semcache.seed import seat
from semcache.sidecar.lenient import Lenient, counted
from semcache.sidecar.reach import Reach
from semcache.sidecar.says import says_of
from semcache.stores.wire import (
    LONGEST_NAME,
    MOST_NAMES,
    decision_told,
    entry_of,
    found_told,
    key_of,
    neighbour_told,
    number_of,
    pair_of,
    request_of,
    text_of,
)  # fmt: skip

logger = logging.getLogger("semcache.sidecar")

# Evidence of misses whose loads have not been put yet.
_MOST_EVIDENCE = 4096
_MOST_OPERATIONS = 1024
# Sums that were booked: who was not answered sends them again.
_MOST_BOOKED = 4096
_MOST_TEXT = 1 << 20
_UNKEPT = "the store could not keep it: try again when it is there"
_LONGEST_NUMBER = 64
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)

Answered = list[Any]


class Native:
    """Carries out what programs send, on one cache."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._evidence: OrderedDict[bytes, Evidence] = OrderedDict()
        self._booked: OrderedDict[bytes, None] = OrderedDict()
        self._booking = Lock()
        # A program's answers are its own: what of them cannot be read here is given all the same.
        self._codec = Lenient()
        self._lenient: Chain | None = None
        self.counts: Counter[tuple[str, str]] = Counter()
        self._operations: Mapping[str, Callable[[Reach, Any], Plan[Any]]] = {
            "find": self._find, "put": self._put, "mark": self._mark, "count": self._count, "explain": self._explain,
            "forget_near": self._forget_near, "switch": self._switch, "names": self._names,
        }  # fmt: skip
        # What may wait for a file or a server in the calling thread.
        self._slow: Mapping[str, Callable[[Reach, Any], Any]] = {
            "book": self._book, "booked": self._booked_since, "wrong": self._wrong, "blast": self._blast
        }  # fmt: skip

    async def answer(self, body: bytes, reach: Reach) -> bytes:
        """Carry out the operations of a message. Raises DecodeError for what is no message."""
        try:
            told = unpackb(body, strict_map_key=False, unicode_errors="surrogatepass", **counted(body))
        except (ValueError, TypeError, RecursionError) as error:  # a map may have a map for a key
            raise DecodeError(f"the message is no msgpack: {error}") from None
        if not isinstance(told, list) or not 0 < len(told) <= _MOST_OPERATIONS:
            raise DecodeError(f"a message is a list of 1 to {_MOST_OPERATIONS} operations")
        if len(told) == 1:
            answers = [await self._one(told[0], reach)]
        else:
            answers = list(await asyncio.gather(*(self._one(one, reach) for one in told)))
        packed: bytes = packb(answers, unicode_errors="surrogatepass")
        return packed

    async def _one(self, told: Any, reach: Reach) -> Answered:
        """Carry out one operation; what went wrong stands in its answer."""
        name = str(told[0]) if isinstance(told, list) and len(told) == 2 else ""  # noqa: PLR2004 - its name, what it takes
        outcome = "failed"
        try:
            if name in self._operations:
                value = await arun(self._operations[name](reach, told[1]))
            elif name in self._slow:
                value = await asyncio.to_thread(self._slow[name], reach, told[1])
            else:
                known = ", ".join((*self._operations, *self._slow))
                return [False, ["unknown", f"an operation is a pair of its name and what it takes; there are {known}"]]
            outcome = "hit" if name == "find" and "value" in value else "miss" if name == "find" else "done"
        except SemcacheError as error:
            # How its names are kept is told to no tenant: it would know by what they are laid over.
            is_hidden = reach.is_apart and isinstance(error, InvalidationError)
            return [False, [_reason(error), _UNKEPT if is_hidden else str(error)]]
        except TimeoutError:
            return [False, ["late", "no answer in time"]]
        except Exception:
            logger.exception("the operation %r failed", name)
            return [False, ["failed", "something of ours failed; the sidecar's log says what"]]
        else:
            return [True, value]
        finally:
            if name in self._operations or name in self._slow:
                self.counts[name, outcome] += 1

    # Lookups

    @property
    def _chain(self) -> Chain:
        """The cache's chain as it is now, for another policy may have been adopted, with a codec that fails at none."""
        chain = self._cache.chain
        if self._lenient is None or self._lenient.labelling is not chain.labelling:
            self._lenient = copy(chain)
            self._lenient.codec = self._codec
        return self._lenient

    def _request(self, reach: Reach, told: Any) -> Request:
        """Return what is asked, in the scope of our embedder. Raises DecodeError."""
        cache, request = self._cache, request_of(told)
        _check(reach, request.facets)
        request = reach.request(request)
        request.mode = stricter(request.mode, cache.mode)
        request.says = says_of(request.facets.function)
        if request.text is not None and len(request.text) > _MOST_TEXT:
            raise DecodeError(f"a text is over {_MOST_TEXT} characters")
        if request.scope is None or not cache.has_near or request.mode == "exact":
            request.scope = None
            return request
        if cache.semantic is None:  # the owner's embedder is laid over it there
            return request
        request.embedder = cache.embedder_identity
        if request.embedder:
            request.scope = of_embedder(request.scope, request.embedder)
        else:
            request.scope, request.exact_only = None, cache.semantic.unready()
        return request

    def _where(self) -> dict[str, Any]:
        log = self._cache.log
        return {"log": log.name, "position": int(log.position())}

    def _find(self, reach: Reach, told: Any) -> Plan[dict[str, Any]]:
        """Find an answer, without loading it."""
        cache, request = self._cache, self._request(reach, told)
        where = self._where()  # before anything is found: what is loaded after that is born no earlier
        if request.mode in ("off", "refresh"):
            return {"reason": f"mode: {request.mode}"} | where
        event = cache.event(request)
        found, _, evidence = yield from find(self._chain, request, event, audits=True)
        cache.recorder.relay(event, is_told=not reach.is_trusted)  # a worker tells of its own lookups
        if found is None or not reach.has(found.entry.facets):
            found, audited = None, None if evidence is None else evidence.audited
            if evidence is not None:
                self._remember(request.key, evidence)
            hit = None if audited is None else self._own(reach, request, audited[0])
            return found_told(Miss(event.reason, evidence), hit) | where
        return found_told(self._own(reach, request, found)) | where

    @staticmethod
    def _own(reach: Reach, request: Request, hit: Hit) -> Hit:
        """Return a hit in the words of who asks; facets that are those of the request are not told again."""
        entry = hit.entry
        entry.facets = None if entry.facets == request.facets else reach.told(entry.facets)
        if hit.similarity is not None:
            hit.key = reach.key(hit.key)
        return hit

    def _remember(self, key: bytes, evidence: Evidence) -> None:
        self._evidence[key] = evidence
        if len(self._evidence) > _MOST_EVIDENCE:
            self._evidence.popitem(last=False)

    def _put(self, reach: Reach, told: Any) -> Plan[bool]:
        """Keep what a program has loaded, and learn of it."""
        if not isinstance(told, dict):
            raise DecodeError("a put is a request, an entry and a log")
        cache, request, entry = self._cache, self._request(reach, told.get("request")), entry_of(told.get("entry"))
        _check(reach, entry.facets)
        evidence = self._evidence.pop(request.key, None)
        where = self._where()
        if told.get("log") != where["log"] or request.mode == "off":
            return False
        if len(entry.value) > cache.chain.max_value_bytes:
            return False
        entry.born = min(entry.born, where["position"])
        if entry.facets is not None:
            entry.facets = reach.facets(entry.facets)
        if entry.is_pinned:
            yield from seat(cache.chain, request, entry)
            return True
        event = cache.event(request)
        yield from keep(cache.chain, request, entry, evidence, event, exact=True)
        fault = next((fault for fault in event.faults if fault[0] != "memory"), None)
        if fault is not None:
            raise TierError(fault[1], fault[2])
        yield from keep(cache.chain, request, entry, evidence, event, exact=False)
        yield from compare(cache.chain, request, entry, evidence, None)
        return True

    def _explain(self, reach: Reach, told: Any) -> Plan[dict[str, Any]]:
        """Tell how a request would be answered now."""
        cache, request = self._cache, self._request(reach, told)
        if (yield from self._is_anothers(reach, request.key)):
            return {
                "tier": None, "similarity": None, "age": None, "remaining": None, "decision": None, "reported": [],
                "said": [(tier.name, "miss") for tier in cache.tiers], "neighbours": [],
            }  # fmt: skip
        found = yield from explain(
            cache.chain.tiers, self._codec.decode, cache.blocks, request, is_closed=cache.is_closed
        )
        return {
            "tier": found.tier, "similarity": found.similarity, "age": found.age, "remaining": found.remaining,
            "said": found.said, "decision": decision_told(found.decision),
            "reported": [(reach.key(key), why) for key, why in found.reported.items()],
            "neighbours": [[reach.key(near.key), *neighbour_told(near)[1:]] for near in found.neighbours],
        }  # fmt: skip

    # What is said to all

    def _mark(self, reach: Reach, told: Any) -> Plan[list[Any]]:
        """Invalidate, durably: the log, the mark's position in it, and how many entries went."""
        if not _list(told):
            raise DecodeError("a mark is of some facet values")
        pairs = yield from self._pairs(reach, told)
        if not pairs:
            return [*self._where().values(), 0]
        position, dropped = yield from self._cache.mark(pairs)
        return [self._cache.log.name, int(position), dropped]

    def _pairs(self, reach: Reach, told: Any) -> Plan[list[Pair]]:
        """Return what is meant, without keys of entries that are another's: who hears of one could name it."""
        listed = _list(told)
        if len(listed) > _MOST_OPERATIONS:
            raise DecodeError(f"over {_MOST_OPERATIONS} facet values")
        pairs: list[Pair] = []
        for own in map(pair_of, listed):
            if not reach.is_trusted and len(own[1]) > LONGEST_NAME:
                raise DecodeError(f"a facet value is over {LONGEST_NAME} characters")
            pair = reach.pair(own)
            is_key = isinstance(pair[1], bytes)
            if not is_key or not (yield from self._is_anothers(reach, pair[1])):  # type: ignore[arg-type]
                pairs.append(pair)
        return pairs

    def _is_anothers(self, reach: Reach, key: bytes) -> Plan[bool]:
        """Say whether an entry of this key stands that is not of who asks."""
        holder = self._cache.store or (self._cache.memory if self._cache.memcached is None else None)
        if not reach.is_apart or holder is None:
            return False
        facets = yield from holder.facets_of(key)
        return facets is not None and not reach.has(facets)

    def _count(self, reach: Reach, told: Any) -> Plan[int]:
        pairs = yield from self._pairs(reach, told)
        return (yield from self._cache.count_of(pairs)) if pairs else 0

    def _forget_near(self, reach: Reach, told: Any) -> Plan[int]:
        told = told if isinstance(told, dict) else {}
        text, similarity, whose = (told.get(name) for name in ("text", "similarity", "whose"))
        if not isinstance(similarity, float | int):
            raise DecodeError("forget_near takes a text, a similarity, a facet value or none, and dry_run")
        whose = (reach.own if reach.is_apart else None) if whose is None else reach.pair(pair_of(whose))
        return (yield from self._cache.forget_near(
            text_of(text, "text", _MOST_TEXT), float(similarity), whose, dry_run=told.get("dry_run") is True
        ))  # fmt: skip

    def _switch(self, reach: Reach, told: Any) -> Plan[None]:
        """Set the mode of all."""
        if reach.is_apart:
            raise TierError("refused", "the mode of all replicas is an operator's to set: semcache mode --sidecar")
        if told not in SWITCHED:
            raise DecodeError("a mode of all is live, shadow, exact or off")
        yield from self._cache.switch_all(told)

    # Reports and sums

    def _names(self, reach: Reach, told: Any) -> Plan[None]:
        """Take the ids of answers, so that they can be reported by these."""
        names = {}
        for pair in _list(told):
            name, key = _list(pair, 2)
            if not isinstance(name, bytes) or len(name) > len(key_of(key)):
                raise DecodeError("an id is told by its digest")
            names[reach.name(name)] = reach.key(key)
        self._cache.ledger.put_back(Taken([], names))
        return
        yield

    def _book(self, reach: Reach, told: Any) -> None:
        """Add what a program's lookups saved and spent, each batch once."""
        for batch in _list(told):
            number, day, amounts = _list(batch, 3)
            if not isinstance(number, bytes) or len(number) > _LONGEST_NUMBER or not isinstance(amounts, dict):
                raise DecodeError(
                    f"what is booked is a number of at most {_LONGEST_NUMBER} bytes, a day and sums by name"
                )
            if not isinstance(day, str) or not _DAY.fullmatch(day):
                raise DecodeError("a day is as 2026-11-27")
            named = {reach.booked(str(name)): number_of(amount, "a sum") for name, amount in amounts.items()}
            if not all(map(isfinite, named.values())):
                raise DecodeError("a sum has an end")
            with self._booking:  # who was not answered may ask again while the first is under way
                if number in self._booked:
                    continue
                self._cache.book(day, {name: amount for name, amount in named.items() if name})
                self._booked[number] = None
                if len(self._booked) > _MOST_BOOKED:
                    self._booked.popitem(last=False)

    def _booked_since(self, reach: Reach, told: Any) -> list[Any]:
        """Return what was booked since a day, by day and name."""
        booked = self._cache.booked(text_of(told, "day"))
        seen = [(day, reach.sum_told(name), amount) for (day, name), amount in booked.items() if reach.sees(name)]
        return [[day, name, amount] for day, name, amount in seen if name]

    def _wrong(self, reach: Reach, told: Any) -> dict[str, Any]:
        """Take a report of a wrong answer."""
        if not isinstance(told, dict):
            raise DecodeError("a report is of a key, a response_id or a text")
        given = {name: told.get(name) for name in ("key", "response_id", "text") if told.get(name) is not None}
        if len(given) != 1:
            raise DecodeError("a report is of one: a key, a response_id or a text")
        is_dropped = told.get("drop") is True
        if "key" in given:
            key = reach.key(key_of(given["key"]))
            if reach.tenant and not self._is_its_own(reach, key, told.get("tenant")):
                return Reported(reason="no answer of that key is known here").told()
            reported = self._cache.report_wrong(key=key, drop=is_dropped)
        elif reach.is_apart:
            raise TierError("refused", "with a token, report an answer by its key, or by its event")
        elif "text" in given:
            text, tenant = text_of(given["text"], "text", _MOST_TEXT), told.get("tenant")
            reported = self._cache.report_wrong(text=text, tenant=tenant, drop=is_dropped)
        else:
            reported = self._cache.report_wrong(response_id=text_of(given["response_id"], "id"), drop=is_dropped)
        return reported.told() | {
            "blocked": [(reach.key(asked), reach.key(stored)) for asked, stored in reported.blocked],
            "closed": [reach.key(key) for key in reported.closed],
            "entries": [reach.key(key) for key in reported.entries],
        }

    def _is_its_own(self, reach: Reach, key: bytes, tenant: Any) -> bool:
        """Say whether a key is none of another's: neither an entry, nor a near match, by who has heard of it."""
        whose = tenant_digest(reach.owner("" if tenant is None else text_of(tenant, "tenant")))
        near = [row for row in self._cache.blast(key) if row.asked == key]
        return not run(self._is_anothers(reach, key)) and all(row.tenant == whose for row in near)

    def _blast(self, reach: Reach, told: Any) -> list[Any]:
        """Return who was given an answer nearly."""
        if not isinstance(told, dict):
            raise DecodeError("a blast radius is of a key")
        tenant = told.get("tenant")
        whose = None if tenant is None else reach.owner(text_of(tenant, "tenant"))
        if whose is None and reach.tenant:
            whose = reach.owner("")  # who has heard of another's key is told nothing of it
        rows = self._cache.blast(reach.key(key_of(told.get("key"))), whose)
        return [row._replace(asked=reach.key(row.asked), stored=reach.key(row.stored)) for row in rows]


def _check(reach: Reach, facets: Facets | None) -> None:
    """See that what a program calls its entries by has bounds; a worker has seen to it. Raises DecodeError."""
    if reach.is_trusted or facets is None:
        return
    names = (*facets.tags, *facets.documents)
    if max(len(facets.tags), len(facets.documents)) > MOST_NAMES:
        raise DecodeError(f"over {MOST_NAMES} tags or documents")
    longest = max(map(len, (facets.function, facets.version, facets.tenant, facets.model, *names)))
    if longest > LONGEST_NAME:
        raise DecodeError(f"a name is over {LONGEST_NAME} characters")


def _list(told: Any, length: int | None = None) -> list[Any]:
    if not isinstance(told, list) or length not in (None, len(told)):
        raise DecodeError(f"a list of {'some' if length is None else length} was expected")
    return told


def _reason(error: SemcacheError) -> str:
    if isinstance(error, TierError):
        return error.reason
    kinds = {DecodeError: "unreadable", InvalidationError: "unkept", ConfigurationError: "unset"}
    return next((reason for kind, reason in kinds.items() if isinstance(error, kind)), "failed")
