"""The charts of a report's page, drawn by matplotlib as SVG that stands in the page itself.

Laws: every axis has its unit; colours are names of the page's own (`f3` fills, `s3` strokes with its third), so that
light, dark and print are the page's; no style, script or link is in a chart, so that the page may forbid them all.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree as ET

from semcache.errors import MissingExtraError
from semcache.replay.details import Bins, Cut, Stage
from semcache.replay.whatif import Curve
from semcache.replay.words import GLUE, duration, latency, size

# Colours that stand for the page's: ink, faint lines, then the series.
_INK, _FAINT = "#000001", "#000002"
SERIES = ("#000003", "#000004", "#000005", "#000006")
TIER_SERIES = {"memory": 3, "disk": 4, "semantic": 5, "flight": 6}
_MARKED = re.compile(r"#00000([1-6])")
_METADATA = ("Creator", "Date", "Format", "Type")
_MARKED_CUTS = (0.95, 0.9, 0.8, 0.7, 0.6)
# A bound so much larger than all that there is to keep is told of, but not drawn.
_FAR = 20.0
_MOST_CUTS = 160
_LEAST_US = 0.1
_BESIDE = 0.06
_TTLS = (1, 3, 10, 30, 60, 300, 900, 3600, 10_800, 43_200, 86_400, 259_200, 604_800, 2_592_000, 31_536_000)
_INCHES = 5.2, 3.3
# At the right half of the last tick's label still stands in the picture.
_MARGINS = {"left": 0.15, "right": 0.94, "bottom": 0.17, "top": 0.96}
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": _FAINT, "axes.labelcolor": _INK, "axes.spines.right": False, "axes.spines.top": False,
    "axes.grid": True, "grid.color": _FAINT, "grid.linewidth": 0.5, "axes.axisbelow": True, "font.size": 11,
    "svg.fonttype": "none", "svg.hashsalt": "semcache", "text.color": _INK, "text.parse_math": False,
    "xtick.color": _FAINT, "xtick.labelcolor": _INK, "xtick.minor.bottom": False, "ytick.color": _FAINT,
    "ytick.labelcolor": _INK, "ytick.minor.left": False, "lines.linewidth": 1.8, "path.simplify": True,
}  # fmt: skip
_KEPT = {
    "clip-path", "fill", "fill-opacity", "font-size", "opacity", "stroke", "stroke-dasharray", "stroke-linecap",
    "stroke-linejoin", "stroke-opacity", "stroke-width", "text-anchor",
}  # fmt: skip


def require() -> None:
    """Raise MissingExtraError where charts cannot be drawn."""
    try:
        import jinja2
        import matplotlib as mpl
    except ImportError as error:
        raise MissingExtraError("--report", "report") from error
    del jinja2, mpl


@contextmanager
def _axes(name: str, title: str, drawn: list[str]) -> Iterator[Any]:
    """Give the axes of a chart; the finished SVG is added to `drawn`."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=_INCHES)
        figure.subplots_adjust(**_MARGINS)
        yield figure.subplots()
        file = io.StringIO()
        figure.savefig(
            file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    drawn.append(inline(file.getvalue(), name, title))


def over_time(bins: Bins) -> str:
    """Draw the share of requests that each tier answered, span by span."""
    drawn: list[str] = []
    with _axes("time", "Share of requests answered, by tier, over time", drawn) as axes:
        edges = [place * (bins.seconds or 1.0) for place in range(len(bins.requests) + 1)]
        base = [0.0] * len(bins.requests)
        for tier, hits in bins.hits.items():
            top = [
                low + (100 * hit / of if of else 0.0) for low, hit, of in zip(base, hits, bins.requests, strict=True)
            ]
            axes.stairs(top, edges, baseline=base, fill=True, color=_series(TIER_SERIES[tier]), linewidth=0)
            base = top
        _in_percent(axes, "requests answered (%)", max([*base, 10.0]))
        axes.set_xlim(edges[0], edges[-1])
        _ticks(axes.xaxis, _time_places(edges[-1]), lambda seconds: duration(seconds) if seconds else "0")
        axes.set_xlabel("time since the recording began")
    return drawn[0]


def precision(cuts: Sequence[Cut], exact_hits: int, requests: int, chosen: float | None) -> str:
    """Draw how many near matches are right over how many requests are answered, cut by cut, with its interval."""
    drawn: list[str] = []
    with _axes("precision", "Right near matches over requests answered, for each cut", drawn) as axes:
        marked = list(_marked_cuts([cut for cut in cuts if cut.near.judged], chosen))
        judged = _some([cut for cut in cuts if cut.near.judged], [cut for cut, _, _ in marked])
        at = [100 * (exact_hits + cut.near.hits) / requests for cut in judged]
        rates = [cut.near.wrong_per_hit for cut in judged]
        right = [100 * (1 - (rate.share or 0.0)) for rate in rates]
        spans = [rate.interval or (0.0, 1.0) for rate in rates]
        low, high = ([100 * (1 - span[side]) for span in spans] for side in (1, 0))
        axes.fill_between(at, low, high, color=SERIES[2], alpha=0.2, linewidth=0)
        axes.plot(at, right, color=SERIES[2])
        for cut, similarity, is_chosen in marked:
            place = judged.index(cut)
            axes.plot(
                at[place], right[place], "o", color=_INK if is_chosen else SERIES[2], markersize=8 if is_chosen else 5
            )
            label = f"cut {similarity:g}" if is_chosen else f"{similarity:g}"
            offset, side = ((8, -4), "left") if is_chosen else ((0, 9), "center")
            axes.annotate(label, (at[place], right[place]), xytext=offset, textcoords="offset points", ha=side)
        _in_percent(axes, "right near matches (%)", 100.0)
        axes.set_xlabel("requests answered, exact and near (%)")
    return drawn[0]


def _some(cuts: list[Cut], kept: Sequence[Cut]) -> list[Cut]:
    """Return cuts enough to draw a line, with the last and those that are to be kept."""
    every = -(-len(cuts) // _MOST_CUTS) or 1
    named = {id(cut) for cut in (*kept, cuts[-1])}
    return [cut for place, cut in enumerate(cuts) if place % every == 0 or id(cut) in named]


def _marked_cuts(cuts: Sequence[Cut], chosen: float | None) -> Iterator[tuple[Cut, float, bool]]:
    """Yield the cuts to mark, as what, and whether it is the chosen one, which leaves out those beside it."""
    for similarity in _MARKED_CUTS:
        at = [cut for cut in cuts if cut.similarity >= similarity]
        if at and at[-1] is not cuts[-1] and (chosen is None or abs(similarity - chosen) > _BESIDE):
            yield at[-1], similarity, False
    at = [cut for cut in cuts if chosen is not None and cut.similarity >= chosen]
    if at:
        yield at[-1], chosen or 0.0, True


def what_if(name: str, title: str, curves: Sequence[Curve], now: float, axis: str) -> str:
    """Draw the hits of other bounds; the bound `now` is marked. `axis` is "memory" (bytes) or "ttl" (seconds)."""
    drawn: list[str] = []
    with _axes(name, title, drawn) as axes:
        axes.set_xscale("log")
        most = 100 * max(share for curve in curves for share in curve.shares())
        _in_percent(axes, "requests answered (%)", max(1.2 * most, 5.0))
        least, top = curves[0].at[0], 1.5 * curves[0].at[-1]
        if top < now < _FAR * top:
            top = 1.5 * now
        for number, (curve, dashes) in enumerate(zip(curves, ("solid", "dashed"), strict=False)):
            shares = [100 * share for share in curve.shares()]
            axes.plot([*curve.at, top], [*shares, shares[-1]], color=SERIES[number], linestyle=dashes)
        if least <= now <= top:
            axes.axvline(now, color=_INK, linestyle="dotted", linewidth=1.2)
            told = size(now) if axis == "memory" else duration(now).replace(GLUE, " ")
            is_left = now * now < least * top
            axes.annotate(
                f"now: {told}", (now, axes.get_ylim()[1]), xytext=(5 if is_left else -5, -12),
                textcoords="offset points", ha="left" if is_left else "right",
            )  # fmt: skip
        axes.set_xlim(least, top)
        if axis == "memory":
            _ticks(axes.xaxis, _log_places(least, top, [1000.0 * 2**power for power in range(34)]), size)
            axes.set_xlabel("memory (bytes, logarithmic)")
        else:
            _ticks(axes.xaxis, _log_places(least, top, _TTLS), duration)
            axes.set_xlabel("ttl (logarithmic)")
    return drawn[0]


def by_stage(stages: Sequence[Stage]) -> str:
    """Draw what each stage of a lookup takes: a dot at the median, a line to the 99th percentile."""
    drawn: list[str] = []
    with _axes("stages", "Latency of each stage of a lookup", drawn) as axes:
        for place, stage in enumerate(reversed(stages)):
            median, slowest = max(stage.p50, _LEAST_US), max(stage.p99, _LEAST_US)
            axes.plot([median, slowest], [place, place], color=SERIES[0], linewidth=3, solid_capstyle="butt")
            axes.plot([median], [place], "o", color=SERIES[0], markersize=8)
            axes.plot([slowest], [place], "|", color=SERIES[0], markersize=12, markeredgewidth=2)
        axes.set_xscale("log")
        axes.set_yticks(range(len(stages)), [stage.name for stage in reversed(stages)])
        axes.set_ylim(-0.6, len(stages) - 0.4)
        least = 0.7 * max(_LEAST_US, min(stage.p50 for stage in stages))
        top = 1.6 * max(10 * _LEAST_US, *(stage.p99 for stage in stages))
        axes.set_xlim(least, top)
        _ticks(axes.xaxis, _log_places(least, top, [10.0**power for power in range(-1, 9)]), latency)
        axes.set_xlabel("time of a lookup (median to 99th percentile, logarithmic)")
        axes.grid(visible=False, axis="y")
    return drawn[0]


def _series(number: int) -> str:
    return f"#00000{number}"


def _in_percent(axes: Any, label: str, top: float) -> None:
    axes.set_ylim(0, min(102.0, top * 1.02))
    axes.set_ylabel(label)


def _ticks(axis: Any, places: Iterable[float], told: Callable[[float], str]) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    at = list(places)
    axis.set_major_locator(FixedLocator(at))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FixedFormatter([told(place).replace(GLUE, " ") for place in at]))


def _log_places(least: float, most: float, steps: Iterable[float]) -> list[float]:
    """Return those of the steps that lie between, thinned out to six at most."""
    inside = [step for step in steps if least <= step <= most] or [least]
    return inside[:: -(-len(inside) // 6)]


def _time_places(most: float) -> list[float]:
    """Return five or so round times."""
    steps = [1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 4 * 3600, 12 * 3600, 86400, 7 * 86400]
    step = next((step for step in steps if most / step <= 6), most / 5)  # noqa: PLR2004 - ticks
    return [step * place for place in range(int(most / step) + 1)]


def inline(svg: str, name: str, title: str) -> str:
    """Return an SVG as it may stand in a page: without namespaces, styles and ids that are another chart's too."""
    root = ET.fromstring(svg[svg.index("<svg") :])  # noqa: S314 - matplotlib's own
    used = set(re.findall(r"(?:url\(|href=\")#([\w-]+)", svg))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = dict(_attributes(element.attrib, name, used))
        element.tail = None
        if element.tag != "text":
            element.text = None
    for size_of in ("width", "height", "version"):
        root.attrib.pop(size_of, None)
    root.attrib |= {"role": "img", "aria-label": title}
    return ET.tostring(root, encoding="unicode")


def _attributes(attributes: dict[str, str], name: str, used: set[str]) -> Iterator[tuple[str, str]]:
    told = dict(attributes)
    style = told.pop("style", "")
    for item in style.split(";"):
        key, _, value = (part.strip() for part in item.partition(":"))
        if key == "font":
            key, value = "font-size", re.search(r"[\d.]+px", value)[0]  # type: ignore[index]
        if key in _KEPT:
            told[key] = value
    classes = []
    for full_key, value in told.items():
        key = full_key.rpartition("}")[2]
        marked = _MARKED.fullmatch(value)
        if key == "id":
            if value in used:
                yield key, f"{name}-{value}"
        elif key in ("fill", "stroke") and marked:
            classes.append(f"{key[0]}{marked[1]}")
        elif key in ("href", "clip-path"):
            yield key, value.replace("#", f"#{name}-")
        else:
            yield key, value
    if classes:
        yield "class", " ".join(classes)
