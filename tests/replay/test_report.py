"""What a replay tells: the figures, the printed report, and how both stand up to anybody's texts."""

from __future__ import annotations

import io
import json
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recordings import chat, run

from semcache.policy import Threshold
from semcache.replay import words
from semcache.replay.render import WIDEST, render, show
from semcache.replay.report import figures, latencies_us, make_report
from semcache.replay.score import Rate

FIGURES = {
    "requests", "hits", "misses", "bypassed", "skipped_lines", "hit_rate", "wrong_hits", "wrong_per_hit",
    "wrong_per_hit_ci95", "semantic", "exact_only_hit_rate", "refused_by_guard", "oracle_hit_rate", "saved",
    "latency_us", "requests_per_second", "embed_seconds", "wall_seconds", "policy", "embedder",
}  # fmt: skip
COST = {"usage": {"prompt_tokens": 100, "completion_tokens": 20}, "latency_ms": 1500}


def printed(report, width=96):
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    show(render(report, "some.jsonl", width), file)
    file.seek(0)
    return file.read()


def test_figures_are_what_was_replayed():
    """Counts, rates and savings follow from the recording."""
    warm = {"temperature": 1}
    lines = [chat("a", 0, "x", **COST), chat("a", 1, "x", **COST), chat("a", 2, "y", **COST), chat("b", 3, "x"), "{"]
    told = figures(make_report(run([*lines, chat("c", 4, "z", body=warm)])))
    assert told.keys() == FIGURES
    assert (told["requests"], told["misses"], told["bypassed"], told["skipped_lines"]) == (5, 3, 1, 1)
    assert told["hits"] == {"memory": 2, "disk": 0}
    assert told["hit_rate"] == told["exact_only_hit_rate"] == 2 / 5
    assert told["oracle_hit_rate"] == 2 / 5
    assert (told["wrong_hits"], told["wrong_per_hit"]) == (1, 0.5)
    assert told["wrong_per_hit_ci95"] == pytest.approx((0.0945, 0.9055), abs=1e-4)
    assert told["saved"].pop("net_seconds") < 3.0
    assert told["saved"] == {
        "seconds": 3.0, "prompt_tokens": 200, "completion_tokens": 40, "money": None, "prices": [],
        "unpriced": {"m": 3},
    }  # fmt: skip
    assert told["latency_us"].keys() == {"memory", "miss"}
    assert told["latency_us"]["memory"].keys() == {"p50", "p90", "p99", "max"}
    assert told["requests_per_second"] == pytest.approx(5 / told["wall_seconds"])
    assert (told["policy"], told["embedder"]) == ("Shadow()", None)


def test_figures_without_answer_ids_are_null_where_nothing_can_be_judged():
    """What is not known is null, not 0."""
    told = figures(make_report(run([chat("a", 0), chat("a", 1)])))
    assert told["hits"] == {"memory": 1, "disk": 0}
    assert (told["wrong_hits"], told["wrong_per_hit"], told["wrong_per_hit_ci95"]) == (0, None, None)
    assert told["oracle_hit_rate"] is None


def test_figures_of_no_hit_have_no_rate_of_wrong_ones():
    """Of no hit at all, no share is wrong; JSON can hold it."""
    told = figures(make_report(run([chat("a", 0, "x")])))
    assert (told["wrong_per_hit"], told["wrong_per_hit_ci95"]) == (None, None)
    json.dumps(told, allow_nan=False)


@pytest.mark.semantic
def test_figures_tell_near_matches_apart(letters):
    """Near hits and their mistakes stand beside the sum over all tiers; a share of the batch is in their latency."""
    lines = [chat("listen", 0, "x"), chat("silent", 1, "x"), chat("enlist", 2, "y"), chat("listen", 3, "x")]
    report = make_report(run(lines, embedder=letters, policy=Threshold(0.9)))
    told = figures(report)
    assert told["hits"] == {"memory": 1, "disk": 0, "semantic": 2}
    assert told["semantic"] == {"hits": 2, "wrong": 1}
    assert told["wrong_per_hit"] == 1 / 3
    assert (told["hit_rate"], told["exact_only_hit_rate"], told["oracle_hit_rate"]) == (3 / 4, 1 / 4, 1 / 2)
    assert (told["policy"], told["embedder"]) == ("Threshold(0.9)", "letters")
    assert told["latency_us"]["semantic"]["p50"] * 1e-6 >= told["embed_seconds"] / 3 * 0.99


@pytest.mark.semantic
def test_figures_of_a_shadow_tell_what_was_near(letters):
    """In shadow, the figures say for some cuts what a threshold would find."""
    told = figures(make_report(run([chat("listen", 0, "x"), chat("silent", 1, "y")], embedder=letters)))
    assert told.keys() == FIGURES | {"shadow"}
    assert told["shadow"] == [{"cut": cut, "requests": 1, "wrong": 1} for cut in (0.95, 0.9, 0.85)]


