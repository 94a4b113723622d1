"""Updates that are added at once: the outputs and gradients of each by itself, and little kept for them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from launchyard.model.network.low_rank import Factors, add_updates, together


class Projection(nn.Module):
    """A frozen linear layer with an update, as an adapter makes it."""

    def __init__(self, out: int, r: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.base = nn.Linear(12, out, dtype=dtype).requires_grad_(False)
        self.a = nn.Parameter(torch.randn(r, 12))
        self.b = nn.Parameter(torch.randn(out, r))
        self.scale = 0.5 + out / 10

    def plain(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        return out

    def factors(self) -> Factors | None:
        return Factors(self.a, self.b, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(F.linear(x, self.a.to(x.dtype)), self.b.to(x.dtype))
        return self.plain(x) + low * self.scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_updates_together_are_each_by_itself(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    projections = [Projection(10, 3, dtype), nn.Linear(12, 5, dtype=dtype), Projection(6, 2, dtype)]
    factors = [tensor for part in projections if isinstance(part, Projection) for tensor in (part.a, part.b)]
    x = torch.randn(2, 7, 12, dtype=dtype, requires_grad=True)
    weights = [torch.randn(2, 7, part.out_features if isinstance(part, nn.Linear) else len(part.b)).to(dtype)
               for part in projections]  # fmt: skip

    def gradients(outputs: tuple[Tensor, ...]) -> list[Tensor]:
        total = sum((out * weight).sum() for out, weight in zip(outputs, weights, strict=True))
        assert isinstance(total, Tensor)
        return [*(out.detach() for out in outputs), *torch.autograd.grad(total, [x, *factors])]

    expected = gradients(tuple(part(x) for part in projections))
    found = gradients(together(x, *projections))
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == theirs.dtype
        tolerance = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 0.3}
        torch.testing.assert_close(mine, theirs, **tolerance)


def test_the_input_is_kept_once_and_no_output() -> None:
    x = torch.randn(50, 12, requires_grad=True)
    factors = [(torch.randn(3, 12, requires_grad=True), torch.randn(40, 3, requires_grad=True)) for _ in range(3)]
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if len(tensor) == 50:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        add_updates(x, [torch.randn(50, 40) for _ in factors], [Factors(a, b, 2.0) for a, b in factors])
    assert sorted(kept.values()) == [4 * 50 * 3 * 3, 4 * 50 * 12]
