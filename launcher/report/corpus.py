"""The page of a checked corpus: one self-contained HTML file, as that of a run. Its words are those of the terminal."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from launchyard.launcher.data.corpus_check import figures, listed
from launchyard.launcher.format import clock, count
from launchyard.run.svg import columns
from launchyard.storage.redact import redact

if TYPE_CHECKING:
    from launchyard.training.data.check.findings import CorpusFindings
    from launchyard.training.data.check.lengths import LengthSummary

HERE = Path(__file__).parent
MAX_SOURCES = 8


def corpus_page(found: CorpusFindings) -> str:
    """The page. Every text but SVG and CSS is escaped; passwords in URLs are left out."""
    import jinja2
    from markupsafe import Markup

    loader = jinja2.FileSystemLoader(HERE)
    here = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    more = len(found.sources) - MAX_SOURCES
    values: dict[str, object] = {
        "style": Markup((HERE / "page.css").read_text()),  # noqa: S704
        "nbsp": Markup("&nbsp;"),
        "title": redact(found.sources[0]) + (f" and {len(found.sources) - 1} more" if len(found.sources) > 1 else ""),
        "sources": [redact(source) for source in found.sources[:MAX_SOURCES]] + [f"{more} more"] * (more > 0),
        "figures": list(figures(found)),
        "lengths": [_drawn(tally) for tally in found.lengths],
        "lists": [(title, [redact(line) for line in lines]) for title, lines in listed(found)],
        "limits": found.limits,
        "now": clock(time.time()),
    }
    return here.get_template("corpus.html").render(values) + "\n"


def _drawn(tally: LengthSummary) -> dict[str, object]:
    from markupsafe import Markup

    bars = [(count(low), float(n)) for low, _, n in tally.histogram]
    drawn = columns(bars, label=f"documents by length in {tally.unit}")
    rows = [(mark, f"{length:,}") for mark, length in tally.percentiles.items()]
    return {"unit": tally.unit, "drawn": Markup(drawn), "rows": [*rows, ("longest", f"{tally.longest:,}")]}  # noqa: S704
