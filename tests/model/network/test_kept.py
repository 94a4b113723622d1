"""What finetuning makes again instead of keeping: the same bits in the forward, the same gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from launchyard.model.network.attention import Scores
from launchyard.model.network.documents import Documents
from launchyard.model.network.mlp import gate
from launchyard.model.network.norms import make_norm
from launchyard.model.network.remade import inner
from tests.support.tiny_models import llama

DTYPES = [torch.float32, torch.bfloat16]


def gradients(made: Callable[[], Tensor], *inputs: Tensor) -> tuple[Tensor, list[Tensor], int]:
    """Output, gradients, and the bytes that were kept, weights of 64 numbers and inputs left out."""
    kept: dict[int, int] = {}
    given = {tensor.untyped_storage().data_ptr() for tensor in inputs}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.numel() > 64 and tensor.untyped_storage().data_ptr() not in given:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = made()
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return out.detach(), list(torch.autograd.grad((out * weight).float().sum(), inputs)), sum(kept.values())


def compare(found: tuple[Tensor, list[Tensor], int], plain: tuple[Tensor, list[Tensor], int]) -> None:
    assert torch.equal(found[0], plain[0])
    for mine, theirs in zip(found[1], plain[1], strict=True):
        tolerance = 1e-6 if mine.dtype == torch.float32 else 2e-2
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)
    assert found[2] < plain[2] / 2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_frozen_norm_keeps_its_input_alone(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = make_norm(llama(dim=64)).to(dtype)
    nn.init.normal_(norm.weight)
    x = torch.randn(3, 50, 64, dtype=dtype, requires_grad=True)
    plain = gradients(lambda: norm(x), x)
    norm.requires_grad_(False)
    compare(gradients(lambda: norm(x), x), plain)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("made_by", ["norm", "gate"])
def test_an_update_does_not_keep_what_can_be_made_again(made_by: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = make_norm(llama(dim=64)).to(dtype)
    nn.init.normal_(norm.weight)
    norm.requires_grad_(False)
    x, up = (torch.randn(3, 50, 64, dtype=dtype, requires_grad=True) for _ in range(2))
    a = torch.randn(1, 64, dtype=dtype, requires_grad=True)
    inputs = [x, a] if made_by == "norm" else [x, up, a]

    def made() -> Tensor:
        return norm(x) if made_by == "norm" else gate("silu", x, up, again=True)

    plain = gradients(lambda: F.linear(made(), a), *inputs)
    compare(gradients(lambda: inner(made(), a), *inputs), plain)
    again = gradients(lambda: checkpoint(lambda: inner(made(), a), use_reentrant=False), *inputs)
    for mine, theirs in zip(again[1], plain[1], strict=True):
        assert torch.equal(mine, theirs)


def test_what_heads_saw_of_documents_is_kept_once() -> None:
    torch.manual_seed(0)
    scores = Scores(llama(dim=64), scale=None)
    documents = Documents((20, 30), row_length=50)
    q, k, v = (torch.randn(1, 2, 50, 32, requires_grad=True) for _ in range(3))
    a = torch.randn(1, 64, requires_grad=True)

    def seen() -> Tensor:
        return scores.by_document(q, k, v, None, None, documents)

    plain = gradients(lambda: F.linear(seen(), a), q, k, v, a)
    found = gradients(lambda: inner(seen(), a), q, k, v, a)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found[1], plain[1], strict=True))
    assert plain[2] - found[2] == 50 * 64 * 4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gate_keeps_its_inputs_alone(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gated, up = (torch.randn(3, 50, 64, dtype=dtype, requires_grad=True) for _ in range(2))
    plain = gradients(lambda: gate("silu", gated, up), gated, up)
    compare(gradients(lambda: gate("silu", gated, up, again=True), gated, up), plain)
