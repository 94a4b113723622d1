"""A conversation over several turns within a budget of tokens; each turn reads only what is new. Knows no terminal."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Unpack

from launchyard.model.loaded import LoadedModel, SamplingOptions
from launchyard.model.serve.engine import Engine
from launchyard.model.serve.requests import Ended, Request
from launchyard.model.serve.text import GrowingText
from launchyard.model.text.chat import Chat
from launchyard.model.text.chat_template import Message
from launchyard.model.text.tokenizer import refuse_halves

# Without a wish: of a context so long a cache is small, and an answer of so many tokens is a long one.
DEFAULT_CONTEXT = 8192
MAX_ANSWER = 1024


class AnswerOptions(SamplingOptions, total=False):
    """How an answer is drawn, and where it ends at the latest. seed: answer n of a conversation is drawn by seed + n.

    max_new_tokens: 1024 by default, and at most half of the context.
    """

    max_new_tokens: int
    stop: str | Sequence[str] | None
    seed: int | None


class Dialogue:
    """`messages`: as OpenAI has them, the system's first, all that was said. A cut answer has the weight 0.

    chat: of a prompt style or a template of one's own; else the model's. context_length: tokens that a prompt and its
    answer may take; default: what the model has, at most 8192. The oldest turns are left out of a prompt that has no
    room for them. ValueError if there is no chat template, or if it refuses a system message.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        chat: Chat | None = None,
        system: str | None = None,
        context_length: int | None = None,
    ) -> None:
        self.model = model
        self.messages: list[Message] = []
        self.n_answers = 0  # that were asked for
        self._chat = chat or model.chat
        self._stop_ids = model.stop_ids | _closing_ids(self._chat, model)
        self._wanted_length = context_length or min(DEFAULT_CONTEXT, model.config.max_seq_len)
        self._open: Reply | None = None
        self._engine: Engine | None = None
        if system is not None:
            self.set_system(system)

    @property
    def engine(self) -> Engine:
        """Of one slot, with room to go back: a message is taken back, and a template may drop an answer's thoughts."""
        if self._engine is None:
            length = self._wanted_length
            model = self.model
            self._engine = Engine(model.transformer, n_slots=1, length=length, rewindable=True, graphs=model.graphs)
        return self._engine

    def drop_engine(self) -> None:
        """After an error in the middle of a step nobody knows what is in its cache."""
        self._engine = None

    @property
    def length(self) -> int:
        """Tokens of the context."""
        return self.engine.length

    @property
    def system(self) -> str | None:
        first = self.messages[0] if self.messages else {}
        return str(first["content"]) if first.get("role") == "system" else None

    @property
    def n_tokens(self) -> int:
        """Tokens of all that was said."""
        if not _turns(self.messages):
            return 0  # most templates refuse to say nothing
        return len(self._chat.encode_chat(self._chat.chat_text(_plain(self.messages))).ids)

    # -- what changes the messages -------------------------------------------------------------------------------------
    def answer(self, text: str, **options: Unpack[AnswerOptions]) -> Reply:
        """The answer to a message: iterate over its pieces as they are written.

        Message and answer stand in `messages` once it has ended, stopped or been let go; not if nothing was written by
        then. ValueError for options, for a message too long and for what the template refuses; nothing has changed.
        """
        self.close()
        return self._begin(self.messages, {"role": "user", "content": _checked(text)}, options)

    def retry(self, **options: Unpack[AnswerOptions]) -> Reply:
        """Another answer to the last message, in place of the one that it has. ValueError without a message."""
        self.close()
        start = self._last_turn()
        return self._begin(self.messages[:start], self.messages[start], options)

    def undo(self) -> list[Message]:
        """Take the last message back, with its answer, and return them. ValueError without a message."""
        self.close()
        start = self._last_turn()
        taken = self.messages[start:]
        self.messages = self.messages[:start]
        return taken

    def clear(self) -> None:
        """Forget all but the system message."""
        self.close()
        self.messages = [] if self.system is None else self.messages[:1]

    def set_system(self, text: str | None) -> None:
        """ValueError if the template refuses it; then the one before stays."""
        self.close()
        said = self.messages if self.system is None else self.messages[1:]
        first: list[Message] = [] if text is None else [{"role": "system", "content": _checked(text)}]
        if first:
            self._chat.ids_for_generation([*first, {"role": "user", "content": "?"}])
        self.messages = [*first, *said]

    def load(self, messages: Sequence[Message]) -> None:
        """Go on from these. ValueError if the template refuses them; then nothing has changed."""
        self.close()
        self._chat.chat_text(_plain(messages))
        self.messages = list(messages)

    def close(self) -> None:
        """End an answer that was let go."""
        if self._open is not None:
            self._open.finish()
            self._open = None

    # -- what the model sees -------------------------------------------------------------------------------------------
    def check(self, **options: Unpack[AnswerOptions]) -> int:
        """Tokens that are left for a prompt. ValueError for invalid options."""
        seed = options.get("seed") or 0
        if not -(2**62) < seed < 2**62:
            raise ValueError(f"seed is {seed}; it must lie within 2^62")
        request = self.model.request([0], **self._completed(options))
        if request.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {request.max_new_tokens}; an answer needs at least 1")
        room = self.length - request.max_new_tokens
        if room < 1:
            raise ValueError(
                f"max_new_tokens is {request.max_new_tokens}, and the whole context has room for {self.length} tokens: "
                "an answer must leave some to the prompt"
            )
        return room

    def _prompt(self, messages: Sequence[Message], room: int) -> tuple[list[int], int]:
        """Ids of the messages that fit in `room` tokens, and how many are left out: whole turns, the oldest first.

        What stands before the first turn stays, and so does the last turn. ValueError if these do not fit.
        """
        turns = _turns(messages)
        head = messages[: turns[0]]

        def shown(n_left_out: int) -> list[int]:
            return self._chat.ids_for_generation(_plain([*head, *messages[turns[n_left_out] :]]))

        ids = shown(0)
        if len(ids) <= room:
            return ids, 0
        most = len(turns) - 1
        n_left_out = min(1 + bisect_left(range(1, most), True, key=lambda n: len(shown(n)) <= room), most)
        ids = shown(n_left_out)
        if len(ids) > room:
            beside = " with the system message" if head else ""
            raise ValueError(
                f"the message takes {len(ids)} tokens{beside}; of the context's {self.length} there are {room} for it "
                f"and {self.length - room} for the answer: shorten it, or lower max_new_tokens"
            )
        return ids, turns[n_left_out] - turns[0]

    def _begin(self, before: Sequence[Message], asked: Message, options: AnswerOptions) -> Reply:
        options = self._completed(options)
        ids, n_left_out = self._prompt([*before, asked], self.check(**options))
        request = self.model.request(ids, self.n_answers, **options)
        answer = Reply(self, replace(request, stop_ids=self._stop_ids), [*before, asked], stop=options.get("stop"))
        answer.n_left_out = n_left_out
        self.n_answers += 1
        self._open = answer
        return answer

    def _completed(self, options: AnswerOptions) -> AnswerOptions:
        return {"max_new_tokens": max(1, min(MAX_ANSWER, self.length // 2)), **options}

    def _last_turn(self) -> int:
        turns = _turns(self.messages)
        if not turns:
            raise ValueError("nothing has been said yet")
        return turns[-1]


class Reply:
    """An answer that is being written: iterate over its pieces, once.

    prompt: ids. n_left_out: messages that had no room in it.
    """

    n_left_out = 0

    def __init__(
        self,
        conversation: Dialogue,
        request: Request,
        messages: list[Message],
        *,
        stop: str | Sequence[str] | None = None,
    ) -> None:
        self.prompt = tuple(request.prompt)
        self.text = ""
        self.is_stopping = False
        self._conversation = conversation
        self._messages = messages
        self._generation = conversation.engine.add(request)
        stops = [stop] if isinstance(stop, str) else list(stop or ())
        self._growing = GrowingText(self._generation, conversation.model.tokenizer, stops)
        self._is_over = False

    @property
    def n_prompt(self) -> int:
        return len(self.prompt)

    @property
    def n_new(self) -> int:
        return self._growing.n_new

    @property
    def n_reused(self) -> int:
        """Tokens of the prompt that had been read before."""
        return self._generation.n_reused

    @property
    def ended(self) -> Ended | None:
        """None until the last piece; "cancelled" if it was stopped."""
        return self._growing.ended

    @property
    def was_kept(self) -> bool:
        """False if it was stopped before there was any of it: then the message counts as not said."""
        return self.ended is not None and (self.ended != "cancelled" or bool(self.text))

    def stop(self) -> None:
        """End it before the next token. For handlers of signals, too."""
        self.is_stopping = True

    def __iter__(self) -> Iterator[str]:
        try:
            while self.ended is None:
                piece = self._step()
                self.text += piece
                if piece:
                    yield piece
        finally:
            self.finish()

    def _step(self) -> str:
        if self.is_stopping:
            self._conversation.engine.cancel(self._generation)
            return self._growing.take()
        try:
            self._conversation.engine.step()
        except BaseException as error:
            self._conversation.drop_engine()
            self._generation.ended = "cancelled"
            self._is_over = not isinstance(error, KeyboardInterrupt)  # else the conversation is as it was
            raise
        return self._growing.take()

    def finish(self) -> None:
        """Stop it if it has not ended, and let the conversation have it."""
        if self._is_over:
            return
        self._is_over = True
        if self._generation.ended is None:
            self._conversation.engine.cancel(self._generation)
        self.text += self._growing.take()
        if self.was_kept:
            said: dict[str, object] = {"role": "assistant", "content": self.text}
            if self.ended != "stop":
                said["weight"] = 0  # no training is to learn that it ends here
            self._conversation.messages = [*self._messages, said]


def _turns(messages: Sequence[Message]) -> list[int]:
    """Where each turn begins: a message of the user, and all that follows it."""
    return [place for place, message in enumerate(messages) if message.get("role") == "user"]


def _plain(messages: Sequence[Message]) -> list[Message]:
    """As templates have them: weights are for a training."""
    return [{key: value for key, value in message.items() if key != "weight"} for message in messages]


def _checked(text: str) -> str:
    if not text.strip():
        raise ValueError("the message is empty")
    refuse_halves(text)
    return text


def _closing_ids(chat: Chat, model: LoadedModel) -> frozenset[int]:
    """The token by which the template closes an answer, where it is a special one: often no file calls it an end."""
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "."}]
    try:
        encoded = chat.encode_chat(chat.chat_text(messages))
    except ValueError:  # a template may want other messages than these
        return frozenset()
    added = model.tokenizer.raw.get_added_tokens_decoder()
    last = {encoded.ids[end - 1] for _, end in encoded.spans}
    return frozenset(token for token in last if token in added and added[token].special)
