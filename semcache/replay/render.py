"""The report of a replay as lines for a terminal: each a list of (text, style), in colour where rich is installed."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TextIO

from semcache.replay.gates import Checked
from semcache.replay.report import Report, latencies_us
from semcache.replay.score import Hits, Mistake
from semcache.replay.telling import conclusion, facts, notes, saved
from semcache.replay.whymiss import sentences
from semcache.replay.words import (
    GLUE,
    apart,
    clip,
    duration,
    interval,
    latency,
    percent,
    plain,
)  # fmt: skip

Line = list[tuple[str, str]]

WIDEST = 100
_MISTAKES_SHOWN = 5
_BAR_COLUMNS = 24
STYLES = {
    "title": "bold",
    "head": "bold",
    "note": "dim",
    "good": "green",
    "bad": "red",
    "warn": "yellow",
    "bar": "cyan",
    "": "",
}
"""The styles of rich that ours mean."""
# For terminals that have no other characters.
_ASCII = str.maketrans({"█": "#", "▌": "#", "─": "-"})


def show(lines: list[Line], file: TextIO) -> None:
    """Print a report's lines, in colour where rich is installed and `file` is a terminal."""
    text = _coloured(lines, file)
    encoding = getattr(file, "encoding", None) or "ascii"
    if not encoding.lower().startswith("utf"):
        text = text.translate(_ASCII)
    file.write(text.encode(encoding, "replace").decode(encoding))


def _coloured(lines: list[Line], file: TextIO) -> str:
    try:
        from rich.console import Console
        from rich.text import Text
    except ImportError:
        return "".join("".join(text for text, _ in line).rstrip() + "\n" for line in lines)
    console = Console(file=file, highlight=False, markup=False, emoji=False)
    with console.capture() as captured:  # what is printed directly would end the program where a pipe's reader has gone
        for line in lines:
            assembled = Text.assemble(*((text, STYLES[style]) for text, style in line))
            assembled.rstrip()
            console.print(assembled, soft_wrap=True)
    return captured.get()


def render(
    report: Report, name: str, width: int, checked: Sequence[Checked] = (), *, shows_why: bool = False
) -> list[Line]:
    """Return the report on the recording `name` as lines of at most about `width` columns, and at most 100."""
    width = min(width, WIDEST)
    sections = (
        _head(report, name, width),
        _tiers(report),
        _nearest(report),
        _refused(report),
        _references(report, width),
        _mistakes(report, width),
        _why(report, width) if shows_why else (),
        _notes(report, width),
        _conclusion(report, width),
        _gates(checked, width),
    )
    lines: list[Line] = []
    for section in sections:
        found = list(section)
        if found:
            lines += [[], *found] if lines else found
    return [[], *lines, []]


def _head(report: Report, name: str, width: int) -> Iterator[Line]:
    yield [("Replay of ", "title"), (clip(plain(name), width - 12), "title")]
    for told, style in facts(report):
        yield from wrapped(told, width, style)


def _tiers(report: Report) -> Iterator[Line]:
    score = report.score
    latencies = latencies_us(score)
    heads = (f"{'answered by':<12}{'requests':>9}{'share':>8}{'wrong':>7}{'wrong per hit (95%)':>24}"
             f"{'p50':>9}{'p99':>9}")  # fmt: skip
    yield [("  " + heads, "head")]
    yield [("  " + "─" * len(heads), "note")]
    for tier, hits in report.tiers():
        yield _row(report, tier, hits, latencies.get(tier))
    yield [("  " + "─" * len(heads), "note")]
    yield _row(report, "all hits", score.hits, None)
    yield _row(report, "origin", Hits(score.misses - score.bypassed), latencies.get("miss"), is_judged=False)
    if score.bypassed:
        yield _row(report, "bypassed", Hits(score.bypassed), None, is_judged=False)


def _row(report: Report, label: str, hits: Hits, latencies: dict[str, float] | None, *, is_judged: bool = True) -> Line:
    rate = hits.wrong_per_hit
    is_judged = is_judged and report.is_judged
    wrong = f"{hits.wrong:,}" if is_judged else ""
    share = percent(rate.share) if is_judged and hits.judged else ""
    between = interval(rate) if is_judged else ""
    times = "".join(f"{latency(latencies[name]):>9}" for name in ("p50", "p99")) if latencies else ""
    return [
        (f"  {label:<12}{hits.hits:>9,}{percent(hits.hits / report.score.requests):>8}", ""),
        (f"{wrong:>7}", "bad" if hits.wrong else ""),
        (f"{share:>11}", "bad" if hits.wrong else ""),
        (f"{between:>13}", "note"),
        (times, ""),
    ]


