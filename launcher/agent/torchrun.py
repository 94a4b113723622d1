"""The only file that spells torchrun's flags. Imports no torch: it reads the installed file of flags instead."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from launchyard.host.processes import python_argv
from launchyard.launcher.agent.start.rendezvous import BACKEND

# The node agent shields torchrun from these (it starts with them ignored) and asks the workers to stop by a file.
# SIGQUIT stays handled, so that a person can still end torchrun and its workers by hand.
HANDLED_SIGNALS = "SIGQUIT"
PROCESS = "launchyard.launcher.agent.start.torchrun_process"  # in which torchrun runs


def torchrun_argv(
    *,
    python: str,
    nnodes: int,
    node_rank: int,
    nproc_per_node: int,
    rdzv_endpoint: str,
    rdzv_id: str,
    module: str,
    args: Sequence[str],
    shutdown_timeout: int | None = None,
    join_timeout: int = 600,
    log_dir: str | None = None,
    flags: frozenset[str] | None = None,
) -> list[str]:
    """The argv of torchrun on one node. It never restarts workers: restarting has one owner, the launcher.

    rdzv_endpoint: host:port, the same on all nodes and new in each attempt, like rdzv_id.
    shutdown_timeout: seconds from TERM to KILL when one worker has failed.
    join_timeout: seconds in which all nodes must have joined.
    log_dir: folder for torchrun's own files; default: a new one in the temporary folder, which it leaves there.
    flags: those of the installed torchrun; default: looked up.
    """
    host = rdzv_endpoint.rsplit(":", 1)[0].strip("[]")
    if nnodes > 1 and (host in ("localhost", "::1", "") or host.startswith("127.")):
        raise ValueError(f"rendezvous at {rdzv_endpoint}: {nnodes} nodes cannot meet on a loopback address")
    known = installed_flags() if flags is None else flags
    argv = [
        *(*python_argv(python), "-m", PROCESS),
        f"--nnodes={nnodes}",
        f"--node-rank={node_rank}",
        f"--nproc-per-node={nproc_per_node}",
        "--max-restarts=0",
        "--start-method=forkserver",
        f"--rdzv-backend={BACKEND}",
        f"--rdzv-endpoint={rdzv_endpoint}",
        f"--rdzv-id={rdzv_id}",
        f"--rdzv-conf=join_timeout={join_timeout}",
        "--monitor-interval=0.1",
    ]
    if nnodes == 1:
        argv.append(f"--local-addr={host}")
    if "--signals-to-handle" in known:  # torch >= 2.10
        argv.append(f"--signals-to-handle={HANDLED_SIGNALS}")
    if "--shutdown-timeout" in known and shutdown_timeout is not None:  # torch >= 2.12
        argv.append(f"--shutdown-timeout={shutdown_timeout}")
    if log_dir is not None:
        argv.append(f"--log-dir={log_dir}")
    return [*argv, "--module", module, *args]


@cache
def installed_flags() -> frozenset[str]:
    """The optional flags of the installed torchrun; all of them where no torch is installed.

    Without torch this machine only plans; the agent asks again where it runs.
    """
    optional = ("--signals-to-handle", "--shutdown-timeout")
    spec = importlib.util.find_spec("torch")  # finds, does not import
    if spec is None or spec.origin is None:
        return frozenset(optional)
    source = (Path(spec.origin).parent / "distributed" / "run.py").read_text(encoding="utf-8")
    return frozenset(flag for flag in optional if f'"{flag}"' in source)
