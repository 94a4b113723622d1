"""`launch report`: a run on one page of HTML, whole in itself: no network, no scripts, light and dark.

Knows how a run is told to people; what became of it is launcher/runs/history.py's, lines and bars are
launcher/report/svg.py's.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from launchyard.launcher.format import count, duration, first_line, size
from launchyard.launcher.report.svg import Bar, Lane, Line, Mark, curve, stack, timeline
from launchyard.launcher.runs.history import AttemptStory, Story
from launchyard.launcher.submit.code import CodeSnapshot
from launchyard.run.goodput import CAUSES
from launchyard.storage.redact import redact

STYLE = Path(__file__).with_name("page.css")
MAX_LANES = 40  # a run of more attempts shows its last ones
SMOOTH = 40  # a smooth curve is a mean over a fortieth of it
_GOOD, _BAD = ("completed", "running", "saving"), ("failed", "lost")


def report_page(story: Story, *, why: str = "") -> str:
    """The page. `why`: a paragraph on how the run ended or where it is."""
    body = "\n".join(
        part
        for part in (
            _head(story, why),
            _figures(story),
            _section("Loss", _loss(story)),
            _section("Where the time went", _time(story)),
            _section("Attempts", _attempts(story)),
            _section("Checkpoints", _checkpoints(story)),
            _section("Configuration", _configuration(story)),
            _foot(story),
        )
        if part
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(story.state.run_id)}</title>\n"
        f"<style>\n{STYLE.read_text()}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _section(title: str, inner: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{inner}\n</section>" if inner else ""


def _head(story: Story, why: str) -> str:
    state = story.state
    colour = "ok" if state.state in _GOOD else "bad" if state.state in _BAD else "wait"
    plan = story.plan
    words = [
        f"{count(plan['n_params'])} parameters" if plan.get("n_params") else "",
        f"{count(plan['total_tokens'])} tokens planned" if plan.get("total_tokens") else "",
        _workers(plan),
        str(plan.get("precision") or ""),
        f"on {plan['cluster']}" if plan.get("cluster") else "",
    ]
    said = " · ".join(escape(word) for word in words if word)
    lead = f"<p>{escape(redact(why))}</p>" if why else ""
    return (
        f'<header><h1>{escape(state.run_id)}</h1><span class="state {colour}">{escape(state.state)}</span></header>\n'
        f'<p class="quiet">{said}</p>{lead}'
    )


def _workers(plan: dict[str, Any]) -> str:
    nodes, each = plan.get("nnodes"), plan.get("nproc_per_node")
    if not nodes or not each:
        return ""
    kind = "GPU" if plan.get("device") == "cuda" else "CPU worker"
    every = f"{each} {kind}{'s' if each > 1 else ''}"
    return every if nodes == 1 else f"{nodes} nodes × {every}"


# -- figures ---------------------------------------------------------------------------------------------------------
def _figures(story: Story) -> str:
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(more) or '&nbsp;'}</small></dd></div>"
        for name, value, more in _figure_rows(story)
    )
    return f'<dl class="figures">{cells}</dl>'


def _figure_rows(story: Story) -> Iterator[tuple[str, str, str]]:
    state, rows, goodput = story.state, story.rows, story.goodput
    of = f"of {state.max_steps:,}" if state.max_steps else ""
    yield "Steps", f"{state.step:,}" if state.step is not None else "0", of
    if rows:
        yield "Loss", f"{rows[-1]['loss']:.3f}", f"from {rows[0]['loss']:.2f}"
    if story.validation:
        best = min(story.validation, key=lambda row: float(row["loss"]))
        yield "Validation loss", f"{story.validation[-1]['loss']:.3f}", f"best {best['loss']:.3f} at {best['step']:,}"
    if rows:
        yield "Tokens", count(float(rows[-1]["tokens_seen"])), "trained on"
        speeds = [float(row["tokens_per_second"]) for row in rows]
        yield "Tokens/s", count(statistics.median(speeds)), "median step"
    if goodput is not None:
        yield "Wall time", duration(goodput.wall), "since the submit"
        if goodput.ratio is not None:
            yield "Goodput", f"{goodput.ratio:.1%}", f"{duration(goodput.seconds['productive'])} productive"
    many = len(story.attempts)
    if many:
        yield "Attempts", str(many), _plural(story.preemptions, "preemption")


def _plural(number: int, word: str) -> str:
    return f"{number or 'no'} {word}{'' if number == 1 else 's'}"


# -- curves ----------------------------------------------------------------------------------------------------------
def _loss(story: Story) -> str:
    rows = story.rows
    if len(rows) < 2:
        return '<p class="quiet">Fewer than two steps are done.</p>'
    raw = [(float(row["step"]), float(row["loss"])) for row in rows]
    lines = [Line(raw, "c0", faint=True), Line(_smooth(raw), "c0", "training")]
    held = [(float(row["step"]), float(row["loss"])) for row in story.validation]
    if held:
        lines.append(Line(held, "c1", "validation loss", dots=True))
    marks = [
        Mark(float(one.started_from), f"attempt {one.attempt} went on from step {one.started_from}", "muted")
        for one in story.attempts
        if one.started_from
    ]
    legend = [("c0", "training, smoothed over its steps"), *([("c1", "validation")] if held else [])]
    legend += [("muted", "an attempt went on from here")] if marks else []
    drawn = curve(lines, label="Loss over steps", height=320.0, marks=marks, x_form=count)
    said = '<p class="quiet">Nats a token, over optimizer steps.</p>'
    return f'{said}{_legend(legend)}<div class="scroll">{drawn}</div>{_small_curves(rows, marks)}'


def _small_curves(rows: Sequence[dict[str, Any]], marks: Sequence[Mark]) -> str:
    drawn = []
    for key, title, colour in (
        ("tokens_per_second", "Tokens a second", "c2"),
        ("grad_norm", "Gradient norm, before clipping", "c3"),
        ("lr", "Learning rate", "c0"),
    ):
        points = [(float(row["step"]), float(row[key])) for row in rows if key in row]
        form = count if key == "tokens_per_second" else (lambda value: f"{value:.3g}")
        lines = [Line(points, colour, title)]
        if key != "lr":
            lines = [Line(points, colour, faint=True), Line(_smooth(points), colour, title)]
        svg = curve(lines, label=title, width=330.0, height=150.0, marks=marks, form=form, x_form=count, from_zero=True)
        if svg:
            drawn.append(f"<div><h3>{title}</h3>{svg}</div>")
    return f'<div class="small">{"".join(drawn)}</div>'


def _smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The mean around each point, as far to either side, so that it lags behind nothing; only what is finite."""
    points = [(x, y) for x, y in points if math.isfinite(y)]
    sums = list(itertools.accumulate((y for _, y in points), initial=0.0))
    reach, last = len(points) // (2 * SMOOTH), len(points) - 1
    found = []
    for number, (x, _) in enumerate(points):
        side = min(reach, number, last - number)
        found.append((x, (sums[number + side + 1] - sums[number - side]) / (2 * side + 1)))
    return found


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    items = "".join(f'<span><i style="--c:var(--{colour})"></i>{escape(said)}</span>' for colour, said in entries)
    return f'<div class="legend">{items}</div>'


