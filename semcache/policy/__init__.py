"""Policies: who decides whether a near match is served.

Pure: what a policy needs comes in as arguments, what it says goes out as a Decision; no clock, no store, and no I/O but
where a tuned policy's file is read. Guards and learned policies are asked through the same protocol.
"""

from __future__ import annotations

import os
from typing import Protocol

from semcache.errors import ConfigurationError
from semcache.model import Decision, Neighbour, Request
from semcache.policy.budget import ErrorBudget, Shadow
from semcache.policy.learner import Learner
from semcache.policy.status import CutStatus, FamilyStatus, Offer, PolicyStatus, Share, ThresholdStatus, TunedStatus
from semcache.policy.threshold import Threshold, UnmeasuredThresholdWarning
from semcache.policy.tuned import Tuned

__all__ = [
    "CutStatus", "ErrorBudget", "FamilyStatus", "Offer", "Policy", "PolicyStatus", "Shadow", "Share", "Threshold",
    "ThresholdStatus", "Tuned", "TunedStatus", "UnmeasuredThresholdWarning", "as_policy", "within",
]  # fmt: skip


class Policy(Protocol):
    """Decides on one near match: the text that was asked, and a neighbour whose answer is at hand.

    A policy that decides otherwise in each scope family has `within(request) -> Policy` too; one that serves nothing,
    for now or ever, may say so by `serves`, a bool, and spares what only serving needs. One that ranks neighbours by
    more than their similarity has `rank(text, vector, neighbours) -> list[Neighbour]`: it is given the eight nearest,
    each with its vector, and asked about them in the order in which it returns them. All of ours have `status()`, what
    they serve and what that rests on, with a `budget` (None: none is kept), which prints.
    """

    def decide(self, text: str, neighbour: Neighbour) -> Decision:
        """Say whether the neighbour's answer may be served for `text`."""
        ...


def as_policy(policy: Policy | str | os.PathLike[str] | None) -> Policy:
    """Return the policy that a setting means; a path is a tuned policy's. Raises ConfigurationError."""
    if policy is None:
        return Shadow()
    if isinstance(policy, str) and policy.startswith(("budget:", "threshold:")):
        raise ConfigurationError(
            f"policy={policy!r} is for commands and the environment: in Python it is semcache.ErrorBudget(0.01) or "
            "semcache.Threshold(0.92)"
        )
    if isinstance(policy, str | os.PathLike):
        return Tuned.read(policy)
    if isinstance(policy, type) or not callable(getattr(policy, "decide", None)):
        raise ConfigurationError(
            "policy is None, has decide(), as semcache.ErrorBudget(0.01) or semcache.Threshold(0.92), or is the path "
            f"of a file that `semcache tune` wrote; got {policy!r}"
        )
    if isinstance(policy, Learner):
        policy.check_free()
    return policy


def within(policy: Policy, request: Request) -> Policy:
    """Return what decides on the near matches of a request."""
    chosen = getattr(policy, "within", None)
    decider: Policy = policy if chosen is None else chosen(request)
    return decider
