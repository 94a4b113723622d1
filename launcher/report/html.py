"""`launch report`: a run on one self-contained page of HTML: no network, no scripts, light and dark.

Makes the texts of the page; its layout is in page.html and page.css, the facts come from launcher/report/history.py,
lines and bars from run/svg.py.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from launchyard.launcher.format import clock, count, duration, first_line, size
from launchyard.launcher.report.gradients import page_gradients
from launchyard.launcher.report.history import AttemptStory, Story
from launchyard.launcher.report.phases import page_phases
from launchyard.launcher.report.profiles import page_profiles
from launchyard.launcher.report.steps import Steps
from launchyard.launcher.submit.code import CodeSnapshot
from launchyard.run.events import SAVED
from launchyard.run.goodput import CAUSES
from launchyard.run.records import FROM_MEMORY
from launchyard.run.rows import is_of_set, sets_of
from launchyard.run.svg import WIDTH, Bar, Lane, Line, Mark, curve, stack, timeline
from launchyard.storage.damage import JsonObject
from launchyard.storage.redact import redact

HERE = Path(__file__).parent
MAX_LANES = 40  # a run of more attempts shows its last ones
NARROW = (380.0, 230.0)  # a drawing for a phone
SMOOTH = 40  # a smooth curve is a mean over a fortieth of it
_HELD_OUT_COLOURS = ("c1", "c2", "c3")
_GOOD = ("completed", "running", "saving")
_BAD = ("failed", "lost")


def report_page(story: Story, *, why: str = "") -> str:
    """The page. `why`: a paragraph on how the run ended or where it is."""
    import jinja2

    here = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, finalize=_no_secret
    )
    return here.get_template("page.html").render(_values(story), why=why) + "\n"


def _no_secret(value: Any) -> Any:
    """Every text of the page but SVG and CSS comes through here, before it is escaped."""
    return redact(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _values(story: Story) -> dict[str, Any]:
    """All values of page.html. Texts; values that are HTML already have a type of their own."""
    from markupsafe import Markup

    state = story.state
    return {
        "run_id": state.run_id,
        "style": Markup((HERE / "page.css").read_text()),  # noqa: S704
        "nbsp": Markup("&nbsp;"),
        "state": state.state,
        "colour": "ok" if state.state in _GOOD else "bad" if state.state in _BAD else "wait",
        "lead": _lead(story.plan),
        "figures": list(_figure_rows(story)),
        "loss": _loss(story),
        "gradients": _gradients(story),
        "time": _time(story),
        "phases": page_phases(story),
        "profiles": page_profiles(story.run),
        "attempts": [_attempt(one, story) for one in story.attempts],
        "checkpoints": _checkpoints(story),
        "removed": _removed(story),
        "facts": _facts(story),
        "recipe": story.recipe.rstrip(),
        "now": clock(time.time()),
    }


def _svg(drawn: str) -> Any:
    from markupsafe import Markup

    return Markup(redact(drawn))  # noqa: S704 run/svg.py escapes its texts


def _lead(plan: dict[str, Any]) -> list[str]:
    parts = [
        f"{count(plan['n_params'])} parameters" if plan.get("n_params") else "",
        f"{count(plan['total_tokens'])} tokens planned" if plan.get("total_tokens") else "",
        _workers(plan),
        str(plan.get("precision") or ""),
        f"on {plan['cluster']}" if plan.get("cluster") else "",
    ]
    return [part for part in parts if part]


def _workers(plan: dict[str, Any]) -> str:
    nodes = plan.get("nnodes")
    each = plan.get("nproc_per_node")
    if not nodes or not each:
        return ""
    kind = "CPU worker" if plan.get("device") == "cpu" else "GPU"
    every = f"{each} {kind}{'s' if each > 1 else ''}"
    return every if nodes == 1 else f"{nodes} nodes × {every}"


# -- figures ---------------------------------------------------------------------------------------------------------
def _figure_rows(story: Story) -> Iterator[tuple[str, str, str]]:
    state = story.state
    steps = story.steps
    goodput = story.goodput
    of = f"of {state.max_steps:,}" if state.max_steps else ""
    yield "Steps", f"{state.step:,}" if state.step is not None else "0", of
    if steps.count:
        yield "Loss", f"{steps.last['loss']:.3f}", f"from {steps.first['loss']:.2f}"
    for name, measured in _by_set(story.validation):
        best = min(measured, key=lambda row: float(row["loss"]))
        title = f"Validation loss, {name}" if name else "Validation loss"
        yield title, f"{measured[-1]['loss']:.3f}", f"best {best['loss']:.3f} at {best['step']:,}"
    if steps.count:
        yield "Tokens", count(float(steps.last["tokens_seen"])), "trained on"
        yield "Tokens/s", count(steps.median("tokens_per_second") or 0.0), "median step"
    if goodput is not None:
        yield "Wall time", duration(goodput.wall), "since the submit"
        if goodput.ratio is not None:
            yield "Goodput", f"{goodput.ratio:.1%}", f"{duration(goodput.seconds['productive'])} productive"
    many = len(story.attempts)
    if many:
        yield "Attempts", str(many), _plural(story.preemptions, "preemption")


def _by_set(rows: Sequence[JsonObject]) -> list[tuple[str, list[JsonObject]]]:
    """Rows of validations by the set that they are of; the main one, which has no name, comes first."""
    found = [(name, [row for row in rows if is_of_set(row, name)]) for name in ("", *sets_of(rows))]
    return [(name, some) for name, some in found if some]


def _plural(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


# -- curves ----------------------------------------------------------------------------------------------------------
def _loss(story: Story) -> dict[str, Any] | None:
    if story.steps.count < 2:
        return None
    raw = story.steps.curves["loss"].points
    lines = [Line(raw, "c0", faint=True), Line(smooth(raw), "c0", "training")]
    named = []
    for (name, measured), colour in zip(_by_set(story.validation), itertools.cycle(_HELD_OUT_COLOURS)):
        points = [(float(row["step"]), float(row["loss"])) for row in measured]
        lines.append(Line(points, colour, f"validation loss {name}".rstrip(), dots=True))
        named.append((colour, f"validation {name}".rstrip()))
    marks = _resumes(story)
    legend = [("c0", "training, smoothed over its steps"), *named]
    legend += [("muted", "an attempt went on from here")] if marks else []
    drawn = [
        _svg(curve(lines, label="Loss over steps", width=width, height=height, marks=marks, x_form=count))
        for width, height in ((WIDTH, 320.0), NARROW)
    ]
    return {"legend": legend, "drawn": drawn, "small": list(_small_curves(story.steps, marks))}


def _resumes(story: Story) -> list[Mark]:
    return [
        Mark(float(one.started_from), f"attempt {one.attempt} went on from {_start(one)}", "muted")
        for one in story.attempts
        if one.started_from
    ]


def _gradients(story: Story) -> JsonObject | None:
    found = page_gradients(story.steps.norms, _resumes(story))
    return None if found is None else {**found, "drawn": [_svg(one) for one in found["drawn"]]}


def _small_curves(steps: Steps, marks: Sequence[Mark]) -> Iterator[tuple[str, Any]]:
    """Titles, each with its drawing."""
    for key, title, colour in (
        ("tokens_per_second", "Tokens per second", "c2"),
        ("grad_norm", "Gradient norm, before clipping", "c3"),
        ("lr", "Learning rate", "c0"),
    ):
        points = steps.curves[key].points
        form = count if key == "tokens_per_second" else (lambda value: f"{value:.3g}")
        lines = [Line(points, colour, title)]
        if key != "lr":
            lines = [Line(points, colour, faint=True), Line(smooth(points), colour, title)]
        svg = curve(lines, label=title, width=330.0, height=150.0, marks=marks, form=form, x_form=count, from_zero=True)
        if svg:
            yield title, _svg(svg)


def smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The mean around each point, as far to either side, so that it does not lag; finite values only."""
    points = [(x, y) for x, y in points if math.isfinite(y)]
    sums = list(itertools.accumulate((y for _, y in points), initial=0.0))
    reach = len(points) // (2 * SMOOTH)
    last = len(points) - 1
    found = []
    for number, (x, _) in enumerate(points):
        side = min(reach, number, last - number)
        found.append((x, (sums[number + side + 1] - sums[number - side]) / (2 * side + 1)))
    return found


