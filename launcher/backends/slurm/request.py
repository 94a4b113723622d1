"""The very text that sbatch is given: a pure function of a plan's facts and the cluster. Asks no scheduler.

Options and quoting are submitit's; no value of a recipe becomes shell text. The script does one thing: it becomes the
owner of the run (launcher/backends/slurm/owner.py), which starts the agents with srun, whose arguments are here too.
"""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

from launchyard.errors import UserError
from launchyard.host.environment import IMAGE
from launchyard.host.folders import job_folder
from launchyard.host.packages import install_packages
from launchyard.host.processes import SAFE_PATH, python_argv
from launchyard.launcher.backends.request import SETUP_ERROR, After, Ask, Request
from launchyard.run.layout import JOB_CODE, job_output

if TYPE_CHECKING:
    from launchyard.launcher.backends.cluster import Cluster
    from launchyard.launcher.backends.slurm.options import Slurm

AGENT = "launchyard.launcher.backends.slurm.agent"


def make_request(cluster: Cluster, ask: Ask) -> Request:
    folder = job_folder(ask.run_url, ask.logs)
    log = f"{folder.replace('%', '%%')}/{job_output('%j')}"
    text = sbatch_text(cluster, ask, log=log, code=f"{folder}/{JOB_CODE}")
    return Request(text=text, notice_seconds=options_of(cluster).notice_seconds)


def sbatch_text(cluster: Cluster, ask: Ask, *, log: str, code: str) -> str:
    """The script. `log`: path, where %j becomes the job's number. `code`: the copy to run."""
    slurm = options_of(cluster)
    owner = [
        *python_argv(ask.python),
        "-u",
        "-m",
        "launchyard.launcher.backends.slurm.owner",
        ask.run_url,
        f"--notice={slurm.notice_seconds}",
    ]
    variables = '--job-id="$SLURM_JOB_ID" --restarts="${SLURM_RESTART_COUNT:-0}" --nodes="$SLURM_JOB_NODELIST"'
    return job_text(
        cluster,
        name=ask.run_id,
        command=owner,
        variables=variables,
        shape=(ask.shape.nnodes + ask.spares, ask.gpus),
        files=(log, code),
        more={
            "requeue": True,
            "signal": f"USR1@{slurm.notice_seconds}",
            **({"no-kill": True} if ask.spares else {}),  # the job lives on when a node dies
            **({"time": ask.time_limit} if ask.time_limit else {}),
            **_dependency(ask.after),
        },
    )


def _dependency(after: After) -> dict[str, str]:
    jobs = {"afterok": after.success, "afterany": after.end}
    text = ",".join(f"{kind}:{job}" for kind, job in jobs.items() if job is not None)
    return {"dependency": text} if text else {}


def job_text(
    cluster: Cluster,
    *,
    name: str,
    command: list[str],
    files: tuple[str, str | None],
    shape: tuple[int, int] = (1, 0),
    variables: str = "",
    more: dict[str, object],
) -> str:
    """The script of any job of ours, which becomes `command`, with `variables` of the shell behind it.

    files: where its output goes, and the folder of the code, if it is not the installed one. shape: nodes, and GPUs of
    each. more: further options of sbatch, before those of the cluster file.
    """
    try:
        from submitit.slurm.slurm import _make_sbatch_string
    except ModuleNotFoundError as error:
        what = f"a job of SLURM needs the package {error.name}, which {sys.executable} does not have"
        raise UserError(what, hint=install_packages("submitit>=1.5.2")) from error

    slurm = options_of(cluster)
    nodes, gpus = shape
    log, code = files
    limit = more.pop("time", None) or slurm.time_limit
    path = [] if code is None else [f"export PYTHONPATH={shlex.quote(code)}${{PYTHONPATH:+:$PYTHONPATH}}"]
    text = _make_sbatch_string(
        command=" ".join([f"exec {shlex.join(command)}", *([variables] if variables else [])]),
        folder=".",
        job_name=name,
        nodes=nodes,
        ntasks_per_node=1,
        cpus_per_task=cluster.node.cpus,
        gres=f"gpu:{gpus}" if gpus and not {"gres", "gpus-per-node", "gpus"} & slurm.extra.keys() else None,
        mem=memory(cluster),
        partition=slurm.partition,
        account=slurm.account,
        qos=slurm.qos,
        constraint=slurm.constraint,
        exclude=slurm.exclude,
        setup=[
            *_setup(cluster.setup),
            *path,
            *(f"export {name}={value}" for name, value in SAFE_PATH.items()),
        ],
        stderr_to_stdout=True,
        use_srun=False,
        additional_parameters={
            "output": log,
            **more,
            **({"time": limit} if limit else {}),
            **{key: value for key, value in slurm.extra.items() if value is not False},
        },
    )
    dropped = ("#SBATCH --wckey=submitit", *(() if limit else ("#SBATCH --time=5",)))  # defaults that are not ours
    return "\n".join(line for line in text.split("\n") if line not in dropped)


