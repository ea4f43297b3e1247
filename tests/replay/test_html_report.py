"""The page of a replay: what it shows, that it asks for nothing, and that nobody's text acts in it."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from recordings import chat, run

from semcache.cli import main
from semcache.policy import Threshold
from semcache.replay.charts import by_stage
from semcache.replay.details import Stage
from semcache.replay.markdown import markdown
from semcache.replay.page import MOST_WRONG, page
from semcache.replay.report import make_report

SUPPORT = Path(__file__).parents[2] / "examples" / "traffic" / "support.jsonl"
COST = {"usage": {"prompt_tokens": 100, "completion_tokens": 20}, "latency_ms": 1500}
EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)> \"'&{{ 7*7 }}{% raw %} \u202eexe</style></svg>"
# Of the charts' font at the size of a tick's label.
_HALF_LETTER = 3.4
VOID = {"meta", "link", "img", "br", "hr", "input", "base"}


class Page(HTMLParser):
    """The elements and texts of a page; refuses elements that do not nest."""

    def __init__(self, told):
        super().__init__()
        self.elements, self.words, self._open = [], [], []
        self.feed(self.unwrapped(told))
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("style", "title"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    @staticmethod
    def unwrapped(told):
        """Return a page without what only keeps a line from breaking inside an interval."""
        return re.sub(r'<span class="whole">(.*?)</span>', r"\1", told)


def made(lines, **settings):
    return page(make_report(run(lines, keep_ingredients=True, **settings)), "some.jsonl")


@pytest.fixture(scope="module")
def support(tmp_path_factory):
    """The page of the example's recording."""
    target = tmp_path_factory.mktemp("page") / "report.html"
    assert main(["replay", str(SUPPORT), "--no-semantic", "--quiet", "--report", str(target)]) == 0
    return target.read_text(encoding="utf-8")


def test_page_of_the_example_shows_what_came_of_it(support):
    """Tiers, references, savings, charts with units and n, and that the stream is composed, stand in one file."""
    shown = Page(support).text
    assert "Replay of support.jsonl" in shown
    assert "a composed stream, not recorded traffic" in shown
    assert re.search(r"all hits 111 17\.5% 0 of 111 0\.0% \(0\.0-3\.3%\)", shown)
    assert re.search(r"oracle 53\.8% 341 of 634", shown)
    for axis in (
        "requests answered (%)", "time since the recording began", "memory (bytes, logarithmic)", "ttl (logarithmic)",
        "time of a lookup (median to 99th percentile, logarithmic)",
    ):  # fmt: skip
        assert axis in shown
    assert shown.count("n = 634 requests") == 3
    assert "n = 629 lookups" in shown
    assert "No hit that could be judged was wrong." in shown
    assert "Why don't I hit?" in shown
    assert "system prompt: exact 17.5% -> 20.3%" in shown
    assert len(support) < 200_000


