"""Recording: what a cache writes down of what it is asked, and that callers never feel it."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import stat

import anthropic
import openai
import pytest

import semcache
from semcache import traffic
from semcache.cli import main
from semcache.recording import tape as tape_module
from semcache.testing import StandIn


@pytest.fixture(scope="module")
def models():
    with StandIn() as server:
        yield server


@pytest.fixture(scope="module")
def client(models):
    with openai.OpenAI(base_url=models.openai_url, api_key="sk-test") as made:
        yield made


@pytest.fixture
def path(tmp_path):
    return tmp_path / "traffic.jsonl"


def lines(path):
    """Return the requests of a recording; a line that is not in the format fails."""
    with path.open("rb") as file:
        return list(traffic.read(file))


def asked(client, text, **more):
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(model="m", messages=messages, **more)


# What is recorded


def test_every_call_of_a_client_is_recorded_with_its_answer_hits_too(open_cache, clock, client, path):
    """A hit has the answer that was given, and the latency and tokens of the load that brought it."""
    cache = open_cache(record=path)
    cached = semcache.cached(client, cache)
    asked(cached, "why?")
    clock.advance(2)
    asked(cached, "why?")
    assert cache.flush()
    first, second = lines(path)
    assert (first.ts, second.ts) == (0, 2)
    assert first.request == second.request == {"model": "m", "messages": [{"role": "user", "content": "why?"}]}
    assert first.response == second.response == "Answer to: why?"
    assert first.usage == second.usage
    assert first.latency_ms == second.latency_ms > 0
    assert cache.stats().recording["written"] == 2


def test_streams_are_recorded_as_what_their_chunks_say(open_cache, client, path):
    """Loaded, and found again; an answer of either form."""
    cache = open_cache(record=path)
    cached = semcache.cached(client, cache)
    for _ in range(2):
        for _ in asked(cached, "why?", stream=True):
            pass
    asked(cached, "why?")
    cache.flush()
    assert [one.response for one in lines(path)] == ["Answer to: why?"] * 3


def test_async_and_gathered_calls_are_recorded(open_cache, models, client, path):
    """Each as one line; equal ones of a gathering too."""
    cache = open_cache(record=path)

    async def ask_twice():
        async with openai.AsyncOpenAI(base_url=models.openai_url, api_key="k") as plain:
            cached = semcache.cached(plain, cache)
            for _ in range(2):
                await asked(cached, "why?")
            async for _ in await asked(cached, "how?", stream=True):
                pass

    asyncio.run(ask_twice())
    requests = [{"model": "m", "messages": [{"role": "user", "content": text}]} for text in ("a", "a", "why?")]
    semcache.gather(semcache.cached(client, cache), requests)
    cache.flush()
    told = sorted(one.response for one in lines(path))
    assert told == [f"Answer to: {text}" for text in ("a", "a", "how?", "why?", "why?", "why?")]


def test_calls_that_go_by_the_cache_are_recorded(open_cache, client, path):
    """Callers asked them too: sampled ones, those with a state, and all while the cache is off."""
    cache = open_cache(record=path, mode="off")
    cached = semcache.cached(client, cache)
    asked(cached, "why?")
    cached.embeddings.create(model="e", input=["a", "b"])
    with pytest.warns(semcache.SemcacheWarning, match="temperature"):
        asked(cached, "why?", temperature=1)
    cached.responses.create(model="m", input="why?", previous_response_id="r")
    cache.flush()
    plain, vectors, sampled, state = lines(path)
    assert plain.response == sampled.response == "Answer to: why?"
    assert vectors.request["input"] == ["a", "b"]
    assert traffic.meaning(sampled).bypass == "temperature > 0"
    assert traffic.meaning(state).bypass == "state of the server: previous_response_id"


def test_what_a_caller_adds_to_its_messages_later_is_not_recorded(open_cache, client, path):
    """Conversations grow in the caller's own list."""
    cache = open_cache(record=path)
    messages = [{"role": "user", "content": "why?"}]
    semcache.cached(client, cache).chat.completions.create(model="m", messages=messages)
    messages.append({"role": "user", "content": "later"})
    cache.flush()
    assert len(lines(path)[0].request["messages"]) == 1


