"""Which numbers a flag may have, written as its type: ``gamma: Share = 1.0``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Annotated, Any, get_args, get_origin, get_type_hints

LARGEST = 2**63 - 1  # the largest whole number of numpy and torch


@dataclass(frozen=True)
class Range:
    """The numbers from ``least`` to ``most``; ``exclusive`` leaves ``least`` itself out."""

    least: float = -math.inf
    most: float = math.inf
    exclusive: bool = False

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most and not (self.exclusive and value == self.least)

    def __str__(self) -> str:
        if self.most < math.inf:
            return f"a number from {self.least} to {'2**63 - 1' if self.most == LARGEST else self.most}"
        return f"a number {'above' if self.exclusive else 'of at least'} {self.least}"


Share = Annotated[float, Range(0, 1)]
NotNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, exclusive=True)]
Count = Annotated[int, Range(1)]
CountOrZero = Annotated[int, Range(0)]
Port = Annotated[int, Range(1, 65535)]
Seed = Annotated[int, Range(0, LARGEST)]


def check_count(name: str, value: int) -> None:
    """Check the argument ``name`` of a public function.

    Raises:
        ValueError: it is not an integer, or below 1. The message names it.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")


def check_numbers(args: Any) -> None:
    """Check the numbers among the fields of a dataclass, whose names are flags.

    Raises:
        ValueError: a number is outside of the range that its type names, is not finite, or has more than 64 bits. The
            message names the flag.
    """
    for name, hint in get_type_hints(type(args), include_extras=True).items():
        value = getattr(args, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        parts = [part for part in (hint, *get_args(hint)) if get_origin(part) is Annotated]  # `Share | None` has two
        (expected,) = [note for part in parts for note in part.__metadata__ if isinstance(note, Range)] or [Range()]
        flag = f"--{name.replace('_', '-')} {value}"
        if not math.isfinite(value):
            raise ValueError(f"{flag}: expected a finite number")
        if value not in expected:
            raise ValueError(f"{flag}: expected {expected}")
        if isinstance(value, int) and abs(value) > LARGEST:
            raise ValueError(f"{flag}: expected a number of at most 2**63 - 1")
