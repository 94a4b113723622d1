"""The one decoder-only transformer; families differ by their config alone. Knows no training, no files and no text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from launchyard.model.config import ModelConfig
from launchyard.model.network.attention import Attention, LatentAttentionLayer, Rotation, Span
from launchyard.model.network.documents import Documents
from launchyard.model.network.kv_cache import BlockCache, Cache
from launchyard.model.network.linear import Embedding, Linear, OpaqueLinear
from launchyard.model.network.mlp import MLP, MixtureOfExperts
from launchyard.model.network.norms import make_norm
from launchyard.model.network.positions import Rotations, causal_mask, far_gain, needs_mask


@dataclass(frozen=True)
class Projection:
    """From hidden states to logits: weight (padded_vocab_size, dim), and what some families have besides."""

    weight: Tensor
    bias: Tensor | None = None  # (padded_vocab_size,)
    softcap: float | None = None  # logits are bounded by c tanh(x / c)
    opaque: OpaqueLinear | None = None  # instead of weight, which has no numbers then, and bias

    def __call__(self, hidden: Tensor) -> Tensor:
        logits = F.linear(hidden, self.weight, self.bias) if self.opaque is None else self.opaque(hidden)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


Head = Callable[[Tensor, Projection], Tensor]


@dataclass(frozen=True)
class Places:
    """What one layer is told of where its tokens stand; see Attention.forward."""

    turn: Rotation | None
    mask: Tensor | None
    far: Tensor | None


class Block(nn.Module):
    """(B, T, dim) in and out. Knows no other block, so that it can be compiled, recomputed or sharded alone."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        before = config.norm_place in ("pre", "sandwich")
        behind = config.norm_place != "pre"
        self.norms_sum = config.norm_place == "sum"
        self.parallel_residual = config.parallel_residual
        self.residual_scale = config.residual_scale
        self.attention_norm = make_norm(config) if before else None
        latent = config.latent_attention
        self.attention = Attention(config, layer) if latent is None else LatentAttentionLayer(config, latent)
        self.attention_out_norm = make_norm(config) if behind else None
        self.mlp_norm = make_norm(config) if before and not config.shared_norm else None
        moe = config.moe if config.has_experts(layer) else None
        self.mlp = MLP(config) if moe is None else MixtureOfExperts(config, moe)
        self.mlp_out_norm = make_norm(config) if behind else None

    def forward(
        self,
        x: Tensor,
        turn: Rotation | None,
        mask: Tensor | None,
        far: Tensor | None,
        cache: BlockCache | None = None,
        documents: Documents | None = None,
    ) -> Tensor:
        norm = self.attention_norm  # a module looks such a name up in three places, at each token of each layer
        normed = x if norm is None else norm(x)
        attended = self.attention(normed, turn, mask, far, cache, documents)
        if self.parallel_residual:
            norm = self.mlp_norm
            again = normed if norm is None else norm(x)
            return x + self._scaled(attended) + self._scaled(self.mlp(again, documents))
        x = self._added(x, attended, self.attention_out_norm)
        norm = self.mlp_norm
        return self._added(x, self.mlp(x if norm is None else norm(x), documents), self.mlp_out_norm)

    def _added(self, x: Tensor, made: Tensor, norm: nn.Module | None) -> Tensor:
        if norm is None:
            return x + self._scaled(made)
        return norm(x + self._scaled(made)) if self.norms_sum else x + self._scaled(norm(made))

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.residual_scale is None else x * self.residual_scale