def test_responses_and_messages_are_recorded_in_the_form_of_a_chat(open_cache, models, client, path):
    """The system's word first, then the turns; the rest as it was sent, and what it was said to."""
    cache = open_cache(record=path)
    semcache.cached(client, cache).responses.create(model="m", instructions="be kind", input="why?")
    with anthropic.Anthropic(base_url=models.anthropic_url, api_key="k") as other:
        semcache.cached(other, cache).messages.create(
            model="c", system="be kind", max_tokens=9, messages=[{"role": "user", "content": "why?"}]
        )
    cache.flush()
    responses, messages = lines(path)
    framed = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "why?"}]
    assert responses.request == {"api": "openai.responses", "model": "m", "messages": framed}
    assert messages.request == {"api": "anthropic.messages", "model": "c", "max_tokens": 9, "messages": framed}
    assert responses.response == messages.response == "Answer to: why?"
    assert traffic.meaning(messages).text == "why?"


def test_each_input_of_embeddings_is_a_line(open_cache, client, path):
    """As each is an entry; equal ones of one call are one."""
    cache = open_cache(record=path)
    cached = semcache.cached(client, cache)
    cached.embeddings.create(model="e", input=["a", "b"])
    cached.embeddings.create(model="e", input=["b", "c"])
    cache.flush()
    told = lines(path)
    assert sorted(one.request["input"] for one in told) == ["a", "b", "b", "c"]
    assert {one.kind for one in told} == {"embedding"}


def test_functions_with_a_text_and_retrievals_are_recorded(open_cache, path):
    """Of a function the text is the question, and what else is in its key stands beside it."""
    cache = open_cache(record=path)

    @semcache.cached(cache, text="question")
    def answer(question, locale="en"):
        return f"{question}!"

    @semcache.cached_retrieval(cache, corpus="docs@v7")
    def find(query, k=3):
        return [{"id": "a"}]

    for _ in range(2):
        answer("why?")
        find("how?")
    cache.flush()
    first, second, third, fourth = lines(path)
    assert first.request["messages"] == [{"role": "user", "content": "why?"}]
    assert first.request["arguments"] == {"locale": "en"}
    assert first.response == third.response == "why?!"
    assert (second.kind, second.request["corpus"], second.request["query"]) == ("retrieval", "docs@v7", "how?")
    assert json.loads(fourth.response) == [{"id": "a"}]
    assert first.request == third.request


def test_generators_are_recorded_as_one_text(open_cache, path):
    """The pieces, joined; loaded and found."""
    cache = open_cache(record=path)

    @semcache.cached(cache, text="question")
    def words(question):
        yield from ["a", "b"]

    assert [*words("why?"), *words("why?")] == ["a", "b", "a", "b"]
    cache.flush()
    assert [one.response for one in lines(path)] == ["ab", "ab"]


def test_what_cannot_be_recorded_is_counted_and_said_once(open_cache, path):
    """A function without a text, or with an argument that is no plain data."""
    cache = open_cache(record=path)

    @semcache.cached(cache)
    def double(number):
        return number * 2

    @semcache.cached(cache, text="question")
    def answer(question, day):
        return question

    with pytest.warns(semcache.SemcacheWarning, match="double are not recorded: no text="):
        double(1)
    double(1)
    with pytest.warns(semcache.SemcacheWarning, match="answer are not recorded: .*plain data"):
        answer("why?", frozenset([1]))
    cache.flush()
    assert cache.stats().recording["unrecorded"] == 3
    assert not path.exists()


def test_a_call_that_failed_is_counted_and_not_recorded(open_cache, path):
    """It has no answer; a replay would find one."""
    cache = open_cache(record=path)

    @semcache.cached(cache, text="question")
    def answer(question):
        raise ValueError(question)

    with pytest.raises(ValueError, match="why"):
        answer("why?")
    cache.flush()
    assert cache.stats().recording["failed"] == 1
    assert not path.exists()


# What is taken out


def test_secrets_are_marks_in_requests_and_answers_and_tenants_are_too(open_cache, client, path):
    """Equal ones equal, so that a repeat is one."""
    cache = open_cache(record=path)
    cached = semcache.cached(client, cache, tenant=lambda body: "acme")
    asked(cached, "I am joe@x.com, 4111 1111 1111 1111, sk-abcdefghijklmnopqrst")
    asked(cached, "I am joe@x.com, 4111 1111 1111 1111, sk-abcdefghijklmnopqrst")
    cache.flush()
    written = path.read_text()
    assert not any(secret in written for secret in ("joe@", "4111", "sk-abc", "acme"))
    first, second = lines(path)
    assert first.request == second.request
    assert first.tenant == second.tenant
    assert first.tenant.startswith("[tenant:")


