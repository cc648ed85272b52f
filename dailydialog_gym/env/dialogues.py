"""Load dialogues: their splits, and which training dialogues are left out."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from numbers import Real
from unicodedata import normalize

from dailydialog_gym.caching import cached_until_changed
from dailydialog_gym.env.columns import ACTS, SPLITS, Notes, Row
from dailydialog_gym.env.formats import Source, open_source
from dailydialog_gym.text import MARKS

__all__ = ["ACTS", "SPLITS", "TEST_SHARE", "Dialogue", "load_dialogues"]

TEST_SHARE = 0.05
_NO_WORD = re.compile(rf"(?:(?:[^\w{MARKS}]|_)[{MARKS}]*)+|^[{MARKS}]+")  # a mark counts after a letter alone


@dataclass(frozen=True)
class Dialogue:
    """One dialogue: its utterances in order, and the act of each: 1 to 4, see `ACTS`, or 0 where it is not known."""

    utterances: tuple[str, ...]
    acts: tuple[int, ...]


@cached_until_changed("dataset")
def load_dialogues(
    dataset: str, split: str, raw_split: bool = False, test_share: float = TEST_SHARE
) -> tuple[Dialogue, ...]:
    """Load the dialogues of one split.

    Three kinds of dialogues are removed, and their numbers are printed to stderr: training dialogues that also occur in
    the validation or test split, dialogues whose numbers of utterances and acts differ, and dialogues without
    utterances, such as messages of the system alone. Dialogues that differ in case, punctuation and blanks alone count
    as the same, except in DailyDialog itself, whose published numbers of dialogues are those of exact copies. The line
    on stderr also names the columns that are not ``dialog`` and ``act``, and tells that the dialogues have no acts. The
    result is cached until the files change.

    Args:
        dataset: ``"builtin"``; a file, ``.jsonl``, ``.json`` (a list, or lines), ``.csv`` or ``.parquet``; a folder of
            such files, whose splits are in their names; a folder in the original DailyDialog format (``SPLIT.zip``,
            ``SPLIT/`` or flat text files); a folder written by ``save_to_disk``; or the id of a dataset on the Hugging
            Face hub. ``"daily_dialog"`` is an alias of ``"OpenRL/daily_dialog"``.

            A row is a dialogue. Its utterances are in the column ``dialog``, ``dialogue``, ``utterances``, ``messages``
            or ``conversations``: texts, or messages with ``role`` and ``content``, or ``from`` and ``value``. Their
            acts, numbers or names, may be in ``act``, ``acts`` or ``labels``. In a single file a column ``split`` may
            name the split of each row, by default ``"train"``. Rows with one utterance each are joined, by
            ``dialogue_id`` or by ``act_label``.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        raw_split: keep the training dialogues that also occur in validation or test. Published results on DailyDialog
            use these uncleaned splits.
        test_share: where there is no validation or no test split, it is this share of the training dialogues, at least
            one of them. A hash of the dialogue decides, so that a dialogue stays where it is when others are added.
            With 0 a missing split is an error.

    Raises:
        ValueError: the dataset, the split or a line of a file cannot be read; the message says which and why.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
    if not isinstance(test_share, Real) or not 0 <= test_share < 0.5:
        raise ValueError(f"test_share must be a number of at least 0 and below 0.5, got {test_share!r}")
    source, notes = open_source(dataset), Notes()
    rows = _rows_of_split(source, split, test_share, notes)
    if rows is None:
        raise ValueError(f"dataset {dataset!r} has no split {split!r}: it has {', '.join(source.splits) or 'none'}")
    whole = [row for row in rows if row.is_whole]
    dialogues = [Dialogue(tuple(row.utterances), tuple(row.acts)) for row in whole if row.utterances]
    notes.mismatched, notes.empty = len(rows) - len(whole), len(whole) - len(dialogues)
    notes.has_acts = any(any(dialogue.acts) for dialogue in dialogues)
    if split == "train" and not raw_split:
        dialogues = _without_copies(source, dialogues, notes)
    if remarks := notes.remarks():
        print(f"{dataset}, {split}: {len(dialogues):,} dialogues ({'; '.join(remarks)})", file=sys.stderr)
    if not dialogues:
        raise ValueError(f"dataset {dataset!r}, split {split!r} contains no dialogue")
    return tuple(dialogues)


def _rows_of_split(source: Source, split: str, test_share: float, notes: Notes) -> list[Row] | None:
    """The rows of a split, without those held out, or those held out for it; None if there is no such split."""
    missing = [name for name in ("test", "validation") if name not in source.splits]
    if source.is_original or test_share == 0 or "train" not in source.splits:
        missing = []
    if split not in (*source.splits, *missing):
        return None
    if not missing or split not in ("train", *missing):
        return source.splits[split](notes)
    rows = source.splits["train"](notes)
    keys = [_near_key(row.utterances) for row in rows]
    with_reply = [key for key, row in zip(keys, rows, strict=True) if row.is_whole and len(row.utterances) > 1]
    split_of = _hold_out(with_reply, missing, test_share)
    number = sum(split_of.get(key) is not None for key in keys)
    notes.held_out = f"{number} of {len(rows)} held out as {' and '.join(missing)}, see --test-share"
    return [row for key, row in zip(keys, rows, strict=True) if split_of.get(key, "train") == split]


def _hold_out(keys: Iterable[str], splits: Sequence[str], share: float) -> dict[str, str]:
    """The split of each dialogue that is held out of training.

    Each of the splits gets the dialogues whose hash is in a range of its own, and at least one, as training does. Where
    there are too few dialogues for that, none is held out.

    Args:
        keys: the dialogues, see `_near_key`.
        splits: the splits that are missing.
        share: the share of each.
    """
    ranked = sorted((blake2b(key.encode(), digest_size=8).digest(), key) for key in set(keys))
    if len(ranked) <= len(splits):
        return {}
    fractions = [int.from_bytes(digest) / 2**64 for digest, _ in ranked]
    split_of: dict[str, str] = {}
    start = 0
    for number, split in enumerate(splits, 1):
        most = len(ranked) - (len(splits) - number) - 1  # the rest needs one for each later split and one for training
        end = min(max(start + 1, sum(fraction < number * share for fraction in fractions)), most)
        split_of |= dict.fromkeys([key for _, key in ranked[start:end]], split)
        start = end
    return split_of


def _without_copies(source: Source, dialogues: list[Dialogue], notes: Notes) -> list[Dialogue]:
    """The training dialogues that are not also in the source's validation or test split."""
    splits = [source.splits[name] for name in SPLITS[1:] if name in source.splits]
    others = [row.utterances for read in splits for row in read(Notes())]
    exact, near = {tuple(utterances) for utterances in others}, {_near_key(utterances) for utterances in others}
    kept = [dialogue for dialogue in dialogues if dialogue.utterances not in exact]
    far = [dialogue for dialogue in kept if _near_key(dialogue.utterances) not in near]
    if source.is_dailydialog:
        notes.near_copies = len(kept) - len(far)
    else:
        kept = far
    notes.copies = len(dialogues) - len(kept)
    return kept


def _near_key(utterances: Collection[str]) -> str:
    """What near-duplicates have in common: the letters, marks and digits of each utterance, in lower case."""
    return "\n".join(_NO_WORD.sub("", normalize("NFC", text.casefold())) or text for text in utterances)
