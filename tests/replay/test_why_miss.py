"""Why a recording does not hit: which part of key and scope keeps its requests apart."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from recordings import chat

from semcache.cli import main


@pytest.fixture
def why(tmp_path, capsys):
    """Replay lines with --why-miss; returns what is printed, on one line, and the figures."""

    def replay(lines, *options):
        path, figures = tmp_path / "t.jsonl", tmp_path / "figures.json"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        assert (
            main(["replay", str(path), "--no-semantic", "--quiet", "--why-miss", "--json", str(figures), *options]) == 0
        )
        return " ".join(capsys.readouterr().out.split()), json.loads(figures.read_text())["why_miss"]

    return replay


def at(second):
    return datetime(2025, 5, 13, 9, tzinfo=UTC) + timedelta(seconds=second)


def test_clock_in_a_system_prompt_is_named_with_its_place(why):
    """A prompt that tells the time is another at each call; it says where, and what is to be gained."""
    prompt = "You are a helpful assistant. It is {:%Y-%m-%d %H:%M:%S}. Be brief."
    lines = [chat(f"q{number % 5}", number, system=prompt.format(at(number)), response="r") for number in range(40)]
    out, told = why(lines)
    assert "system prompt holds a clock at character 35: exact 0.0% -> 87.5%" in out
    assert told["exact"] == 0
    assert told["gains"][0] == {
        "what": "system prompt holds a clock at character 35",
        "exact": 35,
        "comparable": 39,
        "judged": 35,
        "other": 0,
    }
    assert "system prompt is distinct in 40 of the 40 requests that have it" in out


def test_parameter_that_is_always_another_is_named(why):
    """A request's id inside an object of parameters is named by its path, and what it costs."""
    lines = [chat(f"q{number % 5}", number, body={"extra": {"trace": f"t{number}", "k": 1}}) for number in range(40)]
    out, told = why(lines)
    assert "parameter extra.trace is distinct in 40 of the 40 requests that have it" in out
    assert "parameter extra.trace: exact 0.0% -> 87.5%" in out
    assert told["distinct"] == [{"what": "parameter extra.trace", "values": 40, "of": 40}]


def test_parameters_of_few_requests_are_not_called_distinct(why):
    """Of nineteen requests it says nothing that all their values are distinct."""
    _, told = why([chat("q", number, body={"trace": f"t{number}"}) for number in range(19)])
    assert told["distinct"] == []
    assert told["gains"][0]["exact"] == 18


def test_two_that_move_are_told_together(why):
    """Where two parts move, either alone gains nothing; both together do."""
    lines = [
        chat("q", number, system=f"It is {at(number):%H:%M:%S} now.", body={"trace": f"t{number}"})
        for number in range(30)
    ]
    out, _ = why(lines)
    assert "all of these: system prompt, parameter trace: exact 0.0% -> 96.7%" in out


def test_clock_in_the_text_is_named(why):
    """A text may tell the time too."""
    out, _ = why([chat(f"{at(number):%H:%M:%S} what is new?", number) for number in range(10)])
    assert "text holds a clock at character 0: exact 0.0% -> 90.0%" in out


def test_date_that_stands_still_is_no_clock(why):
    """A date that is the same in all prompts keeps nothing apart."""
    out, told = why([chat(f"q{number}", number, system="Today is 2025-05-13.") for number in range(30)])
    assert "clock" not in out
    assert told["gains"] == []
    assert "No part of the key, left out, would have found more." in out


def test_tenant_is_never_advised_to_be_left_out(why):
    """What tenants keep apart is told, with what it would mean to mix them."""
    lines = [chat("q", number, tenant=f"t{number % 3}", response=f"r{number % 3}") for number in range(12)]
    out, told = why(lines)
    assert told["gains"][0]["what"] == "tenant"
    assert "tenant: exact 75.0% -> 91.7%, comparable 75.0% -> 91.7% (one tenant would be given another's answers" in out


def test_gain_says_how_many_answers_would_have_been_others(why):
    """A part that changes the answer shows it in the recorded answers."""
    lines = [
        chat("q", number, system=f"Speak {('French', 'German')[number % 2]}.", response=f"r{number % 2}")
        for number in range(8)
    ]
    out, told = why(lines)
    assert told["gains"][0] == {"what": "system prompt", "exact": 7, "comparable": 7, "judged": 1, "other": 1}
    assert "1 of 1 more were recorded with another answer" in out


def test_life_and_bypass_are_told_as_reasons(why):
    """A request may miss because its answer has expired, or because it is never kept."""
    lines = [
        chat("a", 0),
        chat("a", 100_000),
        *(chat("b", 100_001 + number, body={"temperature": 1}) for number in range(3)),
    ]
    out, _ = why(lines)
    assert "its life: nothing expires: exact 0.0% -> 20.0%" in out
    assert "bypassed requests (temperature > 0: 3): exact 0.0% -> 40.0%" in out


def test_case_and_marks_of_the_text_are_told(why):
    """Who types differently asks the same."""
    out, _ = why([chat("Where is it?", 0), chat("where is  it", 1)])
    assert "case, spaces and marks of the text: exact 0.0% -> 50.0%" in out


def test_earlier_turns_and_retrieval_are_parts(why):
    """What was said before, and what is searched, are in the key."""
    lines = [
        json.dumps({"ts": 0, "kind": "retrieval", "request": {"corpus": "v1", "query": "q"}}),
        json.dumps({"ts": 1, "kind": "retrieval", "request": {"corpus": "v2", "query": "q"}}),
    ]
    for number in range(3):
        turns = [{"role": "user", "content": f"I am {number}"}, {"role": "assistant", "content": "Hello"}]
        body = {"model": "m", "messages": [*turns, {"role": "user", "content": "q"}]}
        lines.append(json.dumps({"ts": 2, "kind": "llm", "request": body}))
    out, _ = why(lines)
    assert "earlier turns: exact 0.0% -> 40.0%, comparable 0.0% -> 40.0%" in out
    assert "parameter corpus: exact 0.0% -> 20.0%" in out


def test_names_of_parts_move_no_cursor(why):
    """A parameter's name is anybody's."""
    out, _ = why([chat("q", number, body={"\x1b[2J": number}) for number in range(3)])
    assert "\x1b" not in out
    assert "parameter ?[2J: exact 0.0% -> 66.7%" in out


def test_without_the_option_nothing_is_said(tmp_path, capsys):
    """Who does not ask is not told."""
    path = tmp_path / "t.jsonl"
    path.write_text(chat("q") + "\n", encoding="utf-8")
    assert main(["replay", str(path), "--no-semantic", "--quiet"]) == 0
    assert "why don't I hit" not in capsys.readouterr().out
