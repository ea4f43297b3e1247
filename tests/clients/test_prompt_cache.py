"""What `prompt_cache="auto"` adds to what is sent, what it never touches, and what it warns of.

The real SDKs over real HTTP; what arrived is read where the model stands.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import warnings

import pytest
from dialects import ASKED
from hypothesis import given, settings
from hypothesis import strategies as st

import semcache
from semcache.wrap.clients.moving import _BEGINNINGS, Watch
from semcache.wrap.clients.prefix import Told, least_tokens, tokens, unmarked, with_breakpoints, with_cache_key

MARK = {"type": "ephemeral"}
LONG = "Answer in two sentences, politely, and only about the shop. " * 80  # 1,200 tokens
TOOL = {"name": "find", "description": LONG, "input_schema": {"type": "object", "properties": {}}}
FUNCTION = {"type": "function", "function": {"name": "find", "description": LONG, "parameters": {"type": "object"}}}


def turn(role, *texts):
    return {"role": role, "content": [{"type": "text", "text": text} for text in texts]}


def marks(body):
    """Return where a body's breakpoints stand: (message, block), or the name of what else has one."""
    found = [name for name in ("tools", "system") for item in body.get(name) or [] if "cache_control" in item]
    for number, message in enumerate(body["messages"]):
        blocks = message["content"] if isinstance(message["content"], list) else []
        found += [(number, place) for place, block in enumerate(blocks) if "cache_control" in block]
    return found


def spelled(body):
    """Return a body in which a text is the block that it is short for."""
    body = copy.deepcopy(body)
    for holder, name in [(body, "system"), *((message, "content") for message in body["messages"])]:
        if isinstance(holder.get(name), str):
            holder[name] = [{"type": "text", "text": holder[name]}]
    return body


# What is sent


def test_nothing_is_altered_unless_it_is_switched_on(asking, models, cache):
    """Law 1: without prompt_cache= what arrives is what the SDK sends by itself, plain and streamed."""
    tools = [TOOL if asking.package == "anthropic" else FUNCTION]
    messages = [turn("user", LONG), turn("assistant", "Yes."), turn("user", ASKED)]
    clients = [asking.client(models), asking.cached(models, cache)]
    for ask, place in [(asking.ask, 0), (asking.read, 2)]:
        for client in clients:
            ask(client, messages, tools=tools, top_p=place)  # the second call is another
        assert models.asked[place].body == models.asked[place + 1].body


def test_what_is_added_arrives_in_every_colour_and_form(asking, models, cache):
    """Breakpoints, or a key, and nothing else, plain and streamed, also of calls that go by the cache."""
    messages = [turn("user", LONG), turn("assistant", "Yes."), turn("user", ASKED)]
    tools = [TOOL if asking.package == "anthropic" else FUNCTION]
    told, bare = asking.cached(models, cache, prompt_cache="auto"), asking.client(models)
    for ask, place in [(asking.ask, 0), (asking.read, 1)]:
        for mode, more in [("live", {"top_p": place}), ("live", {"temperature": 0.7}), ("off", {})]:
            with warnings.catch_warnings(), semcache.context(mode=mode):
                warnings.simplefilter("ignore", semcache.SemcacheWarning)
                ask(told, messages, tools=tools, **more)
            ask(bare, messages, tools=tools, **more)
    assert models.calls == 12
    bodies = [asked.body for asked in models.asked]
    for sent, plain in zip(bodies[::2], bodies[1::2], strict=True):
        if asking.package == "anthropic":
            assert marks(sent) == ["tools", (1, 0)]
            assert unmarked(sent) == plain
        else:
            key = sent.pop("prompt_cache_key")
            assert sent == plain
            assert key.isascii()
            assert len(key) <= 64


def test_hit_is_the_same_with_and_without_it(asking, models, cache):
    """Key and entry do not depend on the setting: what was asked without it is found with it, and the other way."""
    asked = {"tools": [TOOL if asking.package == "anthropic" else FUNCTION]}
    without = asking.cached(models, cache)
    client = asking.cached(models, cache, prompt_cache="auto")
    first = asking.ask(without, ASKED, **asked)
    assert asking.ask(client, ASKED, **asked) == first
    asking.ask(client, "else", **asked)
    asking.ask(without, "else", **asked)
    assert models.calls == 2


