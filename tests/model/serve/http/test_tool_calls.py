"""Calls that clients send back, as templates take them, and calls in a stream of each form."""

from __future__ import annotations

import pytest

from launchyard.model.serve.http.bodies import plain_messages
from launchyard.model.serve.http.errors import ApiError


def called(arguments: object) -> list[dict[str, object]]:
    call = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": arguments}}
    return [{"role": "assistant", "content": None, "tool_calls": [call]}]


@pytest.mark.parametrize("arguments", [None, "", "{}", "null", {}])
def test_no_arguments_are_an_empty_object(arguments: object) -> None:
    assert plain_messages(called(arguments)) == plain_messages(called({}))
    assert plain_messages(called(arguments))[0]["tool_calls"][0]["function"]["arguments"] == {}  # type: ignore[index]


@pytest.mark.parametrize(("arguments", "said"), [("[1]", "no object"), (3, "no object"), ("{", "no JSON")])
def test_arguments_that_are_none_are_refused(arguments: object, said: str) -> None:
    with pytest.raises(ApiError, match=f"the arguments of now are {said}"):
        plain_messages(called(arguments))
