"""A pack: several calls of a client joined into one by the user's `join`, whose answer the user's `split` takes apart.

Laws: each call keeps its own key and its own answer, so that it is found alone, packed or not; what the user's two
callables do wrong costs the calls nothing but the pack (law 10): it is given up, whole, and they are sent one by one;
why the answer of a pack is not worth keeping holds for all that is in it (law 7). Tokens are shared out so that the
shares are the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from inspect import isawaitable
from time import perf_counter
from typing import TYPE_CHECKING, Any

from semcache.keep import Unkept
from semcache.wrap.clients.shares import shares_of_usage

if TYPE_CHECKING:  # it imports what the client has imported
    from semcache.wrap.clients.asked import Asked
    from semcache.wrap.clients.engine import Engine


@dataclass(frozen=True, slots=True)
class Packing:
    """How calls are packed: at most `most` at once, by the user's two callables."""

    most: int
    join: Callable[[list[dict[str, Any]]], Any]
    split: Callable[[Any, int], Any]


class GivenUp(BaseException):
    """A pack came to nothing for what `join` or `split` did: it stops the lookups inside, which the calls begin anew.

    `answer` is what the model said, after so many seconds; None where it was not asked.
    """

    def __init__(self, why: str, error: Exception, answer: dict[str, Any] | None = None, seconds: float = 0.0) -> None:
        super().__init__(f"{why}: {error!r}")
        self.error = error
        self.answer = answer
        self.seconds = seconds


class Pack:
    """Calls of one engine that agree in all but their texts, by their places.

    `prepare` takes the parameters of a joined call, checks them, and returns what asks the origin.
    """

    def __init__(
        self, engine: Engine, parameters: Sequence[Mapping[str, Any]], asked: Sequence[Asked], packing: Packing,
        prepare: Callable[[Mapping[str, Any]], Callable[[], Any]],
    ) -> None:  # fmt: skip
        self._engine = engine
        self._parameters = parameters
        self._asked = asked
        self._packing = packing
        self._prepare = prepare
        self._unkept: dict[int, str | None] = {}
        self._began = 0.0

    def load(self, places: list[int]) -> Any:
        """Return what is kept of the answers of these calls, or an awaitable of it. Raises GivenUp."""
        for place in places:
            self._unkept[place] = None
        if len(places) == 1:
            loaded = self._asked[places[0]].load()
            return _listed(loaded) if isawaitable(loaded) else [loaded]
        try:
            # What join alters is its own: our calls may yet be sent one by one.
            joined = self._packing.join([deepcopy(dict(self._parameters[place])) for place in places])
            if not isinstance(joined, Mapping):
                raise TypeError(f"it returned a {type(joined).__name__}, and no parameters of a call")  # noqa: TRY301
            if joined.get("stream"):
                raise TypeError("it asks for a stream")  # noqa: TRY301
            if joined.get("model") != self._parameters[places[0]].get("model"):
                raise TypeError("it asks another model")  # noqa: TRY301
            why_not = self._engine.why_not(dict(joined))
            if why_not is not None:
                raise TypeError(f"it would go by the cache: {why_not}")  # noqa: TRY301
            send = self._prepare(joined)
        except Exception as error:
            raise GivenUp("join= failed", error) from error
        self._began = perf_counter()
        sent = send()
        return self._awaited(places, sent) if isawaitable(sent) else self._parted(places, sent)

    def keeps(self, place: int) -> Callable[[Any], Any]:
        """Return what says whether a call's answer is worth keeping: not where the pack's is not."""

        def keeps(value: Any) -> Any:
            why_not = self._unkept.get(place)
            return self._asked[place].when(value) if why_not is None else Unkept(why_not)

        return keeps

    async def _awaited(self, places: list[int], sent: Any) -> list[Any]:
        return self._parted(places, await sent)

    def _parted(self, places: list[int], answer: Any) -> list[Any]:
        """Take the pack's answer apart. Raises GivenUp."""
        told: dict[str, Any] = {}
        seconds = perf_counter() - self._began
        try:
            told = answer.to_dict(mode="json", warnings=False)
            parts = self._packing.split(answer, len(places))
            if not isinstance(parts, list | tuple) or len(parts) != len(places):
                got = f"{len(parts)}" if isinstance(parts, list | tuple) else f"a {type(parts).__name__}"
                raise TypeError(f"it is asked for a list of {len(places)}, and returned {got}")  # noqa: TRY301
            request_id = getattr(answer, "_request_id", None)
            values = [
                {"answer": self._whole(told, parts, at), "request_id": request_id} for at in range(len(parts))
            ]  # fmt: skip
            for place, value in zip(places, values, strict=True):
                self._engine.dialect.unkept(value["answer"], tools=True)
                if not self._asked[place].accepts(value):
                    raise TypeError(f"it returned what is no answer of {self._engine.dialect.name}")  # noqa: TRY301
            why_not = self._engine.dialect.unkept(told, tools=False)
        except Exception as error:
            raise GivenUp("split= failed", error, told, seconds) from error
        self._unkept.update(dict.fromkeys(places, why_not))
        return values

    def _whole(self, told: dict[str, Any], parts: Sequence[Any], at: int) -> Any:
        """Return one call's answer as plain data, made of what `split` returned for it."""
        part = parts[at]
        if isinstance(part, Mapping):
            return deepcopy(dict(part))
        if not isinstance(part, str):
            return part.to_dict(mode="json", warnings=False)
        answer = {**deepcopy(self._engine.dialect.said(told, part)), "id": f"{told['id']}-{at + 1}"}
        if isinstance(told.get("usage"), dict):
            answer["usage"] = shares_of_usage(told["usage"], len(parts))[at]
        return answer


async def _listed(loaded: Any) -> list[Any]:
    return [await loaded]
