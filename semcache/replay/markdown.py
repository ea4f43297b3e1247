"""The report of a replay as Markdown, short enough for a pull request.

Law: texts are anybody's: they stand in code, where nothing is a link, a name to be notified or a tag.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from semcache.replay import telling
from semcache.replay.details import Pair, wrong_pairs
from semcache.replay.gates import Checked
from semcache.replay.report import Report, latencies_us
from semcache.replay.score import Hits
from semcache.replay.whymiss import sentences
from semcache.replay.words import GLUE, clip, duration, interval, latency, percent, plain

_MOST_WRONG = 5
_MOST_WHY = 5
_TEXT_COLUMNS = 160
_ESCAPES = str.maketrans({sign: f"\\{sign}" for sign in "\\`*_[]|"} | {sign: f"&#{ord(sign)};" for sign in "&<>@"})


def markdown(report: Report, name: str, checked: Sequence[Checked] = (), *, shows_why: bool = False) -> str:
    """Return the report on the recording `name`."""
    lines = [f"### Replay of {_code(name)}", "", *_paragraph(telling.conclusion(report))]
    for told, _ in telling.facts(report):
        lines += _paragraph(told)
    for one in checked:
        lines.append(f"- {_plain(one.told())}" if one.passed else f"- **{_plain(one.told())}**")
    if checked:
        lines.append("")
    lines += [*_tiers(report), "", *_references(report), ""]
    lines += _paragraph(telling.saved(report))
    lines += _wrong(report)
    if shows_why and report.why is not None:
        lines += ["**Why don't I hit?** What each part of key and scope keeps apart:", ""]
        lines += [f"- {_code(told)}" for told, style in sentences(report.why, _MOST_WHY) if style != "note"]
    return "\n".join(lines).rstrip() + "\n"


def _tiers(report: Report) -> Iterator[str]:
    yield "| answered by | requests | share | wrong of judged | wrong per hit (95%) | p50 | p99 |"
    yield "| --- | --: | --: | --: | --: | --: | --: |"
    score, latencies = report.score, latencies_us(report.score)
    rows = [*report.tiers(), ("**all hits**", score.hits), ("origin", Hits(score.misses - score.bypassed))]
    if score.bypassed:
        rows.append(("bypassed", Hits(score.bypassed)))
    for label, hits in rows:
        times = latencies.get("miss" if label == "origin" else label)
        p50, p99 = (latency(times[name]) if times else "" for name in ("p50", "p99"))
        share = percent(hits.hits / score.requests)
        yield f"| {label} | {hits.hits:,} | {share} | {_wrong_of(hits)} | {_rate(hits)} | {p50} | {p99} |"


def _references(report: Report) -> Iterator[str]:
    yield "| compared with | answered | wrong per hit (95%) | waiting saved |"
    yield "| --- | --: | --: | --: |"
    for label, score in report.references():
        waiting = duration(score.saved.seconds).replace(GLUE, " ") if score.saved.seconds else ""
        yield f"| {label} | {percent(score.hit_rate)} | {_rate(score.hits)} | {waiting} |"


def _wrong_of(hits: Hits) -> str:
    return f"{hits.wrong:,} of {hits.judged:,}" if hits.judged else ""


def _rate(hits: Hits) -> str:
    rate = hits.wrong_per_hit
    return f"{percent(rate.share)} ({interval(rate)})" if rate.share is not None else ""


def _wrong(report: Report) -> Iterator[str]:
    pairs = wrong_pairs(report.replayed.recording.asked, report.replayed.outcomes)
    if not pairs:
        return
    yield f"<details><summary>Wrong hits, the worst {min(_MOST_WRONG, len(pairs))} of {len(pairs):,} pairs</summary>"
    yield ""
    yield "| similarity | times | asked | answered as | told apart by |"
    yield "| --: | --: | --- | --- | --- |"
    for pair in pairs[:_MOST_WRONG]:
        yield _row(pair)
    yield from ("", "</details>", "")


def _row(pair: Pair) -> str:
    similarity = "exact" if pair.similarity is None else f"{pair.similarity:.3f}"
    texts = " | ".join(map(_code, (pair.asked.text, pair.other.text, pair.apart)))
    return f"| {similarity} | {pair.times:,} | {texts} |"


def _code(text: str) -> str:
    """Return anybody's text as code, on one line, in a table too."""
    told = clip(plain(text), _TEXT_COLUMNS).replace("`", "'").replace("|", "\\|")
    return f"`{told}`" if told.strip() else "(no text)"


def _paragraph(told: str) -> list[str]:
    return [_plain(told), ""] if told else []


def _plain(told: str) -> str:
    """Return a sentence of ours, in which a name of anybody's may stand, so that it marks nothing up."""
    return told.replace(GLUE, " ").translate(_ESCAPES)
