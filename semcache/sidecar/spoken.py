"""The endpoints for programs, as the document and the table tell them; `programs` answers them before any table."""

from __future__ import annotations

from typing import Any

from semcache.sidecar.programs import CACHE, CONTROL, MEDIA, USING
from semcache.sidecar.refusals import ABSENT, RefusedError
from semcache.sidecar.service import Call, Row


async def _elsewhere(call: Call) -> Any:  # noqa: ARG001 - a row's function takes it
    raise RefusedError(ABSENT, "this is answered before")


ROWS = (
    Row("POST", CACHE, "Operations of a program that has a memory tier of its own: docs/sidecar.md lists them.",
        _elsewhere, rights=USING, media=MEDIA, most_bytes=0),
    Row("GET", CONTROL, "Invalidations and the mode of all, as they come, for as long as it is read.", _elsewhere,
        rights=USING, media=MEDIA),
)  # fmt: skip
