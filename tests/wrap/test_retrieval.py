"""cached_retrieval: documents for a query, dropped with any document they hold, and a larger k for a smaller."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from instruments import GUARD, Crew, Origin, watch_flights

import semcache
from semcache import SemcacheWarning

STORES = ["memory", "disk", "redis"]


@dataclass
class Page:
    id: str
    text: str = ""


PAGES = {f"doc:{number}": Page(f"doc:{number}", f"page {number}") for number in range(40, 50)}


@pytest.fixture(params=STORES)
def store(request, tmp_path):
    """Settings of a cache whose exact store is this one; two caches of them share it, but in memory."""
    if request.param == "redis":
        return {"redis": request.getfixturevalue("redis_url")}
    return {"disk": tmp_path / "cache.db"} if request.param == "disk" else {}


@pytest.fixture(params=["sync", "async"])
def colour(request):
    """Make a retriever, of either colour, of a plain search(query, k, ...): called as a plain function in both."""

    def make(cache, search, **options):
        options = {"corpus": "docs@v1", "version": "1"} | options
        if request.param == "sync":

            @semcache.cached_retrieval(cache, **options)
            def find(query, k=3, language="en", user=None):
                return search(query, k)

            return find

        @semcache.cached_retrieval(cache, **options)
        async def afind(query, k=3, language="en", user=None):
            await asyncio.sleep(0)
            return search(query, k)

        def call(*args, **kwargs):
            return asyncio.run(afind(*args, **kwargs))

        call.cached = afind
        return call

    return make


def until(condition):
    """Wait for what another thread brings about."""
    end = time.monotonic() + GUARD
    while not condition():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.002)


class Search:
    """Finds the first k pages; counts its calls."""

    def __init__(self, pages=None):
        self.pages = list(PAGES.values()) if pages is None else pages
        self.asked = []

    def __call__(self, query, k):
        self.asked.append((query, k))
        return self.pages[:k]


def test_documents_are_found_once_and_filters_are_in_the_key(open_cache, store, colour):
    """The same call is a hit, of equal documents; every other argument is another answer."""
    cache, search = open_cache(**store), Search()
    find = colour(cache, search)
    assert find("prices", 2) == find("prices", k=2) == search.pages[:2]
    assert find("prices", 2, language="de") == find("prices", 3)[:2]
    assert search.asked == [("prices", 2), ("prices", 2), ("prices", 3)]


def test_invalidated_document_takes_every_answer_that_holds_it(open_cache, store, colour):
    """The ids of what was found are facets of the answer, whatever the query was."""
    cache, search = open_cache(**store), Search()
    find = colour(cache, search)
    for k in (2, 3, 4):
        find("prices", k)
    assert cache.flush(GUARD)
    assert cache.invalidate(document="doc:42", dry_run=True) == 2
    assert cache.invalidate(document="doc:42") == 2
    search.asked.clear()
    for k in (2, 3, 4):
        find("prices", k)
    assert search.asked == [("prices", 3), ("prices", 4)]


@pytest.mark.parametrize("kind", ["disk", "redis"])
def test_document_is_dropped_from_the_memory_of_other_processes(open_cache, tmp_path, redis_url, kind):
    """What one cache found and another has in memory goes when a third says that the document changed."""
    store = {"disk": tmp_path / "cache.db"} if kind == "disk" else {"redis": redis_url}
    ours, theirs = open_cache(**store), open_cache(**store)
    search = Search()

    def find_in(cache):
        @semcache.cached_retrieval(cache, corpus="docs@v1", version="1")
        def find(query, k):
            return search(query, k)

        return find

    key = find_in(ours).request("prices", 3).key
    find_in(ours)("prices", 3)
    assert ours.flush(GUARD)
    find_in(theirs)("prices", 3)
    assert len(search.asked) == 1
    assert theirs.probe(key) is not None
    ours.invalidate(document="doc:41")
    until(lambda: theirs.probe(key) is None)
    find_in(theirs)("prices", 3)
    assert len(search.asked) == 2


def test_document_that_changes_while_it_is_searched_is_not_kept(open_cache, store):
    """Law 8: a search that began before the document changed is stored nowhere, and nobody joins it afterwards."""
    cache = open_cache(**store)
    flights, origin = watch_flights(cache), Origin([Page("doc:42", "old")], hold=True)
    find = semcache.cached_retrieval(cache, corpus="docs@v1", version="1")(lambda query: origin())
    with Crew() as crew:
        before = crew.submit(find, "prices")
        assert origin.entered.wait(GUARD)
        cache.invalidate(document="doc:42")
        origin.answer = [Page("doc:42", "new")]
        after = crew.submit(find, "prices")
        flights.wait_for(2)
        origin.go.set()
        assert before.result(GUARD)[0].text == "old"
        assert after.result(GUARD)[0].text == "new"
    assert cache.flush(GUARD)
    assert find("prices")[0].text == "new"


@pytest.mark.semantic
def test_corpus_and_its_version_are_in_key_and_scope(open_near):
    """Neither an equal query nor a near one is answered from another corpus, or an older version of it."""
    cache = open_near({"prices": 0, "price": 10})
    made = {}
    for corpus in ("docs@v1", "docs@v2", "wiki@v1"):
        made[corpus] = semcache.cached_retrieval(cache, corpus=corpus, version="1")(
            lambda query, corpus=corpus: [Page(corpus)]
        )
        assert made[corpus]("prices") == [Page(corpus)]
    assert cache.flush(GUARD)
    for corpus, find in made.items():
        assert find("price") == [Page(corpus)]
        assert semcache.last().tier == "semantic"


@pytest.mark.semantic
def test_query_may_match_nearly_and_a_document_drops_what_it_matched(open_near):
    """A near query is served the documents of the other; when one of them changes it is searched anew."""
    cache, search = open_near({"prices": 0, "price": 10, "staff": 90}), Search()
    find = semcache.cached_retrieval(cache, corpus="docs@v1", version="1")(lambda query, k=2: search(query, k))
    find("prices")
    assert cache.flush(GUARD)
    find("price")
    assert semcache.last().tier == "semantic"
    find("staff")
    assert [query for query, _ in search.asked] == ["prices", "staff"]
    cache.invalidate(document="doc:41")
    find("price")
    assert [query for query, _ in search.asked] == ["prices", "staff", "price"]


@pytest.mark.semantic
def test_near_query_of_another_tenant_or_without_leave_is_searched(open_near):
    """Near matches stay within the tenant; query=None looks for none."""
    cache, search = open_near({"prices": 0, "price": 10}, tenant=None), Search()

    @semcache.cached_retrieval(cache, corpus="docs@v1", version="1", tenant="rights")
    def find(query, rights):
        return search(query, rights)

    @semcache.cached_retrieval(cache, corpus="docs@v1", version="1", tenant="rights", query=None)
    def exact(query, rights):
        return search(query, rights)

    for one in (find, exact):
        one("prices", 1)
    assert cache.flush(GUARD)
    search.asked.clear()
    find("price", 2)
    exact("price", 1)
    find("price", 1)
    assert search.asked == [("price", 2), ("price", 1)]
    assert cache.invalidate(tenant="1") == 3  # a near match is stored nowhere


# Ids


@pytest.mark.parametrize(
    ("found", "names"),
    [
        ([{"id": "a"}, {"id": 7}], ["a", "7"]),
        ([{"doc_id": "a"}], ["a"]),
        ([{"text": "x", "metadata": {"id": "a"}}], ["a"]),
        ([({"id": "a"}, 0.9)], ["a"]),
        (({"id": "a"},), ["a"]),
        ([{"id": UUID(int=1)}], [str(UUID(int=1))]),
        ([{"id": None, "metadata": {"doc_id": "b"}}], ["b"]),
        ([], []),
    ],
)
def test_ids_are_found_where_retrievers_put_them(open_cache, found, names):
    """`id` or `doc_id`, as key, attribute or in the metadata, also beside a score."""
    cache = open_cache()
    find = semcache.cached_retrieval(cache, corpus="docs@v1", version="1")(lambda query: found)
    assert find("prices") == found
    for name in names:
        assert cache.invalidate(document=name, dry_run=True) == 1


def test_documents_names_the_attribute_or_tells_the_ids(open_cache):
    """`documents=` is a name, several, or a callable of the answer."""
    cache = open_cache()
    answer = {"hits": [{"page": "a"}, {"page": "b"}]}
    make = partial(semcache.cached_retrieval, cache, corpus="docs@v1", version="1")
    called = make(documents=lambda found: [hit["page"] for hit in found["hits"]])(lambda query: answer)
    named = make(documents=("url", "page"))(lambda query, other=1: answer["hits"])
    assert called("q") == answer
    assert named("q") == answer["hits"]
    assert cache.invalidate(document="b") == 2


@pytest.mark.parametrize("found", [["a text"], [{"id": "a"}, {"text": "x"}], {"hits": []}, None])
def test_documents_without_an_id_are_warned_of_once_and_kept(open_cache, found):
    """Nothing is refused: the answer is kept, and its owner knows that no document drops it."""
    cache = open_cache()
    find = semcache.cached_retrieval(cache, corpus="docs@v1", version="1")(lambda query: found)
    with pytest.warns(SemcacheWarning, match="documents="):
        assert find("prices") == found
    find("other")  # warnings are errors here: there is no second
    assert find("prices") == found
    assert semcache.last().is_hit


@pytest.mark.parametrize("told", [[None], [""], 7, [["a"]]])
def test_answer_whose_documents_cannot_be_told_is_not_kept(open_cache, told):
    """What no invalidation could find is returned, counted, and stored nowhere."""
    cache, search = open_cache(), Search()
    find = semcache.cached(cache, version="1", documents=lambda found: told)(lambda query: search(query, 1))
    for _ in range(2):
        assert find("prices") == search.pages[:1]
    assert len(search.asked) == 2
    assert cache.stats().faults == {"documents: TypeError": 2}


def test_plain_functions_and_generators_tell_documents_too(open_cache):
    """`cached(documents=)`: of a generator's items, too."""
    cache = open_cache()

    @semcache.cached(cache, version="1", documents=lambda answer: answer["sources"])
    def answer(question):
        return {"text": question, "sources": ["doc:1", "doc:2"]}

    @semcache.cached(cache, version="1", documents=lambda items: items[-1])
    def stream(question):
        yield question
        yield ["doc:2"]

    answer("a")
    list(stream("a"))
    with semcache.context(documents="doc:0"):
        answer("b")
    assert cache.invalidate(document="doc:0", dry_run=True) == 1
    assert cache.invalidate(document="doc:1", dry_run=True) == 2
    assert cache.invalidate(document="doc:2") == 3


