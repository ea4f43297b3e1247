"""What each of several calls, or inputs, has used of what one request used: shares that are the whole, together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

# What is the sum of which, in the words of the protocols.
_TOTALS = (
    ("total_tokens", "prompt_tokens", "completion_tokens"),
    ("total_tokens", "input_tokens", "output_tokens"),
)


def shares_by_weight(tokens: int, weights: Sequence[int]) -> list[int]:
    """Share tokens out by weight: whole tokens to each, which add up to them; none where nobody weighs anything."""
    whole = sum(weights) or 1
    return [after - before for before, after in pairwise(tokens * at // whole for at in accumulate(weights, initial=0))]


def shares_of_usage(usage: Mapping[str, Any], number: int) -> list[dict[str, Any]]:
    """Share a usage out: whole tokens to each, which add up to it, also where one number is the sum of two."""
    told = [{name: _share(item, number)[at] for name, item in usage.items()} for at in range(number)]
    for total, *parts in _TOTALS:
        if all(isinstance(usage.get(name), int) for name in (total, *parts)):
            adds_up = usage[total] == sum(usage[name] for name in parts)
            for share in told if adds_up else ():
                share[total] = sum(share[name] for name in parts)
    return told


def _share(item: Any, number: int) -> list[Any]:
    if isinstance(item, Mapping):
        return shares_of_usage(item, number)
    if isinstance(item, bool) or not isinstance(item, int | float):
        return [item] * number
    if isinstance(item, float):
        return [item / number] * number
    return shares_by_weight(item, [1] * number)
