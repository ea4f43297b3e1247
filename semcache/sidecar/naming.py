"""Names of our own beside what callers type: tags and documents by which a tenant's entries are known as its own.

Law: nobody can type one: they begin with a character that is no part of a header, and is taken from no program.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote

SIGN = "\x1f"


def quoted(name: str) -> str:
    """Return a name without any of the characters that part names."""
    return quote(name, safe="", errors="surrogatepass")


def own_tag(owner: str, tag: str) -> str:
    """Return what a tag, or a document, of an owner's callers is called where no other owner is meant."""
    return f"{SIGN}{owner}/{quoted(tag)}"


def below(tenant: str) -> str:
    """Return the tag of all that is of a tenant below this one."""
    return f"{SIGN}{tenant}/"


def typed(names: Iterable[str]) -> tuple[str, ...]:
    """Return those names that callers have typed."""
    return tuple(name for name in names if not name.startswith(SIGN))
