"""Calls are looked up before the SDK makes requests of them, or when it posts them: both ways one call is one entry."""

from __future__ import annotations

import inspect
from functools import cached_property, wraps

import httpx
import openai
import pytest
from dialects import ASKED, Asking
from openai.types.chat import ChatCompletionUserMessageParam

import semcache
from semcache.testing import StandIn

HAS_OWN_RESOURCES = pytest.mark.skipif(
    not isinstance(vars(openai.OpenAI).get("chat"), cached_property),
    reason="this openai makes its resources itself, whatever a subclass says",
)


class Counting(openai.OpenAI):
    """A client of the SDK's that counts what it posts."""

    posts = 0

    def post(self, *args, **given):
        Counting.posts += 1
        return super().post(*args, **given)


@pytest.fixture
def counting(models, cache):
    Counting.posts = 0
    with Counting(base_url=models.openai_url, api_key="none") as client:
        yield semcache.cached(client, cache)


def test_hit_makes_no_request_of_the_sdk(counting, plain, models):
    """What memory has is given before the SDK transforms a parameter, plain and streamed."""
    plain.ask(counting, ASKED)
    for _ in range(3):
        plain.ask(counting, ASKED)
        plain.read(counting, ASKED, usage=True)
    assert (Counting.posts, models.calls) == (1, 1)


def test_load_posts_once(counting, plain, models):
    """A call that is looked up early and missing is posted once, and looked up once."""
    with semcache.trace() as told:
        plain.ask(counting, ASKED)
        plain.ask(counting, "else")
        plain.read(counting, "more")
    assert (Counting.posts, models.calls) == (3, 3)
    assert [event.kind for event in told.lookups] == ["miss"] * 3


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"temperature": 0, "top_p": None, "stop": ["\n"]},
        {"extra_headers": {"x-place": "Graz"}, "extra_query": {"place": "Graz"}, "extra_body": {"unknown": 1}},
        {"tools": [{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}]},
        {"timeout": 30.0},
    ],
    ids=["bare", "sampling", "extra", "tools", "timeout"],
)
def test_both_ways_make_the_same_key(asking, models, cache, parameters):
    """A new client's first call is looked up when it is posted, its second before: the entry is the same."""
    tool = {"openai": {}, "anthropic": {"name": "find", "input_schema": {"type": "object"}}}
    tool["openai-responses"] = {"type": "function", "name": "find", "parameters": {"type": "object"}, "strict": False}
    if asking.way != "openai":
        parameters = {name: item for name, item in parameters.items() if name != "stop"}
        parameters |= {"tools": [tool[asking.way]]} if "tools" in parameters else {}
    client = asking.cached(models, cache)
    asking.ask(client, ASKED, **parameters)
    asking.ask(client, ASKED, **parameters)
    asking.ask(asking.cached(models, cache), ASKED, **parameters)
    assert models.calls == 1


def test_parameters_of_the_sdks_own_types_are_the_same_call(plain, models, cache):
    """Models of the SDK's, tuples and what is left out are sent as plain data, and so mean what that means."""
    from openai.types.chat import ChatCompletionMessage

    client = plain.cached(models, cache)
    turns = [
        ChatCompletionUserMessageParam(role="user", content="Do you sell tea?"),
        {"role": "assistant", "content": "Yes.", "refusal": None},
        {"role": "user", "content": "How much?"},
    ]
    first = plain.ask(client, turns)
    answer = ChatCompletionMessage(role="assistant", content="Yes.", refusal=None)
    assert plain.ask(client, [turns[0], answer, turns[2]], temperature=openai.NOT_GIVEN) == first
    plain.ask(client, tuple(turns))
    assert models.calls == 1


def test_client_that_is_changed_asks_elsewhere(plain, models, cache):
    """Base URL and headers are read at each call: a client may be changed."""
    client = plain.cached(models, cache)
    for _ in range(3):
        plain.ask(client, ASKED)
    with StandIn() as others:
        client.base_url = others.openai_url
        plain.ask(client, ASKED)
        assert (models.calls, others.calls) == (1, 1)
    client.base_url = models.openai_url
    client.organization = "another"
    plain.ask(client, ASKED)
    assert models.calls == 2


def test_client_that_forgets_a_header_is_another(plain, models, cache):
    """A header that the client sends by itself, and a call leaves out, is in the key."""
    client = plain.cached(models, cache, client_settings={"default_headers": {"x-place": "Graz"}})
    plain.ask(client, ASKED)
    plain.ask(client, ASKED, extra_headers={"x-place": openai.Omit()})
    plain.ask(client, ASKED, extra_headers={"x-other": openai.Omit()})
    assert models.calls == 2


