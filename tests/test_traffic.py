"""The traffic format: reading, writing, and what a recorded request means to a cache."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import semcache
from semcache.errors import TrafficError
from semcache.traffic import DELIVERY, Recorded, meaning, parse, read, write

CHAT = {
    "ts": 1.5,
    "kind": "llm",
    "request": {"model": "m", "messages": [{"role": "user", "content": "hello"}]},
    "response": "hi",
    "usage": {"prompt_tokens": 3, "completion_tokens": 1},
    "latency_ms": 12,
    "tenant": "acme",
    "answer_id": "greeting",
}


def line(**changes):
    fields = {**CHAT, **changes}
    return json.dumps({name: value for name, value in fields.items() if value is not ...})


def chat(**changes):
    return line(request={**CHAT["request"], **changes})


# Reading


def test_line_in_the_format_gives_every_field():
    """Each field of a line is what the record says, in seconds, milliseconds and text."""
    recorded = parse(line(), 7)
    assert recorded == Recorded(
        1.5, "llm", CHAT["request"], "hi", {"prompt_tokens": 3, "completion_tokens": 1}, 12.0, "acme", "greeting", 7
    )


def test_line_with_only_what_is_required_is_read():
    """Response, usage, latency, tenant and answer_id are optional; null is as good as absent."""
    bare = dict.fromkeys(("response", "usage", "latency_ms", "tenant", "answer_id"), ...)
    null = dict.fromkeys(("response", "usage", "latency_ms", "tenant", "answer_id"))
    assert parse(line(**bare)) == parse(line(**null)) == Recorded(1.5, "llm", CHAT["request"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "not an object but [1]"),
        (line(ts=...), '"ts" is missing'),
        (line(ts="1"), '"ts" is a number, at least 0; got "1"'),
        (line(ts=True), '"ts" is a number'),
        (line(ts=-1), '"ts" is a number, at least 0; got -1'),
        ('{"ts": NaN, "kind": "llm", "request": {}}', "NaN is no number"),
        ('{"ts": 1e999, "kind": "llm", "request": {}}', '"ts" is a number'),
        (f'{{"ts": 1{"0" * 400}, "kind": "retrieval", "request": {{"corpus": "", "query": ""}}}}', '"ts" is a number'),
        (line(kind="chat"), '"kind" is one of llm, embedding, retrieval; got "chat"'),
        (line(kind=["llm"]), '"kind" is one of'),
        (line(request=...), '"request" is missing'),
        (line(request="hello"), '"request" is an object; got "hello"'),
        (chat(model=None), 'has a text "model"; got null'),
        (chat(messages=[]), 'a list of "messages", at least one'),
        (chat(messages="hello"), 'a list of "messages"'),
        (chat(messages=[{"content": "x"}]), '"messages"[0] is an object with a "role"'),
        (line(kind="embedding", request={"model": "e"}), 'has an "input"'),
        (line(kind="retrieval", request={"query": "q"}), 'has a text "corpus"'),
        (line(kind="retrieval", request={"corpus": "c", "query": 3}), 'has a text "query"; got 3'),
        (line(response=3), '"response" is a text; got 3'),
        (line(tenant=""), '"tenant" is a text that is not empty'),
        (line(answer_id=4), '"answer_id" is a text; got 4'),
        (line(latency_ms=-5), '"latency_ms" is a number, at least 0'),
        (line(usage=3), '"usage" is an object'),
        (line(usage={"prompt_tokens": 1.5}), '"prompt_tokens" is a whole number'),
        (line(usage={"completion_tokens": -1}), '"completion_tokens" is a whole number'),
        (line(usage={"prompt_tokens": 5, "cached_tokens": 3, "cache_write_tokens": 3}), "are all of the prompt"),
        ("[" * 100_000, "nested too deeply"),
        (b'{"ts": \xff}', "not UTF-8 at byte 7"),
    ],
)
def test_line_out_of_the_format_is_refused_with_the_reason(text, reason):
    """What is wrong with a line is said so that it can be found and mended."""
    with pytest.raises(TrafficError) as caught:
        parse(text, 3)
    assert str(caught.value).startswith("line 3: ")
    assert reason in str(caught.value)
    assert caught.value.line == 3


def test_reason_of_a_long_line_stays_short():
    """A line may hold a whole conversation; the message about it does not."""
    with pytest.raises(TrafficError) as caught:
        parse(line(response=["word"] * 10_000))
    assert len(str(caught.value)) < 150


def test_malformed_lines_are_named_skipped_and_counted():
    """What cannot be read is collected with its number; the rest is read."""
    skipped = []
    lines = [line(ts=1), "{", "", line(ts=2, kind="x"), line(ts=3)]
    assert [recorded.line for recorded in read(lines, skipped)] == [1, 5]
    assert [number for number, _ in skipped] == [2, 4]
    assert skipped[0][1].startswith("not JSON")


def test_strict_read_stops_at_the_first_malformed_line():
    """Without a list for the malformed lines, the first one is an error that names it; what stood before is read."""
    reading = read([line(ts=1), "{", line(ts=3)])
    assert next(reading).ts == 1
    with pytest.raises(TrafficError, match="line 2"):
        next(reading)


def test_ts_that_decreases_is_malformed():
    """Time never goes back in a recording; a line that does is skipped, and the next is measured by the one before."""
    skipped = []
    lines = [line(ts=5), line(ts=4), line(ts=5)]
    assert [recorded.line for recorded in read(lines, skipped)] == [1, 3]
    assert skipped == [(2, '"ts" never decreases, but 4 comes after 5')]


def test_read_takes_a_byte_order_mark_and_windows_line_ends():
    """Files that an editor on Windows has saved are read."""
    lines = [b"\xef\xbb\xbf" + line().encode() + b"\r\n", b"\r\n", line().encode() + b"\r\n"]
    assert len(list(read(lines))) == 2
    assert len(list(read(["\ufeff" + line()]))) == 1


def test_read_takes_lines_one_at_a_time():
    """A recording may be larger than memory: a line is read when its request is asked for."""
    taken = []

    def lines():
        for number in range(3):
            taken.append(number)
            yield line(ts=number)

    reading = read(lines())
    next(reading)
    assert taken == [0]


# Writing

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
messages = st.lists(st.fixed_dictionaries({"role": st.text(), "content": values}), min_size=1, max_size=3)
requests = st.one_of(
    st.tuples(st.just("llm"), st.fixed_dictionaries({"model": st.text(), "messages": messages, "other": values})),
    st.tuples(st.just("embedding"), st.fixed_dictionaries({"model": st.text(), "input": values})),
    st.tuples(st.just("retrieval"), st.fixed_dictionaries({"corpus": st.text(), "query": st.text(), "k": values})),
)
tokens = st.integers(0, 10**9)
recordings = st.lists(
    st.builds(
        lambda ts, request, **fields: Recorded(ts, *request, **fields),
        st.floats(0, 1e9),
        requests,
        response=st.none() | st.text(),
        usage=st.none() | st.fixed_dictionaries({}, optional={"prompt_tokens": tokens, "completion_tokens": tokens}),
        latency_ms=st.none() | st.floats(0, 1e9),
        tenant=st.none() | st.text(min_size=1),
        answer_id=st.none() | st.text(),
    ),
    max_size=5,
).map(lambda recorded: sorted(recorded, key=lambda one: one.ts))


@given(recordings)
def test_what_is_written_reads_back_as_it_was(recorded):
    """Writing and reading give the same requests, whatever characters are in them."""
    file = io.StringIO()
    assert write(recorded, file) == len(recorded)
    for number, one in enumerate(recorded, 1):
        one.line = number
    assert list(read(file.getvalue().encode().split(b"\n"))) == recorded


@pytest.mark.parametrize(
    "recorded",
    [
        Recorded(1, "chat", {}),
        Recorded(1, "llm", {"model": "m", "messages": []}),
        Recorded(float("nan"), "retrieval", {"corpus": "c", "query": "q"}),
        Recorded(1, "retrieval", {"corpus": "c", "query": "q", "filter": {1, 2}}),
    ],
)
def test_write_refuses_what_could_not_be_read(recorded):
    """A file that was written is in the format."""
    with pytest.raises(TrafficError):
        write([recorded], io.StringIO())


def test_write_refuses_time_that_goes_back():
    """Requests are written oldest first."""
    request = {"corpus": "c", "query": "q"}
    with pytest.raises(TrafficError, match="never decreases"):
        write([Recorded(2, "retrieval", request), Recorded(1, "retrieval", request)], io.StringIO())


# Meaning


def meaning_of(*messages, **body):
    return meaning(Recorded(0, "llm", {"model": "m", "messages": list(messages), **body}))


USER = {"role": "user", "content": "hello"}


def test_meaning_of_a_chat_takes_the_last_users_text():
    """The text is the last message's; it stands nowhere else, and the model is told apart."""
    meant = meaning_of({"role": "system", "content": "be kind"}, USER)
    assert (meant.text, meant.model, meant.exact_only, meant.bypass) == ("hello", "m", None, None)
    assert "be kind" in str(meant.parts)
    assert "hello" not in str(meant.parts)


