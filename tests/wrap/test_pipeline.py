"""Pipelines: answers go with the documents that they were made of; stages tell where the time goes."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import time
from contextlib import contextmanager

import openai
import pytest
from instruments import GUARD, Compass, Crew, Origin, watch_flights

import semcache
from semcache import sources
from semcache.stages import Span, findings
from semcache.testing import StandIn

STORES = ["memory", "disk", "redis"]


@pytest.fixture(params=STORES)
def store(request, tmp_path):
    """Settings of a cache whose exact store is this one; two caches of them share it, but in memory."""
    if request.param == "redis":
        return {"redis": request.getfixturevalue("redis_url")}
    return {"disk": tmp_path / "cache.db"} if request.param == "disk" else {}


class Desk:
    """A support desk of one cache: pages, a search by name, and answers made of what is found; counts the answers."""

    def __init__(self, cache, **answering):
        self.pages = {"prices": "3 euro", "hours": "9 to 5", "returns": "free"}
        self.loads = []
        self.cache = cache

        @semcache.cached_retrieval(cache, corpus="desk@v1", version="1")
        def find(query):
            return [{"id": name, "text": text} for name, text in self.pages.items() if name in query]

        @semcache.cached(cache, version="1", **answering)
        def answer(question):
            self.loads.append(question)
            return f"{question}: {len(self.loads)}"

        self.find, self.answer = find, answer

    def ask(self, query, question):
        """Answer a question in a pipeline of its own, after a search; returns the pipeline."""
        with semcache.pipeline("desk") as run:
            self.find(query)
            self.answer(question)
        return run

    def loads_of(self, question):
        """Ask anew, outside of any pipeline; how often it was loaded by now."""
        self.answer(question)
        return self.loads.count(question)


@pytest.fixture
def desk(open_cache):
    return Desk(open_cache())


# What is inherited


def test_answers_go_with_the_documents_of_the_retrievals_before_them(open_cache, store):
    """When a price changes, the answers made of the old page go, and no others; the count says how many went."""
    desk = Desk(open_cache(**store))
    assert desk.ask("prices", "How much?").documents == ("prices",)
    desk.ask("hours", "When?")
    desk.cache.flush()
    assert desk.cache.invalidate(document="prices", dry_run=True) == 2
    assert desk.cache.invalidate(document="prices") == 2
    assert (desk.loads_of("How much?"), desk.loads_of("When?")) == (2, 1)
    assert [page["id"] for page in desk.find("prices")] == ["prices"]
    assert semcache.last().kind == "miss"


def test_answers_inherit_from_what_any_tier_found(open_cache, tmp_path):
    """A search that is a hit in memory, on disk, or in another process, gives its documents as one that loads does."""
    first = Desk(open_cache(disk=tmp_path / "cache.db"))
    first.find("prices")
    first.ask("prices", "memory")
    assert semcache.last().kind == "miss"
    first.cache.flush()
    first.cache.memory.clear()
    first.ask("prices", "disk")
    first.cache.flush()
    second = Desk(open_cache(disk=tmp_path / "cache.db"))
    second.ask("prices", "other")
    second.cache.flush()
    assert len(second.loads) == 1
    assert second.cache.invalidate(document="prices") == 4


@pytest.mark.semantic
def test_answers_inherit_from_a_near_match(open_cache):
    """A near match is an answer made of documents too."""
    settings = {"embedder": Compass(), "policy": semcache.Threshold(0.9, guards=None), "tenant": semcache.SHARED}
    desk = Desk(open_cache(**settings))
    desk.cache.warm()
    desk.find("prices")
    desk.cache.flush()
    with semcache.pipeline("desk") as run:
        desk.find("what prices?")
        assert semcache.last().tier == "semantic"
    assert run.documents == ("prices",)


@pytest.mark.parametrize("is_kept", [True, False])
def test_answers_inherit_from_a_flight_of_others(open_cache, is_kept):
    """Who is given what another caller searched, inside a pipeline or not, has its documents, kept or not."""
    cache, origin = open_cache(), Origin([{"id": "prices"}], hold=True)
    flights = watch_flights(cache)

    @semcache.cached_retrieval(cache, corpus="c", version="1", ignore="origin", when=lambda _: is_kept)
    def find(query):
        return origin()

    @semcache.cached(cache, version="1")
    def answer():
        return "answer"

    def follow():
        with semcache.pipeline("desk") as run:
            find("prices")
            assert semcache.last().shared
            answer()
        return run.documents

    with Crew(2) as crew:
        leading = crew.submit(find, "prices")
        assert origin.entered.wait(GUARD)
        following = crew.submit(follow)
        flights.wait_for(2)
        origin.go.set()
        leading.result(GUARD)
        assert following.result(GUARD) == ("prices",)
    assert cache.invalidate(document="prices") == 1 + is_kept


def test_answers_inherit_from_answers(desk):
    """An answer that stands brings what it was made of, to another pipeline and to what is made around it."""
    desk.ask("prices", "How much?")

    @semcache.cached(desk.cache, version="1")
    def outer():
        return desk.answer("How much?")

    with semcache.pipeline("another") as run:
        outer()
    assert run.documents == ("prices",)
    assert desk.cache.invalidate(document="prices") == 3


def test_function_around_the_whole_has_the_documents_of_all(open_cache, store):
    """What is kept last has what came while it was loaded."""
    desk = Desk(open_cache(**store))

    @semcache.cached(desk.cache, version="1")
    def whole(question):
        desk.find("prices")
        desk.find("hours")
        return desk.answer(question)

    with semcache.pipeline("desk"):
        whole("q")
    desk.cache.flush()
    assert desk.cache.invalidate(document="hours") == 3
    assert desk.loads_of("q") == 2


def test_retrievals_do_not_inherit(desk):
    """A retrieval is made of what it found, not of what others found before it."""
    with semcache.pipeline("desk"):
        desk.find("prices")
        desk.find("hours")
    assert desk.cache.invalidate(document="prices") == 1
    desk.find("hours")
    assert semcache.last().kind == "hit"


def test_vectors_do_not_inherit(desk):
    """A vector is made of its text."""
    embed = semcache.cached_embedding(desk.cache, model="m")(lambda texts: [[1.0]] * len(texts))
    with semcache.pipeline("desk"):
        desk.find("prices")
        embed(["a text"])
    assert desk.cache.invalidate(document="prices") == 1
    embed(["a text"])
    assert embed.cache_info().hits == 1


def test_documents_of_a_context_are_given_too(desk):
    """An answer to which its caller names a document is made of it."""
    with semcache.pipeline("desk") as run:
        with semcache.context(documents="by hand"):
            desk.answer("first")
        desk.answer("second")
    assert run.documents == ("by hand",)
    assert desk.cache.invalidate(document="by hand") == 2


def test_outside_nothing_is_inherited(desk):
    """Before and after a pipeline, and beside it, answers stand for themselves."""
    desk.find("prices")
    desk.answer("before")
    with Crew(1) as crew, semcache.pipeline("desk"):
        desk.find("prices")
        crew.submit(desk.answer, "beside").result(GUARD)  # a thread of a pool has a context of its own
    desk.answer("after")
    assert desk.cache.invalidate(document="prices") == 1


def test_tasks_and_threads_that_are_given_the_context_share_it(desk):
    """Tasks started inside, `to_thread`, and what runs in a copy of the context, are in the pipeline."""

    async def main():
        with semcache.pipeline("desk") as run:
            await asyncio.gather(asyncio.to_thread(desk.find, "prices"), asyncio.create_task(find_hours()))
            await asyncio.to_thread(desk.answer, "q")
            with Crew(1) as crew:
                crew.submit(contextvars.copy_context().run, desk.find, "returns").result(GUARD)
            return run.documents

    async def find_hours():
        return desk.find("hours")

    assert sorted(asyncio.run(main())) == ["hours", "prices", "returns"]
    assert desk.cache.invalidate(document="hours") == 2


def test_async_functions_inherit(open_cache, store):
    """In the other colour the same."""
    cache = open_cache(**store)

    @semcache.cached_retrieval(cache, corpus="c", version="1")
    async def find(query):
        return [{"id": query}]

    @semcache.cached(cache, version="1")
    async def answer(question):
        return question

    async def main():
        with semcache.pipeline("desk"):
            await asyncio.gather(find("a"), find("b"))
            await answer("q")
        await asyncio.to_thread(cache.flush)
        return await cache.ainvalidate(document="b")

    assert asyncio.run(main()) == 2


def test_many_threads_of_one_pipeline_lose_no_document(desk):
    """Whoever adds while others do is heard."""
    with Crew(8) as crew, semcache.pipeline("desk") as run:
        find = semcache.cached_retrieval(desk.cache, corpus="c", version="1")(one_page)
        contexts = [contextvars.copy_context() for _ in range(64)]
        done = [crew.submit(each.run, find, str(number)) for number, each in enumerate(contexts)]
        assert all(one.result(GUARD) for one in done)
    assert sorted(run.documents, key=int) == [str(number) for number in range(64)]


def one_page(query):
    return [{"id": query}]


def test_pipeline_inside_another_has_its_documents_and_hands_on_its_own(desk):
    """What is made inside the inner one is made inside the outer one too."""
    with semcache.pipeline("outer") as outer:
        desk.find("prices")
        with semcache.pipeline("inner") as inner:
            desk.find("hours")
            desk.answer("inside")
        desk.answer("behind")
    assert outer.documents == inner.documents == ("prices", "hours")
    assert desk.cache.invalidate(document="hours") == 3
    desk.answer("inside")
    assert desk.cache.invalidate(document="prices") == 1


def test_answers_of_another_cache_inherit_the_names(open_cache):
    """Positions of two caches do not compare; the documents are inherited all the same."""
    desk, other = Desk(open_cache()), Desk(open_cache("other"))
    for _ in range(3):
        desk.cache.invalidate(tag="none")  # its positions are ahead
    with semcache.pipeline("desk"):
        desk.find("prices")
        other.answer("q")
    assert (desk.cache.invalidate(document="prices"), other.cache.invalidate(document="prices")) == (1, 1)


def test_curated_answers_inherit_nothing(desk):
    """What is put by hand is made of nothing that was found."""
    with semcache.pipeline("desk"):
        desk.find("prices")
        desk.cache.put(desk.answer.request("q"), value="by hand")
    assert desk.cache.invalidate(document="prices") == 1
    assert desk.answer("q") == "by hand"


def test_retrieval_past_the_cache_is_heard_of(desk):
    """Where a search has no key, or is switched off, the answers made of it inherit all the same."""
    with semcache.pipeline("off"):
        with semcache.context(mode="off"):
            desk.find("prices")
        desk.answer("off")
    find = semcache.cached_retrieval(desk.cache, corpus="c", version="1")(lambda query: [{"id": "prices"}])
    with semcache.pipeline("unkeyable"):
        with pytest.warns(semcache.SemcacheWarning, match="not cached"):
            find(object())
        desk.answer("unkeyable")
    assert desk.cache.invalidate(document="prices") == 2


def test_answer_reloaded_behind_its_caller_inherits(open_cache, clock):
    """What is loaded anew behind a stale hit is kept with the documents of the pipeline that asked."""
    desk = Desk(open_cache(), ttl=10, stale_while_revalidate=100)
    desk.answer("q")
    clock.advance(20)
    desk.ask("prices", "q")
    assert desk.cache.chain.crew.wait(GUARD)
    assert desk.loads == ["q", "q"]
    assert desk.cache.invalidate(document="prices") == 2


def test_many_in_one_trip_inherit_and_hand_on(open_cache, store):
    """get_or_load_many: what is missing inherits, what is there gives its own."""
    cache = open_cache(**store)
    with semcache.pipeline("first"):
        with semcache.context(documents="a"):
            requests = [cache.request(number) for number in range(3)]
        cache.get_or_load_many(requests[:2], lambda places: places)
    cache.flush()
    with semcache.pipeline("second") as run:
        asked = [cache.request(number) for number in range(4)]
        cache.get_or_load_many(asked, lambda places: places)
    assert run.documents == ("a",)
    cache.flush()
    assert cache.invalidate(document="a") >= 2
    with semcache.pipeline("third") as run:
        cache.get_or_load_many(asked, lambda places: places)
        assert run.documents == ()


def test_answer_made_of_what_was_invalidated_meanwhile_is_not_kept(open_cache, store):
    """Law 8: the page was found, then changed, then its answer loaded: it is made of the old page, and is not kept."""
    desk = Desk(open_cache(**store))
    with semcache.pipeline("desk"):
        desk.find("prices")
        desk.find("hours")
        desk.cache.invalidate(document="prices")
        desk.answer("q")
        assert semcache.last().reason == "not kept: what it is made of was invalidated"
    desk.cache.flush()
    assert desk.loads_of("q") == 2


def test_old_documents_do_not_keep_new_answers_out(open_cache, store):
    """What was invalidated between two retrievals means neither the younger one nor what is made of both."""
    desk = Desk(open_cache(**store))
    desk.cache.log.settle_seconds = 0  # as some seconds later
    desk.find("hours")
    desk.find("prices")
    desk.answer.cache_clear()
    desk.cache.invalidate(document="prices")
    until(lambda: desk.cache.store is None or desk.cache.log._settled >= desk.cache.log.position())
    with semcache.pipeline("desk"):
        desk.find("hours")
        assert semcache.last().kind == "hit"
        desk.find("prices")
        desk.answer("q")
    desk.cache.flush()
    assert desk.loads_of("q") == 1


def test_mark_that_is_heard_late_takes_the_answer(open_cache, redis_url):
    """Law 8: a mark may be heard after later positions; an answer made of an older document is older than it still."""
    cache = open_cache(redis=redis_url)
    cache.log._hear(1000)
    assert cache.log.birth(900, {("document", "a"): 10}) == 10
    cache.log.settle_seconds = 0
    cache.log._hear(1000)
    assert cache.log.birth(900, {("document", "a"): 10}) == 900
    assert cache.log.birth(1100, {("document", "a"): 10}) == 1000
    assert cache.log.birth(1100, {("document", "a"): 1050}) == 1050


def until(condition):
    """Wait for what another thread brings about."""
    end = time.monotonic() + GUARD
    while not condition():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.002)


# What is not whole


@pytest.mark.parametrize("fails", [True, False])
def test_answers_of_what_nobody_can_tell_whole_are_not_kept(desk, monkeypatch, fails):
    """Where a retrieval cannot tell its documents, or there are too many, nothing that is made of them is kept."""
    monkeypatch.setattr(sources, "MOST_DOCUMENTS", 10)
    names = (lambda found: 1 / 0) if fails else (lambda found: map(str, range(11)))
    find = semcache.cached_retrieval(desk.cache, corpus="c", version="1", documents=names)(one_page)
    with semcache.pipeline("desk"):
        desk.answer("before")
        find("a")
        desk.answer("q")
        assert semcache.last().reason == "not kept: not all documents of its pipeline are known"
    assert (desk.loads_of("q"), desk.loads_of("before")) == (2, 1)


# Streams


def test_generators_inherit_and_hand_on(open_cache, store):
    """A stream that is kept has the documents of its pipeline; one that tells documents gives them."""
    cache = open_cache(**store)

    @semcache.cached(cache, version="1", documents=lambda items: [item["id"] for item in items])
    def find():
        yield {"id": "a"}
        yield {"id": "b"}

    @semcache.cached(cache, version="1")
    def answer(number):
        yield number

    for number, tier in enumerate([None, "store", "memory"]):
        with semcache.pipeline("desk") as run:
            list(find())
            assert semcache.last().kind == ("hit" if tier else "miss")
            list(answer(number))
        assert run.documents == ("a", "b")
        cache.flush()
        if tier is None and cache.store is not None:
            cache.memory.clear()
    assert cache.invalidate(document="b") == 4


def test_stream_that_is_read_along_hands_on(desk):
    """Who reads along with a stream of another pipeline is given what that one is made of."""

    @semcache.cached(desk.cache, version="1")
    def stream():
        yield 1
        yield 2

    def lead():
        with semcache.pipeline("leading"):
            desk.find("prices")
            yield from stream()

    leading = contextvars.copy_context().run(lead)
    context = contextvars.copy_context()
    assert context.run(next, leading) == 1
    with semcache.pipeline("following") as run:
        assert list(stream()) == [1, 2]
        assert semcache.last().shared
        desk.answer("q")
    context.run(leading.close)
    assert run.documents == ("prices",)
    assert desk.cache.invalidate(document="prices") == 3


def test_stream_of_documents_that_is_not_read_to_its_end_is_not_known(desk):
    """What was seen of it may have been used, and what it holds is told at its end."""

    @semcache.cached(desk.cache, version="1", documents=lambda items: [item["id"] for item in items])
    def find():
        yield {"id": "a"}
        yield {"id": "b"}

    with semcache.pipeline("desk"):
        reading = find()
        next(reading)
        reading.close()
        desk.answer("q")
    assert desk.loads_of("q") == 2
    with semcache.pipeline("desk"):
        with semcache.context(mode="off"):
            list(find())  # it goes by, and nobody holds it
        desk.answer("past the cache")
    assert desk.loads_of("past the cache") == 2


@contextmanager
def asked_client(cache):
    with StandIn() as models, openai.OpenAI(base_url=models.openai_url, api_key="none") as bare:
        client = semcache.cached(bare, cache)

        def create(**more):
            messages = [{"role": "user", "content": "How much?"}]
            return client.chat.completions.create(model="m", messages=messages, **more)

        yield models, create


def test_answers_of_a_client_inherit_and_hand_on(desk):
    """A client's answers are dropped with a document, and bring it where they are found."""
    with asked_client(desk.cache) as (models, create):
        with semcache.pipeline("desk"):
            desk.find("prices")
            create()
        with semcache.pipeline("another") as run:
            create()
        assert (models.calls, run.documents) == (1, ("prices",))
        assert desk.cache.invalidate(document="prices") == 2
        create()
        assert models.calls == 2


