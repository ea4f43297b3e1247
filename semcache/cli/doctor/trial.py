"""A cache's whole life, in a namespace of its own that is gone afterwards: insert, find from elsewhere, invalidate.

Law: what one cache keeps, another finds, so it is the store that answers; no answer of the service is touched.
"""

from __future__ import annotations

import secrets
import sqlite3
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from semcache.cache import Cache
from semcache.cli.doctor.finding import Finding, milliseconds
from semcache.cli.store import Place, quiet
from semcache.errors import SemcacheError
from semcache.events import Event, last
from semcache.ttl import TTL, Timeouts

_PATIENT_SECONDS = 10.0
_LIFE = "5m"


class Trial(NamedTuple):
    """Where a trial is made: the store itself, and a part of the namespace that nobody uses."""

    place: Place
    part: str

    @property
    def namespace(self) -> str:
        return f"{self.place.namespace}:{self.part}"


def trial_of(place: Place) -> Trial:
    """Return a trial in a part of the namespace that nobody uses."""
    return Trial(place, f"doctor-{secrets.token_hex(4)}")


class Patient:
    """Two caches on one store, or one where there is none, and what went wrong in them."""

    def __init__(self, trial: Trial, stack: ExitStack, settings: dict[str, Any]) -> None:
        self.faults: list[str] = []
        self.keys: list[bytes] = []
        place = trial.place
        has_store = place.redis is not None or place.disk is not None
        timeouts = Timeouts(redis="5s", disk="5s", semantic="60s")
        made = {
            "redis": place.redis, "disk": place.disk, "memory": 0 if has_store else "1MB", "timeouts": timeouts,
            "ttl": TTL(disk=_LIFE, redis=_LIFE, semantic=_LIFE), "observers": [self._hear],
        } | settings  # fmt: skip
        if place.disk is not None:
            made["disk_size"] = "1TB"  # the file is its service's to bound
        self.caches = [stack.enter_context(Cache(trial.namespace, **made)) for _ in range(2 if has_store else 1)]
        for cache in self.caches:
            cache.books = False
            if cache.redis is not None:
                from semcache.stores.redis_keys import Names

                cache.redis.move(Names(place.namespace, trial.part))
        self.first, self.second = self.caches[0], self.caches[-1]

    def _hear(self, event: Event) -> None:
        self.faults += [f"{tier}: {message}" for tier, _, message in event.faults if message not in self.faults]

    def trouble(self, told: str) -> str:
        """Return what went wrong, with the last fault that was met on the way."""
        return f"{told} ({self.faults[-1]})" if self.faults else told


@contextmanager
def patients(trial: Trial, **settings: Any) -> Iterator[Patient]:
    """Open the caches of a trial, and drop what it leaves. Raises SemcacheError where something stands all the same."""
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a threshold that nobody has measured serves nobody here
        with ExitStack() as stack:
            patient = Patient(trial, stack, settings)
            try:
                yield patient
            finally:
                with suppress(SemcacheError):  # else it ends with its life, in minutes
                    patient.second.invalidate(namespace=trial.namespace)
        _clear(trial, patient.keys)


def _clear(trial: Trial, keys: list[bytes]) -> None:
    place = trial.place
    if place.redis is not None:
        from semcache.cli.doctor.server import left_behind
        from semcache.stores.redis_keys import Names

        stands = left_behind(place.redis, Names(place.namespace, trial.part), keys)
        if stands:
            raise SemcacheError(f"{stands} keys of the trial stand still; they end within the hour")
    elif place.disk is not None:
        from semcache.stores.file import StoreFile

        file = StoreFile(place.disk, _PATIENT_SECONDS)
        try:
            connection = file.connect_writer()
            connection.execute("DELETE FROM marks WHERE namespace = ?", (trial.namespace,))
            connection.close()
        except sqlite3.Error as error:
            raise SemcacheError(f"a mark of the trial stands still, which goes in a day: {error}") from error
        finally:
            file.leave()


def examine_life(place: Place) -> Iterator[Finding]:
    """Insert, find and delete an answer. Where the file is not there yet, one is made beside it, and removed."""
    with ExitStack() as stack:
        if place.disk is not None and not (place.disk.exists() and place.disk.stat().st_size):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=".semcache-doctor-", dir=place.disk.parent))
            place = Place(place.namespace, None, Path(folder) / "trial.db")
        try:
            with patients(trial_of(place)) as patient:
                finding = _live(patient)
        except (SemcacheError, OSError) as error:
            finding = Finding("failed", "trial", str(error), "look at the findings above")
    yield finding


def _live(patient: Patient) -> Finding:
    first, second = patient.first, patient.second
    answer, request = f"answer {time.time_ns()}", first.request("doctor", time.time_ns())
    patient.keys.append(request.key)
    began = time.perf_counter()
    first.get_or_load(request, lambda: answer)
    if not first.flush(_PATIENT_SECONDS):
        return _failed(patient, "an answer that was put is not kept")
    kept = time.perf_counter() - began
    began = time.perf_counter()
    found = second.get_or_load(request, lambda: "another")
    took = time.perf_counter() - began
    event = last()
    tier = (event.tier if event else None) or "none"
    if found != answer:
        return _failed(patient, "another process does not find the answer that was kept")
    gone = second.invalidate(key=request.key)
    if gone != 1 or second.invalidate(namespace=second.namespace, dry_run=True):
        return _failed(patient, "an answer that was invalidated stands still")
    if first.get_or_load(request, lambda: "anew") != "anew":
        return _failed(patient, "an answer that was invalidated is served still")
    first.flush(_PATIENT_SECONDS)
    whence = f"another cache found it in {tier}" if second is not first else f"it was found in {tier}"
    told = f"kept in {milliseconds(kept)}, {whence} in {milliseconds(took)}, invalidated, gone"
    return Finding("ok", "trial", told, figures={"kept_seconds": kept, "found_seconds": took, "tier": tier})


def _failed(patient: Patient, told: str) -> Finding:
    return Finding("failed", "trial", patient.trouble(told), "look at the findings above, and docs/operations.md")
