"""NoPE GPT for transformers: a decoder without positions, by AutoModelForCausalLM with trust_remote_code=True.

Order comes from the causal mask alone (Kazemnejad et al. 2023), so a sequence may be longer than those of the training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import CausalLMOutputWithPast

DEFAULTS = {
    "vocab_size": 50257,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "max_position_embeddings": 1024,  # of the training; nothing ends there
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "use_cache": True,
}


class NoPEGPTConfig(PretrainedConfig):
    model_type = "nope_gpt"

    def __init__(self, **keys: object) -> None:
        for key, default in DEFAULTS.items():
            setattr(self, key, keys.pop(key, default))
        super().__init__(**{"tie_word_embeddings": True, **keys})


class NoPEGPTAttention(nn.Module):
    def __init__(self, config: NoPEGPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, mask: Tensor, cache: Cache | None) -> Tensor:
        heads = (-1, self.head_dim)
        q = self.q_proj(x).unflatten(-1, heads).transpose(1, 2)  # (B, H, T, head_dim)
        k = self.k_proj(x).unflatten(-1, heads).transpose(1, 2)
        v = self.v_proj(x).unflatten(-1, heads).transpose(1, 2)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(out.transpose(1, 2).flatten(-2))


class NoPEGPTMLP(nn.Module):
    def __init__(self, config: NoPEGPTConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.up_proj(x)))


class NoPEGPTBlock(nn.Module):
    def __init__(self, config: NoPEGPTConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = NoPEGPTAttention(config, layer)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = NoPEGPTMLP(config)

    def forward(self, x: Tensor, mask: Tensor, cache: Cache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class NoPEGPTDecoder(nn.Module):
    def __init__(self, config: NoPEGPTConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(NoPEGPTBlock(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, x: Tensor, mask: Tensor, cache: Cache | None) -> Tensor:
        for layer in self.layers:
            x = layer(x, mask, cache)
        return self.norm(x)


class NoPEGPTForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = NoPEGPTConfig
    base_model_prefix = "model"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _no_split_modules = ("NoPEGPTBlock",)
    _supports_sdpa = True

    def __init__(self, config: NoPEGPTConfig) -> None:
        super().__init__(config)
        self.model = NoPEGPTDecoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **others: object,
    ) -> CausalLMOutputWithPast:
        """input_ids (B, T) behind those of past_key_values -> logits (B, T, V), or of the last `logits_to_keep`."""
        x = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if past_key_values is None and (self.config.use_cache if use_cache is None else use_cache):
            past_key_values = DynamicCache()
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        hidden = self.model(x, seen(x, past, attention_mask), past_key_values)
        logits = self.lm_head(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)


def seen(x: Tensor, past: int, attention_mask: Tensor | None) -> Tensor:
    """(1 or B, 1, T, past + T) bool: what each query sees. attention_mask (B, past + T): 0 for padding."""
    length = x.shape[1]
    rows = torch.arange(past, past + length, device=x.device)[:, None]
    columns = torch.arange(past + length, device=x.device)
    causal = (columns <= rows)[None, None]
    if attention_mask is None:
        return causal
    present = attention_mask[:, None, None, : past + length].bool()
    return causal & present | (columns == rows)  # padding sees itself, so that no softmax is empty
