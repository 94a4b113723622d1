"""Forms of a frozen matrix in fewer bits: which matrices have one, and how many bytes a row takes. Light.

A row is coded alone, so each rank codes the rows that it holds, whatever the number of ranks.
"""

from __future__ import annotations

from typing import Literal, get_args

from launchyard.model.adapter import Adapter

Form = Literal["nf4", "nf4-dq", "int8", "fp8"]
CODED_FORMS: tuple[Form, ...] = get_args(Form)
NF4_BLOCK = 64  # numbers of a row that share a scale in nf4 (Dettmers et al. 2023, section 3)
SCALES_BLOCK = 256  # scales that are coded together in nf4-dq
SCALES = ".scales"  # instead of `.weight`, the name of the scales of a coded matrix
_WORD = 4  # bytes of a scale in fp32


def form_of(adapter: Adapter | None) -> Form | None:
    """The form of the frozen matrices; None: they are plain."""
    if adapter is None:
        return None
    return "nf4-dq" if adapter.quantize is None and adapter.kind == "qlora" else adapter.quantize


def has_form(name: str) -> bool:
    """True for a matrix that is coded where it is frozen: a projection of a block, experts' too.

    Tables, head, norms and routers are not: they are small or sensitive (Dettmers et al. 2023, section 3).
    """
    return name.startswith("blocks.") and name.endswith("_proj.weight")


def scales_name(name: str) -> str:
    """Name of the scales of the coded matrix `name`."""
    return name.removesuffix(".weight") + SCALES


def packed_bytes(form: Form, columns: int) -> int:
    """Bytes of the codes of a row. In nf4 a row is filled up to whole blocks."""
    return n_blocks(columns) * NF4_BLOCK // 2 if form in ("nf4", "nf4-dq") else columns


def scales_bytes(form: Form, columns: int) -> int:
    """Bytes of the scales of a row; in nf4-dq a byte for each, and two numbers for each SCALES_BLOCK of them."""
    if form == "nf4":
        return _WORD * n_blocks(columns)
    if form == "nf4-dq":
        return n_blocks(columns) + 2 * _WORD * n_groups(columns)
    return _WORD


def n_blocks(columns: int) -> int:
    return -(-columns // NF4_BLOCK)


def n_groups(columns: int) -> int:
    return -(-n_blocks(columns) // SCALES_BLOCK)
