"""The report in a real browser, without a window: nothing fetched, no error, all rendered, the front answers clicks."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from html import unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from tests.reporting.contents_for_tests import example
from ude.reporting import pages

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine (Debian: apt-get install chromium)"),
]
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
    *("--enable-logging=stderr", "--v=0"),
)
CONTROL = "control.invalid"
"""A host that is asked for on purpose, and named in an error on purpose: shows that both would be seen."""
OWN = re.compile(r"(^|\.)(google|googleapis|gvt1|gstatic)\.com$")
"""What the browser asks by itself, for the time or its updates, whatever the page."""

# Runs in the page after its own script; what it sees is written where --dump-dom shows it.
PROBE = """
<img hidden src="http://control.invalid/image.png">
<script>
console.error('control.invalid');
window.addEventListener('load', () => {
  const seen = {};
  const box = node => node.getBoundingClientRect();
  const detail = () => document.getElementById('front-detail').textContent;
  seen.pictures = [...document.querySelectorAll('figure img')].map(image => image.naturalWidth);
  seen.math = [...document.querySelectorAll('h2 + .typeset math')].map(node => box(node).height);
  const [above, below] = document.querySelector('mfrac').children;
  seen.fraction = box(below).top - box(above).top;
  seen.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  seen.first = detail();
  document.querySelector('g[data-point="3"]').dispatchEvent(new MouseEvent('click', {bubbles: true}));
  seen.clicked = detail();
  seen.picked = document.querySelectorAll('.picked').length;
  document.querySelector('tr[data-point="0"]').click();
  seen.row = detail();
  const enter = new KeyboardEvent('keydown', {key: 'Enter', bubbles: true});
  document.querySelector('g[data-point="2"]').dispatchEvent(enter);
  seen.key = detail();
  seen.resources = performance.getEntriesByType('resource').map(own => own.name.slice(0, 60));
  const out = document.createElement('output');
  out.id = 'seen';
  out.textContent = JSON.stringify(seen);
  document.body.append(out);
});
</script>
"""


class Listener(BaseHTTPRequestHandler):
    """Notes which host every request is for, and has nothing."""

    asked: ClassVar[set[str]] = set()

    def do_GET(self) -> None:
        self.asked.add(self.headers.get("Host", "").split(":")[0])
        self.send_error(404)

    do_POST = do_HEAD = do_CONNECT = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module", params=[1000, 500], ids=["wide", "narrow"])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the page looks like from inside, what the browser logged, and which hosts were asked: all go to a server
    here, so that nothing leaves this machine."""
    folder = tmp_path_factory.mktemp("browser")
    page = pages.write(example(), folder / "report.html")
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    Listener.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = subprocess.run(
            [
                str(BROWSER),
                *OPTIONS,
                f"--user-data-dir={folder / 'profile'}",
                f"--proxy-server=http://127.0.0.1:{server.server_port}",
                f"--window-size={request.param},1200",
                "--dump-dom",
                page.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        server.shutdown()
    [found] = re.findall(r'<output id="seen">(.*?)</output>', done.stdout, re.S)
    asked = {host for host in Listener.asked if not OWN.search(host)}
    return {**json.loads(unescape(found)), "log": done.stderr, "asked": asked}


def test_nothing_is_fetched_and_nothing_is_wrong(seen: dict[str, Any]) -> None:
    assert [name for name in seen["resources"] if not name.startswith("data:") and CONTROL not in name] == []
    assert seen["asked"] == {CONTROL}
    said = [line for line in seen["log"].splitlines() if "CONSOLE" in line]
    assert said
    assert [line for line in said if CONTROL not in line and "404" not in line] == []


def test_figures_and_equations_are_rendered(seen: dict[str, Any]) -> None:
    assert len(seen["pictures"]) == 5
    assert min(seen["pictures"]) > 100
    assert max(seen["math"]) > 25
    assert seen["fraction"] > 5, "the fraction is not set as a fraction"


def test_page_fits_the_window(seen: dict[str, Any]) -> None:
    assert seen["overflow"] <= 0


def test_front_answers_mouse_row_and_keyboard(seen: dict[str, Any]) -> None:
    assert "formula1" in seen["first"], "the chosen one is shown first"
    assert "formula3" in seen["clicked"]
    assert "-3" in seen["clicked"]
    assert seen["picked"] == 2  # the point and its row
    assert "formula0" in seen["row"]
    assert "formula2" in seen["key"]
