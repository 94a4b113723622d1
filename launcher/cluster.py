"""Clusters: places where runs happen, one YAML each. Knows no recipe; a scheduler's options come with its backend."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from launcher.backends import known_backends
from launcher.bundle import cluster_files, own_clusters
from launcher.errors import UserError
from launcher.explain import nearest
from launcher.snapshot import redact
from launcher.spellings import CLUSTER_WORDS
from launcher.strict import MAX_BYTES, Document, read_document, validate
from model.files import StoreOptions, set_store_options
from training.config import Storage

_SECRET_NAME = re.compile(
    r"(^|_)(SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIALS?|API_?KEY|ACCESS_KEY|PRIVATE_KEY)(_|$)", re.IGNORECASE
)
_RESERVED = ("LAUNCHYARD_", "TORCHELASTIC_")


_SIZE = r"^\d+ ?[KMGT]i?B$"
_BLANKED = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


_OURS = {
    "job-name": " (the run's id)",
    "nodes": ": --nodes, or resources.nodes of the recipe",
    "ntasks": "",
    "ntasks-per-node": ": one agent a node",
    "output": " (launch logs shows it)",
    "error": "",
    "open-mode": "",
    "requeue": "",
    "no-requeue": "",
    "signal": ": notice_seconds",
    "time": ": time_limit",
    "array": "",
    "dependency": "",
    "wrap": "",
    "export": ": environment",
} | {key: f": slurm.{key}" for key in ("partition", "account", "qos", "constraint", "exclude")}


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NodeShape(Part):
    """One machine. What is left out is counted on the machine itself (scheduler local) or left to the scheduler."""

    gpus: int | None = Field(default=None, ge=0, description="GPUs.")
    cpus: int | None = Field(default=None, ge=1, description="CPU cores.")
    memory: str | None = Field(default=None, pattern=_SIZE, description="Memory, e.g. 64GB.")


class ClusterMetrics(Part):
    """Who may see the numbers."""

    host: str | None = Field(
        default=None, description="Address that every worker's metrics listen on; default: the recipe's, loopback."
    )


class ClusterStorage(Part):
    """Where runs are stored and how their store is reached; a text alone is the url. Secrets stay in their own files.

    What is left out here is found where tools of AWS look: AWS_* variables, ~/.aws, the role of the machine.
    """

    url: str = Field(
        default="runs",
        min_length=1,
        description="Folder or URL under which run directories are made; local: from here.",
    )
    endpoint_url: str | None = Field(
        default=None, pattern=r"^https?://[^\s/]+", description="S3: address of a server that is not AWS."
    )
    region: str | None = Field(default=None, min_length=1, description="S3: region.")
    profile: str | None = Field(
        default=None, min_length=1, description="S3: profile of the credentials and config files."
    )
    credentials_file: str | None = Field(
        default=None, pattern=r"^[~/]", description="S3: credentials file, the same on all nodes; it holds the secrets."
    )
    retry_minutes: float = Field(
        default=15.0, ge=0, description="A run keeps trying that long when a store fails, then stops, resumable."
    )
    cache: str | None = Field(
        default=None, min_length=1, description="Folder of each node for chunks; default: the user's cache."
    )
    cache_size: str | None = Field(default=None, pattern=_SIZE, description="Room that it may take, e.g. 500GB.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in ("url", "endpoint_url"):
            value = getattr(self, key)
            if value is not None and redact(value) != value:
                raise ValueError(
                    f"{key}: the URL holds a password or a key, which would be stored in plain text; put it into a "
                    "credentials file and name that: credentials_file, profile"
                )
        return self

    @property
    def options(self) -> StoreOptions:
        """How a process of ours reaches the store. A credentials file without a profile means its `default`."""
        file = self.credentials_file and os.path.expanduser(self.credentials_file)
        profile = self.profile or ("default" if file else None)
        return StoreOptions(endpoint_url=self.endpoint_url, region=self.region, profile=profile, credentials_file=file)

    @property
    def in_training(self) -> Storage:
        """What a worker has to know besides."""
        return Storage(
            retry_seconds=self.retry_minutes * 60,
            cache=self.cache,
            cache_bytes=None if self.cache_size is None else bytes_of(self.cache_size),
        )


def _as_storage(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


def store_environment(options: StoreOptions) -> dict[str, str]:
    """The same for any process of a run, in the variables that all tools for S3 read. No secret among them.

    Some tools look at one spelling and some at another, so both are set: what the cluster says must win over what is
    exported where it is launched. Empty keys mean none: exported ones would win over the profile.
    """
    found = {
        "AWS_ENDPOINT_URL": options.endpoint_url,
        "AWS_ENDPOINT_URL_S3": options.endpoint_url,
        "AWS_REGION": options.region,
        "AWS_DEFAULT_REGION": options.region,
        "AWS_PROFILE": options.profile,
        "AWS_DEFAULT_PROFILE": options.profile,
        "AWS_SHARED_CREDENTIALS_FILE": options.credentials_file,
        **dict.fromkeys(_BLANKED, "" if options.profile else None),
    }
    return {name: value for name, value in found.items() if value is not None}


def bytes_of(size: str) -> int:
    """64GB -> 64 * 10**9, 64GiB -> 64 * 2**30."""
    found = re.fullmatch(r"(\d+) ?([KMGT])(i?)B", size)
    assert found is not None, size
    base = 1024 if found[3] else 1000
    return int(found[1]) * int(base ** ("KMGT".index(found[2]) + 1))


class Slurm(Part):
    """What sbatch is told at this site. What is left out is the site's default."""

    partition: str | None = Field(default=None, min_length=1, description="Partition, or several with commas.")
    account: str | None = Field(default=None, min_length=1, description="Account that is charged.")
    qos: str | None = Field(default=None, min_length=1, description="Quality of service.")
    constraint: str | None = Field(default=None, min_length=1, description="Features that nodes must have.")
    exclude: str | None = Field(default=None, min_length=1, description="Nodes never to use.")
    time_limit: str | None = Field(
        default=None, description="Wall time of one attempt where a recipe names none, e.g. 24:00:00."
    )
    notice_seconds: int = Field(
        default=120, ge=10, description="How long before the time limit the run saves and makes room."
    )
    extra: dict[str, str | int | bool] = Field(
        default={},
        description="More options of sbatch by their long names, e.g. {gres: 'gpu:h100:8', exclusive: true}.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in self.extra:
            if not re.fullmatch(r"[a-z][a-z0-9-]*", key):
                raise ValueError(f"extra.{key}: write the long name of an sbatch option without --, e.g. mem-per-gpu")
            if key in _OURS:
                raise ValueError(f"extra.{key}: the launcher sets it itself{_OURS[key]}")
        return self


_SENT = "the launcher sends its own code to the nodes"


class Ray(Part):
    """How a Ray cluster is reached, and what our processes find on its nodes."""

    address: str | None = Field(
        default=None,
        description="Its dashboard, http(s)://HOST:8265 or unix:///PATH; default: a Ray that the launcher starts here.",
    )
    token_file: str | None = Field(
        default=None, pattern=r"^[~/]", description="File with the token of a Ray that wants one (RAY_AUTH_MODE=token)."
    )
    python: str | None = Field(
        default=None, min_length=1, description="Interpreter of the nodes; default: python, or this one for a Ray here."
    )
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={}, description="More that each node must have, by Ray's names, e.g. {'accelerator_type:H100': 0.001}."
    )
    runtime_env: dict[str, Any] = Field(
        default={}, description="Ray's runtime environment for our processes: pip, uv, conda, image_uri and the like."
    )
    wait_seconds: float = Field(
        default=60.0, ge=0, description="For all nodes, before fewer are taken where resources.min_nodes allows it."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        taken = {"env_vars": "use environment", "working_dir": _SENT, "py_modules": _SENT, "excludes": _SENT}
        for key in self.runtime_env.keys() & taken.keys():
            raise ValueError(f"runtime_env.{key}: {taken[key]}")
        for key in self.resources.keys() & {"CPU", "GPU", "memory", "object_store_memory"}:
            raise ValueError(f"resources.{key}: say it in node (cpus, gpus, memory)")
        if self.address is not None and not re.fullmatch(r"https?://[^\s/@]+(/[^\s@]*)?|unix:///\S+", self.address):
            raise ValueError(
                f"address: {redact(self.address)} is not its dashboard's address, such as http://HOST:8265 "
                "(ray://HOST:10001 is for Ray's client)"
            )
        return self


class Container(Part):
    """The image that workers run in; it has launchyard and torch installed, and sees the run's folders."""

    runtime: Literal["pyxis", "apptainer"] = Field(description="pyxis: srun's own options; apptainer: apptainer exec.")
    image: str = Field(min_length=1, description="Image: a file, or docker://…")
    mounts: list[str] = Field(default=[], description="Folders as HOST:CONTAINER[:ro].")
    python: str = Field(default="python3", min_length=1, description="Its interpreter.")


class Cluster(Part):
    """A place: who schedules, what a node has, where runs are stored, what its processes find around them."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="Name for people.")
    scheduler: Literal["local", "slurm", "ray"] = Field(description="Who starts processes.")
    node: NodeShape = NodeShape()
    storage: Annotated[ClusterStorage, BeforeValidator(_as_storage, json_schema_input_type=str | ClusterStorage)] = (
        ClusterStorage()
    )
    environment: dict[str, str] = Field(default={}, description="Variables of all processes of a run. No secrets.")
    setup: list[str] = Field(
        default=[], description="Commands before the agent starts, where a scheduler runs scripts."
    )
    metrics: ClusterMetrics = ClusterMetrics()
    slurm: Slurm | None = Field(default=None, description="Only for the scheduler slurm.")
    ray: Ray | None = Field(default=None, description="Only for the scheduler ray.")
    container: Container | None = Field(default=None, description="Only where nodes run containers.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for kind in ("slurm", "ray"):
            if getattr(self, kind) is not None and self.scheduler != kind:
                raise ValueError(f"{kind}: for the scheduler {kind}; this one is {self.scheduler}")
        if self.container is not None and self.scheduler == "local":
            raise ValueError("container: the scheduler local starts processes of this machine; run `launch` inside one")
        if self.scheduler == "ray":
            self._refuse_for_ray()
        for key in self.environment:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
                raise ValueError(f"environment.{key}: not the name of a variable")
            if key.startswith(_RESERVED):
                raise ValueError(f"environment.{key}: reserved; the launcher sets it itself")
            if _SECRET_NAME.search(key):
                raise ValueError(
                    f"environment.{key}: looks like a secret, and a plan is stored in plain text; export it where you "
                    "launch, or use the credentials file of its service"
                )
        if self.scheduler == "local" and self.setup:
            raise ValueError("setup: the scheduler local runs in your own shell; set it up there and remove this key")
        return self

    def _refuse_for_ray(self) -> None:
        """What Ray says in its own way."""
        if self.container is not None:
            raise ValueError("container: on Ray an image is ray.runtime_env.image_uri")
        if self.setup:
            raise ValueError("setup: Ray runs no script; what nodes need is said in ray.runtime_env")


def load_cluster(name: str) -> Cluster:
    """A cluster by name (bundled or in the user's config folder) or by path; refuses what no backend can drive yet."""
    path = _find(name)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise UserError(f"{path}: larger than {MAX_BYTES:,} bytes; this is no cluster file")
    cluster = validate(Cluster, read_document(content, str(path)), CLUSTER_WORDS)
    if cluster.scheduler not in known_backends():
        raise UserError(
            f"{path}: scheduler: this version cannot drive {cluster.scheduler} yet; it can: "
            f"{', '.join(known_backends())}"
        )
    secrets = cluster.storage.options.credentials_file
    if secrets is not None and cluster.scheduler == "local" and not os.path.isfile(secrets):
        raise UserError(f"{path}: storage.credentials_file: {secrets}: no such file")
    return cluster


def reach_storage(cluster: Cluster) -> None:
    """From now on this process reaches stores as the cluster says."""
    set_store_options(cluster.storage.options)


def recipe_defaults(cluster: Cluster) -> Document:
    """What a place decides where a recipe says nothing."""
    host = cluster.metrics.host
    return Document({"metrics": {"host": host}} if host else {}, f"cluster {cluster.name}")


def _find(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_file() and (os.sep in name or name.endswith((".yaml", ".yml"))):
        return path
    known = cluster_files()
    if found := known.get(name.removesuffix(".yaml")):
        return found
    near = nearest(name, list(known))
    means = f"did you mean {near}?" if near else f"there are: {', '.join(known)}"
    raise UserError(
        f"--cluster {name}: neither a file nor a known cluster; {means}",
        hint=f"your own clusters are YAML files in {own_clusters()}",
    )