def test_meaning_leaves_the_recorded_request_as_it_was():
    """Nothing is taken out of the request itself."""
    recorded = parse(chat(messages=[{"role": "user", "content": [{"type": "text", "text": "hello"}]}]))
    before = json.dumps(recorded.request)
    assert meaning(recorded).text == "hello"
    assert json.dumps(recorded.request) == before


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "assistant", "content": "hello"}, "not the user's"),
        ({"role": "tool", "content": "hello", "tool_call_id": "1"}, "not the user's"),
        ({"role": "user"}, "more than a text"),
        ({"role": "user", "content": None}, "more than a text"),
        ({"role": "user", "content": []}, "more than a text"),
        ({"role": "user", "content": ["hello"]}, "more than a text"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}, "more than a text"),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "more than a"),
    ],
)
def test_chat_whose_last_message_is_no_users_text_is_exact_only(message, reason):
    """Only a user's text may match nearly; the whole message is then a part."""
    meant = meaning_of(USER, message)
    assert meant.text is None
    assert reason in meant.exact_only
    assert meant.parts[1]["messages"] == [USER, message]


@pytest.mark.parametrize(
    ("body", "bypass"),
    [
        ({"temperature": 0.7}, "temperature > 0"),
        ({"n": 2}, "n > 1"),
        ({"temperature": 0}, None),
        ({"temperature": 0.0, "n": 1}, None),
        ({"temperature": None}, None),
        ({}, None),
    ],
)
def test_chat_that_asks_for_variety_is_bypassed(body, bypass):
    """An explicit temperature over 0, or several answers, want other answers each time."""
    assert meaning_of(USER, **body).bypass == bypass


