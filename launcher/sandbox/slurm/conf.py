"""The files that make a SLURM of pretended nodes on one machine: settings in, text out. Touches nothing.

Every daemon listens on loopback: the controller at 127.0.0.1, node i at 127.0.0.(10 + i), all nodes at one port.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_NODES = 64
HEAD = "head"  # the host name of the controller
DEFAULT_PARTITION = "batch"
GIB_PER_CPU = 2
MAX_HOURS = 24
# Fixed settings, which defaults of a SLURM package must not change.
_FIXED = """\
ReturnToService=2
MinJobAge=3600
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
SlurmdTimeout=10
SlurmctldTimeout=30
TaskPlugin=task/none
MpiDefault=none
MailProg=/bin/true
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
"""


class Settings(BaseModel):
    """The settings of the sandbox. The delays are for tests: a site has minutes where these are seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nodes: int = Field(default=4, ge=1, le=MAX_NODES)
    gpus_per_node: int = Field(default=2, ge=0, le=16)
    cpus_per_node: int = Field(default=8, ge=1, le=256)
    proctrack: Literal["linuxproc", "cgroup"] = "linuxproc"
    accounting: bool = False
    user_signal: bool = Field(default=False, description="Preemption sends the signal that a job asked for.")
    grace_seconds: int = Field(default=20, ge=0, description="From a preemption's notice to its end, in `spot`.")
    kill_wait_seconds: int = Field(default=5, ge=0, description="From SIGTERM to SIGKILL.")
    # SLURM takes 120 for less than 5, without a warning.
    cred_expire_seconds: int = Field(default=5, ge=5, description="A requeued job is held for one more than these.")


@dataclass(frozen=True)
class Place:
    """Paths and ports of one sandbox. Folders hold no character that has a meaning in SLURM's files."""

    folder: Path
    user: str
    controller_port: int
    node_port: int
    accounting_port: int
    first_job_id: int

    @property
    def etc(self) -> Path:
        """Configuration of daemons."""
        return self.folder / "etc"

    @property
    def conf(self) -> Path:
        """slurm.conf of people and jobs."""
        return self.folder / "slurm.conf"

    @property
    def munge_socket(self) -> Path:
        return self.folder / "munge"


def node_names(settings: Settings) -> list[str]:
    return [f"node{i}" for i in range(1, settings.nodes + 1)]


def address_of(node: str) -> str:
    return f"127.0.0.{10 + int(node.removeprefix('node'))}"


def memory_gib(settings: Settings) -> int:
    """Memory that each node claims to have. It is not enforced."""
    return settings.cpus_per_node * GIB_PER_CPU


def slurm_conf(settings: Settings, place: Place, *, for_people: bool = False) -> str:
    """slurm.conf for the daemons, or for people and jobs.

    Daemons listen at the address of their host name alone. A srun cannot: a step calls back to the source address of
    its call, here always 127.0.0.1; and the machine's own name may stand for any address.
    """
    folder = place.folder
    lines = [
        "ClusterName=sandbox",
        f"SlurmctldHost={HEAD}(127.0.0.1)",
        f"SlurmctldPort={place.controller_port}",
        f"SlurmdPort={place.node_port}",
        f"SlurmUser={place.user}",
        f"SlurmdUser={place.user}",
        "AuthType=auth/munge",
        "CredType=cred/munge",
        f"AuthInfo=socket={place.munge_socket},cred_expire={settings.cred_expire_seconds}",
        *([] if for_people else _for_daemons(place)),
        f"StateSaveLocation={folder}/state",
        f"SlurmdSpoolDir={folder}/%n",
        f"SlurmctldPidFile={folder}/log/slurmctld.pid",
        f"SlurmdPidFile={folder}/log/%n.pid",
        f"SlurmctldLogFile={folder}/log/slurmctld.log",
        f"SlurmdLogFile={folder}/log/%n.log",
        f"FirstJobId={place.first_job_id}",
        f"KillWait={settings.kill_wait_seconds}",
        f"ProctrackType=proctrack/{settings.proctrack}",
        *_FIXED.splitlines(),
        f"DefMemPerCPU={GIB_PER_CPU * 1024}",
        *(["SlurmctldParameters=preempt_send_user_signal"] if settings.user_signal else []),
        *_accounting(settings, place),
        *_nodes(settings),
        *_partitions(settings),
    ]
    return "\n".join([*lines, ""])


