"""The text of the chat page: small, alone, and without the ways by which text becomes markup."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

PAGE = files("launchyard.model.serve.http").joinpath("page.html").read_text()


def test_it_is_small() -> None:
    assert len(PAGE.encode()) < 25 << 10


def test_it_needs_one_nonce_for_one_script_and_one_style() -> None:
    assert re.findall(r"<(script|style)([^>]*)>", PAGE) == [
        ("style", ' nonce="{{nonce}}"'),
        ("script", ' nonce="{{nonce}}"'),
    ]
    assert PAGE.count("{{") == 2
    assert re.findall(r"\s(?:on\w+|style)=", PAGE) == [], "a policy with a nonce refuses these"


def test_it_names_no_other_place() -> None:
    assert re.findall(r"https?:|//[a-z]|@import|url\(", PAGE) == []
    assert set(re.findall(r'"(v1/[^"]+)"', PAGE)) == {"v1/models", "v1/chat/completions"}


@pytest.mark.parametrize(
    "way", ["innerHTML", "outerHTML", "insertAdjacent", "document.write", "DOMParser", "srcdoc", "eval(", "Function("]
)
def test_no_text_can_become_markup(way: str) -> None:
    assert way not in PAGE
