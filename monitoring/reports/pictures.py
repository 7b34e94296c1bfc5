"""Small pictures as inline SVG: a number against its threshold, two distributions, a trend over the runs.

They take their colours from the page's style, so that they are readable in light and dark; each says in words, in its
<title>, what it shows. Numbers that are not finite are left out.
"""

import math
from collections.abc import Callable, Sequence
from html import escape

Numbers = Sequence[float | None]

BAR_WIDTH, BAR_HEIGHT = 150, 14
BAR_THRESHOLDS = 3.0  # the bar ends at so many times the threshold; beyond, it has an arrow
SHARES_WIDTH, SHARES_HEIGHT = 160, 44
TREND_WIDTH, TREND_HEIGHT = 320, 84
MOST_POINTS = 30  # more runs have a line without dots


def threshold_bar(value: float, threshold: float, level: str) -> str:
    """A bar as long as the value, with a mark where the threshold is, at a third of the width."""
    times = value / threshold if math.isfinite(value) else BAR_THRESHOLDS
    width = BAR_WIDTH * min(times, BAR_THRESHOLDS) / BAR_THRESHOLDS
    mark = BAR_WIDTH / BAR_THRESHOLDS
    tip = f"{times:.2g} times the threshold"
    arrow = ""
    if times > BAR_THRESHOLDS:
        arrow = f'<path class="beyond" d="M{BAR_WIDTH - 9} 2l6 5-6 5" fill="none"/>'
    return (
        f'<svg class="bar {_class(level)}" viewBox="0 0 {BAR_WIDTH} {BAR_HEIGHT}" width="{BAR_WIDTH}" '
        f'height="{BAR_HEIGHT}" role="img"><title>{tip}</title><rect class="track" y="3" width="{BAR_WIDTH}" '
        f'height="8"/><rect class="fill" y="3" width="{width:.1f}" height="8"/>{arrow}'
        f'<path class="mark" d="M{mark:.1f} 0v{BAR_HEIGHT}"/></svg>'
    )


def shares_picture(reference: Sequence[float], current: Sequence[float]) -> str:
    """The shares of the bins side by side: outlined the reference, filled the current; missing apart at the end."""
    before, now = _shares(reference), _shares(current)
    n_bins = min(len(before), len(now))
    if not n_bins:
        return ""
    gap = 8 if n_bins > 1 else 0
    width = (SHARES_WIDTH - gap) / n_bins
    highest = max([*before, *now, 0.01])
    tall = SHARES_HEIGHT - 4
    bars = []
    for place in range(n_bins):
        left = place * width + (gap if place == n_bins - 1 else 0)
        name = "missing" if place == n_bins - 1 else f"bin {place + 1} of {n_bins - 1}"
        heights = (tall * before[place] / highest, tall * now[place] / highest)
        bars.append(
            f"<g><title>{name}: {100 * now[place]:.1f} % now, {100 * before[place]:.1f} % in the reference</title>"
            f'<rect class="now" x="{left + 0.12 * width:.1f}" y="{SHARES_HEIGHT - 2 - heights[1]:.1f}" '
            f'width="{0.76 * width:.1f}" height="{heights[1]:.1f}"/>'
            f'<path class="before" d="M{left + 0.02 * width:.1f} {SHARES_HEIGHT - 2 - heights[0]:.1f}'
            f'h{0.96 * width:.1f}" fill="none"/></g>'
        )
    base = f'<path class="base" d="M0 {SHARES_HEIGHT - 1.5}h{SHARES_WIDTH - gap - width:.1f}m{gap} 0h{width:.1f}"/>'
    return (
        f'<svg class="shares" viewBox="0 0 {SHARES_WIDTH} {SHARES_HEIGHT}" width="{SHARES_WIDTH}" '
        f'height="{SHARES_HEIGHT}" role="img"><title>shares of the rows a bin: filled now, lines the reference'
        f"</title>{base}{''.join(bars)}</svg>"
    )