def test_page_asks_for_nothing_and_forbids_itself_everything(support):
    """Offline and self-contained: no address, no script, no style but the one whose digest the policy names."""
    shown = Page(support)
    policy = next(attrs["content"] for tag, attrs in shown.elements if attrs.get("http-equiv"))
    style = re.search(r"<style>(.*?)</style>", support, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert support.count("<style") == 1
    assert not {tag for tag, _ in shown.elements} & {"script", "link", "img", "iframe", "object", "base", "form", "a"}
    attributes = [(name, value) for _, attrs in shown.elements for name, value in attrs.items()]
    assert not [name for name, _ in attributes if name.startswith("on") or name in ("style", "src")]
    assert all(value.startswith("#") for name, value in attributes if name == "href")
    assert "http://" not in support
    assert "https://" not in support
    assert "url(" not in style
    assert "@import" not in style


def test_ids_of_charts_are_unique_and_meet_their_references(support):
    """What a chart refers to is its own."""
    shown = Page(support)
    ids = [attrs["id"] for _, attrs in shown.elements if "id" in attrs]
    assert len(ids) == len(set(ids)) > 0
    referred = re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", support)
    assert {one or other for one, other in referred} == set(ids)


def test_page_prints_and_fits_light_dark_and_narrow(support):
    """The style has a dark half, a printed one and a narrow one, and charts take their colours from it alone."""
    for query in ("prefers-color-scheme: dark", "@media print", "max-width: 34rem"):
        assert query in support
    assert 'content="width=device-width, initial-scale=1"' in support
    charts = re.findall(r"<svg viewBox.*?</svg>", support, re.DOTALL)
    assert len(charts) >= 4
    assert not [chart for chart in charts if re.search(r"#[0-9a-f]{6}", chart)]


@pytest.mark.semantic
def test_page_shows_wrong_hits_and_what_told_them_apart(letters):
    """Both texts, both answers, the words that differ, how often, and how near."""
    lines = [
        chat("listen to 48213", 0, "x", response="ONE", **COST),
        chat("listen to 48231", 1, "y", response="TWO", **COST),
    ]
    told = made(
        [*lines, chat("listen to 48231", 2, "y", response="TWO", **COST)],
        embedder=letters,
        policy=Threshold(0.9, guards=None),
    )
    shown = Page(told).text
    assert "1 of 1 pairs, 2 wrong hits in all" in shown
    assert "similarity 1.000 times 2 waiting 3 s near matches as near as this: 100.0% of 2 wrong (34.2-100.0%)" in shown
    assert "asked listen to 48231 y answered as listen to 48213 x told apart by numbers: 48231 / 48213" in shown
    assert "its own answer TWO the other's ONE" in shown
    assert "<mark>48231</mark>" in told
    assert "right near matches (%)" in shown
    assert "At the chosen cut of 0.9: 0.0% of 2 near matches right, wrong 34.2-100.0%." in shown


@pytest.mark.semantic
def test_page_shows_what_guards_refused_and_says_where_they_are_left_out(letters):
    """A table of the guards, and figures of all that is near say that they are of before them."""
    lines = [
        chat("listen to 48213", 0, "x", response="ONE", **COST),
        chat("listen to 48231", 1, "y", response="TWO", **COST),
        chat("enlist to 48213", 2, "z", response="THREE", **COST),
    ]
    told = made(lines, embedder=letters, policy=Threshold(0.9))
    shown = Page(told).text
    assert re.search(
        r"Refused by guards guard .* numbers 1 33\.3% 1 of 1 100\.0% \(20\.7-100\.0%\) Compared with", shown
    )
    assert "; that is before guards, which refused 1. n = " in shown
    assert "near matches as near as this, before guards: 100.0% of 2 wrong" in shown


@pytest.mark.semantic
def test_no_line_breaks_inside_an_interval(letters):
    """In a narrow tile or caption "9.1-21.1%" stays in one piece; what is in it is escaped as before."""
    lines = [chat("listen", 0, "x"), chat("silent", 1, "y")]
    told = made(lines, embedder=letters, policy=Threshold(0.9, guards=None))
    assert '95% <span class="whole">20.7-100.0%</span></span></div>' in told


def test_labels_of_a_chart_stand_inside_it():
    """The last tick's label is cut off by no edge, where it stands near to it."""
    for slowest in (94_000.0, 66_000.0, 990.0):
        drawn = by_stage([Stage("memory", 9, 7.0, 9.0, 30.0), Stage("embed", 9, slowest / 1.2, slowest, slowest)])
        width = float(re.search(r'viewBox="0 0 ([\d.]+)', drawn)[1])
        labels = re.findall(r'<text x="([\d.]+)"[^>]*rotate\(-0 [^>]*text-anchor="middle"[^>]*>([^<]+)<', drawn)
        assert len(labels) > 2
        for at, label in labels[:-1]:  # the last is the axis' own, which stands in the middle
            assert float(at) + _HALF_LETTER * len(label) < width, label


@pytest.mark.semantic
def test_page_shows_near_misses_worth_having(letters):
    """What was loaded though a right answer was near, the nearest first; a wrong neighbour is none."""
    lines = [
        chat("listen", 0, "x"), chat("listens", 1, "x", latency_ms=900), chat("enlist", 2, "z"), chat("stone", 3, "s"),
        chat("notes", 4, "s", latency_ms=100),
    ]  # fmt: skip
    shown = Page(made(lines, embedder=letters)).text
    near = shown[shown.index("Near misses worth having") :]
    assert "2 of 2 pairs, 2 requests in all" in near
    assert near.index("asked notes") < near.index("asked listens")
    assert "near matches as near as this: 33.3% of 3 wrong" in near
    assert "asked enlist" not in near


def test_exact_hit_that_is_wrong_is_shown_first():
    """Where the recording gives one request two answers, the page says so."""
    shown = Page(made([chat("a", 0, "x"), chat("a", 1, "y")])).text
    assert "similarity exact times 1" in shown
    assert "told apart by nothing: the recording gives the same request two answers" in shown


@pytest.mark.semantic
def test_texts_do_not_act_in_the_page(letters):
    """Texts, answers, ids, models, tenants and names of files are anybody's: they are shown, and do nothing."""
    fields = {"tenant": EVIL, "model": EVIL, "response": EVIL, "body": {EVIL: EVIL}, "system": EVIL}
    lines = [chat(f"{EVIL} listen", 0, EVIL, **fields), chat(f"{EVIL} silent", 1, "y", **fields)]
    lines += [chat("third", 2 + number, "z", body={EVIL: number}) for number in range(30)]
    report = make_report(run(lines, embedder=letters, policy=Threshold(0.5, guards=None), keep_ingredients=True))
    told = page(report, EVIL)
    shown = Page(told)
    assert not {tag for tag, _ in shown.elements} & {"script", "img"}
    assert not [attrs for _, attrs in shown.elements if set(attrs) & {"onerror", "src"}]
    assert "<script>alert(1)</script><img src=x onerror=alert(1)>" in shown.text
    assert "{{ 7*7 }}" in shown.text
    assert "\u202e" not in told
    assert html.escape("<script>") in told
    assert "&lt;script&gt;" in told
    assert told.count("<style") == told.count("</style>") == 1


@pytest.mark.semantic
def test_texts_do_not_act_in_markdown(letters):
    """In a pull request they stand in code: nobody is notified, nothing is linked, no table breaks."""
    evil = "listen | `@someone` <b>x</b> [a](https://example.org)\n# head"
    lines = [chat(evil, 0, "x"), chat(evil.replace("listen", "silent"), 1, "y")]
    told = markdown(make_report(run(lines, embedder=letters, policy=Threshold(0.5, guards=None))), "a`b.jsonl")
    row = next(line for line in told.splitlines() if line.startswith("| 1.000"))
    cells = re.split(r"(?<!\\)\|", row)
    assert len(cells) == 7
    assert cells[3].strip() == r"`silent \| '@someone' <b>x</b> [a](https://example.org) # head`"
    assert told.startswith("### Replay of `a'b.jsonl`\n")


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([chat("a")], ["answered 0.0% 0 of 1 request", "wrong per hit not known no hit"]),
        ([chat("a"), chat("a", 1)], ["answered 50.0%", "not known no answer_id in the recording"]),
        ([chat("a", 0, "x"), chat("b", 1, "y")], ["answered 0.0%", "No hit that could be judged was wrong."]),
        ([chat("a", 5, body={"temperature": 1})], ["bypassed 1 100.0%"]),
        ([chat("", 0, "x"), chat("", 0, "y")], ["(not a text: matched whole)"]),
    ],
    ids=["one", "unjudged", "no-hit", "bypassed", "empty-texts"],
)
def test_page_of_little_is_made(lines, told):
    """One request, no ground truth, no hit, nothing asked of the cache: the page says what it knows."""
    shown = Page(made(lines)).text
    for one in told:
        assert one in shown