def test_extra_body_is_what_counts(claude, models, cache):
    """What stands in extra_body is sent in place of a parameter, and is marked there."""
    client = claude.cached(models, cache, prompt_cache="auto")
    claude.ask(client, ASKED, system="short", extra_body={"system": LONG, "vendor": 1})
    body = models.asked[0].body
    assert body["system"] == [{"type": "text", "text": LONG, "cache_control": MARK}]
    assert body["vendor"] == 1


def test_arguments_of_the_caller_are_not_touched(claude, models, cache):
    """The caller's own lists and blocks are as they were."""
    messages = [turn("user", LONG), turn("assistant", "Yes."), turn("user", ASKED)]
    asked = {"tools": [copy.deepcopy(TOOL)], "system": [{"type": "text", "text": LONG}]}
    before = copy.deepcopy([messages, asked])
    claude.ask(claude.cached(models, cache, prompt_cache="auto"), messages, **asked)
    assert marks(models.asked[0].body) == ["tools", "system", (1, 0)]
    assert [messages, asked] == before


def test_copy_of_a_client_does_it_too(claude, models, cache):
    """with_options makes a client that was told the same."""
    client = claude.cached(models, cache, prompt_cache="auto").with_options(timeout=60)
    claude.ask(client, ASKED, system=LONG)
    assert marks(models.asked[0].body) == ["system"]


def test_wrong_settings_are_refused(claude, models, cache):
    """prompt_cache= is "auto" or nothing, and for clients alone."""
    with pytest.raises(semcache.ConfigurationError, match=r'prompt_cache= is "auto" or None'):
        claude.cached(models, cache, prompt_cache=True)
    with pytest.raises(semcache.ConfigurationError, match="for clients"):
        semcache.cached(cache, prompt_cache="auto")


# Anthropic's breakpoints


def call(**parameters):
    return {"model": "claude-sonnet-4-5", "messages": [turn("user", ASKED)]} | parameters


def test_text_of_the_system_becomes_one_block(claude, models, cache):
    """A system prompt that is a text has no room for a breakpoint: it is sent as the block that it is short for."""
    claude.ask(claude.cached(models, cache, prompt_cache="auto"), ASKED, system=LONG)
    assert models.asked[0].body["system"] == [{"type": "text", "text": LONG, "cache_control": MARK}]
    assert models.asked[0].body["messages"] == [{"role": "user", "content": ASKED}]


@pytest.mark.parametrize("own", ["tools", "system", "messages", "result", "source", "whole"])
def test_call_with_breakpoints_of_its_own_is_left_alone(claude, models, cache, own):
    """Who places breakpoints has placed them all."""
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "x"}]}
    asked = {
        "messages": [turn("user", LONG), turn("assistant", "Yes."), turn("user", ASKED)],
        "tools": [copy.deepcopy(TOOL)], "system": [{"type": "text", "text": LONG}],
    }  # fmt: skip
    document = {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "x"}]}}
    asked["messages"][0]["content"] += [result, document]
    holder = {
        "tools": asked["tools"][0], "system": asked["system"][0], "messages": asked["messages"][0]["content"][0],
        "result": result["content"][0], "source": document["source"]["content"][0], "whole": asked,
    }[own]  # fmt: skip
    holder["cache_control"] = {"type": "ephemeral", "ttl": "1h"}
    claude.ask(claude.cached(models, cache, prompt_cache="auto"), ASKED, extra_body=asked)
    assert models.asked[0].body == {"max_tokens": 100, "model": "m", **asked}


def test_breakpoint_of_the_caller_is_in_no_key(claude, models, cache):
    """Where a caller's own breakpoints stand changes no answer: calls that differ in them alone are one."""
    client = claude.cached(models, cache)
    system = {"type": "text", "text": "Be brief."}
    claude.ask(client, [turn("user", ASKED)], system=[system], tools=[TOOL])
    marked = turn("user", ASKED)
    marked["content"][0]["cache_control"] = MARK
    told = {"system": [{**system, "cache_control": MARK}], "tools": [{**TOOL, "cache_control": MARK}]}
    claude.ask(client, [marked], **told)
    claude.ask(client, [turn("user", ASKED)], system=[system], tools=[TOOL], extra_body={"cache_control": MARK})
    assert models.calls == 1
    assert models.asked[0].body["tools"] == [TOOL]


