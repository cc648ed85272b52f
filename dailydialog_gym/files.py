"""Read files that a user names or that come with a model. What is not a file, or not text, is a one-line error."""

from __future__ import annotations

from codecs import BOM_UTF8 as BOM
from collections.abc import Iterable, Iterator
from pathlib import Path


def check_file(path: Path) -> None:
    """Raise ValueError if a path is a folder, a pipe, a socket or a device: reading one could wait for ever."""
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a pipe, a socket or a device"
        raise ValueError(f"{path} is {kind}: expected a file")


def check_output(path: Path, flag: str) -> None:
    """Raise ValueError if a flag names a file that can't be written, before hours of work are lost with it."""
    check_file(path)
    if not path.parent.is_dir():
        raise ValueError(f"{flag} {path}: the folder {path.parent} does not exist")


def check_folder(name: str) -> None:
    """Raise ValueError if a model's folder holds a pipe, a socket or a device. A hub id is no folder, and passes."""
    for path in Path(name).glob("*"):
        if not path.is_dir():
            check_file(path)


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        ValueError: it is no file, or not UTF-8. The message names it.
        OSError: it can't be read.
    """
    check_file(path)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text, got byte 0x{error.object[error.start]:02x}") from error


def decode_lines(name: str | Path, file: Iterable[bytes]) -> Iterator[str]:
    """The lines of a text file with their ends. Nothing but a line feed is one: U+2028 and form feeds occur in text.

    Args:
        name: of the file, for the message.
        file: the file, opened in binary mode.

    Raises:
        ValueError: a line is not UTF-8. The message names the file and the line.
    """
    for number, line in enumerate(file, 1):
        try:
            yield (line.removeprefix(BOM) if number == 1 else line).decode("utf-8")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise ValueError(f"{name}, line {number}: expected UTF-8 text, got byte 0x{byte:02x}") from error
