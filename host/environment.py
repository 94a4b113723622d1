"""The environment of our processes: names of our own variables, and the variables that children inherit.

A run gets what its plan says. Variables that say who their process is (a rank, a job, a step), or that are options of
the programs we call, mean the shell they were set in; in our processes they would change what was planned. One table
says which. Settings stay that say where packages, libraries, credentials and proxies are, and so does the locale.
"""

from __future__ import annotations

import os

OWN_PREFIX = "LAUNCHYARD_"
# Marks of the processes of a run, by which host/processes.py finds them.
MARK_RUN = "LAUNCHYARD_RUN_URL"
MARK_ATTEMPT = "LAUNCHYARD_ATTEMPT"
MARK_NODE = "LAUNCHYARD_NODE_RANK"
# From the agent of a node to its workers.
SCRATCH = "LAUNCHYARD_SCRATCH"  # a private folder of this attempt
AGENT_PID = "LAUNCHYARD_AGENT_PID"
JOB_END = "LAUNCHYARD_JOB_END"  # Unix time at which the scheduler ends the job
GRACE = "LAUNCHYARD_GRACE"  # seconds from a stop request until the agent ends the workers
IMAGE = "LAUNCHYARD_IMAGE"  # the container image of the workers
SERVER = "LAUNCHYARD_SERVER"  # the folder of the socket by which torchrun asks for workers
SLOTS = "LAUNCHYARD_SLOTS"  # files of the agent's memory for the workers' state, two for each of them
# From the owner of a run to the agents of its nodes, never to workers.
HUB = "LAUNCHYARD_HUB"  # where the owner listens
HUB_SECRET = "LAUNCHYARD_HUB_SECRET"  # noqa: S105  a name
REPLACED = "LAUNCHYARD_REPLACED"  # the agent whose place this one takes: its process and the start of that
_OF_AGENTS = frozenset({HUB, HUB_SECRET, REPLACED})
OF_A_RUN = _OF_AGENTS | {MARK_RUN, MARK_ATTEMPT, MARK_NODE, SCRATCH, AGENT_PID, JOB_END, GRACE, IMAGE, SERVER, SLOTS}
# Options of S3 for which no tool has a variable, from the launcher to all processes of a run.
S3_OPTIONS = {
    "kms_key_id": "LAUNCHYARD_S3_KMS_KEY_ID",
    "acl": "LAUNCHYARD_S3_ACL",
    "requester_pays": "LAUNCHYARD_S3_REQUESTER_PAYS",
    "anonymous": "LAUNCHYARD_S3_ANONYMOUS",
}
# The key that clients of `launch serve` need.
API_KEY = "LAUNCHYARD_API_KEY"
# Of the sandboxes.
RAY_SITE = "LAUNCHYARD_RAY_SITE"
DASHBOARDS = "LAUNCHYARD_DASHBOARDS"


