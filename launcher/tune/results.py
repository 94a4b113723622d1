"""What was found, for people and for programs: lines with a chart, rows, and files of a folder. Tries nothing."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from launchyard.errors import UserError
from launchyard.host.disk import writing_to
from launchyard.launcher.format import can_draw, count, json_text, size, table
from launchyard.launcher.report.terminal_chart import draw
from launchyard.launcher.tune.range_test import BELOW_DIVERGENCE, Suggestion, smoothed
from launchyard.launcher.tune.tune import TriedSize, Tuned, TuneRequest
from launchyard.run.svg import Mark, rates_svg
from launchyard.storage.damage import JsonObject

ROWS_FILE = "tune.jsonl"
CHART_FILE = "learning-rates.svg"


def tuned_lines(tuned: Tuned, request: TuneRequest) -> Iterator[str]:
    if tuned.sizes:
        yield from _size_lines(tuned)
    if tuned.suggestion is not None:
        yield from _rate_lines(tuned, tuned.suggestion)
    if tuned.overrides:
        yield ""
        yield f"use them: {use_command(tuned, request)}"


def use_command(tuned: Tuned, request: TuneRequest) -> str:
    """The launch with what was found; it wins over the same keys as they were typed."""
    keys = {**request.overrides, **tuned.overrides}
    pairs = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in keys.items()]
    return shlex.join(["launch", request.recipe, *pairs])


def _size_lines(tuned: Tuned) -> Iterator[str]:
    yield ""
    header = ["MICRO-BATCH", "FITS", "TOKENS/S", "PLANNED", "MEASURED"]
    yield from table([_size_cells(one) for one in sorted(tuned.sizes, key=lambda one: one.micro_batch_size)], header)
    kind = "of tensors on the GPU" if tuned.plan.device == "cuda" else "of its process, Python and torch included"
    yield f"one worker of {tuned.plan.world_size}; measured: the peak {kind}; planned: of tensors"
    largest = tuned.largest
    fastest = tuned.fastest
    if largest is None or fastest is None:
        yield "not even one sequence fits; see `launch doctor RECIPE` for what would"
        return
    yield f"largest that fits: {largest.micro_batch_size}{_end_of_search(tuned, largest)}"
    yield f"fastest: {fastest.micro_batch_size}, {count(fastest.tokens_per_second or 0)} tokens/s of all workers"


def _end_of_search(tuned: Tuned, largest: TriedSize) -> str:
    if largest.micro_batch_size == tuned.share:
        return f", all {tuned.share} sequences of a worker; a larger one needs a larger train.global_batch_size"
    if any(one.verdict == "too slow" for one in tuned.sizes):
        return "; larger ones were given no time, see --timeout"
    return f" of those that divide the {tuned.share} sequences of a worker"


def _size_cells(one: TriedSize) -> list[str]:
    speed = "–" if one.tokens_per_second is None else count(one.tokens_per_second)
    planned = "–" if one.planned is None else size(one.planned)
    peak = "–" if one.peak is None else size(one.peak)
    return [
        str(one.micro_batch_size),
        {"fits": "yes", "no memory": "no"}.get(one.verdict, one.verdict),
        speed,
        planned,
        peak,
    ]


def _rate_lines(tuned: Tuned, suggestion: Suggestion) -> Iterator[str]:
    smooth = smoothed([loss for _, loss in tuned.rates])
    points = [(math.log10(rate), mean) for (rate, _), mean in zip(tuned.rates, smooth, strict=False)]
    yield ""
    yield "smoothed loss over the learning rate, each step a factor above the last"
    yield from draw(points, braille=can_draw(sys.stdout), x_form=lambda exponent: f"{10**exponent:.1e}")
    if suggestion.steepest is not None:
        yield f"falls fastest at {suggestion.steepest:.2g}"
    if suggestion.divergence is not None:
        tenth = suggestion.divergence / BELOW_DIVERGENCE
        yield f"diverges at {suggestion.divergence:.2g}, a tenth of which is {tenth:.2g}"
    if tuned.trouble:
        yield f"! {tuned.trouble}"
    yield f"learning rate: {f'{suggestion.lr:.2g}, ' if suggestion.lr is not None else 'none; '}{suggestion.why}"


def tuned_rows(tuned: Tuned, request: TuneRequest) -> Iterator[JsonObject]:
    """One row for each size and each rate, and one with what to use."""
    for one in tuned.sizes:
        yield {
            "kind": "micro_batch",
            "micro_batch_size": one.micro_batch_size,
            "verdict": one.verdict,
            "tokens_per_second": one.tokens_per_second,
            "step_seconds": one.step_seconds,
            "planned_bytes": one.planned,
            "peak_bytes": one.peak,
        }
    smooth: Sequence[float] = smoothed([loss for _, loss in tuned.rates])
    for number, (rate, loss) in enumerate(tuned.rates):
        mean = smooth[number] if number < len(smooth) else None
        finite = loss if math.isfinite(loss) else None
        yield {"kind": "lr", "step": number + 1, "lr": rate, "loss": finite, "smoothed": mean}
    yield {"kind": "result", **_result(tuned), "overrides": tuned.overrides, "command": use_command(tuned, request)}


def _result(tuned: Tuned) -> JsonObject:
    suggestion = tuned.suggestion
    found: JsonObject = {
        "device": tuned.plan.device,
        "workers": tuned.plan.world_size,
        "largest": tuned.largest.micro_batch_size if tuned.largest else None,
        "fastest": tuned.fastest.micro_batch_size if tuned.fastest else None,
    }
    if suggestion is not None:
        found |= {
            "lr": suggestion.lr,
            "why": suggestion.why,
            "steepest": suggestion.steepest,
            "divergence": suggestion.divergence,
            "trouble": tuned.trouble or None,
        }
    return found


def row_texts(rows: Iterator[Mapping[str, object]]) -> str:
    return "".join(f"{json_text(row, indent=None)}\n" for row in rows)


# -- files -----------------------------------------------------------------------------------------------------------
def check_tune_folder(folder: str) -> None:
    """UserError if results cannot go there; asked before anything is tried."""
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise UserError(f"--out {folder}: a file; name a folder")
    if there := [name for name in (ROWS_FILE, CHART_FILE) if (path / name).exists()]:
        raise UserError(f"--out {folder}: holds {there[0]} already; name another folder")


def write_results(tuned: Tuned, request: TuneRequest, folder: str) -> list[Path]:
    """The rows, and the curve of a range test."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    written = [path / ROWS_FILE]
    with writing_to(folder):
        written[0].write_text(row_texts(tuned_rows(tuned, request)))
        if tuned.rates and (drawing := _drawing(tuned)):
            written.append(path / CHART_FILE)
            written[-1].write_text(drawing)
    return written


def _drawing(tuned: Tuned) -> str:
    smooth = smoothed([loss for _, loss in tuned.rates])
    means = [(rate, mean) for (rate, _), mean in zip(tuned.rates, smooth, strict=False)]
    suggestion = tuned.suggestion
    marks = []
    if suggestion is not None and suggestion.lr is not None:
        marks.append(Mark(suggestion.lr, f"suggested: {suggestion.lr:.2g}"))
    if suggestion is not None and suggestion.divergence is not None:
        marks.append(Mark(suggestion.divergence, f"diverges: {suggestion.divergence:.2g}", "c1"))
    return rates_svg(tuned.rates, means, title=f"{tuned.plan.name}: loss over the learning rate", marks=marks)