def test_wrong_parameters_are_the_sdks_error(asking, models, cache):
    """What the SDK refuses it refuses as ever, also behind a first call."""
    client = asking.cached(models, cache)
    asking.ask(client, ASKED)
    with pytest.raises(TypeError, match="nonsense"):
        asking.ask(client, ASKED, nonsense=1)
    if asking.way != "openai-responses":  # whose parameters can all be left out
        call = asking.calls(client).create
        unsaid = (lambda: asking.run(call(model="m"))) if asking.is_async else (lambda: call(model="m"))
        with pytest.raises(TypeError, match=r"[Mm]issing"):
            unsaid()
    assert models.calls == 1


def test_copies_and_their_resources_are_cached_too(asking, models, cache):
    """with_options, copy and the resources of both look up as the client does."""
    client = asking.cached(models, cache)
    asking.ask(client, ASKED)
    for copy in (client.with_options(timeout=3), client.copy(max_retries=1), client.with_options().with_options()):
        asking.ask(copy, ASKED)
        assert asking.event.tier == "memory"
    assert models.calls == 1


# Explain


def test_explain_tells_how_a_call_would_be_answered(asking, models, cache):
    """It takes what the call takes, in both colours, and loads nothing."""
    client = asking.cached(models, cache)
    asked = asking.parameters(ASKED)
    assert client.explain(**asked).tier is None
    asking.ask(client, ASKED)
    told = client.explain(**asked)
    assert (told.tier, models.calls) == ("memory", 1)
    assert cache.invalidate(key=told.key) == 1
    asking.ask(client, ASKED)
    assert models.calls == 2


def test_explain_says_what_it_takes(plain, models, cache):
    """Without a conversation there is no telling which call is meant."""
    with pytest.raises(TypeError, match="messages="):
        plain.cached(models, cache).explain(model="m")


# History


@pytest.mark.semantic
def test_history_brings_conversations_together_that_agree_at_their_end(plain, models, open_near):
    """With "last:2" what was said before the last two turns may differ; the system's word may not; none is served."""
    from dialects import OneWay

    def turns(*said, system="You sell tea."):
        roles = ["user", "assistant"] * len(said)
        spoken = [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]
        return [{"role": "system", "content": system}, *spoken]

    cache = open_near(embedder=OneWay(), policy=None)
    client = plain.cached(models, cache, history="last:2")

    def nearest(*said, **more):
        told = client.explain(model="m", messages=turns(*said, **more))
        return None if not told.neighbours else told.neighbours[0].similarity

    plain.ask(client, turns("Hello", "Hi", "Do you ship?", "Yes.", "How much?"))
    cache.flush()
    assert nearest("Good day", "Good day to you", "Do you ship?", "Yes.", "What does it cost?") == pytest.approx(1)
    assert nearest("Hello", "Hi", "Do you ship?", "No.", "What does it cost?") is None
    assert nearest("Hello", "Hi", "Do you ship?", "Yes.", "How much then?", system="You sell coffee.") is None
    plain.ask(client, turns("Good day", "Good day to you", "Do you ship?", "Yes.", "What does it cost?"))
    assert (plain.event.kind, models.calls) == ("miss", 2)


@pytest.mark.semantic
def test_history_wants_a_cache_that_serves_nothing_near(plain, models, cache, open_near):
    """A threshold knows nothing of turns that were left out."""
    with pytest.raises(semcache.ConfigurationError, match="history="):
        plain.cached(models, open_near(), history="last:2")
    with pytest.raises(semcache.ConfigurationError, match='"last:4"'):
        plain.cached(models, cache, history="2")
    with pytest.raises(semcache.ConfigurationError, match="for clients"):
        semcache.cached(cache, history="last:2")


# Pace


def test_stored_streams_come_at_the_rate_that_is_asked_for(asking, models, cache, clock):
    """With replay_rate a hit takes its time, so many chunks a second; a miss comes as it comes."""
    client = asking.cached(models, cache, replay_rate=4)
    before = clock.monotonic()
    asking.read(client, ASKED, usage=True)
    assert clock.monotonic() == before
    chunks = asking.read(client, ASKED, usage=True)
    assert clock.monotonic() - before == pytest.approx((len(chunks) - 1) / 4)
    assert models.calls == 1


def test_replay_rate_is_a_rate(plain, models, cache):
    """None, or chunks in a second."""
    for wrong in (0, -1, "fast", True, float("inf")):
        with pytest.raises(semcache.ConfigurationError, match="replay_rate"):
            plain.cached(models, cache, replay_rate=wrong)


# Raw responses


