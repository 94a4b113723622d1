"""A chat as the text and ids that a model sees, and where in them each answer lies.

What training learns from and what generation asks with come from here, so that they are the same ids.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import accumulate, chain, pairwise

from launchyard.model.text.chat_template import ChatTemplate, Message, chosen_template, named_tokens
from launchyard.model.text.companions import TOKENIZER_CONFIG, Companions, Json, is_template, json_companion
from launchyard.model.text.prompt_styles import STYLES, style_template
from launchyard.model.text.special_tokens import SpecialTokens
from launchyard.model.text.templates import DEFAULT, with_templates
from launchyard.model.text.tokenizer import Tokenizer

# In place of a message to see where its text goes; two, of which a message holds only one as its last character.
_MARKS = ("\ue000", "\ue001")


@dataclass(frozen=True)
class AnswerSpan:
    """Where an assistant's turn lies in the text of a chat: [start, end), with the end token that closes it.

    turn: its place among the messages. opened_otherwise: the text differs from what a prompt for generation holds at
    this place, as where a template drops the thoughts of earlier turns.
    """

    turn: int
    start: int
    end: int
    opened_otherwise: bool = False


@dataclass(frozen=True)
class ChatIds:
    """Ids of a chat; of each of its answers the place of its first token, and that after its last.

    joined: answers whose first token holds the end of the prompt, too.
    """

    ids: list[int]
    spans: tuple[tuple[int, int], ...]
    joined: int = 0


@dataclass(frozen=True)
class ChatText:
    """The text of messages, its answers in order, and the assistant's turns that could not be told from the rest."""

    text: str
    answers: tuple[AnswerSpan, ...]
    unclear: tuple[int, ...] = ()


