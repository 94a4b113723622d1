"""The text of what an engine writes, as far as it is sure. Knows no sampling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from launchyard.model.serve.engine import Engine
from launchyard.model.serve.requests import Ended, Generation, Request
from launchyard.model.text.tokenizer import StopStrings, Tokenizer


class GrowingText:
    """The text of one generation, given once: never half a character, and nothing from a stop string on.

    ended: None until the last piece has been given. `found_stop` says that its engine may cancel the generation.
    """

    def __init__(
        self, generation: Generation, tokenizer: Tokenizer, stops: Sequence[str] = (), *, skip_special: bool = True
    ) -> None:
        self.generation = generation
        self.n_new = 0  # tokens whose text was taken
        self.ended: Ended | None = None
        self._stops = StopStrings(stops)
        self._stream = tokenizer.stream(generation.request.prompt, skip_special=skip_special)

    @property
    def found_stop(self) -> bool:
        return self._stops.found

    def take(self) -> str:
        """The text that has become sure since the last call."""
        return "".join(self.take_pieces())

    def take_pieces(self) -> Iterator[str]:
        """The same token by token, with `n_new` the tokens up to each piece. `ended` is set behind the last one."""
        if self.ended is not None:
            return
        while self.n_new < len(self.generation.new) and not self.found_stop:
            token = self.generation.new[self.n_new]
            self.n_new += 1
            yield self._stops.add(self._stream.add(token))
        if not self.found_stop and self.generation.ended is not None:
            yield self._stops.add(self._stream.flush())
            yield "" if self.found_stop else self._stops.flush()
            self.ended = self.generation.ended
        if self.found_stop:
            self.ended = "stop"


def write_texts(
    engine: Engine, tokenizer: Tokenizer, asked: Sequence[tuple[Request, Sequence[str]]]
) -> Iterator[tuple[int, str, GrowingText]]:
    """Pieces of texts, as they are made: the number of its request, a piece, its text; an empty one when it has ended.

    asked: requests, each with its stop strings. ValueError, before the first piece, as of Engine.add.
    """
    texts = {}
    for number, (request, stops) in enumerate(asked):
        generation = engine.add(request)
        texts[generation] = number, GrowingText(generation, tokenizer, stops)
    return _pieces(engine, texts)


def _pieces(engine: Engine, texts: dict[Generation, tuple[int, GrowingText]]) -> Iterator[tuple[int, str, GrowingText]]:
    while not engine.is_idle:
        for generation in engine.step():
            number, text = texts[generation]
            for piece in text.take_pieces():
                if piece:
                    yield number, piece, text
            if text.found_stop:
                engine.cancel(generation)
            if text.ended is not None:
                yield number, "", text
