"""Documents for a query, until one of them changes: `python examples/retrieval.py`.

A search that counts common words stands in for a vector database.
"""

from dataclasses import dataclass

import semcache

cache = semcache.Cache()


@dataclass
class Page:
    """A page of the handbook; its `id` is what its answers can be dropped by."""

    id: str
    text: str


PAGES = {
    "prices": Page("prices", "prices of shipping to all countries"),
    "austria": Page("austria", "shipping to Austria takes two days"),
    "returns": Page("returns", "returns are free"),
}


@semcache.cached_retrieval(cache, corpus="handbook@v1", tenant="rights", prefix_k=True)
def find(query: str, k: int, rights: str) -> list[Page]:
    print(f"  (searching what {rights} may read: {query}, {k})")
    words = set(query.lower().split())
    return sorted(PAGES.values(), key=lambda page: -len(words & set(page.text.lower().split())))[:k]


def main() -> None:
    print([page.id for page in find("shipping to Austria", 2, rights="staff")])
    print([page.id for page in find("shipping to Austria", 1, rights="staff")])  # the first of the two
    print([page.id for page in find("shipping to Austria", 1, rights="public")])  # others' rights, another answer

    PAGES["prices"] = Page("prices", "prices on demand")
    print(cache.invalidate(document="prices"), "dropped")
    print([page.id for page in find("shipping to Austria", 2, rights="staff")])
    print(find.cache_info())


if __name__ == "__main__":
    main()
