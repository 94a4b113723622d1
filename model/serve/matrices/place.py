"""Puts matrices of a model, as they are read, into the form that was chosen, and tells which ones stay plain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from launchyard.model.adapt.codes import encode
from launchyard.model.adapt.quantized import QuantizedExperts, QuantizedLinear, Scratch
from launchyard.model.network.attention import Attention
from launchyard.model.network.linear import Linear, OpaqueLinear
from launchyard.model.network.mlp import MLP, ExpertProjection
from launchyard.model.network.transformer import Transformer
from launchyard.model.serve.matrices.choose import MatrixChoice, choose_matrices
from launchyard.model.serve.matrices.coded import Int4Linear, Int8Linear, to_int4, to_int8, why_not_int4
from launchyard.model.serve.matrices.names import WeightForm
from launchyard.model.serve.matrices.packed import NarrowExperts, PackedLinear, can_pack
from launchyard.model.serve.matrices.pages import prefer_large_pages

_HEAD = "lm_head"
_TABLE = "embed.weight"


@dataclass
class Placed:
    """What became of the matrices of a loaded model."""

    choice: MatrixChoice
    n_coded: int = 0
    n_packed: int = 0
    plain: dict[str, str] = field(default_factory=dict)  # module whose matrix should be codes and is not, and why

    def words(self) -> str:
        """One line: the form, why, and what is not in it."""
        told = f"weights {self.choice.name}: {self.choice.why}"
        if not self.plain:
            return told
        reasons = {why: [name for name, own in self.plain.items() if own == why] for why in self.plain.values()}
        kept = "; ".join(f"{_shortened(names)} ({why})" for why, names in reasons.items())
        return f"{told}; not so: {kept}"


class Placing:
    """For one model, whose modules lie on the meta device at first."""

    def __init__(self, form: WeightForm, *, stored: torch.dtype, device: torch.device) -> None:
        """stored: the type of the file."""
        if device.type == "cpu":
            prefer_large_pages()
        self.placed = Placed(choose_matrices(form, stored=stored, device=device))
        self._device = device
        self._scratch = Scratch()
        self._held: dict[str, dict[str, Tensor]] = {}  # parts of a joint matrix, until all have come

    def put(self, model: Transformer, key: str, stored: Tensor) -> bool:
        """Take a tensor that was read; False: it is to be put where it belongs, as it is.

        The table keeps the type that it is stored in, and a tied head gets what is made of it.
        """
        if key == _TABLE:
            if model.config.tie_embeddings:
                self._replace(model, _HEAD, stored)
            model.embed.weight = nn.Parameter(stored.to(self._device), requires_grad=False)
            model.embed.out_dtype = self.placed.choice.dtype
            return True
        path, _, name = key.rpartition(".")
        parent, _, last = path.rpartition(".")
        owner = model.get_submodule(parent)
        if isinstance(owner, (Attention, MLP)) and last in owner.parts and self._can_join(owner, parent):
            self._join(owner, parent, f"{last}.{name}", stored)
            return True
        return name == "weight" and self._replace(model, path, stored)

    def _replace(self, model: Transformer, path: str, stored: Tensor) -> bool:
        plain = model.get_submodule(path)
        if not _is_matrix(plain):
            return False
        made = self._made([path], plain, stored)
        if made is None:
            return False
        parent, _, last = path.rpartition(".")
        setattr(model.get_submodule(parent), last, made.train(plain.training))
        return True

    def _can_join(self, owner: Attention | MLP, path: str) -> bool:
        """True where all parts get the same form, and it is not the plain one."""
        parts = [f"{path}.{part}" for part in owner.parts]
        modules = [getattr(owner, part) for part in owner.parts]
        if any(type(module) is not Linear for module in modules):
            return False
        reasons = {self._why_plain(part, module) for part, module in zip(parts, modules, strict=True)}
        return reasons == {None} or (None not in reasons and can_pack(self.placed.choice.plain, self._device))

    def _join(self, owner: Attention | MLP, path: str, name: str, stored: Tensor) -> None:
        """Keep a parameter of a part; once all are there, make one matrix of them."""
        held = self._held.setdefault(path, {})
        held[name] = stored
        names = {part: dict(getattr(owner, part).named_parameters()) for part in owner.parts}
        if len(held) < sum(map(len, names.values())):
            return
        del self._held[path]
        weight = torch.cat([held[f"{part}.weight"] for part in owner.parts])
        has_bias = all("bias" in own for own in names.values())
        plain = Linear(weight.shape[1], weight.shape[0], bias=has_bias, device="meta")
        if has_bias:
            bias = torch.cat([held[f"{part}.bias"] for part in owner.parts])
            plain.bias = nn.Parameter(bias.to(self._device, self.placed.choice.dtype), requires_grad=False)
        made = self._made([f"{path}.{part}" for part in owner.parts], plain, weight)
        assert made is not None
        owner.joint = made.train(owner.training)
        for part in owner.parts:
            setattr(owner, part, None)

    def _made(self, paths: Sequence[str], plain: nn.Module, stored: Tensor) -> nn.Module | None:
        """paths: whose rows `stored` has, all of one form."""
        why = self._why_plain(paths[0], plain)
        if why is None:
            self.placed.n_coded += len(paths)
            return self._coded(plain, stored.to(self._device))
        choice = self.placed.choice
        if choice.codes is not None:
            self.placed.plain |= dict.fromkeys(paths, why)
        if type(plain) is ExpertProjection and choice.plain != choice.dtype:
            plain.__class__ = NarrowExperts
            plain.weight = nn.Parameter(stored.to(self._device, choice.plain), requires_grad=False)
            return plain
        if type(plain) is not Linear or _routes(paths[0]):
            return None
        if not can_pack(choice.plain, self._device):
            if choice.plain != choice.dtype:
                self.placed.plain |= dict.fromkeys(paths, f"torch has no {choice.name} product here: fp32")
            return None
        self.placed.n_packed += len(paths)
        return PackedLinear(plain, stored.to(self._device, choice.plain))

    def _why_plain(self, path: str, plain: nn.Module) -> str | None:
        codes = self.placed.choice.codes
        if codes is None:
            return "asked for"
        if _routes(path):
            return "it chooses among experts"
        if type(plain) not in (Linear, ExpertProjection):
            return "an adapter adds to it"
        if codes in ("nf4", "fp8"):
            return "the likeliest token hangs on it" if path == _HEAD else None
        if codes == "int4" and not isinstance(plain, Linear):
            return "experts have no int4"
        if codes == "int4":
            assert isinstance(plain, Linear)
            return why_not_int4(plain.out_features, plain.in_features, self._device)
        return None

    def _coded(self, plain: nn.Module, weight: Tensor) -> nn.Module:
        form = self.placed.choice.codes
        assert form is not None
        if form == "int4":
            assert isinstance(plain, Linear)
            return Int4Linear(plain, to_int4(weight))
        if form == "int8" and isinstance(plain, Linear):
            return Int8Linear(plain, to_int8(weight), self._scratch, dtype=self.placed.choice.plain)
        made: QuantizedLinear | QuantizedExperts
        if isinstance(plain, Linear):
            made = QuantizedLinear(plain, form, self._scratch)
        else:
            made = QuantizedExperts(plain, form, self._scratch)
        coded = encode(weight, form)
        made.weight = nn.Parameter(coded.codes, requires_grad=False)
        made.scales = nn.Parameter(coded.scales, requires_grad=False)
        return made


def is_served_head(head: nn.Module) -> bool:
    """True for one that has its own matrix, tied or not."""
    return isinstance(head, (OpaqueLinear, QuantizedLinear))


def _routes(path: str) -> bool:
    return path.endswith((".router", ".shared_gate"))


def _is_matrix(module: nn.Module) -> bool:
    return isinstance(module, (Linear, ExpertProjection))


def _shortened(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 2 else f"{names[0]} and {len(names) - 1} more"
