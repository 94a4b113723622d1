"""What the house uses of other packages that they do not promise to keep: every use is listed here, and still there.

The list only shrinks. A new use needs a reason why nothing public serves, and a line here.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_house import PRODUCT, ROOMS, ROOT, name_of, tree_of

# With which versions all of this was tested; those of constraints.txt.
TESTED = {"ray": "2.60.0", "s3fs": "2026.9.0", "submitit": "1.5.4", "torch": "2.13.0"}
# (file, name as it is written there) -> where it is found.
USES = {
    ("launcher/backends/slurm/request.py", "_make_sbatch_string"): "submitit.slurm.slurm._make_sbatch_string",
    (
        "launcher/backends/ray/placement.py",
        "available_resources_per_node",
    ): "ray._private.state.available_resources_per_node",
    ("launcher/backends/ray/placement.py", "state"): "ray._private.state.state.get_draining_nodes",
    ("model/network/linear.py", "_linear_pointwise"): "torch.ops.mkldnn._linear_pointwise",
    # torch multiplies by codes, and by matrices in oneDNN's order, with no public name.
    ("model/serve/matrices/packed.py", "_reorder_linear_weight"): "torch.ops.mkldnn._reorder_linear_weight",
    ("model/serve/matrices/coded.py", "_weight_int8pack_mm"): "torch._weight_int8pack_mm",
    ("model/serve/matrices/coded.py", "_weight_int4pack_mm"): "torch.ops.aten._weight_int4pack_mm",
    ("model/serve/matrices/coded.py", "_weight_int4pack_mm_for_cpu"): "torch.ops.aten._weight_int4pack_mm_for_cpu",
    ("model/serve/matrices/coded.py", "_convert_weight_to_int4pack"): "torch.ops.aten._convert_weight_to_int4pack",
    ("model/serve/matrices/coded.py", "_convert_weight_to_int4pack_for_cpu"): (
        "torch.ops.aten._convert_weight_to_int4pack_for_cpu"
    ),
    ("model/network/uncompiled.py", "_disable_dynamo"): "torch._compile._disable_dynamo",
    ("storage/stores/private_calls.py", "_call_s3"): "s3fs.S3FileSystem._call_s3",
    ("training/loss.py", "_linear_pointwise"): "torch.ops.mkldnn._linear_pointwise",
    ("training/optim/adamw.py", "_fused_adamw_"): "torch._fused_adamw_",
    ("training/parallel.py", "checkpoint_wrapper"): (
        "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.checkpoint_wrapper"
    ),
    ("training/parallel.py", "DefaultAllGather"): (
        "torch.distributed.fsdp._fully_shard._fsdp_collectives.DefaultAllGather"
    ),
    ("training/parallel.py", "DefaultReduceScatter"): (
        "torch.distributed.fsdp._fully_shard._fsdp_collectives.DefaultReduceScatter"
    ),
    # Operations that recomputation keeps; they have no public names.
    ("training/parallel.py", "_scaled_mm"): "torch.ops.aten._scaled_mm",
    ("training/parallel.py", "_grouped_mm"): "torch.ops.aten._grouped_mm",
    ("training/parallel.py", "_varlen_attn"): "torch.nn.attention.varlen._varlen_attn",
    # What the memory of a GPU is allocated for, and since when; public is only what is allocated now.
    ("training/profile/trace.py", "_record_memory_history"): "torch.cuda.memory._record_memory_history",
    ("training/profile/trace.py", "_dump_snapshot"): "torch.cuda.memory._dump_snapshot",
    ("training/step.py", "_foreach_mul_"): "torch._foreach_mul_",
    # The one way to see what every operation returns, those of the backward too.
    ("training/trial/live_bytes.py", "TorchDispatchMode"): "torch.utils._python_dispatch.TorchDispatchMode",
}
MOST_USES = 24  # lower it with every use that goes
OWN = {*ROOMS, "launchyard", "tests"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def is_foreign(module: str) -> bool:
    top = module.split(".")[0]
    return top not in OWN and top not in sys.stdlib_module_names


def own_names() -> set[str]:
    """Private names that the house itself gives to something, so that `other._name` may well be its own."""
    found: set[str] = set()
    for path in PRODUCT:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                found.add(node.name)
            elif isinstance(node, (ast.Attribute, ast.Name)) and isinstance(node.ctx, ast.Store):
                found.add(node.attr if isinstance(node, ast.Attribute) else node.id)
    return {name for name in found if is_private(name)}


def imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(name here, what it is) of all that comes from other packages."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name.split(".")[0], alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def root_of(node: ast.expr) -> str:
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def private_uses(tree: ast.Module, own: set[str]) -> Iterator[str]:
    foreign = {name: whole for name, whole in imported(tree) if is_foreign(whole)}
    stdlib = {name for name, whole in imported(tree) if whole.split(".")[0] in sys.stdlib_module_names}
    for whole in foreign.values():
        if any(map(is_private, whole.split("."))):
            yield whole.rsplit(".", 1)[-1]
    for node in ast.walk(tree):
        name, owner = "", None
        if isinstance(node, ast.Attribute):
            name, owner = node.attr, node.value
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
            owner, named = node.args[0], node.args[1]
            name = str(named.value) if isinstance(named, ast.Constant) else ""
        if owner is None or not is_private(name) or root_of(owner) in stdlib:
            continue
        if root_of(owner) in foreign or name not in own:
            yield name


def found_uses() -> set[tuple[str, str]]:
    own = own_names()
    return {(name_of(path), name) for path in PRODUCT for name in private_uses(tree_of(path), own)}


def resolve(whole: str) -> Any:
    """The object of a dotted name; AttributeError names what is gone."""
    parts = whole.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(whole)


def test_every_private_use_is_listed() -> None:
    found = found_uses()
    assert not found - USES.keys(), f"private names of other packages, not listed in {Path(__file__).name}"
    assert not USES.keys() - found, "listed, and not used any more: take it off the list, and lower MOST_USES"
    assert len(USES) <= MOST_USES, "the list only shrinks"


@pytest.mark.parametrize("whole", sorted(set(USES.values())))
def test_what_is_used_is_still_there(whole: str) -> None:
    package = whole.split(".")[0]
    pytest.importorskip(package)
    try:
        resolve(whole)
    except (AttributeError, ModuleNotFoundError) as error:
        users = ", ".join(file for (file, _), where in USES.items() if where == whole)
        pytest.fail(f"{whole} is gone (tested with {package} {TESTED[package]}); {users} needs another way: {error}")


def test_tested_versions_are_those_of_the_constraints() -> None:
    pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert {name: pins[name] for name in TESTED} == TESTED, "look at the private uses again, then write the new version"
    assert {whole.split(".")[0] for whole in USES.values()} == TESTED.keys()


@pytest.mark.parametrize(
    ("code", "used"),
    [
        ("import torch\ntorch._dynamo.reset()", {"_dynamo"}),
        ("from torch import _dynamo", {"_dynamo"}),
        ("from torch._dynamo import reset", {"reset"}),
        ("import torch._dynamo.config as c", {"config"}),
        ("def f(fs):\n    return fs._ls('x')", {"_ls"}),
        ("import torch\ngetattr(torch, '_C')", {"_C"}),
        ("import os\nos._exit(0)", set()),
        ("class A:\n    def f(self, other):\n        return self._own + other._own", set()),
        ("import torch\ntorch.__version__", set()),
    ],
)
def test_the_search_sees_a_use(code: str, used: set[str]) -> None:
    assert set(private_uses(ast.parse(code), {"_own"})) == used
