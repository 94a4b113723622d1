"""A comparison as lines for a terminal: only what differs, results, and the losses in one chart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from launchyard.launcher.format import count, table
from launchyard.launcher.report.diff.comparison import SideBySide
from launchyard.launcher.report.diff.curves import Comparison, Gap
from launchyard.launcher.report.diff.facts import Difference, letter
from launchyard.launcher.report.terminal_chart import overlay

WIDEST = 44  # characters of a value; --json and --html have all of them
DIFF_LINES = 40
_TITLES = {"environment": "packages and machines"}
_FIGURE_NAMES = {"data_hash": "tokens of a step", "lr": "learning rate", "loss": "loss", "grad_norm": "gradient norm"}


def text_lines(found: SideBySide, *, paint: Sequence[Callable[[str], str]] = (), code: bool = False) -> Iterator[str]:
    """paint: a colour for each curve. `code`: all of the diff of code, and not its first lines alone."""
    yield from table([_side_row(found, number) for number in range(len(found.sides))])
    for name, differences in found.sections.items():
        yield ""
        title = _TITLES.get(name, name)
        if not differences:
            known = name in ("recipe", "code") or all(side.story is not None for side in found.sides)
            yield f"{title}: the same" if known else f"{title}: the same, as far as a recipe tells"
            continue
        header = (title, *(letter(number) for number in range(len(found.sides))))
        yield from table([_row(one) for one in differences], header)
        yield from (f"  {one.what}  {note}" for one in differences for note in one.notes)
        if name == "code":
            yield from _diff_lines(found, whole=code)
    yield ""
    yield from curve_lines(found)
    if found.results:
        yield ""
        yield from table(
            [(one.what, *one.texts) for one in found.results],
            ("results", *(letter(number) for number in range(len(found.sides)))),
        )
    chart = overlay(
        [(letter(n), side.losses(by_tokens=found.by_tokens)) for n, side in enumerate(found.sides)], paint=paint
    )
    if chart:
        yield from ("", f"loss over {'tokens' if found.by_tokens else 'steps'}; * where curves meet", *chart)


def _side_row(found: SideBySide, number: int) -> tuple[str, ...]:
    side = found.sides[number]
    if side.story is None:
        return (letter(number), side.name, "recipe", "", side.place)
    state = side.story.state
    steps = f"{state.step or 0}/{state.max_steps}" if state.max_steps else str(state.step or 0)
    return (letter(number), side.name, state.state, f"step {steps}", side.place)


def _row(one: Difference) -> tuple[str, ...]:
    return (one.what, *(shown_value(value) for value in one.values))


def shown_value(value: object, widest: int = WIDEST) -> str:
    """A value in a table: – for none; a long one is cut in its middle."""
    text = "–" if value is None or value == "" else " ".join(str(value).split())
    return text if len(text) <= widest else f"{text[: widest // 2]}…{text[-(widest // 2 - 1) :]}"


def _diff_lines(found: SideBySide, *, whole: bool) -> Iterator[str]:
    for number, diff in enumerate(found.code_diffs, 1):
        lines = diff.text.splitlines()
        if lines and len(found.sides) > 2:
            yield f"  {letter(0)} → {letter(number)}"
        shown = lines if whole else lines[:DIFF_LINES]
        yield from (f"  {line}" for line in shown)
        if len(shown) < len(lines):
            yield f"  … {len(lines) - len(shown)} more lines: --code"
        if diff.note:
            yield f"  {diff.note}"


# -- curves ----------------------------------------------------------------------------------------------------------
def curve_lines(found: SideBySide) -> Iterator[str]:
    """Sentences on the curves of each run against the first."""
    for number, one in enumerate(found.curves, 1):
        title = "curves" if len(found.curves) == 1 else f"curves {letter(0)} and {letter(number)}"
        if one is None:
            yield f"{title}: nothing to compare, as one of them has no steps"
            continue
        lines = list(sentences(one))
        yield f"{title}: {lines[0]}"
        yield from (f"  {line}" for line in lines[1:])


def sentences(one: Comparison) -> Iterator[str]:
    """What is equal, where it parts and by how much."""
    if not one.last_common_step:
        yield "they have no step in common"
        return
    if one.aligned_by == "tokens":
        yield "steps hold other numbers of tokens, so losses are compared at equal tokens"
    elif one.loss is None:
        yield f"losses equal to the bit until step {one.last_common_step}, the last that all have"
    else:
        yield (
            f"losses equal to the bit until step {one.equal_until}"
            if one.equal_until
            else "losses differ from step 1 on"
        )
    parted = [
        f"{_FIGURE_NAMES[name]} from step {step}" for name, step in one.first_different.items() if step is not None
    ]
    if parted and one.aligned_by == "step":
        yield f"different: {', '.join(parted)}"
    same = [_FIGURE_NAMES[name] for name, step in one.first_different.items() if step is None]
    if parted and same:
        yield f"never different: {', '.join(same)}"
    if one.loss is not None:
        yield f"loss {_gap_text(one.loss, one.aligned_by)}"
    if one.validation is not None:
        yield f"validation loss {_gap_text(one.validation, 'step')}"


def _gap_text(gap: Gap, unit: str) -> str:
    def at(place: float) -> str:
        return f"{count(place)} tokens" if unit == "tokens" else f"step {place:.0f}"

    parts = [f"{gap.first:+.3g} at {at(gap.at_first)}"]
    if gap.apart is not None and gap.apart != gap.at_first:
        parts.append(f"0.01 apart at {at(gap.apart)}")
    parts += [f"at most {gap.largest:+.3g} at {at(gap.at_largest)}", f"{gap.last:+.3g} at {at(gap.at_last)}, the last"]
    return f"{'; '.join(parts)} (mean of the last tenth {gap.mean_last:+.3g})"