# -- variables of others that do not reach our processes -------------------------------------------------------------
# Inputs of SLURM's commands, and what a job or a step is given (the man pages of 22.05), by their beginnings.
_SLURM = (
    "SLURM", "SBATCH_", "SALLOC_", "SRUN_", "SQUEUE_", "SINFO_", "SCONTROL_", "SACCT_", "SACCTMGR_", "SCANCEL_",
    "SSTAT_", "SPRIO_", "SREPORT_", "SATTACH_", "SCRONTAB_", "STRIGGER_", "SDIAG_", "PMI_FANOUT", "PMI_TIME",
)  # fmt: skip
_SLURM_KEPT = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"})  # which SLURM it is, and who asks
# Inputs of srun that say more than how the job was asked for; sbatch sets none of them from the options of a job.
_SRUN = (
    "SRUN_", "SLURM_CPU_BIND", "SLURM_MEM_BIND", "SLURM_GRES", "SLURM_STEP_GRES", "SLURM_PMI_", "PMI_FANOUT",
    "PMI_TIME", "SLURM_BCAST", "SLURM_STDERRMODE", "SLURM_STDINMODE", "SLURM_STDOUTMODE", "SLURM_EXPORT_ENV",
    "SLURM_HOSTFILE", "SLURM_EXACT", "SLURM_EXCLUSIVE", "SLURM_OVERLAP", "SLURM_WHOLE", "SLURM_IMMEDIATE",
    "SLURM_EXIT_", "SLURM_KILL_BAD_EXIT", "SLURM_LABELIO", "SLURM_UNBUFFEREDIO", "SLURM_WAIT", "SLURM_NO_KILL",
    "SLURM_OPEN_MODE", "SLURM_MPI_TYPE", "SLURM_PROLOG", "SLURM_EPILOG", "SLURM_TASK_PROLOG", "SLURM_TASK_EPILOG",
    "SLURM_REMOTE_CWD", "SLURM_WORKING_DIR", "SLURM_RESV_PORTS", "SLURM_SEND_LIBS", "SLURM_SIGNAL", "SLURM_TEST_EXEC",
    "SLURM_THREADS", "SLURM_THREAD_SPEC", "SLURM_TIMELIMIT", "SLURM_UMASK", "SLURM_DEBUG", "SLURMD_DEBUG",
    "SLURM_DISABLE_STATUS", "SLURM_MULTI", "SLURM_QUIT_ON_INTERRUPT", "SLURM_ACCOUNT", "SLURM_BURST_BUFFER",
    "SLURM_CLUSTERS", "SLURM_COMPRESS", "SLURM_CONSTRAINT", "SLURM_CORE_SPEC", "SLURM_DELAY_BOOT", "SLURM_DEPENDENCY",
    "SLURM_PARTITION", "SLURM_POWER", "SLURM_QOS", "SLURM_REQ_SWITCH", "SLURM_RESERVATION", "SLURM_SPREAD_JOB",
    "SLURM_SRUN_", "SLURM_STEP_", "SLURM_USE_MIN_NODES", "SLURM_WCKEY",
)  # fmt: skip
_SRUN_KEPT = frozenset({"SLURM_THREADS_PER_CORE"})
# Of torchrun for its own options (PET_), and of torchrun and the like for their workers.
_TORCHRUN = ("PET_", "TORCHELASTIC_", "TORCH_ELASTIC_")
_TORCHRUN_NAMES = frozenset(
    {
        "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "WORLD_SIZE", "LOCAL_WORLD_SIZE",
        "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PYTHON_EXEC", "TORCH_DIST_INIT_BARRIER",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "TORCH_DISTRIBUTED_USE_TORCHCOMMS",
    }
)  # fmt: skip
_PYTHON_KEPT = frozenset(  # where modules are, where compiled ones are written, and the encoding of paths
    {"PYTHONPATH", "PYTHONUSERBASE", "PYTHONNOUSERSITE", "PYTHONUTF8", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"}
)
_SHELL_NAMES = frozenset({"SHELLOPTS", "BASHOPTS", "POSIXLY_CORRECT"})  # options of a bash, which its children take
# Where git looks for a repository, as its hooks and `rebase --exec` set it (git rev-parse --local-env-vars).
_GIT_NAMES = frozenset(
    {
        "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX",
        "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_GRAFT_FILE", "GIT_SHALLOW_FILE", "GIT_NAMESPACE",
        "GIT_INTERNAL_SUPER_PREFIX", "GIT_IMPLICIT_WORK_TREE", "GIT_NO_REPLACE_OBJECTS", "GIT_REPLACE_REF_BASE",
    }
)  # fmt: skip


def api_key() -> str | None:
    """The key that the user's shell gives to a server."""
    return os.environ.get(API_KEY) or None


def own_environment() -> dict[str, str]:
    """Returns this process's variables for what a launcher starts or asks: none of a run, job or shell around it."""
    return {
        name: value
        for name, value in job_environment().items()
        if not (
            (name.startswith(_SLURM) and name not in _SLURM_KEPT)
            or name.startswith("RAY_")
            or (name.startswith("PYTHON") and name not in _PYTHON_KEPT)
            or name in _SHELL_NAMES | _GIT_NAMES
        )
    }


def job_environment() -> dict[str, str]:
    """The same inside a job of ours, for its agents and workers: the job is the plan's, only ranks are not theirs."""
    return {
        name: value
        for name, value in os.environ.items()
        if not (name in OF_A_RUN or name.startswith(_TORCHRUN) or name in _TORCHRUN_NAMES)
    }


def step_environment() -> dict[str, str]:
    """The same for srun inside a job of ours: with the variables of the job, by which srun finds it."""
    return {
        name: value for name, value in job_environment().items() if not name.startswith(_SRUN) or name in _SRUN_KEPT
    }


def variable(name: str) -> str | None:
    """Returns one variable of this process; None if it is not set."""
    return os.environ.get(name)


def set_unless_told(name: str, value: str) -> None:
    """For the libraries of this process, and its children."""
    os.environ.setdefault(name, value)


def set_variables(values: dict[str, str]) -> None:
    """Of this process, which began without knowing them."""
    os.environ.update(values)


def variables(beginnings: tuple[str, ...]) -> dict[str, str]:
    """Returns those of this process that begin so, sorted by name."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(beginnings)}
