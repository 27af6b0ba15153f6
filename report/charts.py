"""The report's charts, drawn by Matplotlib as inline SVG.

Colours are the page's own (light and dark), texts stay texts. Rows are told apart by a letter,
a colour and a shape; what a letter stands for and its figures are beside the chart, as text (but
those of single layers' sensitivity, which are too many).
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from cmt.report.figures import QUANTILES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SERIES = 6
"""Colours, with a shape each; the first is the baseline's. Further rows start over."""
_SHAPES = "XosD^v"
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)))
_WIDTH, _FONT = 4.8, 10
_LARGEST_AREA = 420.0
"""Square points of the largest file's mark."""
_LOGARITHMIC = 6
"""Latencies further apart than this factor are drawn on a logarithmic axis."""
_SHOWN_QUANTILE = 95

# Matplotlib knows no CSS variables, so these stand for them until the file is written.
_NAMES = ("text", "muted", "line", "bad", "card", *(f"series-{i}" for i in range(SERIES)))
_COLOURS = {name: f"#00ff{i:02x}" for i, name in enumerate(_NAMES)}


def missing() -> str | None:
    """What to install, or None where charts can be drawn; a device needs no drawings."""
    if find_spec("matplotlib") is None:
        return "Matplotlib is not installed: pip install 'cmt-export[charts]'"
    return None


@dataclass(frozen=True)
class Mark:
    """One row of a chart.

    Attributes:
        letter: its name within the charts.
        series: number of its colour and shape; 0 is the baseline's.
        dash: number of its line's pattern.
        p50: median latency, ms.
        quantiles: latencies in ms at `measure.statistics.QUANTILES`.
        top1: percent; with the interval (low, high) of its difference from the baseline.
        drop: points; with its interval.
        bytes: the file's size.
    """

    letter: str
    series: int
    dash: int = 0
    p50: float | None = None
    quantiles: Sequence[float] | None = None
    top1: float | None = None
    top1_interval: tuple[float, float] | None = None
    drop: float | None = None
    drop_interval: tuple[float, float] | None = None
    bytes: int | None = None


@dataclass
class Role:
    """A row of the chart of sensitivities: (stage, decibels) of each, stage 0 for stem and head.

    Attributes:
        layers: the same of single layers.
    """

    letter: str
    points: list[tuple[int, float]]
    layers: list[tuple[int, float]]


def pareto(marks: Sequence[Mark], floor: float | None, label: str) -> str:
    """Top-1 against latency; the line joins what no other mark beats in both.

    Args:
        marks: with `p50` and `top1`.
        floor: the lowest top-1 that is accepted, percent.
        label: the chart in words, for those who do not see it.
    """
    figure, axes = _figure(3.6)
    largest = max((mark.bytes or 0 for mark in marks), default=0)
    times = [mark.p50 for mark in marks if mark.p50 is not None]
    front: list[tuple[float, float]] = []
    for mark in sorted(marks, key=lambda mark: mark.p50 or 0):
        assert mark.p50 is not None
        assert mark.top1 is not None
        if not front or mark.top1 > front[-1][1]:
            front.append((mark.p50, mark.top1))
        colour = _COLOURS[f"series-{mark.series % SERIES}"]
        if mark.top1_interval:
            axes.vlines(mark.p50, *mark.top1_interval, color=colour, linewidth=1.3, zorder=2)
        area = _LARGEST_AREA * mark.bytes / largest if mark.bytes else 40
        side = _roomier_side(mark.p50, times)
        style: dict[str, Any] = {"marker": _SHAPES[mark.series % SERIES], "s": area, "zorder": 3}
        axes.scatter(mark.p50, mark.top1, color=colour, alpha=0.55, linewidths=0, **style)
        axes.annotate(
            mark.letter,
            (mark.p50, mark.top1),
            (side * (area**0.5 / 2 + 2), 3),
            textcoords="offset points",
            horizontalalignment="left" if side > 0 else "right",
            fontweight="bold",
            color=_COLOURS["text"],
            zorder=4,
        )
    axes.plot(*zip(*front, strict=True), color=_COLOURS["muted"], linewidth=1, zorder=1)
    if floor is not None and floor > axes.get_ylim()[0] - 2 * _span(axes.get_ylim()):
        axes.axhline(floor, color=_COLOURS["bad"], linestyle=(0, (4, 3)), linewidth=1.2)
    _latency_axis(axes, times)
    axes.set_ylabel("top-1, %")
    axes.margins(0.12, 0.14)
    return _svg(figure, "pareto", label)


def _roomier_side(time: float, times: Sequence[float]) -> int:
    """-1 where the next mark to the left is further away than that to the right, else 1."""
    left = max((other for other in times if other < time), default=0.0)
    right = min((other for other in times if other > time), default=math.inf)
    return -1 if time - left > right - time else 1