def test_delivery_parameters_are_a_closed_list():
    """Law 1: what is known not to change the answer is a list that a reviewer sees change."""
    assert sorted(DELIVERY) == [
        "extra_headers", "metadata", "prompt_cache_key", "safety_identifier", "service_tier", "store", "stream",
        "stream_options", "timeout", "user",
    ]  # fmt: skip


def test_embedding_is_exact_only():
    """Another input has another vector; its delivery parameters are left out, its others are not."""
    request = {"model": "e", "input": "hello", "dimensions": 64, "user": "u"}
    meant = meaning(Recorded(0, "embedding", request))
    assert meant.text is None
    assert meant.exact_only
    assert meant.parts == ("embedding", {"model": "e", "input": "hello", "dimensions": 64})


def test_retrieval_takes_the_query_and_leaves_out_nothing():
    """The query is the text; all else, whatever it is called, is parts."""
    meant = meaning(Recorded(0, "retrieval", {"corpus": "c", "query": "q", "k": 3, "user": "u"}))
    assert meant.text == "q"
    assert meant.parts == ("retrieval", {"corpus": "c", "k": 3, "user": "u"})


# The ingredients of the scope: with one vector for all texts, requests are near if, and only if, they share a scope.


class OneVector:
    """An embedder to which all texts are the same."""

    def __init__(self, identity="one-vector"):
        self.identity = identity

    def __call__(self, texts):
        import numpy as np

        return np.ones((len(texts), 4), dtype=np.float32) / 2


