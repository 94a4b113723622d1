"""Bundled recipes and clusters by name, and the user's own clusters. Finds files; reads none."""

from __future__ import annotations

from pathlib import Path

from launchyard.host.folders import user_config_folder
from launchyard.run.own_code import PACKAGE

ROOT = PACKAGE  # of a wheel, of a copy of the code, or by links of the repository


def recipe_folder() -> Path:
    return ROOT / "recipes"


def bundled_recipes() -> list[str]:
    """Names of the recipes that come with launchyard, such as pretrain/pythia-160m."""
    folder = recipe_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def cluster_files() -> dict[str, Path]:
    """Names that --cluster takes and their files; the user's own come before the bundled ones."""
    folders = [ROOT / "clusters", own_clusters()]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def own_clusters() -> Path:
    return user_config_folder("clusters")


def monitoring_folder() -> Path:
    """Configuration of Prometheus and Grafana, alert rules and dashboards."""
    return ROOT / "clusters/monitoring"
