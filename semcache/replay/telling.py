"""A replay told in sentences, which the printed report, the page and the pull request share; pure.

A style says what a sentence is: "note" for an explanation, "bad" for what went wrong, "" for all else.
"""

from __future__ import annotations

from collections.abc import Iterator

from semcache.policy import Threshold
from semcache.replay.report import Report
from semcache.replay.score import Hits
from semcache.replay.words import count, duration, interval, money, percent, plain, priced_at

Told = tuple[str, str]

_SKIPPED_SHOWN = 3
_CHANGES_SHOWN = 5
# Near matches that are wrong more often than this, for all the interval allows, are advised against.
_BAD_SHARE = 0.05


def facts(report: Report) -> Iterator[Told]:
    """Tell what was replayed, and how."""
    replayed, recording = report.replayed, report.replayed.recording
    settings = replayed.settings
    told = [f"{count(len(recording.asked), 'request')} over {duration(recording.span_seconds)}"]
    if len(recording.kinds) > 1:
        told += [f"{number:,} {kind}" for kind, number in recording.kinds.items()]
    counters = (recording.tenants, "tenant"), (recording.models, "model")
    told += [count(len(found), what) for found, what in counters if found]
    yield ", ".join(told), ""
    if recording.composed:
        yield composed(report), "note"
    if not report.has_near:
        yield "exact tiers only", ""
    else:
        yield f"near matches: {policy(report)}, by {settings.embedder.identity}", ""
    speed = f"{report.requests_per_second:,.0f} requests a second"
    if report.has_near:
        embedded = f"{count(replayed.embedded, 'text')} embedded in {duration(replayed.embed_seconds)}"
        speed = f"{embedded}, all of it in {duration(replayed.wall_seconds)}: {speed}"
    if settings.live_threads:
        speed = f"live, {count(settings.live_threads, 'caller')}; {speed}"
    yield speed, "note"


def composed(report: Report) -> str:
    """Say that requests were laid out by somebody, so that nobody takes them for traffic; "" where none was."""
    recording = report.replayed.recording
    if not recording.composed:
        return ""
    number, of = recording.composed, len(recording.asked)
    which = "a composed stream" if number == of else f"{number:,} of {of:,} requests are composed"
    return f"{which}, not recorded traffic: its rates show how the cache behaves, not what yours will give"


def policy(report: Report) -> str:
    """Say which near matches were served."""
    chosen = report.replayed.settings.policy
    if isinstance(chosen, Threshold):
        return f"served at a similarity of {chosen.cut:g} or more"
    return "looked up, not served (shadow)" if chosen is None else f"served as {chosen!r} decides"


def saved(report: Report) -> str:
    """Tell what was saved of waiting, tokens and money; "" where the recording tells of none."""
    less, whole = report.score.saved, report.origin
    told = []
    if whole.seconds:
        told.append(f"{duration(less.seconds)} of {duration(whole.seconds)} of waiting")
    for what in ("prompt", "completion"):
        tokens = getattr(whole, f"{what}_tokens")
        if tokens:
            told.append(f"{getattr(less, f'{what}_tokens'):,} of {tokens:,} {what} tokens")
    if report.money is not None:
        at = priced_at(report.replayed.recording.prices)
        told.append(f"{money(less.money)} of {money(whole.money)} {at}")
    return f"Saved {', '.join(told)}." if told else ""


def notes(report: Report) -> Iterator[Told]:
    """Tell what was left out, went wrong, or needs an explanation."""
    replayed, score = report.replayed, report.score
    told = "p50, p99: what the cache takes, without its origin"
    if report.has_near and not replayed.settings.live_threads:
        told += "; embedding and search were done in batches, and are counted by the share of each request"
    yield f"{told}.", "note"
    yield from _learned(report)
    if report.is_judged:
        told = "oracle: a cache without bounds that knows which requests share an answer."
        yield told, "note"
    unpriced = [plain(model) or "-" for model, calls in report.origin.unpriced.items() if calls]
    if unpriced:
        told = f"no price, and left out of the money: {', '.join(sorted(unpriced))}; --prices FILE gives one."
        yield told, "note"
    if report.proving:
        told = f"the policy was proved on the first {count(report.proving, 'request')} of this very recording"
        yield f"{told}, which are no test of it: replay a later one.", "bad"
    if score.bypassed:
        told = "bypassed: requests that want another answer each time (temperature > 0, n > 1)."
        yield told, "note"
    if replayed.uncovered:
        text = "text that the embedder does not see whole was"
        told = count(replayed.uncovered, text, "texts that the embedder does not see whole were")
        yield f"{told} matched exactly only.", "note"
    skipped = replayed.recording.skipped
    if skipped:
        told = count(len(skipped), "line was", "lines were")
        yield f"{told} not in the format, and skipped:", "bad"
        for number, reason in skipped[:_SKIPPED_SHOWN]:
            yield f"line {number}: {plain(reason)}", "note"
    for fault, times in replayed.stats.faults.items():
        yield f"Met on the way: {fault}, {count(times, 'time')}.", "bad"


def _learned(report: Report) -> Iterator[Told]:
    """Tell when an error budget opened in the replay, and what it knew at its end."""
    learned = report.replayed.learned
    if learned is None:
        return
    for change in learned.changes[:_CHANGES_SHOWN]:
        after = f"after {count(change.requests, 'request')}, {duration(change.ts)}"
        yield f"{after}: {plain(change.what)}.", "bad" if "alarm" in change.what else ""
    if len(learned.changes) > _CHANGES_SHOWN:
        yield f"and {count(len(learned.changes) - _CHANGES_SHOWN, 'change')} more of what is served.", "note"
    if not learned.changes:
        yield "nothing near was served: no cut opened.", ""
    for line in str(learned.status).splitlines():
        yield plain(line.strip()), "note"


def conclusion(report: Report) -> str:
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
        chosen = report.replayed.settings.policy
        at = f"At {chosen.cut:g}" if isinstance(chosen, Threshold) else f"With {chosen!r}"
        more = 100 * (score.hit_rate - exact.hit_rate)
        told = (
            f"{at}, {percent(score.hit_rate)} of the requests were answered, {more:.1f} points more than by exact "
            f"matches alone; {_near_told(report, near)}"
        )
    return told


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
