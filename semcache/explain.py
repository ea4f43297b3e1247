"""Explain: how a request would be answered now, told for people.

Every tier that the request's mode lets a lookup ask is asked, also behind a hit; nothing is loaded or filled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from semcache.blocks import Blocks
from semcache.model import Decision, Hit, Miss, Neighbour, Request
from semcache.plan import Plan
from semcache.tier import Breaker, Tier


@dataclass(slots=True)
class Explanation:
    """Which tier would answer, and what each of the others said.

    `said` is (tier, "hit" | "miss" | the reason). `similarity` and `decision` are of the best neighbour, served or not,
    and `neighbours` the nearest rows of the scope, nearest first; `cut` is what it was held against. `reported` says
    why some of them are not served, by their key: they were reported as wrong.
    """

    tier: str | None = None
    key: bytes = b""
    similarity: float | None = None
    age: float | None = None
    remaining: float | None = None
    decision: Decision | None = None
    neighbours: list[Neighbour] = field(default_factory=list)
    reported: dict[bytes, str] = field(default_factory=dict)
    said: list[tuple[str, str]] = field(default_factory=list)

    @property
    def cut(self) -> float | None:
        """The cut that decided on the best neighbour; None where none was asked."""
        return None if self.decision is None else self.decision.cut

    def __str__(self) -> str:
        lines = [f"key {self.key.hex()}: {'hit in ' + self.tier if self.tier else 'miss'}"]
        if self.tier and self.age is not None and self.remaining is not None:
            lines.append(f"  stored {self.age:.0f} s ago, {self.remaining:.0f} s left")
        lines += [f"  {tier}: {said}" for tier, said in self.said]
        if self.decision is not None:
            lines.append(f"  policy: {self.decision.verdict.value}, {self.decision.reason}")
        lines += [
            f"  {near.similarity:.4f}  {_scored(near)}{near.text[:90]!r}{self._skipped(near)}"
            for near in self.neighbours
        ]
        return "\n".join(lines)

    def take(self, name: str, other: Explanation) -> None:
        """Take over what the tiers behind a tier of this name said."""
        self.said += [(f"{name}: {tier}", said) for tier, said in other.said]
        self.decision, self.neighbours, self.reported = other.decision, other.neighbours, other.reported
        if self.tier is None and other.tier is not None:
            self.tier, self.similarity = f"{name}: {other.tier}", other.similarity
            self.age, self.remaining = other.age, other.remaining

    def _skipped(self, neighbour: Neighbour) -> str:
        why = self.reported.get(neighbour.key)
        return "" if why is None else f"  {why}"


def explain(
    tiers: Sequence[tuple[Tier, Breaker]],
    decode: Callable[[bytes], object],
    blocks: Blocks,
    request: Request,
    *,
    is_closed: bool = False,
) -> Plan[Explanation]:
    """Ask every tier that a lookup would ask, and tell what each says; a hit is one only if it can be decoded."""
    explanation = Explanation(key=request.key)
    for tier, breaker in tiers:
        why_not = "not asked: closed" if is_closed else _why_not_asked(tier, breaker, request)
        if why_not is not None:
            explanation.said.append((tier.name, why_not))
            continue
        asks = getattr(tier, "explained", None)  # a sidecar has tiers of its own
        try:
            if asks is not None:
                explanation.take(tier.name, (yield from asks(request)))
                continue
            found = yield from tier.get(request)
            value = decode(found.entry.value) if isinstance(found, Hit) else None
            if isinstance(found, Hit) and request.accepts is not None and not request.accepts(value):
                found = Miss("unsuited: what stands answers another call of this key", found.evidence)
        except Exception as error:  # noqa: BLE001 - what a tier raises is what there is to tell
            explanation.said.append((tier.name, f"failed: {error!r}"))
            continue
        if found.evidence is not None:
            explanation.decision = found.evidence.decision
            explanation.neighbours = found.evidence.neighbours
            explanation.reported = _reported(blocks, request, found.evidence.neighbours)
        if isinstance(found, Hit):
            explanation.said.append((tier.name, "hit"))
            if explanation.tier is None:
                explanation.tier, explanation.similarity = tier.name, found.similarity
                explanation.age, explanation.remaining = found.entry.age, found.entry.life
        else:
            explanation.said.append((tier.name, found.reason or "miss"))
    if explanation.tier is None and explanation.decision is not None:
        explanation.similarity = explanation.decision.similarity
    return explanation


def _why_not_asked(tier: Tier, breaker: Breaker, request: Request) -> str | None:
    if request.mode in ("off", "refresh") or (request.mode == "exact" and not tier.exact):
        return f"not asked: mode: {request.mode}"
    if not tier.exact and request.scope is None:
        return f"not asked: {request.exact_only or 'the call has no text'}"
    return "left alone for a while: it failed too often" if breaker.is_open else None


def _reported(blocks: Blocks, request: Request, neighbours: Sequence[Neighbour]) -> dict[bytes, str]:
    why_not = ((near.key, blocks.why_not(near.key, request.text or "", near.similarity)) for near in neighbours)
    return {key: why for key, why in why_not if why is not None}


def _scored(neighbour: Neighbour) -> str:
    return "" if neighbour.score is None else f"score {neighbour.score:.4f}  "
