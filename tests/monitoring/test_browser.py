"""The report page in a real browser: it lays itself out, in light and in dark, without a word of complaint."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from launchyard.launcher.report.history import read_story
from launchyard.launcher.report.html import report_page
from tests.monitoring.made import preempted_twice

pytestmark = pytest.mark.browser
# Added to a copy of the page, and read from what the browser makes of it.
PROBE = """<script>
const wide = [...document.querySelectorAll("main *")].filter(
  e => !e.closest(".scroll, pre") && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName);
const boxes = [...document.querySelectorAll("svg")].map(e => e.getBoundingClientRect());
const svgs = boxes.filter(r => r.width * r.height > 0);
document.title = JSON.stringify({wide, svgs: svgs.length, ink: getComputedStyle(document.body).color,
  paper: getComputedStyle(document.body).backgroundColor, scroll: document.documentElement.scrollWidth});
</script>"""


@pytest.fixture(scope="module")
def chromium() -> str:
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if found is None:
        pytest.skip("no Chromium here")
    return found


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return report_page(read_story(preempted_twice(tmp_path).run), why="It has completed.")


def browse(chromium: str, folder: Path, *words: str) -> str:
    argv = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    argv += [f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--v=0", *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_lays_itself_out(chromium: str, page: str, tmp_path: Path, width: int, dark: bool) -> None:
    import json
    from html import unescape

    path = tmp_path / "page.html"
    path.write_text(page.replace("</body>", f"{PROBE}</body>"))
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    dom = browse(chromium, tmp_path, f"--window-size={width},900", *scheme, "--dump-dom", f"file://{path}")
    title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert title is not None
    found = json.loads(unescape(title[1]))
    assert found["wide"] == [] and found["svgs"] == 6, found
    assert (found["paper"] == "rgb(22, 23, 26)") is dark, found
    assert found["ink"] != found["paper"]


def test_a_picture_of_it(chromium: str, page: str, tmp_path: Path) -> None:
    path, picture = tmp_path / "page.html", tmp_path / "page.png"
    path.write_text(page)
    browse(chromium, tmp_path, "--window-size=1280,2400", f"--screenshot={picture}", f"file://{path}")
    raw = picture.read_bytes()
    assert raw[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", raw[16:24]) == (1280, 2400)
    assert len(raw) > 50_000, "an empty page is smaller"
