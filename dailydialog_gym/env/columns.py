"""Turn the rows of a dataset into dialogues: which columns hold what, and what an entry may be."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {**{name: name for name in SPLITS}, **dict.fromkeys(("valid", "val", "dev", "eval"), "validation")}
# The numbering of DailyDialog's readme.txt. 0 is an utterance without an act.
ACTS = {1: "inform", 2: "question", 3: "directive", 4: "commissive"}
ACT_NUMBERS = {**{name: number for number, name in ACTS.items()}, "__dummy__": 0, "": 0}

# The names of columns, the first that is there counts; upper and lower case are the same.
DIALOGUE_COLUMNS = ("dialog", "dialogue", "utterances", "messages", "conversations")
ACT_COLUMNS = ("act", "acts", "labels", "act_label", "dialogue_act")
UTTERANCE_COLUMNS = ("utterance", "text")  # of datasets with an utterance in a row
ID_COLUMNS = ("dialog_id", "dialogue_id", "conversation_id")
# Roles whose messages are no utterances: OpenAI's, ShareGPT's for calls of tools, and Llama's for their results
SILENT_ROLES = ("system", "developer", "tool", "function", "function_call", "observation", "ipython")

EXPECTED = 'expected {"dialog": [...], "act": [...]}, of which "act" may be missing'


class Row(NamedTuple):
    """A dialogue as it was read. The numbers of utterances and acts may differ."""

    utterances: list[str]
    acts: list[int]

    @property
    def is_whole(self) -> bool:
        return len(self.utterances) == len(self.acts)


@dataclass
class Notes:
    """What is remarkable about a split, for the line that `load_dialogues` prints."""

    columns: dict[str, None] = field(default_factory=dict)  # an ordered set
    silent: int = 0  # messages that are no utterances
    unnamed: list[str] = field(default_factory=list)  # files whose names have no split, beside files whose names do
    held_out: str = ""
    mismatched: int = 0
    empty: int = 0  # dialogues without utterances
    copies: int = 0  # training dialogues that are left out
    near_copies: int = 0  # training dialogues that are kept although they differ in case, punctuation and blanks alone
    has_acts: bool = True

    def remarks(self) -> list[str]:
        remarks = []
        if self.mismatched or self.copies:
            remarks = [
                f"{self.copies} left out because they are also in validation or test, "
                f"{self.mismatched} skipped because their numbers of utterances and acts differ"
            ]
        if self.empty:
            remarks.append(f"{self.empty} left out because they have no utterances")
        if self.near_copies:
            remarks.append(f"{self.near_copies} near-duplicates of validation or test kept, as in published numbers")
        if self.held_out:
            remarks.append(self.held_out)
        if not self.columns.keys() <= {"dialog", "act"}:
            remarks.append(f"from the columns {', '.join(self.columns)}")
        if not self.has_acts:
            remarks.append("no acts, so no intent reward")
        if self.silent:
            remarks.append(f"{self.silent} messages left out: of the system, of tools, or without text")
        if self.unnamed:
            remarks.append(f"files left out because their names have no split: {', '.join(self.unnamed)}")
        return remarks


def read_rows(
    records: Iterable[tuple[str, Any]], notes: Notes, split: str | None = None, default: str = "train"
) -> list[tuple[str, Row]]:
    """The dialogues of a dataset's rows, each with its split.

    Args:
        records: the rows, each with its place for error messages.
        notes: gets what is remarkable about them.
        split: the split of all of them; by default each row names its own.
        default: the split of the rows that name none.

    Raises:
        ValueError: a row is no dialogue; the message names its place, what was expected, and what is there.
    """
    rows: list[tuple[str, Row]] = []
    by_id: dict[tuple[str, str], Row] = {}
    for where, record in records:
        if not isinstance(record, dict):
            raise ValueError(f"{where}: {EXPECTED}, got {_shown(record)}")
        row_split = split or _split_of(where, record, default)
        dialogue, act, key = (_find(record, names) for names in (DIALOGUE_COLUMNS, ACT_COLUMNS, ID_COLUMNS))
        text = dialogue or _find(record, UTTERANCE_COLUMNS)
        if key and text and isinstance(record[text], str):  # an utterance in each row
            notes.columns |= dict.fromkeys(column for column in (key, text, act) if column)
            if record[key] in (None, "") or record[key] != record[key]:  # NaN is what pandas makes of an empty cell
                raise ValueError(f"{where}: expected {key!r} to be the number of the dialogue, got {record[key]!r}")
            row_id = (row_split, str(record[key]))
            if row_id not in by_id:
                by_id[row_id] = Row([], [])
                rows.append((row_split, by_id[row_id]))
            row = by_id[row_id]
            row.utterances.append(check_text(where, record[text]))
            row.acts.extend(_acts(where, act, [record[act]] if act else None, 1))
            continue
        if dialogue is None:
            raise ValueError(f"{where}: {_expected_columns(record)}")
        notes.columns |= dict.fromkeys(column for column in (dialogue, act) if column)
        utterances, is_said = _utterances(where, dialogue, record[dialogue])
        notes.silent += is_said.count(False)
        if act and act.lower() == "act_label":  # the dialogue so far in each row, with the act of its last utterance
            if not utterances:
                continue
            acts = _acts(where, act, [record[act]], 1)
            if rows and rows[-1][0] == row_split and rows[-1][1].utterances == utterances[:-1]:
                rows[-1][1].utterances.append(utterances[-1])
                rows[-1][1].acts.extend(acts)
            else:
                rows.append((row_split, Row(utterances, [0] * (len(utterances) - 1) + acts)))
            continue
        acts = _acts(where, act, record[act] if act else None, len(is_said))
        if len(acts) == len(is_said):
            acts = [number for number, said in zip(acts, is_said, strict=True) if said]
        rows.append((row_split, Row(utterances, acts)))
    return rows


def _find(record: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The column with the first of these names that is there."""
    columns = {column.lower(): column for column in record}
    return next((columns[name] for name in names if name in columns), None)


