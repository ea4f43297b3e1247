"""Redaction: what nobody should find in a recording is replaced by a mark, in texts and anywhere in plain data.

Laws:
- API keys, e-mail addresses and card numbers are replaced, wherever they stand in a text; account numbers (IBAN) and
  telephone numbers that begin with + too;
- equal secrets are equal marks under one key, and a mark tells nothing to who has not the key: `[email:1f0c93b2a4]`;
- the structure of data is as it was, types included; a mark is no secret, so doing it again leaves it;
- the time it takes grows with the length of the text and no faster, whatever stands in it: no pattern can begin at
  many places and read on from each.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from typing import Any

# So many hexadecimal digits of a digest stand in a mark: two of a million secrets rarely share one.
_DIGITS = 10
# So many texts, of at most so many characters, are known again.
_KNOWN, _KNOWN_LONGEST = 1024, 4096
# What may stand in an address before its @; so far to its left one is looked for.
_LOCAL = re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]*+")
_LOCAL_MOST = 256
_DOMAIN = re.compile(r"[\w.-]*+")
_TOP = re.compile(r"[^\W\d_]{2}|xn--", re.IGNORECASE)

_PRIVATE = re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY")
_KEY = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?:sk|pk|rk)[-_][A-Za-z0-9_-]{16,}+"  # OpenAI, Anthropic, Stripe and who is like them
    r"|(?:AKIA|ASIA|AROA|AIDA)[0-9A-Z]{12,}+"  # AWS
    r"|AIza[0-9A-Za-z_-]{30,}+"  # Google
    r"|(?:gh[pousr]|github_pat|glpat|hf|npm|pypi|xox[abeoprs]|gsk|xai|r8)[-_][A-Za-z0-9_-]{16,}+"
    r"|(?<![-_.])eyJ[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_-]{8,}+(?:\.[A-Za-z0-9_-]*+)?"  # a JSON web token
    r")"
)
_BEARER = re.compile(r"(\b(?:Bearer|Basic)[ \t]{1,4})([A-Za-z0-9._~+/-]{8,}+=*+)", re.IGNORECASE)
_NAMED = re.compile(
    r"(?:x[-_]?)?api[-_]?key|(?:proxy[-_]?)?authorization|password|passwd|secret|(?:client|api)[-_]?secret"
    r"|(?:access|refresh|auth|id|session)[-_]?token|private[-_]?key",
    re.IGNORECASE,
)

# Digits as cards and telephones are written; a run is read once, and cut up by us.
_RUN = re.compile("[0-9](?:[ \u00a0\u202f-]?[0-9])*+")
_GROUP = re.compile("[0-9]+")
_CARD_SHORTEST, _CARD_LONGEST = 13, 19
_CARD_FIRST = "23456"
_CARDS_FROM = 10 ** (_CARD_SHORTEST - 1)
_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)  # the sum of the digits of twice a digit
_PHONE = re.compile(r"(?<![\w+])\+[0-9](?:[ ().\u00a0-]{0,2}[0-9]){6,14}(?![0-9])")

_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,30}")
_IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO",
        16: "BE",
        18: "DK FI FO GL NL",
        19: "MK SI",
        20: "AT BA EE KZ LT LU XK",
        21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA",
        23: "AE GI IL IQ TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HU LB PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU",
        31: "MT SC",
        32: "LC",
    }.items()
    for country in countries.split()
}
_IBAN_CHECK = 97


class Redactor:
    """Replaces secrets by marks; `key`, 16 to 64 bytes, is what equal marks of equal secrets rest on."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        # Names of fields, roles and the system's word come again in each request.
        self._known = lru_cache(_KNOWN)(self._cleaned)

    def mark(self, kind: str, secret: str) -> str:
        """Return what stands in a secret's place."""
        return f"[{kind}:{self._digest(secret)}]"

    def text(self, text: str) -> str:
        """Return a text without its secrets."""
        return self._known(text) if len(text) <= _KNOWN_LONGEST else self._cleaned(text)

    def _cleaned(self, text: str) -> str:
        if text.startswith("data:") and ";base64," in text[:120]:
            return text  # a picture or a sound: what looks like a secret in it is none
        text = self._private_keys(text)
        text = _BEARER.sub(lambda found: found[1] + self.mark("key", found[2]), text)
        text = _KEY.sub(lambda found: self.mark("key", found[0]), text)
        if "@" in text:
            text = self._addresses(text)
        text = _IBAN.sub(self._iban, text)
        if "+" in text:
            text = _PHONE.sub(lambda found: self.mark("phone", _digits(found[0])), text)
        return _RUN.sub(self._cards, text)

    def data(self, data: Any) -> Any:
        """Return plain data without the secrets in its texts, of the same structure; what is named as one is one."""
        return redacted(data, self.text, self.mark, self._number)

    def _digest(self, secret: str) -> str:
        told = secret.encode("utf-8", "surrogatepass")
        return blake2b(told, key=self._key, digest_size=16).hexdigest()[:_DIGITS]

    def _number(self, number: int) -> int:
        """Return a number that is a card's as another of the same type."""
        told = str(number)
        return int(self._digest(told), 16) if _is_card(told) else number

    def _private_keys(self, text: str) -> str:
        parts, at = [], 0
        while (begun := _PRIVATE.search(text, at)) is not None:
            end = text.find("-----END", begun.end())
            closed = len(text) if end < 0 else text.find("-----", end + 8)
            until = len(text) if closed < 0 else min(closed + 5, len(text))
            parts += [text[at : begun.start()], self.mark("key", text[begun.start() : until])]
            at = until
        return "".join([*parts, text[at:]]) if parts else text

    def _addresses(self, text: str) -> str:
        """Look from each @ to both sides, on either no further than an address goes."""
        parts, done, at = [], 0, text.find("@")
        while at >= 0:
            begin = max(done, at - _LOCAL_MOST) if text[at - 1 : at] != "@" else at
            local = _LOCAL.match(text[begin:at][::-1])[0][::-1].lstrip(".'`{|}/=?&*!")  # type: ignore[index]
            domain = _host(_DOMAIN.match(text, at + 1)[0]) if local else ""  # type: ignore[index]
            if domain:
                parts += [text[done : at - len(local)], self.mark("email", f"{local}@{domain}".lower())]
                done = at + 1 + len(domain)
            at = text.find("@", max(at + 1, done))
        return "".join([*parts, text[done:]])

    def _cards(self, found: re.Match[str]) -> str:
        """Replace what is a card's number in a run of digits: whole groups of it, that add up as Luhn's do."""
        run = found[0]
        if len(run) < _CARD_SHORTEST:
            return run
        groups = [(group.start(), group.end()) for group in _GROUP.finditer(run)]
        parts, done, first = [], 0, 0
        while first < len(groups):
            last = _card_end(run, groups, first)
            if last is not None:
                start, end = groups[first][0], groups[last][1]
                parts += [run[done:start], self.mark("card", _digits(run[start:end]))]
                done, first = end, last
            first += 1
        return "".join([*parts, run[done:]]) if parts else run

    def _iban(self, found: re.Match[str]) -> str:
        run = found[0]
        length = _IBAN_LENGTHS.get(run[:2])
        if length is None:
            return run
        at = [place for place, sign in enumerate(run) if sign != " "]
        if len(at) < length:
            return run
        until = at[length - 1] + 1
        told = run[:until].replace(" ", "")
        number = "".join(str(int(sign, 36)) for sign in told[4:] + told[:4])
        return self.mark("iban", told) + run[until:] if int(number) % _IBAN_CHECK == 1 else run