class Transformer(nn.Module):
    """Holds parameters only, no buffers: after `to_empty` nothing but weights is to be filled."""

    span: Span | None = None  # tokens are a stretch of longer sequences; without documents and cache

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Embedding(config.padded_vocab_size, config.embed_dim)
        narrow = config.embed_proj_dim
        self.embed_proj = None if narrow is None else Linear(narrow, config.dim, bias=False)
        learned = config.positions == "learned"
        self.positions = Embedding(config.max_seq_len + config.learned_offset, config.dim) if learned else None
        self.embed_norm = make_norm(config) if config.embed_norm else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = make_norm(config) if config.has_final_norm else None
        self.head_proj = None if narrow is None else Linear(config.dim, narrow, bias=False)
        self.lm_head = Linear(config.embed_dim, config.padded_vocab_size, bias=config.head_bias)
        if config.tie_embeddings:
            self.lm_head.weight = self.embed.weight
        self._kinds = [(config.sees(layer), config.rotates(layer)) for layer in range(config.n_layers)]
        self._rotations = Rotations(config)

    def forward(
        self,
        tokens: Tensor,
        *,
        head: Head | None = None,
        cache: Cache | None = None,
        documents: Documents | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """tokens (B, T) int64 -> logits (B, T, padded_vocab_size), or the result of `head(hidden, projection)`.

        `head` gets hidden (B, T, dim) inside this forward, where a sharded weight is whole; so a loss need not have all
        logits in memory. With a cache the tokens follow those in it. documents: of the one row that tokens then are.
        at (K,) int64: places in the flat tokens; what comes behind the blocks is computed there alone, (K, …).
        ValueError for positions beyond position_limit: rotations that were never trained give noise.
        """
        n_new = tokens.shape[1]
        if documents is not None and tokens.shape != (1, documents.n_tokens):
            raise ValueError(f"tokens are {tuple(tokens.shape)}; documents of {documents.n_tokens} tokens are one row")
        if cache is not None:
            cache.begin(n_new)
        if documents is not None:
            positions = documents.positions(tokens.device)
        else:
            positions = self._first_positions(n_new, tokens.device) if cache is None else cache.positions
        places = self.places(n_new, positions, cache, documents)
        x = self._embedded(tokens, positions)
        caches = [None] * len(places) if cache is None else cache.blocks
        for block, told, own in zip(self.blocks, places, caches, strict=True):
            x = block(x, told.turn, told.mask, told.far, own, documents)
        if cache is not None:
            cache.end(n_new)
        x = x if at is None else x.flatten(0, 1).index_select(0, at.to(x.device))
        x = x if self.norm is None else self.norm(x)
        x = x if self.head_proj is None else self.head_proj(x)
        if self.config.logit_scale is not None:  # the head is linear: the same as scaled logits
            x = x * self.config.logit_scale
        if head is not None:
            return head(x, self.projection())
        logits = self.lm_head(x)
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @property
    def dtype(self) -> torch.dtype:
        """Of hidden states, and of the keys and values of a cache."""
        return self.embed.out_dtype or self.embed.weight.dtype

    def projection(self) -> Projection:
        cap = self.config.logit_softcap
        lm_head: nn.Module = self.lm_head
        if isinstance(lm_head, OpaqueLinear):
            none = torch.empty(lm_head.out_features, lm_head.in_features, device="meta")
            return Projection(none, softcap=cap, opaque=lm_head)
        return Projection(self.lm_head.whole_weight(), self.lm_head.whole_bias(), cap)

    def agreed(self, numbers: list[int], *, at_most: int) -> list[int]:
        """What all that compute this model together go on with, where each has drawn so many numbers at most."""
        return numbers

    def rotations(self, length: int, *, longest: int) -> list[tuple[Tensor, Tensor]]:
        """Cosines and sines of so many positions, as layers take them of a cache that may come to `longest` tokens."""
        home = self.embed.weight.device
        windowed = {sees != "full" for sees, rotates in self._kinds if rotates}
        return [self._rotations.upto(length, home, windowed=own, longest=longest) for own in sorted(windowed)]

    def new_cache(self, *, batch_size: int, length: int, rewindable: bool = False) -> Cache:
        """For sequences that this model writes: of its type, each block's on the device of the block."""
        home = self.embed.weight.device
        return Cache(
            self.config,
            batch_size=batch_size,
            length=length,
            dtype=self.dtype,
            device=home,
            block_devices=[next((own.device for own in block.parameters()), home) for block in self.blocks],
            rewindable=rewindable,
        )

    def _embedded(self, tokens: Tensor, positions: Tensor) -> Tensor:
        x = self.embed(tokens)
        if self.config.embed_scale is not None:
            x = x * torch.tensor(self.config.embed_scale, dtype=x.dtype)  # rounded to its type, as Gemma does
        if self.embed_proj is not None:
            x = self.embed_proj(x)
        if self.positions is not None:
            x = x + self.positions(positions + self.config.learned_offset)
        return x if self.embed_norm is None else self.embed_norm(x)

    def places(
        self,
        n_new: int,
        positions: Tensor | None = None,
        cache: Cache | None = None,
        documents: Documents | None = None,
    ) -> list[Places]:
        """What each layer is told of `n_new` tokens; layers of a kind share it. positions: default: the first ones.

        With documents the mask is of the longest: that of another is its upper left corner.
        """
        config = self.config
        if positions is None:
            positions = self._first_positions(n_new, self.embed.weight.device)
        stop = n_new if cache is None else cache.start + n_new
        stop = stop if self.span is None else self.span.count * n_new
        stop = stop if documents is None else documents.longest
        if config.position_limit is not None and stop > config.position_limit:
            raise ValueError(f"{stop} positions are asked for; this model has max_seq_len {config.max_seq_len}")
        kinds = set(self._kinds)
        if documents is not None:
            made = {kind: self._of_documents(*kind, documents, positions) for kind in kinds}
        else:
            made = {kind: self._of_kind(*kind, n_new, stop, positions, cache) for kind in kinds}
        return [made[kind] for kind in self._kinds]

    def _first_positions(self, n_new: int, device: torch.device) -> Tensor:
        first = 0 if self.span is None else self.span.rank * n_new
        return torch.arange(first, first + n_new, device=device)

    def _of_documents(self, sees: str, rotates: bool, documents: Documents, positions: Tensor) -> Places:
        turn = self._rotations.of_documents(documents, positions.device, windowed=sees != "full") if rotates else None
        mask = None
        if needs_mask(self.config, sees, documents.longest):
            first = torch.arange(documents.longest, device=positions.device)
            mask = causal_mask(self.config, sees, first, first)
        return Places(turn, mask, far_gain(self.config, positions) if not rotates else None)

    def _of_kind(
        self, sees: str, rotates: bool, n_new: int, stop: int, positions: Tensor, cache: Cache | None
    ) -> Places:
        config = self.config
        first = cache is None or cache.start == 0
        turn = None
        if rotates:
            # Keys in a cache keep their turn, so it is by the frequencies of the longest that it may come to.
            longest = None if cache is None else cache.longest
            cos, sin = self._rotations.upto(stop, positions.device, windowed=sees != "full", longest=longest)
            at = slice(stop - n_new, stop) if positions.ndim == 1 and self.span is None else positions
            turn = cos[at], sin[at]
        if self.span is not None:
            mask = causal_mask(config, sees, positions, torch.arange(stop, device=positions.device))
        elif first:
            mask = causal_mask(config, sees, positions, positions) if needs_mask(config, sees, n_new) else None
        else:
            assert cache is not None
            mask = cache.mask(sees, n_new)
        return Places(turn, mask, far_gain(config, positions) if not rotates else None)