class Serve:
    """A policy that serves every near match."""

    def decide(self, text, neighbour):
        return semcache.Decision(semcache.Verdict.REUSE, "always", neighbour.similarity)


def make_cache(namespace="n", embedder=None):
    return semcache.Cache(
        namespace, embedder=embedder or OneVector(), policy=Serve(), tenant=semcache.SHARED,
        timeouts=semcache.Timeouts(semantic="60s"),
    )  # fmt: skip


def request_of(cache, recorded, **call):
    meant = meaning(recorded)
    return cache.request(
        *meant.parts, text=meant.text, exact_only=meant.exact_only,
        **{"tenant": recorded.tenant, "model": meant.model, **call},
    )  # fmt: skip


def answers_nearly(cache, stored, asked):
    """Store the answer of one request, and say whether it is served for the other."""
    cache.warm()
    cache.get_or_load(stored, lambda: "stored")
    cache.flush()
    cache.get_or_load(asked, lambda: "loaded")
    event = semcache.last()
    assert event.tier in (None, "semantic")
    return event.tier == "semantic"


BODY = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "what is flu"},
        {"role": "assistant", "content": "an illness"},
        {"role": "user", "content": "is it treatable"},
    ],
    "temperature": 0,
    "tools": [{"type": "function", "function": {"name": "search"}}],
}


def body(turn=None, **changes):
    changed = {name: value for name, value in {**BODY, **changes}.items() if value is not ...}
    messages = [dict(message) for message in changed["messages"]]
    messages[-1]["content"] = "can it be treated"
    if turn is not None:
        place, message = turn
        messages[place] = {**messages[place], **message}
    return Recorded(1, "llm", {**changed, "messages": messages})


OTHER_CHATS = {
    "model": body(model="m2"),
    "system prompt": body(turn=(0, {"content": "be brief"})),
    "developer prompt": body(turn=(0, {"role": "developer"})),
    "no system prompt": body(messages=BODY["messages"][1:]),
    "earlier question": body(turn=(1, {"content": "what is cancer"})),
    "earlier answer": body(turn=(2, {"content": "a virus"})),
    "one turn more": body(messages=[BODY["messages"][0], USER, *BODY["messages"][1:]]),
    "name of the asker": body(turn=(3, {"name": "doctor"})),
    "tools": body(tools=[{"type": "function", "function": {"name": "browse"}}]),
    "no tools": body(tools=...),
    "tool_choice": body(tool_choice="none"),
    "response_format": body(response_format={"type": "json_object"}),
    "temperature": body(temperature=...),
    "max_tokens": body(max_tokens=10),
    "top_p": body(top_p=0.5),
    "seed": body(seed=7),
    "logit_bias": body(logit_bias={"50256": -100}),
    "unknown parameter": body(thinking="hard"),
    "list of one part": body(turn=(3, {"content": [{"type": "text", "text": "can it be treated"}]})),
}


@pytest.mark.semantic
def test_chat_that_differs_in_its_text_alone_is_near():
    """Law 2: the control of the tests below: with all else equal, the texts are compared."""
    with make_cache() as cache:
        first = request_of(cache, Recorded(0, "llm", BODY))
        assert answers_nearly(cache, first, request_of(cache, body()))


@pytest.mark.semantic
@pytest.mark.parametrize("other", OTHER_CHATS.values(), ids=OTHER_CHATS)
def test_chat_that_differs_around_its_text_is_not_near(other):
    """Law 2: every ingredient of a chat but the text is in the scope."""
    with make_cache() as cache:
        first = request_of(cache, Recorded(0, "llm", BODY))
        assert not answers_nearly(cache, first, request_of(cache, other))


