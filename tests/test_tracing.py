"""Lookups as spans: the tree that OpenTelemetry's SDK keeps of them, with true times, and nobody's texts in it."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import openai
import pytest
from instruments import Origin
from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, Sampler
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv.attributes import error_attributes, http_attributes, server_attributes, url_attributes
from opentelemetry.trace import SpanKind, StatusCode

import semcache
from semcache.events import Event
from semcache.finding import note_time
from semcache.model import Evidence
from semcache.telemetry import conventions
from semcache.telemetry.tracing import Tracing
from semcache.testing import StandIn


class Kept:
    """What the SDK keeps of a tracer of ours, and of the caller's own."""

    def __init__(self, **settings):
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False, **settings)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("the caller's")

    @property
    def spans(self):
        """Return the spans that have ended, in the order of their beginnings."""
        return sorted(self._exporter.get_finished_spans(), key=lambda span: span.start_time)

    def taken(self):
        spans = self.spans
        self._exporter.clear()
        return spans

    def below(self, parent):
        return [one for one in self.spans if one.parent is not None and one.parent.span_id == parent.context.span_id]

    def named(self, name):
        (span,) = [one for one in self.spans if one.name == name]
        return span


@pytest.fixture
def kept():
    return Kept()


@pytest.fixture
def traced(open_cache, kept):
    return open_cache("shop", observers=[Tracing(kept.provider)])


def stages(kept, lookup):
    return [one.name.removeprefix("semcache.") for one in kept.below(lookup)]


def test_miss_is_a_span_with_its_stages_below_it(traced, kept):
    """One behind another, as they were, inside the lookup's own time."""

    @semcache.cached(traced, version="1")
    def answer(x):
        return x

    answer(1)
    lookup = kept.named("semcache.lookup")
    below = kept.below(lookup)
    assert stages(kept, lookup) == ["key", "memory", "memory", "load", "put"]
    assert lookup.start_time == below[0].start_time
    assert all(first.end_time <= second.start_time for first, second in pairwise(below))
    assert below[-1].end_time <= lookup.end_time
    assert lookup.attributes["semcache.kind"] == "miss"
    assert lookup.attributes["semcache.namespace"] == "shop"
    assert lookup.attributes["semcache.function"].endswith("answer")


def test_memory_hit_is_a_span_with_its_stages_below_it(traced, kept):
    """Though there was no plan that anybody could follow."""

    @semcache.cached(traced, version="1")
    def answer(x):
        return x

    answer(1)
    kept.taken()
    answer(1)
    lookup = kept.named("semcache.lookup")
    key, memory = kept.below(lookup)
    assert (key.name, memory.name) == ("semcache.key", "semcache.memory")
    assert lookup.start_time == key.start_time <= key.end_time == memory.start_time <= memory.end_time
    told = dict(lookup.attributes)
    assert (told["semcache.kind"], told["semcache.tier"]) == ("hit", "memory")
    assert told["semcache.age"] >= 0


@pytest.mark.parametrize("colour", ["thread", "task"])
def test_parent_is_the_callers_span_and_the_load_is_the_origins(traced, kept, colour):
    """What the origin's own client tells lies below the load, and the caller's span is as it was behind it."""

    def origin():
        with kept.tracer.start_as_current_span("the client's"):
            return 1

    async def ask():
        await traced.aget_or_load(traced.request("a"), origin)

    with kept.tracer.start_as_current_span("the caller's") as caller:
        if colour == "thread":
            traced.get_or_load(traced.request("a"), origin)
        else:
            asyncio.run(ask())
        assert trace.get_current_span() is caller
    lookup, load = kept.named("semcache.lookup"), kept.named("semcache.load")
    assert kept.below(kept.named("the caller's")) == [lookup]
    assert kept.below(load) == [kept.named("the client's")]
    assert len({span.context.trace_id for span in kept.spans}) == 1


def test_streams_origin_runs_inside_its_load(traced, kept):
    """From its first item to its end, while its reader's own context is as it was between them."""

    @semcache.cached(traced, version="1")
    def answer():
        for number in range(3):
            with kept.tracer.start_as_current_span(f"the client's {number}"):
                pass
            yield number

    with kept.tracer.start_as_current_span("the caller's") as caller:
        for _ in answer():
            assert trace.get_current_span() is caller
        list(answer())
    first, second = (span for span in kept.spans if span.name == "semcache.lookup")
    assert [first.attributes["semcache.kind"], second.attributes["semcache.kind"]] == ["miss", "hit"]
    load = kept.named("semcache.load")
    assert [one.name for one in kept.below(load)] == [f"the client's {number}" for number in range(3)]
    assert load.end_time >= kept.named("the client's 2").end_time