def test_stream_of_a_client_inherits_from_the_pipeline_that_asked(desk):
    """A stream is made of what was there when it was asked, though it is read behind the pipeline's end."""
    with asked_client(desk.cache) as (models, create):
        with semcache.pipeline("desk"):
            desk.find("prices")
            stream = create(stream=True)
        assert list(stream)
        assert desk.cache.invalidate(document="prices") == 2
        list(create(stream=True))
        assert models.calls == 2


# Stages


def test_stages_tell_what_was_done_in_them(desk):
    """A row for each stage, in the order in which they began: runs, hits, misses, loads, tokens."""
    priced = semcache.cached(desk.cache, version="1", usage=lambda _: semcache.Usage(3, 4))(lambda text: text)
    with semcache.pipeline("desk") as run:
        with semcache.stage("retrieve"):
            desk.find("prices")
            desk.find("prices")
        for text in ("a", "a", "b"):
            with semcache.stage("generate"):
                priced(text)
        desk.answer("beside")
    retrieve, generate, beside = run.stages
    assert (retrieve.name, retrieve.calls, retrieve.hits, retrieve.misses, retrieve.loads) == ("retrieve", 1, 1, 1, 1)
    assert (generate.name, generate.calls, generate.hits, generate.misses) == ("generate", 3, 1, 2)
    assert (generate.prompt_tokens, generate.completion_tokens) == (6, 8)
    assert generate.seconds >= generate.load_seconds > 0
    assert (beside.name, beside.calls, beside.loads) == (desk.answer.__semcache_name__, 0, 1)
    head, *lines = run.table().splitlines()
    assert head.split() == ["stage", "calls", "wall", "s", "hits", "misses", "loads", "load", "s", "tokens"]
    assert [line.split()[0] for line in lines] == ["retrieve", "generate", beside.name]
    assert len(set(map(len, [head, *lines]))) == 1
    assert lines[1].split()[1] == "3"
    assert lines[1].split()[-1] == "14"
    assert str(run) == f"desk\n{run.table()}"


