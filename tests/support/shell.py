"""`launch` as a person types it: a process of its own, in a folder of its own, away from the user's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from launchyard.host.processes import python_argv
from launchyard.run.own_code import PACKAGE

# Files that a person's own folder may hold, and what they are called is what we, or what we need, is called too.
SHADOWS = (
    *("model.py", "recipes.py", "launchyard.py", "torch.py", "yaml.py", "run.py", "storage/__init__.py"),
    *("training/__init__.py", "launcher/__init__.py", "clusters/__init__.py", "host/__init__.py"),
)


def cast_shadows(folder: Path, *, but: Sequence[str] = ()) -> None:
    """Files that nobody may import."""
    for name in set(SHADOWS) - set(but):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"raise SystemExit('a process has imported {name} of the working directory')\n")


def clone_code(folder: Path) -> Path:
    """A checkout of launchyard that a test may edit; to be used as PYTHONPATH."""
    shutil.copytree(PACKAGE, folder / PACKAGE.name)
    return folder


def edit_worker(clone: Path, said: str) -> None:
    """Let workers that run this code print something."""
    path = clone / "launchyard/training/worker.py"
    path.write_text(path.read_text().replace("import contextlib\n", f"import contextlib\nprint({said!r})\n", 1))


class Shell:
    """A working directory and user folders of its own; everything below `root` is watched."""

    def __init__(self, root: Path) -> None:
        self.root, self.here = root, root / "work"
        self.here.mkdir(parents=True)
        folders = {f"XDG_{kind}_HOME": str(root / kind.lower()) for kind in ("STATE", "CACHE", "CONFIG")}
        self.env = {**os.environ, **folders, "OMP_NUM_THREADS": "1", "HOME": str(root)}

    def __call__(self, *words: str, timeout: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*python_argv(sys.executable), "-m", "launchyard", *words],
            cwd=self.here,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    def files(self) -> set[str]:
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*")}


# -- variables that programs below a run read for themselves, as the shell of a launch may have them -----------------
# What salloc and srun set in the shell of a small job, for a launch from inside of it.
OF_A_JOB = {
    "SLURM_JOB_ID": "999999", "SLURM_JOBID": "999999", "SLURM_JOB_NODELIST": "elsewhere[1-2]",
    "SLURM_NODELIST": "elsewhere[1-2]", "SLURM_JOB_NUM_NODES": "7", "SLURM_NNODES": "7", "SLURM_NTASKS": "5",
    "SLURM_NPROCS": "5", "SLURM_NTASKS_PER_NODE": "5", "SLURM_TASKS_PER_NODE": "5", "SLURM_CPUS_PER_TASK": "61",
    "SLURM_CPUS_ON_NODE": "1", "SLURM_MEM_PER_CPU": "1", "SLURM_MEM_PER_NODE": "1", "SLURM_MEM_PER_GPU": "1",
    "SLURM_CPU_BIND": "quiet,mask_cpu:0x1", "SLURM_CPU_BIND_LIST": "0x1", "SLURM_CPU_BIND_TYPE": "mask_cpu:",
    "SLURM_STEP_ID": "33", "SLURM_STEPID": "33", "SLURM_STEP_NODELIST": "elsewhere1", "SLURM_PROCID": "4",
    "SLURM_LOCALID": "44", "SLURM_NODEID": "11", "SLURM_RESTART_COUNT": "9", "SLURM_SUBMIT_DIR": "/nowhere",
    "SLURM_GPUS": "64", "SLURM_GPUS_PER_NODE": "64", "SLURM_GPUS_PER_TASK": "64", "SLURM_DISTRIBUTION": "arbitrary",
    "SLURM_WORKING_CLUSTER": "other:127.0.0.1:1:0", "SLURM_OVERCOMMIT": "1", "SLURMD_NODENAME": "elsewhere1",
}  # fmt: skip
# Inputs of sbatch, srun, squeue, sinfo, scontrol and scancel, with values under which none of them does as it is asked.
OF_COMMANDS = {
    "SBATCH_PARTITION": "nowhere", "SBATCH_JOB_NAME": "other", "SBATCH_TIMELIMIT": "1", "SBATCH_EXPORT": "NONE",
    "SBATCH_ACCOUNT": "nobody", "SBATCH_QOS": "none", "SBATCH_CONSTRAINT": "none", "SBATCH_RESERVATION": "none",
    "SBATCH_OUTPUT": "/dev/null", "SBATCH_ERROR": "/nonexistent/x", "SBATCH_OPEN_MODE": "truncate",
    "SBATCH_NO_REQUEUE": "1", "SBATCH_SIGNAL": "KILL@1", "SBATCH_GRES": "gpu:99", "SBATCH_GPUS": "99",
    "SBATCH_MEM_PER_CPU": "1", "SBATCH_EXCLUSIVE": "user", "SBATCH_ARRAY_INX": "0-9", "SBATCH_CLUSTERS": "other",
    "SBATCH_DISTRIBUTION": "arbitrary", "SBATCH_WAIT": "1", "SBATCH_GET_USER_ENV": "1", "SBATCH_INPUT": "/nonexistent",
    "SALLOC_PARTITION": "nowhere", "SRUN_EXPORT_ENV": "NONE", "SRUN_CPUS_PER_TASK": "61", "SRUN_CONTAINER": "/x",
    "SLURM_PARTITION": "nowhere", "SLURM_EXPORT_ENV": "NONE", "SLURM_GRES": "gpu:99", "SLURM_STEP_GRES": "gpu:99",
    "SLURM_EXCLUSIVE": "1", "SLURM_WAIT": "1", "SLURM_KILL_BAD_EXIT": "1", "SLURM_LABELIO": "0",
    "SLURM_STDOUTMODE": "/dev/null", "SLURM_STDERRMODE": "/dev/null", "SLURM_MPI_TYPE": "nothing",
    "SLURM_TASK_PROLOG": "/nonexistent", "SLURM_PROLOG": "/nonexistent", "SLURM_REMOTE_CWD": "/nonexistent",
    "SLURM_WORKING_DIR": "/nonexistent", "SLURM_TIMELIMIT": "1", "SLURM_TEST_EXEC": "1", "SLURM_HOSTFILE": "/nowhere",
    "SLURM_MEM_BIND": "local", "SLURM_DEPENDENCY": "afterok:1", "SLURM_CLUSTERS": "other", "SLURM_DEBUG": "5",
    "SLURM_EXIT_ERROR": "0", "SLURM_IMMEDIATE": "1", "SLURM_THREADS": "1", "SLURMD_DEBUG": "4",
    "SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "1", "SLURM_TOPO_LEN": "1", "SLURM_CONF_OUT": "/dev/null",
    "PMI_FANOUT": "0", "PMI_TIME": "1", "SQUEUE_FORMAT": "%j", "SQUEUE_PARTITION": "nowhere", "SQUEUE_STATES": "FAILED",
    "SQUEUE_USERS": "nobody", "SQUEUE_NAMES": "other", "SQUEUE_ACCOUNT": "nobody", "SINFO_PARTITION": "nowhere",
    "SINFO_FORMAT": "%i", "SCONTROL_ALL": "1", "SCONTROL_FUTURE": "1", "SCANCEL_STATE": "PENDING",
    "SCANCEL_PARTITION": "nowhere", "SCANCEL_NAME": "other", "SCANCEL_USER": "nobody", "SCANCEL_INTERACTIVE": "1",
    "SACCT_LOCAL": "1", "SACCTMGR_X": "1",
}  # fmt: skip
OF_TORCHRUN = {
    "RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8", "GROUP_RANK": "31",
    "GROUP_WORLD_SIZE": "9", "ROLE_RANK": "3", "ROLE_NAME": "x", "ROLE_WORLD_SIZE": "8", "MASTER_ADDR": "nowhere",
    "MASTER_PORT": "1", "PET_NPROC_PER_NODE": "7", "PET_NNODES": "7", "PET_RDZV_ENDPOINT": "nowhere:1",
    "PET_STANDALONE": "1", "PET_NO_PYTHON": "1", "PET_MAX_RESTARTS": "9", "TORCHELASTIC_RUN_ID": "other",
    "TORCHELASTIC_USE_AGENT_STORE": "x", "TORCHELASTIC_RESTART_COUNT": "4", "TORCHELASTIC_ERROR_FILE": "/x/y",
    "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGUSR1", "PYTHON_EXEC": "/nonexistent", "TORCH_DIST_INIT_BARRIER": "1",
}  # fmt: skip
OF_RAY = {
    "RAY_ADDRESS": "nowhere:1", "RAY_JOB_ID": "7", "RAY_NAMESPACE": "x", "RAY_RUNTIME_ENV_HOOK": "no.such",
    "RAY_API_SERVER_ADDRESS": "http://nowhere:1", "RAY_JOB_CONFIG_JSON_ENV_VAR": "{}", "RAY_TMPDIR": "/nonexistent",
}  # fmt: skip
# Those with which the launcher itself still works; the rest are in OF_PYTHON_TOO.
OF_PYTHON = {
    "PYTHONSTARTUP": "/nonexistent", "PYTHONOPTIMIZE": "1", "PYTHONBREAKPOINT": "no.such",
    "PYTHONHASHSEED": "7", "PYTHONFAULTHANDLER": "1", "PYTHONCASEOK": "1",
    "PYTHONASYNCIODEBUG": "1", "PYTHONDEVMODE": "1", "PYTHONTRACEMALLOC": "1", "PYTHONWARNINGS": "ignore",
}  # fmt: skip
OF_PYTHON_TOO = {
    "PYTHONHOME": "/nonexistent", "PYTHONPLATLIBDIR": "x", "PYTHONEXECUTABLE": "/nonexistent", "PYTHONINSPECT": "1",
    "PYTHONIOENCODING": "latin-1",
}  # fmt: skip
OF_BASH = {"SHELLOPTS": "errexit:nounset:noexec", "BASHOPTS": "failglob", "POSIXLY_CORRECT": "1"}
FOREIGN = {**OF_A_JOB, **OF_COMMANDS, **OF_TORCHRUN, **OF_RAY, **OF_PYTHON, **OF_PYTHON_TOO, **OF_BASH}
