"""What a stored answer of another program says: by the name of what was called, or else by its form."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from semcache.labelling import answer_text
from semcache.wrap.clients.anthropic import Messages
from semcache.wrap.clients.asked import said_in
from semcache.wrap.clients.dialect import Dialect
from semcache.wrap.clients.openai import ChatCompletions
from semcache.wrap.clients.responses import Responses


@lru_cache(maxsize=1)
def _dialects() -> dict[str, Dialect]:
    return {dialect.name: dialect for dialect in (ChatCompletions(), Responses(), Messages())}


def says_of(function: str) -> Callable[[Any], str | None]:
    """Return what tells the text of an answer of this function, or of a client's endpoint."""
    dialect = _dialects().get(function)
    return _said if dialect is None else lambda value: said_in(dialect, value)


def _said(value: Any) -> str | None:
    """Tell what a function returned; of a generator its items, which stand before what it returned."""
    is_stream = isinstance(value, list) and value and value[-1] is None
    if is_stream and all(isinstance(item, str) for item in value[:-1]):
        return "".join(value[:-1])
    return answer_text(value)
