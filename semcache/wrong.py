"""Wrong answers: what is done where somebody says that one was, and who else was given it.

Laws:
- a near match that is reported is never served to that text again, in any process, nor after a restart (`blocks`); an
  exact answer goes everywhere, as by `invalidate`; an entry stays for its own text unless that is asked for;
- only an argument that means nothing raises: what is not found, and what the store could not keep, the result says;
- this process acts on a report whatever the store says;
- a row tells no tenant's name, and of one tenant's call no other tenant's rows are told: an entry near matches may come
  from is one tenant's, or of those who share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from semcache.accounts import Accounts
from semcache.blocks import KEEP_SECONDS, MAX_BLOCKS, Block, Blocks, words_of
from semcache.commands import Commands, key_bytes
from semcache.context import as_tenant
from semcache.errors import ConfigurationError, InvalidationError, SemcacheError
from semcache.events import Event
from semcache.ledger import Ledger, Served, Taken, id_digest, selected, tenant_digest
from semcache.model import SHARED, Tenant
from semcache.plan import Plan, run
from semcache.policy import Policy
from semcache.policy.label import Label, Source
from semcache.reported import Reported

if TYPE_CHECKING:
    from semcache.stores.redis_reported import Reporting
    from semcache.stores.reported import FileReports
    from semcache.tiers.disk import DiskTier
    from semcache.tiers.redis import RedisTier
    from semcache.tiers.sidecar import SidecarTier

# How near a text of the index is to itself: its vector comes back as float16.
_ITSELF = 0.999
_PAGE = 500
# So many old blocks are looked at with each report.
_TIDIED = 32
_LOOKUPS = ("hit", "miss", "refresh", "bypass")


@dataclass(slots=True)
class _Found:
    """What a report means: near matches, entries, and why it may mean nothing."""

    near: list[Served] = field(default_factory=list)
    entries: list[bytes] = field(default_factory=list)
    reason: str = ""
    # What ranked a near match, where that is known.
    score: float | None = None
    # Whether each of the near matches was wrong, not only one of them.
    is_sure: bool = True


class Reports(Commands, Accounts):
    """The part of a Cache that takes reports, and keeps the ledger; the rest of it gives it what it needs."""

    disk: DiskTier | None
    redis: RedisTier | None
    policy: Policy
    blocks: Blocks
    ledger: Ledger
    tenant_of: Callable[[Tenant | None], Tenant | None]

    @property
    def _kept(self) -> FileReports | Reporting | None:
        kept = self.disk or self.redis  # a sidecar keeps its own
        return None if kept is None else kept.reports

    def report_wrong(
        self, *, hit: Event | None = None, key: bytes | str | None = None, response_id: str | None = None,
        text: str | None = None, tenant: Tenant | None = None, drop: bool = False,
    ) -> Reported:  # fmt: skip
        """Say that an answer was wrong, by one of: its event, the key of its call, its id, or the text asked.

        `hit` is what `semcache.last()` or a trace's `lookups` gave, `key` bytes or hex as events show it, `response_id`
        the id of a client's answer (`chatcmpl-...`), `text` what was asked, by `tenant` where it is given. A near match
        is blocked: the entry is not served to that text again, nor to one as near to it as to the entry's own
        (docs/trust.md); with `drop` the entry goes as well. An exact answer is invalidated, everywhere. What is not
        found, and what the store could not keep, the result says. Raises ConfigurationError for other arguments.
        """
        if self.sidecar is not None:
            return self._report_there(self.sidecar, hit, key, response_id, text, tenant, drop=drop)
        found = self._meant(hit, key, response_id, text, tenant)
        pairs = {(row.stored, row.words): row for row in found.near}
        near = list(pairs.values())
        reported = Reported(reason=found.reason)
        if near:
            fresh = [row for row in near if not self.blocks.knows(row.stored, row.words)]  # said twice it is one fact
            reported = self._block(near, reported)
            learned = self._teach(fresh, found.score) if found.is_sure or len(near) == 1 else 0
            reported = replace(reported, learned=learned)
        entries = list(dict.fromkeys([*found.entries, *(row.stored for row in near if drop)]))
        if entries:
            reported = self._drop(entries, reported)
        if near:
            self._tidy()
        for asked, stored in [*reported.blocked, *((key, None) for key in reported.entries)]:
            told = "wrong near match" if stored else "wrong answer"
            self.recorder.tell(Event("reported", namespace=self.namespace, key=asked, neighbour=stored, reason=told))
        return reported

    async def areport_wrong(
        self, *, hit: Event | None = None, key: bytes | str | None = None, response_id: str | None = None,
        text: str | None = None, tenant: Tenant | None = None, drop: bool = False,
    ) -> Reported:  # fmt: skip
        """Report as `report_wrong` does, without blocking the loop."""
        import asyncio

        return await asyncio.to_thread(
            self.report_wrong, hit=hit, key=key, response_id=response_id, text=text, tenant=tenant, drop=drop
        )

    def blast(self, key: bytes | str, tenant: Tenant | None = None) -> list[Served]:
        """Return who was given the answer of a call nearly, in the last seven days, the latest first.

        `key` is the entry's, or that of any call it was given to, as bytes or hex. Texts are redacted, and tenants told
        by a digest; with `tenant`, or inside a context of one, only that tenant's are told. The latest 10 seconds of
        other processes may be missing. Raises TierError where the store cannot be asked.
        """
        if self.sidecar is not None:
            owner = self.tenant_of(as_tenant(tenant))
            return self.sidecar.blast(key_bytes(key), None if owner is None or owner is SHARED else str(owner))
        wanted = self._of_tenant(tenant)
        asked = key_bytes(key)
        entries = dict.fromkeys([asked, *(row.stored for row in self._served({"asked": asked} | wanted))])
        rows = [row for stored in entries for row in self._served({"stored": stored} | wanted)]
        return sorted(rows, key=lambda row: row.at, reverse=True)

    async def ablast(self, key: bytes | str, tenant: Tenant | None = None) -> list[Served]:
        """Return what `blast` does, without blocking the loop."""
        import asyncio

        return await asyncio.to_thread(self.blast, key, tenant)

    def _report_there(
        self, sidecar: SidecarTier, hit: Event | None, key: bytes | str | None, response_id: str | None,
        text: str | None, tenant: Tenant | None, *, drop: bool,
    ) -> Reported:  # fmt: skip
        """Have a sidecar take a report; what goes there goes here at once."""
        self._check_given(hit, key, response_id, text, tenant)
        asked = None if key is None else key_bytes(key)
        if hit is not None:
            self._check_event(hit)
            asked = hit.key
            if hit.kind == "bypass" or hit.failed or not asked:
                return Reported(reason=_PAST)
        owner = self.tenant_of(as_tenant(tenant))
        told = {"key": asked, "response_id": response_id, "text": text, "drop": drop}
        whose = None if owner is None or owner is SHARED else str(owner)
        if hit is not None and hit.near is not None:
            whose = hit.near.tenant or None
        try:
            reported = Reported.read(sidecar.report(told | {"tenant": whose}))
        except SemcacheError as error:
            if asked is not None:
                run(self.forget_here([("key", asked)]))
            return Reported(is_durable=False, reason=f"the sidecar could not be told, report it again: {error}")
        for gone in reported.entries:
            if self.memory is not None:
                run(self.memory.remove("key", gone, self.log.position() + 1))
            self.chain.flights.close("key", gone)
        return reported

    # The ledger

    def _book(self) -> None:
        super()._book()
        kept = self._kept if self.sidecar is None else self.sidecar
        if kept is None or not self.books:
            return
        taken = self.ledger.take()
        if taken.rows or taken.names:
            try:
                kept.serve(taken, self.ledger.put_back)
            except SemcacheError:
                self.ledger.put_back(taken)

    def _served(self, wanted: dict[str, bytes]) -> list[Served]:
        """Return the rows that have some values, once what waits here is in the store. Raises TierError."""
        kept = self._kept
        if kept is None:
            return selected(self.ledger.standing().rows, wanted)
        self._settle_rows(kept)
        return kept.served(wanted)

    def named(self, response_id: str) -> bytes | None:
        """Return the key of the entry whose answer has an id, of the last seven days. Raises TierError."""
        kept = self._kept
        if kept is None:
            return self.ledger.standing().names.get(id_digest(response_id))
        self._settle_rows(kept)
        return kept.named(response_id)

    def _settle_rows(self, kept: FileReports | Reporting) -> None:
        taken: Taken = self.ledger.take()
        if taken.rows or taken.names:
            try:
                kept.serve_now(taken)
            except SemcacheError:
                self.ledger.put_back(taken)
                raise

    def _of_tenant(self, tenant: Tenant | None) -> dict[str, bytes]:
        owner = self.tenant_of(as_tenant(tenant))
        return {} if owner is None or owner is SHARED else {"tenant": tenant_digest(str(owner))}

    # What a report means

    @staticmethod
    def _check_given(
        hit: Event | None, key: bytes | str | None, response_id: str | None, text: str | None, tenant: Tenant | None
    ) -> None:
        given = [name for name, value in zip(_GIVEN, (hit, key, response_id, text), strict=True) if value is not None]
        if len(given) != 1:
            nothing = " (semcache.last() is None where this thread or task has asked nothing)" if not given else ""
            raise ConfigurationError(f"report_wrong takes one of {'=, '.join(_GIVEN)}=; got {len(given)}{nothing}")
        if tenant is not None and text is None:
            raise ConfigurationError("tenant= says whose text= it was: it goes with nothing else")

    def _meant(
        self, hit: Event | None, key: bytes | str | None, response_id: str | None, text: str | None,
        tenant: Tenant | None,
    ) -> _Found:  # fmt: skip
        self._check_given(hit, key, response_id, text, tenant)
        try:
            if hit is not None:
                return self._of_event(hit)
            if key is not None:
                return self._of_key(key_bytes(key))
            if response_id is not None:
                return self._of_response(response_id)
            return self._of_text(text, tenant)
        except ConfigurationError:
            raise
        except SemcacheError as error:
            return _Found(reason=f"the store or the index could not be asked: {error}")

    def _check_event(self, event: Event) -> None:
        if not isinstance(event, Event) or event.kind not in _LOOKUPS:
            raise ConfigurationError(
                f"hit= is the event of a lookup, as semcache.last() and trace().lookups give it; got {event!r}"
            )
        if event.namespace != self.namespace:
            raise ConfigurationError(
                f"that lookup was of namespace {event.namespace!r}: report it to the cache that answered it"
            )

    def _of_event(self, event: Event) -> _Found:
        self._check_event(event)
        if event.kind == "bypass" or event.failed or not event.key:
            return _Found(reason=_PAST)
        if event.neighbour is None:
            return _Found(entries=[event.key])
        near = event.near
        if near is None:  # it was read along with somebody else's
            return self._of_key(event.key)
        row = Served(
            self.clock.time(), event.key, event.neighbour, event.similarity or 0.0, near.text, near.neighbour,
            words_of(near.text), tenant_digest(near.tenant), near.family,
        )  # fmt: skip
        return _Found([row], score=near.score)

    def _of_key(self, key: bytes) -> _Found:
        near = self._served({"asked": key})
        stands = run(self.count_of([("key", key)])) > 0
        reason = "" if near or stands else "no answer of that key is known here: none stands, and none was given nearly"
        return _Found(near, [key] if stands else [], reason)

    def _of_response(self, response_id: str) -> _Found:
        if not isinstance(response_id, str) or not response_id:
            raise ConfigurationError(f"response_id= is the id of a client's answer, its `.id`; got {response_id!r}")
        stored = self.named(response_id)
        if stored is None:
            return _Found(reason=f"no answer with the id {response_id!r} was loaded or given in the last seven days")
        # Who loaded it and who was given it nearly have one id: the report may be of any of them.
        near = [row for row in self._served({"stored": stored}) if row.response_id == response_id]
        return _Found(near, [stored], is_sure=False)

    def _of_text(self, text: object, tenant: Tenant | None) -> _Found:
        if not isinstance(text, str) or not text:
            raise ConfigurationError(f"text= is text; got {text!r}")
        if self.semantic is None:
            raise ConfigurationError("report_wrong(text=) looks into the index: give the cache an embedder=")
        words, owner = words_of(text), self.tenant_of(as_tenant(tenant))
        near = self._served({"words": words} | self._of_tenant(tenant))
        rows = run(self.semantic.within(text, _ITSELF))
        keys = [row.key for row in rows if words_of(row.text) == words]
        holders = (self.disk or self.redis, self.memory) if owner is not None and owner is not SHARED else ()
        for holder in holders:
            others = set(run(_lacking(holder, keys, str(owner)))) if keys and holder is not None else ()
            keys = [key for key in keys if key not in others]
        reason = "" if near or keys else "no answer to that text is known here: none stands, and none was given nearly"
        return _Found(near, keys, reason)

    # What is done

    def _block(self, near: list[Served], reported: Reported) -> Reported:
        now = self.clock.time()
        blocks = [Block(row.stored, row.words, row.similarity, now) for row in near]
        self.blocks.take(blocks)
        kept, is_durable, reason = self._kept, True, reported.reason
        if kept is not None:
            try:
                kept.block(blocks)
            except Exception as error:  # noqa: BLE001 - whatever the store says, this process has blocked it
                is_durable, reason = False, f"the store could not keep it, report it again: {error}"
                self.recorder.fault(self.store.name if self.store else "", "unreported", error)
        return replace(
            reported,
            blocked=tuple((row.asked, row.stored) for row in near),
            closed=tuple(dict.fromkeys(row.stored for row in near if self.blocks.is_closed(row.stored))),
            is_durable=is_durable, reason=reason,
        )  # fmt: skip

    def _drop(self, entries: list[bytes], reported: Reported) -> Reported:
        dropped, is_durable, reason = 0, reported.is_durable, reported.reason
        try:
            dropped = self._drop_all(entries)
        except InvalidationError as error:
            is_durable, reason = False, str(error)
        return replace(
            reported, entries=tuple(entries), dropped=dropped, is_durable=is_durable, reason=reason
        )  # fmt: skip

    def _drop_all(self, keys: list[bytes]) -> int:
        pages = (keys[at : at + _PAGE] for at in range(0, len(keys), _PAGE))
        return sum(run(self.mark([("key", key) for key in page]))[1] for page in pages)

    def _teach(self, near: Iterable[Served], score: float | None) -> int:
        """Tell the policy, where it learns; how many labels it took."""
        learn = getattr(self.policy, "learn", None)
        if learn is None:
            return 0
        taken = 0
        for row in near:
            ranked = row.similarity if score is None else score
            label = Label(
                row.family, row.asked, row.stored, row.text, row.neighbour, row.similarity, ranked, is_right=False,
                source=Source.REPORT,
            )  # fmt: skip
            try:
                learn(label)
            except Exception as error:  # noqa: BLE001 - a policy may be the user's own
                self.recorder.fault("policy", "learn", error)
            else:
                taken += 1
        return taken

    def _tidy(self) -> None:
        """Let old blocks go whose entries are gone; of too many the oldest, and their entries first."""
        listed = self.blocks.listed()
        over = listed[: max(0, len(listed) - MAX_BLOCKS)]
        before = self.clock.time() - KEEP_SECONDS
        old = [block for block in listed[len(over) : len(over) + _TIDIED] if block.written < before]
        try:
            if over:
                self._drop_all(list(dict.fromkeys(block.stored for block in over)))
            gone = over + [block for block in old if not run(self.count_of([("key", block.stored)]))]
            if gone and self._kept is not None:
                self._kept.unblock(gone)
        except Exception as error:  # noqa: BLE001 - the next report tries again
            self.recorder.fault(self.store.name if self.store else "", "unreported", error)
        else:
            self.blocks.drop(gone)


_PAST = "it went by the cache, or failed: no answer of it is kept"
_GIVEN = ("hit", "key", "response_id", "text")


def _lacking(holder: Any, keys: list[bytes], tenant: str) -> Plan[list[bytes]]:
    found: list[bytes] = yield from holder.lacking(keys, ("tenant", tenant))
    return found
