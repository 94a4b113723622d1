"""The tables of a trace, from its summary. Light; knows no file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from launchyard.storage.damage import JsonObject

ROWS_SHOWN = 20  # of operators and of modules


def table_text(summary: JsonObject) -> str:
    """All of them, under a line that says of what."""
    steps = f"steps {summary['first']} to {summary['last']}"
    head = f"{steps}, rank {summary['rank']} of {summary['world_size']}, attempt {summary['attempt']}"
    return "\n\n".join([head, *("\n".join(table) for table in summary_tables(summary))]) + "\n"


def summary_tables(summary: JsonObject) -> Iterator[list[str]]:
    yield _lines(*phase_rows(summary))
    yield _lines(*spent_rows(summary, "operators"))
    if summary["modules"]:
        yield _lines(*spent_rows(summary, "modules"))


def phase_rows(summary: JsonObject) -> tuple[list[str], list[list[str]]]:
    """Head and rows: phases of the host's thread that trains."""
    n_steps = summary["last"] - summary["first"] + 1
    total = sum(summary["phases"].values()) or 1.0
    rows = [
        [phase, _ms(seconds), f"{seconds / total:.1%}", _ms(seconds / n_steps)]
        for phase, seconds in sorted(summary["phases"].items(), key=lambda item: -item[1])
    ]
    return ["phase", "ms", "share", "ms a step"], rows


def spent_rows(summary: JsonObject, kind: str) -> tuple[list[str], list[list[str]]]:
    """Head and rows: operators with their own time; modules with the time of their forwards, and of what is in them."""
    own = kind == "operators"
    key = "self_seconds" if own else "seconds"
    total = sum(one[key] for one in summary[kind]) or 1.0
    head = ["operator" if own else "module (forward)", "calls", "self ms" if own else "ms"]
    head += ["share", "ms with callees"] if own else []
    head += ["device ms"] if summary["device"] else []
    head += ["self memory"] if summary["memory"] and own else []
    rows = []
    for one in summary[kind][:ROWS_SHOWN]:
        row = [one["name"], str(one["calls"]), _ms(one[key])]
        row += [f"{one[key] / total:.1%}", _ms(one["seconds"])] if own else []
        row += [_ms(one["device_seconds"])] if summary["device"] else []
        row += [_bytes(one["self_bytes"])] if summary["memory"] and own else []
        rows.append(row)
    return head, rows


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.2f}"


def _bytes(number: int) -> str:
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(number) >= limit:
            return f"{number / limit:.3g} {unit}"
    return f"{number} B"


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns, the first to the left and numbers to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [head, *rows]
    ]