# -- time ------------------------------------------------------------------------------------------------------------
def _time(story: Story) -> str:
    goodput = story.goodput
    if goodput is None or goodput.wall <= 0:
        return ""
    lost = sorted((item for item in goodput.seconds.items() if item[0] != "productive"), key=lambda item: -item[1])
    parts = [("productive", goodput.seconds["productive"]), *lost]
    bar = stack([(name.replace("_", " "), seconds, name) for name, seconds in parts], label="Wall time by cause")
    lanes = [_lane(one, goodput.since) for one in story.attempts[-MAX_LANES:]]
    more = len(story.attempts) - len(lanes)
    note = f'<p class="quiet">The first {more} attempts are not drawn.</p>' if more else ""
    shown = [(cause, cause.replace("_", " ")) for cause in CAUSES if any(cause in _causes(one) for one in lanes)]
    drawn = timeline(lanes, label="Attempts over time", form=duration)
    return (
        f'<p class="quiet">{duration(goodput.wall)} since the first submit, every second of it given to one cause. '
        "Point at a piece to read what it is; a triangle is a committed checkpoint.</p>"
        f"{bar}{_causes_table(parts)}<h3>Attempts on the clock</h3>{_legend(shown)}"
        f'<div class="scroll">{drawn}</div>{note}'
    )


def _causes(lane: Lane) -> set[str]:
    return {bar.colour for bar in lane.bars}


def _lane(one: AttemptStory, since: float) -> Lane:
    bars = [
        Bar(piece.began - since, piece.ended - since, piece.cause, f"{piece.cause.replace('_', ' ')}: {piece.said}")
        for piece in one.pieces
        if piece.ended > piece.began
    ]
    marks = [
        Mark(float(event["time"]) - since, f"step {event.get('step')} saved ({event.get('kind')})", "ink")
        for event in one.events
        if event.get("event") == "saved"
    ]
    return Lane(f"attempt {one.attempt}", bars, marks)


