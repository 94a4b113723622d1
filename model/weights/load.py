"""`load(MODEL)`: an HF folder, a checkpoint or a run, anywhere, as a model that writes text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Protocol, TypedDict, TypeGuard

import torch
import xxhash
from torch import Tensor, nn

from launchyard.model.adapt.attach import attach
from launchyard.model.adapt.codes import rounded
from launchyard.model.adapt.forms import Form, scales_name
from launchyard.model.adapt.merge import Added, MatrixMerge, TokenMerge
from launchyard.model.adapt.targets import updates
from launchyard.model.adapt.tokens import tie_head
from launchyard.model.adapter import LOW_RANK, PROMPTED, Adapter
from launchyard.model.config import ModelConfig
from launchyard.model.layout import AVERAGE, adapter_shapes, parameter_shapes, stays_fp32
from launchyard.model.loaded import LoadedModel, special_tokens
from launchyard.model.network.init import initial_rows
from launchyard.model.network.transformer import Transformer
from launchyard.model.parallel.holding import Holding, LayersOverDevices, ShareOfRank, WholeModel
from launchyard.model.parallel.ranks import Ranks, connect_ranks, device_of_rank
from launchyard.model.serve.matrices.choose import form_on
from launchyard.model.serve.matrices.place import Placing, is_served_head
from launchyard.model.text.companions import TOKENIZER
from launchyard.model.text.tokenizer import Tokenizer
from launchyard.model.weights.adapters.peft import peft_merges
from launchyard.model.weights.gguf import GGUFWeights
from launchyard.model.weights.hf import HFWeights
from launchyard.model.weights.resize import is_of_vocabulary, mean_row
from launchyard.model.weights.source import Source, check_is_weights, find_source
from launchyard.storage.errors import CorruptError
from launchyard.storage.safetensors import torch_dtype
from launchyard.storage.shards import read_manifest, read_tensor

PREFIX = "model."  # of parameters among the tensors of a checkpoint
_TABLE = "embed.weight"
_HEAD = "lm_head.weight"
# Called while weights are read or written, with the bytes that went and those of all.
OnProgress = Callable[[int, int], None]


class Weights(Protocol):
    """Tensors on the CPU by our names, or some rows of them."""

    @property
    def config(self) -> ModelConfig: ...

    def keys(self) -> list[str]: ...

    def dtype(self, key: str) -> torch.dtype:
        """Of what `get` returns. Reads no tensor."""
        ...

    def get(self, key: str) -> Tensor: ...

    def rows(self, wanted: Mapping[str, range]) -> Iterator[tuple[str, Tensor]]:
        """These places of the first axis of these tensors, each tensor once; reads no more than they need."""
        ...


class CheckpointWeights:
    """The parameters of a checkpoint. Every byte that is given was checked against its hash; else CorruptError.

    Those that did not train are not in it: they come from where its run began, rounded as they were in training.
    averaged: their moving averages instead; ValueError without them.
    """

    def __init__(self, folder: str, *, averaged: bool = False) -> None:
        self.folder = folder
        self._averaged = averaged
        self._manifest = read_manifest(folder)
        if averaged and not any(key.endswith(f".{AVERAGE}") for key in self._manifest.tensors):
            raise ValueError(f"{folder} has no averaged weights: its run had no train.ema_decay")
        self.config = ModelConfig.model_validate(self._manifest.model)
        self.adapter = Adapter.model_validate(self._manifest.base.get("adapter", {}))
        self.frozen = frozenset(self._manifest.frozen)
        self._frozen_dtype = torch_dtype(self._manifest.base.get("frozen_dtype", "F32"))  # of training
        for key, shape in parameter_shapes(self.config).items():
            if key in self.frozen:
                continue
            entry = self._manifest.tensors.get(self._key(key))
            if entry is None or entry.shape != shape:
                found = "is missing" if entry is None else f"has shape {list(entry.shape)} instead of {list(shape)}"
                raise CorruptError(f"{folder}: {self._key(key)} {found}")

    def _key(self, name: str) -> str:
        return f"optimizer.{name}.{AVERAGE}" if self._averaged else PREFIX + name

    def keys(self) -> list[str]:
        return list(parameter_shapes(self.config))

    @property
    def form(self) -> Form | None:
        """Of the matrices of the base that the run trained over; None: plain."""
        return self._manifest.base.get("quantize")

    @property
    def base_digest(self) -> str | None:
        """`sampled_digest` of the weights where the run began; None if it recorded none."""
        return self._manifest.base.get("digest")

    @property
    def init_from(self) -> str | None:
        """Where the run began; None: random weights."""
        return self._manifest.base.get("init_from")

    def added(self, name: str) -> Tensor:
        """A parameter of the adapter."""
        return read_tensor(self.folder, self._manifest, self._key(name))

    def dtype(self, key: str) -> torch.dtype:
        return torch.float32 if key in self.frozen else torch_dtype(self._manifest.tensors[self._key(key)].dtype)

    def get(self, key: str) -> Tensor:
        if key in self.frozen:
            return next(self.rows({key: range(parameter_shapes(self.config)[key][0])}))[1]
        return read_tensor(self.folder, self._manifest, self._key(key))

    def rows(self, wanted: Mapping[str, range]) -> Iterator[tuple[str, Tensor]]:
        """The rows of these tensors, each as `get` gives it."""
        for key, rows in wanted.items():
            if key not in self.frozen:
                yield key, read_tensor(self.folder, self._manifest, self._key(key), rows)
        frozen = {key: rows for key, rows in wanted.items() if key in self.frozen}
        form = self.form
        for key, tensor in self._first_rows(frozen):
            if form is None or scales_name(key) not in self.frozen:
                computed = torch.float32 if stays_fp32(key) else self._frozen_dtype
                yield key, tensor.to(computed).float()
            else:
                yield key, rounded(tensor.float(), form)

    def _first_rows(self, wanted: Mapping[str, range]) -> Iterator[tuple[str, Tensor]]:
        if self._base is not None:
            yield from self._base.rows(wanted)
            return
        shapes = parameter_shapes(self.config)
        seed = self._manifest.base["seed"] if wanted else 0
        for key, rows in wanted.items():
            yield key, initial_rows(self.config, key, shapes[key], seed=seed, start=rows.start, stop=rows.stop)

    @cached_property
    def _base(self) -> Weights | None:
        source = self.init_from
        if not source:
            return None
        theirs, weights = open_weights(source)
        base = resized(weights, theirs, self.config)
        check_base(base, self.base_digest, f"{self.folder} was trained over the weights of {source}")
        return base


class RowMerge(Protocol):
    """What an adapter makes of one tensor."""

    def rows(self, base: Tensor, rows: range) -> Tensor:
        """base: those rows of the tensor. fp32."""
        ...


class MergedWeights:
    """Tensors of `base`, those with a merge in fp32."""

    def __init__(self, base: Weights, merges: Mapping[str, RowMerge], *, untied: bool) -> None:
        """untied: a tied head is one of its own, since table and head are no longer the same."""
        self.base = base
        self._tied = base.config.tie_embeddings
        self._merges = merges
        self.config: ModelConfig = base.config.model_copy(update={"tie_embeddings": self._tied and not untied})

    def keys(self) -> list[str]:
        return list(parameter_shapes(self.config))

    def dtype(self, key: str) -> torch.dtype:
        return torch.float32 if key in self._merges else self.base.dtype(self._source(key))

    def get(self, key: str) -> Tensor:
        return next(self.rows({key: range(parameter_shapes(self.config)[key][0])}))[1]

    def rows(self, wanted: Mapping[str, range]) -> Iterator[tuple[str, Tensor]]:
        own = {key: rows for key, rows in wanted.items() if self._source(key) == key}
        for key, found in self.base.rows(own):
            yield key, self._merged(key, found, own[key])
        for key in wanted.keys() - own.keys():  # a head that was tied
            _, found = next(self.base.rows({_TABLE: wanted[key]}))
            yield key, self._merged(key, found, wanted[key])

    def _source(self, key: str) -> str:
        return _TABLE if key == _HEAD and self._tied else key

    def _merged(self, key: str, found: Tensor, rows: range) -> Tensor:
        merge = self._merges.get(key)
        return found if merge is None else merge.rows(found, rows)


def low_rank_merged(base: Weights, adapter: Adapter, added: Added) -> MergedWeights:
    """The base with low-rank updates and rows of tokens. A tied head is one of its own where one has an update.

    ValueError for a kind whose changes are none of weights.
    """
    if not _is_merged(adapter):
        raise ValueError(f"an adapter of kind {adapter.kind} adds to what a model computes, not to its weights")
    merges: dict[str, RowMerge] = {
        f"{name}.weight": MatrixMerge(name, update, adapter.kind == "dora", added)
        for name, update in updates(parameter_shapes(base.config), adapter).items()
    }
    untied = _TABLE in merges or _HEAD in merges
    for name in adapter_shapes(base.config, adapter):
        if name.endswith(".tokens"):
            merges[f"{name.removesuffix('.tokens')}.weight"] = TokenMerge(name, adapter.tokens, added)
    return MergedWeights(base, merges, untied=untied)


def _is_merged(adapter: Adapter) -> bool:
    return adapter.kind in LOW_RANK or (bool(adapter.tokens) and adapter.kind not in PROMPTED)


def resized(weights: Weights, theirs: ModelConfig, ours: ModelConfig) -> Weights:
    """The weights of `theirs` with the vocabulary of `ours`; as they are where it has as many rows."""
    same = theirs.padded_vocab_size == ours.padded_vocab_size
    return weights if same else _Resized(weights, theirs, ours)


class _Resized:
    """Old rows as they are, up to as many as there are to be; behind them the mean of those of tokens."""

    def __init__(self, weights: Weights, theirs: ModelConfig, ours: ModelConfig) -> None:
        self.config = ours
        self._weights = weights
        self._theirs = theirs
        self._n_rows = ours.padded_vocab_size

    def keys(self) -> list[str]:
        return self._weights.keys()

    def dtype(self, key: str) -> torch.dtype:
        return self._weights.dtype(key)

    def get(self, key: str) -> Tensor:
        found = self._weights.get(key)
        if not is_of_vocabulary(key):
            return found
        new = self._n_rows - len(found)
        if new <= 0:
            return found[: self._n_rows]
        return torch.cat((found, mean_row(found, self._theirs.vocab_size).expand(new, *found.shape[1:])))

    def rows(self, wanted: Mapping[str, range]) -> Iterator[tuple[str, Tensor]]:
        """These places of the first axis of these tensors. Reads a whole table only where new rows are wanted."""
        n_old = self._theirs.padded_vocab_size
        with_new = {key: rows for key, rows in wanted.items() if is_of_vocabulary(key) and rows.stop > n_old}
        yield from self._weights.rows({key: rows for key, rows in wanted.items() if key not in with_new})
        for key, rows in with_new.items():
            yield key, self.get(key)[rows.start : rows.stop]


def sampled_digest(weights: Weights) -> str:
    """Changes with the middle row of any tensor; not with the format, or a type that holds the same numbers.

    Any training changes nearly every row, so this tells other weights from the same ones without reading them all.
    """
    shapes = parameter_shapes(weights.config)
    middle = {key: range(shapes[key][0] // 2, shapes[key][0] // 2 + 1) for key in shapes}
    rows = dict(weights.rows(middle))
    return _digest((key, rows[key]) for key in shapes)


def digest_in_memory(transformer: Transformer) -> str:
    """sampled_digest of the weights that a transformer has, and of what an adapter adds to them."""
    ours = dict(transformer.named_parameters())
    keys = dict.fromkeys([*parameter_shapes(transformer.config), *ours])
    middle = ((key, ours[key].detach()) for key in keys)
    return _digest((key, whole[len(whole) // 2 : len(whole) // 2 + 1].cpu()) for key, whole in middle)


def _digest(rows: Iterable[tuple[str, Tensor]]) -> str:
    digests = ((key, xxhash.xxh3_64_hexdigest(row.float().numpy().tobytes())) for key, row in rows)
    return xxhash.xxh3_128_hexdigest("".join(f"{key} {digest}\n" for key, digest in digests).encode())


def check_base(weights: Weights, digest: str | None, what: str) -> None:
    """ValueError if these are other weights than those of the digest. what: says which they should be."""
    if digest is not None and sampled_digest(weights) != digest:
        raise ValueError(f"{what}, and other weights lie there now; bring the first ones back")


def read_rows(
    weights: Weights, wanted: Mapping[str, range], on_progress: OnProgress | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Weights.rows, with a word on how far it is after each tensor."""
    shapes = parameter_shapes(weights.config)
    sizes = {key: len(rows) * math.prod(shapes[key][1:]) * weights.dtype(key).itemsize for key, rows in wanted.items()}
    done = 0
    for key, tensor in weights.rows(wanted):
        yield key, tensor
        done += sizes[key]
        if on_progress is not None:
            on_progress(done, sum(sizes.values()))


