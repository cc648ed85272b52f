"""A run's folder: its name, its creation, and the lock that keeps a second process out."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import time
from pathlib import Path

from filelock import FileLock, Timeout

from dailydialog_gym.files import read_text, write_text

_HOLDER = ".lock-holder"
# Windows knows none of these characters, and no file can hold the surrogates that Python makes of what is not UTF-8
_NEVER = r'/\\:*?"<>|\x00-\x1f\ud800-\udfff'
# What Windows takes for a device, whatever follows the first dot
_DEVICE = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³]|conin\$|conout\$|clock\$) *(\..*)?", re.IGNORECASE)


def make_folder(runs: Path, name: str, config: str) -> Path:
    """Make the folder ``runs/name`` with ``config`` as its config.json. It never exists without that file.

    Raises:
        ValueError: the name is not one that a folder has on every system.
        FileExistsError: a run of this name exists.
    """
    # A leading dot hides a folder, Windows drops a dot or blank at the end, and Linux knows no longer names
    is_name = re.fullmatch(rf"[^.{_NEVER}][^{_NEVER}]*(?<![. ])", name) and not _DEVICE.fullmatch(name)
    if not is_name or len(name.encode()) > 200:
        raise ValueError(
            f"--run-name {name[:80]!r}: expected the name of a folder in runs/: at most 200 bytes, none of "
            '/ \\ : * ? " < > |, no dot at the beginning, no dot or blank at the end, and no name of a device of '
            "Windows, such as con, nul and aux.txt"
        )
    folder = runs / name
    fresh = runs / f".{name}.{secrets.token_hex(4)}.new"
    try:
        fresh.mkdir(parents=True)
        write_text(fresh / "config.json", config)
        if folder.exists():
            raise FileExistsError
        fresh.rename(folder)  # fails if another process has made the folder since
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        if not folder.exists():
            raise
        raise FileExistsError(
            f"{folder} exists{_holder(folder)}: choose another --run-name, continue that run with --resume {folder}, "
            "or remove it"
        ) from error
    return folder


def lock(folder: Path) -> FileLock:
    """Lock a run's folder for this process, until it ends or releases the lock.

    Raises:
        ValueError: another process holds the lock; the message says which.
    """
    held = FileLock(folder.resolve() / ".lock")
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"{folder} is in use{_holder(folder)}: wait until it ends, or stop it") from error
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    write_text(folder / _HOLDER, f"locked by process {os.getpid()} on {socket.gethostname()} at {since}")
    return held


def _holder(folder: Path) -> str:
    """Which process locked a run's folder last, in brackets; empty if none has."""
    file = folder / _HOLDER
    return f" ({read_text(file)})" if file.exists() else ""