def test_raw_responses_go_by_the_cache_behind_hits(plain, models, cache):
    """Who asks for the response itself is given a real one, also where memory has the answer."""
    client = plain.cached(models, cache)
    plain.ask(client, ASKED)
    asked = {"model": "m", "messages": [{"role": "user", "content": ASKED}]}
    raw = client.chat.completions.with_raw_response.create(**asked)
    assert isinstance(raw.http_response, httpx.Response)
    with client.chat.completions.with_streaming_response.create(**asked) as streamed:
        assert streamed.parse().choices
    assert models.calls == 3


# Code that is not the SDK's


@HAS_OWN_RESOURCES
def test_create_of_a_users_own_is_looked_up_when_it_posts(models, cache, plain):
    """Law 1: what a subclass adds to a call is in its key; nobody knows it before the SDK posts."""
    from openai.resources.chat import Chat, Completions

    class Branded(Completions):
        def create(self, *, messages, **rest):
            told = [{"role": "system", "content": f"You are {self._client.brand}."}, *messages]
            return super().create(messages=told, **rest)

    class BrandedChat(Chat):
        @cached_property
        def completions(self):
            return Branded(self._client)

    class Client(openai.OpenAI):
        brand = ""

        @cached_property
        def chat(self):
            return BrandedChat(self)

    for brand in ("Acme", "Bolt", "Acme"):
        with Client(base_url=models.openai_url, api_key="k") as bare:
            bare.brand = brand
            client = semcache.cached(bare, cache)
            for _ in range(2):
                plain.ask(client, ASKED)
    assert models.calls == 2
    assert [asked.body["messages"][0]["content"] for asked in models.asked] == ["You are Acme.", "You are Bolt."]


def test_create_that_somebody_wraps_is_looked_up_when_it_posts(models, cache, plain, monkeypatch):
    """A library that alters calls on their way is between the caller and the SDK, also when it comes later."""
    from openai.resources.chat import Completions

    client = plain.cached(models, cache)
    plain.ask(client, ASKED)
    plain.ask(client, ASKED)
    theirs = Completions.create

    def altered(policy):
        @wraps(theirs)
        def create(self, *, messages, **rest):
            return theirs(self, messages=[{"role": "system", "content": policy}, *messages], **rest)

        return create

    for policy in ("one", "two", "one"):
        monkeypatch.setattr(Completions, "create", altered(policy))
        plain.ask(client, ASKED)
    assert models.calls == 3


@HAS_OWN_RESOURCES
def test_resource_of_a_users_own_keeps_its_state(models, cache, plain):
    """A resource that is made of more than the client is the user's own in the copy, and cached all the same."""
    from openai.resources.chat import Chat

    class TeamChat(Chat):
        def __init__(self, client, team):
            super().__init__(client)
            self.team = team

    class Client(openai.OpenAI):
        @cached_property
        def chat(self):
            return TeamChat(self, "red")

    with Client(base_url=models.openai_url, api_key="k") as bare:
        client = semcache.cached(bare, cache)
        assert client.chat.team == "red"
        for _ in range(2):
            plain.ask(client, ASKED)
    assert models.calls == 1


def test_parameter_that_the_sdk_sends_elsewhere_is_looked_up_when_it_posts(models, cache):
    """Anthropic sends some parameters as headers: both ways such a call is one entry."""
    asking = Asking("anthropic", is_async=False)
    client = asking.cached(models, cache)
    if "user_profile_id" not in inspect.signature(client.messages.create).parameters:
        asking.close()
        pytest.skip("this anthropic has no such parameter")
    for number in range(2):
        asking.ask(client, ASKED, user_profile_id="u1")
        asking.ask(client, ({"role": "user", "content": ASKED},), user_profile_id="u1")
        assert models.calls == 1, number
    asking.ask(client, ASKED, user_profile_id="u2")
    assert models.calls == 2
    asking.close()


def test_parameter_that_create_does_not_have_is_refused_behind_a_hit_too(plain, models, cache):
    """What `extra_body` may say, `create` may not."""
    client = plain.cached(models, cache)
    plain.ask(client, ASKED, extra_body={"foo": 1})
    plain.ask(client, ASKED, extra_body={"foo": 1})
    with pytest.raises(TypeError, match="foo"):
        plain.ask(client, ASKED, foo=1)


def test_query_of_a_client_is_read_to_the_letter(plain, models, cache):
    """1 and True are equal to Python, and not to a server."""
    client = plain.cached(models, cache)
    for value in (1, True, 1.0, 1):
        plain.ask(client.with_options(default_query={"a": value}), ASKED)
    assert models.calls == 3
