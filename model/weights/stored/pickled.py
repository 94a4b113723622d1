"""Tensors of a .bin file, which is a pickle in a zip archive: read without running any code that it may hold."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import zipfile
from pickle import UnpicklingError

import torch
from torch import Tensor

from launchyard.model.weights.headers import BIN_INDEX, bins_of
from launchyard.storage.errors import CorruptError, pointer_fault
from launchyard.storage.files import is_remote

_GLOBAL = re.compile(r"GLOBAL (\S+)")  # in torch's message: what the pickle would have called
_ADVICE = "open it with transformers where you trust it, and save it again with save_pretrained, as safetensors"


def open_bins(folder: str) -> dict[str, tuple[str, Tensor]]:
    """Every tensor of a folder's .bin files by its name, with the path of its file; empty if it has none.

    Errors as those of open_pickle; CorruptError also if a file is missing, or lacks a tensor, that the index names.
    """
    found = {}
    for name, keys in bins_of(folder).items():
        path = f"{folder}/{name}"
        try:
            opened = open_pickle(path)
        except FileNotFoundError as error:
            raise CorruptError(f"{path} is missing; {BIN_INDEX} names it") from error
        for key in keys or opened:
            if key not in opened:
                raise CorruptError(f"{path} does not hold {key}, as {BIN_INDEX} says")
            found[key] = path, opened[key]
    return found


def open_pickle(path: str) -> dict[str, Tensor]:
    """Every tensor by its name, mapped: nothing is read before it is used.

    FileNotFoundError without the file, CorruptError if it is cut, ValueError if it holds code or anything but tensors,
    was written by torch before 1.6, or lies in a store.
    """
    if is_remote(path):
        raise ValueError(f"{path}: .bin files are read from this machine's disks only; copy the folder here first")
    _check_archive(path)
    try:
        found = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except UnpicklingError as error:
        found_global = _GLOBAL.search(str(error))
        named = f"it asks for {found_global[1]}" if found_global else "its pickle is not one of tensors alone"
        raise ValueError(f"{path} holds code beside its tensors, and none of it was run: {named}; {_ADVICE}") from error
    except (RuntimeError, EOFError, KeyError) as error:
        raise CorruptError(f"{path} is damaged: {str(error).partition(chr(10))[0]}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__} instead of tensors by name; {_ADVICE}")
    for name, tensor in found.items():
        if not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise ValueError(f"{path}: {name} is a {kind}, no tensor; only the weights by themselves are read")
    return {str(name): tensor for name, tensor in found.items()}


def _check_archive(path: str) -> None:
    if zipfile.is_zipfile(path):
        return
    with open(path, "rb") as file:
        first = file.read(300)
    if first.startswith(b"PK"):
        raise CorruptError(f"{path} is cut: its archive has no end; it has {os.path.getsize(path)} bytes")
    if fault := pointer_fault(path, first):
        raise CorruptError(fault)
    if first.startswith(b"\x80") or first[257:262] == b"ustar":
        raise ValueError(f"{path} is of the format that torch wrote before 1.6, which is not read; {_ADVICE}")
    raise CorruptError(f"{path} is no archive of torch: it begins with {first[:8]!r}")


def release_mapped(tensor: Tensor) -> None:
    """Gives back the memory of a tensor of open_pickle; what was not changed is read again when it is used."""
    page = mmap.PAGESIZE
    first = -(-tensor.data_ptr() // page) * page
    length = (tensor.data_ptr() + tensor.nbytes) // page * page - first
    if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_DONTNEED)