@pytest.mark.semantic
def test_breakpoint_of_the_caller_is_in_no_scope(claude, models, open_near):
    """Texts of calls that differ in their breakpoints alone may match nearly."""
    from dialects import OneWay

    cache = open_near(embedder=OneWay())
    client = claude.cached(models, cache)
    claude.ask(client, [turn("user", ASKED)])
    cache.flush()
    marked = turn("user", "Is Austria shipped to?")
    marked["content"][0]["cache_control"] = MARK
    claude.ask(client, [marked])
    assert claude.event.tier == "semantic"


def test_field_of_that_name_in_the_users_own_data_is_in_the_key(claude, models, cache):
    """Law 1: a schema's property, a tool's argument or a word that is called cache_control is none."""
    client = claude.cached(models, cache, prompt_cache="auto")

    def ask(argument, kind, **more):
        used = {"type": "tool_use", "id": "t", "name": "find", "input": {"cache_control": argument}}
        tool = {**TOOL, "input_schema": {"type": "object", "properties": {"cache_control": {"type": kind}}}}
        messages = [turn("user", "cache_control"), {"role": "assistant", "content": [used]}, turn("user", ASKED)]
        claude.ask(client, messages, tools=[tool], **more)

    own = {"system": [{"type": "text", "text": "Be brief.", "cache_control": MARK}]}
    for more in ({}, own):
        for argument, kind in [("a", "string"), ("b", "string"), ("a", "number")]:
            ask(argument, kind, **more)
    assert models.calls == 6
    assert [marks(asked.body) for asked in models.asked] == [["tools"]] * 3 + [["system"]] * 3


@pytest.mark.parametrize(
    ("model", "least"),
    [
        ("claude-sonnet-4-5-20250929", 1_024), ("claude-opus-4-1", 1_024), ("m", 1_024), ("claude-haiku-4-5", 4_096),
        ("claude-opus-4-5-20251101", 4_096), ("claude-3-5-haiku-latest", 2_048), ("claude-3-haiku-20240307", 2_048),
        ("claude-opus-5", 512), ("anthropic/claude-opus-4-6", 4_096),
    ],
)  # fmt: skip
def test_breakpoint_is_placed_only_from_the_least_that_a_model_caches(model, least):
    """A prefix below the model's least gets no breakpoint; one token more, and it does."""
    assert least_tokens(model) == least
    short = call(model=model, system="word" * (least - 1))
    assert with_breakpoints(short) == short
    assert marks(with_breakpoints(call(model=model, system="word" * least))) == ["system"]


def test_tools_count_for_the_system_and_both_for_the_history():
    """What is cached is all that stands before a breakpoint, tools first."""
    half = "word" * 600
    tool = {"name": "find", "description": half, "input_schema": {}}
    assert marks(with_breakpoints(call(tools=[tool], system=half))) == ["system"]
    history = [turn("user", "word" * 1_024), turn("assistant", "Yes."), turn("user", ASKED)]
    assert marks(with_breakpoints(call(system="word" * 100, messages=history))) == [(1, 0)]
    assert marks(with_breakpoints(call(system=LONG, messages=[turn("user", "Hm."), *history[1:]]))) == ["system"]


def test_last_tool_that_is_loaded_at_once_is_marked():
    """A tool that is loaded later stands in no prefix, counts for nothing and may carry no breakpoint."""
    late = {**TOOL, "name": "late", "defer_loading": True}
    told = with_breakpoints(call(tools=[{**TOOL, "name": "other"}, TOOL, late]))
    assert [tool.get("cache_control") for tool in told["tools"]] == [None, MARK, None]
    assert marks(with_breakpoints(call(tools=[late]))) == []


