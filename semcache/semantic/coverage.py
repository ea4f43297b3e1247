"""Whether an embedder sees a text whole (law 12): what it does not see is exact only, with a reason in words.

Each function returns the reason, or None. What costs least is asked first: a text of 100,000 characters must not be
tokenised to learn that it is too long.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from semcache.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

CHARACTERS_PER_TOKEN = 10
"""Text with more characters than this for each token of a window is longer than that window, without counting."""

_LANGUAGES_OF = {
    "LATIN": "af az bs ca cs cy da de en eo es et eu fi fr ga gl hr hu id is it la lb lt lv ms mt nb nl nn no pl pt ro "
    "sk sl so sq sr sv sw tl tr uz vi zu",
    "CYRILLIC": "be bg kk ky mk mn ru sr tg uk",
    "GREEK": "el",
    "ARMENIAN": "hy",
    "HEBREW": "he yi",
    "ARABIC": "ar fa ps ur",
    "DEVANAGARI": "hi mr ne sa",
    "BENGALI": "as bn",
    "GURMUKHI": "pa",
    "GUJARATI": "gu",
    "TAMIL": "ta",
    "TELUGU": "te",
    "KANNADA": "kn",
    "MALAYALAM": "ml",
    "SINHALA": "si",
    "THAI": "th",
    "LAO": "lo",
    "KHMER": "km",
    "MYANMAR": "my",
    "GEORGIAN": "ka",
    "ETHIOPIC": "am ti",
    "HANGUL": "ko",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "KATAKANA-HIRAGANA": "ja",
    "CJK": "ja ko zh",
    "IDEOGRAPHIC": "ja ko zh",
}
_SCRIPTS_OF = {
    code: {script for script, codes in _LANGUAGES_OF.items() if code in codes.split()}
    for code in " ".join(_LANGUAGES_OF.values()).split()
}

_OF_ALL_SCRIPTS = frozenset({"MICRO", "FEMININE", "MASCULINE"})
"""First words of the names of letters that every script uses: the micro sign, the ordinal indicators."""
_UNREADABLE = frozenset({"Cn", "Co", "Cs"})
"""Categories that say nothing to any embedder: unassigned, private use, surrogates."""


def scripts_of(languages: Iterable[str]) -> frozenset[str]:
    """Return the scripts that languages are written in; a language is an ISO 639-1 code, with or without a region.

    Raises ConfigurationError for a code that is not in the table.
    """
    scripts: set[str] = set()
    for language in languages:
        code = language.replace("_", "-").partition("-")[0].lower()
        if code not in _SCRIPTS_OF:
            raise ConfigurationError(
                f"an embedder's languages are ISO 639-1 codes such as 'en', 'zh'; {language!r} is none that is known; "
                "leave `languages` out for an embedder of all languages"
            )
        scripts |= _SCRIPTS_OF[code]
    return frozenset(scripts)


def unreadable(text: str, scripts: frozenset[str] | None) -> str | None:
    """Say why a text cannot be read: it is empty, has characters without meaning, or letters of other scripts."""
    if not text or text.isspace():
        return "the text is empty"
    is_latin = scripts is None or "LATIN" in scripts
    if is_latin and text.isascii():
        return None
    has_own, ascii_letter = is_latin, ""
    for character in dict.fromkeys(text):
        if character.isascii():
            ascii_letter = character if character.isalpha() else ascii_letter
        elif unicodedata.category(character) in _UNREADABLE:
            return f"the text has a character without meaning: {character!a}"
        elif scripts is not None and character.isalpha():
            if not _is_written_in(character, scripts):
                return _foreign(character)
            has_own = True
    # Units, names and addresses in Latin letters stand in the texts of all languages, beside letters of their own.
    return _foreign(ascii_letter) if ascii_letter and not has_own else None


def unusual(text: str) -> str | None:
    """Say which character an embedder may not know that takes rare ones for one, as two emoji."""
    for character in dict.fromkeys(text):
        if not character.isascii() and unicodedata.category(character).startswith("S"):
            return f"the text has a character that the embedder may not know: {character!a}"
    return None


def too_long(characters: int, window: int | None) -> str | None:
    """Say why a text of so many characters cannot fit a window of tokens, without counting them."""
    if window is not None and characters > CHARACTERS_PER_TOKEN * window:
        return f"the text is longer than the embedder's window of {window} tokens"
    return None


def too_many(tokens: int, window: int | None) -> str | None:
    """Say why so many tokens do not fit a window."""
    if window is not None and tokens > window:
        return f"the text has {tokens} tokens, the embedder's window {window}"
    return None


def _is_written_in(letter: str, scripts: frozenset[str]) -> bool:
    words = unicodedata.name(letter, "").split()
    # "FULLWIDTH LATIN CAPITAL LETTER A", "HALFWIDTH KATAKANA LETTER A", "CJK UNIFIED IDEOGRAPH-65E5"
    return any(word in scripts or word in _OF_ALL_SCRIPTS for word in words[:2])


def _foreign(letter: str) -> str:
    return f"the text has letters outside the embedder's languages: {letter!r}"
