"""Paths of the embedded files, and an error that names those that are missing or damaged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dailydialog_gym.files import checksum

ASSETS = Path(__file__).parent / "assets"


def damaged(name: str = "") -> list[str]:
    """The files of an asset that are missing, or whose checksum is not the one in MANIFEST.

    Args:
        name: a file or folder in `ASSETS`. By default, all files are checked.
    """
    entries = (line.split("  ") for line in (ASSETS / "MANIFEST").read_text(encoding="utf-8").splitlines())
    return [
        file
        for expected, file in entries
        if Path(file).is_relative_to(name) and not ((ASSETS / file).is_file() and checksum(ASSETS / file) == expected)
    ]


@contextmanager
def asset(name: str) -> Iterator[Path]:
    """The path of an embedded file or folder, which is to be read inside the ``with`` block.

    The checksums are only compared if an error occurs in the block, because that takes time.

    Raises:
        ValueError: an error occurred in the block, and files of the asset are missing or damaged. The message names
            them.
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
