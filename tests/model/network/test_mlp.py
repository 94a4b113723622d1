"""Experts: all rows in one product, against a loop over tokens; and no shape that depends on what a router says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from launchyard.model.config import MoE
from launchyard.model.network.mlp import ExpertProjection, MixtureOfExperts, gate, imbalance
from tests.support.tiny_models import llama

KINDS: dict[str, dict[str, Any]] = {
    "softmax": {"normalize": True},
    "after-choice": {"score_after_choice": True, "bias": True, "scale": 1.5},
    "groups": {"score": "sigmoid", "choice_bias": True, "n_groups": 3, "top_groups": 2, "group_score": "top2"},
    "one-of-many": {"top_k": 1, "score": "sigmoid", "scale_input": True, "shared_ffn_dim": 20},
    "wide": {"wide_router": True},
    "gated": {"shared_ffn_dim": 20, "shared_gate": True},
}
each = pytest.mark.parametrize("kind", KINDS)


def made(kind: str) -> MixtureOfExperts:
    moe = MoE(**{"n_experts": 6, "top_k": 2, "ffn_dim": 24, **KINDS[kind]})
    module = MixtureOfExperts(llama(dim=16, moe=moe), moe)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data.normal_(generator=generator)
    return module


def one_by_one(module: MixtureOfExperts, x: Tensor) -> Tensor:
    scores, chosen = module.route(x)
    out = [
        sum((of_expert(module, row, weight, number) for weight, number in zip(weights, numbers, strict=True)), zero)
        for row, weights, numbers, zero in zip(x, scores, chosen.tolist(), torch.zeros_like(x), strict=True)
    ]
    mixed = torch.stack(out)
    if module.shared is None:
        return mixed
    return mixed + module.shared(x) * (1 if module.shared_gate is None else module.shared_gate(x).sigmoid())


def of_expert(module: MixtureOfExperts, row: Tensor, weight: Tensor, number: int) -> Tensor:
    before, behind = (weight, 1) if module.moe.scale_input else (1, weight)
    experts, x = module.experts, row * before
    gated, up = projected(experts.gate_proj, number, x), projected(experts.up_proj, number, x)
    return projected(experts.down_proj, number, gate("silu", gated, up)) * behind


def projected(part: ExpertProjection, number: int, x: Tensor) -> Tensor:
    return part.weight[number] @ x + (0 if part.bias is None else part.bias[number])


@each
@pytest.mark.parametrize("length", [7, 1])  # of one token most experts get no row
def test_the_same_as_token_by_token_forward_and_backward(kind: str, length: int) -> None:
    module = made(kind)
    x = torch.randn(length, 16, generator=torch.Generator().manual_seed(1))
    results = [f(x) for f in (module, lambda x: one_by_one(module, x))]
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    together, apart = (torch.autograd.grad(y.square().sum(), learned) for y in results)
    for ours, expected in zip(together, apart, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-3)


@each
def test_no_shape_depends_on_a_choice(kind: str) -> None:
    """So nothing waits for the device, and a compiler sees one graph."""
    module = made(kind).bfloat16()
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert module(torch.zeros(2, 5, 16, dtype=torch.bfloat16)).shape == (2, 5, 16)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks at every tensor's
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_they_do_the_same(dtype: torch.dtype) -> None:
    """fp32 cannot be one graph: torch's compiler has the product of experts for bf16 alone."""
    module, x = made("softmax").to(dtype), torch.ones(3, 16, dtype=dtype)
    expected = module(x)
    module.compile(backend="eager", fullgraph=dtype == torch.bfloat16)
    torch.testing.assert_close(module(x), expected)


def test_the_balance_of_a_sequence_is_that_of_transformers() -> None:
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits = torch.randn(3, 20, 6, generator=torch.Generator().manual_seed(0))
    shares = torch.softmax(logits, dim=-1)
    chosen = shares.topk(2, dim=-1).indices
    each = [load_balancing_loss_func((sequence,), num_experts=6, top_k=2) for sequence in logits]
    torch.testing.assert_close(imbalance(shares, chosen), torch.stack(each).sum())


@each
def test_balance_changes_no_value_but_trains_the_router(kind: str) -> None:
    module, x = made(kind), torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(3))
    plain = module(x)
    (before,) = torch.autograd.grad(plain.sum(), [module.router.weight])
    module.balance_weight = 0.25
    (after,) = torch.autograd.grad(module(x).sum(), [module.router.weight])
    logits = module._logits(x.flatten(0, 1))
    scores = logits.sigmoid() if module.moe.score == "sigmoid" else logits.softmax(-1)
    shares = (scores / scores.sum(-1, keepdim=True)).view(2, 9, -1)
    uneven = imbalance(shares, module.route(x.flatten(0, 1))[1].view(2, 9, -1))
    (added,) = torch.autograd.grad(0.25 * uneven, [module.router.weight])
    assert torch.equal(module(x), plain) and added.abs().max() > 0
    torch.testing.assert_close(after, before + added, atol=1e-5, rtol=1e-4)


def test_a_wide_router_does_not_round_its_scores() -> None:
    module, x = made("wide"), torch.randn(50, 16, generator=torch.Generator().manual_seed(2)).bfloat16()
    module.router.bfloat16()
    expected = torch.softmax(F.linear(x.float(), module.router.weight.float()), dim=-1).topk(2, dim=-1)
    scores, chosen = module.route(x)
    assert torch.equal(chosen, expected.indices) and torch.equal(scores, expected.values)


def test_widths_that_the_product_cannot_read_are_refused() -> None:
    with pytest.raises(ValueError, match=r"dim \(48\) and moe\.ffn_dim \(20\) must be multiples of 8"):
        llama(moe=MoE(n_experts=4, top_k=2, ffn_dim=20))
