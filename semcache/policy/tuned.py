"""The policy that `semcache tune` writes: for each scope family the lowest cut that was proved, or none.

A cut is one of the similarity, or of a learned score that stands in the same file, which then ranks what was found too.
Laws: it serves nothing that its file does not prove, nor what a guard refuses that was on when it was; a file that is
damaged, of another version or kind, or measured on another embedder's vectors (law 11) is refused, with the mend; the
file holds figures, never a recorded text.
"""

from __future__ import annotations

import json
import os
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

from semcache.errors import ConfigurationError
from semcache.model import Decision, Neighbour, Request, Verdict
from semcache.policy.bounds import at_most, upper_bound
from semcache.policy.guards import Guards
from semcache.policy.status import CutStatus, Share, TunedStatus

if TYPE_CHECKING:
    from semcache.policy.score import Score

VERSION = 1
COSINE, SCORE = "cosine", "score"
FLOOR = 0.5
"""The least similarity of what a learned score ranks: further texts it was not taught."""

_AGAIN = "make it anew with `semcache tune TRAFFIC.jsonl --output FILE`"


@dataclass(frozen=True, slots=True)
class Proof:
    """What the labels of a scope family, or of a namespace, say: the cut that they prove (None: none), and they.

    `bound` is the upper bound on the wrong share of what that cut serves; without a cut, of what was tested first.
    Where too few labels were there to test any, none was looked at: then there were `counted`, and it takes `needed`.
    """

    cut: float | None
    labels: int
    wrong: int
    counted: int = 0
    needed: int = 0

    def bound(self, confidence: float) -> float:
        return upper_bound(self.wrong, self.labels, confidence)


NOTHING = Proof(None, 0, 0)


@dataclass(frozen=True, slots=True)
class Tuned:
    """Serves near matches from the cuts that a recording proved: at most `budget` of what they serve is wrong.

    That holds with `confidence`, in each of `families` by itself, by hex digest, and for all others together, under
    `others`. `embedder` is whose vectors were measured; with another one nothing near is served. `measured` says on
    what. With a `score` cuts are of what it says, else of the similarity; `guards` names those that are on.
    `semcache tune` makes one, `Tuned.read` reads its file, as does `Cache(policy="FILE")`.
    """

    budget: float
    confidence: float
    embedder: str
    others: Proof = NOTHING
    families: Mapping[str, Proof] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)
    guards: tuple[str, ...] = ()
    score: Score | None = None
    _guards: Guards = field(init=False, repr=False, compare=False)
    _surroundings: Callable[[], list[str]] = field(init=False, repr=False, compare=False, default=list)

    def __post_init__(self) -> None:
        # Made once, for it is asked of every near match; it refuses a name that is no guard's.
        object.__setattr__(self, "_guards", Guards(self.guards))

    def surround(self, told: Callable[[], list[str]]) -> None:
        """Know what stands in the way where it works: of several caches, in the one that was made last."""
        object.__setattr__(self, "_surroundings", told)

    @property
    def kind(self) -> str:
        """What its cuts are of."""
        return COSINE if self.score is None else SCORE

    def within(self, request: Request) -> _Cut:
        """Return what decides in the scope family of a request."""
        if request.embedder != self.embedder:
            return _Cut(None, f"tuned for another embedder: {self.embedder}", self._guards)
        proof = self.families.get(request.family.hex())
        where = "all families that were not measured alone" if proof is None else "this scope family"
        return self._cut(self.others if proof is None else proof, where)

    def _cut(self, proof: Proof, where: str) -> _Cut:
        if self.score is None or proof.cut is None:
            return _Cut(proof.cut, f"tuned on {where}", self._guards)
        return _ScoreCut(proof.cut, f"tuned on {where}", self._guards, self.score)

    def decide(self, text: str, neighbour: Neighbour) -> Decision:
        """Decide as in a scope family that was not measured alone."""
        return self._cut(self.others, "all families that were not measured alone").decide(text, neighbour)

    def check(self, embedder: str) -> None:
        """Refuse another embedder. Raises ConfigurationError."""
        if embedder != self.embedder:
            raise ConfigurationError(
                f"the policy was tuned on vectors of {self.embedder!r}, and says nothing of those of {embedder!r}: use "
                f"that embedder, or {_AGAIN} and --embedder"
            )

    @property
    def cuts(self) -> list[float]:
        """The cuts that it serves near matches from."""
        return [proof.cut for proof in (self.others, *self.families.values()) if proof.cut is not None]

    @property
    def serves(self) -> bool:
        """Whether it serves anything."""
        return bool(self.cuts)

    def __str__(self) -> str:
        """Say in a few words what it serves."""
        cuts = self.cuts
        if not cuts:
            return f"tuned for at most {self.budget:.3g} wrong: no cut was proved, so nothing near is served"
        low, high = min(cuts), max(cuts)
        told = f"from {low:.3g}" if low == high else f"from {low:.3g} to {high:.3g}, by scope family"
        told += "" if self.score is None else " of the learned score"
        return f"tuned for at most {self.budget:.3g} wrong: near matches {told} on are served"

    def __repr__(self) -> str:
        others = "nothing" if self.others.cut is None else f"{self.others.cut:g}"
        families = len(self.families)
        return f"Tuned({self.budget:g}, {families} {'family' if families == 1 else 'families'}, others: {others})"

    def status(self) -> TunedStatus:
        """Return what it serves by scope family, what proves that, and what keeps its cache from it: print it."""
        return TunedStatus(
            self.budget, self.confidence, self.kind, self.embedder, self._status_of("others", self.others),
            tuple(self._status_of(family, proof) for family, proof in self.families.items()), dict(self.measured),
            self._guards.listed, tuple(self._surroundings()),
        )  # fmt: skip

    def _status_of(self, name: str, proof: Proof) -> CutStatus:
        wrong = Share(proof.wrong, proof.labels)
        return CutStatus(name, proof.cut, wrong, proof.bound(self.confidence), proof.counted, proof.needed)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, whole or not at all. Raises OSError."""
        told: dict[str, Any] = {
            "semcache_policy": VERSION,
            "kind": self.kind,
            "budget": self.budget,
            "confidence": self.confidence,
            "embedder": self.embedder,
            "others": self._told(self.others),
            "families": {family: self._told(proof) for family, proof in self.families.items()},
            "measured": dict(self.measured),
            "guards": list(self.guards),
        }
        if self.score is not None:
            told["score"] = b64encode(self.score.dump()).decode()
        told["digest"] = _digest(told)
        target = Path(path)
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            beside.write_text(json.dumps(told, indent=2, allow_nan=False) + "\n", encoding="utf-8")
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)

    def _told(self, proof: Proof) -> dict[str, Any]:
        told = {**asdict(proof), "bound": proof.bound(self.confidence)}
        return told if proof.needed else {name: told[name] for name in ("cut", "labels", "wrong", "bound")}

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `write` wrote. Raises ConfigurationError, with the mend, for anything else."""
        try:
            told = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            _refuse(path, f"cannot be read ({error.strerror or error})", "look at the path, or ")
        except (ValueError, RecursionError) as error:
            _refuse(path, f"is no policy file: it is not JSON ({error})")
        if not isinstance(told, dict) or "semcache_policy" not in told:
            _refuse(path, "is no policy file")
        if told["semcache_policy"] != VERSION or told.get("kind") not in (COSINE, SCORE):
            _refuse(
                path,
                f"is of version {told['semcache_policy']!r} and kind {told.get('kind')!r}, where this semcache reads "
                f"version {VERSION} and the kinds {COSINE!r} and {SCORE!r}",
                "use the version that wrote it, or ",
            )
        if told.pop("digest", None) != _digest(told):
            _refuse(path, "is damaged, or was changed by hand, so it proves nothing")
        try:
            policy = cls(
                told["budget"], told["confidence"], told["embedder"], _proof(told["others"]),
                {family: _proof(proof) for family, proof in told["families"].items()}, told["measured"],
                tuple(told.get("guards", ())), _score(told) if told["kind"] == SCORE else None,
            )  # fmt: skip
            is_proved = all(policy._holds(proof) for proof in (policy.others, *policy.families.values()))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            _refuse(path, f"is damaged: {type(error).__name__} {error}")
        if not is_proved:
            _refuse(path, "names a cut that its labels do not prove")
        if policy.score is not None and policy.score.embedder != policy.embedder:
            _refuse(path, "holds a score of another embedder's vectors")
        return policy

    def _holds(self, proof: Proof) -> bool:
        return proof.cut is None or (
            -1 <= proof.cut <= 1 and at_most(proof.wrong, proof.labels, self.budget) <= 1 - self.confidence
        )