# -- time ------------------------------------------------------------------------------------------------------------
def _time(story: Story) -> dict[str, Any] | None:
    goodput = story.goodput
    if goodput is None or goodput.wall <= 0:
        return None
    lost = sorted((item for item in goodput.seconds.items() if item[0] != "productive"), key=lambda item: -item[1])
    parts = [("productive", goodput.seconds["productive"]), *lost]
    total = sum(seconds for _, seconds in parts) or 1.0
    lanes = [_lane(one, goodput.since) for one in story.attempts[-MAX_LANES:]]
    shown = [cause for cause in CAUSES if any(cause in _causes(one) for one in lanes)]
    return {
        "wall": duration(goodput.wall),
        "bar": _svg(stack([(_cause_text(name), seconds, name) for name, seconds in parts], label="Wall time by cause")),
        "causes": [
            (name, _cause_text(name), _exact(seconds), f"{seconds / total:.1%}", CAUSES[name])
            for name, seconds in parts
            if seconds >= 0.005
        ],
        "legend": [(cause, _cause_text(cause)) for cause in shown],
        "lanes": _svg(timeline(lanes, label="Attempts over time", form=duration)),
        "hidden": len(story.attempts) - len(lanes),
    }


def _cause_text(cause: str) -> str:
    return cause.replace("_", " ")


