"""The engine in a thread of its own, and the jobs that the event loop gives it. Knows no route and no JSON.

The thread alone touches the engine. It hands pieces of text to the loop once a step, and frees the slots of a job that
was cancelled before its next step.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from launchyard.model.loaded import LoadedModel
from launchyard.model.serve.engine import Engine
from launchyard.model.serve.http.errors import ApiError, busy, unavailable
from launchyard.model.serve.http.measures import Measures
from launchyard.model.serve.requests import Ended, Generation, Request, TokenOdds
from launchyard.model.serve.text import GrowingText

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerLimits:
    """n_slots: texts that grow at once. n_waiting: texts that may wait for a slot. seconds: that a job may take."""

    n_slots: int = 8
    context_length: int | None = None
    n_waiting: int = 64
    seconds: float = 600.0


@dataclass(frozen=True)
class NewText:
    """More of text `number` of a job: what is sure of the text, and the tokens that were made since the last piece."""

    number: int
    text: str
    tokens: tuple[int, ...]
    odds: tuple[TokenOdds, ...]
    ended: Ended | None


@dataclass(eq=False)
class TextJob:
    """Texts that one client waits for. `pieces` is their only queue."""

    requests: Sequence[Request]
    stops: Sequence[str]
    skip_special: bool
    deadline: float
    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[NewText | ApiError] = field(default_factory=asyncio.Queue)
    generations: list[Generation] = field(default_factory=list)  # once the engine has them
    began: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    open: int = 0  # texts that have not ended

    async def pieces(self) -> AsyncIterator[NewText]:
        """Until every text has ended. ApiError if the engine fails, or if it takes too long."""
        left = len(self.requests)
        while left:
            try:
                async with asyncio.timeout(self.deadline - time.monotonic()):
                    piece = await self.queue.get()
            except TimeoutError:
                raise ApiError(504, "the answer took longer than the server allows", code="timeout") from None
            if isinstance(piece, ApiError):
                raise piece
            left -= piece.ended is not None
            yield piece


@dataclass(eq=False)
class _Growing:
    job: TextJob
    number: int
    text: GrowingText
    n_given: int = 0  # tokens whose odds were handed over
    first: float | None = None
    last: float = 0.0


class Service:
    """Start it before the first job; `close` waits for what runs, up to some seconds."""

    def __init__(self, model: LoadedModel, limits: ServerLimits, measures: Measures) -> None:
        self.model = model
        self.limits = limits
        self.measures = measures
        self.engine = self._new_engine()
        self._growing: dict[Generation, _Growing] = {}
        self._changed = threading.Condition()
        self._coming: deque[TextJob] = deque()
        self._leaving: deque[TextJob] = deque()
        self._next_model: LoadedModel | None = None
        self._n_open = 0  # texts of jobs that have not ended
        self._is_closing = False  # what runs may end
        self._is_over = False
        self._seconds_of_one = 1.0  # of a text, lately
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def _new_engine(self) -> Engine:
        limits = self.limits
        model = self.model
        return Engine(model.transformer, n_slots=limits.n_slots, length=limits.context_length, graphs=model.graphs)

    def start(self) -> None:
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and not self._is_closing

    @property
    def n_open(self) -> int:
        return self._n_open

    # -- asked by the event loop --------------------------------------------------------------------------------------
    def submit(self, requests: Sequence[Request], *, stops: Sequence[str] = (), skip_special: bool = True) -> TextJob:
        """ApiError if there is no room, or for a request that the engine refuses."""
        for request in requests:
            try:
                self.engine.check(request)
            except ValueError as error:
                raise ApiError(400, str(error)) from error
        limits = self.limits
        most = limits.n_slots + limits.n_waiting
        if len(requests) > most:
            raise ApiError(400, f"{len(requests)} texts are asked for at once; this server takes {most}", param="n")
        deadline = time.monotonic() + limits.seconds
        job = TextJob(requests, stops, skip_special, deadline, asyncio.get_running_loop(), open=len(requests))
        with self._changed:
            if self._is_closing:
                raise _stopping()
            if self._n_open + len(requests) > most:
                self.measures.refused.inc()
                raise busy(self._retry_after())
            self._n_open += len(requests)
            self._coming.append(job)
            self._changed.notify()
        return job

    def _retry_after(self) -> int:
        rounds = self._n_open / self.limits.n_slots
        return max(1, min(60, round(rounds * self._seconds_of_one)))

    def cancel(self, job: TextJob) -> None:
        """Nobody waits for it any more. Does nothing for a job that has ended."""
        with self._changed:
            self._leaving.append(job)
            self._changed.notify()

    def replace(self, model: LoadedModel) -> None:
        """Serve this model from now on; texts that have begun are written to their end by the one before it."""
        with self._changed:
            self._next_model = model
            self._changed.notify()

    def close(self, seconds: float) -> None:
        """Refuse new jobs; end those that have not ended in so many seconds."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(seconds)
        with self._changed:
            self._is_over = True
            self._changed.notify()
        self._thread.join(5)

    # -- the thread ---------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        while self._take_orders():
            try:
                self._step()
            except Exception as error:  # the next requests are to be served whatever befell these
                _LOG.exception("the engine failed; its texts are ended with an error, and it begins anew")
                self._end_all(ApiError(500, f"the engine failed: {type(error).__name__}", code="engine_failed"))
                self.engine = self._new_engine()
        self._end_all(_stopping())

    def _take_orders(self) -> bool:
        """False at the end."""
        if self._is_over:
            return False
        with self._changed:
            while self.engine.is_idle and not (self._coming or self._leaving or self._next_model or self._is_closing):
                self._changed.wait()
            leaving = list(self._leaving)
            self._leaving.clear()
            coming = list(self._coming) if self._next_model is None else []
            if coming:
                self._coming.clear()
        for job in leaving:
            self._drop(job)
        for job in coming:
            if not job.cancelled:
                try:
                    self._begin(job)
                except ValueError as error:  # of a model that came after the job
                    self._tell(job, ApiError(400, str(error)))
                    self._drop(job)
        if self._next_model is not None and self.engine.is_idle:
            self._change_model()
        return not (self._is_closing and self.engine.is_idle and not self._coming)

    def _change_model(self) -> None:
        with self._changed:
            assert self._next_model is not None
            self.model = self._next_model
            self._next_model = None
        self.engine = self._new_engine()

    def _begin(self, job: TextJob) -> None:
        for number, request in enumerate(job.requests):
            generation = self.engine.add(request)
            job.generations.append(generation)
            text = GrowingText(generation, self.model.tokenizer, job.stops, skip_special=job.skip_special)
            self._growing[generation] = _Growing(job, number, text)

    def _drop(self, job: TextJob) -> None:
        job.cancelled = True
        ended = job.open
        for generation in job.generations:
            if self._growing.pop(generation, None) is not None:
                self.engine.cancel(generation)
                self.measures.count_end("abort")
        job.open = 0
        with self._changed:
            if job in self._coming:
                self._coming.remove(job)
            self._n_open -= ended

    def _step(self) -> None:
        if self.engine.is_idle:
            return
        before = self.engine.counts.prompt, self.engine.counts.reused, self.engine.counts.new
        advanced = self.engine.step()
        now = time.monotonic()
        self.measures.count_step(self.engine, before)
        made = [self._piece(self._growing[generation], now) for generation in advanced if generation in self._growing]
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[TextJob, NewText]]] = {}
        for job, piece in made:
            if piece.text or piece.tokens or piece.ended is not None:
                by_loop.setdefault(job.loop, []).append((job, piece))
        for loop, pieces in by_loop.items():
            _call(loop, pieces)

    def _piece(self, growing: _Growing, now: float) -> tuple[TextJob, NewText]:
        generation = growing.text.generation
        text = growing.text.take()
        if growing.text.found_stop:
            self.engine.cancel(generation)
        tokens = tuple(generation.new[growing.n_given : growing.text.n_new])
        odds = tuple(generation.odds[growing.n_given : growing.text.n_new])
        growing.n_given = growing.text.n_new
        self._measure(growing, len(tokens), now)
        if growing.text.ended is not None:
            self._finish(growing, now)
        return growing.job, NewText(growing.number, text, tokens, odds, growing.text.ended)

    def _measure(self, growing: _Growing, n_tokens: int, now: float) -> None:
        if not n_tokens:
            return
        if growing.first is None:
            growing.first = now
            self.measures.first_token.observe(now - growing.job.began)
        else:
            self.measures.between_tokens.observe((now - growing.last) / n_tokens)
        growing.last = now

    def _finish(self, growing: _Growing, now: float) -> None:
        del self._growing[growing.text.generation]
        growing.job.open -= 1
        seconds = now - growing.job.began
        self._seconds_of_one += 0.1 * (seconds - self._seconds_of_one)
        with self._changed:
            self._n_open -= 1
        self.measures.count_end("stop" if growing.text.ended == "stop" else "length")
        self.measures.whole.observe(seconds)

    def _end_all(self, error: ApiError) -> None:
        """Of the jobs that have begun; at the end of the others, too."""
        with self._changed:
            coming = list(self._coming) if self._is_closing else []
        for job in [*dict.fromkeys(growing.job for growing in self._growing.values()), *coming]:
            self._tell(job, error)
            self._drop(job)

    def _tell(self, job: TextJob, error: ApiError) -> None:
        with contextlib.suppress(RuntimeError):  # of a loop that is closed
            job.loop.call_soon_threadsafe(job.queue.put_nowait, error)


def _stopping() -> ApiError:
    return unavailable("the server is stopping", "stopping")


def _call(loop: asyncio.AbstractEventLoop, pieces: list[tuple[TextJob, NewText]]) -> None:
    def hand_over() -> None:
        for job, piece in pieces:
            job.queue.put_nowait(piece)

    try:
        loop.call_soon_threadsafe(hand_over)
    except RuntimeError:  # the loop is closed: nobody listens
        _LOG.info("%d pieces were made for clients that are gone", len(pieces))
