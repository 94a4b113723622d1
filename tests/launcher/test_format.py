from __future__ import annotations

import json
import time

import pytest

from launchyard.launcher.format import JSON_VERSION, clock, count, duration, first_line, json_text, size, table


def test_json_of_commands_names_its_version_at_the_top() -> None:
    assert json.loads(json_text({"a": {"b": 1}})) == {"schema_version": JSON_VERSION, "a": {"b": 1}}
    assert json.loads(json_text([{"a": 1}], indent=None)) == [{"schema_version": JSON_VERSION, "a": 1}]
    assert json_text([]) == "[]"


def test_a_time_names_its_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    for zone, expected in (("UTC", "12:00:05 +0000"), ("Asia/Kolkata", "17:30:05 +0530")):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        assert clock(1_767_268_805) == f"2026-01-01 {expected}"
    assert clock(1_767_268_805, seconds=False) == "2026-01-01 17:30 +0530"
    monkeypatch.undo()
    time.tzset()


def test_a_table_is_never_cut_or_wrapped() -> None:
    long = "a-very-long-name-of-a-run-" * 20
    lines = table([(long, "running"), ("b", "-")], ("RUN", "STATE"))
    assert [line.split() for line in lines] == [["RUN", "STATE"], [long, "running"], ["b", "-"]]
    assert all(line == line.rstrip() and "\x1b" not in line for line in lines)


@pytest.mark.parametrize(
    "cells",
    [
        ("1", "1,024"),
        ("-", "12/400"),
        ("0.5", "1e-05"),
        ("3m 05s ago", "42s ago"),
        ("30.2 GB", "512 bytes"),
        ("nan", "2.345"),
    ],
    ids=str,
)
def test_numbers_stand_to_the_right(cells: tuple[str, str]) -> None:
    width = max(map(len, cells))
    assert table([(cell, "end") for cell in cells]) == [f"{cell:>{width}}  end" for cell in cells]


@pytest.mark.parametrize(
    "cells", [("10.0.0.1:9100", "10.0.0.23:9100"), ("1", "quickstart"), ("-", "-"), ("", "")], ids=str
)
def test_words_stand_to_the_left(cells: tuple[str, str]) -> None:
    width = max(4, *map(len, cells))
    assert table([(cell, "end") for cell in cells], ("NAME", "END"))[1:] == [f"{cell:<{width}}  end" for cell in cells]


def test_a_table_without_rows_is_its_header() -> None:
    assert table([], ("RUN", "STATE")) == ["RUN  STATE"]
    assert table([]) == []


def test_numbers_in_words() -> None:
    assert [duration(seconds) for seconds in (42.4, 185, 7620, 273_600)] == ["42s", "3m 05s", "2h 07m", "3d 4h"]
    assert [count(number) for number in (12, 1_500, 1_012_000_000)] == ["12", "1.5k", "1.01B"]
    assert [size(number) for number in (12, 12_100_000_000)] == ["12 bytes", "12.1 GB"]
    assert first_line("\n  one\ntwo") == "one"
    assert first_line("abcdef", 4) == "abc…"
