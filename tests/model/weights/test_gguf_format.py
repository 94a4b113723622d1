"""Our reader of GGUF headers beside gguf's own."""

from __future__ import annotations

import random
from pathlib import Path

import numpy
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import quantize

from launchyard.model.weights.gguf_format import read_gguf
from launchyard.storage.errors import CorruptError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """One key of each type, and a tensor of each layout."""
    where = tmp_path / "all.gguf"
    writer = GGUFWriter(where, "llama")
    for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        getattr(writer, f"add_{kind}")(f"a.{kind}", 7)
    writer.add_float32("a.float32", 1e-5)
    writer.add_float64("a.float64", 1e-5)
    writer.add_bool("a.bool", True)
    writer.add_string("a.string", "ä🎉")
    writer.add_array("a.strings", ["x", "", "ü"])
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_array("a.floats", [0.5, -1.0])
    values = numpy.arange(128, dtype=numpy.float32).reshape(2, 64)
    writer.add_tensor("f32", values)
    writer.add_tensor("vector", values[0])
    writer.add_tensor("f16", values.astype(numpy.float16))
    writer.add_tensor("q8", quantize(values, GGMLQuantizationType.Q8_0), raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return where


def test_the_same_as_gguf_reads(path: Path) -> None:
    ours = read_gguf(str(path))
    theirs = GGUFReader(path)
    keys = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert ours.metadata == keys
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        found = ours.tensors[tensor.name]
        assert (found.tensor_type, found.offset, found.n_bytes) == (
            tensor.tensor_type,
            tensor.data_offset,
            tensor.n_bytes,
        )
        assert found.shape == tuple(int(size) for size in reversed(tensor.shape))
        assert found.data.dtype == tensor.data.dtype
        assert numpy.array_equal(found.data, tensor.data)


def test_a_cut_file_is_named(path: Path) -> None:
    whole = path.read_bytes()
    for length in [*range(0, len(whole) - 700, 17), len(whole) - 40]:
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptError, match=path.name):
            read_gguf(str(path))


def test_damage_is_named_or_changes_nothing_but_values(path: Path) -> None:
    whole = path.read_bytes()
    drawn = random.Random(0)
    for _ in range(100):
        at = drawn.randrange(len(whole) - 700)
        path.write_bytes(whole[:at] + bytes([drawn.randrange(256)]) + whole[at + 1 :])
        try:
            read_gguf(str(path))
        except (CorruptError, ValueError) as error:
            assert path.name in str(error)