def test_stage_is_booked_wherever_it_stands(desk):
    """Outside of a pipeline a stage is what cost and time are booked on; inside it is restored at its end."""
    with semcache.stage("generate"):
        desk.answer("q")
    assert semcache.last().stage == "generate"
    desk.answer("q")
    assert semcache.last().stage == desk.answer.__semcache_name__
    assert {row.stage for row in desk.cache.usage()} == {"generate", desk.answer.__semcache_name__}


def test_runs_of_a_stage_at_once_are_counted_once():
    """Wall-clock time is what passes on the wall."""
    with semcache.trace() as traced, semcache.stage("outer"):
        for _ in range(2):
            with semcache.stage("outer"):
                pass
    (row,) = traced.stages
    inner, _, whole = traced._spans
    assert row.calls == 3
    assert row.seconds == pytest.approx((whole.ended - whole.began) / 1e9)
    assert inner.ended <= whole.ended


def test_work_done_twice_is_found(desk):
    """The same call loaded again is named, with its stage, and why it was not found."""
    small = semcache.Cache("small", max_value=10)
    long = semcache.cached(small, version="1")(lambda: "long" * 10)
    with semcache.trace() as traced:
        with semcache.stage("generate"):
            for _ in range(3):
                long()
        for _ in range(2):
            desk.answer("found the second time")
        with semcache.context(mode="refresh"):
            desk.answer("found the second time")
    first, second = traced.findings
    assert first.startswith(f"{long.__semcache_name__} was loaded 3 times in generate where 1 would do: ")
    assert "max_value" in first
    assert second.startswith(f"{desk.answer.__semcache_name__} was loaded 2 times where 1 would do: ")
    small.close()


