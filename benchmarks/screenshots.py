"""Take the documentation's pictures and clips of the chat page with a real browser.

    python benchmarks/screenshots.py                      # trains the agent first: 40 iterations, some minutes
    python benchmarks/screenshots.py --agent runs/NAME    # or an agent that has been trained

It needs Chromium (apt-get install chromium). The pictures belong to docs/.
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
    page.get_by_role("button", name="Stop", exact=True).wait_for()
    page.get_by_role("button", name="Send", exact=True).first.wait_for()
    page.wait_for_timeout(SETTLE)


def open_tab(page: Page, name: str, ready: str) -> None:
    """Open a tab, and wait for an element of it, by its selector."""
    page.get_by_role("tab", name=name).click()
    page.locator(ready).first.wait_for()
    page.wait_for_timeout(SETTLE)


def take_pictures(browser: Browser, url: str, out: Path) -> None:
    for name, dark in (("chat", False), ("chat-dark", True)):
        page = open_page(browser, url, 1200, 760, dark)
        for text in ("Good morning! How are you?", "Do you have any plans for the weekend?"):
            say(page, text)
        page.locator("[data-testid=bot]").last.click()
        page.locator(".token").nth(2).hover()
        page.wait_for_timeout(SETTLE)
        page.screenshot(path=out / f"{name}.png")

    page = open_page(browser, url, 1200, 620, dark=True)
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
    open_tab(page, "Training", ".run-curves svg")
    page.screenshot(path=out / "training.png")

    page = open_page(browser, url, 390, 780)
    say(page, "Can you help me? I lost my wallet.")
    say(page, "It is black, and my keys are in it.")
    page.screenshot(path=out / "phone-chat.png")
    open_tab(page, "Training", ".run-table")
    page.locator(".run-table").scroll_into_view_if_needed()
    page.screenshot(path=out / "phone-training.png")
    page = open_page(browser, url, 390, 780, dark=True)
    open_tab(page, "Rollouts", ".replies .token")
    page.locator(".replies .token").nth(3).hover()
    page.wait_for_timeout(SETTLE)
    page.screenshot(path=out / "phone-rollouts.png")


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
    open_tab(page, "Rollouts", ".replies .token")
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


def train(folder: Path) -> Path:
    """Train the embedded policy. Returns: the run's folder."""
    command = [sys.executable, ROOT / "ppo_dialog.py", "--total-episodes", "5120", "--run-name", "demo"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "runs/demo"


def main(agent: str | None = None, out: Path = ROOT / "docs") -> None:
    """
    Args:
        agent: the run to show, as in chat_app.py; without it one is trained.
        out: the folder for the pictures.
    """
    out.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/"
    with tempfile.TemporaryDirectory() as folder:
        agent = str(Path(agent).resolve() if agent else train(Path(folder)))
        flags = ["--agent", agent, "--votes", "votes.jsonl", "--port", str(port)]
        server = subprocess.Popen([sys.executable, ROOT / "chat_app.py", *flags], cwd=folder)
        try:
            while server.poll() is None:
                try:
                    urllib.request.urlopen(url)
                    break
                except OSError:
                    time.sleep(0.5)
            else:
                raise SystemExit("chat_app.py did not start")
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
