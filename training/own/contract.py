"""The functions that a user's file may hold: their parameters and types, and the check of a file that is only read.

Nothing of it is run here, and no torch is needed. Light.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from launchyard.run.rows import StepRow, ValidationRow

NAMED = "FIGURES"  # the constant that names what a loss measures beside itself
_FIGURE = re.compile(r"[a-z][a-z0-9_]{0,40}")
_TENSOR = frozenset({"torch", "Tensor"})
_INT = frozenset({"int"})
_ANY = frozenset({"Any", "typing", "object"})


@dataclass(frozen=True)
class Contract:
    """One function. parameters: the names that it may ask for, each with the names that its annotation may hold."""

    parameters: Mapping[str, frozenset[str]]
    returns: frozenset[str]
    required: tuple[str, ...] = ()


CONTRACTS: dict[str, Contract] = {
    "loss": Contract(
        {
            "model": frozenset({"Callable", "collections", "abc", "typing", "torch", "Tensor", "nn", "Module"}),
            **dict.fromkeys(("tokens", "labels", "documents", "positions"), _TENSOR),
        },
        frozenset({*_TENSOR, "tuple", "Tuple", "dict", "Mapping", "str"}),
        required=("model",),
    ),
    "batches": Contract(
        {
            "sample_numbers": frozenset({"list", "List", "Sequence", "int"}),
            **dict.fromkeys(("seq_len", "seed", "vocab_size"), _INT),
        },
        frozenset({*_TENSOR, "list", "List", "Sequence", "Iterable", "int", "np", "numpy", "ndarray"}),
        required=("sample_numbers",),
    ),
    "optimizer": Contract(
        {
            "named_parameters": frozenset(
                {*_TENSOR, "list", "List", "Sequence", "Iterable", "tuple", "Tuple", "str", "nn", "Parameter"}
            ),
            "lr": frozenset({"float"}),
            "weight_decay": frozenset({"float"}),
        },
        frozenset({"torch", "optim", "Optimizer"}),
        required=("named_parameters",),
    ),
    "on_step": Contract(
        {"row": frozenset({"StepDone", "launchyard"})},
        frozenset({"None", "dict", "Dict", "Mapping", "Optional", "str", "float"}),
    ),
    "on_validation": Contract({"row": frozenset({"ValidationDone", "launchyard"})}, frozenset({"None"})),
    "on_end": Contract({"run": frozenset({"RunEnd", "launchyard"})}, frozenset({"None"})),
}
# Names of rows, which a figure of one's own would hide.
NAMES_OF_ROWS = {*StepRow.model_fields, *ValidationRow.model_fields, "validation_loss"}


@dataclass(frozen=True)
class Described:
    """What a file holds: its functions with the parameters that each asks for, and its figures."""

    functions: Mapping[str, tuple[str, ...]]
    figures: tuple[str, ...] = ()


def describe_code(source: bytes, name: str) -> Described:
    """Reads a file without running it. ValueError names every problem of it, each with its line."""
    try:
        tree = ast.parse(source.decode(), name)
    except (SyntaxError, ValueError) as error:  # ValueError: a null byte, or no UTF-8
        line = getattr(error, "lineno", None) or 1
        raise ValueError(f"{name}:{line}: no Python: {getattr(error, 'msg', error)}") from error
    problems = [f"{name}:{line}: {what}" for line, what in _problems(tree)]
    if problems:
        raise ValueError("\n".join(problems))
    found = {
        node.name: tuple(_names(node))
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name in CONTRACTS
    }
    figures = next((_figures(node) for node in tree.body if _assigned(node) == NAMED), ())
    return Described(found, tuple(figures or ()))


def _problems(tree: ast.Module) -> Iterator[tuple[int, str]]:
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    for node in functions:
        yield from ((node.lineno, what) for what in _of_function(node, [one.name for one in functions]))
    if not any(node.name in CONTRACTS for node in functions):
        yield 1, f"holds none of the functions that a run calls: {', '.join(CONTRACTS)}"
    for statement in tree.body:
        if _assigned(statement) == NAMED:
            yield from ((statement.lineno, what) for what in _of_figures(statement, functions))


def _of_function(node: ast.FunctionDef | ast.AsyncFunctionDef, names: list[str]) -> Iterator[str]:
    if node.name not in CONTRACTS:
        if not node.name.startswith("_"):
            yield (
                f"{node.name} is no function that a run calls{_meant(node.name, CONTRACTS)}; allowed: "
                f"{', '.join(CONTRACTS)}; the name of a function of your own begins with an underscore"
            )
        return
    if isinstance(node, ast.AsyncFunctionDef):
        yield f"{node.name} is async; a run calls plain functions"
    if names.count(node.name) > 1 and not isinstance(node, ast.AsyncFunctionDef):
        yield f"{node.name} is defined {names.count(node.name)} times"
    contract = CONTRACTS[node.name]
    allowed = ", ".join(contract.parameters)
    args = node.args
    if args.vararg or args.kwarg or args.posonlyargs:
        yield f"{node.name} takes * or /; parameters are given by name; allowed: {allowed}"
    for argument in [*args.args, *args.kwonlyargs]:
        if argument.arg not in contract.parameters:
            near = _meant(argument.arg, contract.parameters)
            yield f"{node.name}: no parameter {argument.arg}{near}; allowed: {allowed}"
        elif odd := _odd(argument.annotation, contract.parameters[argument.arg]):
            wanted = TYPES[node.name][argument.arg]
            yield f"{node.name}: {argument.arg} is annotated {odd}, and is {wanted}"
    for name in contract.required:
        if name not in _names(node):
            yield f"{node.name} must ask for {name}; allowed: {allowed}"
    if odd := _odd(node.returns, contract.returns):
        yield f"{node.name} is annotated to return {odd}; it returns {TYPES[node.name]['return']}"


# The same types for people.
TYPES: dict[str, dict[str, str]] = {
    "loss": {
        "model": "a callable: tokens (B, T) -> logits (B, T, V)",
        **dict.fromkeys(("tokens", "labels", "documents", "positions"), "a torch.Tensor (B, T) of int64"),
        "return": "a torch.Tensor, the sum over labels, or (that, {figure: its sum})",
    },
    "batches": {
        "sample_numbers": "a list[int]",
        **dict.fromkeys(("seq_len", "seed", "vocab_size"), "an int"),
        "return": "a row of 2 to seq_len + 1 token ids for each number: list[list[int]], an array or a torch.Tensor",
    },
    "optimizer": {
        "named_parameters": "a list[tuple[str, torch.nn.Parameter]]",
        **dict.fromkeys(("lr", "weight_decay"), "a float"),
        "return": "a torch.optim.Optimizer",
    },
    "on_step": {"row": "a StepDone", "return": "None, or dict[str, float]: more figures"},
    "on_validation": {"row": "a ValidationDone", "return": "None"},
    "on_end": {"run": "a RunEnd", "return": "None"},
}


def _odd(annotation: ast.expr | None, allowed: frozenset[str]) -> str | None:
    """The annotation, if it holds a name that the type has not; None of one that fits, or of none."""
    if annotation is None:
        return None
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        text = annotation.value
    else:
        text = ast.unparse(annotation)
    words = set(re.findall(r"[A-Za-z_]\w*", text))
    return None if words <= allowed | _ANY else text


def _names(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    return [argument.arg for argument in [*node.args.args, *node.args.kwonlyargs]]


def _assigned(node: ast.stmt) -> str | None:
    if isinstance(node, ast.AnnAssign):
        targets: list[ast.expr] = [node.target]
    else:
        targets = node.targets if isinstance(node, ast.Assign) else []
    return targets[0].id if len(targets) == 1 and isinstance(targets[0], ast.Name) else None


def _figures(node: ast.stmt) -> list[str] | None:
    """The names, of a literal; None of anything else."""
    value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
    try:
        found = ast.literal_eval(value) if value is not None else None
    except ValueError:
        return None
    return list(found) if isinstance(found, list | tuple) and all(isinstance(one, str) for one in found) else None


def _of_figures(node: ast.stmt, functions: list[ast.FunctionDef | ast.AsyncFunctionDef]) -> Iterator[str]:
    names = _figures(node)
    if names is None:
        yield f"{NAMED} must be a plain list of names, such as {NAMED} = ['accuracy']"
    elif not any(one.name == "loss" for one in functions):
        yield f"{NAMED} names what `loss` returns beside its sum, and there is no loss"
    for name in names or ():
        if (why := wrong_figure(name)) is not None:
            yield f"{NAMED}: {why}"
    if names and len({*names}) < len(names):
        yield f"{NAMED} names a figure twice"


def wrong_figure(name: str) -> str | None:
    """The problem of a figure's name, in words."""
    if not _FIGURE.fullmatch(name):
        return f"{name!r} is no name; use a-z, 0-9 and _, a letter first"
    return f"{name} is a name of the rows already; choose another" if name in NAMES_OF_ROWS else None


def _meant(name: str, known: Mapping[str, object]) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