def test_text_that_is_embedded_twice_is_found(desk):
    """Each text of a cached embedding is a call of its own."""
    embed = semcache.cached_embedding(desk.cache, model="m", ttl=5)(lambda texts: [[1.0]] * len(texts))
    with semcache.trace() as traced:
        embed(["a", "b"])
        desk.cache.invalidate(function=embed)
        embed(["b", "c"])
    (found,) = traced.findings
    assert "was loaded 2 times where 1 would do" in found


def found_of(*stages):
    """What is found of (name, needs) that ran one after another, each for two milliseconds."""
    spans = [Span(name, needs, at * 10**7, at * 10**7 + 2_000_000) for at, (name, needs) in enumerate(stages, 1)]
    return [found.split(" do not ")[0] for found in findings([], spans)]


def test_independent_stages_that_ran_one_after_another_are_found():
    """Two searches that need but the question are named, and what is to be spared."""
    with semcache.trace() as traced:
        for name, needs in [("words", ()), ("vectors", []), ("merge", ["words", "vectors"])]:
            with semcache.stage(name, needs=needs):
                began = time.perf_counter()
                while time.perf_counter() < began + 0.002:
                    pass
    (found,) = traced.findings
    assert found.startswith("vectors and words do not need each other, and ran one after the other: run them at once")
    assert found.endswith(" s.")