def test_stream_that_breaks_off_is_the_status_of_its_load(traced, kept):
    """At what it failed; the load ended there, however late its reader hears of it."""

    @semcache.cached(traced, version="1")
    def answer():
        yield 1
        raise LookupError

    with pytest.raises(LookupError):
        list(answer())
    assert kept.named("semcache.load").attributes["error.type"] == "LookupError"
    assert kept.named("semcache.lookup").attributes["error.type"] == "LookupError"


def test_async_streams_origin_runs_inside_its_load(traced, kept):
    """In the one task that it has."""

    @semcache.cached(traced, version="1")
    async def answer():
        with kept.tracer.start_as_current_span("the client's"):
            yield 1

    async def ask():
        return [item async for item in answer()]

    assert asyncio.run(ask()) == [1]
    assert kept.below(kept.named("semcache.load")) == [kept.named("the client's")]


@pytest.mark.semantic
def test_near_hits_stages_are_where_they_were(open_near, kept):
    """Embedding and search were the worker's: they lie in a row between the waiting and the decision."""
    cache = open_near(
        observers=[Tracing(kept.provider, keys=True)], policy=semcache.Threshold(0.5, guards=None),
        tenant=semcache.SHARED,
    )  # fmt: skip
    cache.get_or_load(cache.request(text="stored"), Origin())
    cache.flush()
    kept.taken()
    cache.get_or_load(cache.request(text="stored too"), Origin())
    lookup = kept.named("semcache.lookup")
    told = dict(lookup.attributes)
    assert (told["semcache.kind"], told["semcache.tier"]) == ("hit", "semantic")
    assert told["semcache.similarity"] >= told["semcache.cut"] == 0.5
    assert told["semcache.neighbour"] == cache.request(text="stored").key.hex()
    below = kept.below(lookup)
    order = [one for one in stages(kept, lookup) if one != "wait"]
    assert order == ["memory", "embed", "search", "decide"]
    assert all(first.end_time <= second.start_time for first, second in pairwise(below))
    assert below[-1].end_time <= lookup.end_time
    assert "load" not in stages(kept, lookup)


def test_origins_error_is_the_status_of_load_and_lookup(traced, kept):
    """By its kind alone: what it says may quote what was asked."""

    def origin():
        raise LookupError("my secret")

    with pytest.raises(LookupError):
        traced.get_or_load(traced.request("a"), origin)
    for span in (kept.named("semcache.lookup"), kept.named("semcache.load")):
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "LookupError")
        assert span.attributes["error.type"] == "LookupError"
    assert "secret" not in "".join(span.to_json() for span in kept.spans)


def test_cancelled_load_ends_its_spans(traced, kept):
    """Nobody records its lookup; what was begun of its trace is whole all the same."""

    async def ask():
        began = asyncio.Event()

        async def origin():
            began.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(traced.aget_or_load(traced.request("a"), origin))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(ask())
    assert kept.named("semcache.load").attributes["error.type"] == "CancelledError"
    assert kept.named("semcache.lookup").attributes["error.type"] == "CancelledError"


@pytest.mark.parametrize("texts", [False, True])
def test_faults_are_events_of_the_span(open_cache, kept, texts):
    """What they say may quote a text, and is told only where that was asked for."""
    cache = open_cache(observers=[Tracing(kept.provider, texts=texts)])
    cache.get_or_load(cache.request("a"), {1: "secret"}.keys)  # which cannot be stored
    (fault,) = kept.named("semcache.lookup").events
    assert fault.name == "semcache.fault"
    assert fault.attributes["semcache.tier"] == "codec"
    assert ("semcache.message" in fault.attributes) == texts


def test_fault_away_from_lookups_is_told_to_the_span_that_is_current(traced, kept):
    """As of what fails while somebody puts or invalidates."""
    with kept.tracer.start_as_current_span("the caller's"):
        traced.recorder.fault("disk", "space", OSError("full"))
    traced.recorder.fault("disk", "space", OSError("full"))
    (fault,) = kept.named("the caller's").events
    assert fault.attributes == {"semcache.tier": "disk", "semcache.reason": "space"}


def test_many_lookups_at_once_are_a_span_each(traced, kept):
    """And leave the caller's context as it was."""
    with kept.tracer.start_as_current_span("the caller's") as caller:
        for _ in range(2):
            traced.get_or_load_many([traced.request(n) for n in range(3)], lambda places: [*map(str, places)])
            assert trace.get_current_span() is caller
    lookups = kept.below(kept.named("the caller's"))
    assert [one.attributes["semcache.kind"] for one in lookups] == ["miss"] * 3 + ["hit"] * 3
    assert [stages(kept, one).count("load") for one in lookups] == [1] * 3 + [0] * 3


