"""YAML with a reason beside each key, for files that people go on with. Knows mappings and texts alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from launchyard.launcher.recipe.bundled import ROOT

_FILES = {"recipe": "recipes/recipe.schema.json", "cluster": "clusters/cluster.schema.json"}
_WIDEST = 44  # the column of the reasons, unless a line is longer


def schema_line(kind: str) -> str:
    """The line by which editors find the JSON Schema of a recipe or a cluster file."""
    return f"# yaml-language-server: $schema={ROOT / _FILES[kind]}"


def commented(value: Mapping[str, object], reasons: Mapping[str, str]) -> list[str]:
    """Lines of YAML; the reason of a dotted key stands behind it, or behind its section."""
    lines = list(_lines(value, reasons, "", ""))
    short = [len(line) for line, _ in lines if len(line) <= _WIDEST]
    column = max(short, default=0) + 2
    return [text for line, reason in lines for text in _with_reason(line, reason, column)]


def _with_reason(line: str, reason: str, column: int) -> list[str]:
    """Behind the line, or above one that is long."""
    if not reason:
        return [line]
    indent = line[: len(line) - len(line.lstrip())]
    return [f"{line.ljust(column)}# {reason}"] if len(line) <= column - 2 else [f"{indent}# {reason}", line]


def _lines(
    value: Mapping[str, object], reasons: Mapping[str, str], above: str, indent: str
) -> Iterator[tuple[str, str]]:
    for key, child in value.items():
        dotted = f"{above}.{key}" if above else key
        reason = reasons.get(dotted, "")
        if isinstance(child, Mapping) and child:
            yield f"{indent}{key}:", reason
            yield from _lines(child, reasons, dotted, f"{indent}  ")
        else:
            yield f"{indent}{key}: {scalar(child)}", reason


def scalar(value: object) -> str:
    """A value in one line of YAML, by itself: numbers as a person writes them."""
    import yaml

    if isinstance(value, float):
        text = f"{value:g}"
        return text if "e" not in text or "." in text else text.replace("e", ".0e")  # YAML 1.1 wants the point
    dumped = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000).strip()
    return dumped.removesuffix("...").strip()
