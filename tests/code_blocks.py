"""The code blocks of README and of the pages in docs/."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(
    r"(?:^<!-- not run: (?P<why>[^\n]+) -->\n)?"
    r'^```(?P<language>\w*)(?: title="(?P<title>[^"\n]+)")?\n(?P<text>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block. Above one that a test does not run stands ``<!-- not run: WHY -->``."""

    page: Path
    line: int
    language: str
    title: str | None
    """the file that a reader saves it in"""
    why_not_run: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of a bash block, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        commands = [shlex.split(command, comments=True) for line in lines for command in line.split(" && ")]
        return [command for command in commands if command]


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a Markdown file, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text[: m.start()].count("\n") + 1, m["language"], m["title"], m["why"], m["text"])
        for m in _FENCE.finditer(text)
    ]


def write_files(page: Path, folder: Path) -> None:
    """Save the blocks of a page that have a title, as a reader does."""
    for block in blocks_of(page):
        if block.title:
            (folder / block.title).write_text(block.text, encoding="utf-8")