def test_load_behind_a_stale_answer_is_a_span_of_its_own(open_cache, kept, clock):
    """Below the caller's, who did not wait for it."""
    cache = open_cache(observers=[Tracing(kept.provider)])

    @semcache.cached(cache, version="1", ttl="10s", stale_while_revalidate="1m")
    def answer():
        return 1

    answer()
    clock.advance(20)
    kept.taken()
    with kept.tracer.start_as_current_span("the caller's"):
        answer()
        assert cache.chain.crew.wait(30)
    found, refresh = sorted(kept.below(kept.named("the caller's")), key=lambda span: span.name)
    assert (found.attributes["semcache.stale"], refresh.name) == (True, "semcache.refresh")
    assert "load" in stages(kept, refresh)


def test_what_is_not_sampled_is_not_traced_and_says_so_to_the_origin(open_cache):
    """With a parent, its word holds; without one the sampler's, and what the origin does belongs to the same trace."""
    kept = Kept(sampler=ParentBased(ALWAYS_OFF))
    cache = open_cache(observers=[Tracing(kept.provider)])
    seen = []

    def origin():
        seen.append(trace.get_current_span().get_span_context())
        return 1

    cache.get_or_load(cache.request("a"), origin)
    with kept.tracer.start_as_current_span("the caller's") as caller:
        cache.get_or_load(cache.request("b"), origin)
    for _ in range(2):
        cache.get_or_load(cache.request("a"), origin)
    assert kept.spans == []
    assert [(one.is_valid, bool(one.trace_flags.sampled)) for one in seen] == [(True, False)] * 2
    assert seen[1] == caller.get_span_context()


def test_without_a_provider_nothing_is_told(open_cache):
    """Until a program sets OpenTelemetry up, its API does nothing, and neither do we."""
    cache = open_cache(observers=[Tracing()])
    assert cache.get_or_load(cache.request("a"), lambda: 1) == 1
    assert cache.get_or_load(cache.request("a"), lambda: 2) == 1


class Broken(Sampler):
    def should_sample(self, *_args, **_named):
        raise OSError("broken")

    def get_description(self):
        return "broken"


def test_broken_tracer_fails_no_lookup(open_cache, caplog):
    """Law 10: it is logged, once."""
    cache = open_cache(observers=[Tracing(Kept(sampler=Broken()).provider)])
    before = contexts.get_current()
    for _ in range(3):
        assert cache.get_or_load(cache.request("a"), lambda: 1) == 1
    assert cache.get_or_load(cache.request("b"), lambda: 2) == 2
    assert contexts.get_current() == before
    assert [record.message.split(":")[0] for record in caplog.records] == ["tracing"]


def test_parent_that_is_not_sampled_costs_no_span(open_cache, caplog):
    """Its word is enough: no sampler is asked, and no span begun, for a hit as for a miss."""
    cache = open_cache(observers=[Tracing(Kept(sampler=Broken()).provider)])
    unsampled = trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=True))
    with trace.use_span(unsampled):
        for _ in range(2):
            assert cache.get_or_load(cache.request("a"), lambda: 1) == 1
    assert caplog.records == []


def test_key_tenant_and_texts_are_told_only_where_asked_for(open_cache, kept):
    """Whoever reads traces is not always whoever may read what was asked."""
    for number, settings in enumerate(({}, {"keys": True, "tenants": True})):
        cache = open_cache(observers=[Tracing(kept.provider, **settings)], tenant_usage=True)
        cache.get_or_load(cache.request("my secret", tenant="acme"), lambda: "my answer")
        told = " ".join(span.to_json() for span in kept.taken())
        assert ("acme" in told, cache.request("my secret", tenant="acme").key.hex() in told) == (number == 1,) * 2
        assert "my secret" not in told
        assert "my answer" not in told


@pytest.fixture
def models():
    with StandIn() as server:
        yield server


@pytest.mark.parametrize("usage", [False, True])
def test_calls_of_models_are_told_in_the_words_of_the_conventions(open_cache, kept, models, usage):
    """Tokens only where asked for, and only of what was loaded: a hit that told some would count them twice."""
    cache = open_cache(observers=[Tracing(kept.provider, usage=usage)])
    with openai.OpenAI(base_url=models.openai_url, api_key="k") as plain:
        client = semcache.cached(plain, cache)
        for _ in range(2):
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hello"}])
    miss, hit = (span for span in kept.spans if span.name == "semcache.lookup")
    for lookup in (miss, hit):
        told = dict(lookup.attributes)
        assert (told["gen_ai.operation.name"], told["gen_ai.provider.name"]) == ("chat", "openai")
        assert told["gen_ai.request.model"] == "m"
        assert not any(name.startswith("gen_ai.usage") for name in told)
    assert hit.attributes["semcache.tier"] == "memory"
    told = [span for span in kept.spans if any(name.startswith("gen_ai.usage") for name in span.attributes)]
    if not usage:
        assert told == []
        return
    (load,) = told
    assert (load.name, load.kind) == ("chat m", SpanKind.CLIENT)
    assert load.parent.span_id == miss.context.span_id
    assert load.attributes["gen_ai.usage.input_tokens"] > 0
    assert load.attributes["gen_ai.usage.output_tokens"] > 0
    assert load.attributes["gen_ai.response.id"]


