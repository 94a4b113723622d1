"""A model as lm-evaluation-harness asks it. Knows no task; the answers are those of lm-eval's own `--model hf`.

One rule differs: what a chat template made is encoded as it is, as in training and in a chat, with no BOS added to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from lm_eval.api.model import TemplateLM

from launchyard.model.evaluate.perplexity import length_limit, prefix_id, rolling_windows
from launchyard.model.evaluate.score import BATCH_TOKENS, TokenIds, score
from launchyard.model.evaluate.until import asked, write_until
from launchyard.model.loaded import LoadedModel
from launchyard.model.text.chat_template import Message

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

# Called with what is done of one kind of request: its name, how many, and of how many.
OnRequests = Callable[[str, int, int], None]


class HarnessModel(TemplateLM):
    """max_length: tokens that the model sees at once; default: all that it has. seed: of texts that are drawn."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        max_length: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        seed: int | None = None,
        on_progress: OnRequests | None = None,
    ) -> None:
        super().__init__()
        self.loaded = loaded
        self.max_length = length_limit(loaded, max_length)
        self.prefix = prefix_id(loaded)
        self.dropped_system = False  # a template took no system message, and the texts do without
        self._prefix_text = loaded.tokenizer.decode([self.prefix], skip_special=False)
        self._batch_tokens = batch_tokens
        self._seed = seed
        self._on_progress = on_progress
        self._rendered: set[str] = set()

    def check_system(self, text: str) -> None:
        """ValueError if the chat template takes no system message."""
        self._render([{"role": "system", "content": text}, {"role": "user", "content": "Hello"}], True)

    # -- what lm-eval asks for -----------------------------------------------------------------------------------------
    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return self._scores("loglikelihood", self._pairs([request.args for request in requests]))

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """A BOS that the tokenizer adds is scored behind the prefix, as by lm-eval."""
        encoded = self._encode(self._plain(request.args[0] for request in requests))
        windows = [list(rolling_windows(ids, self.prefix, self.max_length)) for ids in encoded]
        scores = iter(self._scores("loglikelihood_rolling", [window for some in windows for window in some]))
        return [sum(next(scores)[0] for _ in some) for some in windows]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        return write_until(
            self.loaded,
            self._encode(self._plain(request.args[0] for request in requests)),
            [asked(request.args[1], self.loaded.companions) for request in requests],
            max_length=self.max_length,
            batch_tokens=self._batch_tokens,
            seed=self._seed,
            on_progress=self._reporter("generate_until"),
        )

    def apply_chat_template(self, chat_history: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The text of a chat, up to the answer, or up to where the answer's first words end.

        A template that takes no system message gets none, as by lm-eval.
        """
        try:
            text = self._render(chat_history, add_generation_prompt)
        except ValueError:
            others = [message for message in chat_history if message["role"] != "system"]
            if len(others) == len(chat_history):
                raise
            text = self._render(others, add_generation_prompt)
            self.dropped_system = True
        self._rendered.add(text)
        return text

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.loaded.chat.template(tools=False).text if chat_template else None

    @property
    def tokenizer_name(self) -> str:
        return self.loaded.tokenizer.path.replace("/", "__")

    @property
    def eot_token_id(self) -> int | None:
        return self.loaded.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self.prefix

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        special = self._takes_special(string) if add_special_tokens is None else add_special_tokens
        return self.loaded.tokenizer.encode(string, special=special)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], TokenIds, TokenIds]], **_: object
    ) -> list[tuple[float, bool]]:
        return self._scores("loglikelihood", [(context, continuation) for _, context, continuation in requests])

    # -- how it is done ------------------------------------------------------------------------------------------------
    def _scores(self, kind: str, pairs: Sequence[tuple[TokenIds, TokenIds]]) -> list[tuple[float, bool]]:
        scores = score(
            self.loaded.transformer,
            pairs,
            max_length=self.max_length,
            batch_tokens=self._batch_tokens,
            on_progress=self._reporter(kind),
        )
        return [(one.logprob, one.is_greedy) for one in scores]

    def _reporter(self, kind: str) -> Callable[[int, int], None] | None:
        told = self._on_progress
        return None if told is None else lambda done, total: told(kind, done, total)

    def _pairs(self, texts: Sequence[tuple[str, str]]) -> list[tuple[TokenIds, TokenIds]]:
        """Ids of contexts, and what both together have behind as many: theirs, also where a token crosses the edge."""
        contexts: list[_Text] = []
        wholes: list[_Text] = []
        for context, continuation in texts:
            special = bool(context) and self._takes_special(context)
            contexts.append(_Text(context.rstrip(), special))  # a blank is part of the next word's token
            wholes.append(_Text(context + continuation, special))
        encoded = zip(self._encode(contexts), self._encode(wholes), strict=True)
        pairs = [self._pair(context, whole) for context, whole in encoded]
        for (_, ids), (context, continuation) in zip(pairs, texts, strict=True):
            if not ids:
                raise ValueError(
                    f"{continuation!r} has no token of its own behind {context[-40:]!r}; nothing is scored"
                )
        return pairs

    def _pair(self, context: list[int], whole: list[int]) -> tuple[TokenIds, TokenIds]:
        if context:
            return context, whole[len(context) :]
        begins = whole[:1] == [self.prefix]  # the text has one of its own
        return (whole[:1], whole[1:]) if begins else ([self.prefix], whole)

    def _encode(self, texts: Sequence[_Text]) -> list[list[int]]:
        """Each different text once, on all threads."""
        ids: dict[_Text, list[int]] = {}
        for special in (True, False):
            some = [text for text in dict.fromkeys(texts) if text.special is special]
            encoded = self.loaded.tokenizer.encode_each([text.text for text in some], special=special)
            ids.update(zip(some, encoded, strict=True))
        return [ids[text] for text in texts]

    def _takes_special(self, text: str) -> bool:
        """True where the tokenizer is to add its tokens: to a text that holds none yet."""
        return text not in self._rendered and not (self._prefix_text and text.startswith(self._prefix_text))

    def _plain(self, texts: Iterable[str]) -> list[_Text]:
        return [_Text(text, self._takes_special(text)) for text in texts]

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        text = self.loaded.chat.template(tools=False).render(messages, generation_prompt=add_generation_prompt)
        return text if add_generation_prompt else _up_to(text, str(messages[-1]["content"]))


class _Text(NamedTuple):
    """special: with the tokens that the tokenizer adds."""

    text: str
    special: bool


def _up_to(text: str, content: str) -> str:
    """The text of a chat without what a template writes behind its last message."""
    words = content.strip()
    start = text.rfind(words)
    if start < 0:
        raise ValueError(f"the chat template does not write the last message as it is: {content!r}")
    with_blanks = content.lstrip()
    return text[: start + len(with_blanks if text.startswith(with_blanks, start) else words)]
