"""The front of candidates as a drawing in the page: points that can be clicked, or reached with the keyboard."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Sequence

from ude.reporting.contents import FrontPoint
from ude.reporting.safe_mathml import harmless

Place = Callable[[float, float], tuple[float, float]]
"""(complexity, logarithm of the misfit) -> pixels."""

_WIDTH, _HEIGHT = 720, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 16, 16, 46

# Without any library: a page that stands alone shall not carry three megabytes for one drawing.
SCRIPT = """
(() => {
  const box = document.getElementById('front');
  if (!box) return;
  const data = JSON.parse(document.getElementById('front-data').textContent);
  const shown = document.getElementById('front-detail');
  const points = [...box.querySelectorAll('[data-point]')];
  const rows = [...document.querySelectorAll('tr[data-point]')];
  const show = index => {
    const own = data[index];
    for (const node of [...points, ...rows])
      node.classList.toggle('picked', Number(node.dataset.point) === index);
    const numbers = Object.entries(own.details).map(([k, v]) => `<dt>${k}</dt><dd>${v}</dd>`).join('');
    shown.innerHTML = `<div class="formulas">${own.mathml}</div><dl>${numbers}</dl>`;
  };
  for (const node of [...points, ...rows]) {
    const index = Number(node.dataset.point);
    node.addEventListener('click', () => show(index));
    node.addEventListener('keydown', event => {
      if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); show(index); }
    });
  }
  show(data.findIndex(own => own.chosen));
})();
"""


def drawing(points: Sequence[FrontPoint]) -> str:
    """The front as HTML: an SVG, what is known of the chosen point, and the data for the script."""
    finite = [point for point in points if math.isfinite(point.misfit) and point.misfit > 0]
    if not finite:
        return ""
    xs = [point.complexity for point in finite]
    logs = [math.log10(point.misfit) for point in finite]
    x0, x1 = min(xs) - 1, max(xs) + 1
    room = 0.08 * max(max(logs) - min(logs), 0.5)
    y0, y1 = min(logs) - room, max(logs) + room

    def place(complexity: float, log: float) -> tuple[float, float]:
        x = _LEFT + (complexity - x0) / (x1 - x0) * (_WIDTH - _LEFT - _RIGHT)
        return x, _TOP + (y1 - log) / (y1 - y0) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_axes(place, (x0, x1), (y0, y1)), _staircase(place, xs, logs)]
    for index, point in enumerate(points):
        if point not in finite:
            continue
        x, y = place(point.complexity, math.log10(point.misfit))
        label = html.escape(f"{point.text}; complexity {point.complexity:g}, misfit {point.misfit:.4g}", quote=True)
        kind = "chosen" if point.chosen else "candidate"
        mark = _star(x, y) if point.chosen else f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6"/>'
        parts.append(
            f'<g class="{kind}" data-point="{index}" tabindex="0" role="button" aria-label="{label}">'
            f"<title>{label}</title>{mark}</g>"
        )
    described = [
        {
            "mathml": harmless(point.mathml),
            "chosen": point.chosen,
            "details": {html.escape(key): f"{value:.4g}" for key, value in point.details.items()},
        }
        for point in points
    ]
    data = json.dumps(described).replace("<", "\\u003c")  # no text in it can end the element
    return (
        f'<div id="front"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="group" aria-label="Candidates by complexity and '
        f'misfit">{"".join(parts)}</svg><div id="front-detail" aria-live="polite"></div></div>'
        f'<script type="application/json" id="front-data">{data}</script>'
    )


def _axes(at: Place, x: tuple[float, float], y: tuple[float, float]) -> str:
    parts: list[str] = []
    step: int = max(1, round((x[1] - x[0]) / 8))
    for tick in range(math.ceil(x[0]), math.floor(x[1]) + 1, step):
        px, _ = at(tick, y[0])
        parts.append(f'<line class="grid" x1="{px:.1f}" x2="{px:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text x="{px:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{tick}</text>')
    for value in _log_ticks(*y):
        _, py = at(x[0], math.log10(value))
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{py:.1f}" y2="{py:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{py + 4:.1f}" text-anchor="end">{value:g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">complexity of the formulas</text>')
    across = (_TOP + _HEIGHT - _BOTTOM) / 2
    turned = f'transform="rotate(-90 14 {across})"'
    parts.append(f'<text x="14" y="{across}" text-anchor="middle" {turned}>misfit to the data (scaled)</text>')
    return "".join(parts)


def _log_ticks(low: float, high: float) -> list[float]:
    factors: tuple[float, ...] = (1,) if high - low > 2.5 else (1, 2, 5)
    ticks = [f * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for f in factors]
    inside = [tick for tick in ticks if low <= math.log10(tick) <= high]
    return inside[:: max(1, math.ceil(len(inside) / 8))]


def _staircase(at: Place, xs: Sequence[float], logs: Sequence[float]) -> str:
    best = math.inf
    path: list[str] = []
    for x, log in sorted(zip(xs, logs, strict=True)):
        if log < best:
            px, py = at(x, log)
            path.append(f"M{px:.1f},{py:.1f}" if not path else f"H{px:.1f}V{py:.1f}")
            best = log
    return f'<path class="stairs" d="{"".join(path)}"/>'


def _star(x: float, y: float) -> str:
    radii = (11.0, 4.6)
    corners = [
        (x + radii[i % 2] * math.sin(i * math.pi / 5), y - radii[i % 2] * math.cos(i * math.pi / 5)) for i in range(10)
    ]
    return f'<polygon points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in corners)}"/>'