def test_redaction_may_be_ones_own_or_none(open_cache, client, tmp_path):
    """A callable is given each text, the tenant too."""
    own, none = tmp_path / "own.jsonl", tmp_path / "none.jsonl"
    for path, redact in ((own, str.upper), (none, False)):
        cache = open_cache(record=semcache.Recording(path, redact=redact), tenant="acme")
        asked(semcache.cached(client, cache), "I am joe@x.com")
        cache.flush()
    assert lines(own)[0].tenant == "ACME"
    assert lines(own)[0].request["messages"][0]["content"] == "I AM JOE@X.COM"
    assert lines(own)[0].response == "ANSWER TO: I AM JOE@X.COM"
    assert lines(none)[0].tenant == "acme"
    assert lines(none)[0].response == "Answer to: I am joe@x.com"


def test_what_cannot_be_redacted_is_not_written(open_cache, path):
    """A callable that fails costs its lines and a fault, and no caller anything."""

    def fails(text):
        raise ValueError(text)

    cache = open_cache(record=semcache.Recording(path, redact=fails))

    @semcache.cached(cache, text="question")
    def answer(question):
        return question

    assert answer("why?") == "why?"
    assert cache.flush()
    stats = cache.stats()
    assert (stats.recording["lost"], stats.faults) == (1, {"recording: unredacted": 1})
    assert not path.exists()


# The file


def filled(open_cache, path, count=20, **settings):
    cache = open_cache(record=semcache.Recording(path, **settings))

    @semcache.cached(cache, text="question")
    def answer(question):
        return question

    for number in range(count):
        answer(f"question {number}")
        cache.flush()
    return cache


def test_a_full_file_is_renamed_and_the_oldest_goes(open_cache, path):
    """The newest has the smallest number; times go on, so that the files in order are one recording."""
    filled(open_cache, path, max_size=1000, keep=2)
    names = sorted(one.name for one in path.parent.iterdir())
    assert names == ["traffic.jsonl", "traffic.jsonl.1", "traffic.jsonl.2", "traffic.jsonl.key"]
    files = [path.with_name(f"{path.name}{end}") for end in (".2", ".1", "")]
    assert all(file.stat().st_size <= 1000 for file in files)
    told = list(traffic.read(line for file in files for line in file.read_bytes().splitlines()))
    numbers = [int(one.request["messages"][0]["content"].split()[1]) for one in told]
    assert numbers == list(range(20 - len(numbers), 20))


def test_a_second_cache_goes_on_where_the_first_ended(open_cache, clock, path):
    """With its times and its marks; only their owner may read either file."""
    for _ in range(2):
        cache = open_cache(record=path)

        @semcache.cached(cache, text="question")
        def answer(question):
            return question

        answer("I am joe@x.com")
        cache.close()
        clock.advance(5)
    first, second = lines(path)
    assert second.ts - first.ts == 5
    assert first.response == second.response
    for name in ("traffic.jsonl", "traffic.jsonl.key"):
        assert stat.S_IMODE((path.parent / name).stat().st_mode) == 0o600


def test_a_line_that_was_left_open_is_closed(open_cache, path):
    """By a process that was killed in the middle of it: one line is lost, and no more."""
    filled(open_cache, path, 1)
    with path.open("ab") as file:
        file.write(b'{"ts": 1, "ki')
    filled(open_cache, path, 1)
    skipped = []
    with path.open("rb") as file:
        assert len(list(traffic.read(file, skipped))) == 2
    assert [number for number, _ in skipped] == [2]


def _write_many(path, name):
    cache = semcache.Cache(record=semcache.Recording(path, max_size=5000, keep=100))

    @semcache.cached(cache, text="question")
    def answer(question):
        return question

    for number in range(50):
        answer(f"{name} {number}")
        if not number % 7:
            cache.flush()
    cache.close()


