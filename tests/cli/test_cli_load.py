"""`semcache load`: curated answers come where a service looks for its own, whole or not at all."""

from __future__ import annotations

import sys
import time

import pytest
from instruments import GUARD, until

import semcache
from semcache.plan import run
from semcache.testing import StandIn

FAQ = "question,answer\nWhere is my parcel?,In the post.\nMay I return it?,Within a month.\n"


@pytest.fixture
def faq(tmp_path):
    """Write a CSV file, as bytes or text."""

    def write(content=FAQ):
        path = tmp_path / "faq.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Make a module in the working folder, and return its name; its function's cache is on a file beside it."""
    made = []

    def make(body, cache="semcache.Cache('tests', disk='answers.db')"):
        name = f"service_{tmp_path.name.replace('-', '_')}_{len(made)}"
        made.append(name)
        text = f"import semcache\ncache = {cache}\n{body}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield make
    for name in made:
        sys.modules.pop(name, None)


def ask(cache, text, **more):
    return cache.get_or_load(cache.request(text=text, function="faq", **more), lambda: "loaded")


# Requests


def test_questions_are_answered_from_the_file(open_service, store, typed, told, faq):
    """Each row answers the request of its question, of that function alone."""
    cache = open_service(**store)
    assert told("load", faq(), "--function", "faq", *typed) == {
        "answers": 2, "is_pinned": True, "is_dry_run": False
    }  # fmt: skip
    assert ask(cache, "Where is my parcel?") == "In the post."
    assert ask(cache, "May I return it?") == "Within a month."
    assert cache.get_or_load(cache.request(text="May I return it?"), lambda: "loaded") == "loaded"


def test_request_is_as_the_service_makes_it(open_service, store, typed, told, faq):
    """Version, tenant and model are part of the request."""
    cache = open_service(**store)
    more = {"version": "v2", "tenant": "acme", "model": "large"}
    told("load", faq(), "--function", "faq", *typed, "--version", "v2", "--tenant", "acme", "--model", "large")
    assert ask(cache, "May I return it?", **more) == "Within a month."
    for name in more:
        assert ask(cache, "May I return it?", **{**more, name: "other"}) == "loaded"


def test_pinned_answers_outlive_loads_and_others_do_not(open_service, store, typed, told, faq):
    """A load does not take a pinned answer's place; with --not-pinned it does, and its ttl is what was typed."""
    cache = open_service(**store, memory=0)
    told("load", faq(), "--function", "faq", *typed)
    with semcache.context(mode="refresh"):
        ask(cache, "May I return it?")
    assert cache.flush(GUARD)
    assert ask(cache, "May I return it?") == "Within a month."
    told("load", faq(), "--function", "loose", *typed, "--not-pinned")
    asked = {"text": "May I return it?", "function": "loose"}
    assert cache.get_or_load(cache.request(**asked), lambda: "loaded") == "Within a month."
    deadline = time.monotonic() + GUARD  # what is loaded before the service has heard of the answer is older than it
    while cache.get_or_load(cache.request(**asked), lambda: None, when=lambda _: False) != "loaded":
        assert time.monotonic() < deadline
        with semcache.context(mode="refresh"):
            cache.get_or_load(cache.request(**asked), lambda: "loaded")
        assert cache.flush(GUARD)


def test_ttl_is_what_was_typed(open_service, typed, store, told, faq):
    """--ttl sets the life of what is not pinned."""
    cache = open_service(**store, memory=0)
    told("load", faq(), "--function", "faq", *typed, "--not-pinned", "--ttl", "7d")
    hit = run(cache.store.fetch(cache.request(text="May I return it?", function="faq").key))
    assert 6 * 86400 < hit.entry.life <= 7 * 86400


def test_loading_again_replaces(open_service, store, typed, told, faq):
    """A corrected file corrects the answers."""
    cache = open_service(**store)
    told("load", faq(), "--function", "faq", *typed)
    told("load", faq(FAQ.replace("month", "year")), "--function", "faq", *typed)
    assert ask(cache, "May I return it?") == "Within a year."


