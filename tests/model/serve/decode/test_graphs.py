"""An engine that plays recorded steps writes the texts that one without them writes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from launchyard.model.config import ModelConfig, RopeScaling
from launchyard.model.network.kv_cache import Cache
from launchyard.model.network.transformer import Transformer
from launchyard.model.serve import engine as engines
from launchyard.model.serve.decode import graphs
from launchyard.model.serve.decode.choose import new_decoding
from launchyard.model.serve.decode.graphs import GraphDecoding, spare_rows
from launchyard.model.serve.drafts import PromptLookup
from launchyard.model.serve.engine import Engine
from launchyard.model.serve.requests import Generation, Request
from launchyard.model.serve.sampling import Sampling
from launchyard.model.zoo import config_from_hf
from tests.model.serve.decode.recording import OperationRecorder
from tests.support.architectures import ARCHITECTURES
from tests.support.tiny_models import CONFIGS, llama, random_model, random_tokens

KINDS = {name: config_from_hf(ARCHITECTURES[name]) for name in ("mistral", "gemma3", "llama4", "bloom", "mixtral")}
each_config = pytest.mark.parametrize("config", [*CONFIGS.values(), *KINDS.values()], ids=[*CONFIGS, *KINDS])
DYNAMIC = RopeScaling(kind="dynamic", factor=4.0, original_max_seq_len=16)


def request(config: ModelConfig, n: int, length: int, new: int, **options: Any) -> Request:
    sampling = Sampling(temperature=options.pop("temperature", 0.0))
    return Request(random_tokens(config, length, seed=n).tolist(), new, sampling, seed=n, **options)


def graphed(model: Transformer, recorders: list[OperationRecorder], *, fails: bool = False, **options: Any) -> Engine:
    """An engine that records on a CPU; its recorders are put into the list."""

    def new_recorder() -> OperationRecorder:
        recorders.append(FailingRecorder() if fails else OperationRecorder())
        return recorders[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "new_decoding", partial(new_decoding, new_recorder=new_recorder))
        return Engine(model, **options)


class FailingRecorder(OperationRecorder):
    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        try:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand more")
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


def written(engine: Engine, requests: list[Request]) -> list[Generation]:
    """The texts; a new one comes at every third step."""
    texts = []
    while not engine.is_idle or len(texts) < len(requests):
        if engine.counts.steps % 3 == 0 and len(texts) < len(requests):
            texts.append(engine.add(requests[len(texts)]))
        engine.step()
    return texts


def compare(model: Transformer, requests: list[Request], **options: Any) -> tuple[Engine, list[OperationRecorder]]:
    recorders: list[OperationRecorder] = []
    engine = graphed(model, recorders, **options)
    found = [text.new for text in written(engine, requests)]
    assert found == [text.new for text in written(Engine(model, **options), requests)]
    return engine, recorders


@each_config
def test_texts_that_come_and_go(config: ModelConfig) -> None:
    shapes = [(9, 20), (1, 12), (4, 30), (15, 3), (6, 9), (2, 14)]
    requests = [
        request(config, n, *shape, temperature=float(n % 2), stop_ids=frozenset(range(4)))
        for n, shape in enumerate(shapes)
    ]
    _, (recorder,) = compare(random_model(config), requests, n_slots=3, length=48)
    assert recorder.n_played > 8 and recorder.n_recorded <= 3


def test_more_rows_than_texts_and_caches_that_grow() -> None:
    """Of 20 slots a step has 12, 16 or 20 rows; texts grow past 64, 96 and 128 positions."""
    config = llama(max_seq_len=200)
    requests = [request(config, n, 1 + 5 * n % 60, 90) for n in range(20)]
    engine, (recorder,) = compare(random_model(config), requests, n_slots=20, length=170)
    assert isinstance(engine.decoding, GraphDecoding)
    sizes = {(n_rows, length) for _, n_rows, length in engine.decoding._sizes}
    assert {n_rows for n_rows, _ in sizes} == {*range(1, 9), 12, 16, 20}
    assert {length for _, length in sizes} == {64, 96, 128, 170}
    assert recorder.n_played > 90


def test_a_text_that_has_ended_keeps_its_cache_beside_others() -> None:
    """Its row is among those of a step of twelve rows, ten of which are texts; it goes on where it was."""
    config = llama(max_seq_len=128)
    model = random_model(config)
    engine = graphed(model, [], n_slots=12, length=120)
    alone = written(Engine(model, n_slots=1, length=120), [request(config, 0, 20, 40)])[0].new
    first = engine.add(request(config, 0, 20, 8))
    others = [engine.add(request(config, n, 3, 60)) for n in range(1, 11)]
    while not all(len(text.new) > 30 for text in others):
        engine.step()
    again = engine.add(Request([*first.request.prompt, *first.new], 30, Sampling(0.0)))
    while again.ended is None:
        engine.step()
    assert again.n_reused == 27
    assert [*first.new, *again.new] == alone[:38]


def test_rotations_of_another_length_are_other_graphs() -> None:
    config = llama(rope_scaling=DYNAMIC, max_seq_len=64)
    requests = [request(config, n, 5, new) for n, new in enumerate((9, 9, 40, 50, 9, 40))]
    engine, (recorder,) = compare(random_model(config), requests, n_slots=2, length=64)
    assert isinstance(engine.decoding, GraphDecoding)
    assert len({regime for regime, _, _ in engine.decoding._sizes}) == 3
    assert recorder.n_played > 50


def test_guesses_and_texts_that_slide() -> None:
    config = llama()
    guessing = [request(config, n, 9, 40, drafter=PromptLookup() if n % 2 else None) for n in range(4)]
    _, (recorder,) = compare(random_model(config), guessing, n_slots=2, rewindable=True)
    assert recorder.n_played
    sliding = [request(config, n, 9, 80, slides=True) for n in range(3)]
    _, (recorder,) = compare(random_model(config), sliding, n_slots=2, length=40)
    assert recorder.n_played > 50


@torch.inference_mode()
def move(cache: Cache) -> None:
    for block in cache.blocks:
        moved = block.whole_k.clone()
        block.whole_k.fill_(torch.nan)
        block.whole_k = moved
        block.select(*cache._selected)


def test_a_cache_that_moves_is_recorded_anew() -> None:
    config = llama()
    model = random_model(config)
    recorders: list[OperationRecorder] = []
    engine = graphed(model, recorders, n_slots=1)
    text = engine.add(request(config, 0, 5, 40))
    while text.ended is None:
        if len(text.new) == 20:
            move(engine._cache)
        engine.step()
    assert text.new == written(Engine(model, n_slots=1), [request(config, 0, 5, 40)])[0].new
    assert [recorder.n_recorded for recorder in recorders] == [1, 1]


def test_graphs_are_not_hoarded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 2)
    config = llama(max_seq_len=200)
    requests = [request(config, n, 3, 20 * (n + 1)) for n in range(4)]
    engine, _ = compare(random_model(config), requests, n_slots=4)
    assert isinstance(engine.decoding, GraphDecoding)
    assert engine.decoding.n_graphs <= 2


def test_what_cannot_be_recorded_is_computed_and_said() -> None:
    config = llama()
    model = random_model(config)
    requests = [request(config, n, 5, 20) for n in range(3)]
    engine = graphed(model, [], n_slots=2, fails=True)
    assert engine.decoding.words == "by CUDA graphs"
    with pytest.warns(UserWarning, match="without CUDA graphs: CUDA error: operation not permitted"):
        found = [text.new for text in written(engine, requests)]
    assert engine.decoding.words.startswith("without CUDA graphs: CUDA error")
    assert found == [text.new for text in written(Engine(model, n_slots=2), requests)]
    insists = graphed(model, [], n_slots=2, fails=True, graphs=True)
    with pytest.raises(RuntimeError, match="a previous error"):
        written(insists, requests)


def test_there_is_a_spare_row_where_rows_are_rounded() -> None:
    assert [spare_rows(n) for n in (1, 8, 9, 64)] == [0, 0, 1, 1]
