"""semcache: the cache in front of language models, embedding models and retrieval."""
