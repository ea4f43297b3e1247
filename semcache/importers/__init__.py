"""Importers: requests that others have logged, as a recording.

Laws: a log is read once, a line at a time, so its length does not matter; what is no request is passed over and
counted, what is one and cannot be read is named by its line and reason, and nothing is guessed at.
"""

from semcache.importers.found import Settings, Skipped, detect
from semcache.importers.order import Imported, write_ordered
from semcache.importers.sources import SOURCES

__all__ = ["SOURCES", "Imported", "Settings", "Skipped", "detect", "write_ordered"]
