"""What defeats a provider's prefix cache: a clock or an id near the start of a prompt that is another at every call.

Laws: only what changes between calls is told, so a date that stands in a prompt for good is none; and only where all
the rest of the prompt's beginning is the same, for the least that a provider caches. Of prompts nothing is kept but
hashes, of a bounded number of them.
"""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from threading import Lock
from typing import NamedTuple

from semcache.wrap.clients.prefix import Told

# How many beginnings are remembered, and of each how many values.
_BEGINNINGS = 64
_LATEST = 8
# So many values in a row say that it changes by itself; one or two may be two customers, or two days.
_FRESH = 3
# Calls after which what was counted is halved: what stood still for long may move from now on.
_CALLS = 16

_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]{0,6}\.?"
_WEEKDAY = r"(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]{0,6},?\s)?"
_TIME = r"\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d{1,9})?)?(?:\s?[AaPp]\.?[Mm]\b)?(?:\s?Z|\s?[+-]\d{2}:?\d{2})?"
_CHANGES = re.compile(
    rf"""(?<![0-9A-Za-z])(?:
      (?P<id>[0-9a-fA-F]{{8}}-(?:[0-9a-fA-F]{{4}}-){{3}}[0-9a-fA-F]{{12}})
    | (?P<clock>
        \d{{8}}T\d{{6}}Z?
      | \d{{4}}([-/.])\d{{1,2}}\3\d{{1,2}}(?:(?:T|,?\s){_TIME})?
      | \d{{1,2}}([/.])\d{{1,2}}\4\d{{4}}(?:,?\s{_TIME})?
      | {_WEEKDAY}(?:{_DAY}\s{_MONTH}|{_MONTH}\s{_DAY})(?:,?\s\d{{4}}(?:,?\s{_TIME})?|,?\s{_TIME})
      | {_TIME}
      | 1[5-9]\d{{8}}(?:\d{{3}}|\d{{6}}|\d{{9}})?(?:\.\d+)?
      )
    | (?P<long>(?=[0-9a-fA-F]*\d)[0-9a-fA-F]{{16,64}}|01[0-9A-HJKMNP-TV-Z]{{24}})
    )(?![0-9A-Za-z])""",
    re.VERBOSE,
)
# Each has one of these in it, which are found ten times faster: four digits, a colon between two, a long hex. It begins
# not farther before, and ends not farther behind.
_HINTS = re.compile(r"[0-9a-fA-F](?:(?<=[0-9])(?:[0-9]{3}|:[0-9]{2}|1[0-9A-HJKMNP-TV-Z]{24})|[0-9a-fA-F]{11})")
_BEFORE, _BEHIND = 40, 80
_STANDS_FOR = {"clock": "\0", "id": "\1"}


class Moving(NamedTuple):
    """What changes: "a clock" or "an id", in which text, at which of its characters."""

    what: str
    where: str
    character: int


class _Match(NamedTuple):
    kind: str
    value: int
    start: int


class _Beginning:
    """What has stood in the places of one beginning; `fresh` counts the calls that brought a new value."""

    __slots__ = ("calls", "fresh", "latest", "recent")

    def __init__(self) -> None:
        self.calls = self.fresh = 0
        self.latest: tuple[int, ...] = ()
        self.recent: deque[int] = deque(maxlen=_LATEST)


class Watch:
    """Compares the beginnings of successive prompts. Threads may share it."""

    def __init__(self) -> None:
        self._seen: OrderedDict[int, _Beginning] = OrderedDict()
        self._lock = Lock()

    def saw(self, texts: Iterable[Told], characters: int) -> Moving | None:
        """Take note of a prompt, of whose beginning so many characters count; returns what moves there, if so."""
        told, raw = [], ""
        for text in texts:
            told.append((len(raw), text.where))
            raw += text.text[: 2 * characters] + "\n"
            if len(raw) >= 2 * characters:
                break
        if len(raw) <= characters:
            return None
        masked, matches = _masked(raw[: 2 * characters], characters)
        if not matches or len(masked) < characters:
            return None
        values = tuple(match.value for match in matches)
        changed = self._changed(hash(masked), values)
        if changed is None:
            return None
        kind, _, start = matches[changed]
        begun, where = next(place for place in reversed(told) if place[0] <= start)
        return Moving("a clock" if kind == "clock" else "an id", where, start - begun)

    def _changed(self, key: int, values: tuple[int, ...]) -> int | None:
        """Return which of a beginning's values is another at every call."""
        with self._lock:
            seen = self._seen.setdefault(key, _Beginning())
            self._seen.move_to_end(key)
            if len(self._seen) > _BEGINNINGS:
                self._seen.popitem(last=False)
            all_of_them = hash(values)
            is_fresh = all_of_them not in seen.recent
            latest, seen.latest = seen.latest, values
            seen.calls += 1
            if is_fresh:
                seen.recent.append(all_of_them)
                seen.fresh += 1
            moves = is_fresh and seen.fresh >= _FRESH and 2 * seen.fresh > seen.calls
            if seen.calls >= _CALLS:
                seen.calls, seen.fresh = seen.calls // 2, seen.fresh // 2
        if not moves:
            return None
        return next((place for place, pair in enumerate(zip(latest, values, strict=False)) if pair[0] != pair[1]), None)


def sites(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield what may move in a text, in order: "a clock" or "an id", where it begins and where it ends."""
    for match in _found(text):
        yield "a clock" if match["clock"] else "an id", match.start(), match.end()


def _found(raw: str) -> Iterator[re.Match[str]]:
    end = 0
    while (hint := _HINTS.search(raw, end)) is not None:
        match = _CHANGES.search(raw, max(end, hint.start() - _BEFORE), hint.start() + _BEHIND)
        if match is not None:
            yield match
        end = (hint if match is None else match).end()


def _masked(raw: str, characters: int) -> tuple[str, list[_Match]]:
    """Return so many characters of a text in which a sign stands for each clock and id, and what it stands for."""
    pieces: list[str] = []
    matches: list[_Match] = []
    length = end = 0
    for match in _found(raw):
        length += match.start() - end
        if length >= characters:
            break
        kind = "clock" if match["clock"] else "id"
        pieces += (raw[end : match.start()], _STANDS_FOR[kind])
        matches.append(_Match(kind, hash(match[0]), match.start()))
        length += 1
        end = match.end()
    pieces.append(raw[end:])
    return "".join(pieces)[:characters], matches
