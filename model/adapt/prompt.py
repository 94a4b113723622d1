"""Prompts of layers behind gates that begin at zero (LLaMA-Adapter, Zhang et al. 2023), and scales and biases of
projections (LLaMA-Adapter V2, Gao et al. 2023).

A prompt (N, dim) goes through the layer's own projections of keys and values, without positions; what each query sees
of it, under a softmax of its own, is added to what the query sees of the text, times tanh(gate) of its head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from launchyard.model.adapt.quantized import QuantizedLinear
from launchyard.model.network.attention import Attending, Attention, LatentAttentionLayer, by_token
from launchyard.model.network.documents import Documents
from launchyard.model.network.kv_cache import BlockCache
from launchyard.model.network.linear import Linear

KeysAndValues = tuple[Tensor, Tensor]  # each (1, H_kv, N, …)


class Prompted(Attending):
    """What a prompt adds to attention of any kind; `super()` is that kind."""

    prompt: nn.Parameter
    gate: nn.Parameter
    turns: bool  # the layer rotates its queries and keys
    off = False  # see without_updates of model/adapt/lora.py

    def attended(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        cache: BlockCache | None,
        documents: Documents | None,
    ) -> Tensor:
        out = super().attended(q, k, v, mask, cache, documents)
        if self.off:
            return out
        k, v = (part.expand(len(q), -1, -1, -1) for part in self._kept(cache, q.dtype))
        gate = torch.tanh(self.gate)[:, None, None].to(out.dtype)
        return out + by_token(gate * self.scores(q, k, v, None, None, causal=False))

    def _kept(self, cache: BlockCache | None, dtype: torch.dtype) -> KeysAndValues:
        """Made once for the texts of a cache."""
        if cache is None:
            return self.of_prompt(self.prompt.to(dtype)[None])
        if cache.of_prompt is None:
            cache.of_prompt = self.of_prompt(self.prompt.to(dtype)[None])
        return cache.of_prompt

    def of_prompt(self, prompt: Tensor) -> KeysAndValues:
        """Keys and values (1, H_kv, n_tokens, …) of a prompt (1, n_tokens, dim), as such an attention makes them."""
        raise NotImplementedError


class PromptedAttention(Prompted, Attention):
    def of_prompt(self, prompt: Tensor) -> KeysAndValues:
        _, k, v = self._projected(prompt)
        if self.qk_norm == "unit" and self.turns:
            k = F.rms_norm(k, (self.head_dim,), eps=self.norm_eps)
        return k.transpose(1, 2), v.transpose(1, 2)


class PromptedLatentAttention(Prompted, LatentAttentionLayer):
    def of_prompt(self, prompt: Tensor) -> KeysAndValues:
        k_nope, k_rope, v = self._keys_and_values(prompt)
        return self._whole_keys(k_nope, k_rope), v.transpose(1, 2)


_WITH_PROMPT: dict[type[nn.Module], type[Prompted]] = {
    Attention: PromptedAttention,
    LatentAttentionLayer: PromptedLatentAttention,
}


def add_prompt(base: nn.Module, *, n_tokens: int, dim: int, n_heads: int, turns: bool) -> None:
    """Give an attention a prompt, unfilled, on the default device. Its own parameters stay as they are."""
    base.__class__ = _WITH_PROMPT[type(base)]
    assert isinstance(base, Prompted)
    base.turns = turns
    base.prompt = nn.Parameter(torch.empty(n_tokens, dim))
    base.gate = nn.Parameter(torch.empty(n_heads))


class Scaled(nn.Module):
    """(output + out_bias) * out_scale of a projection of any kind; `super()` is that kind."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    out_scale: nn.Parameter
    out_bias: nn.Parameter
    out_features: int
    off = False

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = super().forward(input)
        if self.off:
            return out
        return (out + self.out_bias.to(out.dtype)) * self.out_scale.to(out.dtype)


class ScaledLinear(Scaled, Linear):
    def whole_weight(self) -> Tensor:
        return self.weight if self.off else (self.weight * self.out_scale[:, None]).to(self.weight.dtype)

    def whole_bias(self) -> Tensor | None:
        if self.off:
            return self.bias
        bias = self.out_bias if self.bias is None else self.bias + self.out_bias
        return (bias * self.out_scale).to(self.weight.dtype)


class ScaledQuantizedLinear(Scaled, QuantizedLinear):
    """A projection whose base is codes."""


_WITH_SCALE: dict[type[nn.Module], type[Scaled]] = {Linear: ScaledLinear, QuantizedLinear: ScaledQuantizedLinear}


def add_scale(base: nn.Module) -> None:
    """Give a projection a scale and a bias, unfilled, on the default device."""
    base.__class__ = _WITH_SCALE[type(base)]
    assert isinstance(base, Scaled)
    base.out_scale = nn.Parameter(torch.empty(base.out_features))
    base.out_bias = nn.Parameter(torch.empty(base.out_features))