def trend_picture(
    values: Numbers,
    *,
    title: str,
    threshold: float | None = None,
    low: Numbers | None = None,
    high: Numbers | None = None,
    beside: Numbers | None = None,
    from_zero: bool = True,
) -> str:
    """A line over the runs, the oldest left.

    Args:
        threshold: a dashed line.
        low, high: a band around the line, of the same length.
        beside: a dotted line, of the same length.
        from_zero: whether the axis begins at 0; else at the least number.
    """
    lines = [values, *(other for other in (low, high, beside) if other is not None)]
    seen = [v for line in lines for v in _finite(line)] + ([threshold] if threshold is not None else [])
    x, y = _axes(len(values), seen, from_zero=from_zero)
    parts = [f'<path class="base" d="M0 {TREND_HEIGHT - 4.5}h{TREND_WIDTH}"/>']
    for piece in _pieces(low or []):
        upper = [(place, number) for place, number in enumerate(high or []) if piece[0][0] <= place <= piece[-1][0]]
        around = [*((place, number) for place, number in upper if number is not None), *reversed(piece)]
        parts.append(f'<polygon class="band" points="{_points(around, x, y)}"/>')
    if threshold is not None:
        parts.append(f'<path class="threshold" d="M0 {y(threshold):.1f}h{TREND_WIDTH}"/>')
    for name, line in (("beside", beside), ("line", values)):
        for piece in _pieces(line or []):
            parts.append(f'<polyline class="{name}" points="{_points(piece, x, y)}"/>')
            dotted = len(piece) == 1 or (name == "line" and len(values) <= MOST_POINTS)
            dots = piece if dotted else []
            parts += [f'<path class="{name} dot" d="M{x(place):.1f} {y(value):.1f}h0"/>' for place, value in dots]
    return (
        f'<svg class="trend" viewBox="0 0 {TREND_WIDTH} {TREND_HEIGHT}" width="{TREND_WIDTH}" '
        f'height="{TREND_HEIGHT}" preserveAspectRatio="none" role="img"><title>{escape(title)}</title>'
        f"{''.join(parts)}</svg>"
    )


def _axes(n_runs: int, seen: Sequence[float], *, from_zero: bool) -> tuple[Callable[[float], float], ...]:
    """Where a run and a number lie in the picture."""
    bottom, top = (0.0 if from_zero else min(seen, default=0.0)), max(seen, default=1.0)
    if top - bottom < 1e-12:  # all the same: in the middle, or at the bottom where that is 0
        top += max(abs(top), 1e-3) * 0.05
        bottom -= 0.0 if from_zero else top - bottom
    width, height = TREND_WIDTH - 8, TREND_HEIGHT - 10

    def x(place: float) -> float:
        return 4 + width * place / (n_runs - 1) if n_runs > 1 else TREND_WIDTH / 2

    def y(value: float) -> float:
        return TREND_HEIGHT - 5 - height * (value - bottom) / (top - bottom)

    return x, y


def _points(piece: Sequence[tuple[int, float]], x: Callable[[float], float], y: Callable[[float], float]) -> str:
    return " ".join(f"{x(place):.1f},{y(value):.1f}" for place, value in piece)


def _pieces(line: Numbers) -> list[list[tuple[int, float]]]:
    """The line, cut where a run has no number."""
    pieces: list[list[tuple[int, float]]] = [[]]
    for place, value in enumerate(line):
        if value is not None and math.isfinite(value):
            pieces[-1].append((place, value))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _finite(line: Numbers) -> list[float]:
    return [value for value in line if value is not None and math.isfinite(value)]


def _shares(counts: Sequence[float]) -> list[float]:
    total = sum(counts)
    return [count / total if total > 0 else 0.0 for count in counts]


def _class(level: str) -> str:
    return {"alarm": "alarm", "warning": "warning", "quiet": "quiet"}.get(level, "unknown")