def test_curated_answer_is_dropped_with_its_documents(open_cache, store):
    """What was put by hand has its documents as facets too, and serves any k."""
    cache, search = open_cache(**store), Search()

    @semcache.cached_retrieval(cache, corpus="docs@v1", version="1", prefix_k=True)
    def find(query, k):
        return search(query, k)

    cache.put(find.request("prices", 5), value=[Page("doc:1"), Page("doc:2")], pinned=True)
    assert find("prices", 1) == [Page("doc:1")]
    assert find("prices", 9) == [Page("doc:1"), Page("doc:2")]
    assert cache.flush(GUARD)
    assert cache.invalidate(document="doc:2") == 1
    find("prices", 1)
    assert search.asked == [("prices", 1)]


# prefix_k


def test_larger_k_serves_a_smaller(open_cache, store, colour):
    """A smaller k is the beginning of what was found; a larger is searched, and from then on serves both."""
    cache, search = open_cache(**store), Search()
    find = colour(cache, search, prefix_k=True)
    for k in (4, 4, 2, 6, 5, 4):
        assert find("prices", k) == search.pages[:k]
    assert [k for _, k in search.asked] == [4, 6]
    assert cache.flush(GUARD)
    if store:
        cache.memory.clear()
        assert find("prices", 3) == search.pages[:3]
    cache.invalidate(document="doc:45")
    assert find("prices", 3) == search.pages[:3]
    assert [k for _, k in search.asked] == [4, 6, 3]


