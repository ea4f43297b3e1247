"""Near matches: what they need is installed, the device and the model are there, and a rewording is found."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from typing import Any

from semcache.cli.doctor.finding import Finding, milliseconds
from semcache.cli.doctor.learned import examine_learned
from semcache.cli.doctor.speed import examine_embedding, examine_search
from semcache.cli.doctor.trial import Patient, patients, trial_of
from semcache.cli.store import Place
from semcache.errors import ConfigurationError, MissingExtraError, SemcacheError
from semcache.events import last
from semcache.model import SHARED
from semcache.policy import ErrorBudget, Threshold, Tuned
from semcache.semantic.served import EmbeddingServer
from semcache.wrap.default import policy_of

_PACKAGES = ("httpx", "torch", "sentence-transformers", "transformers", "faiss-cpu", "faiss-gpu", "numpy")
_POLICY_MEND = (
    'name "shadow", "threshold:0.92", "budget:0.01" or a file of `semcache tune` in --policy or SEMCACHE_POLICY'
)
_PATIENT_SECONDS = 60.0
_STORED = ("How do I reset my password?", "Which invoices are due in March?")
_ASKED = "How can I reset my password?"


def examine_near(place: Place, embedder: str | None, device: str, *, is_usable: bool) -> Iterator[Finding]:
    """Load the embedder and match nearly; through the store where that is usable. Raises ConfigurationError."""
    if embedder is None:
        told = "no embedder was asked for: --embedder all-MiniLM-L6-v2 tries near matches"
        yield Finding("skipped", "near matches", told)
        return
    from semcache.semantic.embedder import as_embedder

    try:
        made: Any = as_embedder(embedder, device)
    except MissingExtraError as error:
        yield Finding(
            "failed", "extra", f"{embedder!r} needs packages that are not installed", str(error).rpartition(": ")[2]
        )
        return
    is_served = isinstance(made, EmbeddingServer)
    embedder = made.url if is_served else embedder
    yield _extra()
    began = time.perf_counter()
    try:
        made.load()
    except SemcacheError as error:
        told, _, mend = str(error).partition(". ")
        where = (
            "look at the URL, and whether the server runs" if is_served else "look at the name, the folder and --device"
        )
        yield Finding("failed", "model", told, mend or where)
        return
    took = time.perf_counter() - began
    told = f"{embedder}, loaded in {milliseconds(took)}, {made.dimension} dimensions"
    told += f", a window of {made.window} tokens" if made.window else ""
    told += f", {made.identity}, sees {made.seen_bytes} bytes of a text for sure" if is_served else ""
    yield Finding("ok", "model", told, figures={"load_seconds": took, "identity": made.identity})
    if not is_served:
        found = _device(made.device, device)
        yield found
        yield examine_embedding(made)
        # Where a device that was asked for is not there, which was just said, there is the embedder's.
        yield examine_search(made.dimension, made.device, device if found.mark == "ok" else "auto")
    else:
        yield examine_search(made.dimension, "cpu")
    if not is_usable:
        yield Finding("skipped", "near matches", "not tried: the store cannot be used")
        return
    if place.disk is not None and not place.disk.exists():
        place = Place(place.namespace)
    if place.where:
        yield examine_learned(place, made.identity)
    settings = {"embedder": made, "policy": Threshold(-1.0, guards=None), "tenant": SHARED}
    try:
        with patients(trial_of(place), **settings) as patient:
            finding = _match(patient)
    except (SemcacheError, OSError) as error:
        finding = Finding("failed", "near matches", str(error), "look at the findings above")
    yield finding


def examine_policy(name: str, embedder: str | None, device: str) -> Finding:
    """Say what a policy serves, and whether it is this embedder's. Raises ConfigurationError for a wrong embedder."""
    from semcache.semantic.embedder import as_embedder

    try:
        policy = policy_of(name)
        if isinstance(policy, Tuned) and embedder is not None:
            made = as_embedder(embedder, device)
            if made is not None and made.identity:
                policy.check(made.identity)
    except MissingExtraError:
        pass  # which is said of the embedder itself
    except ConfigurationError as error:
        told, has_mend, mend = str(error).rpartition(": ")
        return Finding("failed", "policy", told, mend) if has_mend else Finding("failed", "policy", mend, _POLICY_MEND)
    if isinstance(policy, ErrorBudget):
        told = (
            f"{name}: at most {policy.budget:.3g} of the near matches served may be wrong; it serves what its labels "
        )
        told += "prove, and nothing before"
        return Finding("ok", "policy", told, figures={"budget": policy.budget})
    if not isinstance(policy, Tuned):
        return Finding("ok", "policy", f"{name}, which nobody has measured" if policy else "shadow: none is served")
    told = f"{policy}; {policy.embedder}, measured {policy.measured.get('made')}"
    figures: dict[str, float | int | str] = {"cuts": len(policy.cuts), "budget": policy.budget}
    if not policy.cuts:
        return Finding("warning", "policy", told, "`semcache tune` says what is missing", figures)
    return Finding("ok", "policy", told, figures=figures)