def test_history_is_marked_at_the_turn_before_the_users_last():
    """What is asked now is not marked, nor what the caller puts into the model's mouth."""
    messages = [turn("user", LONG), turn("assistant", "Yes.", "Indeed."), turn("user", ASKED)]
    assert marks(with_breakpoints(call(messages=messages))) == [(1, 1)]
    assert marks(with_breakpoints(call(messages=[*messages, turn("assistant", "It")]))) == [(1, 1)]
    assert marks(with_breakpoints(call(messages=[turn("user", LONG)]))) == []


def test_long_history_is_marked_where_the_provider_looks_back_to():
    """From the last breakpoint 20 blocks are looked at: one more stands right before them."""
    messages = [turn("user" if place % 2 == 0 else "assistant", "word" * 200) for place in range(41)]
    told = with_breakpoints(call(messages=messages, tools=[TOOL], system=LONG))
    assert marks(told) == ["tools", "system", (19, 0), (39, 0)]
    assert marks(with_breakpoints(call(messages=messages[:21]))) == [(19, 0)]


@pytest.mark.parametrize(
    "last",
    [
        {"type": "thinking", "thinking": "Hm.", "signature": "s"}, {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": ""}, {"type": "text", "text": " \n"}, {"type": "unknown"},
    ],
    ids=lambda block: block["type"],
)  # fmt: skip
def test_block_that_cannot_carry_a_breakpoint_gets_none(last):
    """Thinking, empty text and what nobody here knows are passed over."""
    messages = [turn("user", LONG), {"role": "assistant", "content": [last]}, turn("user", ASKED)]
    assert marks(with_breakpoints(call(messages=messages))) == [(0, 0)]
    told = with_breakpoints(call(system=[{"type": "text", "text": LONG}, last]))
    assert told["system"] == [{"type": "text", "text": LONG, "cache_control": MARK}, last]


def test_picture_counts_for_what_it_is_and_not_for_its_bytes():
    """The base64 of a picture says nothing of its tokens."""
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 100_000}}
    assert tokens(picture) == 1_000
    text = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "word" * 5_000}}
    assert tokens(text) > 5_000
    messages = [{"role": "user", "content": [picture]}, turn("assistant", "A cat."), turn("user", ASKED)]
    assert with_breakpoints(call(messages=messages)) == call(messages=messages)


TEXTS = st.sampled_from(["", "  ", "Yes.", "Servus \ud83d\ude00", LONG, "word" * 300])
BLOCKS = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, TEXTS),
    st.builds(lambda text: {"type": "thinking", "thinking": text, "signature": "s"}, TEXTS),
    st.builds(lambda text: {"type": "tool_result", "tool_use_id": "t", "content": text}, TEXTS),
    st.just({"type": "tool_use", "id": "t", "name": "find", "input": {"cache_control": "of the user"}}),
)
CONTENTS = st.one_of(TEXTS, st.lists(BLOCKS, max_size=12))
TURNS = st.builds(
    lambda role, content: {"role": role, "content": content}, st.sampled_from(["user", "assistant"]), CONTENTS
)
BODIES = st.fixed_dictionaries(
    {"model": st.sampled_from(["claude-sonnet-4-5", "claude-haiku-4-5"]), "messages": st.lists(TURNS, max_size=12)},
    optional={
        "system": st.one_of(TEXTS, st.lists(st.builds(lambda text: {"type": "text", "text": text}, TEXTS), max_size=3)),
        "tools": st.lists(st.sampled_from([TOOL, {**TOOL, "defer_loading": True}]), max_size=3),
    },
)


@settings(max_examples=50, deadline=None)
@given(BODIES)
def test_call_without_its_breakpoints_is_the_call_as_it_was(body):
    """Law 1: whatever the call, only breakpoints are added, four at most, and the order of all it says is kept."""
    before = copy.deepcopy(body)
    told = with_breakpoints(body)
    assert body == before
    assert spelled(unmarked(told)) == spelled(body)
    assert list(told) == list(body)
    placed = json.dumps(told).count('"cache_control": {')
    assert placed == len(marks(told)) <= 4
    if placed:
        assert len(json.dumps(body)) / 4 >= least_tokens(body["model"])
    assert with_breakpoints(told) == told
    for item in [*told.get("tools", []), *spelled(told).get("system", [])]:
        assert "cache_control" not in item or not (item.get("defer_loading") or item.get("text") == "")


