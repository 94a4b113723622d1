"""Clusters: places where runs happen, one YAML each. Knows no recipe; each backend adds a section of its own."""

from __future__ import annotations

import os
import re
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, Self, cast

from pydantic import BeforeValidator, Field, create_model, field_validator, model_validator

from launchyard.errors import UserError, user_errors
from launchyard.host.environment import OWN_PREFIX
from launchyard.launcher.backends.section import FIRST, Part, known_backends
from launchyard.launcher.format import SIZE, bytes_of
from launchyard.launcher.recipe.aliases import CLUSTER_VOCABULARY
from launchyard.launcher.recipe.bundled import cluster_files, own_clusters
from launchyard.launcher.recipe.hints import nearest
from launchyard.launcher.recipe.yaml import MAX_BYTES, Document, read_document, validate
from launchyard.storage.files import set_store_options, typed_path
from launchyard.storage.options import Acl, StoreOptions
from launchyard.storage.redact import redact
from launchyard.training.spec import Storage

_SECRET_NAME = re.compile(
    r"(^|_)(SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIALS?|API_?KEY|ACCESS_KEY|PRIVATE_KEY)(_|$)", re.IGNORECASE
)
_RESERVED = (OWN_PREFIX, "TORCHELASTIC_")
# Exported identities that win over a profile: keys, and the role that a pod of Kubernetes is given.
_BLANKED = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
)


class NodeShape(Part):
    """One machine. A key left out is counted on the machine itself (scheduler local) or left to the scheduler."""

    gpus: int | None = Field(default=None, ge=0, description="GPUs it has; 0: train on the CPU.")
    cpus: int | None = Field(
        default=None, ge=1, description="CPUs; left out, a scheduler that has to be told them is asked."
    )
    memory: str | None = Field(default=None, pattern=SIZE, description="Memory, e.g. 64GB.")


class ClusterMetrics(Part):
    """Access to the metrics."""

    host: str | None = Field(
        default=None, description="Address that every worker's metrics listen on; default: the recipe's, loopback."
    )


