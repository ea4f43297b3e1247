"""What a sidecar and the caches that use it say to each other: plain data, packed by msgpack.

A message is a list of operations, `[name, {...}]` each, and its answer a list of `[true, value]` or
`[false, [reason, message]]`, in the same order. docs/sidecar.md has them for programs in other languages.

Laws: what comes is believed in nothing: what has another form is a DecodeError, and nothing is done (law 9); a life is
told as seconds that remain, never as a clock reading (law 5).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf, isnan
from typing import Any, get_args

from semcache.errors import DecodeError
from semcache.keys import KEY_BYTES
from semcache.marks import Mark, Pair
from semcache.model import (
    FACETS,
    Decision,
    Entry,
    Evidence,
    Facets,
    Hit,
    Lives,
    Miss,
    Mode,
    Neighbour,
    Request,
    Usage,
    Verdict,
    as_usage,
)  # fmt: skip

_MODES = get_args(Mode)
LONGEST_NAME, MOST_NAMES = 1024, 256
"""Of what a program may call something, and of its tags, or documents."""
# As a worker tells its owner of them: quoted, and beside each what it is called for its tenant's own.
_LONGEST_NAME, _MOST_NAMES = 16 * LONGEST_NAME, 4 * MOST_NAMES
_LONGEST_REASON = 4096
_LONGEST_FAMILY = 64
_FACETS_TOLD = 6
# What an entry says in numbers, in this order; `value` and `facets` stand beside them.
_LIVES = ("life", "age", "load_seconds", "grace", "slide", "limit")


def _checked(told: object, kind: type | tuple[type, ...], what: str) -> Any:
    if not isinstance(told, kind) or (isinstance(told, bool) and kind is not bool):
        raise DecodeError(f"{what} is none: {type(told).__name__}")
    return told


def number_of(told: object, what: str) -> float:
    """Return a number. Raises DecodeError."""
    if type(told) is not float and type(told) is not int:
        raise DecodeError(f"{what} is no number: {type(told).__name__}")
    value = float(told)
    if isnan(value):
        raise DecodeError(f"{what} is no number")
    return value


def key_of(told: object, what: str = "key") -> bytes:
    """Return a key, or a scope. Raises DecodeError."""
    if not isinstance(told, bytes) or len(told) != KEY_BYTES:
        raise DecodeError(f"{what} is {KEY_BYTES} bytes")
    return told


def text_of(told: object, what: str, most: int = _LONGEST_NAME) -> str:
    """Return a name. Raises DecodeError."""
    text: str = _checked(told, str, what)
    if len(text) > most:
        raise DecodeError(f"{what} is over {most} characters")
    return text


def facets_told(facets: Facets) -> list[Any]:
    """Return facets as they are sent: function, version, tenant, model, tags, documents."""
    return [facets.function, facets.version, facets.tenant, facets.model, facets.tags, facets.documents]


def facets_of(told: object, namespace: str = "") -> Facets:
    """Return facets as they were sent. Raises DecodeError."""
    # Of each lookup there are some: what is right is looked at once, what is wrong twice.
    if type(told) is list and len(told) == _FACETS_TOLD:
        function, version, tenant, model, tags, documents = told
        is_right = type(function) is type(version) is type(tenant) is type(model) is str
        if is_right and max(len(function), len(version), len(tenant), len(model)) <= _LONGEST_NAME:
            return Facets(
                namespace, function, version, tenant, model, _names(tags) if tags else (),
                _names(documents) if documents else (),
            )  # fmt: skip
    raise DecodeError(
        f"facets are function, version, tenant and model, texts of at most {_LONGEST_NAME} characters, and lists of "
        "tags and documents"
    )


def _names(told: object) -> tuple[str, ...]:
    listed = _checked(told, list, "tags and documents")
    if len(listed) > _MOST_NAMES:
        raise DecodeError(f"over {_MOST_NAMES} tags or documents")
    return tuple(text_of(one, "a tag or document") for one in listed)


def pair_of(told: object) -> Pair:
    """Return a facet and its value. Raises DecodeError."""
    listed = _checked(told, list, "a facet value")
    if len(listed) != 2 or listed[0] not in FACETS:  # noqa: PLR2004 - a pair
        raise DecodeError(f"a facet value is one of {', '.join(FACETS)}, and what it is")
    facet, value = listed
    return (facet, key_of(value)) if facet == "key" else (facet, text_of(value, facet))


def mark_of(told: object) -> Mark:
    """Return a mark. Raises DecodeError."""
    listed = _checked(told, list, "a mark")
    if len(listed) != 3:  # noqa: PLR2004 - a facet, its value, a position
        raise DecodeError("a mark is a facet, its value and a position")
    facet, value, position = listed
    if facet not in FACETS:
        raise DecodeError(f"a mark is of one of {', '.join(FACETS)}")
    # Of any length: a name that were refused here would cut off from all that follows.
    whose: str | bytes = key_of(value) if facet == "key" else _checked(value, str, facet)
    return str(facet), whose, _checked(position, int, "a position")


# Requests


def request_told(request: Request) -> dict[str, Any]:
    """Return a request as it is sent; what has its default is left out."""
    lives = request.lives
    told: dict[str, Any] = {"key": request.key, "facets": facets_told(request.facets)}
    if request.scope is not None:
        told |= {"scope": request.scope, "text": request.text, "family": request.family}
    if request.tenanted:
        told["tenanted"] = True
    if request.mode != "live":
        told["mode"] = request.mode
    if lives.grace:
        told |= {"stale": lives.stale_while_revalidate, "grace": lives.grace}
    if request.least > -1:
        told["least"] = request.least
    if request.oldest < inf:
        told["oldest"] = request.oldest
    if request.exact_only is not None:
        told["exact_only"] = request.exact_only
    if request.stage:
        told["stage"] = request.stage
    return told


def request_of(told: object, namespace: str = "") -> Request:
    """Return a request as it was sent, its scope without an embedder. Raises DecodeError."""
    asked: Mapping[str, Any] = _checked(told, dict, "a request")
    request = Request(key_of(asked.get("key")), facets=facets_of(asked.get("facets"), namespace))
    for name in asked.keys() - _PLAIN:
        read = _READ.get(name)
        if read is not None:
            setattr(request, name, read(asked[name]))
    if "grace" in asked or "stale" in asked:
        stale, grace = (number_of(asked.get(name, 0.0), name) for name in ("stale", "grace"))
        request.lives = Lives(stale_while_revalidate=stale, stale_if_error=grace)
    if (request.scope is None) is not (request.text is None):
        raise DecodeError("a scope and a text go together")
    return request


def _family_of(told: object) -> bytes:
    family: bytes = _checked(told, bytes, "family")
    if len(family) > _LONGEST_FAMILY:
        raise DecodeError(f"family is over {_LONGEST_FAMILY} bytes")
    return family


def _mode_of(told: object) -> Mode:
    if not isinstance(told, str) or told not in _MODES:
        raise DecodeError(f"mode is one of {', '.join(_MODES)}")
    return told  # type: ignore[return-value]


_PLAIN = frozenset({"key", "facets"})
_READ: Mapping[str, Callable[[Any], Any]] = {
    "scope": lambda told: key_of(told, "scope"),
    "text": lambda told: _checked(told, str, "text"),
    "family": _family_of,
    "tenanted": lambda told: _checked(told, bool, "tenanted"),
    "mode": _mode_of,
    "exact_only": lambda told: text_of(told, "exact_only"),
    "stage": lambda told: text_of(told, "stage"),
    "least": lambda told: number_of(told, "least"),
    "oldest": lambda told: number_of(told, "oldest"),
}


# Entries


def entry_told(entry: Entry) -> dict[str, Any]:
    """Return an entry as it is sent."""
    told: dict[str, Any] = {"value": entry.value, "born": int(entry.born)}
    told["lives"] = [entry.life, entry.age, entry.load_seconds, entry.grace, entry.slide, entry.limit]
    if entry.own_ttl:
        told["own_ttl"] = True
    if entry.is_pinned:
        told["pinned"] = True
    if entry.facets is not None:
        told["facets"] = facets_told(entry.facets)
    if entry.usage is not None:
        told["usage"] = entry.usage.packed()
    return told


def entry_of(told: object, namespace: str = "") -> Entry:
    """Return an entry as it was sent. Raises DecodeError."""
    listed: Mapping[str, Any] = _checked(told, dict, "an entry")
    lives = _checked(listed.get("lives"), list, "lives")
    if len(lives) != len(_LIVES):
        raise DecodeError(f"lives are {', '.join(_LIVES)}")
    life, age, load_seconds, grace, slide, limit = (number_of(one, "a life") for one in lives)
    facets, usage = listed.get("facets"), listed.get("usage")
    return Entry(
        _checked(listed.get("value"), bytes, "value"), life, listed.get("own_ttl") is True,
        _checked(listed.get("born"), int, "born"), age, load_seconds, grace, slide, limit,
        listed.get("pinned") is True, None if facets is None else facets_of(facets, namespace),
        None if usage is None else _usage_of(usage),
    )  # fmt: skip


def _usage_of(told: object) -> Usage:
    try:
        usage = as_usage(Usage(*_checked(told, list, "usage")))
    except (TypeError, ValueError, OverflowError) as error:
        raise DecodeError(f"usage is none: {error}") from error
    return usage or Usage()


# What was found


def found_told(found: Hit | Miss, audited: Hit | None = None) -> dict[str, Any]:
    """Return what a lookup found, as it is sent."""
    told: dict[str, Any] = {}
    if isinstance(found, Hit):
        told = entry_told(found.entry) | {"tier": found.tier}
        if found.similarity is not None:
            told |= {"similarity": found.similarity, "neighbour": found.key}
    elif found.reason is not None:
        told["reason"] = found.reason
    evidence = found.evidence
    if evidence is not None:
        if evidence.decision is not None:
            told["decision"] = decision_told(evidence.decision)
        # Until when each took its time, only our clock knows.
        told["stages"] = [(stage, took) for stage, took, _ in evidence.stages]
    if audited is not None:
        told["audited"] = found_told(audited)
    return told


def found_of(told: object, request: Request, tier: str) -> Hit | Miss:
    """Return what a lookup found, as it was sent; of an exact answer `tier` found it. Raises DecodeError."""
    listed: Mapping[str, Any] = _checked(told, dict, "what was found")
    evidence = _evidence_of(listed) if "stages" in listed else None
    if "value" not in listed:
        reason = listed.get("reason")
        return Miss(None if reason is None else text_of(reason, "a reason", _LONGEST_REASON), evidence)
    entry = entry_of(listed, request.facets.namespace)
    if "similarity" not in listed:
        return Hit(entry, tier, request.key, evidence=evidence)
    similarity, key = number_of(listed["similarity"], "similarity"), key_of(listed.get("neighbour"), "neighbour")
    evidence = evidence or Evidence()
    return Hit(entry, "semantic", key, similarity, evidence)


def _evidence_of(listed: Mapping[str, Any]) -> Evidence:
    evidence = Evidence()
    for told in _checked(listed["stages"], list, "stages"):
        if not isinstance(told, list) or len(told) != 2:  # noqa: PLR2004 - its name, and what it took
            raise DecodeError("a stage is its name and nanoseconds")
        evidence.stages.append((text_of(told[0], "a stage"), _checked(told[1], int, "a stage's time"), 0))
    evidence.decision = decision_of(listed.get("decision"))
    return evidence


def decision_told(decision: Decision | None) -> list[Any] | None:
    """Return a decision as it is sent."""
    return None if decision is None else [
        decision.verdict.value, decision.reason, decision.similarity, decision.cut, decision.guard, decision.score
    ]  # fmt: skip


def decision_of(told: object) -> Decision | None:
    """Return a decision as it was sent. Raises DecodeError."""
    if told is None:
        return None
    try:
        verdict, reason, similarity, cut, guard, score = _checked(told, list, "decision")
        told_by = [None if one is None else number_of(one, "decision") for one in (similarity, cut, score)]
        why, which = (text_of(one, "decision", _LONGEST_REASON) for one in (reason, guard))
        return Decision(Verdict(verdict), why, told_by[0], told_by[1], which, told_by[2])
    except ValueError as error:
        raise DecodeError(f"decision is none: {error}") from error


def neighbour_told(neighbour: Neighbour) -> list[Any]:
    """Return a neighbour as it is sent, for people."""
    return [neighbour.key, neighbour.similarity, neighbour.text, neighbour.score]
