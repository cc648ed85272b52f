"""The documentation as it is built, in a real browser."""

import functools
import http.server
import subprocess
import sys
import threading

import pytest
from chromium import browser_test
from paths import ROOT


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files and logs nothing."""

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site: its folder, and where it is served."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    handler = functools.partial(QuietHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@browser_test
@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_pages_ask_nothing_of_other_hosts_and_fit_the_screen(site, browser, width, scheme):
    folder, url = site
    pages = sorted(path.relative_to(folder) for path in folder.rglob("*.html") if path.name != "404.html")
    assert len(pages) >= 13
    wrong = []
    with browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme) as context:
        page = context.new_page()
        page.on("console", lambda message: message.type == "error" and wrong.append((page.url, message.text)))
        page.on("pageerror", lambda error: wrong.append((page.url, str(error))))
        page.on("request", lambda request: request.url.startswith((url, "data:", "blob:")) or wrong.append(request.url))
        for path in pages:
            page.goto(f"{url}/{path}")
            page.locator("h1").first.wait_for()
            if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                wrong.append(f"{path} is wider than the screen of {width} pixels")
    assert wrong == []