def open_weights(source: str, *, averaged: bool = False) -> tuple[ModelConfig, Weights]:
    """Config and weights of any MODEL. FileNotFoundError names the files and the folders that were searched.

    averaged: the moving averages of a run. ValueError if it has none, and for a run whose adapter is none of weights;
    `load` takes it.
    """
    found = find_source(source)
    check_is_weights(found, source)
    return _open(found, averaged=averaged)


def _has_prompts(weights: Weights) -> TypeGuard[CheckpointWeights]:
    return isinstance(weights, CheckpointWeights) and weights.adapter.kind in PROMPTED


def _open(found: Source, *, averaged: bool = False) -> tuple[ModelConfig, Weights]:
    weights: Weights
    if found.kind == "checkpoint":
        weights = CheckpointWeights(found.folder, averaged=averaged)
    elif averaged:
        raise ValueError(f"{found.folder} is no run and no checkpoint, so it has no averaged weights")
    else:
        weights = HFWeights(found.folder) if found.kind == "hf" else GGUFWeights(found.folder)
    if isinstance(weights, CheckpointWeights) and _is_merged(weights.adapter):
        weights = low_rank_merged(weights, weights.adapter, weights.added)
    if found.adapter is not None:
        if _has_prompts(weights):
            raise ValueError(f"{found.adapter} is over {found.folder}, whose prompts it knows nothing of; name a base")
        merges, untied = peft_merges(weights.config, found.adapter)
        weights = MergedWeights(weights, merges, untied=untied)
    return weights.config, weights