def test_latency_says_nothing_of_a_tier_that_did_not_answer():
    """A row of percentiles is of at least one lookup."""
    report = make_report(run([chat("a", 0)]))
    assert latencies_us(report.score).keys() == {"miss"}


PRICES = {
    "currency": "EUR",
    "providers": {
        "auto": {
            "as_of": "2026-01-02", "discount": "automatic", "from_tokens": 1024, "step_tokens": 128, "lasts": "10m",
            "models": {"m": {"input": 2.5, "cached_input": 1.25, "output": 10}},
        },
    },
}  # fmt: skip
LONG = {"usage": {"prompt_tokens": 2000, "completion_tokens": 100}, "latency_ms": 1000}


def test_money_is_what_the_calls_would_have_cost_at_their_time():
    """A repeat within ten minutes would have been discounted, a later one not; what it was recorded with is not topped.

    A load is 0.006, a repeat 0.0036 (1,920 tokens at 1.25) and 0.006 past ten minutes; of 2,000 tokens all cached the
    last one cost 0.0035.
    """
    cached = {**LONG, "usage": {**LONG["usage"], "cached_tokens": 2000}}
    lines = [chat("a", 0, **LONG), chat("a", 60, **LONG), chat("a", 700, **LONG), chat("a", 800, **cached)]
    report = make_report(run([*lines, chat("b", 801, model="other", **LONG)], prices=PRICES))
    saved = figures(report)["saved"]
    assert saved["money"] == pytest.approx(0.0036 + 0.006 + 0.0035)
    assert report.origin.money == pytest.approx(3 * 0.006 + 0.0035)
    assert (saved["prices"], saved["unpriced"]) == (["EUR 2026-01-02"], {"other": 1})
    text = re.sub(r"\s+", " ", printed(report))
    assert "0.0131 of 0.0215 EUR at prices of 2026-01-02." in text
    assert "no price, and left out of the money: other; --prices FILE gives one." in text


def test_net_seconds_are_less_what_the_cache_took():
    """Lookups, of misses too, are taken off the waiting that was saved."""
    report = make_report(run([chat("a", 0, **COST), chat("a", 1, **COST)]))
    took = sum(map(sum, report.score.nanoseconds.values())) / 1e9
    assert len(report.score.nanoseconds) == 2
    assert figures(report)["saved"]["net_seconds"] == pytest.approx(1.5 - took)


# The printed report


def test_report_of_exact_tiers_says_what_they_answered():
    """The report has the tiers, the references, the savings and a sentence."""
    text = printed(make_report(run([chat("a", 0, "x", **COST), chat("a", 1, "x", **COST), chat("b", 2, "x", **COST)])))
    assert "Replay of some.jsonl" in text
    assert re.search(r"memory +1 +33\.3% +0 +0\.0%", text)
    assert re.search(r"origin +2 +66\.7%", text)
    assert re.search(r"no cache +0\.0%", text)
    assert re.search(r"oracle +66\.7%", text)
    assert "Saved 1.5 s of 4.5 s of waiting, 100 of 300 prompt tokens, 20 of 60 completion tokens." in text
    assert "Exact matches answered 33.3% of the requests; an oracle would have answered 66.7%." in text


@pytest.mark.semantic
def test_report_shows_the_wrong_near_matches(letters):
    """People believe a wrong answer when they see the two questions."""
    lines = [chat("listen 48213", 0, "x"), chat("silent 48231", 1, "y"), chat("enlist 48213", 2, "x")]
    text = printed(make_report(run(lines, embedder=letters, policy=Threshold(0.9, guards=None))))
    assert re.search(r"1\.000 +asked +silent 48231\n +answered as +listen 48213", text)
    assert "At 0.9, 66.7% of the requests were answered, 66.7 points more than by exact matches alone" in " ".join(
        text.split()
    )
    assert "50.0% were wrong (95% interval 9.5-90.5%)" in " ".join(text.split())


@pytest.mark.semantic
def test_report_without_answer_ids_says_that_nothing_was_judged(letters):
    """Nobody is to take silence for correctness."""
    lines = [chat("listen", 0), chat("silent", 1)]
    text = " ".join(printed(make_report(run(lines, embedder=letters, policy=Threshold(0.9, guards=None)))).split())
    assert "is not known, because the recording has no answer_id" in text
    assert "oracle" not in text


@pytest.mark.semantic
def test_report_of_a_shadow_tells_what_a_threshold_would_do(letters):
    """By default nothing near is served; the report says what is near, and how to serve it."""
    lines = [chat("listen", 0, "x"), chat("silent", 1, "y")]
    text = " ".join(printed(make_report(run(lines, embedder=letters))).split())
    assert "0.90 or nearer 1 50.0% 1 100.0%" in text
    assert "--policy threshold:0.9" in text


@pytest.mark.parametrize(
    ("composed", "told"),
    [((True, True), "a composed stream, not recorded traffic"), ((True, False), "1 of 2 requests are composed, not")],
)
def test_report_says_that_a_stream_is_composed(composed, told):
    """Nobody is to take the rates of a composed stream for a forecast."""
    report = make_report(run([chat("a", ts, composed=one) for ts, one in enumerate(composed)]))
    assert told in " ".join(printed(report).split())
    assert figures(report)["composed_requests"] == sum(composed)


