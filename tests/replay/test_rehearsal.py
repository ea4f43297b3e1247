"""An error budget in a replay: what it would have learned, when it would have opened, and what it would have served."""

from __future__ import annotations

import json

import pytest
from recordings import Letters, repeats, run

from semcache import ErrorBudget
from semcache.cli import main
from semcache.replay import telling
from semcache.replay.report import figures, make_report

pytestmark = pytest.mark.semantic


def rehearsed(lines, budget=0.1, **settings):
    return run(lines, embedder=Letters(), policy=ErrorBudget(budget, **settings))


def near(replayed):
    return [place for place, one in enumerate(replayed.outcomes) if one.tier == "semantic"]


def told(replayed):
    return [note for note, _ in telling.notes(make_report(replayed))]


def test_budget_opens_when_its_labels_prove_it_and_serves_from_then_on():
    """With half of the near matches drawn, 56 right ones open 10%; before that nothing near is served."""
    replayed = rehearsed(repeats(200))
    first = replayed.learned.changes[0]
    assert "opened" in first.what
    assert 2 * 56 <= first.requests <= 2 * 150
    served = near(replayed)
    assert min(served) >= first.requests
    # What is drawn to be compared is loaded; all else is served.
    assert len(served) > 0.9 * (400 - first.requests) / 2
    assert any(note.startswith(f"after {first.requests} requests") for note in told(replayed))
    assert figures(make_report(replayed))["learned"]["changes"][0]["requests"] == first.requests


def test_labels_are_the_recordings():
    """By answer_id, or by the responses; wrong ones, and those of which nothing is told, open nothing."""
    assert near(rehearsed(repeats(200, response="from 9 to 6")))
    for lines in (repeats(200, wrong=200), repeats(200, model_said="nothing")):
        replayed = rehearsed(lines)
        assert near(replayed) == []
        assert "nothing near was served: no cut opened." in told(replayed)


def test_alarm_closes_what_has_changed():
    """Where answers turn wrong behind the opening, that is noticed, told, and nothing near is served any more."""
    later = [line.replace("turn ", "later turn ") for line in repeats(300, wrong=300, start=1000)]
    replayed = run(repeats(150) + later, embedder=Letters(), policy=ErrorBudget(0.1), seed=3)
    assert [one.what for one in replayed.learned.changes if "alarm" in one.what or "closed" in one.what]
    assert max(near(replayed)) < 700


def test_replay_comes_out_the_same_each_time():
    """Comparisons are done before the next request is asked, and the draw is the seed's."""
    one, two = (rehearsed(repeats(150, wrong=2)) for _ in range(2))
    assert near(one) == near(two)
    assert one.learned.changes == two.learned.changes


def test_command_takes_a_budget(tmp_path, capsys, monkeypatch):
    """`--policy budget:0.1`, with guards or without; not live, where the recording's times do not count."""
    monkeypatch.setattr("semcache.replay.run.as_embedder", lambda *_: _letters())
    traffic = tmp_path / "traffic.jsonl"
    traffic.write_text("\n".join(repeats(150)), encoding="utf-8")
    for options in ([], ["--no-guards"]):
        assert main(["replay", str(traffic), "--policy", "budget:0.1", "--quiet", "--json", "-", *options]) == 0
        figures = json.loads(capsys.readouterr().out)
        assert figures["semantic"]["hits"] > 0
        assert [one["state"] for one in figures["learned"]["families"]] == ["open", "open"]
    assert main(["replay", str(traffic), "--policy", "budget:0.1", "--quiet"]) == 0
    assert "opened: near matches from" in " ".join(capsys.readouterr().out.split())
    assert main(["replay", str(traffic), "--policy", "budget:0.1", "--live"]) == 2
    assert "is not for --live" in capsys.readouterr().err
    assert main(["replay", str(traffic), "--policy", "budget:x"]) == 2
    assert 'an error budget is a share, as in "budget:0.01"' in capsys.readouterr().err


def _letters():
    from semcache.semantic.embedder import as_embedder

    return as_embedder(Letters(), "cpu")