def test_tag_takes_them_out_again(open_service, store, typed, told, faq):
    """What was loaded can be invalidated as a whole, by another command, pinned as it is."""
    cache = open_service(**store)
    told("load", faq(), "--function", "faq", *typed, "--tag", "curated", "--tag", "faq")
    assert told("invalidate", "--tag", "curated", *typed, "--dry-run")["entries"] == 2
    assert told("invalidate", "--tag", "curated", *typed)["entries"] == 2
    assert ask(cache, "May I return it?") == "loaded"


def test_dry_run_reads_and_puts_nothing(open_service, store, typed, semcache_command, faq):
    """The rows are looked at, and the store is left as it is."""
    cache = open_service(**store)
    status, out, err = semcache_command("load", faq(), "--function", "faq", *typed, "--dry-run")
    assert (status, err) == (0, "")
    assert out.startswith("would put 2 answers, pinned: namespace 'tests' in ")
    assert ask(cache, "May I return it?") == "loaded"


def test_file_of_a_spreadsheet_is_read(open_service, store, typed, told, faq):
    """A byte order mark, quotes, line breaks in cells, blank lines and columns in any order are no trouble."""
    cache = open_service(**store)
    content = '\ufeffanswer,question\r\n"In ""post"",\nsoon.", Where? \r\n\r\nYes,"May\nI?"\r\n'
    assert told("load", faq(content), "--function", "faq", *typed)["answers"] == 2
    assert ask(cache, "Where?") == 'In "post",\nsoon.'
    assert ask(cache, "May\nI?") == "Yes"


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (FAQ + "Why?,\n", ["line 4: the answer is empty"]),
        (FAQ + ",Because.\n", ["line 4: the question is empty"]),
        (FAQ + "Why\n", ["line 4: 1 cell, where the header has 2 columns"]),
        (FAQ + "Why?,Because,of,that\n", ["line 4: 4 cells, where"]),
        (FAQ + "May I return it?,No.\n", ["line 4: the same call as in line 3"]),
        ('question,answer\n"a\nb",yes\n\n,x\ny,\n', ["line 5: the question is empty", "line 6: the answer is empty"]),
        ("question;answer\na;b\n", ["there is no column 'answer'", "'question;answer'"]),
        ("question\na\n", ["there is no column 'answer'"]),
        ("question,answer,who\na,b,c\n", ["column 'who' is none of answer, question"]),
        ("question,answer,answer\na,b,c\n", ["there are two columns 'answer'"]),
        ("question,answer\n", ["there is no row in it"]),
        ("", ["there is no column 'answer'"]),
        (b"question,answer\n\xff\xfe,b\n", ["it is not UTF-8"]),
        ('question,answer\na,"b\n', ["line 2: "]),
    ],
)
def test_nothing_is_loaded_if_a_row_is_wrong(open_service, tmp_path, semcache_command, faq, content, wrong):
    """What is wrong is told with its line, and no row is loaded, also none that is right."""
    cache = open_service(disk=tmp_path / "answers.db")
    typed = ["--namespace", "tests", "--disk", tmp_path / "answers.db"]
    status, out, err = semcache_command("load", faq(content), "--function", "faq", *typed)
    assert (status in (1, 2), out) == (True, "")
    assert all(one in err for one in wrong)
    assert all(line.startswith("semcache: ") for line in err.splitlines())
    assert str(tmp_path / "faq.csv") in err
    assert cache.invalidate(namespace="tests", dry_run=True) == 0