def _nearest(report: Report) -> Iterator[Line]:
    """Tell, in shadow, what a threshold would have to do with."""
    if not report.is_shadow:
        return
    yield [(f"  {'nearest stored text':<22}{'requests':>9}{'share':>8}{'other answer':>16}", "head")]
    for cut, near in report.near_by_cut():
        rate = near.wrong_per_hit
        told = f"{near.wrong:,}  {percent(rate.share)}" if report.is_judged and near.judged else ""
        yield [
            (f"  {f'{cut:.2f} or nearer':<22}{near.hits:>9,}{percent(near.hits / report.score.requests):>8}", ""),
            (f"{told:>16}", "bad" if near.wrong else ""),
            (f"  {interval(rate)}" if told else "", "note"),
        ]


def _refused(report: Report) -> Iterator[Line]:
    """Tell what the guards refused that the policy would have served, and how much of it was another answer."""
    refused = sorted(report.score.refused.items(), key=lambda one: -one[1].hits)
    if not refused:
        return
    yield [(f"  {'refused by guards':<22}{'requests':>9}{'share':>8}{'other answer':>16}", "head")]
    for name, near in refused:
        told = f"{near.wrong:,}  {percent(near.wrong_per_hit.share)}" if report.is_judged and near.judged else ""
        yield [
            (f"  {name:<22}{near.hits:>9,}{percent(near.hits / report.score.requests):>8}", ""),
            (f"{told:>16}", "good" if near.wrong else ""),
        ]


def _references(report: Report, width: int) -> Iterator[Line]:
    yield [(f"  {'compared with':<20}{'answered':>9}  {'':<{_BAR_COLUMNS}}{'wrong':>7}{'waiting saved':>16}", "head")]
    for label, score in report.references():
        wrong = f"{score.hits.wrong:,}" if report.is_judged and score.hits.hits else ""
        waiting = duration(score.saved.seconds).replace(GLUE, " ") if score.saved.seconds else ""
        yield [
            (f"  {label:<20}{percent(score.hit_rate):>9}  ", "title" if score is report.score else ""),
            (f"{_bar(score.hit_rate):<{_BAR_COLUMNS}}", "bar" if score is report.score else "note"),
            (f"{wrong:>7}", "bad" if score.hits.wrong else ""),
            (f"{waiting:>16}", ""),
        ]
    yield from _saved(report, width)


def _saved(report: Report, width: int) -> Iterator[Line]:
    told = saved(report)
    if told:
        yield []
        yield from wrapped(told, width)


def _bar(share: float) -> str:
    halves = round(2 * _BAR_COLUMNS * share)
    return "█" * (halves // 2) + "▌" * (halves % 2)


def _mistakes(report: Report, width: int) -> Iterator[Line]:
    """Show the nearest wrong matches: what was asked, and what the answer that was given belongs to."""
    mistakes = report.score.mistakes
    if not mistakes:
        return
    times = Counter((mistake.asked, mistake.answered) for mistake in mistakes)
    distinct = {(mistake.asked, mistake.answered): mistake for mistake in mistakes}
    worst = sorted(distinct.values(), key=lambda mistake: -mistake.similarity)[:_MISTAKES_SHOWN]
    yield [(f"  wrong near matches, the nearest {len(worst)} of {len(distinct)} pairs", "head")]
    for mistake in worst:
        yield from _mistake(mistake, times[mistake.asked, mistake.answered], width)


def _mistake(mistake: Mistake, times: int, width: int) -> Iterator[Line]:
    again = f" x{times}" if times > 1 else ""
    begin = f"  {mistake.similarity:.3f}{again:<5}"
    for label, text, other in (
        (f"{begin}asked        ", mistake.asked, mistake.answered),
        (f"{'':<{len(begin)}}answered as  ", mistake.answered, mistake.asked),
    ):
        line: Line = [(label, "note")]
        for word, is_apart in apart(text, other, width - len(label)):
            line += [(word, "bad" if is_apart else ""), (" ", "")]
        yield line


def _notes(report: Report, width: int) -> Iterator[Line]:
    """Tell what was left out, went wrong, or needs an explanation."""
    for told, style in notes(report):
        yield from wrapped(told, width, style)


def _conclusion(report: Report, width: int) -> Iterator[Line]:
    yield from wrapped(conclusion(report), width, "title")


def _why(report: Report, width: int) -> Iterator[Line]:
    """Say what keeps requests apart, and what would be found if it did not."""
    if report.why is not None:
        yield [("  why don't I hit? what each part of key and scope keeps apart", "head")]
        for told, style in sentences(report.why):
            yield from wrapped(told, width, style)


def _gates(checked: Sequence[Checked], width: int) -> Iterator[Line]:
    for one in checked:
        yield from wrapped(one.told(), width, "good" if one.passed else "bad")


def wrapped(text: str, width: int, style: str = "") -> Iterator[Line]:
    """Yield a text's lines, indented by two columns."""
    for line in textwrap.wrap(text, width - 4, break_on_hyphens=False):
        yield [("  " + line.replace(GLUE, " "), style)]
