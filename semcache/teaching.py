"""Teaching a score online: behind the callers, by labels that prove nothing, and by one process for all.

Laws: no caller waits for it, or hears of its troubles; a score is taught when there are pairs enough, and again when
they are twice as many; one that its held out pairs do not bear out is dropped, and begins no test; who would teach says
so in the store, and begins when nobody else has said so; a score stands there as numbers, never with a text, under its
embedder's name, and one of another embedder is refused (law 11).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from random import Random
from threading import RLock
from typing import TYPE_CHECKING, Any, Protocol

from semcache.codec import Codec
from semcache.errors import ConfigurationError, TierError
from semcache.events import Recorder
from semcache.keys import digest
from semcache.model import Entry, Facets, Hit, Miss, Request
from semcache.plan import Crew, Plan, run
from semcache.policy.learner import Learner
from semcache.policy.scoring import COSINE
from semcache.policy.tally import SEASON_DAYS, SEASONS, season_of

if TYPE_CHECKING:
    from semcache.policy.score import Score

NAME = "score"
"""What its faults stand under."""
_LIFE = SEASONS * SEASON_DAYS * 86_400.0
# A caller's own batch waits behind so many texts at most.
_TOGETHER = 32
_PATIENCE_SECONDS = 60.0
# So many labels come between two looks at whether the score that is tested serves more.
_LOOK_EVERY = 8
# So many turns, of some ten seconds each, another process is given to teach what it has claimed.
_PATIENT_TURNS = 60
_MOST_TRIES = 10
# So many turns at most are let pass before another attempt.
_MOST_RESTS = 20


class Store(Protocol):
    """What is asked of the exact store."""

    def put(self, request: Request, entry: Entry, evidence: None) -> Plan[None]: ...
    def fetch(self, key: bytes, grace: float = 0.0) -> Plan[Hit | Miss]: ...


class Shelf:
    """Where the scores of a namespace stand: entries of its exact store, by embedder and number."""

    def __init__(self, store: Store, codec: Codec, namespace: str, position: Callable[[], int]) -> None:
        self._store = store
        self._codec = codec
        self._namespace = namespace
        self._position = position

    def _request(self, whose: str, number: int) -> Request:
        key = digest(b"score", self._namespace.encode(), whose.encode(), b"%d" % number)
        return Request(key, facets=Facets(self._namespace))

    def keep(self, whose: str, number: int, score: Score) -> None:
        """Keep a score. Raises what the store raises, ConfigurationError where safetensors is not installed."""
        entry = Entry(self._codec.encode(score.dump()), _LIFE, own_ttl=True, born=self._position())
        run(self._store.put(self._request(whose, number), entry, None))

    def find(self, whose: str, number: int) -> Score | None:
        """Return a score, None where there is none; raises ValueError for what is none, and what the store raises."""
        from semcache.policy.score import Score

        found = run(self._store.fetch(self._request(whose, number).key))
        return Score.load(self._codec.decode(found.entry.value)) if isinstance(found, Hit) else None


class Teaching:
    """Teaches the scores of a policy, whose embedder `identity` names and `embed` asks; `shelf` shares them.

    `time` is in seconds since 1970.
    """

    def __init__(
        self, policy: Learner, recorder: Recorder, identity: Callable[[], str], embed: Callable[[str], Future[Any]],
        time: Callable[[], float], shelf: Shelf | None,
    ) -> None:  # fmt: skip
        self._policy = policy
        self._recorder = recorder
        self._identity = identity
        self._embed = embed
        self._time = time
        self._shelf = shelf
        self._crew = Crew(self._failed, 1)
        self._begin()

    def _begin(self) -> None:
        self._lock = RLock()
        self._random = Random()  # noqa: S311 - spreads turns, keeps no secret
        self._looks = 0
        self._rests = 0
        self._tries: Counter[int] = Counter()
        self._waited = 0
        self._claimed: int | None = None

    @property
    def _whose(self) -> str:
        """Whose matches are rated: numbers are had once among those that have the same."""
        return self._identity() + self._policy.stage

    def _failed(self, error: BaseException) -> None:
        self._rests = _MOST_RESTS
        self._recorder.fault(NAME, getattr(error, "reason", type(error).__name__), error)

    def look(self) -> None:
        """Do what is due after a label: behind the callers, and quick."""
        with self._lock:
            self._looks += 1
            if self._looks % _LOOK_EVERY:
                return
        self._policy.promote()
        if self._shelf is None and self._policy.is_due() and self._has_rested():
            self._start(self._policy.claim())

    def _has_rested(self) -> bool:
        self._rests = max(0, self._rests - 1)
        return not self._rests

    def turn(self) -> None:
        """Do what is due after the store was read: take what others have taught, teach what we have claimed."""
        if self._shelf is None:
            return
        try:
            self._take(self._shelf)
            self._policy.promote()
            self._keep_again(self._shelf)
            self._claim()
        except Exception as error:  # noqa: BLE001 - whatever the store holds or says, the follower lives on
            self._failed(error)

    def _take(self, shelf: Shelf) -> None:
        """Take over the latest score that others have taught, and the one in use when they did."""
        latest = self._policy.latest()
        if latest is None or latest[0] <= self._policy.newest:
            return
        number, beside, taught_in = latest
        identity = self._identity()
        if self._tries[number] >= _MOST_TRIES:  # it is damaged, or was evicted: the next one may be there
            return
        self._tries[number] += 1
        score = shelf.find(self._whose, number)
        if score is None:  # it is on its way
            return
        if beside != COSINE and self._policy.newest == COSINE:
            used = shelf.find(self._whose, beside)
            if used is not None:
                self._policy.resume(used, beside)
        if not self._policy.challenge(number, score, beside, taught_in):
            raise ConfigurationError(f"score {number} is of {score.embedder!r}, not of {identity!r}: it is not used")

    def _keep_again(self, shelf: Shelf) -> None:
        """Have what is used and tested stand in this season too, as counts do."""
        if not self._policy.is_said():
            for number, score in list(self._policy.scores.items()):
                shelf.keep(self._whose, number, score)
                self._policy.publish(number)

    def _claim(self) -> None:
        """Say that we would teach; once nobody else has said so for the same score, do."""
        if self._claimed is not None:
            is_ours = self._policy.is_ours(self._claimed)
            if is_ours is None:
                return
            number, self._claimed = self._claimed, None
            if is_ours:
                self._start(number)
            else:  # each gives way, and they come again at different times
                self._drop(number)
                self._rests = self._random.randrange(1, _MOST_RESTS)
        elif self._policy.is_claimed() and self._waited < _PATIENT_TURNS:  # then who has claimed it is gone
            self._waited += 1
        elif self._rests > 0:
            self._rests -= 1
        elif self._policy.is_due():
            self._waited = 0
            self._claimed = self._policy.claim()

    def _start(self, number: int) -> None:
        if not self._crew.start_thread(lambda: self._teach(number)):
            self._drop(number)

    def _drop(self, number: int) -> None:
        """Give a number back that nothing was begun under."""
        if self._shelf is not None:
            self._policy.release(number)

    def _teach(self, number: int) -> Plan[None]:
        is_begun = False
        try:
            is_begun = self._is_begun(number)
        finally:
            if not is_begun:
                self._drop(number)
        return
        yield

    def _is_begun(self, number: int) -> bool:
        """Teach a score; say whether its tests have begun."""
        from semcache.policy.score import fit

        policy, identity = self._policy, self._identity()
        labels = policy.read_lessons()
        vectors = self._vectors(sorted({text for label in labels for text in (label.text, label.neighbour)}))
        score = fit(labels, vectors, embedder=identity, seed=number)
        policy.put_off(2 * len(labels))
        if identity != self._identity() or score.correction is None:
            return False
        if self._shelf is not None:
            self._shelf.keep(self._whose, number, score)
        is_begun = policy.challenge(number, score, policy.generation, season_of(self._time()))
        if is_begun and self._shelf is not None:
            policy.publish(number)
        return is_begun

    def _vectors(self, texts: list[str]) -> dict[str, Any]:
        """Embed texts, so many at once; those that are not seen whole are left out. Raises TierError, TimeoutError."""
        vectors = {}
        for at in range(0, len(texts), _TOGETHER):
            batch = texts[at : at + _TOGETHER]
            for text, future in zip(batch, [self._embed(text) for text in batch], strict=True):
                try:
                    vectors[text] = future.result(_PATIENCE_SECONDS)
                except TierError as error:
                    if error.reason != "uncovered":
                        raise
        return vectors

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until nothing is being taught; False where the time was up first."""
        return self._crew.wait(timeout)

    def after_fork(self) -> None:
        """Begin anew: what was taught is the parent's, or comes from the store."""
        self._crew.after_fork()
        self._begin()