def test_stages_that_need_each_other_are_not_named():
    """Directly or over others: who needs a result waits for it."""
    assert found_of(("a", ()), ("b", ("a",)), ("c", ("b",))) == []
    assert found_of(("a", ()), ("b", ("a",)), ("a", ()), ("b", ("a",))) == []


def test_nothing_is_claimed_of_stages_that_do_not_say_what_they_need():
    """Who says nothing may need anything, and so may who needs one that says nothing, or did not run."""
    assert found_of(("a", None), ("b", ())) == []
    assert found_of(("a", None), ("b", ("a",)), ("c", ())) == []
    assert found_of(("a", ()), ("b", ("unknown",))) == []


def test_stage_that_could_not_begin_sooner_is_not_blamed():
    """What it needs came late: the order of the other two is what could be mended."""
    assert found_of(("a", ()), ("x", ()), ("b", ("x",))) == ["x and a"]
    assert found_of(("a", ()), ("b", ()), ("c", ())) == ["b and a", "c and a", "c and b"]


def test_stages_too_short_to_matter_are_not_named():
    """Hits run in turn, since they wait for nothing; there is nothing to spare."""
    assert findings([], [Span("a", (), 0, 10), Span("b", (), 20, 10**9)]) == []


def test_stages_at_once_are_not_named():
    """Who ran beside each other has nothing to mend."""

    async def main():
        begun = asyncio.Barrier(2)

        async def one(name):
            with semcache.stage(name, needs=()):
                await begun.wait()

        with semcache.pipeline("desk") as run:
            await asyncio.gather(one("a"), one("b"))
        return run

    run = asyncio.run(main())
    assert run.findings == []
    assert [row.name for row in run.stages] == ["a", "b"]
    assert findings([], [Span("a", (), 0, 10**9), Span("b", (), 10**8, 10**9)]) == []


