"""The SDKs whose clients can be cached: their classes, the versions known, and the endpoints that are looked up.

Which one a client is of is read off its class and the classes it inherits from; no SDK is imported (law 13). What an
SDK answers a call with is made by the SDK, of plain data.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from semcache.errors import ConfigurationError
from semcache.warning import ANTHROPIC, OPENAI
from semcache.wrap.clients.anthropic import Messages
from semcache.wrap.clients.dialect import Dialect
from semcache.wrap.clients.openai import ChatCompletions
from semcache.wrap.clients.responses import Responses

# What the SDKs' `post` takes.
_POSTED = frozenset({"cast_to", "body", "options", "stream", "stream_cls", "files", "content"})
_RAW_HEADERS = frozenset({"x-stainless-raw-response", "____stainless_override_cast_to"})


@dataclass(frozen=True, slots=True)
class Sdk:
    """A package, of the versions from `oldest` on and before the major version `before`; `classes` are its clients.

    `embeds` says that they have OpenAI's embeddings.
    """

    package: str
    oldest: tuple[int, int]
    before: int
    classes: tuple[str, ...]
    dialects: tuple[Dialect, ...]
    embeds: bool = False

    def has(self, kind: object) -> bool:
        """Say whether a class, or a method, is of this package."""
        return str(getattr(kind, "__module__", "")).partition(".")[0] == self.package

    def check_version(self) -> None:
        """Raise ConfigurationError where the package's version is not one that is known."""
        told = str(getattr(sys.modules.get(self.package), "__version__", ""))
        numbers = tuple(map(int, re.findall(r"\d+", told)[:2]))
        if numbers and not self.oldest <= numbers < (self.before, 0):
            lowest = ".".join(map(str, self.oldest))
            raise ConfigurationError(
                f"{self.package} {told} is not supported: pip install '{self.package}>={lowest},<{self.before}'"
            )


SDKS = (
    Sdk(OPENAI, (1, 60), 3, ("OpenAI", "AsyncOpenAI"), (ChatCompletions(), Responses()), embeds=True),
    Sdk(ANTHROPIC, (0, 40), 1, ("Anthropic", "AsyncAnthropic"), (Messages(),)),
)


def is_client(target: object) -> bool:
    """Say whether something is an object of an SDK's, as far as its class tells."""
    return not isinstance(target, type) and any(sdk.has(kind) for kind in type(target).__mro__ for sdk in SDKS)


def sdk_of(client: object) -> tuple[Sdk, bool]:
    """Return the SDK of a client, and whether it is an async one. Raises ConfigurationError for an unknown one."""
    for kind in type(client).__mro__:
        for sdk in SDKS:
            if sdk.has(kind) and kind.__name__ in sdk.classes:
                sdk.check_version()
                return sdk, kind.__name__.startswith("Async")
    known = ", ".join(name for sdk in SDKS for name in sdk.classes)
    raise ConfigurationError(
        f"cached knows no client like {type(client).__qualname__}; it takes {known}, or a function"
    )


def is_plain_post(given: Mapping[str, Any]) -> bool:
    """Say whether a POST is of a body alone and answered in the SDK's own type, told in a way that is known."""
    if not isinstance(given.get("body"), Mapping) or given.get("files") or given.get("content"):
        return False
    headers = (given.get("options") or {}).get("headers")
    return given.keys() <= _POSTED and (not headers or _RAW_HEADERS.isdisjoint(map(str.lower, headers)))


def made_by_sdk(client: Any, told: object, kind: Any) -> Any:
    """Have a client's SDK make a type of its own of plain data, as it does with what comes over the wire."""
    make = client._process_response_data  # noqa: SLF001 - there is no public way
    return make(data=told, cast_to=kind, response=_no_response(str(client.base_url)))


@lru_cache(maxsize=8)
def _no_response(url: str) -> Any:
    """Return the response that the SDK names in its error, if what was kept does not validate."""
    import httpx  # the client is there, so it is loaded

    return httpx.Response(200, request=httpx.Request("POST", url))
