"""docs/chat.md's pictures of the page, from a real browser: python benchmarks/screenshots.py --agent runs/NAME

Needs Chromium (apt-get install chromium) and a run, for the tabs Compare and Training.
"""

import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import tyro
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parents[1]
URL = "http://127.0.0.1:7871/"


def open_page(browser: Browser, width: int, height: int, dark: bool = False) -> Page:
    page = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", device_scale_factor=1.5
    ).new_page()
    page.goto(URL)
    page.get_by_role("button", name="Settings of the replies").click()
    page.get_by_label("Seed").fill("3")
    page.get_by_role("button", name="Settings of the replies").click()
    return page


def say(page: Page, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Stop").wait_for()
    page.get_by_role("button", name="Retry").wait_for()


def main(agent: str, out: Path = ROOT / "docs") -> None:
    """
    Args:
        agent: as in chat_app.py.
        out: the folder for the pictures.
    """
    out.mkdir(exist_ok=True)
    server = subprocess.Popen([sys.executable, ROOT / "chat_app.py", "--agent", agent, "--port", "7871"])
    try:
        while True:
            try:
                urllib.request.urlopen(URL)
                break
            except OSError:
                if server.poll() is not None:
                    raise SystemExit("chat_app.py did not start") from None
                time.sleep(0.5)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = open_page(browser, 900, 860)
            for text in ("Good morning! How are you?", "Do you have any plans for the weekend?"):
                say(page, text)
            page.locator("summary").last.click()
            page.wait_for_timeout(1500)
            page.screenshot(path=out / "chat.png")

            page = open_page(browser, 900, 800, dark=True)
            page.get_by_role("tab", name="Compare").click()
            page.get_by_label("Message for both").fill("What would you like to eat?")
            page.get_by_role("button", name="Compare", exact=True).click()
            page.get_by_text("Which reply is better?").wait_for()
            page.screenshot(path=out / "compare.png")

            page = open_page(browser, 900, 860)
            page.get_by_role("tab", name="Training").click()
            page.get_by_role("img", name="charts/episodic_return").wait_for()
            page.screenshot(path=out / "training.png")

            page = open_page(browser, 390, 780)
            say(page, "Can you help me? I lost my wallet.")
            page.wait_for_timeout(500)
            page.screenshot(path=out / "phone.png")
            browser.close()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    tyro.cli(main)