class ClusterStorage(Part):
    """The place of runs and the access to their store; a text alone is the url. Secrets stay in their own files.

    Keys left out are found as tools of AWS find them: AWS_* variables, ~/.aws, the role of the machine.
    """

    url: str = Field(
        default="runs",
        min_length=1,
        description="Folder or URL under which run directories are made; local: from here.",
    )
    endpoint_url: str | None = Field(
        default=None, pattern=r"^https?://[^\s/]+", description="S3: address of a server that is not AWS."
    )
    region: str | None = Field(
        default=None,
        min_length=1,
        description="S3: name of the region, e.g. eu-central-1; default: from the environment.",
    )
    profile: str | None = Field(
        default=None, min_length=1, description="S3: profile of the credentials and config files."
    )
    credentials_file: str | None = Field(
        default=None, pattern=r"^[~/]", description="S3: credentials file, the same on all nodes; it holds the secrets."
    )
    kms_key_id: str | None = Field(
        default=None,
        min_length=1,
        description="S3: key of KMS with which files are encrypted (SSE-KMS); default: what the bucket does.",
    )
    acl: Acl | None = Field(
        default=None,
        description="S3: canned ACL of written files, e.g. bucket-owner-full-control in a bucket of another account.",
    )
    requester_pays: bool = Field(
        default=False, description="S3: agree to pay for requests to a bucket whose owner does not."
    )
    anonymous: bool = Field(default=False, description="S3: send no credentials, to read public data.")
    retry_minutes: float = Field(
        default=15.0, ge=0, description="A run keeps trying that long when a store fails, then stops, resumable."
    )
    cache: str | None = Field(
        default=None, min_length=1, description="Folder of each node for chunks; default: the user's cache."
    )
    cache_size: str | None = Field(default=None, pattern=SIZE, description="Room that it may take, e.g. 500GB.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in ("url", "endpoint_url"):
            value = getattr(self, key)
            if value is not None and redact(value) != value:
                raise ValueError(
                    f"{key}: the URL holds a password or a key, which would be stored in plain text; put it into a "
                    "credentials file and name that: credentials_file, profile"
                )
        if self.cache is not None:
            typed_path(self.cache)  # each node expands its own ~, but a variable is refused here
        if self.anonymous and (self.profile or self.credentials_file):
            raise ValueError("anonymous: means that no credentials are sent; leave out profile and credentials_file")
        return self

    @property
    def options(self) -> StoreOptions:
        """The options of the store for our processes. A credentials file without a profile means its `default`."""
        file = self.credentials_file and typed_path(self.credentials_file)
        profile = self.profile or ("default" if file else None)
        given = self.model_dump(include=set(StoreOptions.model_fields) - {"profile", "credentials_file"})
        return StoreOptions(**given, profile=profile, credentials_file=file)

    @property
    def in_training(self) -> Storage:
        """The storage settings of a worker."""
        return Storage(
            retry_seconds=self.retry_minutes * 60,
            cache=self.cache,
            cache_bytes=None if self.cache_size is None else bytes_of(self.cache_size),
        )


def _as_storage(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


def store_environment(options: StoreOptions) -> dict[str, str]:
    """The same for any process of a run, in the variables that all tools for S3 read. No secret among them.

    Some tools read one spelling and some the other, so both are set: the cluster must win over variables that are
    exported where it is launched. Empty values mean none.
    """
    found = {
        "AWS_ENDPOINT_URL": options.endpoint_url,
        "AWS_ENDPOINT_URL_S3": options.endpoint_url,
        "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "false" if options.endpoint_url else None,
        "AWS_REGION": options.region,
        "AWS_DEFAULT_REGION": options.region,
        "AWS_PROFILE": options.profile,
        "AWS_DEFAULT_PROFILE": options.profile,
        "AWS_SHARED_CREDENTIALS_FILE": options.credentials_file,
        **dict.fromkeys(_BLANKED, "" if options.profile else None),
    }
    return {name: value for name, value in found.items() if value is not None} | options.own_variables


class Container(Part):
    """The image that workers run in; it has launchyard and torch installed, and sees the run's folders."""

    runtime: Literal["pyxis", "apptainer"] = Field(description="pyxis: srun's own options; apptainer: apptainer exec.")
    image: str = Field(min_length=1, description="Image: a file, or docker://…")
    mounts: list[str] = Field(default=[], description="Folders as HOST:CONTAINER[:ro].")
    python: str = Field(default="python3", min_length=1, description="Its interpreter.")

    @field_validator("image")
    @classmethod
    def _image_from_home(cls, image: str) -> str:
        return typed_path(image)

    @field_validator("mounts")
    @classmethod
    def _mounts_from_home(cls, mounts: list[str]) -> list[str]:
        return [":".join([typed_path(host), *rest]) for host, *rest in (mount.split(":") for mount in mounts)]


class Cluster(Part):
    """A place: its scheduler, its nodes, the storage of its runs, the environment of its processes."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="Name for people.")
    scheduler: str = Field(description="Who starts processes.")
    node: NodeShape = NodeShape()
    storage: Annotated[ClusterStorage, BeforeValidator(_as_storage, json_schema_input_type=str | ClusterStorage)] = (
        ClusterStorage()
    )
    environment: dict[str, str] = Field(default={}, description="Variables of all processes of a run. No secrets.")
    setup: list[str] = Field(
        default=[],
        description="Commands of bash before a job starts, where a scheduler runs scripts; one that fails ends it.",
    )
    metrics: ClusterMetrics = ClusterMetrics()
    container: Container | None = Field(default=None, description="Only where nodes run containers.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for kind, options in _options().items():
            if options.SECTION is not None and getattr(self, kind) is not None and self.scheduler != kind:
                raise ValueError(f"{kind}: for the scheduler {kind}; this one is {self.scheduler}")
        _options()[self.scheduler].check(self)
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
        return self

    def section(self, scheduler: str) -> Any:
        """The options of a scheduler, as far as the file has them; its defaults where it has none."""
        kind = _options()[scheduler].SECTION
        return getattr(self, scheduler) or (kind() if kind is not None else None)


class _Options(Protocol):
    """The module `options` in the folder of each backend."""

    SECTION: type[Part] | None  # its part of a cluster file

    def check(self, cluster: Cluster) -> None:
        """ValueError for keys of a cluster file that mean nothing there."""


@cache
def _options() -> dict[str, _Options]:
    return {
        name: cast(_Options, import_module(f"launchyard.launcher.backends.{name}.options")) for name in known_backends()
    }


def _composed() -> type[Cluster]:
    """Cluster with the sections of all backends that there are."""
    sections: dict[str, Any] = {
        name: (options.SECTION | None, Field(default=None, description=f"Only for the scheduler {name}."))
        for name, options in _options().items()
        if options.SECTION is not None
    }
    scheduler: Any = (Literal[tuple(_options())], Field(description="Who starts processes."))
    return create_model("Cluster", __base__=Cluster, __doc__=Cluster.__doc__, scheduler=scheduler, **sections)


if not TYPE_CHECKING:
    Cluster = _composed()


def load_cluster(name: str) -> Cluster:
    """A cluster by name (bundled or in the user's config folder) or by path; refuses a scheduler without a backend."""
    path = _find(name)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise UserError(f"{path}: larger than {MAX_BYTES:,} bytes; not a cluster file")
    cluster = validate(Cluster, read_document(content, str(path)), CLUSTER_VOCABULARY)
    with user_errors(f"{path}: storage.credentials_file"):
        secrets = cluster.storage.options.credentials_file
    if secrets is not None and cluster.scheduler == FIRST and not os.path.isfile(secrets):
        raise UserError(f"{path}: storage.credentials_file: {secrets}: no such file")
    return cluster


def reach_storage(cluster: Cluster) -> None:
    """Sets the cluster's store options for this process."""
    set_store_options(cluster.storage.options)


def recipe_defaults(cluster: Cluster) -> Document:
    """Defaults of a place for keys that a recipe leaves out."""
    host = cluster.metrics.host
    return Document({"metrics": {"host": host}} if host else {}, f"cluster {cluster.name}")


def _find(name: str) -> Path:
    with user_errors("--cluster"):
        path = Path(typed_path(name))
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
