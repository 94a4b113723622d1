"""Bundled recipes and clusters by name, and the user's own clusters. Finds files; reads none."""

from __future__ import annotations

from pathlib import Path


def recipe_folder() -> Path:
    import recipes

    return Path(next(iter(recipes.__path__)))


def bundled_recipes() -> list[str]:
    """Names of the recipes that come with launchyard, such as pretrain/pythia-160m."""
    folder = recipe_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def cluster_files() -> dict[str, Path]:
    """Names that --cluster takes and their files; the user's own come before the bundled ones."""
    import clusters

    folders = [Path(next(iter(clusters.__path__))), own_clusters()]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def own_clusters() -> Path:
    import platformdirs

    return Path(platformdirs.user_config_dir("launchyard")) / "clusters"


def monitoring_folder() -> Path:
    """Configuration of Prometheus and Grafana, alert rules and dashboards."""
    import clusters

    return Path(next(iter(clusters.__path__))) / "monitoring"