# OpenAI's key


def completion(system=LONG, **parameters):
    messages = [{"role": "developer", "content": system}, {"role": "user", "content": ASKED}]
    return {"model": "gpt-5", "messages": messages} | parameters


def key_of(body):
    return with_cache_key(body).get("prompt_cache_key")


def test_calls_with_one_static_part_have_one_key(plain, models, cache):
    """What the user says, and earlier turns, make no difference; model, tools and instructions do."""
    client = plain.cached(models, cache, prompt_cache="auto")

    def sent(*said, system=LONG, **parameters):
        messages = [{"role": "system", "content": system}, *({"role": "user", "content": text} for text in said)]
        plain.ask(client, messages, **parameters)
        return models.asked[-1].body.get("prompt_cache_key")

    key = sent("a")
    assert key is not None
    assert sent("b") == sent("b", "c") == sent("d", user="me") == key
    assert len({key, sent("a", model="other"), sent("a", system="Or: " + LONG), sent("a", tools=[FUNCTION])}) == 4
    assert sent("a", system="Be brief.") is None


def test_key_of_the_caller_stays(plain, models, cache):
    """A call that names its own prompt_cache_key is left alone."""
    client = plain.cached(models, cache, prompt_cache="auto")
    messages = completion()["messages"]
    plain.ask(client, messages, extra_body={"prompt_cache_key": "mine"})
    assert models.asked[0].body["prompt_cache_key"] == "mine"


def test_key_is_the_same_in_every_process():
    """Processes that share a prefix share the provider's machine: the key rests on no seed of theirs."""
    script = (
        "import sys, json; from semcache.wrap.clients.prefix import with_cache_key; "
        "print(with_cache_key(json.load(sys.stdin))['prompt_cache_key'])"
    )
    body = completion(tools=[FUNCTION])
    told = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps(body), capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == key_of(body)


def test_key_is_of_what_is_cached_at_least():
    """What changes at the end of long instructions leaves the key: calls still share what stands before."""
    assert key_of(completion(LONG + "It is 10:57.")) == key_of(completion(LONG + "It is 10:58.")) != None  # noqa: E711
    assert key_of(completion("It is 10:57." + LONG)) != key_of(completion("It is 10:58." + LONG))


def test_key_covers_formats_and_the_instructions_of_responses():
    """A schema stands before the instructions, and so do those of the responses endpoint before its input."""
    formats = [{"type": "json_schema", "json_schema": {"name": name}} for name in ("a", "b")]
    assert key_of(completion(response_format=formats[0])) != key_of(completion(response_format=formats[1]))
    asked = {"model": "gpt-5", "instructions": LONG, "input": ASKED}
    assert key_of(asked) == key_of({**asked, "input": [{"role": "user", "content": "else"}]}) is not None
    assert key_of({"model": "gpt-5", "input": LONG}) is None
    assert key_of({"model": "text-embedding-3-small", "input": [LONG]}) is None


# Warnings

CLOCKS = [
    "2026-11-27T10:57:2{}.123Z", "2026-11-27 10:5{}", "10:5{} AM", "Friday, 27 November 2026 10:5{}",
    "27.11.2026, 9:0{}", "176424104{}", "176424104{}.123", "20261127T10572{}Z",
]  # fmt: skip
IDS = [
    "550e8400-e29b-41d4-a716-44665544000{}",
    "d41d8cd98f00b204e980099{}",
    "req_0a1b2c3d4e5f6789{}",
    "01ARZ3NDEKTSV4RRFFQ69G5FA{}",
]
START = "You are the shop's assistant. ({}) "


def saw(watch, text, characters=4_096):
    return watch.saw([Told("the system prompt", text)], characters)


@pytest.mark.parametrize("value", [*CLOCKS, *IDS])
def test_value_that_changes_near_the_start_is_found(value):
    """A clock, or an id, that is another at three calls is told with its kind and place."""
    watch = Watch()
    told = [saw(watch, START.format(value.format(count)) + LONG) for count in range(3)]
    assert told[:2] == [None, None]
    assert told[2].what == ("a clock" if value in CLOCKS else "an id")
    assert told[2].where == "the system prompt"
    assert START.index("{") <= told[2].character <= START.index("{") + len("req_")


