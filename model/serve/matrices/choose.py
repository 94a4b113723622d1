"""Which float type and which codes a model's matrices get on a device, and why, in words. Knows no module."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from launchyard.model.serve.matrices.names import WeightForm, checked_form
from launchyard.model.serve.matrices.packed import can_pack

Codes = Literal["int8", "int4", "nf4", "fp8"]
_SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}
_ONLY_AMPERE = 8  # the compute capability from which on a GPU multiplies bfloat16


@dataclass(frozen=True)
class MatrixChoice:
    """dtype: what the model computes in. codes: of its matrices; None: they are of the type `plain`, as all others are.

    On a CPU all but matrices is fp32: attention of one query a head is up to five times as fast as in bf16, and the
    casts cost less than that (AMD EPYC with avx512_bf16, torch 2.13).
    """

    dtype: torch.dtype
    plain: torch.dtype
    codes: Codes | None
    why: str

    @property
    def name(self) -> str:
        return self.codes or _short(self.plain)


def form_on(weights: str, dtype: torch.dtype | None, *, alone: bool) -> WeightForm | None:
    """The form of that name; None: plain, as `auto` is where several devices or ranks share a model.

    ValueError for a name that there is not, a dtype besides, or codes of a shared model.
    """
    form = checked_form(weights)
    if dtype is not None:
        raise ValueError(f"dtype is {dtype} and weights is {weights!r}; give one of them")
    if alone:
        return form
    if form != "auto":
        raise ValueError(
            f"weights is {weights!r}, and several devices or ranks share the model; use auto, or one device"
        )
    return None


def choose_matrices(weights: WeightForm, *, stored: torch.dtype, device: torch.device) -> MatrixChoice:
    """stored: the type of the file. `auto` keeps all digits of it."""
    if weights == "auto":
        return _float(*_stored(stored, device), device)
    if weights == "fp32":
        return _float(torch.float32, "asked for", device)
    if weights == "bf16":
        slow = f"asked for, though {_where(device)} does not multiply it in hardware: half the memory, slower than fp32"
        return _float(torch.bfloat16, "asked for" if fast_bf16(device) else slow, device)
    fast, _ = _stored(torch.bfloat16, device)
    plain = stored if stored == torch.float16 and device.type != "cpu" else fast
    return replace(_float(plain, "asked for", device), codes=weights)


def _float(plain: torch.dtype, why: str, device: torch.device) -> MatrixChoice:
    return MatrixChoice(torch.float32 if device.type == "cpu" else plain, plain, None, why)


def _stored(stored: torch.dtype, device: torch.device) -> tuple[torch.dtype, str]:
    """No digit is lost: all numbers of bf16 and fp16 are numbers of fp32."""
    if stored not in (torch.bfloat16, torch.float16):
        return stored, "stored so"
    if _multiplies(stored, device):
        return stored, f"stored so, and {_where(device)} multiplies it in hardware"
    return torch.float32, f"stored in {_short(stored)}, which {_where(device)} does not multiply in hardware"


def _short(dtype: torch.dtype) -> str:
    return _SHORT.get(dtype, str(dtype).removeprefix("torch."))


def _where(device: torch.device) -> str:
    return "this CPU" if device.type == "cpu" else "this GPU"


def _multiplies(dtype: torch.dtype, device: torch.device) -> bool:
    if dtype == torch.bfloat16:
        return fast_bf16(device)
    return device.type != "cpu"  # on a CPU torch has fp16 for few of them


def fast_bf16(device: torch.device) -> bool:
    """True where bfloat16 is multiplied by instructions of its own."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= _ONLY_AMPERE
    if device.type != "cpu":
        return True
    able = torch.cpu.get_capabilities()
    return can_pack(torch.bfloat16, device) and any(
        bool(able.get(flag)) for flag in ("avx512_bf16", "amx_bf16", "bf16")
    )