class LoadOptions(TypedDict, total=False):
    """Those of `load`, for callers that pass them on."""

    device: str | Sequence[str]
    dtype: torch.dtype | None
    weights: str | None
    ranks: Ranks | None
    graphs: bool | None
    on_progress: OnProgress | None


def load(
    source: str,
    *,
    device: str | Sequence[str] = "auto",
    dtype: torch.dtype | None = None,
    weights: str | None = None,
    ranks: Ranks | None = None,
    graphs: bool | None = None,
    on_progress: OnProgress | None = None,
) -> LoadedModel:
    """A model from a local path or fsspec URL.

    `device`: auto is a GPU if there is one, else the CPU; of several each gets some layers. `dtype`: as stored by
    default. `ranks`: this process has the share of one of them, and all are asked for the same texts. Weights of a
    local HF folder are mapped, not read; those of a checkpoint are read and checked by their hashes.
    FileNotFoundError, ValueError or CorruptError name the file and its fault.

    `weights`: one of WEIGHT_FORMS, for a model that only writes: its matrices are laid out for the device or made
    codes, `matrices` says how and why, and its transformer has no gradients. None, or `auto` over several devices or
    ranks: all are plain. `graphs`: of engines of this model, as of `new_decoding`.
    """
    form = None if weights is None else form_on(weights, dtype, alone=_is_one(device) and ranks is None)
    found = find_source(source)
    config, tensors = _open(found)
    companions = found.companions()
    tokenizer = Tokenizer(found.tokenizer, companions) if found.tokenizer and TOKENIZER in companions else None
    drawn = _without_padding_ids(config, special_tokens(companions, tokenizer).n_ids)
    stored = (tensors.base if isinstance(tensors, MergedWeights) else tensors).dtype(_TABLE)
    if found.kind == "gguf" or isinstance(tensors, MergedWeights):  # norms beside matrices, or all that is merged: fp32
        dtype = dtype or stored
    holding = _holding(drawn, device, ranks)
    placing = None if form is None else Placing(form, stored=stored, device=holding.device(_TABLE))
    transformer = build(drawn, tensors, device=holding, dtype=dtype, placing=placing, on_progress=on_progress)
    matrices = None if placing is None else placing.placed
    return LoadedModel(transformer, config, found, companions, tokenizer, matrices, graphs=graphs)