class Chat:
    """Chats for one tokenizer, by a prompt style, a template given as text, or else the template beside it.

    Every answer ends with an end token: where the template leaves it out, the tokenizer's own is written.
    ValueError if there is no template and no style, or no end token.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        style: str | None = None,
        template: str | None = None,
        now: datetime | None = None,
    ) -> None:
        if style is not None and template is not None:
            raise ValueError("give a prompt style or a chat template, not both")
        self._tokenizer = tokenizer
        self._style = style
        self._given = template
        self._now = now
        self.tokens = named_tokens(tokenizer.companions)
        if self.end_token is None:
            raise ValueError(f"{tokenizer.path} names no token that ends a text; name its eos_token beside it")
        self.tokens.setdefault("eos_token", self.end_token)
        self._templates: dict[bool, ChatTemplate] = {}
        self.template(tools=False)

    @cached_property
    def end_token(self) -> str | None:
        """The token that is written after an answer where the template writes none."""
        number = self._tokenizer.eos_id
        return None if number is None else str(self._tokenizer.raw.id_to_token(number))

    @cached_property
    def end_tokens(self) -> tuple[str, ...]:
        """Every token that a file beside the tokenizer says ends a text."""
        ends = SpecialTokens(self._tokenizer.companions, vocabulary=self._tokenizer.vocabulary).ends()
        found = (self._tokenizer.raw.id_to_token(number) for number in ends)
        return tuple(dict.fromkeys([str(self.end_token), *(str(token) for token in found if token is not None)]))

    @cached_property
    def _closing_tokens(self) -> tuple[str, ...]:
        """Special tokens that may close a turn: those above, and any other but closing tags."""
        added = self._tokenizer.raw.get_added_tokens_decoder().values()
        others = (str(token.content) for token in added if token.special)
        return (*self.end_tokens, *(token for token in others if not token.startswith("</")))

    def template(self, *, tools: bool) -> ChatTemplate:
        """The one for chats with tools, or without."""
        if tools not in self._templates:
            self._templates[tools] = ChatTemplate(self._text_of_template(tools), self.tokens, now=self._now)
        return self._templates[tools]

    def _text_of_template(self, tools: bool) -> str:
        if self._style is not None:
            return style_template(self._style, bos=self.bos)
        text = self._given if self._given is not None else chosen_template(self._tokenizer.companions, tools=tools)
        if text is None:
            raise ValueError(
                f"there is no chat template beside {self._tokenizer.path}; give one, or a prompt style: "
                + ", ".join(STYLES)
            )
        return text

    @cached_property
    def bos(self) -> str:
        """The token that the tokenizer puts before a text by itself; empty without one."""
        first = self._tokenizer.encode("", special=True)[:1]
        return str(self._tokenizer.raw.id_to_token(first[0])) if first and first[0] not in self._end_ids else ""

    @property
    def _end_ids(self) -> set[int | None]:
        bos = self.tokens.get("bos_token")
        return {self._tokenizer.raw.token_to_id(token) for token in self.end_tokens if token != bos}

    def encode(self, *texts: str) -> list[list[int]]:
        """Ids of texts that a template made: it has written every special token itself."""
        return self._tokenizer.encode_each(texts, special=False)

    def encode_chat(self, shown: ChatText) -> ChatIds:
        """Ids of a whole text, and where in them its answers lie.

        An answer begins with a token of its own even where the tokenizer would join its first characters to the end of
        the prompt, so that the ids before it are those of the prompt alone; unless a cut there changes the text.
        """
        edges = [edge for answer in shown.answers for edge in (answer.start, answer.end)]
        whole, *parts = self.encode(shown.text, *(shown.text[a:b] for a, b in pairwise([0, *edges, len(shown.text)])))
        if whole == list(chain.from_iterable(parts)):  # no token crosses an edge
            lengths = list(accumulate(map(len, parts[:-1])))
            return ChatIds(whole, tuple(zip(lengths[::2], lengths[1::2], strict=True)))
        return self._encode_joined(shown, edges, whole)

    def _encode_joined(self, shown: ChatText, edges: Sequence[int], ids: list[int]) -> ChatIds:
        """The same where the parts of a text have other ids than the whole."""
        before = self.encode(*(shown.text[:edge] for edge in edges))
        lengths = [_shared(beginning, ids) for beginning in before]
        joined = [
            answer.start
            for answer, length, beginning in zip(shown.answers, lengths[::2], before[::2], strict=True)
            if length < len(beginning) and not answer.opened_otherwise
        ]
        if joined and (apart := self._encode_apart(shown.text, joined, edges, ids)):
            ids, lengths = apart
            joined = []
        return ChatIds(ids, tuple(zip(lengths[::2], lengths[1::2], strict=True)), joined=len(joined))

    def _encode_apart(
        self, text: str, cuts: Sequence[int], edges: Sequence[int], whole: Sequence[int]
    ) -> tuple[list[int], list[int]] | None:
        """Ids of a text cut at some places, and how many come before each edge; None if they are another text's.

        A sentencepiece tokenizer begins each text with a space, which none can take back.
        """
        bounds = [0, *cuts, len(text)]
        parts = self.encode(*(text[start:end] for start, end in pairwise(bounds)))
        ids = [number for part in parts for number in part]
        if self._tokenizer.decode(ids, skip_special=False) != self._tokenizer.decode(whole, skip_special=False):
            return None
        places = [bisect_right(cuts, edge) for edge in edges]  # which part an edge lies in
        before = self.encode(*(text[bounds[place] : edge] for place, edge in zip(places, edges, strict=True)))
        first = [0, *accumulate(len(part) for part in parts)]
        return ids, [first[k] + _shared(some, parts[k]) for k, some in zip(places, before, strict=True)]

    def ids_for_generation(self, messages: Sequence[Message], *, tools: Sequence[Json] = ()) -> list[int]:
        """Ids of the messages and of the beginning of the next answer. ValueError as of ChatTemplate.render."""
        return self.encode_chat(self._closed(_View(self, messages, tools, generation_prompt=True))).ids

    def ids_to_continue(self, messages: Sequence[Message], *, tools: Sequence[Json] = ()) -> list[int]:
        """Ids of the messages, of which the last, the assistant's, is to go on as it stands."""
        before = self._closed(_View(self, messages[:-1], tools, generation_prompt=True)).text
        return self.encode(before + str(messages[-1].get("content") or ""))[0]

    def chat_text(self, messages: Sequence[Message], *, tools: Sequence[Json] = ()) -> ChatText:
        """The messages as the model sees them. ValueError as of ChatTemplate.render."""
        return self._closed(_View(self, messages, tools))

    def plain_text(self, text: str) -> ChatText:
        """A text that answers nothing, as without a template: all of it is learnt, and that it ends."""
        whole = f"{self.bos}{text}{self.end_token}"
        return ChatText(whole, (AnswerSpan(0, len(self.bos), len(whole)),))

    @property
    def companions(self) -> Companions:
        """The files of the tokenizer with the template by which this renders, for those that read a chat from them."""
        files = self._tokenizer.companions
        if self._style is None and self._given is None:
            return files
        settings = json_companion(files, TOKENIZER_CONFIG)
        settings.setdefault("eos_token", self.end_token)
        raw = (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()
        others = {name: content for name, content in files.items() if not is_template(name)}
        return with_templates({**others, TOKENIZER_CONFIG: raw}, {DEFAULT: self.template(tools=False).text})

    def _closed(self, view: _View) -> ChatText:
        """The text of a view with an end token after each answer."""
        text = view.text
        pieces: list[str] = []
        answers: list[AnswerSpan] = []
        unclear: list[int] = []
        done = 0  # characters of `text` in `pieces`
        written = 0  # characters of `pieces`
        for turn in view.turns:
            answer = view.answer(turn)
            if answer is None or answer.start < done:
                unclear.append(turn)
                continue
            end, closing = self._end(view, answer)
            pieces += [text[done:end], closing]
            start = written + answer.start - done
            written += end - done + len(closing)
            done = end
            answers.append(AnswerSpan(turn, start, written, answer.opened_otherwise))
        return ChatText("".join(pieces) + text[done:], tuple(answers), tuple(unclear))

    def _end(self, view: _View, answer: AnswerSpan) -> tuple[int, str]:
        """Where an answer's last character is, and the token to write there; empty if its end token stands there.

        Some templates close an answer only by the token that opens the next turn, which is then an end token; some
        write more after the end token.
        """
        text = view.text
        end = answer.start + len(text[answer.start : answer.end].rstrip())
        ends = [found.end() for found in self._end_pattern.finditer(text, answer.start, end)]
        if ends == [end]:
            return end, ""
        if ends:  # what was said may hold the text of one itself
            rest = view.after_content(answer.turn)
            said = answer.start if rest is None else len(text) - len(rest)
            if closed := next((place for place in ends if place > said), None):
                return closed, ""
        after = end + len(text[end:]) - len(text[end:].lstrip())
        if follows := next((token for token in self.end_tokens if text.startswith(token, after)), None):
            return after + len(follows), ""
        if text.endswith(self._closing_tokens, answer.start, end):
            return end, ""
        return end, str(self.end_token)

    @cached_property
    def _end_pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self.end_tokens, key=len, reverse=True))))

    @cached_property
    def until_end(self) -> re.Pattern[str]:
        """Matches a text up to its first end token."""
        return re.compile(f"(?s:.*?)(?:{self._end_pattern.pattern})")


