"""What people need to test their own code with semcache: a clock that stands still, the contract of a tier."""

from semcache.testing.clock import ManualClock

__all__ = ["ManualClock"]
