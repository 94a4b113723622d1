"""The loss curve as an SVG file that any browser shows. Knows only numbers."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 720, 400, 64, 44, 20, 48
MAX_POINTS = 1000
Point = tuple[float, float]


def loss_svg(train: Sequence[Point], validation: Sequence[Point], *, title: str) -> str:
    """Loss in nats over steps; (step, loss) points, ascending. Long runs are averaged into at most 1,000 points."""
    train = thin(train)
    points = [*train, *validation]
    if not points:
        return ""
    low, high = min(y for _, y in points), max(y for _, y in points)
    last = max(x for x, _ in points) or 1
    span = (high - low) or 1.0

    def place(point: Point) -> str:
        x = LEFT + (WIDTH - LEFT - RIGHT) * point[0] / last
        y = TOP + (HEIGHT - TOP - BOTTOM) * (high - point[1]) / span
        return f"{x:.1f},{y:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="24" font-size="15">{escape(title)}</text>',
    ]
    for i in range(5):
        value = low + span * i / 4
        x, y = place((0, value)).split(",")
        parts.append(f'<line x1="{x}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{float(y) + 4:.1f}" text-anchor="end" fill="#555">{value:.2f}</text>')
        x = place((last * i / 4, low)).split(",")[0]
        parts.append(f'<text x="{x}" y="{HEIGHT - 28}" text-anchor="middle" fill="#555">{last * i / 4:.0f}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle" fill="#555">step</text>')
    parts.append(_line([place(p) for p in train], "#1f77b4"))
    parts.append(_line([place(p) for p in validation], "#d62728"))
    parts += [
        f'<circle cx="{p.split(",")[0]}" cy="{p.split(",")[1]}" r="3.5" fill="#d62728"/>'
        for p in map(place, validation)
    ]
    parts.append(f'<text x="{WIDTH - RIGHT}" y="24" text-anchor="end"><tspan fill="#1f77b4">training</tspan> ')
    parts.append('<tspan fill="#d62728">validation</tspan></text></svg>\n')
    return "\n".join(parts)


def thin(points: Sequence[Point]) -> list[Point]:
    """Means of equal runs of points, so that a long run draws fast and its noise does not hide its course."""
    size = -(-len(points) // MAX_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size or 1)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _line(places: list[str], colour: str) -> str:
    return f'<polyline points="{" ".join(places)}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