@pytest.mark.parametrize(
    "texts",
    [
        [START.format("2026-11-27 10:57") + LONG] * 9,
        [f"Customer {name}. {LONG}" for name in ("Ann", "Bob", "Cid", "Dan")],
        [f"Point {count} of 3. {LONG}" for count in range(9)],
        [LONG + f"It is 10:5{count}." for count in range(9)],
        [f"It is 10:5{count}." for count in range(9)],
        [f"10:5{count} {'abcdefghi'[count]} {LONG}" for count in range(9)],
        [START.format(f"1{count // 4}:00") + LONG for count in range(15)],
        [START.format(f"2026-11-2{count // 20}") + LONG for count in range(100)],
        [START.format(f"550e8400-e29b-41d4-a716-44665544000{count % 2}") + LONG for count in range(9)],
    ],
    ids=["fixed", "names", "numbers", "at the end", "short", "more differs", "now and then", "daily", "two customers"],
)
def test_what_defeats_nothing_is_not_told(texts):
    """No alarm for a date that stands still, for what is no clock, stands behind, or is not the only difference."""
    watch = Watch()
    assert [saw(watch, text) for text in texts] == [None] * len(texts)


def test_clock_that_begins_to_move_is_found_after_long():
    """What stood still for many calls is told soon after it moves."""
    watch = Watch()
    for _ in range(200):
        saw(watch, START.format("10:00") + LONG)
    told = [saw(watch, START.format(f"11:{count:02}") + LONG) for count in range(20)]
    assert any(told)


def test_memory_of_the_watch_is_bounded():
    """Of many beginnings the latest are remembered, and of none its text."""
    watch = Watch()
    for count in range(3 * _BEGINNINGS):
        saw(watch, f"Shop {'x' * count}, 10:57. {LONG}")
    assert len(watch._seen) == _BEGINNINGS
    assert all(isinstance(value, int) for seen in watch._seen.values() for value in (*seen.latest, *seen.recent))


def test_moving_clock_is_warned_of_once(asking, models, cache):
    """One warning names what moves, where, and the mend; the calls themselves go on."""
    client = asking.cached(models, cache, prompt_cache="auto")

    def ask(count):
        system = f"It is 2026-11-27 10:{count:02}. {LONG}"
        if asking.package == "anthropic":
            asking.ask(client, ASKED, system=system)
        else:
            asking.ask(client, [{"role": "system", "content": system}, *turns])

    turns = [{"role": "user", "content": ASKED}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ask(0)
        ask(1)
    with pytest.warns(
        semcache.SemcacheWarning, match="a clock near the start of the system prompt.*move it to the end"
    ):
        ask(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ask(3)
    assert models.calls == 4


def test_moving_id_in_a_template_of_the_user_is_warned_of(plain, models, cache):
    """A template that is all in the first message is looked at too; without the setting nobody is warned."""
    texts = [f"Ticket 550e8400-e29b-41d4-a716-44665544000{count}. {LONG} {ASKED}" for count in range(3)]
    silent = plain.cached(models, cache)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for text in texts:
            plain.ask(silent, text)
    client = plain.cached(models, cache, prompt_cache="auto", version="2")
    for text in texts[:2]:
        plain.ask(client, text)
    with pytest.warns(semcache.SemcacheWarning, match="an id near the start of the first message"):
        plain.ask(client, texts[2])


def test_body_that_nobody_understands_is_sent_as_it_is(claude, models, cache):
    """Law 10: what cannot be looked into is sent as it was, with one warning; the call is the caller's."""
    client = claude.cached(models, cache, prompt_cache="auto")
    asked = {"system": [{"type": ["text"]}], "tools": "none"}
    with pytest.warns(semcache.SemcacheWarning, match="left a call of anthropic /v1/messages as it was"):
        claude.ask(client, ASKED, extra_body=asked)
    claude.ask(claude.client(models), ASKED, extra_body=asked)
    assert models.asked[0].body == models.asked[1].body
