"""Renders the Jinja template of a chat to text as transformers does, in a sandbox. Loads jinja2 with the first text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING

from launchyard.model.text.companions import SPECIAL_TOKENS, TOKENIZER_CONFIG, Companions, Json, json_companion
from launchyard.model.text.special_tokens import token_text
from launchyard.model.text.templates import DEFAULT, read_templates

if TYPE_CHECKING:
    from jinja2 import Template

# A message as OpenAI has it: role, content, and perhaps name, tool_calls, tool_call_id, reasoning_content.
Message = Mapping[str, object]
FOR_TOOLS = "tool_use"
_NAMED_TOKENS = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """`text`: the template. `tokens`: bos_token, eos_token … as it may use them. `now`: what it takes as the time."""

    def __init__(self, text: str, tokens: Mapping[str, str], *, now: datetime | None = None) -> None:
        self.text = text
        self._tokens = dict(tokens)
        self._now = now

    @cached_property
    def _compiled(self) -> Template:
        from jinja2 import TemplateError

        try:
            return _compile(self.text, self._now)
        except TemplateError as error:
            raise ValueError(f"the chat template is no Jinja template that can be read: {error}") from error

    def render(
        self, messages: Sequence[Message], *, tools: Sequence[Json] = (), generation_prompt: bool = False
    ) -> str:
        """The text of a chat. `generation_prompt`: with the beginning of the assistant's next turn.

        ValueError if the template refuses the messages or fails on them, with what it says.
        """
        template = self._compiled
        try:
            return template.render(
                messages=[_plain_message(message) for message in messages],
                tools=list(tools) or None,
                xml_tools=list(tools) or None,  # as SmolLM3 names them
                documents=None,
                add_generation_prompt=generation_prompt,
                **self._tokens,
            )
        except Exception as error:  # a template can fail in any way that Python can
            raise ValueError(f"the chat template refuses the messages: {error}") from error


def chosen_template(companions: Companions, *, tools: bool = False) -> str | None:
    """The text of the template beside a tokenizer: of several the one for tools if there are tools, else `default`.

    None without any; ValueError if none of several is for this use.
    """
    found = read_templates(companions)
    if not found:
        return None
    if tools and FOR_TOOLS in found:
        return found[FOR_TOOLS]
    if DEFAULT not in found:
        raise ValueError(f"none of the chat templates {', '.join(found)} is named {DEFAULT}: give one by its file")
    return found[DEFAULT]


def named_tokens(companions: Companions) -> dict[str, str]:
    """bos_token, eos_token … -> its text, of those that a file beside the tokenizer names."""
    found = {}
    for name in (SPECIAL_TOKENS, TOKENIZER_CONFIG):
        content = json_companion(companions, name)
        texts = {key: token_text(content.get(key)) for key in _NAMED_TOKENS}
        found.update({key: text for key, text in texts.items() if text is not None})
    return found


def _plain_message(message: Message) -> Json:
    """Without keys of null, which many templates take for a value; reasoning under each of its names."""
    plain = {key: value for key, value in message.items() if value is not None}
    reasoning = next((plain[key] for key in _REASONING if key in plain), None)
    return plain if reasoning is None else {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _compile(text: str, now: datetime | None) -> Template:
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationTag(Extension):
        """{% generation %} … {% endgeneration %} marks what the model writes; the text is what is inside."""

        tags = {"generation"}  # noqa: RUF012, as jinja2 declares it

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def strftime(pattern: str) -> str:
        return (now or datetime.now()).strftime(pattern)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[GenerationTag, loopcontrols],
        autoescape=False,  # ids are made of it, no page
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": refuse, "strftime_now": strftime}
    return environment.from_string(text)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes for HTML, and sorts keys."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