@dataclass(frozen=True, slots=True)
class _Cut:
    """Decides in one scope family: serves what is near enough; `why` says where the cut comes from."""

    cut: float | None
    why: str
    guards: Guards

    def decide(self, text: str, neighbour: Neighbour) -> Decision:
        if self.cut is None:
            return Decision(Verdict.REJECT, f"no cut was proved, {self.why}", neighbour.similarity)
        return self._decide(text, neighbour, self.cut, "similarity", neighbour.similarity)

    def _decide(self, text: str, neighbour: Neighbour, cut: float, name: str, value: float) -> Decision:
        """Serve what stands at the cut or above it, and what no guard refuses; a guard costs more than a cut."""
        near, score = neighbour.similarity, neighbour.score
        if value < cut:
            return Decision.below(cut, near, score)
        refusal = self.guards.check(text, neighbour.text)
        if refusal is not None:
            return Decision(Verdict.REJECT, refusal.reason, near, cut, refusal.guard, score)
        return Decision(Verdict.REUSE, f"{name} {value:.4f} >= {cut:g}, {self.why}", near, cut, score=score)


@dataclass(frozen=True, slots=True)
class _ScoreCut(_Cut):
    """Decides by a learned score, in whose order it wants to be asked."""

    score: Score

    def rank(self, text: str, vector: Any, neighbours: Sequence[Neighbour]) -> list[Neighbour]:
        return self.score.rank(text, vector, neighbours, FLOOR)

    def decide(self, text: str, neighbour: Neighbour) -> Decision:
        if neighbour.score is None or self.cut is None:
            return Decision(Verdict.REJECT, "too far away to have a score", neighbour.similarity, self.cut)
        return self._decide(text, neighbour, self.cut, "score", neighbour.score)


def _proof(told: Mapping[str, Any]) -> Proof:
    return Proof(told["cut"], told["labels"], told["wrong"], told.get("counted", 0), told.get("needed", 0))


def _score(told: Mapping[str, Any]) -> Score:
    from semcache.policy.score import Score

    return Score.load(b64decode(told["score"], validate=True))


def _digest(told: Mapping[str, Any]) -> str:
    return blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=16).hexdigest()


def _refuse(path: str | os.PathLike[str], what: str, mend: str = "") -> NoReturn:
    raise ConfigurationError(f"the policy {os.fspath(path)!r} {what}: {mend}{_AGAIN}")
