"""The report of a replay as one page: self-contained, offline, printable, without a script.

Laws: texts are anybody's, so every one is escaped, and the page forbids itself scripts and requests; each list is
bounded and says of how much it is a part; each rate has its n and, of wrong hits, its interval.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from semcache import __version__
from semcache.events import STAGES
from semcache.policy import Threshold
from semcache.replay import charts, telling
from semcache.replay.details import Pair, below, by_cut, near_misses, over_time, stages, wrong_pairs
from semcache.replay.gates import Checked
from semcache.replay.report import Report, latencies_us
from semcache.replay.score import Hits
from semcache.replay.whatif import Curve, by_memory, by_ttl
from semcache.replay.whymiss import sentences
from semcache.replay.words import apart, clip, count, duration, interval, latency, money, percent, plain, size
from semcache.ttl import size_bytes

MOST_WRONG = 50
MOST_NEAR = 25
_MOST_WHY = 20
_TEXT_COLUMNS = 320
_ID_COLUMNS = 60
_TEMPLATES = "templates"
_INTERVAL = re.compile(r"\d[\d.,]*-\d[\d.,]*%")


@dataclass(slots=True)
class Chart:
    """A drawn chart, the keys of its colours, and a sentence with its n."""

    title: str
    svg: Any
    told: str
    keys: list[tuple[int, str]] = field(default_factory=list)


def page(report: Report, name: str, checked: Sequence[Checked] = ()) -> str:
    """Return the page of a replay of the recording `name`. Raises MissingExtraError."""
    charts.require()
    from jinja2 import Environment, StrictUndefined

    folder = files("semcache.replay") / _TEMPLATES
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["whole"] = _whole
    style = (folder / "report.css").read_text("utf-8")
    asked, outcomes = report.replayed.recording.asked, report.replayed.outcomes
    return environment.from_string((folder / "report.html").read_text("utf-8")).render(
        name=clip(plain(name), _TEXT_COLUMNS),
        version=__version__,
        style=_as_it_is(style),
        style_digest=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        facts=list(telling.facts(report)),
        composed=telling.composed(report),
        conclusion=telling.conclusion(report),
        tiles=list(_tiles(report)),
        checked=checked,
        tiers=list(_tiers(report)),
        refused=list(_refused(report)),
        is_guarded=_is_guarded(report.replayed.settings.policy),
        is_judged=report.is_judged,
        references=list(_references(report)),
        saved=telling.saved(report),
        charts=list(_charts(report)),
        wrong=_shown(wrong_pairs(asked, outcomes), MOST_WRONG, report),
        near=_shown(near_misses(asked, outcomes), MOST_NEAR, report) if report.has_near else None,
        why=None if report.why is None else list(sentences(report.why, _MOST_WHY)),
        notes=list(telling.notes(report)),
    )


def _as_it_is(told: str) -> Any:
    """Mark what is ours, and safe."""
    from markupsafe import Markup

    return Markup(told)  # noqa: S704 - a style sheet or a chart, without a word of anybody's


def _whole(told: str) -> Any:
    """Let no line break stand inside an interval; all else is escaped."""
    from markupsafe import Markup, escape

    return Markup(_INTERVAL.sub(r'<span class="whole">\g<0></span>', str(escape(told))))  # noqa: S704 - just escaped


def _is_guarded(policy: Any) -> bool:
    """Say whether a policy has guards that are on."""
    guards = getattr(policy, "guards", ())
    return bool(getattr(guards, "names", guards))


def _tiles(report: Report) -> Iterator[tuple[str, str, str]]:
    """Yield the figures that people ask for first: what, how much, of how much."""
    score = report.score
    yield "answered", percent(score.hit_rate), f"{score.hits.hits:,} of {count(score.requests, 'request')}"
    rate = score.hits.wrong_per_hit
    if rate.share is not None:
        told = f"{rate.count:,} of {count(rate.of, 'judged hit')}, 95% {interval(rate)}"
        yield "wrong per hit", percent(rate.share), told
    else:
        yield "wrong per hit", "not known", "no hit" if not score.hits.hits else "no answer_id in the recording"
    whole = report.origin
    if whole.seconds:
        yield "waiting saved", duration(score.saved.seconds), f"of {duration(whole.seconds)}"
    if report.money is not None:
        yield "money saved", money(score.saved.money), f"of {money(whole.money)}"
    elif whole.prompt_tokens + whole.completion_tokens:
        tokens = score.saved.prompt_tokens + score.saved.completion_tokens
        yield "tokens saved", f"{tokens:,}", f"of {whole.prompt_tokens + whole.completion_tokens:,}"


def _tiers(report: Report) -> Iterator[dict[str, str]]:
    score, latencies = report.score, latencies_us(report.score)
    rows = [(tier, hits, latencies.get(tier), True) for tier, hits in report.tiers()]
    rows.append(("all hits", score.hits, None, True))
    rows.append(("origin", Hits(score.misses - score.bypassed), latencies.get("miss"), False))
    if score.bypassed:
        rows.append(("bypassed", Hits(score.bypassed), None, False))
    for label, hits, times, is_judged in rows:
        rate = hits.wrong_per_hit
        is_told = is_judged and rate.share is not None
        yield {
            "label": label,
            "requests": f"{hits.hits:,}",
            "share": percent(hits.hits / score.requests),
            "wrong": f"{rate.count:,} of {rate.of:,}" if is_told else "",
            "rate": f"{percent(rate.share)} ({interval(rate)})" if is_told else "",
            "p50": latency(times["p50"]) if times else "",
            "p99": latency(times["p99"]) if times else "",
        }


def _refused(report: Report) -> Iterator[dict[str, str]]:
    """Yield for each guard what it refused of what would have been served, and how much of it was another answer."""
    for name, near in sorted(report.score.refused.items(), key=lambda one: -one[1].hits):
        rate = near.wrong_per_hit
        is_told = report.is_judged and rate.share is not None
        yield {
            "label": name,
            "requests": f"{near.hits:,}",
            "share": percent(near.hits / report.score.requests),
            "wrong": f"{rate.count:,} of {rate.of:,}" if is_told else "",
            "rate": f"{percent(rate.share)} ({interval(rate)})" if is_told else "",
        }


def _references(report: Report) -> Iterator[dict[str, Any]]:
    for label, score in report.references():
        rate = score.hits.wrong_per_hit
        yield {
            "label": label,
            "share": percent(score.hit_rate),
            "hits": f"{score.hits.hits:,} of {score.requests:,}",
            "width": f"{100 * score.hit_rate:.1f}",
            "rate": f"{percent(rate.share)} ({interval(rate)})" if rate.share is not None else "",
            "waiting": duration(score.saved.seconds) if score.saved.seconds else "",
            "is_this": label == "this replay",
        }


def _charts(report: Report) -> Iterator[Chart]:
    asked, outcomes = report.replayed.recording.asked, report.replayed.outcomes
    settings = report.replayed.settings
    bins = over_time(asked, outcomes, (tier for tier, _ in report.tiers()))
    told = (
        f"n = {count(len(asked), 'request')}, {min(bins.requests):,} to {max(bins.requests):,} in each "
        f"{duration(bins.seconds)}"
    )
    keys = [(charts.TIER_SERIES[tier], tier) for tier in bins.hits]
    yield Chart("Hit rate by tier, over time", _as_it_is(charts.over_time(bins)), f"{told}.", keys)
    if report.has_near:
        yield from _precision(report)
    memory = by_memory(asked)
    if memory.at:
        needed, bound = memory.needed(0.9), size_bytes(settings.memory, "memory")
        told = (
            f"n = {count(memory.of, 'request')}. Exact matches answered from memory alone if nothing expired, by reuse "
            f"distance; {size(needed or 0)} give nine tenths of what any size gives. This replay had {size(bound)}."
        )
        svg = charts.what_if("memory", "Hits by memory size", [memory], bound, "memory")
        yield Chart("What if: memory size", _as_it_is(svg), told)
    now = settings.exact_seconds
    fixed, sliding = by_ttl(asked, settings.time_scale, now)
    if fixed.at:
        yield _ttls(fixed, sliding, now)
    told_stages = stages(outcomes, (stage for stage in STAGES if stage != "load"))
    if told_stages:
        lookups = max(stage.of for stage in told_stages)
        told = f"n = {count(lookups, 'lookup')}; " + ", ".join(f"{stage.name} {stage.of:,}" for stage in told_stages)
        yield Chart(
            "Latency by stage",
            _as_it_is(charts.by_stage(told_stages)),
            f"{told}. A dot is the median, the stroke the 99th percentile; loads are the origin's, and left out.",
        )


def _precision(report: Report) -> Iterator[Chart]:
    cuts = by_cut(report.replayed.recording.asked, report.replayed.outcomes)
    judged = cuts[-1].near.judged if cuts else 0
    if not judged:
        return
    policy = report.replayed.settings.policy
    chosen = policy.cut if isinstance(policy, Threshold) else None
    exact_hits = report.score.hits.hits - report.score.near.hits
    told = (
        f"n = {count(judged, 'judged near match', 'judged near matches')}; the band is the 95% interval. From left to "
        "right the cut gets lower; a cut's own replay may differ a little, since a query that it answers is not stored."
    )
    if chosen is not None:
        rate = below(cuts, chosen)
        if rate.share is not None:
            right = f"{percent(1 - rate.share)} of {count(rate.of, 'near match', 'near matches')} right"
            refused = sum(near.hits for near in report.score.refused.values())
            guards = f"; that is before guards, which refused {refused:,}" if _is_guarded(policy) else ""
            told = f"At the chosen cut of {chosen:g}: {right}, wrong {interval(rate)}{guards}. {told}"
    svg = charts.precision(cuts, exact_hits, report.score.requests, chosen)
    yield Chart("Precision of near matches, over requests answered", _as_it_is(svg), told)


def _ttls(fixed: Curve, sliding: Curve, now: float) -> Chart:
    told = (
        f"n = {count(fixed.of, 'request')}. Exact matches answered from a store with room for everything; the solid "
        "line is a life from the load, the dashed one a life anew with each hit (sliding=True)."
    )
    svg = charts.what_if("ttl", "Hits by ttl", [fixed, sliding], now, "ttl")
    return Chart("What if: ttl", _as_it_is(svg), told, [(3, "from the load"), (4, "sliding")])


def _shown(pairs: Sequence[Pair], most: int, report: Report) -> dict[str, Any]:
    """Return the first pairs for the page, with how many there are in all."""
    cuts = by_cut(report.replayed.recording.asked, report.replayed.outcomes) if report.is_judged else []
    return {
        "of": f"{len(pairs):,}",
        "number": len(pairs),
        "times": f"{sum(pair.times for pair in pairs):,}",
        "rows": [_row(pair, below(cuts, pair.similarity or 2.0)) for pair in pairs[:most]],
    }


def _row(pair: Pair, rate: Any) -> dict[str, Any]:
    asked, other = pair.asked, pair.other
    return {
        "similarity": "exact" if pair.similarity is None else f"{pair.similarity:.3f}",
        "times": f"{pair.times:,}",
        "asked": apart(asked.text, other.text, _TEXT_COLUMNS) or [("(not a text: matched whole)", False)],
        "other": apart(other.text, asked.text, _TEXT_COLUMNS) or [("(not a text: matched whole)", False)],
        "ids": [clip(plain(one.answer_id), _ID_COLUMNS) if one.answer_id is not None else "" for one in (asked, other)],
        "answers": [clip(plain(one.answer or ""), _TEXT_COLUMNS) for one in (asked, other)],
        "apart": clip(plain(pair.apart), _TEXT_COLUMNS),
        "waiting": duration(pair.seconds) if pair.seconds else "",
        "is_judged": pair.is_wrong is not None,
        "rate": f"{percent(rate.share)} of {rate.of:,} wrong ({interval(rate)})" if rate.share is not None else "",
    }
