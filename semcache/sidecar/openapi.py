"""The OpenAPI 3.1 document of the service, made of its table: what is served is what is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, TypeAdapter

from semcache import __version__
from semcache.sidecar.service import JSON, Row

_REFERENCE = "#/components/schemas/{model}"
_TOKEN = "token"  # noqa: S105 - a name in the document
# What any of them may say, by status.
_REFUSALS = {
    "400": "What was asked cannot be meant", "401": "No token, or none that is known", "403": "Not with this token",
    "404": "It is not there", "405": "Another method", "413": "The body is too large", "415": "Another content type",
    "503": "Not now: try again", "500": "Something of ours failed",
}  # fmt: skip
_UNNAMED = ("401", "403")


class Fault(BaseModel):
    """What is wrong, in words, and what to do instead."""

    message: str
    status: int
    mend: str | None = None


class Refused(BaseModel):
    """An error."""

    error: Fault


def document(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the document."""
    wanted: list[tuple[str, Any, TypeAdapter[Any]]] = [("refused", "serialization", TypeAdapter(Refused))]
    for row in rows:
        name = f"{row.method} {row.path}"
        wanted += [(f"{name} query", "validation", TypeAdapter(row.query))] if row.query is not None else []
        wanted += [(f"{name} body", "validation", TypeAdapter(row.body))] if row.body is not None else []
        wanted += [(f"{name} gives", "serialization", TypeAdapter(row.gives))] if row.gives is not None else []
    schemas, definitions = TypeAdapter.json_schemas(wanted, ref_template=_REFERENCE)
    told = {name: schema for (name, _), schema in schemas.items()}
    paths: dict[str, dict[str, Any]] = {}
    for row in rows:
        if not row.path.endswith("*"):
            paths.setdefault(row.path, {})[row.method.lower()] = _operation(row, told, definitions.get("$defs", {}))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "semcache sidecar", "version": __version__,
            "description": "What an operator asks of a sidecar, and switches: docs/sidecar.md.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": definitions.get("$defs", {}),
            "securitySchemes": {_TOKEN: {"type": "apiKey", "in": "header", "name": "x-semcache-token"}},
        },
    }  # fmt: skip


def _operation(row: Row, told: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    name = f"{row.method} {row.path}"
    gives = told.get(f"{name} gives", {})
    made: dict[str, Any] = {
        "summary": row.does, "operationId": _id(row),
        "responses": {"200": {"description": "What was asked for", "content": {row.media: {"schema": gives}}}}
        | {
            status: {"description": why, "content": {JSON: {"schema": told["refused"]}}}
            for status, why in _REFUSALS.items() if row.rights or status not in _UNNAMED
        },
        # Without tokens nobody needs one.
        "security": [{}, {_TOKEN: []}] if row.rights else [{}],
    }  # fmt: skip
    if row.rights:
        needed = " or ".join(f"`{right}`" for right in row.rights)
        whose = ", of an operator's token" if row.is_of_all else ""
        made["description"] = f"Where there are tokens it wants the right {needed}{whose}."
    if row.query is not None:
        schema = _resolved(told[f"{name} query"], definitions)
        made["parameters"] = [
            {"name": one, "in": "query", "required": one in schema.get("required", ()), "schema": about}
            for one, about in schema["properties"].items()
        ]
    if row.method == "POST":
        body = told.get(f"{name} body", {})
        made["requestBody"] = {"required": True, "content": {row.media: {"schema": body}}}
    return made


def _id(row: Row) -> str:
    parts = [part for part in row.path.replace(".", "_").split("/") if part not in ("", "semcache", "v1")]
    return "_".join([row.method.lower(), *parts])


def _resolved(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that stands for itself."""
    reference = schema.get("$ref", "")
    told: dict[str, Any] = definitions[reference.rpartition("/")[2]] if reference else schema
    return told
