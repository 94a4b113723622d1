"""What a client says of its functions is checked, and its faults are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from launchyard.model.serve.tools.asked import Tools
from tests.model.serve.tools.calling import (
    TOOLS,
)


# -- what is asked for -------------------------------------------------------------------------------------------------
def function(**fields: object) -> dict[str, object]:
    return {"type": "function", "function": {"name": "f", **fields}}


@pytest.mark.parametrize(
    ("tools", "choice", "said"),
    [
        (["f"], None, "tools.0 is no object"),
        ([{"type": "web_search"}], None, "tools.0.type is 'web_search'; tools here are of type function alone"),
        ([{"type": "function"}], None, "tools.0.function is no object"),
        ([function(), function(name="a b")], None, "tools.1.function.name is 'a b'; it must be 1 to 64 letters"),
        ([function(name="é")], None, "tools.0.function.name is 'é'"),
        ([function(name="a" * 65)], None, "tools.0.function.name"),
        ([function(name="a\n")], None, "tools.0.function.name"),
        ([function(arguments={})], None, "tools.0.function.arguments is not known; it takes description"),
        ([function(description=3)], None, "tools.0.function.description is no text"),
        ([function(strict="yes")], None, "tools.0.function.strict is neither"),
        ([function(parameters=[])], None, "tools.0.function.parameters is no JSON schema of an object"),
        ([function(parameters={"type": "array"})], None, "tools.0.function.parameters is no JSON schema"),
        ([function(), function()], None, "two functions of the name 'f'"),
        ([], "required", 'tool_choice is "required", and there are no tools'),
        ([function()], "always", 'tool_choice is \'always\'; use "none", "auto"'),
        ([function()], {"type": "function"}, "tool_choice is {'type': 'function'}; use"),
        ([function()], {"type": "function", "function": {"name": "g"}}, "tool_choice names 'g'; the tools are: f"),
        ([], {"type": "function", "function": {"name": "g"}}, "tool_choice names 'g'; the tools are: none"),
    ],
)
def test_what_is_wrong_with_tools_is_said(tools: list[object], choice: object, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        Tools.read(tools, choice)
    assert said in str(caught.value)


@pytest.mark.parametrize(("tools", "choice"), [(TOOLS, "none"), ([], None), ([], "auto"), ([], "none")])
def test_without_tools_there_are_none(tools: list[object], choice: object) -> None:
    assert Tools.read(tools, choice) is None


def test_parameters_may_be_left_out(tmp_path: Path) -> None:
    tools = Tools.read([function(), function(name="g", parameters={"properties": {}})])
    assert tools is not None
    assert [schema["type"] for schema in tools.schemas.values()] == ["object", "object"]
    assert all("parameters" in tool["function"] for tool in tools.shown)  # type: ignore[operator]
