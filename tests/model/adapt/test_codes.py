"""Codes of frozen matrices: their errors, their values, and that a row depends on no other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from launchyard.model.adapt.codes import NF4, Coded, decode, decoded_size, encode, rounded
from launchyard.model.adapt.forms import CODED_FORMS, Form, packed_bytes, scales_bytes

# Relative errors of a normal matrix. The least that 16 values at best places leave is 0.097 of blocks of any scale.
ERRORS: dict[Form, float] = {"nf4": 0.093, "nf4-dq": 0.0931, "int8": 0.009, "fp8": 0.027}


def matrix(rows: int = 96, columns: int = 512) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.02


@pytest.mark.parametrize("form", CODED_FORMS)
def test_the_error_is_bounded(form: Form) -> None:
    plain = matrix()
    made = rounded(plain, form)
    assert (made - plain).norm() / plain.norm() < ERRORS[form]
    largest = plain.unflatten(-1, (-1, 64)).abs().amax(-1, keepdim=True) if form[:3] == "nf4" else plain.abs().amax(-1)
    gap = {"nf4": 0.1520, "nf4-dq": 0.1535, "int8": 0.5 / 127, "fp8": 0.5 / 14}[form]  # half of the widest, at most
    assert ((made - plain).abs().view(*largest.shape[:2], -1) <= gap * largest.view(*largest.shape[:2], -1)).all()


@pytest.mark.parametrize("form", CODED_FORMS)
def test_it_takes_the_bytes_that_are_foreseen(form: Form) -> None:
    for columns in (64, 100, 16_448):
        coded = encode(matrix(2, columns), form)
        assert coded.codes.shape == (2, packed_bytes(form, columns))
        assert coded.scales.shape == (2, scales_bytes(form, columns))
    bits = {form: (packed_bytes(form, 4096) + scales_bytes(form, 4096)) * 8 / 4096 for form in CODED_FORMS}
    assert bits == {"nf4": 4.5, "nf4-dq": 4.140625, "int8": 8.0078125, "fp8": 8.0078125}


@pytest.mark.parametrize("columns", [64, 100, 16_448])  # 16,448: more scales than are coded together
@pytest.mark.parametrize("form", CODED_FORMS)
def test_a_row_is_coded_alone(form: Form, columns: int) -> None:
    """So a rank codes the rows that it holds, and no number of ranks changes a value."""
    plain = matrix(6, columns)
    plain[2] = 0
    whole = encode(plain, form)
    for rows in (slice(0, 2), slice(2, 6), slice(6, 6)):
        part = encode(plain[rows], form)
        assert torch.equal(part.codes, whole.codes[rows]) and torch.equal(part.scales, whole.scales[rows])
    made = rounded(plain, form)
    assert made.shape == plain.shape and (made[2] == 0).all()
    assert torch.equal(rounded(plain.view(2, 3, columns), form), made.view(2, 3, columns))  # of experts


@pytest.mark.parametrize("form", CODED_FORMS)
def test_a_matrix_of_many_chunks_is_its_rows(form: Form) -> None:
    plain = matrix(2100, 128)
    assert torch.equal(rounded(plain, form)[-3:], rounded(plain[-3:], form))


@pytest.mark.parametrize("form", CODED_FORMS)
def test_bf16_is_the_fp32_value_rounded_once(form: Form) -> None:
    plain = matrix()
    out = torch.empty(decoded_size(len(plain), form, 512), dtype=torch.bfloat16)
    assert torch.equal(decode(encode(plain, form), form, 512, out=out), rounded(plain, form).bfloat16())


def test_codes_of_nf4_are_the_nearest() -> None:
    values = torch.tensor(NF4)
    borders = ((values[1:].double() + values[:-1].double()) / 2).float()
    edges = torch.cat([borders, borders.nextafter(torch.tensor(2.0)), borders.nextafter(torch.tensor(-2.0))])
    scaled = torch.cat([torch.linspace(-1, 1, 63 * 999 - 45), edges]).view(-1, 63)
    rows = torch.cat([scaled, torch.ones(len(scaled), 1)], dim=-1)  # so that the scale is 1
    assert torch.equal(rounded(rows, "nf4"), values[torch.bucketize(rows, borders)])


def test_values_that_were_coded_stay_as_they_are() -> None:
    for form in ("nf4", "int8", "fp8"):
        once = rounded(matrix(), form)
        torch.testing.assert_close(rounded(once, form), once, rtol=3e-7, atol=0)


@pytest.mark.parametrize("form", CODED_FORMS)
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_no_number_has_no_code(form: Form, value: float) -> None:
    plain = matrix(2, 64)
    plain[1, 3] = value
    with pytest.raises(ValueError, match="infinite or no number"):
        encode(plain, form)


# Of bitsandbytes 0.50.2, quantize_4bit(blocksize=64, quant_type="nf4"): sin(i) * 0.02 for i in 0..127.
BYTES = (
    "7ef9104efc202cfe4019fe7106efa103dfd301bfe5017ef9104efc202cfd4019"
    "fe7006efa103dfd301bfe5017ef8104efb202cfd4019fe7006efa103dfc201bf"
)


def test_nf4_is_that_of_bitsandbytes() -> None:
    plain = (torch.arange(128, dtype=torch.float64).sin() * 0.02).float()[None]
    coded = encode(plain, "nf4")
    assert bytes(coded.codes.flatten().tolist()).hex() == BYTES
    assert torch.equal(coded.scales.view(torch.float32), plain.abs().unflatten(-1, (2, 64)).amax(-1))


def test_the_kernel_of_bitsandbytes_gives_our_values(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    from launchyard.model.adapt import codes

    assert codes._has_bitsandbytes(torch.device("cpu"))
    for form in ("nf4", "nf4-dq"):
        coded = encode(matrix(16, 192), form)
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            theirs = plain_of(coded, form, dtype).clone()
            with monkeypatch.context() as patch:
                patch.setattr(codes, "_has_bitsandbytes", lambda device: False)
                assert torch.equal(theirs, plain_of(coded, form, dtype))


def plain_of(coded: Coded, form: Form, dtype: torch.dtype) -> Tensor:
    return decode(coded, form, 192, out=torch.empty(decoded_size(16, form, 192), dtype=dtype))


@pytest.mark.gpu
@pytest.mark.parametrize("form", CODED_FORMS)
def test_a_gpu_makes_the_same_codes_and_values(form: Form) -> None:
    plain = matrix(96, 576)
    here = encode(plain, form)
    there = encode(plain.cuda(), form)
    assert torch.equal(there.codes.cpu(), here.codes) and torch.equal(there.scales.cpu(), here.scales)
    assert torch.equal(rounded(plain.cuda(), form).cpu(), rounded(plain, form))