def _split_of(where: str, record: dict[str, Any], default: str) -> str:
    column = _find(record, ("split",))
    split = record[column] if column else None
    if split in (None, ""):
        return default
    if not (isinstance(split, str) and split.lower() in SPLIT_NAMES):
        raise ValueError(f"{where}: expected {column!r} to be one of {', '.join(SPLIT_NAMES)}, got {_shown(split)}")
    return SPLIT_NAMES[split.lower()]


def _utterances(where: str, column: str, entries: Any) -> tuple[list[str], list[bool]]:
    """The utterances of a dialogue, and for each of its entries whether it is one: messages of the system are none."""
    if not isinstance(entries, list):
        raise ValueError(f"{where}: expected {column!r} to be a list of texts, got {_shown(entries)}")
    utterances, is_said = [], []
    for entry in entries:
        role, text = _role_and_text(entry)
        is_empty = isinstance(entry, dict) and (text is None or (isinstance(text, str) and not text.strip()))
        is_said.append(role not in SILENT_ROLES and not is_empty)
        if is_said[-1]:
            if not isinstance(text, str):
                raise ValueError(
                    f"{where}: expected {column!r} to be a list of texts, got {_shown(entry)} as number {len(is_said)}"
                )
            utterances.append(check_text(where, text))
    return utterances, is_said


def _role_and_text(entry: Any) -> tuple[Any, Any]:
    """The role and the text of an entry: a text without a role, or a message. What is no text is returned as it is."""
    if not isinstance(entry, dict):
        return "", entry
    if not {"content", "value"} & entry.keys():
        return "", entry
    role, text = (entry.get(a) or entry.get(b) for a, b in (("role", "from"), ("content", "value")))
    if isinstance(text, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in text):
        texts = [part.get("text") for part in text]
        # In lines, as vLLM joins the parts of a message of OpenAI's format
        text = "\n".join(texts) if all(isinstance(each, str) for each in texts) else text
    return role.lower() if isinstance(role, str) else role, text


def check_text(where: str, text: str) -> str:
    """The text without blanks around it. Tokenizers refuse lone surrogates, and other programs NUL characters."""
    if bad := re.search("[\x00\ud800-\udfff]", text):
        raise ValueError(f"{where}: expected text, got the character U+{ord(bad[0]):04X} in {text[:80]!r}")
    return text.strip()


def _acts(where: str, column: str | None, acts: Any, count: int) -> list[int]:
    """Acts by number; ``count`` zeros if there are none."""
    if acts is None or acts == "":
        return [0] * count
    wrong = [act for act in acts if act_number(act) is None] if isinstance(acts, list) else acts
    if wrong or not isinstance(acts, list):
        names = ", ".join(ACTS.values())
        raise ValueError(
            f"{where}: expected {column!r} to be a list of numbers or names ({names}), got {_shown(wrong)}"
        )
    return check_acts(where, [number for act in acts if (number := act_number(act)) is not None])


def act_number(act: Any) -> int | None:
    """The number of an act, 0 for a missing one, None for what is no act."""
    if act is None or act != act:  # NaN is what pandas makes of a missing number
        return 0
    if isinstance(act, str):
        name = act.strip().lower().removesuffix(".0")  # pandas writes numbers so where some are missing
        return int(name) if name in {"0", *map(str, ACTS)} else ACT_NUMBERS.get(name)
    if isinstance(act, bool) or not (isinstance(act, int) or (isinstance(act, float) and act.is_integer())):
        return None
    return int(act)


def check_acts(where: str, acts: list[int]) -> list[int]:
    if wrong := [act for act in acts if act not in (0, *ACTS)]:
        raise ValueError(f"{where}: expected acts from 1 to 4, got {_shown(wrong)}")
    return acts


def _expected_columns(columns: Iterable[str]) -> str:
    wanted = f"expected a column {', '.join(DIALOGUE_COLUMNS[:-1])} or {DIALOGUE_COLUMNS[-1]}"
    return f"{wanted}, got {', '.join(map(str, columns)) or 'none'}"


def _shown(value: Any) -> str:
    return repr(value[:80]) if isinstance(value, str) else reprlib.repr(value)
