"""The levels of the cache, one file each."""
