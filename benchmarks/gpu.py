"""Everything that is claimed of one GPU, in one command of under ten minutes, with its result file.

    python benchmarks/gpu.py [--dry-run] [--only train-160m,restart] [--minutes 10] [--out FOLDER] [--device cpu --tiny]

Random weights and tokens, nothing from a network; torch 2.11 and Python 3.12 will do. Each part runs in a process of
its own with a limit to its seconds; a part that fails is recorded with its error, one that no longer fits into the
minutes as not run. The result file (Markdown, and JSON beside it) is written anew after every part. `--device cpu
--tiny` runs the same code in tiny sizes within minutes, and its figures mean nothing. Never run on a GPU so far.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Part:
    """seconds: its limit, the start of its process and of the compiler included. goal: beside which it is shown."""

    name: str
    seconds: int
    what: str
    goal: str


# In the order of their worth: the last ones are left out where time is short.
PARTS = (
    Part("train-160m", 100, "pythia-160m, seq 2048, bf16, compiled; a save", "460k tokens/s, MFU 45 %; stall 50 ms"),
    Part("train-1b", 130, "pythia-1b, the same", "82k tokens/s, 52 % MFU; stall 0.3 s"),
    Part("generate-1b", 60, "Llama-3.2-1B's shape, bf16, one text, 128 + 128", "900 tokens/s, 0.7 of bandwidth"),
    Part("generate-8b", 60, "Llama-3.1-8B's shape, the same", "145 tokens/s, 0.7 of bandwidth"),
    Part("lora-3b", 110, "Llama-3.2-3B's shape, LoRA r 16, packed, bf16, compiled", "16k tokens/s in 9 GB"),
    Part("restart", 60, "quickstart, SIGKILL of the worker to the next step", "under 3 s"),
    Part("train-8b-bf16", 90, "Llama-3.1-8B's shape, 4 of 32 layers, bf16", "the base of the next"),
    Part("train-8b-fp8", 90, "the same with fp8 products (torchao)", "1.15 x bf16"),
    Part("attention", 30, "torch's kernels side by side", "which one to prefer"),
    Part("loss", 20, "head and loss in slices, 50k and 128k vocabularies", "memory far below all logits"),
    Part("train-llama-1b-bf16", 80, "Llama-3.2-1B shape, bf16, compiled", "the base of the next"),
    Part("train-llama-1b-fp8", 80, "the same with fp8 products (torchao)", "1.15 x bf16"),
)  # fmt: skip


def main() -> None:
    options = parse()
    parts = [part for part in PARTS if options.only is None or part.name in options.only]
    if options.dry_run:
        for part in parts:
            print(f"{part.name:20} at most {part.seconds:4} s   {part.what}; goal: {part.goal}")
        print(f"all of them {sum(part.seconds for part in parts)} s at most, cut at {60 * options.minutes:.0f} s")
        return
    facts = machine(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * options.minutes
    results: dict[str, dict[str, Any]] = {}
    for part in parts:
        results[part.name] = run_part(part, options, deadline)
        written = write(facts, results, options)
        print(f"{part.name}: {json.dumps(short(results[part.name]))}", flush=True)
    print(f"written: {written}")
    if any("error" in result for result in results.values()):
        sys.exit(1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="list the parts and their limits")
    parser.add_argument("--only", type=lambda text: text.split(","), help="names of parts, by commas")
    parser.add_argument("--minutes", type=float, default=9.5, help="for all parts together")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the result file")
    parser.add_argument("--scratch", help="folder for runs and checkpoints, 30 GB; default: the system's own")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, with --device cpu")
    options = parser.parse_args()
    unknown = set(options.only or ()) - {part.name for part in PARTS}
    if unknown:
        parser.error(f"--only: no part {', '.join(sorted(unknown))}; there are {', '.join(p.name for p in PARTS)}")
    if options.tiny != (options.device == "cpu"):
        parser.error("--device cpu and --tiny go together: whole sizes would take hours on a CPU")
    return options


def machine(device: str) -> dict[str, str]:
    """Asked of a process of its own: this one must hold no memory of the GPU."""
    ask = (
        "import json, torch; on = torch.cuda.is_available(); print(json.dumps({"
        "'torch': torch.__version__, 'cuda': str(torch.version.cuda),"
        "'device': torch.cuda.get_device_name() if on else 'CPU',"
        "'memory': f'{torch.cuda.get_device_properties(0).total_memory / 1e9:.0f} GB' if on else ''}))"
    )
    asked = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    facts: dict[str, str] = json.loads(asked.stdout.splitlines()[-1])
    if device == "cuda" and facts["device"] == "CPU":
        raise SystemExit(
            "no GPU that torch can use on this machine; --dry-run lists the parts, --device cpu --tiny tries them"
        )
    return facts | {"python": platform.python_version(), "cpu": f"{os.cpu_count()} cores, {platform.machine()}"}


def run_part(part: Part, options: argparse.Namespace, deadline: float) -> dict[str, Any]:
    left = deadline - time.monotonic()
    if left < min(part.seconds, 30):
        return {"not run": f"{left:.0f} s are left of --minutes {options.minutes:g}"}
    with tempfile.TemporaryDirectory(dir=options.scratch, prefix=f"{part.name}-", ignore_cleanup_errors=True) as folder:
        argv = [sys.executable, str(HERE / "gpu_parts.py"), part.name, folder]
        argv += ["cpu"] if options.device == "cpu" else []
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "8")}
        if options.device == "cpu":
            env["CUDA_VISIBLE_DEVICES"] = ""
        limit = min(part.seconds, left) if options.device == "cuda" else left
        return result_of(argv, env, Path(folder), limit)


def result_of(argv: list[str], env: dict[str, str], folder: Path, limit: float) -> dict[str, Any]:
    with open(folder / "output.txt", "wb") as output:
        process = subprocess.Popen(argv, env=env, stdout=output, stderr=output, start_new_session=True)
        try:
            code = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the session that this process began
            process.wait()
            return {"error": f"not done after {limit:.0f} s", **told(folder)}
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    file = folder / "result.json"
    if not file.exists():
        return {"error": f"the process ended with {code}", **told(folder)}
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def told(folder: Path) -> dict[str, str]:
    """The end of what a part has written: its own output, and the log of its worker."""
    files = [folder / "output.txt", *sorted(folder.glob("run/attempts/*/logs/*.log"))]
    return {file.name: file.read_text(errors="replace")[-2000:] for file in files if file.exists()}


def short(result: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in result.items() if name not in ("traceback", "output.txt") and ".log" not in name
    }


def write(facts: dict[str, str], results: dict[str, dict[str, Any]], options: argparse.Namespace) -> Path:
    date = datetime.date.today().isoformat()
    kind = "gpu-tiny" if options.tiny else "gpu"
    path: Path = options.out / f"{date}-{kind}.md"
    command = " ".join(["python benchmarks/gpu.py", *sys.argv[1:]])
    lines = [f"# {date}, one GPU: {facts['device']}", ""]
    if options.tiny:
        lines += ["Tiny sizes on a CPU, to try the code: **none of these figures means anything.**", ""]
    lines += [", ".join(f"{name} {value}" for name, value in facts.items() if value) + f". `{command}`", ""]
    lines += ["Medians, spread in brackets.", "", "| part | what | goal | measured |", "|---|---|---|---|"]
    for part in PARTS:
        if part.name in results:
            lines.append(f"| {part.name} | {part.what} | {part.goal} | {in_words(short(results[part.name]))} |")
    lines += compared(results)
    path.write_text("\n".join(lines) + "\n")
    path.with_suffix(".json").write_text(
        json.dumps({"machine": facts, "command": command, "results": results}, indent=1)
    )
    return path


def compared(results: dict[str, dict[str, Any]]) -> list[str]:
    lines = [""]
    for name in ("train-8b", "train-llama-1b"):
        rates = [results.get(f"{name}-{precision}", {}).get("tokens/s") for precision in ("fp8", "bf16")]
        if all(rates):
            lines.append(f"{name}: fp8 / bf16 {rates[0] / rates[1]:.3f} (goal 1.15).")
    return lines if len(lines) > 1 else []


def in_words(value: Any) -> str:
    if isinstance(value, dict) and set(value) == {"median", "min", "max"}:
        return f"{value['median']:g} ({value['min']:g} to {value['max']:g})"
    if isinstance(value, dict):
        return "; ".join(f"{name} {in_words(own)}" for name, own in value.items())
    if isinstance(value, list):
        return ", ".join(map(in_words, value))
    return str(value).replace("|", "/").replace("\n", " ")


if __name__ == "__main__":
    main()