def _extra() -> Finding:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    if "faiss-cpu" in versions and "faiss-gpu" in versions:
        mend = "pip uninstall faiss-cpu faiss-gpu, and install the one of the extra that you want, semantic or gpu"
        return Finding("warning", "extra", f"{told}: both kinds of FAISS, which write the same files", mend)
    return Finding("ok", "extra", told)


def _device(used: str | None, asked: str) -> Finding:
    import torch

    from semcache.semantic.device import missing

    if used is not None and used.startswith("cuda"):
        names = asked.split(",") if "," in asked else [used]
        if (mend := missing(names)) is not None:
            return Finding("failed", "device", f"{asked}: not all of them are here", mend)
        told = "; the index has also ".join(f"{name}, {torch.cuda.get_device_name(name)}" for name in names)
        return Finding("ok", "device", told, figures={"device": used, "devices": len(names)})
    told = f"{used}" + (", no CUDA device was found" if asked == "auto" and not torch.cuda.is_available() else "")
    return Finding("ok", "device", told, figures={"device": used or ""})


def _match(patient: Patient) -> Finding:
    first, second = patient.first, patient.second
    first.warm()
    for text in _STORED:
        request = first.request(text=text, function="doctor")
        patient.keys.append(request.key)
        first.get_or_load(request, partial("answer to {}".format, text))
    if not first.flush(_PATIENT_SECONDS):
        return _failed(patient, "answers that were put are not kept, or their texts not embedded")
    second.warm()
    request = second.request(text=_ASKED, function="doctor")
    patient.keys.append(request.key)
    began = time.perf_counter()
    found = second.get_or_load(request, lambda: "nothing near")
    took = time.perf_counter() - began
    second.flush(_PATIENT_SECONDS)
    event = last()
    if found == "nothing near" or event is None or event.similarity is None:
        why = event.reason if event is not None and event.reason else "nothing near was found"
        return _failed(patient, f"{_ASKED!r} does not find {_STORED[0]!r}: {why}")
    if found != f"answer to {_STORED[0]}":
        told = f"{_ASKED!r} finds {_STORED[1]!r}, similarity {event.similarity:.2f}, rather than {_STORED[0]!r}"
        return Finding("failed", "near matches", told, "this model does not know English: try another")
    told = f"{_ASKED!r} finds {_STORED[0]!r}, similarity {event.similarity:.2f}, in {milliseconds(took)}"
    return Finding(
        "ok", "near matches", told, figures={"similarity": round(event.similarity, 4), "found_seconds": took}
    )  # fmt: skip


def _failed(patient: Patient, told: str) -> Finding:
    return Finding("failed", "near matches", patient.trouble(told), "look at the findings above")