def test_report_names_skipped_lines_and_what_was_met():
    """Malformed lines are named by number, the first of them."""
    text = printed(make_report(run([chat("a", 0), *["{"] * 5])))
    assert "5 lines were not in the format" in text
    assert "line 2: not JSON" in text
    assert "line 5" not in text


@pytest.mark.semantic
@pytest.mark.parametrize("width", [80, 100, 300])
def test_report_fits_its_width(letters, width):
    """Lines fit a terminal of 80 columns, and are not drawn out in a wide one."""
    lines = [chat(f"listen {'and so on ' * 50}{number}", number, f"x{number % 3}", **COST) for number in range(9)]
    report = make_report(run([*lines, "{"], embedder=letters, policy=Threshold(0.5, guards=None)))
    assert max(len(line) for line in printed(report, width).splitlines()) <= min(width, WIDEST)


@pytest.mark.semantic
def test_report_defuses_what_a_terminal_would_act_on(letters):
    """A recording is anybody's: its texts move no cursor and forge no line."""
    evil = "listen \x1b[2J\x1b]0;owned\x07\r\n\u202eexe."
    lines = [chat(evil, 0, "x"), chat("silent j owned exe", 1, "y")]
    text = printed(make_report(run(lines, embedder=letters, policy=Threshold(0.2, guards=None))))
    shown = next(line for line in text.splitlines() if "answered as" in line)
    assert shown.split("answered as")[1].strip() == "listen ?[2J?]0;owned? ?exe."
    assert not set(text) & set("\x1b\x07\r\u202e")


def test_report_without_rich_is_the_same_text(monkeypatch):
    """Without the extra `cli` the report is printed, in the same words."""
    report = make_report(run([chat("a", 0, "x"), chat("a", 1, "y")]))
    with_rich = printed(report)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setitem(sys.modules, "rich.text", None)
    assert printed(report).split("\n") == [line.rstrip() for line in with_rich.split("\n")]


def test_report_to_an_ascii_terminal_is_ascii():
    """A terminal without line-drawing characters gets others, and question marks for letters that it has not."""
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    show(render(make_report(run([chat("a", 0, "x"), chat("a", 1, "x")])), "größe.jsonl", 80), file)
    file.seek(0)
    text = file.read()
    assert "####" in text
    assert "Replay of gr??e.jsonl" in text


# Words


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0, "0 ms"), (0.85, "850 ms"), (3.14, "3.1 s"), (5, "5 s"), (59.96, "1 min"), (60, "1 min"),
        (252, "4 min 12 s"), (28_740, "7 h 59 min"), (3600, "1 h"), (273_600, "3 d 4 h"), (86400 * 2000, "2,000 d"),
    ],
)  # fmt: skip
def test_duration_is_told_in_its_two_largest_units(seconds, told):
    """Durations read as people say them."""
    assert words.duration(seconds).replace(words.GLUE, " ") == told


@pytest.mark.parametrize(
    ("microseconds", "told"),
    [(8.44, "8.4 us"), (310.2, "310 us"), (999.4, "999 us"), (999.6, "1.0 ms"), (31_000, "31 ms"), (2.5e6, "2.5 s")],
)
def test_latency_is_told_in_its_unit(microseconds, told):
    """Latencies keep two or three digits."""
    assert words.latency(microseconds) == told


def test_interval_and_percent_are_told_in_percent():
    """Shares are percentages with one decimal."""
    assert words.percent(None) == "-"
    assert words.percent(0.1234) == "12.3%"
    assert words.interval(Rate(1, 10)) == "1.8-40.4%"
    assert words.interval(Rate(0, 0)) == ""


@given(st.text(), st.text(), st.integers(20, 120))
def test_difference_of_two_texts_fits_its_width(text, other, width):
    """Whatever two texts are, what is shown of them fits, and is printable."""
    shown = words.apart(text, other, width)
    line = " ".join(word for word, _ in shown)
    assert words.columns(line) <= width
    assert line == "" or line.isprintable()


def test_difference_of_two_long_texts_is_shown():
    """Of two long texts that differ late, the difference is what one sees."""
    long = "the customer wrote a long story first and then asked about order "
    shown = words.apart(long + "48213 and nothing else", long + "48231 and nothing else", 40)
    assert ("48213", True) in shown
    assert [word for word, is_apart in shown if is_apart] == ["48213"]


def test_plain_text_is_printable():
    """What is half a character, or none that is seen, is shown as a question mark."""
    assert words.plain("a\ud800\x00\u200b\n b") == "a??? b"


def test_wide_characters_count_for_two_columns():
    """A terminal draws Chinese two columns wide, and accents in none."""
    assert words.columns("中文e\u0301") == 5
    assert words.clip("中文中文中文", 9) == "中文中..."