def _for_daemons(place: Place) -> list[str]:
    return ["CommunicationParameters=NoInAddrAny,NoCtldInAddrAny", f"TaskProlog={place.etc}/task_prolog"]


def task_prolog(place: Place) -> str:
    """Its output goes into the environment of tasks and batch scripts, where slurmd has put the daemons' file."""
    return f"#!/bin/sh\necho export SLURM_CONF={place.conf}\n"


def _accounting(settings: Settings, place: Place) -> list[str]:
    if not settings.accounting:
        return ["AccountingStorageType=accounting_storage/none", "JobAcctGatherType=jobacct_gather/none"]
    return [
        "AccountingStorageType=accounting_storage/slurmdbd",
        "AccountingStorageHost=127.0.0.1",
        f"AccountingStoragePort={place.accounting_port}",
        f"AccountingStoragePass={place.munge_socket}",  # with munge this is its socket
        "JobAcctGatherType=jobacct_gather/linux",
    ]


def _nodes(settings: Settings) -> list[str]:
    gpus = f" Gres=gpu:{settings.gpus_per_node}" if settings.gpus_per_node else ""
    shape = f"CPUs={settings.cpus_per_node} RealMemory={memory_gib(settings) * 1024}{gpus}"
    first = ["GresTypes=gpu"] if gpus else []
    return first + [
        f"NodeName={node} NodeAddr={address_of(node)} NodeHostname={node} {shape}" for node in node_names(settings)
    ]


def _partitions(settings: Settings) -> list[str]:
    """`batch` is left alone; a job in `prod` takes nodes from jobs in `spot`, which get a notice and are requeued."""
    limits = f"Nodes=ALL MaxTime={MAX_HOURS}:00:00 DefaultTime=1:00:00"
    return [
        f"PartitionName={DEFAULT_PARTITION} {limits} Default=YES PriorityTier=1 PreemptMode=OFF",
        f"PartitionName=spot {limits} PriorityTier=1 PreemptMode=REQUEUE GraceTime={settings.grace_seconds}",
        f"PartitionName=prod {limits} PriorityTier=10 PreemptMode=OFF",
    ]


def gres_conf(settings: Settings, place: Place) -> str:
    """Fake GPUs: links to /dev/null, since SLURM accepts character devices only."""
    if not settings.gpus_per_node:
        return ""
    last = settings.gpus_per_node - 1
    return f"Name=gpu File={place.etc}/gpu{f'[0-{last}]' if last else '0'}\n"


def cgroup_conf() -> str:
    """Used with proctrack cgroup only: processes are followed, and nothing is taken from them."""
    return "CgroupMountpoint=/sys/fs/cgroup\nConstrainCores=no\nConstrainRAMSpace=no\n"


def slurmdbd_conf(place: Place) -> str:
    """The database is reached by its Unix socket, which identifies the user: no password."""
    lines = [
        "AuthType=auth/munge",
        f"AuthInfo=socket={place.munge_socket}",
        "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny",
        f"DbdHost={HEAD}",
        "DbdAddr=127.0.0.1",
        f"DbdPort={place.accounting_port}",
        f"SlurmUser={place.user}",
        "StorageType=accounting_storage/mysql",
        "StorageHost=localhost",
        f"StorageUser={place.user}",
        "StorageLoc=slurm",
        f"PidFile={place.folder}/log/slurmdbd.pid",
        f"LogFile={place.folder}/log/slurmdbd.log",
    ]
    return "\n".join([*lines, ""])


def hosts_file(settings: Settings, *, machine: str) -> str:
    """/etc/hosts as daemons and jobs see it: our names, then the machine's own file, which stays as it is."""
    nodes = [f"{address_of(node)} {node}" for node in node_names(settings)]
    return "\n".join([f"127.0.0.1 localhost {HEAD}", *nodes, "", machine])