def test_pipeline_remembers_so_many_lookups(desk, monkeypatch):
    """A pipeline that never ends does not grow without end: it says what it left out."""
    monkeypatch.setattr(sys.modules["semcache.pipeline"], "MOST_LOOKUPS", 3)
    with semcache.pipeline("desk") as run:
        for number in range(5):
            desk.answer(str(number))
    assert (len(run.lookups), run.left_out) == (3, 2)
    assert run.table().endswith("(2 more were not kept)")


@pytest.mark.parametrize("name", ["", None, 3])
def test_names_are_text(name):
    """A wrong name is refused where it is given."""
    with pytest.raises(semcache.ConfigurationError, match=r"has a name|is text"):
        semcache.pipeline(name)
    with pytest.raises(semcache.ConfigurationError, match=r"has a name|is text"):
        semcache.stage(name)
    with pytest.raises(semcache.ConfigurationError, match="needs="):
        semcache.stage("a", needs=[name])


def test_pipeline_and_stage_are_entered_once_at_a_time():
    """Each run has one of its own: their documents and times would mix."""
    run, stage = semcache.pipeline("desk"), semcache.stage("a")
    with run, stage:
        with pytest.raises(semcache.ConfigurationError, match="for each run"):
            run.__enter__()
        with pytest.raises(semcache.ConfigurationError, match="for each run"):
            stage.__enter__()


