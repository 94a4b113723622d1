"""Makes rows of tokens of conversations: which tokens there are, and which of them are trained for.

Where an answer lies is told by rendering the conversation turn by turn and by lengths, never by the values of tokens.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, TypeVar

import numpy as np

from launchyard.model.text.chat import Chat, ChatText
from launchyard.model.text.chat_template import Message
from launchyard.model.text.tokenizer import Tokenizer
from launchyard.storage.damage import JsonObject
from launchyard.training.data.instruct.conversation import Conversation, Pair, Row, Turn

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")
TooLong = Literal["drop", "cut-prompt", "cut-answer"]
FIRST_ROWS = 100  # of which one at least must have a token to train for

# Reasons of `dropped`.
NO_ANSWER = "no turn to train for"
NO_LABELS = "no token to train for"
TOO_LONG = "too long"
ALIKE = "whose two answers are the same, or one begins the other"
REFUSED = "refused by the chat template"
UNWRITTEN = "calls of tools that the chat template does not write"
# Keys of `counts`.
CUT_PROMPT = "prompts cut"
CUT_ANSWER = "answers cut, without an end token"
UNCLEAR = "answers that the template does not let be told apart, not trained for"
OPENED_OTHERWISE = "answers that begin in another way than a prompt for generation ends"
PLAIN = "texts of no chat, trained for whole"
UNSHOWN = "conversations with tools that the chat template does not show"
JOINED = "answers whose first token holds the end of the prompt, too"


@dataclass(frozen=True)
class _Span:
    """Tokens of an answer, [start, end)."""

    start: int
    end: int


class _DroppedError(Exception):
    """A conversation gives no row."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class _Rendered:
    """A row of any length, and where its answers lie."""

    row: Row
    spans: list[_Span]


