"""Results that are kept until the files that they come from change."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache, wraps
from inspect import signature
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def cached_until_changed(*names: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A decorator like `functools.lru_cache`, for functions that read the files and folders that arguments name.

    Args:
        names: the arguments that may be paths. A result is forgotten when one of their files has changed.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        arguments = signature(function)

        @lru_cache(maxsize=8)
        def cached(stamps: Any, *args: P.args, **kwargs: P.kwargs) -> T:
            return function(*args, **kwargs)

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            given = arguments.bind(*args, **kwargs)
            given.apply_defaults()  # so that an argument that is left out is the same as its default
            return cached(tuple(_stamp(given.arguments[name]) for name in names), *given.args, **given.kwargs)

        call.cache_clear = cached.cache_clear  # type: ignore[attr-defined]
        return call

    return decorate


def _stamp(name: Any) -> Any:
    """The names, sizes and times of a file, or of the files in a folder; None if there is neither."""
    try:
        path = Path(name).absolute()
        if not path.exists():  # a hub id
            return None
    except (OSError, TypeError, ValueError):  # no name at all, which the function refuses
        return None
    files, seen = [path], set[str]()
    for folder, folders, names in os.walk(path, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add(real)
        files += [Path(folder, each) for each in names]
    return tuple(map(_stamp_of_file, sorted(files)))


def _stamp_of_file(file: Path) -> tuple[str, int, int]:
    try:
        found = file.stat()
    except OSError:  # a broken link, or a file that is gone meanwhile
        return os.fspath(file), 0, 0
    return os.fspath(file), found.st_size, found.st_mtime_ns
