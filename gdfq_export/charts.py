"""Line charts as inline SVG: no script, no external resource, readable in any browser and in print."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 330
LEFT, RIGHT, TOP, BOTTOM = 78, 24, 16, 50
COLOURS = ("var(--first)", "var(--second)", "var(--third)", "var(--fourth)")
TICKS = 6


@dataclass(frozen=True)
class Line:
    """Points in order, joined."""

    label: str
    points: Sequence[tuple[float, float]]
    faint: bool = False  # the raw values behind the next line, in its colour


@dataclass(frozen=True)
class Mark:
    """One point with a name beside it."""

    label: str
    x: float
    y: float
    strong: bool = False


@dataclass(frozen=True)
class Axis:
    """Values onto a length, linear or logarithmic."""

    low: float
    high: float
    start: float  # pixel of the low end
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        """The pixel of a value."""
        low, high = self._inner(self.low), self._inner(self.high)
        share = (self._inner(value) - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def _inner(self, value: float) -> float:
        return math.log10(max(value, 1e-12)) if self.log else value

    def ticks(self) -> list[float]:
        """Round values within the axis: powers of ten on a logarithmic one."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            stride = max(1, -(-(last - first + 1) // TICKS))
            return [10.0**power for power in range(first, last + 1, stride)]
        span = self.high - self.low
        rough = span / TICKS if span > 0 else 1.0
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        count = math.floor(self.high / step + 1e-9) - first
        return [(first + index) * step for index in range(count + 1)]


def short(value: float) -> str:
    """A number as short as it is clear: 12,300 or 0.0021 or 3.1e-7."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def chart(
    lines: Sequence[Line],
    marks: Sequence[Mark] = (),
    *,
    x_label: str,
    y_label: str,
    log_y: bool = False,
    limit: tuple[str, float] | None = None,
) -> str:
    """One chart with its axes and a legend where there are several lines; `limit` is a named vertical line."""
    xs = [x for line in lines for x, _ in line.points] + [mark.x for mark in marks]
    ys = [y for line in lines for _, y in line.points] + [mark.y for mark in marks]
    if log_y:
        ys = [y for y in ys if y > 0] or [1.0]
    x_axis = Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    y_axis = Axis(*_padded(min(ys), max(ys), log_y), HEIGHT - BOTTOM, TOP, log_y)
    parts = [*_grid(x_axis, y_axis), *_labels(x_label, y_label)]
    if limit is not None and x_axis.low <= limit[1] <= x_axis.high:
        x = x_axis.place(limit[1])
        anchor, dx = ("end", -6) if x > WIDTH / 2 else ("start", 6)
        parts.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(
            f'<text x="{x + dx:.1f}" y="{HEIGHT - BOTTOM - 8}" text-anchor="{anchor}">{escape(limit[0])}</text>'
        )
    strong = [line for line in lines if not line.faint]
    for line, colour in zip(lines, _colours(lines), strict=True):
        path = " ".join(
            f"{x_axis.place(x):.1f},{y_axis.place(max(y, y_axis.low) if log_y else y):.1f}" for x, y in line.points
        )
        parts.append(f'<polyline class="{"faint " * line.faint}line" stroke="{colour}" points="{path}"/>')
    parts += [part for mark in marks for part in _mark(mark, x_axis, y_axis)]
    legend = "".join(
        f'<span><i style="background:{colour}"></i>{escape(line.label)}</span>'
        for line, colour in zip(lines, _colours(lines), strict=True)
        if line.label
    )
    drawing = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_label)}">{"".join(parts)}</svg>'
    return f'<figure class="chart">{drawing}<figcaption>{legend if len(strong) > 1 else ""}</figcaption></figure>'


def _colours(lines: Sequence[Line]) -> list[str]:
    """One colour for each line; a faint one takes that of the line it belongs to."""
    found, used = [], 0
    for line in lines:
        found.append(COLOURS[used % len(COLOURS)])
        used += not line.faint
    return found


def _padded(low: float, high: float, log: bool) -> tuple[float, float]:
    """Room above and below, so that no line lies on the frame."""
    if log:
        return low / 1.5, high * 1.5
    room = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return (0.0 if 0 <= low < 0.3 * high else low - room), high + room


def _grid(x_axis: Axis, y_axis: Axis) -> list[str]:
    parts = []
    for value in y_axis.ticks():
        y = y_axis.place(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{short(value)}</text>')
    for value in x_axis.ticks():
        x = x_axis.place(value)
        parts.append(
            f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM + 5}"/>'
        )
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{short(value)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>')
    return parts


def _labels(x_label: str, y_label: str) -> list[str]:
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    return [
        f'<text class="label" x="{middle_x:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text class="label" transform="translate(16 {middle_y:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>",
    ]


def _mark(mark: Mark, x_axis: Axis, y_axis: Axis) -> list[str]:
    x, y = x_axis.place(mark.x), y_axis.place(max(mark.y, y_axis.low) if y_axis.log else mark.y)
    anchor, dx = ("end", -9) if x > WIDTH - 180 else ("start", 9)
    kind = "strong mark" if mark.strong else "mark"
    return [
        f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{6 if mark.strong else 4}"/>',
        f'<text class="{kind}" x="{x + dx:.1f}" y="{y - 7:.1f}" text-anchor="{anchor}">{escape(mark.label)}</text>',
    ]


def smoothed(values: Sequence[float]) -> list[tuple[float, float]]:
    """A running mean over about a fortieth of the steps, by step."""
    window = max(1, len(values) // 40)
    points = []
    for index in range(len(values)):
        part = values[max(0, index - window + 1) : index + 1]
        points.append((float(index + 1), sum(part) / len(part)))
    return points
