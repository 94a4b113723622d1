"""A hand-written training loop for pythia-14m: what a careful person gets from plain PyTorch in one file.

For benchmarks/train.py. Linear and cross entropy are done in slices, as the fastest hand-written loops do.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SEQ_LEN, VOCAB, DIM, LAYERS, HEADS = 512, 50304, 128, 6, 4


class ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, y):
        n, gx, gw, loss = len(x), torch.empty_like(x), torch.zeros_like(w), 0.0
        for i in range(0, n, 64):
            xc, yc = x[i : i + 64], y[i : i + 64]
            lp = (xc @ w.t()).log_softmax(-1)
            loss = loss - lp.gather(1, yc[:, None]).sum() / n
            g = lp.exp_()
            g[torch.arange(len(yc)), yc] -= 1
            gx[i : i + 64] = (g @ w) / n
            gw.addmm_(g.t(), xc / n)
        ctx.save_for_backward(gx, gw)
        return loss

    @staticmethod
    def backward(ctx, grad):
        return (*ctx.saved_tensors, None)


def rotate(z: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    r = cos.shape[-1]
    a, rest = z[..., :r], z[..., r:]
    turned = torch.cat((-a[..., r // 2 :], a[..., : r // 2]), -1)
    return torch.cat((a * cos + turned * sin, rest), -1)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.qkv, self.o = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.up, self.down = nn.Linear(DIM, 4 * DIM), nn.Linear(4 * DIM, DIM)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(self.n1(x)).view(b, t, 3, HEADS, DIM // HEADS).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        a = self.o(a.transpose(1, 2).reshape(b, t, DIM))
        return x + a + self.down(F.gelu(self.up(self.n2(x))))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Embedding(VOCAB, DIM), nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, VOCAB, bias=False)
        for p in self.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, ids: Tensor, y: Tensor) -> Tensor:
        x = self.embed(ids)
        r = DIM // HEADS // 4
        angle = torch.outer(torch.arange(SEQ_LEN), 1e4 ** -(torch.arange(0, r, 2) / r)).repeat(1, 2)
        for block in self.blocks:
            x = block(x, angle.cos(), angle.sin())
        return ChunkedLoss.apply(self.norm(x).view(-1, DIM), self.head.weight, y.reshape(-1))
