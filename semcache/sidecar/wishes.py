"""What a request's headers ask of the cache: they narrow and tighten what its owner set, and never widen it.

Of `cache-control` (RFC 9111) `no-cache`, `no-store`, `only-if-cached` and `max-age` are kept; of our own
`x-semcache-{namespace,tenant,ttl,tags,mode,threshold}`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from urllib.parse import quote

from semcache.commands import stricter
from semcache.errors import ConfigurationError
from semcache.model import MODES, Mode
from semcache.ttl import seconds

PREFIX = b"x-semcache-"
_CACHE_CONTROL = b"cache-control"
_NAMES = ("namespace", "tenant", "ttl", "tags", "mode", "threshold")
_LONGEST_NAME = 256


class UnclearWishError(Exception):
    """A header that asks for what there is not; the message says what there is."""


@dataclass(slots=True)
class Wishes:
    """What was asked for: `tenant` parts the caller's own, `namespace` the cache's; `ttl` and `oldest` are seconds.

    `least` is the similarity below which no near match is wanted, `is_only_cached` says that nothing is to be loaded,
    `is_unstored` that nothing is to be kept, in a recording either.
    """

    namespace: str = ""
    tenant: str = ""
    ttl: float | None = None
    tags: tuple[str, ...] = ()
    mode: Mode | None = None
    least: float = -1.0
    oldest: float = inf
    is_only_cached: bool = False
    is_unstored: bool = False

    def within(self, mode: Mode, longest: float) -> tuple[Mode | None, float | None]:
        """Return mode and ttl as they hold in a cache of this mode, whose owner lets nothing live longer."""
        return (
            None if self.mode is None else stricter(self.mode, mode),
            None if self.ttl is None else min(self.ttl, longest),
        )


NONE = Wishes()


def wishes_of(headers: list[tuple[bytes, bytes]]) -> Wishes:
    """Return what headers ask for, which are `cache-control` and ours. Raises UnclearWishError."""
    if not headers:
        return NONE
    wishes = Wishes()
    for name, value in headers:
        text = value.decode("latin-1").strip()
        if name == _CACHE_CONTROL:
            _control(wishes, text)
        else:
            _own(wishes, name[len(PREFIX) :].decode("latin-1"), text)
    return wishes


def _control(wishes: Wishes, text: str) -> None:
    for part in text.lower().split(","):
        name, _, value = part.strip().partition("=")
        if name == "no-store":
            _tighten(wishes, "off")
            wishes.is_unstored = True
        elif name == "no-cache":
            _tighten(wishes, "refresh")
        elif name == "only-if-cached":
            wishes.is_only_cached = True
        elif name == "max-age":
            age = value.strip().strip('"')
            if not age.isascii() or not age.isdigit():
                raise UnclearWishError(f"cache-control: max-age is a whole number of seconds; got {value[:40]!r}")
            wishes.oldest = min(wishes.oldest, float(age))
            if not wishes.oldest:
                _tighten(wishes, "refresh")


def _tighten(wishes: Wishes, mode: Mode) -> None:
    wishes.mode = stricter(wishes.mode or "live", mode)


def _own(wishes: Wishes, name: str, text: str) -> None:
    if name not in _NAMES:
        there = ", -".join((*_NAMES, "token"))  # which is no wish, and so not among them
        raise UnclearWishError(f"x-semcache-{name[:40]} is no header of ours; there are x-semcache-{there}")
    if not text or len(text) > _LONGEST_NAME:
        raise UnclearWishError(f"x-semcache-{name} is text of 1 to {_LONGEST_NAME} characters")
    if name == "mode":
        _tighten(wishes, _mode(text))
    elif name == "ttl":
        wishes.ttl = min(wishes.ttl or inf, _ttl(text))
    elif name == "threshold":
        wishes.least = max(wishes.least, _threshold(text))
    elif name == "tags":
        wishes.tags += tuple(tag.strip() for tag in text.split(",") if tag.strip())
    elif name == "tenant":
        wishes.tenant = quote(text, safe="")
    else:
        wishes.namespace = text


def _mode(text: str) -> Mode:
    for mode in MODES:
        if text == mode:
            return mode
    raise UnclearWishError(f"x-semcache-mode is one of {', '.join(MODES)}; got {text[:40]!r}")


def _ttl(text: str) -> float:
    try:
        return seconds(text, "x-semcache-ttl")
    except ConfigurationError as error:
        raise UnclearWishError(str(error)) from error


def _threshold(text: str) -> float:
    try:
        threshold = float(text)
    except ValueError:
        threshold = inf
    if not 0 <= threshold <= 1:
        raise UnclearWishError(f"x-semcache-threshold is a cosine from 0 to 1; got {text[:40]!r}")
    return threshold
