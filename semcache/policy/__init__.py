"""Policies: who decides whether a near match is served.

Pure: what a policy needs comes in as arguments, what it says goes out as a Decision; no clock, no store, no I/O.
Guards and learned policies are asked through the same protocol.
"""

from __future__ import annotations

from typing import Protocol

from semcache.model import Decision, Neighbour, Verdict
from semcache.policy.threshold import Threshold, UnmeasuredThresholdWarning

__all__ = ["Policy", "Shadow", "Threshold", "UnmeasuredThresholdWarning"]


class Policy(Protocol):
    """Decides on one near match: the text that was asked, and a neighbour whose answer is at hand."""

    def decide(self, text: str, neighbour: Neighbour) -> Decision:
        """Say whether the neighbour's answer may be served for `text`."""
        ...


class Shadow:
    """The policy where none is given: near matches are found and recorded, never served."""

    def decide(self, text: str, neighbour: Neighbour) -> Decision:  # noqa: ARG002 - the protocol's
        """Reject, whatever is asked."""
        return Decision(Verdict.REJECT, "shadow: no policy is set", neighbour.similarity)

    def __repr__(self) -> str:
        return "Shadow()"
