"""Read files, and write files and folders that are complete at any moment, even if the process is killed.

Reading raises a one-line error for what is not a file, or not text.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from codecs import BOM_UTF8 as BOM
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any


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


def write_folder(target: Path, write: Callable[[Path], Any]) -> None:
    """Replace the folder ``target`` with what ``write`` puts into the empty folder that it is given.

    If the process is killed or the machine stops, ``target`` is the complete old or the complete new folder. For an
    instant between the two it does not exist.
    """
    fresh, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        write(fresh)
        for path in (*fresh.rglob("*"), fresh):
            _sync(path)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_file(target: Path, write: Callable[[Path], Any]) -> None:
    """Replace the file ``target`` with what ``write`` puts into the path that it is given.

    ``target`` is the complete old or the complete new file at any moment.
    """
    fresh = target.with_name(f".{target.name}.new")
    try:
        write(fresh)
        _sync(fresh)
        fresh.replace(target)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def write_text(target: Path, text: str) -> None:
    """Replace the content of the file ``target``, see `write_file`."""
    write_file(target, lambda fresh: fresh.write_text(text, encoding="utf-8"))


def _sync(path: Path) -> None:
    if sys.platform == "win32" and path.is_dir():
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows syncs what can be written
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
