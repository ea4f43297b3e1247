"""Times in buckets an eighth of a doubling wide: a few numbers, of which quantiles are told to some percent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Buckets = dict[int, int]
# 2 ** 3 buckets for each doubling; below 2 ** 4 nanoseconds one for each.
_BITS = 3


def bucket(nanoseconds: int) -> int:
    """Return the number of the bucket of a time."""
    length = nanoseconds.bit_length()
    if length <= _BITS + 1:
        return max(0, nanoseconds)
    return (length << _BITS) | ((nanoseconds >> (length - _BITS - 1)) & 7)


def middle(number: int) -> float:
    """Return the nanoseconds in the middle of a bucket."""
    length = number >> _BITS
    if length <= 1:
        return float(number)
    width = 1 << (length - _BITS - 1)
    return ((8 | (number & 7)) + 0.5) * width


def added(told: Iterable[Mapping[int, int]]) -> Buckets:
    """Return the sums of several."""
    sums: Buckets = {}
    for one in told:
        for number, count in one.items():
            sums[number] = sums.get(number, 0) + count
    return sums


def quantiles(buckets: Mapping[int, int], shares: Iterable[float]) -> list[float]:
    """Return the milliseconds below which these shares lie, in their order, 0.0 where there are none."""
    count = sum(buckets.values())
    ordered = sorted(buckets.items())
    told = []
    for share in shares:
        left, found = share * count, 0.0
        for number, times in ordered:
            found = middle(number)
            left -= times
            if left <= 0:
                break
        told.append(found / 1e6)
    return told