def _causes(lane: Lane) -> set[str]:
    return {bar.colour for bar in lane.bars}


def _lane(one: AttemptStory, since: float) -> Lane:
    bars = [
        Bar(piece.began - since, piece.ended - since, piece.cause, f"{_cause_text(piece.cause)}: {piece.label}")
        for piece in one.pieces
        if piece.ended > piece.began
    ]
    marks = [
        Mark(float(event["time"]) - since, f"step {event.get('step')} saved ({event.get('kind')})", "ink")
        for event in one.events
        if event.get("event") == SAVED
    ]
    return Lane(f"attempt {one.attempt}", bars, marks)


def _exact(seconds: float) -> str:
    return f"{seconds:.1f}s" if seconds < 60 else duration(seconds)


# -- tables ----------------------------------------------------------------------------------------------------------
def _start(one: AttemptStory) -> str:
    where = " in memory" if one.source == FROM_MEMORY else ""
    return "–" if one.started_from is None else f"step {one.started_from:,}{where}"


def _attempt(one: AttemptStory, story: Story) -> tuple[str, ...]:
    live = one.outcome is None and story.state.alive and one.attempt == story.state.attempt
    message = first_line(one.outcome.message, 200) if one.outcome is not None else ""
    last = one.steps.last["step"] if one.steps.count else None
    return (
        str(one.attempt),
        clock(one.job.created),
        duration(max(0.0, one.ended - one.job.created)),
        str(one.job.nnodes * one.job.nproc_per_node),
        _start(one).removeprefix("step "),
        "–" if last is None else f"{last:,}",
        "under way" if live else one.result,
        message + _overrides(one, story.attempts),
    )


def _overrides(one: AttemptStory, every: Sequence[AttemptStory]) -> str:
    """The overrides of its submission that differ from those of the attempt before."""
    before = every[one.attempt - 1].job.overrides if 0 < one.attempt <= len(every) else {}
    changed = {key: value for key, value in one.job.overrides.items() if before.get(key) != value}
    return f" Changed: {', '.join(f'{key}={value}' for key, value in changed.items())}." if changed else ""


def _checkpoints(story: Story) -> list[tuple[str, ...]]:
    return [
        (
            f"{one.step:,}",
            one.label,
            "–" if one.bytes is None else size(one.bytes),
            "–" if one.world_size is None else str(one.world_size),
            "–" if one.attempt is None else str(one.attempt),
            "–" if one.created is None else clock(one.created),
        )
        for one in story.saved
    ]


def _removed(story: Story) -> str:
    committed = sum(event.get("event") == SAVED for one in story.attempts for event in one.events)
    gone = committed - len(story.saved)
    return _plural(gone, "older one") if gone > 0 else ""


def _facts(story: Story) -> list[tuple[str, str]]:
    plan = story.plan
    facts = [
        ("directory", story.run.url),
        ("code", _code(story.code)),
        ("batch", _batch(plan)),
        ("model", ", ".join(f"{key} {value}" for key, value in (plan.get("model") or {}).items())),
    ]
    return [fact for fact in facts if fact[1]]


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