def drops(marks: Sequence[Mark], limit: float | None, label: str) -> str:
    """The drop of each mark, with its interval, below one another.

    Args:
        marks: with `drop` and `drop_interval`.
        limit: the largest accepted drop in points; not drawn where it is far off.
    """
    figure, axes = _figure(0.75 + 0.27 * len(marks))
    places = range(len(marks), 0, -1)
    for place, mark in zip(places, marks, strict=True):
        assert mark.drop is not None
        assert mark.drop_interval is not None
        colour = _COLOURS[f"series-{mark.series % SERIES}"]
        axes.hlines(place, *mark.drop_interval, color=colour, linewidth=2)
        axes.plot(mark.drop, place, _SHAPES[mark.series % SERIES], color=colour, markersize=7)
    axes.axvline(0, color=_COLOURS["text"], linewidth=1)
    if limit is not None and abs(limit) < 3 * _span(axes.get_xlim()):
        axes.axvline(limit, color=_COLOURS["bad"], linestyle=(0, (4, 3)), linewidth=1.2)
    axes.set_yticks(list(places), [mark.letter for mark in marks], fontweight="bold")
    axes.set_ylim(0.4, len(marks) + 0.6)
    axes.set_xlabel("top-1 drop, points (left is better)")
    return _svg(figure, "drops", label)


def distributions(marks: Sequence[Mark], label: str) -> str:
    """The share of runs that took no longer than a time, up to `_SHOWN_QUANTILE` percent.

    Args:
        marks: with `quantiles`.
    """
    figure, axes = _figure(3.0)
    last = QUANTILES.index(_SHOWN_QUANTILE) + 1
    shown = []
    for i, mark in enumerate(marks):
        assert mark.quantiles is not None
        times = list(mark.quantiles[:last])
        shown += times
        colour = _COLOURS[f"series-{mark.series % SERIES}"]
        dash = _DASHES[mark.dash % len(_DASHES)]
        axes.plot(times, QUANTILES[:last], color=colour, linestyle=dash, linewidth=1.8)
        at = 4 + 3 * i % (last - 5)  # neighbours' letters at different heights
        axes.annotate(
            mark.letter,
            (times[at], QUANTILES[at]),
            (3, -4),
            textcoords="offset points",
            fontweight="bold",
            color=_COLOURS["text"],
        )
    _latency_axis(axes, shown)
    axes.set_ylabel("runs done, %")
    axes.set_ylim(0, 100)
    return _svg(figure, "distributions", label)


def sensitivity(roles: Sequence[Role], name: str, label: str) -> str:
    """The error of each role's stages in decibels, roles below one another.

    Args:
        name: of the chart, one of its own within the page.
    """
    figure, axes = _figure(0.75 + 0.27 * len(roles))
    places = range(len(roles), 0, -1)
    for place, role in zip(places, roles, strict=True):
        for stage, decibels in role.layers:
            axes.plot(decibels, place, ".", color=_COLOURS[f"series-{stage % SERIES}"], alpha=0.6)
        for stage, decibels in role.points:
            series = stage % SERIES
            colour = _COLOURS[f"series-{series}"]
            axes.plot(decibels, place, _SHAPES[series], color=colour, markersize=7)
            if stage:
                axes.annotate(
                    str(stage),
                    (decibels, place),
                    (0, 5),
                    textcoords="offset points",
                    horizontalalignment="center",
                    fontsize=_FONT - 3,
                    color=_COLOURS["text"],
                )
    axes.set_yticks(list(places), [role.letter for role in roles], fontweight="bold")
    axes.set_ylim(0.4, len(roles) + 0.9)
    axes.set_xlabel("logits over their error, dB (right is better)")
    return _svg(figure, name, label)


def _span(limits: tuple[float, float]) -> float:
    return limits[1] - limits[0]


def _figure(height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure((_WIDTH, height), layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    axes.grid(color=_COLOURS["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(color=_COLOURS["line"], labelcolor=_COLOURS["text"], labelsize=_FONT)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_COLOURS["muted"])
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(_COLOURS["text"])
        axis.label.set_fontsize(_FONT)
    return figure, axes


def _latency_axis(axes: Axes, times: Sequence[float]) -> None:
    from matplotlib.ticker import FormatStrFormatter, MaxNLocator, NullFormatter

    scale = ""
    if max(times) > _LOGARITHMIC * min(times):
        from matplotlib.ticker import LogLocator

        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        scale = " (logarithmic)"
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.set_xlabel(f"latency, ms{scale}")


def _svg(figure: Figure, name: str, label: str) -> str:
    """The figure as an element for a page of HTML."""
    import matplotlib

    # Without a date and with fixed ids, the same figures make the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())
    for element in list(root.iter()):
        element.tag = element.tag.split("}")[1]
        for child in list(element):
            if child.tag.endswith(("}metadata", "}style")):
                element.remove(child)
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            # Of all charts of a page, each id is one of its own.
            value = re.sub(r"(url\(#|^#)(?!00ff)", rf"\g<1>{name}-", value)
            value = f"{name}-{value}" if key == "id" else value
            element.attrib[key.split("}")[-1]] = value
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-label": label}
    text = ElementTree.tostring(root, encoding="unicode")
    text = re.sub(r"font-family: [^;]*", "font-family: inherit", text)
    for variable, colour in _COLOURS.items():
        text = text.replace(colour, f"var(--{variable})")
    return text