# What goes by the cache, or comes in pieces


def test_documents_of_a_context_are_given_by_streams_and_by_what_goes_by_the_cache(open_cache):
    """Law 8: whatever came back inside the context, what is kept after it goes with its documents."""
    cache = open_cache()

    @semcache.cached(cache)
    def whole(value):
        return str(value)

    @semcache.cached(cache)
    def pieces(value):
        yield str(value)

    @semcache.cached(cache)
    def after(number):
        return number

    def stop(mode, call):
        with semcache.context(mode=mode):
            return call()

    def unkeyable(call):
        with pytest.warns(semcache.SemcacheWarning):
            return call()

    ways = [
        lambda: whole(1),
        lambda: list(pieces(1)),
        lambda: stop("off", lambda: whole(2)),
        lambda: stop("off", lambda: list(pieces(2))),
        lambda: unkeyable(lambda: whole(object())),
        lambda: unkeyable(lambda: list(pieces(object()))),
    ]
    for number, way in enumerate(ways):
        with semcache.pipeline("p") as run:
            with semcache.context(documents=[f"d{number}"]):
                way()
            after(number)
        assert run.documents == (f"d{number}",), number
        cache.invalidate(document=f"d{number}")
        after(number)
        assert semcache.last().kind == "miss", number


def test_stream_is_kept_with_the_documents_of_who_began_it(open_cache):
    """Who reads along and ends first keeps what the other one has loaded, under that one's documents."""
    cache = open_cache()

    @semcache.cached(cache)
    def pieces(number):
        yield 1
        yield 2

    with semcache.context(documents=["d"]):
        first = pieces(1)
        next(first)
    assert list(pieces(1)) == [1, 2]
    assert list(first) == [2]
    assert cache.invalidate(document="d") == 1
    assert list(pieces(1)) == [1, 2]
    assert semcache.last().kind == "miss"
