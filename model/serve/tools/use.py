"""Tools in the chats of one model: what its template shows, how it writes calls, and what its answers are held to.

Knows no HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from launchyard.model.serve.constrained import GrammarConstraint
from launchyard.model.serve.tools.asked import Tools
from launchyard.model.serve.tools.forms import SYNTAXES, ToolSyntax, syntax_of
from launchyard.model.serve.tools.grammar import CallGrammar
from launchyard.model.serve.tools.parse import ToolParser
from launchyard.model.text.chat import Chat
from launchyard.model.text.chat_template import Message
from launchyard.model.text.tokenizer import Tokenizer


def use_tools(tools: Tools, chat: Chat, tokenizer: Tokenizer) -> ToolUse:
    """ValueError for a template that does not show tools, or whose calls are not known here."""
    _check_shown(tools, chat, [{"role": "user", "content": "Hello"}], tokenizer)
    syntax = syntax_of(chat.template(tools=True).text)
    if syntax is None:
        known = ", ".join(f"{one.name} ({''.join((one.opening, *one.marks))})" for one in SYNTAXES)
        raise ValueError(
            f"the chat template of {tokenizer.path} writes calls in a way that is not read here, which is {known}; "
            "leave tools out"
        )
    return ToolUse(tools, syntax, chat, tokenizer)


def _check_shown(tools: Tools, chat: Chat, messages: Sequence[Message], tokenizer: Tokenizer) -> None:
    """ValueError if the prompt of these messages is the same without tools, or lacks one."""
    template = chat.template(tools=True)
    shown = template.render(messages, tools=tools.shown, generation_prompt=True)
    is_same = shown == template.render(messages, generation_prompt=True)
    if is_same or not all(name in shown for name in tools.schemas):
        raise ValueError(
            f"the chat template of {tokenizer.path} does not show tools to the model; leave tools out, or give a "
            "template that does"
        )


@dataclass(frozen=True)
class ToolUse:
    tools: Tools
    syntax: ToolSyntax
    chat: Chat
    tokenizer: Tokenizer

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """Of the prompt. ValueError if the template refuses the messages, or does not show the tools beside them."""
        _check_shown(self.tools, self.chat, messages, self.tokenizer)
        return self.chat.ids_for_generation(messages, tools=self.tools.shown)

    @property
    def skip_special(self) -> bool:
        """False if a special token marks calls, so that special tokens must be in the text that is parsed."""
        return not any(map(self._is_special, (self.syntax.opening, self.syntax.closing, *self.syntax.marks)))

    def parser(self) -> ToolParser:
        """For one answer."""
        return ToolParser(self.syntax, self.tools.schemas, most=1 if self._grammar.one_alone else None)

    def constraint(
        self,
        vocab_size: int,
        stop_ids: Collection[int],
        *,
        response_format: Mapping[str, object] | None = None,
    ) -> GrammarConstraint | None:
        """What one answer must look like; None if it may be any. As constraint_for of model/serve/constrained.py.

        Calls come where they are required; else an answer of the response format may be calls instead. Where functions
        are strict, any text may come, and what begins as a call goes on as one.
        """
        grammar = self._grammar.answer(response_format)
        return None if grammar is None else GrammarConstraint(grammar, self.tokenizer, vocab_size, stop_ids)

    @property
    def _grammar(self) -> CallGrammar:
        return CallGrammar(self.tools, self.syntax, self._marker, self._is_special)

    def _marker(self, text: str) -> str:
        number = self.tokenizer.raw.token_to_id(text)
        return f"<[{number}]>" if self._is_special(text) else json.dumps(text)

    def _is_special(self, text: str) -> bool:
        number = self.tokenizer.raw.token_to_id(text)
        added = self.tokenizer.raw.get_added_tokens_decoder()
        return number in added and bool(added[number].special)
