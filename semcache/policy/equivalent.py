"""Whether two answers say the same: a chain of links, each of which says yes, no, or that it does not know.

Laws: pure but for a judge of the user's; the first link that knows decides; where none knows the answer is None, which
counts as different wherever a bound is made. A link says yes or no only where it can be sure: a number that differs is
another answer, a phrase that differs may be another wording.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, TypeAlias

from semcache.errors import ConfigurationError
from semcache.plan import Call, Plan, arun, run

# Takes the cached answer and the fresh one.
Link: TypeAlias = Callable[[str, str], bool | None]
Judge: TypeAlias = Callable[[str, str], Any]

_NUMBER = re.compile(r"(?<![\w.])[-\u2212]?\d[\d,]*(?:\.\d+)?|\d[\d,]*(?:\.\d+)?")
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
# At the edge of a word these say nothing; inside of one, as in "example.com", they may.
_OPENING, _CLOSING = "\"'([{¿¡", ".,;:!?…\"')]}"
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u00ab": '"', "\u00bb": '"'})


def exact(cached: str, fresh: str) -> bool | None:
    """Know that equal answers are equal."""
    return True if cached == fresh else None


def normalised(cached: str, fresh: str) -> bool | None:
    """Know that answers which differ in case, spacing and punctuation at the edge of words alone are equal."""
    return True if _normal(cached) == _normal(fresh) else None


def _normal(text: str) -> list[str]:
    words = []
    for word in text.translate(_QUOTES).casefold().split():
        bare = word.lstrip(_OPENING).rstrip(_CLOSING) or word
        words.append(bare.replace(",", "") if _THOUSANDS.fullmatch(bare) else bare)
    return words


def numbers(cached: str, fresh: str) -> bool | None:
    """Know that answers with other numbers differ: "1,000" is 1000, and 7.50 may be 7.5, or another version."""
    return None if _numbers(cached) == _numbers(fresh) else False


def _numbers(text: str) -> Counter[Decimal]:
    found: Counter[Decimal] = Counter()
    for told in _NUMBER.findall(text):
        number = told.replace("\u2212", "-").rstrip(",")
        parts = [number.replace(",", "")] if _THOUSANDS.fullmatch(number) else number.split(",")
        found.update(Decimal(part) for part in parts if part)
    return found


def structure(cached: str, fresh: str) -> bool | None:
    """Compare answers that are JSON objects or lists: names, lengths, numbers and truths must agree.

    The order of names says nothing. Texts in them are compared as answers are, and may leave it open.
    """
    told = _parsed(cached), _parsed(fresh)
    if None in told:
        return None
    return _same(*told)


def _parsed(text: str) -> Any:
    try:
        told = json.loads(text, parse_float=Decimal)
    except (ValueError, RecursionError):
        return None
    return told if isinstance(told, dict | list) else None


def _same(cached: Any, fresh: Any) -> bool | None:
    if isinstance(cached, dict) and isinstance(fresh, dict):
        if cached.keys() != fresh.keys():
            return False
        return _all(_same(cached[name], fresh[name]) for name in cached)
    if isinstance(cached, list) and isinstance(fresh, list):
        if len(cached) != len(fresh):
            return False
        return _all(_same(one, other) for one, other in zip(cached, fresh, strict=True))
    if isinstance(cached, str) and isinstance(fresh, str):
        return _first((exact, numbers, normalised), cached, fresh)
    return bool(cached == fresh) and isinstance(cached, bool) == isinstance(fresh, bool)


def _all(said: Any) -> bool | None:
    """Return False if any is, else None if any is, else True."""
    is_open = False
    for one in said:
        if one is False:
            return False
        is_open = is_open or one is None
    return None if is_open else True


def _first(links: Sequence[Link], cached: str, fresh: str) -> bool | None:
    for link in links:
        said = link(cached, fresh)
        if said is not None:
            return said
    return None


def similar(embed: Callable[[list[str]], Any], at_least: float) -> Link:
    """Make a link that knows that answers of at least this cosine are equal; `embed` returns unit vectors.

    It knows of no answers that they differ. How near is near enough is the user's guess: "not" hardly moves a vector.
    """
    if isinstance(at_least, bool) or not isinstance(at_least, int | float) or not -1 <= at_least <= 1:
        raise ConfigurationError(f"the similarity of equal answers is a cosine, from -1 to 1; got {at_least!r}")

    def link(cached: str, fresh: str) -> bool | None:
        one, other = embed([cached, fresh])
        cosine = sum(float(a) * float(b) for a, b in zip(one, other, strict=True))
        return True if cosine >= at_least else None

    return link


class Comparator:
    """A chain of links: exact, JSON structure, numbers, normalised, then `links` of the user's, then a `judge`.

    A judge takes the cached answer and the fresh one and returns True, False or None, or an awaitable of it. What it
    raises, or returns beside these, counts as None; `troubles` counts them by what was raised, and `opened` how often
    nobody knew.
    """

    def __init__(self, *links: Link, judge: Judge | None = None) -> None:
        if judge is not None and not callable(judge):
            raise ConfigurationError(f"a judge takes two answers and says True, False or None; got {judge!r}")
        self._links = (exact, structure, numbers, normalised, *links)
        self.judge = judge
        self.troubles: Counter[str] = Counter()
        self.opened = 0

    def twin(self) -> Comparator:
        """Return one of the same links and judge, with counts of its own."""
        twin = Comparator(judge=self.judge)
        twin._links = self._links
        return twin

    def compare(self, cached: str, fresh: str) -> Plan[bool | None]:
        """Say whether two answers say the same; None: not known."""
        said = _first(self._links, cached, fresh)
        if said is None and self.judge is not None:
            try:
                said = yield Call(self.judge, cached, fresh)
                if said is not None and not isinstance(said, bool):
                    raise TypeError(f"a judge says True, False or None; got {said!r}")  # noqa: TRY301 - counted below
            except Exception as error:  # noqa: BLE001 - the judge is the user's: whatever it raises, it does not know
                self.troubles[f"{type(error).__name__}: {error}"] += 1
                said = None
        self.opened += said is None
        return said

    def equivalent(self, cached: str, fresh: str) -> bool | None:
        """Say whether two answers say the same, with a judge that is no coroutine; None: not known."""
        return run(self.compare(cached, fresh))

    async def aequivalent(self, cached: str, fresh: str) -> bool | None:
        """Say what `equivalent` says; what the judge returns is awaited if it can be."""
        return await arun(self.compare(cached, fresh))


def equivalent(cached: str, fresh: str, *links: Link) -> bool | None:
    """Say whether two answers say the same, by the links that need nothing, then by those given; None: not known."""
    return Comparator(*links).equivalent(cached, fresh)
