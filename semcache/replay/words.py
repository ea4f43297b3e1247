"""Figures and texts as people read them in a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from semcache.replay.score import Rate

# A space at which no line is broken; whoever prints it makes it a plain one.
GLUE = "\N{NO-BREAK SPACE}"

_WIDE = ("W", "F")
_UNITS = ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))


def count(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun: "1 tenant", "2,000 requests"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def percent(share: float | None) -> str:
    """Return a share of 1 as "12.3%"."""
    return "-" if share is None else f"{100 * share:.1f}%"


def interval(rate: Rate) -> str:
    """Return a rate's 95% interval, as in "0.4-12.1%"."""
    if rate.interval is None:
        return ""
    low, high = rate.interval
    return f"{100 * low:.1f}-{100 * high:.1f}%"


def duration(seconds: float) -> str:
    """Return a duration in its two largest units: "3 d 4 h", "4 min 12 s", "3.1 s", "850 ms"; glued by GLUE."""
    if seconds < 1:
        told = f"{1000 * seconds:.0f} ms"
    elif round(seconds, 1) < 60:  # noqa: PLR2004 - a minute
        told = f"{seconds:.1f} s".replace(".0 s", " s")
    else:
        whole = round(seconds)
        size, unit, smaller_size, smaller = next(one for one in _UNITS if whole >= one[0])
        rest = whole % size // smaller_size
        told = f"{whole // size:,} {unit}" + (f" {rest} {smaller}" if rest else "")
    return told.replace(" ", GLUE)


def money(amount: float) -> str:
    """Return an amount of money with two places, or four below one."""
    return f"{amount:,.2f}" if abs(amount) >= 1 or not amount else f"{amount:,.4f}"


def priced_at(prices: Iterable[str]) -> str:
    """Return of what prices an amount was made, "USD 2026-08-05" each: "USD at prices of 2026-04-01 and 2026-08-05"."""
    days: dict[str, list[str]] = {}
    for currency, _, day in (told.partition(" ") for told in sorted(prices)):
        days.setdefault(currency, []).append(day)
    return ", ".join(f"{currency} at prices of {' and '.join(told)}" for currency, told in days.items())


def latency(microseconds: float) -> str:
    """Return a latency with its fitting unit: "8.4 us", "310 us", "3.1 ms", "1.2 s"."""
    for unit in ("us", "ms", "s"):
        if microseconds < 999.5 or unit == "s":  # noqa: PLR2004 - what rounds to 1,000
            break
        microseconds /= 1000
    return f"{microseconds:.1f} {unit}" if microseconds < 10 else f"{microseconds:,.0f} {unit}"  # noqa: PLR2004 - two digits


def plain(text: str) -> str:
    """Return a text on one line, without what a terminal would act on: a recording is anybody's."""
    return "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))


def clip(text: str, width: int) -> str:
    """Cut a text to so many columns."""
    if columns(text) <= width:
        return text
    taken = 0
    for place, character in enumerate(text):
        taken += columns(character)
        if taken > width - 3:
            return text[:place].rstrip() + "..."
    return text


def columns(text: str) -> int:
    """Return the columns that a text takes in a terminal."""
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in _WIDE)
        for character in text
    )


def apart(text: str, other: str, width: int) -> list[tuple[str, bool]]:
    """Return a text's words, each with whether the other text lacks it, from a little before the first such.

    So two long texts that differ in one number show that number.
    """
    words = plain(text).split()
    others = {bare(word) for word in plain(other).split()}
    marked = [(word, bare(word) not in others) for word in words]
    first = next((place for place, (_, is_apart) in enumerate(marked) if is_apart), 0)
    begin = 0
    over = columns(" ".join(words[: first + 1])) - width * 2 // 3
    while over > 0 and begin < first:
        over -= columns(words[begin]) + 1
        begin += 1
    shown: list[tuple[str, bool]] = [("...", False)] if begin else []
    left = width - 4 * bool(begin)
    for word, is_apart in marked[begin:]:
        if columns(word) + 1 > left - 4:
            rest = clip(word, left) if word == words[-1] else "..."
            shown.append((rest, is_apart and rest != "..."))
            break
        shown.append((word, is_apart))
        left -= columns(word) + 1
    return shown


def bare(word: str) -> str:
    """Return a word without regard to case and the marks around it."""
    return word.casefold().strip(".,;:!?\"'()")


def size(number: float) -> str:
    """Return a number of bytes with its fitting unit, a thousand times the one before: "64 MB", "1.5 kB"."""
    for unit in ("B", "kB", "MB", "GB", "TB"):  # noqa: B007 - the last one stands
        if number < 999.5:  # noqa: PLR2004 - what rounds to 1,000
            break
        number /= 1000
    return f"{number:.1f} {unit}".replace(".0 ", " ") if number < 10 else f"{number:,.0f} {unit}"  # noqa: PLR2004