class _View:
    """The text of a chat, and its answers, which it finds by rendering parts of the chat."""

    def __init__(
        self,
        chat: Chat,
        messages: Sequence[Message],
        tools: Sequence[Json],
        *,
        generation_prompt: bool = False,
    ) -> None:
        template = chat.template(tools=bool(tools))
        self._template = template
        self._until_end = chat.until_end
        self._messages = messages
        self._tools = tools
        self._is_prompt = generation_prompt
        self.text = template.render(messages, tools=tools, generation_prompt=generation_prompt)
        self.turns = [place for place, message in enumerate(messages) if message.get("role") == "assistant"]

    def answer(self, turn: int) -> AnswerSpan | None:
        """Where the turn lies, before its end token is looked at; None if the template does not let it be told."""
        prompt = self._render(self._messages[:turn], generation_prompt=True)
        if prompt is None:
            return None
        exact = self.text.startswith(prompt)
        start = len(prompt) if exact else self._start_otherwise(turn, prompt)
        end = self._end(turn)
        return None if start is None or end is None or end < start else AnswerSpan(turn, start, end, not exact)

    def after_content(self, turn: int) -> str | None:
        """The part of the text that follows the content of a message; None if it is not written."""
        return self._after(turn, self._messages, self.text, is_prompt=self._is_prompt)

    def _start_otherwise(self, turn: int, prompt: str) -> int | None:
        """Where an answer begins if earlier turns, or its own opening, are not as in the prompt for it.

        After the message before, as far as the prompt and the text of any other answer go on alike.
        """
        if turn == 0:
            return None
        rest = self.after_content(turn - 1)
        opening = self._after(turn - 1, self._messages[:turn], prompt, is_prompt=True)
        before, content = _MARKS
        other = self._render(
            [
                *self._messages[: turn - 1],
                {**self._messages[turn - 1], "content": before},
                {**self._messages[turn], "content": content},
                *self._messages[turn + 1 :],
            ],
            generation_prompt=self._is_prompt,
        )
        if rest is None or opening is None or other is None or before not in other:
            return None
        header = other[other.rindex(before) + 1 :]
        return len(self.text) - len(rest) + len(_common_beginning(opening, header, rest))

    def _end(self, turn: int) -> int | None:
        until = self._render(self._messages[: turn + 1])
        if until is None:
            return None
        if self.text.startswith(until):
            return len(until)
        rest = self.after_content(turn)
        closing = self._after(turn, self._messages[: turn + 1], until)
        if rest is None or closing is None:
            return None
        closes = closing.rstrip()
        if not rest.startswith(closes):  # as where only the last answer is closed
            shared = self._until_end.match(_common_beginning(closes, rest))
            closes = shared.group() if shared else ""
        return len(self.text) - len(rest) + len(closes)

    def _after(self, turn: int, messages: Sequence[Message], text: str, *, is_prompt: bool = False) -> str | None:
        """The part of the messages' text that follows the content of one of them; None if it is not written."""
        content = str(messages[turn].get("content") or "").rstrip()
        mark = next(mark for mark in _MARKS if not content.endswith(mark))
        marked = {**messages[turn], "content": mark}
        other = self._render([*messages[:turn], marked, *messages[turn + 1 :]], generation_prompt=is_prompt)
        rest = None if other is None or mark not in other else other[other.rindex(mark) + 1 :]
        return rest if rest is not None and text.endswith(rest) else None

    def _render(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str | None:
        """None if the template refuses these messages."""
        try:
            return self._template.render(messages, tools=self._tools, generation_prompt=generation_prompt)
        except ValueError:
            return None


def _common_beginning(*texts: str) -> str:
    low = min(texts)
    high = max(texts)
    differ = (place for place, (one, other) in enumerate(zip(low, high, strict=False)) if one != other)
    return low[: next(differ, len(low))]


def _shared(beginning: Sequence[int], ids: Sequence[int]) -> int:
    """How many ids both begin with: fewer than `beginning` has where a token crosses its end."""
    n = len(beginning)
    if list(ids[:n]) == list(beginning):
        return n
    return next(place for place, (one, other) in enumerate(zip(beginning, [*ids, -1], strict=False)) if one != other)
