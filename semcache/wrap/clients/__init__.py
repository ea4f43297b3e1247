"""Cached clients of language models: one engine, and for each protocol a dialect that says what its calls mean."""
