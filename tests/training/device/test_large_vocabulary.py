"""A vocabulary of 128k: logits of a slice of tokens are there, and never those of all."""

from __future__ import annotations

import pytest
import torch

from launchyard.model.memory import LOGIT_CHUNK_BYTES
from launchyard.training.loss import linear_cross_entropy
from launchyard.training.trial.live_bytes import LiveBytes

VOCAB, DIM = 128_256, 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_takes_slices(dtype: torch.dtype) -> None:
    """On tensors without memory, so that sizes are those of real batches; in the slices of a CPU."""
    peaks = []
    for tokens in (1024, 4096):
        hidden = torch.empty(tokens, DIM, device="meta", dtype=dtype, requires_grad=True)
        weight = torch.empty(VOCAB, DIM, device="meta", dtype=dtype, requires_grad=True)
        labels = torch.empty(tokens, device="meta", dtype=torch.int64)
        with LiveBytes() as live:
            linear_cross_entropy(hidden, weight, labels, scale=1 / tokens).backward()
        own = hidden.nbytes + 3 * 4 * weight.numel()  # the gradients of both, and a product on the way to the latter
        peaks.append(live.peak - own)
    assert max(peaks) < 4 * LOGIT_CHUNK_BYTES["cpu"] < 4 * 4096 * VOCAB // 4
