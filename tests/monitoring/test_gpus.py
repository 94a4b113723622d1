"""Ranks are joined with what DCGM says of their GPUs; both dashboards are what Grafana's types in TypeScript say.

No GPU and no exporter are here: promtool evaluates the queries of the dashboard on series as both would write them.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from launchyard.launcher.monitor.dashboards.gpus import NONE
from launchyard.training.telemetry.recorder import gpu_uuid
from tests.monitoring.prometheus import plain_query
from tests.monitoring.test_agree import DASHBOARDS, panels
from tests.monitoring.test_rules import run

SCHEMA = "@grafana/schema@13.2.3"
TYPESCRIPT = "typescript@5.9.3"
KINDS = {
    "timeseries": ("timeseries", True),
    "stat": ("stat", False),
    "table": ("table", True),
    "bargauge": ("bargauge", False),
    "state-timeline": ("statetimeline", True),
}


def gpu_row() -> dict[str, Any]:
    board = json.loads(next(path for path in DASHBOARDS if path.stem == "run").read_text())
    return next(dict(panel) for panel in board["panels"] if panel["title"].startswith("GPUs"))


def rank(number: int, uuid: str) -> dict[str, str]:
    target = f'job="launchyard",cluster="c",run_id="r",attempt="0",node="n{number // 2}",instance="i{number}"'
    labels = f'rank="{number}",local_rank="{number % 2}",UUID="{uuid}"'
    return {"series": f"trainer_rank_info{{{target},{labels}}}", "values": "1x5"}


def gpu(uuid: str, index: int, value: str, instance: str = "d") -> list[dict[str, str]]:
    labels = f'Hostname="n",gpu="{index}",UUID="{uuid}",modelName="H100",job="dcgm",instance="{instance}"'
    names = (
        "DEV_GPU_UTIL",
        "PROF_PIPE_TENSOR_ACTIVE",
        "DEV_FB_USED",
        "DEV_POWER_USAGE",
        "DEV_GPU_TEMP",
        "DEV_XID_ERRORS",
    )
    return [{"series": f"DCGM_FI_{name}{{{labels}}}", "values": f"{value}x5"} for name in names]


@pytest.mark.monitoring
def test_ranks_have_the_figures_of_their_gpus(promtool: str, tmp_path: Path) -> None:
    """Two ranks on one GPU, one on a GPU that two exporters serve; a rank on a CPU and an idle GPU have none."""
    series = [rank(0, "GPU-a"), rank(1, "GPU-a"), rank(2, "GPU-b"), rank(3, "")]
    series += [*gpu("GPU-a", 0, "70"), *gpu("GPU-b", 1, "30"), *gpu("GPU-b", 1, "30", "d2"), *gpu("GPU-idle", 2, "5")]
    joined = [("0", "n0", "GPU-a", 70), ("1", "n0", "GPU-a", 70), ("2", "n1", "GPU-b", 30)]
    samples = [
        {"labels": f'{{rank="{number}",node="{node}",UUID="{uuid}"}}', "value": value}
        for number, node, uuid, value in joined
    ]
    queries = [panel["targets"][0]["expr"] for panel in gpu_row()["panels"] if "DCGM" in panel["targets"][0]["expr"]]
    assert len(queries) == 6
    cases = [{"expr": plain_query(query), "eval_time": "2m", "exp_samples": samples} for query in queries]
    case = {"interval": "1m", "input_series": series, "promql_expr_test": cases}
    (tmp_path / "cases.yml").write_text(yaml.safe_dump({"rule_files": [], "tests": [case]}))
    assert "SUCCESS" in run(promtool, "test", "rules", str(tmp_path / "cases.yml"))


def test_the_row_of_gpus_is_closed_and_says_when_it_has_nothing() -> None:
    row = gpu_row()
    assert row["collapsed"] and "where NVIDIA's DCGM exporter is scraped" in row["title"]
    assert all(panel["fieldConfig"]["defaults"]["noValue"] == NONE for panel in row["panels"])


@pytest.mark.parametrize(
    ("told", "uuid"),
    [("0af1-22", "GPU-0af1-22"), ("GPU-0af1-22", "GPU-0af1-22"), (None, "")],
)
def test_a_gpu_is_named_as_dcgm_names_it(monkeypatch: pytest.MonkeyPatch, told: str | None, uuid: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=told))
    assert gpu_uuid(torch.device("cuda", 1)) == uuid
    assert gpu_uuid(torch.device("cpu")) == ""


# -- Grafana's types -------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their package with the compiler, in a folder; its enums are made unions, for JSON has no names of members."""
    if shutil.which("npm") is None:
        pytest.skip("no npm here")
    folder = tmp_path_factory.mktemp("grafana")
    (folder / "package.json").write_text("{}")
    argv = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", SCHEMA, TYPESCRIPT]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=150, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot fetch {SCHEMA}: {done.stderr.strip()[-200:]}")
    for path in (folder / "node_modules/@grafana/schema/dist/types").rglob("*.d.ts"):
        text = path.read_text()
        union = re.sub(r"(?:declare )?(?:const )?enum (\w+) \{([^}]*)\}", _as_union, text)
        if union != text:
            path.write_text(union)
    return folder


def _as_union(enum: re.Match[str]) -> str:
    values = re.findall(r"= *(\"[^\"]*\"|-?\d+)", enum[2])
    return f"type {enum[1]} = {' | '.join(values) or 'never'};"


def typed_lines(path: Path) -> Iterator[str]:
    """A dashboard, its panels, and their options and fields, each as a constant of its type."""
    board = json.loads(path.read_text())
    for one in board["annotations"]["list"] if board["annotations"] else ():
        del one["expr"]  # read by Prometheus' plugin, which has types of its own
    yield f"export const board: Dashboard = {json.dumps({**board, 'panels': []})};"
    for number, row in enumerate(one for one in board["panels"] if one["type"] == "row"):
        yield f"export const row{number}: RowPanel = {json.dumps({**row, 'panels': []})};"
    for number, panel in enumerate(panels(path)):
        folder, has_fields = KINDS[panel["type"]]
        types = f"import('@grafana/schema/dist/types/raw/composable/{folder}/panelcfg/x/types.gen')"
        yield f"export const panel{number}: Panel = {json.dumps(panel)};"
        yield f"export const options{number}: Partial<{types}.Options> = {json.dumps(panel.get('options', {}))};"
        custom = panel["fieldConfig"]["defaults"].get("custom")
        if custom and has_fields:
            yield f"export const fields{number}: Partial<{types}.FieldConfig> = {json.dumps(custom)};"


@pytest.mark.monitoring
@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_typescript_finds_no_key_that_grafana_does_not_know(schema: Path, path: Path) -> None:
    head = "import type { Dashboard, Panel, RowPanel } from '@grafana/schema';"
    (schema / "check.ts").write_text("\n".join([head, *typed_lines(path)]))
    argv = ["node_modules/.bin/tsc", "--noEmit", "--strict", "--skipLibCheck", "--module", "esnext"]
    argv += ["--target", "es2022", "--moduleResolution", "node", "check.ts"]
    done = subprocess.run(argv, cwd=schema, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stdout[:3000]
