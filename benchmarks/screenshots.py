"""Take the documentation's pictures and clips of the chat page with a real browser.

    python benchmarks/screenshots.py --agent runs/NAME

It needs Chromium (apt-get install chromium), and a run's folder as the agent, for the tabs Training and Rollouts.
"""

import io
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import tyro
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parents[1]
SETTLE = 700  # milliseconds that an animation takes


class Clip:
    """Frames of a page, as a GIF."""

    def __init__(self, page: Page):
        self.page, self.frames, self.times = page, [], []

    def shoot(self, milliseconds: int = 120) -> None:
        """A frame that stays for a time; an unchanged picture prolongs the frame before."""
        frame = Image.open(io.BytesIO(self.page.screenshot())).convert("P", palette=Image.Palette.ADAPTIVE, colors=64)
        if self.frames and frame.tobytes() == self.frames[-1].tobytes():
            self.times[-1] += milliseconds
        else:
            self.frames.append(frame)
            self.times.append(milliseconds)

    def save(self, path: Path) -> None:
        first, *others = self.frames
        first.save(path, save_all=True, append_images=others, duration=self.times, loop=0, optimize=True)


def open_page(browser: Browser, url: str, width: int, height: int, dark: bool = False, scale: float = 1.5) -> Page:
    page = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", device_scale_factor=scale
    ).new_page()
    page.goto(url)
    page.get_by_role("textbox", name="Your message").first.wait_for()
    page.get_by_label("Toggle Sidebar").click()
    page.get_by_label("Seed").fill("3")
    page.get_by_label("Toggle Sidebar").click()
    page.wait_for_timeout(SETTLE)
    return page


def say(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="Your message").first.fill(text)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Stop").wait_for()
    page.get_by_role("button", name="Send").first.wait_for()
    page.wait_for_timeout(SETTLE)


def take_pictures(browser: Browser, url: str, out: Path) -> None:
    page = open_page(browser, url, 1200, 760)
    for text in ("Good morning! How are you?", "Do you have any plans for the weekend?"):
        say(page, text)
    page.locator("[data-testid=bot]").last.click()
    page.locator(".token").nth(2).hover()
    page.wait_for_timeout(SETTLE)
    page.screenshot(path=out / "chat.png")

    page = open_page(browser, url, 1200, 760, dark=True)
    page.get_by_role("tab", name="Compare").click()
    for text in ("Are you free this weekend?", "What would you like to eat?"):
        page.get_by_role("textbox", name="Your message to both").fill(text)
        page.keyboard.press("Enter")
        page.get_by_text("Which reply is better? Press").wait_for()
        page.wait_for_timeout(SETTLE)
        page.screenshot(path=out / "compare.png")
        page.keyboard.press("1")
        page.get_by_text("Saved as number").wait_for()

    page = open_page(browser, url, 1200, 860)
    for tab, ready in (("Training", ".run-curves svg"), ("Rollouts", ".replies .token")):
        page.get_by_role("tab", name=tab).click()
        page.locator(ready).first.wait_for()
        page.wait_for_timeout(SETTLE)
        page.screenshot(path=out / f"{tab.lower()}.png")

    page = open_page(browser, url, 390, 780, dark=True)
    say(page, "Can you help me? I lost my wallet.")
    page.screenshot(path=out / "phone.png")


def take_clips(browser: Browser, url: str, out: Path) -> None:
    page = open_page(browser, url, 800, 520, scale=1)
    clip = Clip(page)
    for text in ("Hi! How are you today?", "What are you doing this weekend?"):
        page.get_by_role("textbox", name="Your message").first.focus()
        for start in range(0, len(text), 4):
            page.keyboard.type(text[start : start + 4])
            clip.shoot()
        page.keyboard.press("Enter")
        for _ in range(15):
            clip.shoot()
        clip.shoot(1000)
    page.locator("[data-testid=bot]").last.click()
    page.locator(".token").first.wait_for()
    for place in range(3):
        page.locator(".token").nth(place).hover()
        page.wait_for_timeout(100)
        clip.shoot(1200)
    clip.save(out / "chat.gif")

    page = open_page(browser, url, 800, 520, scale=1)
    page.get_by_role("tab", name="Rollouts").click()
    page.locator(".replies .token").first.wait_for()
    clip, number = Clip(page), page.get_by_label("number input for Iteration")
    last = int(number.input_value())
    for iteration in sorted({max(1, last * share // 4) for share in range(5)}):
        number.fill(str(iteration))
        page.keyboard.press("Tab")
        page.wait_for_timeout(SETTLE)
        clip.shoot(1000)
    for measure in ("Reward", "KL", "Advantage"):
        page.get_by_label(measure, exact=True).check()
        page.wait_for_timeout(SETTLE)
        clip.shoot(1200)
    for place in range(3):
        page.locator(".replies .token").nth(place).hover()
        page.wait_for_timeout(100)
        clip.shoot(1200)
    clip.save(out / "rollouts.gif")


def main(agent: str, out: Path = ROOT / "docs") -> None:
    """
    Args:
        agent: the agent to talk to, as in chat_app.py.
        out: the folder for the pictures.
    """
    out.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
    votes = Path(tempfile.mkdtemp()) / "votes.jsonl"
    command = [sys.executable, ROOT / "chat_app.py", "--agent", agent, "--votes", votes, "--port", url[17:-1]]
    server = subprocess.Popen(command)
    try:
        while True:
            try:
                urllib.request.urlopen(url)
                break
            except OSError:
                if server.poll() is not None:
                    raise SystemExit("chat_app.py did not start") from None
                time.sleep(0.5)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            take_pictures(browser, url, out)
            take_clips(browser, url, out)
            browser.close()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    tyro.cli(main)
