"""What a MODEL says of itself, file by file, and where its files contradict one another. Light; reads headers only."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from launchyard.model.config import ModelConfig
from launchyard.model.cost import n_params
from launchyard.model.layout import TensorShape, is_norm, parameter_shapes
from launchyard.model.text.companions import (
    CHAT_TEMPLATE,
    TOKENIZER,
    TOKENIZER_CONFIG,
    is_licence,
    is_template,
    json_companion,
)
from launchyard.model.text.special_tokens import GUESSED, SpecialTokens
from launchyard.model.text.templates import DEFAULT, configured_templates, read_templates
from launchyard.model.weights.adapters.facts import AdapterFacts, peft_facts, trained_facts
from launchyard.model.weights.headers import bins_of, open_headers
from launchyard.model.weights.source import HF_CONFIG, Source, find_source, read_config, read_hf_config
from launchyard.model.weights.tie import table_keys
from launchyard.model.zoo import BY_TYPE, config_from_hf, is_of_images, rules
from launchyard.model.zoo.rules import check_keys, rule_keys, their_shapes
from launchyard.model.zoo.text_part import text_keys
from launchyard.storage.safetensors import dtype_code
from launchyard.storage.shards import read_manifest

# Tokens that end an assistant's turn in public chat templates.
END_OF_TURN = (
    "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|eot|>", "<|END_OF_TURN_TOKEN|>", "<|end_of_text|>",
    "<|return|>", "<｜end▁of▁sentence｜>", "[|endofturn|]", "<|endoftext|>", "</s>",
)  # fmt: skip
_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}
_NO_LIMIT = 1e9  # transformers writes a model_max_length of 1e30 where there is none


@dataclass(frozen=True)
class HeaderEntry:
    """A tensor as a header has it."""

    dtype: str
    shape: TensorShape
    n_bytes: int


@dataclass(frozen=True)
class ModelFacts:
    """`parameters` by part; `dtypes`: element type -> tensors and bytes; `ends`: id -> token and the files that say so.

    `contradictions` are sentences. With an adapter all else is of the base, but for what a checkpoint stores.
    """

    model: str
    kind: str
    family: str
    hf_class: str
    n_params: int
    n_params_active: int
    parameters: dict[str, int]
    dtypes: dict[str, dict[str, int]]
    n_bytes: int
    max_seq_len: int
    rope_scaling: dict[str, object] | None
    rows: int
    tokenizer_ids: int | None
    ends: dict[int, dict[str, object]]
    bos: int | None
    pad: int | None
    templates: dict[str, dict[str, str]]
    licences: dict[str, str]
    quantisation: str | None
    adapter: AdapterFacts | None
    contradictions: list[str] = field(default_factory=list)


def model_facts(source: str) -> ModelFacts:
    """The facts of any MODEL. FileNotFoundError, ValueError or CorruptError if it is none, or cannot be read at all."""
    found = find_source(source)
    return _Reading(found, read_config(source)).facts()


def parameters_by_part(config: ModelConfig) -> dict[str, int]:
    """Part -> its number of parameters, of the parts that a model has; a tied table counts as embedding."""
    parts = dict.fromkeys(("embedding", "attention", "mlp", "experts", "norms", "head"), 0)
    for name, shape in parameter_shapes(config).items():
        parts[_part(name)] += math.prod(shape)
    return {part: count for part, count in parts.items() if count}


def _n_params_active(config: ModelConfig) -> int:
    """All but the experts that a token does not take."""
    if config.moe is None:
        return n_params(config)
    experts = parameters_by_part(config).get("experts", 0)
    return n_params(config) - experts + experts * config.moe.top_k // config.moe.n_experts


def _part(name: str) -> str:
    if is_norm(name) or "norm" in name.rpartition(".")[0].rpartition(".")[2]:
        return "norms"
    if name.startswith("lm_head."):
        return "head"
    if not name.startswith("blocks."):
        return "embedding"
    if ".experts." in name:
        return "experts"
    return "attention" if ".attention." in name else "mlp"


@dataclass
class _Reading:
    """One look at a model."""

    source: Source
    config: ModelConfig

    def facts(self) -> ModelFacts:
        config = self.config
        tokens = self.tokens
        return ModelFacts(
            model=self.source.folder,
            kind=self.source.kind,
            family=config.family,
            hf_class=BY_TYPE[config.family].hf_class,
            n_params=n_params(config),
            n_params_active=_n_params_active(config),
            parameters=parameters_by_part(config),
            dtypes=self._dtypes(),
            n_bytes=sum(stored.n_bytes for stored in self.tensors.values()),
            max_seq_len=config.max_seq_len,
            rope_scaling=config.rope_scaling.model_dump(exclude_defaults=True) if config.rope_scaling else None,
            rows=config.padded_vocab_size,
            tokenizer_ids=tokens.n_ids,
            ends={end: {"token": tokens.token_of(end), "said_by": said} for end, said in tokens.ends().items()},
            bos=tokens.id_of("bos"),
            pad=tokens.id_of("pad"),
            templates=self._templates(),
            licences={name: _first_line(raw.decode(errors="replace")) for name, raw in self._licences()},
            quantisation=self._quantisation,
            adapter=self._adapter(),
            contradictions=[*self._of_tensors(), *self._of_ids(), *self._of_text(), *self._of_length()],
        )

    @cached_property
    def companions(self) -> dict[str, bytes]:
        """As they lie there."""
        return self.source.stored_companions()

    @cached_property
    def hf(self) -> dict[str, object]:
        """config.json, of a folder that has one."""
        return read_hf_config(self.source.folder) if self.source.kind == "hf" else {}

    @cached_property
    def tokens(self) -> SpecialTokens:
        return SpecialTokens(self.companions, self.hf)

    @cached_property
    def tensors(self) -> dict[str, HeaderEntry]:
        """All that is stored, by the names of the files; of a checkpoint the parameters alone."""
        if self.source.kind == "hf":
            headers = open_headers(self.source.folder)
            entries = ((key, file.entries[key]) for key, file in headers.items())
            found = {key: HeaderEntry(entry.dtype, entry.shape, entry.length) for key, entry in entries}
            return found or _of_bins(self.source.folder)
        if self.source.kind == "gguf":
            from launchyard.model.weights.gguf_header import GgufHeader

            file = GgufHeader(self.source.folder)
            return {
                name: HeaderEntry(file.kind(name), file.shape(name), int(file.tensors[name].n_bytes))
                for name in file.names()
            }
        found = {}
        for name, tensor in read_manifest(self.source.folder).tensors.items():
            if name.startswith("model."):
                n_bytes = 4 if tensor.dtype == "F32" else 2
                found[name] = HeaderEntry(tensor.dtype, tensor.shape, math.prod(tensor.shape) * n_bytes)
        return found

    @cached_property
    def _quantisation(self) -> str | None:
        method = self.hf.get("quantization_config")
        return str(method.get("quant_method", "of unknown method")) if isinstance(method, dict) else None

    def _adapter(self) -> AdapterFacts | None:
        if self.source.adapter is not None:
            return peft_facts(self.source.adapter, read_config(self.source.folder))
        return trained_facts(self.source.folder) if self.source.kind == "checkpoint" else None

    def _dtypes(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        for stored in self.tensors.values():
            entry = found.setdefault(stored.dtype, {"tensors": 0, "bytes": 0})
            entry["tensors"] += 1
            entry["bytes"] += stored.n_bytes
        return dict(sorted(found.items(), key=lambda item: -item[1]["bytes"]))

    def _licences(self) -> Iterator[tuple[str, bytes]]:
        return ((name, raw) for name, raw in self.companions.items() if is_licence(name))

    def _templates(self) -> dict[str, dict[str, str]]:
        files = {name for name in self.companions if is_template(name)}
        found = {}
        for name, text in read_templates(self.companions).items():
            file = CHAT_TEMPLATE if name == DEFAULT else f"additional_chat_templates/{name}.jinja"
            found[name] = {"file": file if file in files else TOKENIZER_CONFIG, "begins": _first_line(text)}
        return found

    # -- contradictions ----------------------------------------------------------------------------------------------
    def _of_tensors(self) -> Iterator[str]:
        if self.source.kind != "hf" or not self.tensors or self._quantisation:
            return
        said = self.hf.get("dtype") or self.hf.get("torch_dtype")
        main = next(iter(self._dtypes()))
        if isinstance(said, str) and _DTYPES.get(said, main) != main:
            yield f"{HF_CONFIG} says {said}, the weights are {main}"
        if config_from_hf(self.hf).tie_embeddings and not self.config.tie_embeddings:
            yield f"{HF_CONFIG} ties head and table, but {' and '.join(table_keys(self.config))} are stored and differ"
        yield from self._misfits()

    def _misfits(self) -> Iterator[str]:
        """Keys and shapes that are not those of the config."""
        names = text_keys(self.tensors) if is_of_images(self.hf) else {key: key for key in self.tensors}
        family = rules(self.config)
        found = {key: self.tensors[names[name]] for key, name in rule_keys(family, names).items()}
        table, head = table_keys(self.config)
        if self.config.tie_embeddings and head in found:
            found.setdefault(table, found[head])
        try:
            check_keys(family, self.config, found, where=self.source.folder)
        except ValueError as error:
            yield str(error).removeprefix(f"{self.source.folder}: ")
        for key, shape in their_shapes(family, self.config).items():
            if key in found and found[key].shape != shape:
                yield f"{key} has shape {list(found[key].shape)}; {HF_CONFIG} makes it {list(shape)}"

    def _of_ids(self) -> Iterator[str]:
        rows = self.config.padded_vocab_size
        n_ids = self.tokens.n_ids
        if n_ids is not None and n_ids > rows:
            yield f"{TOKENIZER} gives {n_ids:,} ids, the model has {rows:,} rows"
        for role in ("eos", "bos", "pad"):
            said = self.tokens.said(role)
            for name, ids in said.items():
                for number in ids:
                    if number >= (rows if n_ids is None else min(rows, n_ids)):
                        yield f"{name}: {role}_token_id {number} is the id of no token"
            yield from _disagreement(role, said)

    def _of_text(self) -> Iterator[str]:
        configured = configured_templates(self.companions)
        ends = {self.tokens.token_of(end) for end in self.tokens.ends()}
        for name, text in read_templates(self.companions).items():
            if configured.get(name, text) != text:
                yield f"the chat template {name} of {TOKENIZER_CONFIG} is not that of its own file, which counts"
            written = [token for token in END_OF_TURN if token in text and token in self.tokens.vocabulary]
            if written and "eos_token" not in text and not ends & set(written):
                yield f"the chat template {name} ends turns with {' or '.join(written)}, which ends no text"

    def _of_length(self) -> Iterator[str]:
        scaling = self.config.rope_scaling
        length = self.config.max_seq_len
        if scaling is not None and scaling.kind == "yarn" and scaling.original_max_seq_len:
            reach = round(scaling.original_max_seq_len * scaling.factor)
            if reach != length:
                yield f"the rope scaling reaches {reach:,} tokens, the context length is {length:,}"
        limit = json_companion(self.companions, TOKENIZER_CONFIG).get("model_max_length")
        if isinstance(limit, int | float) and length < limit < _NO_LIMIT:
            yield f"{TOKENIZER_CONFIG}: model_max_length is {int(limit):,}, the context length is {length:,}"


def _of_bins(folder: str) -> dict[str, HeaderEntry]:
    """Of a folder whose weights are .bin files; empty of one without."""
    if not bins_of(folder):
        return {}
    from launchyard.model.weights.stored.pickled import open_bins

    tensors = {key: tensor for key, (_, tensor) in open_bins(folder).items()}
    return {key: HeaderEntry(dtype_code(one.dtype), tuple(one.shape), one.nbytes) for key, one in tensors.items()}


def _disagreement(role: str, said: Mapping[str, list[int]]) -> Iterator[str]:
    """Files of which none knows all that another says. A list beside one of its ids is no contradiction."""
    every = {number for ids in said.values() for number in ids}
    if GUESSED not in said and said and not any(set(ids) == every for ids in said.values()):
        yield f"{role}: {'; '.join(f'{name} says {_listed(ids)}' for name, ids in said.items())}"


def _listed(ids: list[int]) -> str:
    return ", ".join(map(str, ids))


def _first_line(text: str) -> str:
    lines = (line.strip() for line in text.splitlines())
    return next((line for line in lines if line), "")[:100]