def _setup(commands: list[str]) -> list[str]:
    """The commands of a cluster file as lines of bash, in the job's own shell: one that fails ends the job.

    By `eval`, so that one which is no complete command cannot take in the lines after it. The status is looked at
    after each, not inside: `set -e` ends the scripts of modules and conda, in which commands may fail.
    """
    if not commands:
        return []
    message = f"{SETUP_ERROR}: setup of the cluster file ended with status $status at: $setup_command"
    lines = [
        f"trap 'status=$?; echo \"{message}\" >&2; exit $((status ? status : 1))' EXIT",
        'check_setup() { local status=$?; [ "$status" = 0 ] || exit "$status"; }',
    ]
    for command in commands:
        lines += [f"setup_command={shlex.quote(command)}", 'eval "$setup_command"', "check_setup"]
    return [*lines, "trap - EXIT", "unset setup_command check_setup"]


def options_of(cluster: Cluster) -> Slurm:
    found: Slurm = cluster.section("slurm")
    return found


def memory(cluster: Cluster) -> str | None:
    """Megabytes, which sbatch takes anywhere; None: the site's default."""
    from launchyard.launcher.format import bytes_of

    if cluster.node.memory is None or {"mem", "mem-per-cpu", "mem-per-gpu"} & options_of(cluster).extra.keys():
        return None
    return f"{bytes_of(cluster.node.memory) // 2**20}M"


def srun_argv(cluster: Cluster, *, nnodes: int, survives: bool = False) -> list[str]:
    """srun for one process on each node, before its own arguments. One that ends does not end the others.

    survives: nor does a node that dies.
    """
    argv = ["srun", f"--nodes={nnodes}", f"--ntasks={nnodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=0"]
    argv += [*(["--no-kill"] if survives else []), "--wait=0", "--label", "--unbuffered", "--export=ALL"]
    if cluster.node.cpus:
        argv.append(f"--cpus-per-task={cluster.node.cpus}")
    container = cluster.container
    if container is not None and container.runtime == "pyxis":
        argv.append(f"--container-image={container.image}")
        if container.mounts:
            argv.append(f"--container-mounts={','.join(container.mounts)}")
    if container is not None and container.runtime == "apptainer":
        argv += ["apptainer", "exec", "--nv", *(f"--bind={mount}" for mount in container.mounts), container.image]
    return argv


def agent_argv(cluster: Cluster, ask: Ask) -> list[str]:
    """srun and the agents, which stay while the job lives: what an attempt draws anew they hear from the owner."""
    code = f"{job_folder(ask.run_url, ask.logs)}/{JOB_CODE}"
    agent = [*agent_python(cluster, ask.python, code=code), "-u", "-m", AGENT, ask.run_url]
    return [*srun_argv(cluster, nnodes=ask.shape.nnodes + ask.spares, survives=ask.spares > 0), *agent]


def agent_python(cluster: Cluster, here: str, *, code: str | None) -> list[str]:
    """The interpreter on a node. That of a container is another one than ours: it gets none of our module folders.

    code: the copy to run; None: the package that the container has.
    """
    if cluster.container is None:
        return python_argv(here)
    folders = [folder for folder in (code, cluster.environment.get("PYTHONPATH")) if folder]
    path = [f"PYTHONPATH={':'.join(folders)}"] if folders else []
    unset = [word for name in ("PYTHONHOME", "PYTHONPATH", "PYTHONUSERBASE") for word in ("-u", name)]
    return ["env", *unset, *path, f"{IMAGE}={cluster.container.image}", *python_argv(worker_python(cluster, here))]


def worker_python(cluster: Cluster, here: str) -> str:
    return cluster.container.python if cluster.container else here