@pytest.mark.semantic
@pytest.mark.parametrize("answer_ids", [("x", "x", "y"), (None, None, None)])
def test_page_of_a_shadow_is_made(letters, answer_ids):
    """Nothing near is served: the page shows what was near, and says where nobody knows whether it was right."""
    texts = ("listen", "silent", "enlist")
    lines = [chat(text, ts, answer_id) for ts, (text, answer_id) in enumerate(zip(texts, answer_ids, strict=True))]
    shown = Page(made(lines, embedder=letters)).text
    assert ("not judged: no answer_id" in shown) == (answer_ids[0] is None)
    assert "Near misses worth having" in shown


@pytest.mark.semantic
def test_page_of_many_wrong_hits_is_bounded(letters):
    """Long texts and many mistakes: some are shown, all are counted."""
    lines = [
        chat(f"{'listen ' * 400} {first}{second}", 0, f"x{first}{second}", response="long " * 2000)
        for first in "abcdefghijklm" for second in "nopqrstu"
    ]  # fmt: skip
    told = made(lines, embedder=letters, policy=Threshold(0.5, guards=None))
    assert f"{MOST_WRONG} of 103 pairs, 103 wrong hits in all" in Page(told).text
    assert len(told) < 400_000


def test_empty_recording_makes_no_page(tmp_path, capsys):
    """Of nothing there is no report."""
    path, target = tmp_path / "t.jsonl", tmp_path / "report.html"
    path.write_text("", encoding="utf-8")
    assert main(["replay", str(path), "--no-semantic", "--quiet", "--report", str(target)]) == 1
    assert "no request in it" in capsys.readouterr().err
    assert not target.exists()