def _is_one(device: str | Sequence[str]) -> bool:
    return isinstance(device, str) or len(device) == 1


def _without_padding_ids(config: ModelConfig, n_ids: int | None) -> ModelConfig:
    """The config with the ids that the tokenizer can give: config.json counts rows, and some are there as padding."""
    return config if n_ids is None else config.model_copy(update={"vocab_size": min(config.vocab_size, n_ids)})


def build(
    config: ModelConfig,
    weights: Weights,
    *,
    device: torch.device | Holding,
    dtype: torch.dtype | None,
    placing: Placing | None = None,
    on_progress: OnProgress | None = None,
) -> Transformer:
    """A transformer with these weights: made on the meta device, then given its tensors, copied only where needed.

    placing: puts matrices in forms of their own, and its type is that of all else.
    """
    dtype = dtype if placing is None else placing.placed.choice.dtype
    adapter = weights.adapter if _has_prompts(weights) else Adapter()
    holding = WholeModel(config, device) if isinstance(device, torch.device) else device
    transformer = holding.transformer
    if isinstance(holding, ShareOfRank) and _has_prompts(weights):
        raise ValueError(f"ranks do not share the prompts that a run trained ({adapter.kind}); use one rank")
    with torch.device("meta"):
        attach(transformer, config, adapter)
    added = ((name, weights.added(name)) for name in adapter_shapes(config, adapter)) if _has_prompts(weights) else ()
    for key, stored in chain(read_rows(weights, holding.wanted(), on_progress), added):
        path, _, name = key.rpartition(".")
        own = holding.taken(key, stored)
        if placing is not None and placing.put(transformer, key, own):
            continue
        tensor = own.to(device=holding.device(key), dtype=torch.float32 if stays_fp32(key) else dtype)
        setattr(transformer.get_submodule(path), name, nn.Parameter(tensor, requires_grad=False))
    if config.tie_embeddings and not is_served_head(transformer.lm_head):
        tie_head(transformer.embed, transformer.lm_head)
    return transformer.eval()


def _holding(config: ModelConfig, device: str | Sequence[str], ranks: Ranks | None) -> Holding:
    names = [device] if isinstance(device, str) else list(device)
    if not names:
        raise ValueError("device is an empty list; name a device, or auto")
    if ranks is None and len(names) == 1:
        return WholeModel(config, pick_device(names[0]))
    if ranks is None:
        return LayersOverDevices(config, [pick_device(name) for name in names])
    if len(names) > 1:
        raise ValueError(f"devices are {', '.join(names)}, and a rank has one; take several devices or several ranks")
    own = pick_device(device_of_rank(names[0], ranks))
    holding = ShareOfRank(config, ranks, own)  # refuses what cannot be shared before ranks wait for each other
    connect_ranks(own)
    return holding


def pick_device(name: str) -> torch.device:
    """ValueError if a GPU is asked for by name and there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {name!r}, but torch finds no GPU here; use auto or cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device is 'mps', but torch finds no GPU of Apple here; use auto or cpu")
    return device