def _causes_table(parts: Sequence[tuple[str, float]]) -> str:
    total = sum(seconds for _, seconds in parts) or 1.0
    rows = "".join(
        f'<tr><td><i style="--c:var(--{name})"></i>{name.replace("_", " ")}</td><td class="n">{_exact(seconds)}</td>'
        f'<td class="n">{seconds / total:.1%}</td><td>{escape(CAUSES[name])}</td></tr>'
        for name, seconds in parts
        if seconds >= 0.005
    )
    head = '<tr><th>cause</th><th class="n">time</th><th class="n">share</th><th>what it is</th></tr>'
    return f'<div class="scroll" style="margin-top:26px"><table>{head}{rows}</table></div>'


def _exact(seconds: float) -> str:
    return f"{seconds:.1f}s" if seconds < 60 else duration(seconds)


# -- tables ----------------------------------------------------------------------------------------------------------
def _attempts(story: Story) -> str:
    head = ("attempt", "began", "lasted", "workers", "from step", "to step", "ended", "why")
    rows = []
    for one in story.attempts:
        live = one.outcome is None and story.state.alive and one.attempt == story.state.attempt
        ended = "under way" if live else one.word
        message = first_line(one.outcome.message, 200) if one.outcome is not None else ""
        last = one.rows[-1]["step"] if one.rows else None
        cells = (
            str(one.attempt), _clock(one.job.created), duration(max(0.0, one.ended - one.job.created)),
            str(one.job.nnodes * one.job.nproc_per_node),
            "–" if one.started_from is None else f"{one.started_from:,}", "–" if last is None else f"{last:,}",
            ended, message + _overrides(one, story.attempts),
        )  # fmt: skip
        rows.append(cells)
    return _table(head, rows, numbers={2, 3, 4, 5})


def _overrides(one: AttemptStory, every: Sequence[AttemptStory]) -> str:
    """What was changed when it was submitted, where that differs from the attempt before."""
    before = every[one.attempt - 1].job.overrides if 0 < one.attempt <= len(every) else {}
    changed = {key: value for key, value in one.job.overrides.items() if before.get(key) != value}
    return f" Changed: {', '.join(f'{key}={value}' for key, value in changed.items())}." if changed else ""


def _checkpoints(story: Story) -> str:
    if not story.saved:
        return '<p class="quiet">None was committed yet.</p>'
    rows = [
        (
            f"{one.step:,}", one.kind or "unreadable", "–" if one.bytes is None else size(one.bytes),
            "–" if one.world_size is None else str(one.world_size), "–" if one.attempt is None else str(one.attempt),
            "–" if one.created is None else _clock(one.created),
        )
        for one in story.saved
    ]  # fmt: skip
    gone = sum(event.get("event") == "saved" for one in story.attempts for event in one.events) - len(rows)
    note = f'<p class="quiet">{_plural(gone, "older one")} made room for them.</p>' if gone > 0 else ""
    return _table(("step", "kind", "size", "workers", "attempt", "committed"), rows, numbers={2, 3, 4}) + note


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: set[int]) -> str:
    """Cells are text, and are escaped and freed of passwords here."""

    def line(cells: Sequence[str], tag: str) -> str:
        inner = (f"<{tag}{' class=n' * (n in numbers)}>{escape(redact(cell))}</{tag}>" for n, cell in enumerate(cells))
        return f"<tr>{''.join(inner)}</tr>"

    inner = "".join(itertools.chain([line(head, "th")], (line(row, "td") for row in rows)))
    return f'<div class="scroll"><table>{inner}</table></div>'


def _configuration(story: Story) -> str:
    code = _code(story.code)
    plan = story.plan
    facts = [
        ("directory", redact(story.run.url)),
        ("code", code),
        ("batch", _batch(plan)),
        ("model", ", ".join(f"{key} {value}" for key, value in (plan.get("model") or {}).items())),
    ]
    listed = _table(("", ""), [fact for fact in facts if fact[1]], numbers=set())
    recipe = f"<pre>{escape(redact(story.recipe.rstrip()))}</pre>" if story.recipe else ""
    return (
        f"{listed}<details open><summary>The recipe, as it was frozen at the first submit</summary>{recipe}</details>"
    )


def _code(raw: dict[str, Any]) -> str:
    try:
        snapshot = CodeSnapshot.model_validate(raw)
    except ValueError:
        return ""
    return f"{snapshot.summary()} · Python {snapshot.python} · torch {snapshot.packages.get('torch', 'unknown')}"


def _batch(plan: dict[str, Any]) -> str:
    batch = plan.get("batch")
    if not batch:
        return ""
    return f"{batch['global_batch_size']} sequences of {batch['seq_len']} tokens, {batch['tokens_per_step']:,} a step"


def _clock(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))


def _foot(story: Story) -> str:
    run_id = escape(story.state.run_id)
    return (
        f"<footer>Made {_clock(time.time())} by <code>launch report {run_id}</code>. The rows behind the curves: "
        f"<code>launch metrics {run_id} --jsonl</code>; the cause of an end: <code>launch why {run_id}</code>.</footer>"
    )
