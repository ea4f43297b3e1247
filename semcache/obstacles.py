"""What keeps a cache from serving anything near, whatever its policy allows, each with the mend.

Laws: it says what is so now, and of calls only what was seen; it raises nothing, and asks no tier.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from semcache.labelling import Labelling
from semcache.model import Mode, Tenant

if TYPE_CHECKING:
    from semcache.tiers.semantic import SemanticTier

NO_EMBEDDER = "the cache has no embedder=, so nothing near is looked for"
EMBEDDER_MEND = 'give it one, as embedder="all-MiniLM-L6-v2"'
_TENANT = "set tenant= on the cache or the call (semcache.SHARED if all users may share answers)"
_MODES = {"off": "nothing is looked up", "exact": "nothing near is looked for", "shadow": "nothing near is served"}
_TOLD = 3


def obstacles(
    semantic: SemanticTier | None, mode: Mode, tenant: Tenant | None, labelling: Labelling | None, *, is_closed: bool
) -> Iterator[str]:
    """Name what stands in the way of near matches in a cache that has, or has not, these parts."""
    if is_closed:
        yield "the cache is closed, so its callers go to their origins"
        return
    if semantic is None:
        yield f"{NO_EMBEDDER}: {EMBEDDER_MEND}"
        return
    if mode in _MODES:
        yield f"mode: {mode}, so {_MODES[mode]} (mode= of the cache, or cache.set_mode)"
    if semantic.batcher.state == "failed":
        yield "the embedder cannot be loaded, so nothing near is looked for: stats().faults says why"
    if labelling is None:
        return
    named, unnamed = labelling.named, labelling.unnamed
    if tenant is None and not named:
        so_far = "no call so far named one" if unnamed else "no call has come yet"
        yield f"nobody said whose answers may meet ({so_far}), so nothing near can be served: {_TENANT}"
    elif unnamed:
        yield f"{unnamed} of {named + unnamed} calls named no tenant, and can be served nothing near: {_TENANT}"
    if labelling.apart:
        why = ", ".join(f"{reason}: {count}" for reason, count in labelling.apart.most_common(_TOLD))
        if named + unnamed:
            yield f"{sum(labelling.apart.values())} calls could be compared with no other ({why})"
        else:
            yield f"no call so far could be compared with another ({why}): text= says which part may match nearly"
