"""A few dialogues, and functions that write them in every format that `load_dialogues` reads."""

import json
import zipfile

import datasets
import pytest

from dailydialog_gym.env.dialogues import Dialogue

# A dialogue is (utterances, acts).
SHOP = (["Good morning .", "Hi ! Is the blue kettle still here ?", "It is . Take it along .", "I will ."], [1, 2, 3, 4])
RAIN = (["It rains again .", "Then let's stay in .", "All right , I'll cook ."], [1, 3, 4])
TRAIN = (["Where does this train\u2028go ?", "It\u2019s the one to the sea .\x0c"], [2, 1])
FERRY = (["Is the ferry late ?", "No , look , there it is ."], [2, 1])
DIALOGUES = {"train": [SHOP, RAIN, TRAIN, FERRY], "validation": [RAIN], "test": [FERRY, (TRAIN[0], [2, 4])]}


def expected(split, *, without=()):
    """The dialogues of a split as `load_dialogues` returns them."""
    kept = (row for row in DIALOGUES[split] if row not in without)
    return tuple(Dialogue(tuple(u.strip() for u in utterances), tuple(acts)) for utterances, acts in kept)


def text_files(split, rows):
    yield f"dialogues_{split}.txt", "".join(" __eou__ ".join([*utterances, "\n"]) for utterances, _ in rows)
    yield f"dialogues_act_{split}.txt", "".join(" ".join(map(str, acts)) + " \n" for _, acts in rows)


def write_zips(folder, dialogues):
    for split, rows in dialogues.items():
        with zipfile.ZipFile(folder / f"{split}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{split}/", "")
            for name, text in text_files(split, rows):
                archive.writestr(f"{split}/{name}", text)
    return str(folder)


def write_folders(folder, dialogues):
    for split, rows in dialogues.items():
        (folder / split).mkdir()
        for name, text in text_files(split, rows):
            (folder / split / name).write_bytes(text.encode())
    return str(folder)


def write_flat(folder, dialogues):
    for split, rows in dialogues.items():
        for name, text in text_files(split, rows):
            (folder / name).write_bytes(text.encode())
    return str(folder)


def write_flat_with_dos_line_ends(folder, dialogues):
    write_flat(folder, dialogues)
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    return str(folder)


def write_jsonl(folder, dialogues):
    records = [{"split": s, "dialog": u, "act": a} for s, rows in dialogues.items() for u, a in rows]
    (folder / "talk.jsonl").write_bytes("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode())
    return str(folder / "talk.jsonl")


def dataset_dict(dialogues):
    columns = {s: {"act": [a for _, a in rows], "dialog": [u for u, _ in rows]} for s, rows in dialogues.items()}
    return datasets.DatasetDict({split: datasets.Dataset.from_dict(c) for split, c in columns.items()})


def write_saved(folder, dialogues):
    dataset_dict(dialogues).save_to_disk(folder)
    return str(folder)


WRITERS = [write_zips, write_folders, write_flat, write_flat_with_dos_line_ends, write_jsonl, write_saved]
every_source = pytest.mark.parametrize("write", WRITERS)