@pytest.mark.semantic
@pytest.mark.parametrize("name", sorted(DELIVERY))
def test_chat_that_differs_in_its_delivery_is_near_and_has_one_key(name):
    """What changes only the delivery splits neither scopes nor keys."""
    with make_cache() as cache:
        first = request_of(cache, Recorded(0, "llm", BODY))
        assert answers_nearly(cache, first, request_of(cache, body(**{name: "x"})))
        assert request_of(cache, Recorded(0, "llm", {**BODY, name: "x"})).key == first.key


@pytest.mark.semantic
@pytest.mark.parametrize(
    ("changes", "is_near"),
    [({}, True), ({"corpus": "other"}, False), ({"k": 5}, False), ({"k": ...}, False), ({"language": "de"}, False)],
)
def test_retrieval_is_near_where_corpus_k_and_all_else_are_equal(changes, is_near):
    """Law 2: every ingredient of a retrieval but the query is in the scope."""
    asked = {"corpus": "docs", "query": "closing time", "k": 3, **changes}
    asked = {name: value for name, value in asked.items() if value is not ...}
    with make_cache() as cache:
        first = request_of(cache, Recorded(0, "retrieval", {"corpus": "docs", "query": "opening hours", "k": 3}))
        assert answers_nearly(cache, first, request_of(cache, Recorded(1, "retrieval", asked))) is is_near


@pytest.mark.semantic
def test_kinds_are_not_near_each_other():
    """Law 2: a retrieval is no chat, even if their ingredients could be taken for each other's."""
    with make_cache() as cache:
        first = cache.request("llm", {"corpus": "c"}, text="q")
        other = request_of(cache, Recorded(0, "retrieval", {"corpus": "c", "query": "r"}))
        assert not answers_nearly(cache, first, other)


@pytest.mark.semantic
@pytest.mark.parametrize(
    ("call", "is_near"),
    [
        ({}, True),
        ({"tenant": "other"}, False),
        ({"tenant": semcache.SHARED}, False),
        ({"function": "other"}, False),
        ({"version": "other"}, False),
        ({"model": "other"}, False),
    ],
)
def test_request_is_near_where_tenant_function_version_and_model_are_equal(call, is_near):
    """Law 2: tenant, function, version and the model that is told apart from the parts are in the scope."""
    given_call = {"tenant": "acme", "function": "f", "version": "1"}
    with make_cache() as cache:
        first = request_of(cache, Recorded(0, "llm", BODY), **given_call)
        asked = request_of(cache, body(), **{**given_call, **call})
        assert answers_nearly(cache, first, asked) is is_near


@pytest.mark.semantic
def test_tenants_of_a_recording_are_not_near_each_other():
    """Law 2: one tenant's answer is not another's."""
    with make_cache() as cache:
        stored, asked = Recorded(0, "llm", BODY, tenant="a"), body()
        asked.tenant = "b"
        assert not answers_nearly(cache, request_of(cache, stored), request_of(cache, asked))


@pytest.mark.semantic
@pytest.mark.parametrize(
    ("namespace", "identity", "is_near"), [("n", "one", True), ("other", "one", False), ("n", "another", False)]
)
def test_request_is_near_where_namespace_and_embedder_are_equal(namespace, identity, is_near):
    """Laws 2 and 11: a request made for another namespace or embedder is of another scope."""
    with make_cache("n", OneVector("one")) as cache, make_cache(namespace, OneVector(identity)) as other:
        first = request_of(cache, Recorded(0, "llm", BODY))
        assert answers_nearly(cache, first, request_of(other, body())) is is_near


def test_composed_lines_are_told_from_recorded_ones():
    """A line may say that somebody laid it out; it is written as it was read."""
    fields = {"ts": 1, "kind": "embedding", "request": {"model": "m", "input": "a"}}
    for told in (True, False, None):
        recorded = parse(json.dumps(fields | {"composed": told}))
        assert recorded.composed is told
        file = io.StringIO()
        write([recorded], file)
        assert parse(file.getvalue()) == recorded
    with pytest.raises(TrafficError, match='"composed" is true or false; got "yes"'):
        parse(json.dumps(fields | {"composed": "yes"}))
