"""Gates: what a replay must keep to, for CI."""

from __future__ import annotations

import json

import pytest
from recordings import chat

from semcache.cli import main
from semcache.replay.gates import MEASURES

COST = {"usage": {"prompt_tokens": 100, "completion_tokens": 20}, "latency_ms": 1500}


@pytest.fixture
def replay(tmp_path, capsys):
    """Replay one wrong hit of two, and one load, with gates; returns status, stdout and stderr."""

    def run(*gates, lines=None, options=()):
        path = tmp_path / "t.jsonl"
        lines = lines or [chat("a", 0, "x", **COST), chat("a", 1, "x", **COST), chat("a", 2, "y", **COST)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        typed = [part for gate in gates for part in ("--gate", gate)]
        try:
            status = main(["replay", str(path), "--no-semantic", "--quiet", *typed, *options])
        except SystemExit as stopped:
            status = stopped.code
        return status, *capsys.readouterr()

    return run


def test_gate_that_holds_is_status_0(replay):
    """What holds is printed, and nothing goes to stderr."""
    status, out, err = replay("hit_rate>=0.5", "wrong_per_hit <= 50%", "wrong_hits<2", "requests>2")
    assert (status, err) == (0, "")
    assert "gate holds: hit_rate is 0.666667, asked for >= 0.5" in out


def test_gate_that_fails_is_status_1_and_told(replay):
    """Measure, value and bound are told on stderr, of a rate its n and its interval; one failure is enough."""
    status, out, err = replay("hit_rate>=0.5", "wrong_per_hit<=0.01")
    assert status == 1
    told = "gate fails: wrong_per_hit is 0.5 (1 of 2, 95% 0.0945 to 0.9055), asked for <= 0.01"
    assert err == f"semcache: {told}\n"
    assert told in " ".join(out.split())


@pytest.mark.parametrize("gate", ["wrong_per_hit<=0.5", "wrong_hits<=0", "oracle_hit_rate>=0", "semantic_p99_us<=1e9"])
def test_gate_on_what_cannot_be_measured_fails(replay, gate):
    """Silence is no proof: without ground truth, no bound on wrong hits holds."""
    status, _, err = replay(gate, lines=[chat("a"), chat("a", 1)])
    assert status == 1
    assert "is not measured (the recording has no answer_id), asked for" in err


def test_gate_without_a_hit_to_judge_fails(replay):
    """Of no hit at all nothing is known."""
    status, _, err = replay("wrong_per_hit<=1", lines=[chat("a", 0, "x")])
    assert status == 1
    assert "not measured (no hit could be judged)" in err


@pytest.mark.parametrize(
    ("gate", "told"),
    [
        ("hitrate>=0.2", "there is no measure 'hitrate'"),
        ("hit_rate", "expected MEASURE<=NUMBER"),
        ("hit_rate=0.2", "expected MEASURE<=NUMBER"),
        ("hit_rate>=high", "expected MEASURE<=NUMBER"),
        ("hit_rate>=nan", "expected MEASURE<=NUMBER"),
        ("", "expected MEASURE<=NUMBER"),
        ("hit_rate>=0.2;exit", "expected MEASURE<=NUMBER"),
    ],
)
def test_wrong_gate_is_wrong_use_and_lists_the_measures(replay, gate, told):
    """What is no gate is refused before anything is replayed, with all measures there are."""
    status, out, err = replay(gate)
    assert (status, out) == (2, "")
    assert told in err
    assert all(measure in err for measure in MEASURES)
    assert err.count("\n") == 1


def test_every_measure_can_be_asked_for(replay):
    """Each name that is listed leads to a number, or says that there is none."""
    options = ("--json", "-")
    status, out, _ = replay(*(f"{measure}>=-1e9" for measure in MEASURES), options=options)
    told = {gate["gate"].split(">")[0]: gate for gate in json.loads(out)["gates"]}
    assert told.keys() == MEASURES.keys()
    missing = {name for name, gate in told.items() if gate["value"] is None}
    assert missing == {
        "wrong_per_near_hit",
        "wrong_per_near_hit_upper",
        "saved_money",
        "disk_p99_us",
        "semantic_p99_us",
    }
    assert all(gate["passed"] == (gate["value"] is not None) for gate in told.values())
    assert status == 1
    assert told["wrong_per_hit_upper"]["value"] == pytest.approx(0.9055, abs=1e-4)
    assert told["saved_seconds"]["value"] == 3.0


def test_gates_are_in_the_markdown(replay):
    """A pull request shows what failed."""
    _, out, _ = replay("hit_rate>=0.9", options=("--markdown", "-"))
    assert "- **gate fails: hit\\_rate is 0.666667, asked for &#62;= 0.9**" in out