def test_several_processes_write_one_recording(path):
    """Whole lines, in order, none lost, whoever renames the full file."""
    spawn = multiprocessing.get_context("fork")
    processes = [spawn.Process(target=_write_many, args=(path, name)) for name in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    files = sorted(path.parent.glob("traffic.jsonl.[0-9]*"), key=lambda one: -int(one.suffix[1:]))
    told = list(traffic.read(line for file in [*files, path] for line in file.read_bytes().splitlines()))
    assert len(files) > 2
    assert len({one.response for one in told}) == len(told) == 150


def test_a_forked_child_writes_its_own_calls_and_none_of_its_parents(open_cache, path):
    """What waits at the fork is the parent's."""
    cache = open_cache(record=path)

    @semcache.cached(cache, text="question")
    def answer(question):
        return question

    answer("parent")
    child = os.fork()
    if not child:
        answer("child")
        os._exit(0 if cache.flush(10) else 1)
    _, status = os.waitpid(child, 0)
    assert not status
    cache.flush()
    assert sorted(one.response for one in lines(path)) == ["child", "parent"]


# Callers feel nothing


def test_a_disk_that_fails_is_a_fault_and_no_callers(open_cache, path):
    """The lines are lost and counted; what comes later is written again."""
    cache = open_cache(record=path)

    @semcache.cached(cache, text="question")
    def answer(question):
        return question

    path.mkdir()
    assert answer("one") == "one"
    assert cache.flush()
    path.rmdir()
    answer("two")
    cache.flush()
    assert [one.response for one in lines(path)] == ["two"]
    assert cache.stats().recording["lost"] == 1
    assert cache.stats().faults == {"recording: unwritten": 1}


def test_what_finds_the_queue_full_is_dropped_and_counted(open_cache, path, monkeypatch):
    """While the writer is held, by the lock of another process."""
    monkeypatch.setattr(tape_module, "MOST_CALLS", 3)
    heard = []
    cache = open_cache(record=path, observers=[heard.append])

    @semcache.cached(cache, text="question")
    def answer(question):
        return question

    with cache.recorder.recording._file._held():
        for number in range(5):
            assert answer(str(number)) == str(number)
        assert not cache.flush(0.2)
        assert not path.exists()
    cache.flush()
    assert [one.response for one in lines(path)] == ["0", "1", "2"]
    assert cache.stats().recording["dropped"] == 2
    assert cache.stats().faults == {"recording: full": 1}
    assert [event.tier for event in heard if event.kind == "fault"] == ["recording"]


def test_of_a_request_all_calls_are_sampled_or_none(open_cache, path):
    """Else its repeats would be missing, and a replay would see fewer hits than there were."""
    cache = open_cache(record=semcache.Recording(path, sample=0.5))

    @semcache.cached(cache, text="question")
    def answer(question):
        return question

    for number in [*range(40), *range(40)]:
        answer(str(number))
    cache.flush()
    told = [one.response for one in lines(path)]
    assert 0 < len(set(told)) < 40
    assert all(told.count(one) == 2 for one in told)


def test_answers_may_be_left_out(open_cache, path):
    """The requests alone."""
    filled(open_cache, path, 1, responses=False)
    assert lines(path)[0].response is None


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"path": ""}, "path is a file's"), ({"path": 3}, "path is a file's"), ({"max_size": 0}, "max_size"),
        ({"keep": -1}, "keep"), ({"sample": 0}, "sample"), ({"redact": "yes"}, "redact"),
        ({"responses": 1}, "responses"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(settings, why):
    """At construction, with the mend."""
    with pytest.raises(semcache.ConfigurationError, match=why):
        semcache.Recording(**{"path": "t.jsonl"} | settings)


def test_a_file_that_cannot_be_written_is_refused(tmp_path):
    """Its folder is not there."""
    with pytest.raises(semcache.ConfigurationError, match="no folder"):
        semcache.Cache(record=tmp_path / "missing" / "traffic.jsonl")


# Replayed


def test_a_replay_finds_what_the_live_cache_found(open_cache, clock, models, client, path, capsys):
    """All kinds of calls, repeated, over more time than memory keeps them: hits and misses are the same."""
    cache = open_cache("live", record=path, memory="64MB", ttl=semcache.TTL(memory="5m", jitter=0))
    cached = semcache.cached(client, cache)

    @semcache.cached_retrieval(cache, corpus="docs")
    def find(query, k=3):
        return [{"id": query}]

    for number in range(24):
        clock.advance(31)
        told = asked(cached, f"I am joe{number % 5}@x.com", stream=bool(number % 2))
        _ = list(told) if number % 2 else told
        cached.responses.create(model="m", input=f"question {number % 7}")
        cached.embeddings.create(model="e", input=[str(number % 3), str(number % 4), "x"])
        find(f"query {number % 6}")
    cache.flush()
    stats = cache.stats()
    live_hits = sum(stats.hits.values())
    assert main(["replay", str(path), "--no-semantic", "--ttl", "disk=5m", "--json", "-", "--quiet"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["requests"] == live_hits + stats.misses
    assert abs(sum(told["hits"].values()) - live_hits) <= 0.03 * told["requests"]
    assert live_hits > 20
    assert stats.misses > 20
