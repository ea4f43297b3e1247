"""semcache: the cache in front of language models, embedding models and retrieval.

import semcache

cache = semcache.Cache(memory="64MB")

@semcache.cached(cache)
def answer(question: str) -> str: ...
"""

from typing import TYPE_CHECKING, Any

from semcache.cache import Cache
from semcache.codec import register
from semcache.context import context
from semcache.errors import (
    CodecError,
    ConfigurationError,
    DecodeError,
    EncodeError,
    InvalidationError,
    MissingExtraError,
    SemcacheError,
    TierError,
    TrafficError,
    UnkeyableError,
)
from semcache.events import Event, last
from semcache.explain import Explanation
from semcache.ledger import Served
from semcache.meter import UsageRow
from semcache.model import SHARED, Decision, Hit, Miss, Neighbour, Request, Usage, Verdict
from semcache.pipeline import Pipeline, pipeline, stage
from semcache.policy import ErrorBudget, Policy, PolicyStatus, Shadow, Threshold, Tuned, UnmeasuredThresholdWarning
from semcache.recording import Recording
from semcache.reindex import Reindexed
from semcache.reported import Reported
from semcache.stages import StageRow
from semcache.stats import Stats
from semcache.trace import Trace, trace
from semcache.ttl import TTL, Timeouts
from semcache.warning import SemcacheWarning
from semcache.wrap.clients.gather import gather
from semcache.wrap.default import configure
from semcache.wrap.embedding import CachedEmbedding, cached_embedding
from semcache.wrap.function import Cached, cached
from semcache.wrap.retrieval import cached_retrieval
from semcache.wrap.wrapping import CacheInfo, check

if TYPE_CHECKING:
    from semcache.semantic.second import CrossEncoder
    from semcache.semantic.served import EmbeddingServer
    from semcache.stores.sidecar_address import Sidecar

__version__ = "0.1.0"

__all__ = [
    "SHARED",
    "TTL",
    "Cache",
    "CacheInfo",
    "Cached",
    "CachedEmbedding",
    "CodecError",
    "ConfigurationError",
    "CrossEncoder",
    "Decision",
    "DecodeError",
    "EmbeddingServer",
    "EncodeError",
    "ErrorBudget",
    "Event",
    "Explanation",
    "Hit",
    "InvalidationError",
    "Miss",
    "MissingExtraError",
    "Neighbour",
    "Pipeline",
    "Policy",
    "PolicyStatus",
    "Recording",
    "Reindexed",
    "Reported",
    "Request",
    "SemcacheError",
    "SemcacheWarning",
    "Served",
    "Shadow",
    "Sidecar",
    "StageRow",
    "Stats",
    "Threshold",
    "TierError",
    "Timeouts",
    "Trace",
    "TrafficError",
    "Tuned",
    "UnkeyableError",
    "UnmeasuredThresholdWarning",
    "Usage",
    "UsageRow",
    "Verdict",
    "cached",
    "cached_embedding",
    "cached_retrieval",
    "check",
    "configure",
    "context",
    "gather",
    "last",
    "pipeline",
    "register",
    "stage",
    "trace",
]


def __getattr__(name: str) -> Any:
    """Import what belongs to near matches when it is asked for (law 13)."""
    if name == "EmbeddingServer":
        from semcache.semantic.served import EmbeddingServer

        return EmbeddingServer
    if name == "Sidecar":
        from semcache.stores.sidecar_address import Sidecar

        return Sidecar
    if name == "CrossEncoder":
        from semcache.semantic.second import CrossEncoder

        return CrossEncoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
