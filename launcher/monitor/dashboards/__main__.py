"""Write the Grafana dashboards into ../dashboards: `make dashboards`. The files there are never edited by hand.

Built with Grafana's own typed builder (grafana-foundation-sdk), in the schema that Grafana 10 and later import.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from launchyard.launcher.monitor.dashboards.fleet import fleet_dashboard
from launchyard.launcher.monitor.dashboards.run import run_dashboard
from launchyard.launcher.recipe.bundled import monitoring_folder

FOLDER = monitoring_folder() / "grafana/dashboards"


def known_to_grafana(board: dict[str, Any]) -> dict[str, Any]:
    """Without what the builder adds and Grafana's own types do not have: an interval's keys in other variables, and a
    table's footer, which newer ones keep elsewhere. With a number for each panel, which the builder leaves out.
    """
    board.pop("style", None)  # a user's own choice since Grafana 10
    for variable in board["templating"]["list"]:
        for key in ("id", "auto", "auto_count", "auto_min"):
            variable.pop(key, None)
    every = [one for panel in board["panels"] for one in (panel, *panel.get("panels", ()))]
    for number, panel in enumerate(every, start=1):
        panel["id"] = number
        panel.get("options", {}).pop("footer", None)
    return board


def main() -> None:
    """With --check only name the files that would change, and exit with 1 if there are any."""
    changed = []
    for name, made in (("fleet", fleet_dashboard()), ("run", run_dashboard())):
        path = FOLDER / f"{name}.json"
        text = json.dumps(known_to_grafana(json.loads(JSONEncoder().encode(made.build()))), sort_keys=True, indent=2)
        text += "\n"
        if path.exists() and path.read_text() == text:
            continue
        changed.append(path.name)
        if "--check" not in sys.argv:
            path.write_text(text)
            print(f"wrote {path}")
    if changed and "--check" in sys.argv:
        sys.exit(f"{', '.join(changed)}: not up to date with the builder; run `make dashboards`")


if __name__ == "__main__":
    main()
