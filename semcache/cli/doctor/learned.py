"""What the processes of a store have learned of an embedder's near matches: whether it has a cut yet.

Law: it reads; nothing is booked, and a store that is not there is not begun.
"""

from __future__ import annotations

from semcache.cli.doctor.finding import Finding
from semcache.cli.store import Place, unasked
from semcache.errors import SemcacheError
from semcache.policy import Shadow
from semcache.policy.status import FamilyStatus


def examine_learned(place: Place, identity: str) -> Finding:
    """Say how many labels an embedder's near matches have, and what some budgets would serve of them."""
    policy = Shadow()
    policy.attune(lambda: identity, None)
    try:
        with unasked(place) as cache:
            assert cache.store is not None  # noqa: S101 - who asks has seen to it
            policy.take_over(cache.store.tallied(policy.days()))
    except (SemcacheError, OSError) as error:
        return Finding("failed", "learned", str(error), "look at the findings above")
    status = policy.status()
    known: list[FamilyStatus] = [*status.families, *([status.others] if status.others else [])]
    labels = max(sum(one.labels for one in status.families), status.others.labels if status.others else 0)
    if not labels:
        told = f"no label of {identity!r} yet: Cache(shadow_embedder=...) learns its cut before the switch"
        return Finding("skipped", "learned", told)
    opened = {
        offer.budget: [one.cut for family in known for one in family.offers if one.budget == offer.budget and one.cut]
        for offer in known[0].offers
    }
    cuts = ", ".join(
        f"{budget:.0%}: {f'near matches from {min(found):g} on' if found else 'nothing yet'}"
        for budget, found in opened.items()
    )
    told = f"{labels} labels of {identity!r}; a budget of wrong ones would serve, at {cuts}"
    figures: dict[str, float | int | str] = {"labels": labels, "families": len(status.families)}
    return Finding("ok", "learned", told, figures=figures)
