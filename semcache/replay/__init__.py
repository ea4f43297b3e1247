"""Recorded traffic, run through the cache, and what came of it."""
