"""The facets of entries in a store's file: one row for each combination, and one label for each tag and document of it.

Law: what an invalidation means is found by index, from the facet value to the combinations that have it to the entries
that have those; no value is read.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from msgpack import packb

from semcache.marks import Pair
from semcache.model import Facets

_FIND = """
    SELECT id FROM facets
    WHERE namespace = ? AND function = ? AND version = ? AND tenant = ? AND model = ? AND labels = ?"""
_ADD = "INSERT INTO facets (namespace, function, version, tenant, model, labels) VALUES (?, ?, ?, ?, ?, ?)"
_OF = """
    SELECT namespace, function, version, tenant, model, facets.id FROM entries JOIN facets ON facets.id = entries.facets
    WHERE key = ?"""
_LABEL_BYTES = 60


def add(connection: sqlite3.Connection, facets: Facets) -> int:
    """Return the row of a combination of facets, which is made where there is none."""
    names = (facets.namespace, facets.function, facets.version, facets.tenant, facets.model)
    labels = b""
    if facets.tags or facets.documents:
        labels = blake2b(packb([facets.tags, facets.documents]), digest_size=16).digest()
    found = connection.execute(_FIND, (*names, labels)).fetchone()
    if found is not None:
        return int(found[0])
    row = int(connection.execute(_ADD, (*names, labels)).lastrowid or 0)
    pairs = [("tag", tag) for tag in facets.tags] + [("document", document) for document in facets.documents]
    connection.executemany("INSERT INTO labels VALUES (?, ?, ?)", [(*pair, row) for pair in pairs])
    return row


def of(connection: sqlite3.Connection, key: bytes) -> Facets | None:
    """Return the facets of the entry of a key; None where there is no such entry."""
    found = connection.execute(_OF, (key,)).fetchone()
    if found is None:
        return None
    namespace, function, version, tenant, model, row = found
    labels = connection.execute("SELECT facet, value FROM labels WHERE facets = ?", (row,)).fetchall()
    tags, documents = (tuple(value for facet, value in labels if facet == kind) for kind in ("tag", "document"))
    return Facets(namespace, function, version, tenant, model, tags, documents)


def canonical(namespace: str, facets: Facets) -> Facets:
    """Return facets as the store keeps them: of its namespace, tags and documents each once and in order."""
    tags, documents = facets.tags, facets.documents
    if tags or documents:
        tags, documents = tuple(sorted(set(tags))), tuple(sorted(set(documents)))
    return Facets(namespace, facets.function, facets.version, facets.tenant, facets.model, tags, documents)


def label_bytes(facets: Facets) -> int:
    """Return the bytes that tags and documents take in the file, roughly: as labels, by index, and of the entry."""
    return sum(3 * len(label) + _LABEL_BYTES for label in (*facets.tags, *facets.documents))


def meant(namespace: str, pairs: Sequence[Pair]) -> tuple[str, list[Any]]:
    """Return a SELECT of the ids of all entries that invalidations mean, each once, and its parameters."""
    values_of: dict[str, list[str | bytes]] = {}
    for facet, value in pairs:
        values_of.setdefault(facet, []).append(value)
    selects: list[str] = []
    parameters: list[Any] = []
    for facet, values in values_of.items():
        these = f"IN ({', '.join('?' * len(values))})"
        if facet == "key":
            selects.append(f"SELECT id FROM entries WHERE key {these}")  # noqa: S608 - question marks
            parameters += values
            continue
        if facet == "namespace":
            combinations = f"SELECT id FROM facets WHERE namespace {these}"  # noqa: S608
            parameters += values
        elif facet in ("tag", "document"):
            combinations = (
                f"SELECT labels.facets FROM labels JOIN facets ON facets.id = labels.facets"  # noqa: S608
                f" WHERE labels.facet = '{facet}' AND labels.value {these} AND facets.namespace = ?"
            )
            parameters += [*values, namespace]
        else:
            combinations = f"SELECT id FROM facets WHERE namespace = ? AND {facet} {these}"  # noqa: S608
            parameters += [namespace, *values]
        selects.append(f"SELECT id FROM entries WHERE facets IN ({combinations})")  # noqa: S608
    return " UNION ".join(selects), parameters