def test_stale_answer_in_place_of_an_error_tells_no_tokens(open_cache, kept, clock):
    """What is served was paid for before; the load that failed cost none."""
    cache = open_cache(observers=[Tracing(kept.provider, usage=True)])
    answers = iter([1])

    @semcache.cached(
        cache, version="1", ttl="10s", stale_if_error="1h", usage=lambda _: semcache.Usage(prompt_tokens=7)
    )  # fmt: skip
    def answer():
        return next(answers)

    answer()
    assert kept.named("semcache.load").attributes["gen_ai.usage.input_tokens"] == 7
    kept.taken()
    clock.advance(20)
    assert answer() == 1
    assert kept.named("semcache.lookup").attributes["semcache.stale"]
    assert kept.named("semcache.load").attributes["error.type"] == "StopIteration"
    assert not any(name.startswith("gen_ai.usage") for span in kept.spans for name in span.attributes)


def test_event_that_is_kept_keeps_no_span(traced):
    """Traces of ours and `last` hold events for long."""
    traced.get_or_load(traced.request("a"), lambda: 1)
    assert semcache.last().watch is None


def test_names_are_those_of_the_conventions():
    """As the package that is generated of them has them; the version is told with the spans."""
    for name, known in (
        ("OPERATION", gen_ai_attributes.GEN_AI_OPERATION_NAME), ("PROVIDER", gen_ai_attributes.GEN_AI_PROVIDER_NAME),
        ("REQUEST_MODEL", gen_ai_attributes.GEN_AI_REQUEST_MODEL),
        ("RESPONSE_ID", gen_ai_attributes.GEN_AI_RESPONSE_ID),
        ("INPUT_TOKENS", gen_ai_attributes.GEN_AI_USAGE_INPUT_TOKENS),
        ("OUTPUT_TOKENS", gen_ai_attributes.GEN_AI_USAGE_OUTPUT_TOKENS),
        ("METHOD", http_attributes.HTTP_REQUEST_METHOD), ("ROUTE", http_attributes.HTTP_ROUTE),
        ("STATUS", http_attributes.HTTP_RESPONSE_STATUS_CODE), ("URL_PATH", url_attributes.URL_PATH),
        ("URL_SCHEME", url_attributes.URL_SCHEME), ("SERVER_ADDRESS", server_attributes.SERVER_ADDRESS),
        ("SERVER_PORT", server_attributes.SERVER_PORT), ("ERROR_TYPE", error_attributes.ERROR_TYPE),
    ):  # fmt: skip
        assert getattr(conventions, name) == known
    operations = {one.value for one in gen_ai_attributes.GenAiOperationNameValues}
    providers = {one.value for one in gen_ai_attributes.GenAiProviderNameValues}
    assert all(one in operations and other in providers for one, other in conventions.CALLS.values())


def test_spans_tell_the_version_of_the_conventions(traced, kept):
    """By the address of its schema."""
    traced.get_or_load(traced.request("a"), lambda: 1)
    scope = kept.named("semcache.lookup").instrumentation_scope
    assert scope.schema_url == conventions.SCHEMA_URL == f"https://opentelemetry.io/schemas/{conventions.VERSION}"


def test_stages_of_another_process_lie_at_the_end_of_the_trip_to_it(kept):
    """Its clock is not ours: how long they took is known, and that they had ended when its answer came."""

    class Far:
        name, exact = "redis", True

    tracing = Tracing(kept.provider)
    event = Event("hit", key=b"k", tier="redis")
    event.watch = tracing.__semcache_watch__(event)
    note_time(event, Far(), 10_000, Evidence(stages=[("embed", 3000, 0), ("search", 2000, 0)]))
    tracing(event)
    below = kept.below(kept.named("semcache.lookup"))
    assert [(one.name, one.end_time - one.start_time) for one in below if one.end_time > one.start_time] == [
        ("semcache.store", 5000), ("semcache.embed", 3000), ("semcache.search", 2000),
    ]  # fmt: skip
    assert event.stages == {"store": 5000, "embed": 3000, "search": 2000}
