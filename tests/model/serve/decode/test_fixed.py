"""A step of fixed sizes computes what a step of the engine does, on the same memory, without a word to the host."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from launchyard.model.config import ModelConfig
from launchyard.model.network.kv_cache import Cache
from launchyard.model.network.transformer import Transformer
from launchyard.model.serve.decode.eager import EagerDecoding
from launchyard.model.serve.decode.fixed import EXACT_ROWS, FixedStep, rounded_length, rounded_rows
from launchyard.model.zoo import config_from_hf
from tests.model.serve.decode.recording import OperationRecorder, tensors
from tests.support.architectures import ARCHITECTURES, each_architecture
from tests.support.tiny_models import CONFIGS, random_model, random_tokens

LENGTH = 40  # past every window
SPARE = 5
LENGTHS = [9, 1, 22, 22]


def read(model: Transformer, lengths: list[int], *, rewindable: bool = False) -> Cache:
    """A cache with a prompt in each row, and one more row."""
    cache = model.new_cache(batch_size=SPARE + 1, length=LENGTH, rewindable=rewindable)
    tokens = random_tokens(model.config, len(lengths), LENGTH)
    for row, length in enumerate(lengths):
        cache.select(row, [0])
        model(tokens[row : row + 1, :length], cache=cache)
    return cache


def contents(cache: Cache) -> list[Tensor]:
    return [whole[:SPARE].clone() for block in cache.blocks for whole in (block.whole_k, block.whole_v)]


@torch.inference_mode()
def compare(config: ModelConfig, *, n_rows: int, rewindable: bool = False) -> None:
    """Steps of both kinds, over two caches with the same prompts."""
    model = random_model(config)
    new = random_tokens(config, len(LENGTHS), 12, seed=1)
    plain = EagerDecoding(model, read(model, LENGTHS, rewindable=rewindable))
    cache = read(model, LENGTHS, rewindable=rewindable)
    out = torch.empty(n_rows, config.vocab_size)
    step = FixedStep(model, cache, n_rows=n_rows, length=LENGTH, spare_row=SPARE)
    for n in range(new.shape[1]):
        tokens = new[:, n].tolist()
        lengths = [length + n for length in LENGTHS]
        step.fill(tokens, lengths)
        step.run(out)
        torch.testing.assert_close(out[: len(tokens)], plain.step(tokens, lengths), atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(contents(cache), contents(plain.cache), atol=2e-4, rtol=1e-4)


@each_architecture
def test_logits_and_caches_are_those_of_a_plain_step(name: str) -> None:
    compare(config_from_hf(ARCHITECTURES[name]), n_rows=len(LENGTHS))


@pytest.mark.parametrize("name", ["mistral", "llama4", "gpt-oss", "bloom", "gemma3", "cohere2"])
@pytest.mark.parametrize("rewindable", [False, True])
def test_rows_that_are_none_change_nothing(name: str, rewindable: bool) -> None:
    """The fifth row of the cache holds a text that is not written on: it stays as it is."""
    compare(config_from_hf(ARCHITECTURES[name]), n_rows=SPARE, rewindable=rewindable)


@each_architecture
@torch.inference_mode()
def test_a_graph_may_hold_it(name: str) -> None:
    """Recorded at one place and played at others: nothing of the place is frozen, and nothing waits for the device.

    Inside the product of experts it does on a CPU, and on older GPUs.
    """
    config = config_from_hf(ARCHITECTURES[name])
    model = random_model(config)
    caches = [read(model, LENGTHS) for _ in range(2)]
    plain = EagerDecoding(model, caches[0])
    step = FixedStep(model, caches[1], n_rows=SPARE, length=LENGTH, spare_row=SPARE)
    out = torch.empty(SPARE, config.vocab_size)
    recorder = OperationRecorder()
    lengths = list(LENGTHS)
    tokens = [1, 2, 3, 4]
    step.fill(tokens, lengths)
    recorder.warm(lambda: step.run(out))  # makes tables
    play = recorder.record(lambda: step.run(out))
    addresses = [tensor.data_ptr() for tensor in (step.inputs, out, *(block.whole_k for block in caches[1].blocks))]
    for n in range(14):
        step.fill(tokens, lengths)
        play()
        expected = plain.step(tokens, lengths)
        torch.testing.assert_close(out[: len(tokens)], expected, atol=2e-4, rtol=1e-4)
        tokens = expected.argmax(-1).tolist()
        lengths = [length + 1 for length in lengths]
        if n == 8:  # a text has ended
            del tokens[-1], lengths[-1]
    again = [tensor.data_ptr() for tensor in (step.inputs, out, *(block.whole_k for block in caches[1].blocks))]
    assert addresses == again


class OnMeta(TorchDispatchMode):
    """Refuses tensors elsewhere, but for single numbers, which kernels are told."""

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        out = func(*args, **kwargs or {})
        assert {tensor.device.type for tensor in tensors((args, kwargs, out)) if tensor.ndim} <= {"meta"}, func
        return out


@each_architecture
@torch.inference_mode()
def test_all_of_it_is_on_the_device(name: str) -> None:
    """torch's meta device, of shapes without values, stands for a GPU; in bf16, as experts need there."""
    config = config_from_hf(ARCHITECTURES[name])
    model = random_model(config).to("meta", torch.bfloat16)
    cache = model.new_cache(batch_size=SPARE + 1, length=LENGTH)
    step = FixedStep(model, cache, n_rows=4, length=LENGTH, spare_row=SPARE)
    out = torch.empty(4, config.vocab_size, device="meta")
    step.run(out)  # makes tables
    with OnMeta():
        step.run(out)


@torch.inference_mode()
def test_tables_that_others_replace_stay() -> None:
    """A longer text of the same model makes longer tables, and a graph goes on to read the old ones."""
    model = random_model(CONFIGS["llama"])
    step = FixedStep(model, read(model, LENGTHS), n_rows=4, length=LENGTH, spare_row=SPARE)
    step.run(torch.empty(4, model.config.vocab_size))
    table = weakref.ref(model._rotations._made[False][0])
    model._rotations._made.clear()
    gc.collect()
    assert table() is not None
    del step
    gc.collect()
    assert table() is None


@pytest.mark.parametrize("most", [1, 7, 8, 9, 40, 512])
def test_sizes_are_few_and_large_enough(most: int) -> None:
    rows = [rounded_rows(n, most) for n in range(1, most + 1)]
    assert all(n <= size <= most for n, size in enumerate(rows, 1))
    assert rows[:EXACT_ROWS] == list(range(1, min(most, EXACT_ROWS) + 1))
    assert len(set(rows)) <= EXACT_ROWS + 2 * (most.bit_length())
    longest = 64 * most
    lengths = [rounded_length(n, longest) for n in range(1, longest + 1)]
    assert all(n <= size <= max(64, n * 3 // 2) for n, size in enumerate(lengths, 1))
    assert lengths == sorted(lengths) and lengths[-1] == longest


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "neox"])
@torch.inference_mode()
def test_the_compiler_takes_it_whole(name: str) -> None:
    model = random_model(CONFIGS[name])
    step = FixedStep(model, read(model, LENGTHS), n_rows=4, length=LENGTH, spare_row=SPARE)
    out = torch.empty(4, model.config.vocab_size)
    step.fill([1, 2, 3, 4], LENGTHS)
    step.run(out)
    expected = out.clone()
    torch.compile(step.run, fullgraph=True, backend="eager")(out.zero_())
    torch.testing.assert_close(out, expected)