def test_whole_corpus_serves_every_k(open_cache, colour):
    """Fewer documents than were asked for are all there are."""
    cache, search = open_cache(), Search(list(PAGES.values())[:3])
    find = colour(cache, search, prefix_k=True)
    for k in (5, 50, 2, 3):
        assert find("prices", k) == search.pages[:k]
    assert [k for _, k in search.asked] == [5]


@pytest.mark.parametrize("k", [0, -1, None, "3", True, 2.0])
def test_k_that_is_no_number_from_one_on_is_not_cached(open_cache, k):
    """It may mean all, or nothing: the function knows, we do not."""
    cache = open_cache()
    find = semcache.cached_retrieval(cache, corpus="docs@v1", version="1", prefix_k=True)(lambda query, k: [k, k])
    with pytest.warns(SemcacheWarning, match="argument 'k'"):
        assert find("prices", k) == [k, k]
    assert find("prices", k) == [k, k]
    assert find.cache_info() == (0, 0, 2)


def test_misfitting_call_fails_as_the_function_does(open_cache):
    """The function's own TypeError is the caller's."""
    find = semcache.cached_retrieval(open_cache(), corpus="docs@v1", version="1", prefix_k=True)(lambda query, k: [])
    with pytest.raises(TypeError, match="missing 1 required"):
        find("prices")


