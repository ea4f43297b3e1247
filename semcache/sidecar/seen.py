"""What a proxied call asked, and whose it is: noted with its event, for who looks at recent lookups.

Laws: it stays in memory, for as long as its call is among the latest; a text is cut where it is taken, and redacted
before anybody is shown it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# So many characters of a text are kept, and so many shown: what is cut inside a secret is far behind what is shown.
KEPT, SHOWN = 600, 280


class Seen:
    """Whose call it was, and its last text, cut; empty where there is none, or none is to be shown.

    It is one for all hits of a call's words in memory, which are counted here: `hits`, of which `told` were added up.
    """

    __slots__ = ("hits", "tenant", "text", "told")

    def __init__(self, tenant: str, text: str) -> None:
        self.tenant = tenant
        self.text = text
        self.hits = self.told = 0


def last_text(body: Mapping[str, Any]) -> str:
    """Return what a call's body asks last, cut; empty where that is no text."""
    told = body.get("messages") or body.get("input")
    last = told[-1] if isinstance(told, list) and told else told
    content = last.get("content") if isinstance(last, dict) else last
    if isinstance(content, str):
        return content[:KEPT]
    if not isinstance(content, list):
        return ""
    texts = [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
    return " ".join(texts)[:KEPT]
