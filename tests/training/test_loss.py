"""The chunked loss is the plain loss, with its gradients, for any chunk and mask."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from launchyard.training import loss
from launchyard.training.spec import IGNORE_INDEX


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 90),
    vocab=st.integers(2, 70),
    masked=st.floats(0, 1),
    scale=st.floats(0.01, 3),
    seed=st.integers(0, 10**6),
)
def test_equal_to_the_plain_loss(rows: int, vocab: int, masked: float, scale: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 8, generator=rng, dtype=torch.float64).float().requires_grad_()
    weight = torch.randn(vocab, 8, generator=rng).requires_grad_()
    labels = torch.randint(0, vocab, (rows,), generator=rng)
    labels[torch.rand(rows, generator=rng) < masked] = IGNORE_INDEX
    want = cross_entropy(hidden @ weight.t(), labels, ignore_index=IGNORE_INDEX, reduction="sum") * scale
    want_grads = torch.autograd.grad(want, [hidden, weight])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(loss.CHUNK_BYTES, "cpu", 1)  # 16 rows a chunk
        got = loss.linear_cross_entropy(hidden, weight, labels, scale=scale)
        grads = torch.autograd.grad(got, [hidden, weight])
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)
    for mine, theirs in zip(grads, want_grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_what_is_masked_does_not_matter() -> None:
    hidden, weight = torch.randn(6, 4), torch.randn(9, 4)
    labels = torch.tensor([1, IGNORE_INDEX, 3, IGNORE_INDEX, 5, 8])
    other = hidden.clone()
    other[[1, 3]] = 7.0
    first = loss.linear_cross_entropy(hidden, weight, labels)
    assert torch.equal(first, loss.linear_cross_entropy(other, weight, labels))
    with torch.no_grad():
        assert torch.allclose(first, loss.linear_cross_entropy(hidden, weight, labels))


def test_bf16_gradients_are_gathered_in_fp32() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(300, 16).bfloat16().requires_grad_()
    weight = torch.randn(50, 16).bfloat16().requires_grad_()
    labels = torch.randint(0, 50, (300,))
    loss.linear_cross_entropy(hidden, weight, labels, scale=1 / 300).backward()
    exact_weight = weight.detach().float().requires_grad_()
    cross_entropy(hidden.detach().float() @ exact_weight.t(), labels).backward()
    assert weight.grad is not None and exact_weight.grad is not None
    assert weight.grad.dtype == torch.bfloat16
    assert torch.allclose(weight.grad.float(), exact_weight.grad, rtol=0.05, atol=2e-3)