@pytest.fixture
def traffic(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(chat("a", 0, "x") + "\n" + chat("a \ud800", 1, "x") + "\n", encoding="utf-8")
    return path


def test_page_is_written_beside_all_else(traffic, tmp_path, capsys):
    """The page, the Markdown and the figures of one replay; stdout has the printed report."""
    targets = {name: tmp_path / f"out.{name}" for name in ("report", "markdown", "json")}
    options = [part for name, target in targets.items() for part in (f"--{name}", str(target))]
    assert main(["replay", str(traffic), "--no-semantic", "--quiet", *options]) == 0
    assert "Replay of t.jsonl" in capsys.readouterr().out
    assert Page(targets["report"].read_text("utf-8")).text.startswith("Replay of t.jsonl")
    assert targets["markdown"].read_text("utf-8").startswith("### Replay of `t.jsonl`")
    assert json.loads(targets["json"].read_text("utf-8"))["requests"] == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--json", "-", "--markdown", "-"], "only one of --json, --report, --markdown can go to stdout"),
        (["--report", "/no/such/folder/r.html"], "--report /no/such/folder/r.html: there is no folder"),
        (["--report", "/"], "--report /: that is a folder; name a file in it"),
        (["--markdown", "/"], "--markdown /: that is a folder"),
    ],
)
def test_wrong_target_is_refused_before_the_replay(traffic, capsys, options, told):
    """What cannot be written is said at once."""
    assert main(["replay", str(traffic), "--no-semantic", *options]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert told in err


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_report_without_its_extra_says_what_to_install(traffic, tmp_path, capsys, monkeypatch, missing):
    """Law 13: the extra is asked for before anything is replayed; all else goes without it."""
    monkeypatch.setitem(sys.modules, missing, None)
    target = tmp_path / "r.html"
    assert main(["replay", str(traffic), "--no-semantic", "--report", str(target)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "semcache: --report needs the extra 'report': pip install 'tiered-semcache[report]'\n"
    assert main(["replay", str(traffic), "--no-semantic", "--quiet", "--markdown", "-", "--why-miss"]) == 0