class Renderer:
    """Rows of at most `max_tokens` tokens, of a chat template or prompt style (see Chat).

    too_long: rows above that are dropped, lose the beginning of their prompt (but for a begin token), or the end of
    their answer. mask_prompt: answers are trained for alone, else all of a row. dropped: conversations that gave no
    row, by reason. counts: what else happened to rows and answers.
    first_refusal: where and what the template said of the first that it refused.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        style: str | None = None,
        template: str | None = None,
        max_tokens: int | None = None,
        too_long: TooLong = "drop",
        mask_prompt: bool = True,
        now: datetime | None = None,
    ) -> None:
        self.chat = Chat(tokenizer, style=style, template=template, now=now or datetime.now())
        self._joins_input = style is None
        self._max_tokens = max_tokens
        self._too_long = too_long
        self._mask_prompt = mask_prompt
        self._bos = tokenizer.raw.token_to_id(bos) if (bos := self.chat.tokens.get("bos_token")) else None
        self.dropped: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.first_refusal: str | None = None

    def rows(self, conversations: Iterable[Conversation]) -> Iterator[Row]:
        """Those of conversations that give one. ValueError if none of the first FIRST_ROWS does, or none at all."""
        return self._made(conversations, self._row)

    def pair_rows(self, pairs: Iterable[Pair]) -> Iterator[tuple[Row, Row]]:
        """The rows of pairs, the better answer first, which together have at most max_tokens + 1: a token of each is a
        label alone. Both lose as much of their prompt; or the longer more of its answer."""
        return self._made(pairs, self._pair)

    def _made(self, given: Iterable[_Given], make: Callable[[_Given], _Made]) -> Iterator[_Made]:
        seen = 0
        made = 0
        for one in given:
            found = self._unless_dropped(one, make)
            seen += 1
            if found is not None:
                made += 1
                yield found
            elif not made and seen == FIRST_ROWS:
                break
        if seen and not made:
            raise ValueError(self._nothing_to_train(seen))

    def _pair(self, pair: Pair) -> tuple[Row, Row]:
        if not all(any(turn.trained for turn in side.turns) for side in (pair.chosen, pair.rejected)):
            raise _DroppedError(ALIKE)
        return self._fitted_pair(self._rendered(pair.chosen), self._rendered(pair.rejected))

    def _fitted_pair(self, *sides: _Rendered) -> tuple[Row, Row]:
        chosen, rejected = (len(side.row.ids) - 1 for side in sides)
        room = chosen + rejected if self._max_tokens is None else self._max_tokens - 1
        excess = chosen + rejected - room
        if excess <= 0:
            return sides[0].row, sides[1].row
        if self._too_long == "drop":
            raise _DroppedError(TOO_LONG)
        longest = max(room // 2, room - min(chosen, rejected))
        limits = [min(n, longest) + 1 for n in (chosen, rejected)]
        if self._too_long == "cut-prompt":
            limits = [n + 1 - math.ceil(excess / 2) for n in (chosen, rejected)]
        rows = [self._cut(side, limit) for side, limit in zip(sides, limits, strict=True)]
        if not all(row.trained.any() for row in rows):
            raise _DroppedError(TOO_LONG)
        self._count_cut()
        return rows[0], rows[1]

    def _nothing_to_train(self, seen: int) -> str:
        reasons = ", ".join(f"{reason} ({n})" for reason, n in self.dropped.most_common())
        said = f"; the first refusal: {self.first_refusal}" if self.first_refusal else ""
        return (
            f"none of the first {seen} conversations has a token to train for: {reasons}{said}. Look at the columns, "
            "at the roles of the turns, at seq_len and at too_long (drop, cut-prompt, cut-answer)"
        )

    def row(self, conversation: Conversation) -> Row | None:
        """None if it has no token to train for, is too long or is refused, counted in `dropped`."""
        return self._unless_dropped(conversation, self._row)

    def pair(self, pair: Pair) -> tuple[Row, Row] | None:
        """The same for a pair."""
        return self._unless_dropped(pair, self._pair)

    def _unless_dropped(self, given: _Given, make: Callable[[_Given], _Made]) -> _Made | None:
        try:
            return make(given)
        except _DroppedError as error:
            self.dropped[error.reason] += 1
            return None

    def _row(self, conversation: Conversation) -> Row:
        made = self._rendered(conversation)
        if self._max_tokens is None or len(made.row.ids) <= self._max_tokens:
            return made.row
        if self._too_long == "drop":
            raise _DroppedError(TOO_LONG)
        fitted = self._cut(made, self._max_tokens)
        if not fitted.trained.any():
            raise _DroppedError(TOO_LONG)
        self._count_cut()
        return fitted

    def _rendered(self, conversation: Conversation) -> _Rendered:
        last = max((place for place, turn in enumerate(conversation.turns) if turn.trained), default=None)
        if last is None:
            raise _DroppedError(NO_ANSWER)
        turns = conversation.turns[: last + 1]
        try:
            shown = self._shown(turns, conversation.tools)
        except ValueError as error:
            self.first_refusal = self.first_refusal or f"{conversation.where}: {error}"
            raise _DroppedError(REFUSED) from error
        ids, spans = self._spans(shown, turns)
        row = Row(np.array(ids, dtype=np.int64), self._labels(len(ids), spans), conversation.where)
        if not row.trained.any():
            raise _DroppedError(NO_LABELS)
        return _Rendered(row, spans)

    def _shown(self, turns: Sequence[Turn], tools: Sequence[JsonObject]) -> ChatText:
        """The text of turns; an answer to nothing is a text of no chat."""
        if len(turns) == 1 and not tools and not turns[0].tool_calls:
            self._count(PLAIN, 1)
            return self.chat.plain_text(turns[0].content)
        messages = self._messages(turns)
        shown = self.chat.chat_text(messages, tools=tools)
        if any(turn.tool_calls for turn in turns):
            self._check_written(messages, tools, shown.text)
        if tools and self.chat.chat_text(messages).text == shown.text:
            self._count(UNSHOWN, 1)
        return shown

    def _check_written(self, messages: Sequence[Message], tools: Sequence[JsonObject], text: str) -> None:
        """Where the template passes over a call, an answer of nothing would be learnt in its place."""
        for place, message in enumerate(messages):
            if "tool_calls" in message:
                without = {key: value for key, value in message.items() if key != "tool_calls"}
                try:
                    other = self.chat.chat_text([*messages[:place], without, *messages[place + 1 :]], tools=tools)
                except ValueError:  # refused: it looks at calls
                    continue
                if other.text == text:
                    raise _DroppedError(UNWRITTEN)

    def ids_for_generation(self, turns: Sequence[Turn], *, tools: Sequence[JsonObject] = ()) -> list[int]:
        """Ids before the next answer: those that a row has before that answer. ValueError if the template refuses."""
        return self.chat.ids_for_generation(self._messages(turns), tools=tools)

    def _messages(self, turns: Sequence[Turn]) -> list[Message]:
        return [message_of(turn, join_input=self._joins_input) for turn in turns]

    def _spans(self, shown: ChatText, turns: Sequence[Turn]) -> tuple[list[int], list[_Span]]:
        """Ids of the text, and the tokens of each answer that is trained for."""
        chat = self.chat.encode_chat(shown)
        trained = [place for place, answer in enumerate(shown.answers) if turns[answer.turn].trained]
        self._count(UNCLEAR, sum(turns[turn].trained for turn in shown.unclear))
        self._count(OPENED_OTHERWISE, sum(shown.answers[place].opened_otherwise for place in trained))
        self._count(JOINED, chat.joined)
        return chat.ids, [_Span(*chat.spans[place]) for place in trained]

    def _cut(self, made: _Rendered, limit: int) -> Row:
        """Of at most so many tokens; perhaps without any that is trained for."""
        if self._too_long == "cut-prompt":
            return self._without_beginning(made.row, made.spans, limit)
        return replace(made.row, ids=made.row.ids[:limit], trained=made.row.trained[:limit])

    def _count_cut(self) -> None:
        self.counts[CUT_PROMPT if self._too_long == "cut-prompt" else CUT_ANSWER] += 1

    def _without_beginning(self, row: Row, spans: Sequence[_Span], limit: int) -> Row:
        """The last tokens, after the begin token if there is one; answers that lose their beginning are prompt."""
        kept_begin = 1 if self._bos is not None and row.ids[0] == self._bos else 0
        cut = len(row.ids) - limit + kept_begin
        kept = [span for span in spans if span.start > cut]
        trained = self._labels(len(row.ids), kept)
        return replace(
            row,
            ids=np.concatenate((row.ids[:kept_begin], row.ids[cut:])),
            trained=np.concatenate((trained[:kept_begin], trained[cut:])),
        )

    def _labels(self, n: int, spans: Sequence[_Span]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        return _labels(n, spans if self._mask_prompt else [_Span(0, n)])

    def _count(self, what: str, n: int) -> None:
        if n:
            self.counts[what] += n


def message_of(turn: Turn, *, join_input: bool = True) -> Message:
    """A turn as chat templates have it; `join_input`: with its input after its content, else under a key."""
    content = f"{turn.content}\n\n{turn.input}" if turn.input and join_input else turn.content
    message: dict[str, object] = {"role": turn.role, "content": content}
    if turn.input and not join_input:
        message["input"] = turn.input
    if turn.name is not None:
        message["name"] = turn.name
    if turn.tool_calls:
        message["tool_calls"] = [_with_arguments(call) for call in turn.tool_calls]
    return message


def _with_arguments(call: JsonObject) -> JsonObject:
    """A call of a tool with its arguments as an object, which templates write as JSON; OpenAI's are JSON already."""
    function = call.get("function")
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(arguments, str):
        return call
    try:
        read = json.loads(arguments)
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": read}} if isinstance(read, dict) else call


def _labels(n: int, spans: Sequence[_Span]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    trained = np.zeros(n, dtype=np.bool_)
    for span in spans:
        trained[span.start : span.end] = True
    trained[:1] = False  # nothing comes before it
    return trained
