"""A frozen projection in each form beside a plain one: forward and backward, and its bytes; one CPU thread or a GPU.

    python benchmarks/quantized.py [--rounds 5] [--size 2048] [--rows 256] [--device cpu]

Rounds go through all in turn. bitsandbytes' own layer takes part where it is installed; `own` is our path without its
kernel. CPU seconds of this process on a CPU, else wall seconds between two waits for the device.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from launchyard.model.adapt import codes
from launchyard.model.adapt.codes import encode
from launchyard.model.adapt.forms import CODED_FORMS, Form
from launchyard.model.adapt.quantized import QuantizedLinear, Scratch

HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None


def quantized(plain: nn.Linear, form: Form) -> nn.Module:
    layer = QuantizedLinear(plain, form, Scratch())
    coded = encode(plain.weight.detach(), form)
    layer.weight.copy_(coded.codes)
    layer.scales.copy_(coded.scales)
    return layer


def theirs(plain: nn.Linear, device: torch.device) -> nn.Module:
    from bitsandbytes.nn import Linear4bit, Params4bit

    layer = Linear4bit(plain.in_features, plain.out_features, bias=False, quant_type="nf4", compute_dtype=None)
    layer.weight = Params4bit(plain.weight.detach().cpu().clone(), requires_grad=False, quant_type="nf4")
    return layer.to(device)


def own(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    kernel = codes._has_bitsandbytes

    def forward(x: Tensor) -> Tensor:
        codes._has_bitsandbytes = lambda device: False  # type: ignore[assignment]
        out: Tensor = layer(x)
        out.sum().backward()
        codes._has_bitsandbytes = kernel
        return out

    return forward


def trained(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        out: Tensor = layer(x)
        out.sum().backward()
        return out

    return forward


def seconds(step: Callable[[Tensor], Tensor], x: Tensor) -> float:
    clock = time.process_time if x.device.type == "cpu" else time.perf_counter
    if x.device.type == "cuda":
        torch.cuda.synchronize()
    began = clock()
    for _ in range(5):
        step(x)
    if x.device.type == "cuda":
        torch.cuda.synchronize()
    return (clock() - began) / 5


@torch.no_grad()
def layers(size: int, dtype: torch.dtype, device: torch.device) -> dict[str, tuple[Callable[[Tensor], Tensor], int]]:
    """Name -> a forward and backward, and the bytes of the parameters."""
    plain = nn.Linear(size, size, bias=False, dtype=dtype, device=device).requires_grad_(False)
    found = {"plain": (trained(plain), plain.weight.nbytes)}
    for form in CODED_FORMS:
        layer = quantized(plain, form)
        found[form] = (trained(layer), sum(parameter.nbytes for parameter in layer.parameters()))
        if HAS_BITSANDBYTES and form == "nf4":
            found["nf4, own"] = (own(layer), found[form][1])
            found["bitsandbytes nf4"] = (trained(theirs(plain, device)), found[form][1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    for dtype in (torch.float32, torch.bfloat16):
        given = layers(options.size, dtype, device)
        x = torch.randn(options.rows, options.size, dtype=dtype, device=device, requires_grad=True)
        times: dict[str, list[float]] = {name: [] for name in given}
        for number in range(options.rounds + 1):
            for name, (step, _) in given.items():
                took = seconds(step, x)
                if number:  # the first round warms up
                    times[name].append(took)
        base = statistics.median(times["plain"])
        for name, (_, n_bytes) in given.items():
            took = statistics.median(times[name])
            print(f"{str(dtype)[6:]:9} {name:17} {took * 1e3:6.1f} ms {took / base:5.2f} x {n_bytes / 2**20:6.2f} MiB")


if __name__ == "__main__":
    main()
