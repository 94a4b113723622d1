"""Steps on a device that has no numbers in fp64, as Apple's GPUs: shapes stand for one. Nobody has run a real one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from launchyard.model.network import transfers
from launchyard.model.serve.sampling import Sampling, draw_tokens
from launchyard.model.zoo import config_from_hf
from launchyard.training import build
from launchyard.training.batching import BatchSizes
from launchyard.training.data.reader import Batch, Reader
from launchyard.training.objectives.next_token import NextToken
from launchyard.training.objectives.with_bytes import WithBytes
from launchyard.training.validation.held_out import validation_means
from tests.support.architectures import ARCHITECTURES
from tests.training.device.test_no_host_sync import OPTIMIZERS, make_recipe, two_steps, whole

__all__ = ["whole"]
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.to.dtype_layout}


class WithoutFp64(TorchDispatchMode):
    """Refuses such tensors of shapes alone. What is sent to the host arrives as ones."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in COPIES and args[0].is_meta and _is_host(kwargs):
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        made = func(*args, **kwargs)
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.is_meta and tensor.dtype == torch.float64:
                raise TypeError(f"{func} makes numbers in fp64")
        return made


def _is_host(kwargs: Mapping[str, Any]) -> bool:
    device = kwargs.get("device")
    return device is not None and torch.device(device).type == "cpu"


@pytest.fixture(autouse=True)
def shapes_lack_fp64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "WITHOUT_FP64", {"meta"})


def every_step() -> Iterator[AbstractContextManager[Any]]:
    yield WithoutFp64()
    yield WithoutFp64()


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, "adafactor"])
def test_an_update(optimizer: str) -> None:
    two_steps("mistral", "meta", precision="fp32", optimizer=optimizer, watches=every_step)


@pytest.mark.parametrize("kind", ["documents", "lora"])
def test_an_update_in_bf16(kind: str) -> None:
    two_steps("mistral", "meta", kind=kind, watches=every_step)


def test_a_validation() -> None:
    """With the bytes of each label beside the loss."""
    shapes = torch.device("meta")
    config = config_from_hf(ARCHITECTURES["mistral"])
    model = build.build_model(config, make_recipe(config, "fp32", "adamw"), world_size=1, device=shapes, fill=False)
    objective = WithBytes(NextToken(), torch.ones(config.vocab_size, dtype=torch.int64, device=shapes))
    sizes = BatchSizes(world_size=1, global_batch_size=4, micro_batch_size=4, grad_accum_steps=1)
    with WithoutFp64():
        means = validation_means(
            model, FourRows(), objective, sizes=sizes, data_rank=0, device=shapes, max_batches=None
        )
    assert means is not None and len(means) == 2


class FourRows(Reader):
    """A reader of one global batch."""

    n_samples = 4

    def batch(self, step: int, first_slot: int = 0, n: int | None = None) -> Batch:
        tokens = torch.zeros(4, 24, dtype=torch.int64)
        return Batch(tokens, tokens, 96, 0, None)


def test_drawing_a_token() -> None:
    logits = torch.ones(2, 50, device="meta")
    with WithoutFp64():
        drawn = draw_tokens(logits, Sampling(temperature=0.8, top_k=5, top_p=0.9, min_p=0.1), [0.5, 0.5])
    assert len(drawn) == 2 and all(0 <= token < 50 for token in drawn)