def redacted(
    data: Any, text: Callable[[str], str], mark: Callable[[str, str], str] | None = None,
    number: Callable[[int], int] | None = None, *, is_named: bool = True,
) -> Any:  # fmt: skip
    """Return plain data with each text in it as `text` says, with `is_named` the names of fields too.

    `mark` replaces what is named as a secret.
    """

    def inside(item: Any) -> Any:
        kind = item.__class__
        if kind is str:
            return text(item)
        if kind is dict:
            return {named(name): field(name, held) for name, held in item.items()}
        if kind is list:
            return [inside(one) for one in item]
        if kind is int and number is not None and item >= _CARDS_FROM:
            return number(item)
        return item

    def named(name: Any) -> Any:
        return text(name) if is_named and name.__class__ is str else name

    def field(name: Any, held: Any) -> Any:
        return _marked(held, mark) if mark is not None and _is_named(name, held) else inside(held)

    return inside(data)


def _is_named(name: Any, item: Any) -> bool:
    return name.__class__ is str and item.__class__ is str and bool(item) and _NAMED.fullmatch(name) is not None


def _marked(item: str, mark: Callable[[str, str], str]) -> str:
    return item if re.fullmatch(r"\[key:[0-9a-f]{10}\]", item) else mark("key", item)


def _host(run: str) -> str:
    """Return the domain that a run of its letters begins with; empty where it is none, as in `numpy@1.26`."""
    labels = run.rstrip(".-_").split(".")
    while len(labels) > 1 and not _TOP.match(labels[-1]):
        labels.pop()
    return ".".join(labels) if len(labels) > 1 and labels[0] else ""


def _digits(run: str) -> str:
    return "".join(_GROUP.findall(run))


def _card_end(run: str, groups: list[tuple[int, int]], first: int) -> int | None:
    """Return the last of the groups that make a card's number together, from the first on; the most that do.

    Luhn's sums are taken as the digits come: with every even place doubled, and with every odd one.
    """
    if run[groups[first][0]] not in _CARD_FIRST:
        return None
    count, evens, odds, best = 0, 0, 0, None
    for last in range(first, len(groups)):
        start, end = groups[last]
        if count + end - start > _CARD_LONGEST:
            break
        for digit in map(int, run[start:end]):
            plain, doubled = (digit, _DOUBLED[digit])
            evens, odds = (evens + plain, odds + doubled) if count % 2 else (evens + doubled, odds + plain)
            count += 1
        if count >= _CARD_SHORTEST and not (odds if count % 2 else evens) % 10:
            best = last
    return best


def _is_card(digits: str) -> bool:
    is_long = _CARD_SHORTEST <= len(digits) <= _CARD_LONGEST
    return is_long and _card_end(digits, [(0, len(digits))], 0) is not None