def test_many_wrong_rows_are_told_in_few_lines(open_service, tmp_path, semcache_command, faq):
    """Ten are told, and how many more there are."""
    open_service(disk=tmp_path / "answers.db")
    typed = ["--namespace", "tests", "--disk", tmp_path / "answers.db"]
    _, _, err = semcache_command("load", faq("question,answer\n" + ",x\n" * 30), "--function", "faq", *typed)
    assert len(err.splitlines()) == 11
    assert err.endswith("semcache: nothing was loaded (20 more are wrong)\n")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ([], "one of the arguments --call --function --body is required"),
        (["--function", "f", "--ttl", "1d"], "--ttl is for --not-pinned"),
        (["--function", "f", "--not-pinned", "--ttl", "soon"], "ttl must be a positive number of seconds"),
        (["--call", "a:b", "--redis", "redis://h"], "leave out --redis"),
        (["--call", "a:b", "--tenant", "t", "--version", "v"], "leave out --version, --tenant"),
        (["--call", "nonsense"], "--call is package.module:function"),
        (["--call", "no_such_module:f"], "importing no_such_module failed"),
        (["--call", "semcache:nothing"], "there is no 'nothing' in 'semcache'"),
        (["--call", "semcache:Cache"], "it is no function that semcache.cached has decorated"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(semcache_command, open_service, tmp_path, faq, monkeypatch, options, why):
    """What is wrong with a command is said in one line."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    open_service(disk=tmp_path / "answers.db")
    if "--call" not in options:
        options = [*options, "--namespace", "tests", "--disk", str(tmp_path / "answers.db")]
    status, out, err = semcache_command("load", faq(), *options)
    assert (status, out) == (2, "")
    assert why in err
    assert err.count("\n") == 1


def test_missing_file_is_one_line(semcache_command, open_service, tmp_path):
    """The file that is not there is named."""
    open_service(disk=tmp_path / "answers.db")
    typed = ["--namespace", "tests", "--disk", tmp_path / "answers.db"]
    status, out, err = semcache_command("load", tmp_path / "gone.csv", "--function", "faq", *typed)
    assert (status, out, err) == (1, "", f"semcache: {tmp_path / 'gone.csv'}: No such file or directory\n")


@pytest.mark.parametrize("options", [[], ["--not-pinned"]])
def test_store_that_keeps_nothing_is_status_1(semcache_command, own_redis, faq, options):
    """A full server is told with its mend, and how many rows it came to."""
    server = own_redis()
    server.cli("CONFIG", "SET", "maxmemory", "1")
    status, out, err = semcache_command(
        "load", faq(), "--function", "faq", *options, "--namespace", "tests", "--redis", server.url
    )
    assert (status, out) == (1, "")
    assert "its memory is full" in err
    assert err.count("\n") == 1


def test_answer_that_is_too_large_is_named(semcache_command, open_service, tmp_path, faq):
    """The row that no tier takes is told with its line."""
    open_service(disk=tmp_path / "answers.db")
    typed = ["--namespace", "tests", "--disk", tmp_path / "answers.db"]
    status, _, err = semcache_command("load", faq(FAQ + f"Why?,{'x' * 1_000_001}\n"), "--function", "faq", *typed)
    assert status == 1
    assert "line 4" in err
    assert "(2 of 3 answers were put before it)" in err


@pytest.mark.semantic
def test_rewording_finds_what_was_loaded_with_the_embedder(open_service, store, typed, told, faq):
    """With the service's embedder a curated answer is found by other words, in a process that was there before."""
    settings = {
        "embedder": "all-MiniLM-L6-v2",
        "policy": semcache.Threshold(0.8, guards=None),
        "tenant": semcache.SHARED,
    }
    cache = open_service(**store, **settings)
    cache.warm()
    told("load", faq(), "--function", "faq", *typed, "--embedder", "all-MiniLM-L6-v2")
    request = cache.request(text="Where is my parcel now?", function="faq")
    until(lambda: cache.get_or_load(request, lambda: "loaded", when=lambda _: False) == "In the post.")


@pytest.mark.semantic
def test_embedder_behind_a_url_is_named_before_questions_are_read(open_service, store, typed, told, faq):
    """What is loaded with it is indexed."""
    open_service(**store)  # it makes the file
    with StandIn() as models:
        told("load", faq(), "--function", "faq", *typed, "--embedder", models.openai_url)
        cache = open_service(**store, embedder=models.openai_url)
        cache.warm()
        assert cache.stats().tiers["semantic"]["rows"] > 0


# Calls


TYPED = """
@semcache.cached(cache)
def answer(question: str, limit: int = 3, *, strict: bool = False, weight: float = 1.0, locale='en') -> str:
    return f"loaded {question}"
"""


def test_calls_of_a_function_are_answered(module, told, faq):
    """Columns are arguments, converted as they are annotated; an empty cell leaves the default."""
    name = module(TYPED)
    content = "question,answer,limit,strict,weight,locale\na,A,,,,\nb,B,5,yes,0.5,de\nc,C,,false,,\n"
    assert told("load", faq(content), "--call", f"{name}:answer") == {
        "answers": 3, "is_pinned": True, "is_dry_run": False
    }  # fmt: skip
    answer = sys.modules[name].answer
    assert answer("a") == "A"
    assert answer("b", 5, strict=True, weight=0.5, locale="de") == "B"
    assert answer("c", strict=False) == "C"
    assert answer("c", strict=True) == "loaded c"
    assert answer.cache_info().hits == 3


@pytest.mark.parametrize(
    ("annotation", "cell", "value"), [("int", "7", 7), ("float", "0.5", 0.5), ("bool", "No", False), ("str", "7", "7")]
)
def test_answer_has_the_annotated_type(module, told, faq, annotation, cell, value):
    """What the function returns is what a caller gets."""
    name = module(f"@semcache.cached(cache)\nasync def f(x: int) -> {annotation}: ...\n")
    told("load", faq(f"x,answer\n1,{cell}\n"), "--call", f"{name}:f")
    import asyncio

    found = asyncio.run(sys.modules[name].f(1))
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("body", "content", "why"),
    [
        ("def f(x: int) -> str: ...", "x,answer\none,b\n", "line 2: 'x' is int; got 'one'"),
        ("def f(x: bool) -> str: ...", "x,answer\nmaybe,b\n", "line 2: 'x' is bool; got 'maybe'"),
        ("def f(x: int) -> int: ...", "x,answer\n1,b\n", "line 2: 'answer' is int; got 'b'"),
        ("def f(x: int, y: str) -> str: ...", "x,y,answer\n1,,b\n", "line 2: 'y' is empty"),
        ("def f(x: list[int]) -> str: ...", "x,answer\n1,b\n", "takes as 'x' list"),
        ("def f(x: int | None) -> str: ...", "x,answer\n1,b\n", "takes as 'x' int | None"),
        ("def f(x: str) -> dict: ...", "x,answer\n1,b\n", "returns dict"),
        ("def f(x: str) -> str: ...", "y,answer\n1,b\n", "there is no column 'x'"),
        ("def f(x: str) -> str: ...", "x,z,answer\n1,2,b\n", "column 'z' is none of answer, x"),
        ("def f(x: str, answer: str) -> str: ...", "x,answer\n1,b\n", "has an argument 'answer'"),
        ("def f(x: 'Nothing') -> str: ...", "x,answer\n1,b\n", "the annotations of"),
        ("def f(x: str):\n    yield x", "x,answer\n1,b\n", "is a generator"),
    ],
)
def test_call_that_a_row_cannot_say_is_refused(module, semcache_command, faq, body, content, why):
    """Types that a CSV file cannot say, and rows that do not fit the function, are named; nothing is loaded."""
    name = module(f"@semcache.cached(cache)\n{body}\n")
    status, out, err = semcache_command("load", faq(content), "--call", f"{name}:f")
    assert (status in (1, 2), out) == (True, "")
    assert why in err
    assert sys.modules[name].cache.invalidate(namespace="tests", dry_run=True) == 0


def test_cache_that_ends_with_the_process_is_refused(module, semcache_command, faq):
    """Answers in memory alone would be gone with the command."""
    name = module("@semcache.cached(cache)\ndef f(question: str) -> str: ...\n", cache="semcache.Cache('tests')")
    status, _, err = semcache_command("load", faq(), "--call", f"{name}:f")
    assert status == 2
    assert "keeps nothing beyond a process" in err


def test_module_that_fails_is_one_line(module, semcache_command, faq):
    """An import that raises is told as such."""
    name = module("raise ValueError('no key was set')\n")
    status, _, err = semcache_command("load", faq(), "--call", f"{name}:f")
    assert status == 2
    assert "ValueError('no key was set')" in err
    assert err.count("\n") == 1
