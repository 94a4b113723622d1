"""Calls that clients send back, as templates take them, and calls in a stream of each form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest

from launchyard.model.serve.http.bodies import plain_messages
from launchyard.model.serve.http.errors import ApiError
from tests.model.serve.served import TEMPLATE, chat_model, served


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


SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Ada", "Grace"]}, "born": {"type": "integer", "minimum": 1800, "maximum": 1999}},
    "required": ["name", "born"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": SCHEMA, "strict": True}} for name in ("find", "add")
]
MARKS = {
    "hermes": "<tool_call>",
    "mistral args": "[TOOL_CALLS][ARGS]",
    "coder": "<tool_call><function=<parameter=",
    "glm": "<tool_call><arg_key>",
}


@pytest.mark.parametrize("form", MARKS)
def test_a_streamed_call_is_that_of_the_whole_answer_and_goes_back(tmp_path: Path, form: str) -> None:
    shown = "{% if tools %}{{ tools | tojson }}{# " + MARKS[form] + " #}{% endif %}"
    with (
        served(chat_model(tmp_path / "m", template=shown + TEMPLATE)) as tiny,
        openai.OpenAI(base_url=f"{tiny.url}/v1", api_key="none", max_retries=0) as client,
    ):
        create: Any = client.chat.completions.create
        asked: list[dict[str, object]] = [{"role": "user", "content": "Who?"}]
        options: dict[str, Any] = {"model": "tiny", "tools": TOOLS, "parallel_tool_calls": False, "max_tokens": 300}
        for seed in range(2):
            options |= {"seed": seed, "tool_choice": "required"}
            answer = create(messages=asked, **options).choices[0]
            (call,) = answer.message.tool_calls
            assert (answer.finish_reason, answer.message.content) == ("tool_calls", None)
            jsonschema.validate(json.loads(call.function.arguments), SCHEMA)
            chunks = [chunk.choices[0] for chunk in create(messages=asked, **options, stream=True)]
            (delta,) = [one for chunk in chunks for one in chunk.delta.tool_calls or []]
            assert (delta.index, delta.type, bool(delta.id)) == (0, "function", True)
            assert (delta.function.name, delta.function.arguments) == (call.function.name, call.function.arguments)
            assert "".join(chunk.delta.content or "" for chunk in chunks) == ""
            assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["tool_calls"]
        told = [*asked, answer.message, {"role": "tool", "tool_call_id": call.id, "content": "1815"}]
        again = create(messages=told, **{**options, "tool_choice": "none", "max_tokens": 5})
        assert again.choices[0].message.content
