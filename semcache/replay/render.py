"""The report of a replay as lines for a terminal: each a list of (text, style), in colour where rich is installed."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator
from typing import TextIO

from semcache.policy import Threshold
from semcache.replay.recording import Recording
from semcache.replay.report import Report, latencies_us
from semcache.replay.score import Hits, Mistake, Score
from semcache.replay.words import (
    GLUE,
    apart,
    clip,
    count,
    duration,
    interval,
    latency,
    money,
    percent,
    plain,
    priced_at,
)  # fmt: skip

Line = list[tuple[str, str]]

WIDEST = 100
_MISTAKES_SHOWN = 5
_SKIPPED_SHOWN = 3
_BAR_COLUMNS = 24
# Near matches that are wrong more often than this, for all the interval allows, are advised against.
_BAD_SHARE = 0.05
# The styles of rich that ours mean.
_STYLES = {
    "title": "bold",
    "head": "bold",
    "note": "dim",
    "good": "green",
    "bad": "red",
    "warn": "yellow",
    "bar": "cyan",
    "": "",
}
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
            assembled = Text.assemble(*((text, _STYLES[style]) for text, style in line))
            assembled.rstrip()
            console.print(assembled, soft_wrap=True)
    return captured.get()


def render(report: Report, name: str, width: int) -> list[Line]:
    """Return the report on the recording `name` as lines of at most about `width` columns, and at most 100."""
    width = min(width, WIDEST)
    sections = (
        _head(report, name, width),
        _tiers(report),
        _nearest(report),
        _refused(report),
        _references(report, width),
        _mistakes(report, width),
        _notes(report, width),
        _conclusion(report, width),
    )
    lines: list[Line] = []
    for section in sections:
        found = list(section)
        if found:
            lines += [[], *found] if lines else found
    return [[], *lines, []]


def _head(report: Report, name: str, width: int) -> Iterator[Line]:
    replayed, recording = report.replayed, report.replayed.recording
    settings = replayed.settings
    yield [("Replay of ", "title"), (clip(plain(name), width - 12), "title")]
    told = [f"{count(len(recording.asked), 'request')} over {duration(recording.span_seconds)}"]
    if len(recording.kinds) > 1:
        told += [f"{number:,} {kind}" for kind, number in recording.kinds.items()]
    told += [count(len(found), what) for found, what in _counters(recording) if found]
    yield from _wrapped(", ".join(told), width)
    if not report.has_near:
        yield from _wrapped("exact tiers only", width)
    else:
        served = f"near matches: {_policy(report)}, by {settings.embedder.identity}"
        yield from _wrapped(served, width)
    speed = f"{report.requests_per_second:,.0f} requests a second"
    if report.has_near:
        embedded = f"{count(replayed.embedded, 'text')} embedded in {duration(replayed.embed_seconds)}"
        speed = f"{embedded}, all of it in {duration(replayed.wall_seconds)}: {speed}"
    if settings.live_threads:
        speed = f"live, {count(settings.live_threads, 'caller')}; {speed}"
    yield from _wrapped(speed, width, "note")


def _counters(recording: Recording) -> tuple[tuple[Counter[str], str], ...]:
    return (recording.tenants, "tenant"), (recording.models, "model")


def _policy(report: Report) -> str:
    policy = report.replayed.settings.policy
    if isinstance(policy, Threshold):
        return f"served at a similarity of {policy.cut:g} or more"
    return "looked up, not served (shadow)" if policy is None else f"served as {policy!r} decides"


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
    rows = [("no cache", Score(requests=1)), ("exact matches only", report.exact), ("this replay", report.score)]
    if report.is_judged:
        rows.append(("oracle", report.oracle))
    if not report.has_near:
        del rows[1]
    for label, score in rows:
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
    saved, whole = report.score.saved, report.origin
    told = []
    if whole.seconds:
        told.append(f"{duration(saved.seconds)} of {duration(whole.seconds)} of waiting")
    for what in ("prompt", "completion"):
        tokens = getattr(whole, f"{what}_tokens")
        if tokens:
            told.append(f"{getattr(saved, f'{what}_tokens'):,} of {tokens:,} {what} tokens")
    if report.money is not None:
        at = priced_at(report.replayed.recording.prices)
        told.append(f"{money(saved.money)} of {money(whole.money)} {at}")
    if told:
        yield []
        yield from _wrapped(f"Saved {', '.join(told)}.", width)


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
    replayed, score = report.replayed, report.score
    told = "p50, p99: what the cache takes, without its origin"
    if report.has_near and not replayed.settings.live_threads:
        told += "; embedding and search were done in batches, and are counted by the share of each request"
    yield from _wrapped(f"{told}.", width, "note")
    if report.is_judged:
        told = "oracle: a cache without bounds that knows which requests share an answer."
        yield from _wrapped(told, width, "note")
    unpriced = [plain(model) or "-" for model, calls in report.origin.unpriced.items() if calls]
    if unpriced:
        told = f"no price, and left out of the money: {', '.join(sorted(unpriced))}; --prices FILE gives one."
        yield from _wrapped(told, width, "note")
    if score.bypassed:
        told = "bypassed: requests that want another answer each time (temperature > 0, n > 1)."
        yield from _wrapped(told, width, "note")
    if replayed.uncovered:
        text = "text that the embedder does not see whole was"
        told = count(replayed.uncovered, text, "texts that the embedder does not see whole were")
        yield from _wrapped(f"{told} matched exactly only.", width, "note")
    skipped = replayed.recording.skipped
    if skipped:
        told = count(len(skipped), "line was", "lines were")
        yield from _wrapped(f"{told} not in the format, and skipped:", width, "bad")
        for number, reason in skipped[:_SKIPPED_SHOWN]:
            yield from _wrapped(f"line {number}: {plain(reason)}", width, "note")
    for fault, times in replayed.stats.faults.items():
        yield from _wrapped(f"Met on the way: {fault}, {count(times, 'time')}.", width, "bad")


def _conclusion(report: Report, width: int) -> Iterator[Line]:
    """Say in a sentence or two what it all means."""
    score, exact = report.score, report.exact
    near = score.near
    if not report.has_near:
        told = f"Exact matches answered {percent(score.hit_rate)} of the requests"
        told += f"; an oracle would have answered {percent(report.oracle.hit_rate)}." if report.is_judged else "."
    elif report.is_shadow:
        told = (
            f"In shadow, {percent(score.hit_rate)} of the requests were answered, by exact matches alone. "
            f"{_shadow_told(report)}"
        )
    else:
        policy = report.replayed.settings.policy
        at = f"At {policy.cut:g}" if isinstance(policy, Threshold) else f"With {policy!r}"
        more = 100 * (score.hit_rate - exact.hit_rate)
        told = (
            f"{at}, {percent(score.hit_rate)} of the requests were answered, {more:.1f} points more than by exact "
            f"matches alone; {_near_told(report, near)}"
        )
    yield from _wrapped(told, width, "title")


def _shadow_told(report: Report) -> str:
    cut, near = report.near_by_cut()[1]
    told = f"{percent(near.hits / report.score.requests)} more had a stored neighbour at {cut:.2f} or nearer"
    if near.judged:
        told += f", {percent(near.wrong_per_hit.share)} of them one with another answer"
    return f"{told}: see what serving them does with --policy threshold:{cut:g}."


def _near_told(report: Report, near: Hits) -> str:
    rate = near.wrong_per_hit
    if not near.hits:
        return "no near match was served."
    if not report.is_judged:
        return (
            f"whether the {count(near.hits, 'near match', 'near matches')} among them were right is not known, "
            "because the recording has no answer_id."
        )
    told = (
        f"of the {count(near.hits, 'near match', 'near matches')} served, {percent(rate.share)} were wrong "
        f"(95% interval {interval(rate)})."
    )
    is_bad = rate.interval is not None and rate.interval[0] > _BAD_SHARE
    return told + (" Leave near matches in shadow on this traffic, or try a higher cut." if is_bad else "")


def _wrapped(text: str, width: int, style: str = "") -> Iterator[Line]:
    for line in textwrap.wrap(text, width - 4, break_on_hyphens=False):
        yield [("  " + line.replace(GLUE, " "), style)]
