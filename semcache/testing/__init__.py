"""What people need to test their own code with semcache.

A clock that stands still, a stand-in for the servers of models, and the contract of a tier.
"""

from semcache.testing.clock import ManualClock
from semcache.testing.models import Asked, Held, StandIn
from semcache.testing.protocols import Reply

__all__ = ["Asked", "Held", "ManualClock", "Reply", "StandIn"]
