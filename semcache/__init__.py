"""semcache: the cache in front of language models, embedding models and retrieval.

import semcache

cache = semcache.Cache(memory="64MB")

@semcache.cached(cache)
def answer(question: str) -> str: ...
"""

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
from semcache.events import Event, SemcacheWarning, Stats, Trace, last, trace
from semcache.explain import Explanation
from semcache.meter import UsageRow
from semcache.model import SHARED, Decision, Hit, Miss, Neighbour, Request, Usage, Verdict
from semcache.policy import Policy, Shadow, Threshold, UnmeasuredThresholdWarning
from semcache.ttl import TTL, Timeouts
from semcache.wrap.clients.gather import gather
from semcache.wrap.default import configure
from semcache.wrap.embedding import CachedEmbedding, cached_embedding
from semcache.wrap.function import Cached, CacheInfo, cached, check
from semcache.wrap.retrieval import cached_retrieval

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
    "Decision",
    "DecodeError",
    "EncodeError",
    "Event",
    "Explanation",
    "Hit",
    "InvalidationError",
    "Miss",
    "MissingExtraError",
    "Neighbour",
    "Policy",
    "Request",
    "SemcacheError",
    "SemcacheWarning",
    "Shadow",
    "Stats",
    "Threshold",
    "TierError",
    "Timeouts",
    "Trace",
    "TrafficError",
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
    "register",
    "trace",
]