def test_what_is_told_documents_is_told_what_the_function_returned(open_cache):
    """`when`, `ttl` and `documents` see no difference with prefix_k."""
    cache, seen = open_cache(), []

    def look(answer):
        seen.append(answer)
        return True

    find = semcache.cached_retrieval(
        cache, corpus="docs@v1", version="1", prefix_k=True, when=look, ttl=lambda answer: look(answer) and "1m",
        documents=lambda answer: look(answer) and ["doc:1"],
    )(lambda query, k: ["a", "b"])  # fmt: skip
    find("prices", 2)
    assert seen == [["a", "b"]] * 3
    assert cache.invalidate(document="doc:1") == 1


def test_caller_with_a_larger_k_does_not_take_the_answer_of_a_smaller_in_flight(open_cache):
    """Who waits for a search of a smaller k searches himself when it has landed."""
    cache = open_cache()
    flights = watch_flights(cache)
    hold = Origin(hold=True)

    def search(query, k):
        if k == 2:
            hold()
        return [{"id": number} for number in range(k)]

    find = semcache.cached_retrieval(cache, corpus="docs@v1", version="1", prefix_k=True)(search)
    with Crew() as crew:
        small = crew.submit(find, "prices", 2)
        assert hold.entered.wait(GUARD)
        large, smaller = crew.submit(find, "prices", 4), crew.submit(find, "prices", 1)
        flights.wait_for(3)
        hold.go.set()
        assert [len(one.result(GUARD)) for one in (small, large, smaller)] == [2, 4, 1]
    assert len(find("prices", 3)) == 3


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_prefix_k_answers_as_the_function_does(open_cache, data):
    """Against the function itself, whatever is asked, whatever changes in between."""
    cache = open_cache()
    pages = data.draw(st.lists(st.integers(0, 9), max_size=8, unique=True))
    ranking, versions = list(pages), dict.fromkeys(pages, 0)

    def search(query, k):
        return [{"id": str(page), "version": versions[page]} for page in ranking[:k]]

    find = semcache.cached_retrieval(cache, corpus="docs@v1", version="1", prefix_k=True)(search)
    for _ in range(data.draw(st.integers(1, 10))):
        if pages and data.draw(st.booleans()):
            changed = data.draw(st.sampled_from(pages))
            versions[changed] += 1
            cache.invalidate(document=str(changed))
        k = data.draw(st.integers(1, 10))
        assert find("prices", k) == search("prices", k)
    cache.close()


# Decoration


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"corpus": ""}, "corpus="),
        ({"corpus": 7}, "corpus="),
        ({"query": "question"}, "text='question'"),
        ({"prefix_k": True, "k": "top"}, "no argument 'top'"),
        ({"documents": [7]}, "documents="),
        ({"version": 1}, "version="),
    ],
)
def test_wrong_settings_are_refused(open_cache, options, match):
    """At decoration, with the mend."""
    with pytest.raises(semcache.ConfigurationError, match=match):
        semcache.cached_retrieval(open_cache(), **{"corpus": "docs@v1"} | options)(lambda query, k: [])


def test_generator_is_refused(open_cache):
    """Documents are one answer."""

    def find(query):
        yield query

    with pytest.raises(semcache.ConfigurationError, match="generator"):
        semcache.cached_retrieval(open_cache(), corpus="docs@v1")(find)


def test_methods_and_the_default_cache(open_cache):
    """A retriever's method is keyed by what the retriever says of itself; without a cache it is the default one's."""

    class Retriever:
        def __init__(self, name):
            self.name = name

        def __semcache_key__(self):
            return self.name

        @semcache.cached_retrieval(corpus="docs@v1", prefix_k=True, version="1")
        def find(self, query: str, k: int = 2) -> list[Page]:
            return [Page(f"{self.name}:{number}") for number in range(k)]

    assert Retriever("a").find("q")[0].id == "a:0"
    assert Retriever("b").find("q", 1)[0].id == "b:0"
    assert Retriever("a").find("q", 1) == [Page("a:0")]
    assert Retriever.find.cache_info() == (1, 2, 0)
