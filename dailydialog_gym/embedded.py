"""Where the embedded files are, and what is said when one of them is damaged."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"


def damaged(name: str = "") -> list[str]:
    """The files of the asset ``name``, a file or folder in `ASSETS`, that are missing or not what MANIFEST says."""
    entries = (line.split("  ") for line in (ASSETS / "MANIFEST").read_text().splitlines())
    return [
        file
        for checksum, file in entries
        if Path(file).is_relative_to(name)
        and not ((ASSETS / file).is_file() and hashlib.sha256((ASSETS / file).read_bytes()).hexdigest() == checksum)
    ]


@contextmanager
def asset(name: str) -> Iterator[Path]:
    """The path of an embedded file or folder, to be read inside the ``with``.

    Checksums take time, so they are compared only once reading has failed.

    Raises:
        ValueError: reading failed, and files of the asset are missing or damaged; the message says which.
    """
    try:
        yield ASSETS / name
    except Exception as error:
        files = [str(ASSETS / file) for file in damaged(name)]
        if not files:
            raise
        raise ValueError(
            f"missing or damaged in the installed package: {', '.join(files)}. Restore with "
            f"'git checkout -- dailydialog_gym/assets/{name}', or reinstall the package"
        ) from error
