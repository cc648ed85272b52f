"""Dialogues of the user's own: file formats, columns, splits, text, and files that can't be read."""

import csv
import io
import json
import os
import re
import zipfile

import datasets
import numpy as np
import pytest
from dialogue_files import DIALOGUES, FERRY, RAIN, SHOP, text_files, write_zips

from dailydialog_gym.env.dialogues import ACTS, SPLITS, Dialogue, load_dialogues
from dailydialog_gym.env.samples import load_samples

CHATS = [[f"Hello , is this number {i} ?", "It is !", f"Then {i} is right ."] for i in range(40)]
NAMES = [ACTS[act] for act in SHOP[1]]


def messages(utterances, role="role", content="content", user="user", system=True):
    said = [{role: ("assistant" if i % 2 else user), content: text} for i, text in enumerate(utterances)]
    return [{role: "system", content: "Be brief."}, *said] if system else said


def write(path, rows):
    """Write rows in the format that the suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif path.suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows([{k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows])
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# Columns: by case, what is written as a row, and the acts that are read


COLUMNS = {
    "dialogue": ({"dialogue": SHOP[0], "acts": SHOP[1]}, SHOP[1]),
    "utterances": ({"utterances": SHOP[0], "labels": SHOP[1]}, SHOP[1]),
    "upper case": ({"Dialog": SHOP[0], "Act": SHOP[1]}, SHOP[1]),
    "names of acts": ({"dialog": SHOP[0], "act": NAMES}, SHOP[1]),
    "no acts": ({"dialog": SHOP[0]}, [0] * 4),
    "null": ({"dialog": SHOP[0], "act": None}, [0] * 4),
    "zeros": ({"dialog": SHOP[0], "act": [0, 0, 3, 0]}, [0, 0, 3, 0]),
    "messages": ({"messages": messages(SHOP[0])}, [0] * 4),
    "acts of messages": ({"messages": messages(SHOP[0]), "act": [0, *SHOP[1]]}, SHOP[1]),
    "a title and a number beside the dialogue": (
        {"messages": messages(SHOP[0]), "text": "Shop", "dialog_id": 7},
        [0] * 4,
    ),
    "ShareGPT": ({"conversations": messages(SHOP[0], "from", "value", "human")}, [0] * 4),
    "parts of text": (
        {"messages": [m | {"content": [{"type": "text", "text": m["content"]}]} for m in messages(SHOP[0])]},
        [0] * 4,
    ),
    "a system in capitals": ({"messages": [{"role": "System", "content": "Be brief."}, *messages(SHOP[0])]}, [0] * 4),
    "calls of tools": (
        {
            "conversations": [
                *messages(SHOP[0], "from", "value", "human"),
                {"from": "function_call", "value": "{}"},
                {"from": "observation", "value": "42"},
            ]
        },
        [0] * 4,
    ),
}


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
@pytest.mark.parametrize(("row", "acts"), COLUMNS.values(), ids=COLUMNS)
def test_utterances_and_acts_are_found_by_the_names_of_columns(tmp_path, suffix, row, acts):
    file = write(tmp_path / f"talk{suffix}", [row])
    assert load_dialogues(str(file), "train") == (Dialogue(tuple(SHOP[0]), tuple(acts)),)


def test_columns_left_out_messages_and_missing_acts_are_printed_in_one_line(tmp_path, capsys):
    silent = [{"role": "assistant", "content": None}, {"role": "tool", "content": "42"}]
    file = write(tmp_path / "talk.jsonl", [{"messages": messages(SHOP[0]) + silent}] * 2)
    load_dialogues(str(file), "train", test_share=0)
    assert capsys.readouterr().err == (
        f"{file}, train: 2 dialogues (from the columns messages; no acts, so no intent reward; "
        "6 messages left out: of the system, of tools, or without text)\n"
    )


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
def test_rows_of_one_utterance_are_joined_by_their_dialogues_id(tmp_path, suffix):
    pairs = [(i, *pair) for i, talk in enumerate((SHOP, RAIN)) for pair in zip(*talk, strict=True)]
    rows = [{"dialogue_id": i, "utterance": text, "dialogue_act": ACTS[act]} for i, text, act in pairs]
    file = write(tmp_path / f"talk{suffix}", rows)
    assert load_dialogues(str(file), "train") == tuple(Dialogue(tuple(u), tuple(a)) for u, a in (SHOP, RAIN))


def test_rows_with_the_dialogue_so_far_are_joined_by_the_label_of_their_last_utterance(tmp_path):
    """The columns of DeepPavlov/daily_dialog."""
    rows = [{"dialog": u[:n], "act_label": a[n - 1]} for u, a in (SHOP, RAIN) for n in range(1, len(u) + 1)]
    file = write(tmp_path / "talk.parquet", rows)
    assert load_dialogues(str(file), "train") == tuple(Dialogue(tuple(u), tuple(a)) for u, a in (SHOP, RAIN))
    none = {"dialog": [], "act_label": 1}
    file = write(tmp_path / "talk.jsonl", [none, none, rows[0], none, *rows[1:], none])
    assert load_dialogues(str(file), "train") == tuple(Dialogue(tuple(u), tuple(a)) for u, a in (SHOP, RAIN))


EMPTY = {
    "no texts": {"dialog": []},
    "no texts and no acts": {"dialog": [], "act": []},
    "messages of the system alone": {"messages": messages([])},
}


@pytest.mark.parametrize("row", EMPTY.values(), ids=EMPTY)
def test_dialogues_without_utterances_are_left_out_and_counted(tmp_path, row, capsys):
    (column,) = row.keys() - {"act"}
    file = write(tmp_path / "talk.jsonl", [row, {column: SHOP[0]}, row])
    assert load_dialogues(str(file), "train", test_share=0) == (Dialogue(tuple(SHOP[0]), (0,) * 4),)
    assert f"{file}, train: 1 dialogues (2 left out because they have no utterances;" in capsys.readouterr().err


def test_a_class_label_counts_by_its_name(tmp_path):
    """The numbers of SILICONE's copy are in alphabetical order."""
    labels = datasets.ClassLabel(names=sorted(ACTS.values()))
    table = datasets.Dataset.from_dict({"dialog": [SHOP[0]], "act": [[labels.str2int(name) for name in NAMES]]})
    table = table.cast_column("act", datasets.List(labels))
    table.to_parquet(tmp_path / "talk.parquet")
    table.save_to_disk(tmp_path / "saved")
    for source in ("talk.parquet", "saved"):
        assert load_dialogues(str(tmp_path / source), "train")[0].acts == tuple(SHOP[1])


def test_a_class_label_of_other_classes_is_no_act(tmp_path):
    feelings = datasets.List(datasets.ClassLabel(names=["neutral", "anger", "disgust"]))
    table = datasets.Dataset.from_dict({"dialog": [SHOP[0]], "labels": [[0, 1, 2, 0]]}).cast_column("labels", feelings)
    table.to_parquet(tmp_path / "talk.parquet")
    assert load_dialogues(str(tmp_path / "talk.parquet"), "train")[0].acts == (0, 0, 0, 0)


@pytest.mark.parametrize("name", ["split", "Split", "SPLIT"])
def test_a_row_names_its_split_in_a_column_of_any_case(tmp_path, name):
    rows = [{name: split, "dialog": [f"{split} {i} ?", "Yes ."]} for split in ("train", "test") for i in range(3)]
    file = write(tmp_path / "talk.jsonl", rows)
    for split in ("train", "test"):
        assert {d.utterances[0].split()[0] for d in load_dialogues(str(file), split)} == {split}
    rows.append({name: "holdout", "dialog": ["Hi .", "Hello ."]})
    with pytest.raises(ValueError, match=f"line 7: expected '{name}' to be one of"):
        load_dialogues(str(write(tmp_path / "other.jsonl", rows)), "train")


@pytest.mark.parametrize("missing", [None, "", float("nan")])
def test_an_utterance_without_the_number_of_its_dialogue_is_refused(tmp_path, missing):
    """Or all such utterances would become one dialogue."""
    rows = [{"dialogue_id": number, "text": "Hi ."} for number in (1, 1, missing)]
    with pytest.raises(ValueError, match="line 3: expected 'dialogue_id' to be the number of the dialogue"):
        load_dialogues(str(write(tmp_path / "talk.jsonl", rows)), "train")


def test_the_parts_of_a_message_are_joined(tmp_path):
    parts = [{"type": "text", "text": "Hi!"}, {"type": "text", "text": "Is it open?"}]
    file = write(tmp_path / "talk.jsonl", [{"messages": [{"role": "user", "content": parts}, {"content": []}]}])
    assert load_dialogues(str(file), "train")[0].utterances == ("Hi!\nIs it open?",)


def test_words_that_differ_in_a_mark_differ_and_composed_letters_are_the_decomposed(tmp_path):
    hindi = [
        ["वह कल आया ।", "अच्छा ।"],
        ["वह कल आयी ।", "अच्छी ।"],
        ["Café ?", "Déjà ."],
        ["Cafe\u0301 ?", "De\u0301ja\u0300 ."],
        ["How are you ?", "👍🏽"],
        ["How are you ?", "👎🏽"],
        ["I love you ❤️", "Me too ."],
        ["I love you", "Me too !"],
    ]
    rows = [{"dialog": said, "split": split} for said, split in zip(hindi, ["train", "test"] * 4, strict=True)]
    file = write(tmp_path / "talk.jsonl", rows)
    assert [list(d.utterances) for d in load_dialogues(str(file), "train", test_share=0)] == [hindi[0], hindi[4]]


# Files and folders


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_not(tmp_path):
    write(tmp_path / "a" / "train.jsonl", [{"dialog": ["Helo .", "Hi ."]}])
    (tmp_path / "a" / ".#train.jsonl").symlink_to("nowhere")  # as Emacs locks a file
    for name in (tmp_path / "a", tmp_path / "a" / "train.jsonl"):
        before = load_samples(str(name), test_share=0)
        assert load_samples(str(name), "train", test_share=0) is before
        write(tmp_path / "a" / "train.jsonl", [{"dialog": ["Hello .", "Hi ."]}])
        assert load_samples(str(name), test_share=0).prompts == ["Hello . <EOU>"]
        write(tmp_path / "a" / "train.jsonl", [{"dialog": ["Helo .", "Hi ."]}])


def test_a_relative_name_is_of_the_present_folder(tmp_path, monkeypatch):
    for name in ("a", "b"):
        write(tmp_path / name / "talk.jsonl", [{"dialog": [f"{name} .", "Hi ."]}])
        monkeypatch.chdir(tmp_path / name)
        assert load_dialogues("talk.jsonl", "train", test_share=0)[0].utterances[0] == f"{name} ."


def test_a_bom_blank_lines_dos_line_ends_and_an_upper_case_suffix_are_fine(tmp_path):
    lines = [json.dumps({"dialog": u, "act": a}, ensure_ascii=False) for u, a in (SHOP, RAIN)]
    (tmp_path / "TALK.JSONL").write_bytes(b"\xef\xbb\xbf\r\n" + "\r\n \r\n".join(lines).encode() + b"\r\n\r\n")
    (tmp_path / "TALK.JSON").write_bytes(b"\xef\xbb\xbf\r\n [" + ",\r\n".join(lines).encode() + b"\r\n]\r\n")
    (tmp_path / "lines.json").write_bytes("\n".join(lines).encode())
    content = io.StringIO(newline="")
    csv.writer(content).writerows([["dialog_id", "text"], *((i, u) for i, d in enumerate((SHOP, RAIN)) for u in d[0])])
    (tmp_path / "TALK.CSV").write_bytes(b"\xef\xbb\xbf" + content.getvalue().replace("\r\n", "\r\n\r\n").encode())
    for name in ("TALK.JSONL", "TALK.JSON", "lines.json", "TALK.CSV"):
        read = load_dialogues(str(tmp_path / name), "train")
        assert [list(dialogue.utterances) for dialogue in read] == [SHOP[0], RAIN[0]]


@pytest.mark.parametrize(
    "said",
    [
        ["None", "null", "NA", "Hi ."],
        ["42", "007"],
        ["[laughs] Hi .", "[1, 2"],
        ['She said "no" ,', "and\nleft\u2028again ."],
        ["x" * 200_000, "Well ."],
    ],
    ids=["no missing", "numbers", "brackets", "quotes and lines", "a long cell"],
)
def test_a_cell_of_a_csv_file_is_its_text(tmp_path, said):
    file = write(tmp_path / "talk.csv", [{"dialog_id": 1, "utterance": text} for text in said])
    assert list(load_dialogues(str(file), "train")[0].utterances) == said


def test_acts_as_pandas_writes_them_where_some_are_missing(tmp_path):
    rows = [{"dialog_id": 1, "text": "Hi .", "act": act} for act in ("1.0", "", "question")]
    assert load_dialogues(str(write(tmp_path / "talk.csv", rows)), "train")[0].acts == (1, 0, 2)


# By case: the files of a folder, and the names of those that are its splits (train, validation, test).
FOLDERS = {
    "hub clone": (["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet", "README.md"], "train test"),
    "one file for each split": (["train.jsonl", "dev.jsonl", "test.jsonl"], "train validation test"),
    "eval is validation": (
        ["my_train.csv", "my-eval.csv", ".cache/train.csv", "dataset_infos.json"],
        "train validation",
    ),
    "folders named after splits": (["train/0000.parquet", "valid/0000.parquet"], "train validation"),
    "files without splits": (["january.jsonl", "february.jsonl"], "train"),
    "a file beside the splits": (["train.json", "test.json", "persons.json"], "train test"),
    "upper case": (["TRAIN.JSONL", "Test.JSONL"], "train test"),
}


@pytest.mark.parametrize(("files", "splits"), FOLDERS.values(), ids=FOLDERS)
def test_the_files_of_a_folder_are_its_splits(tmp_path, files, splits, capsys):
    for name in files:
        path = tmp_path / name
        suffix = path.suffix.lower()
        write(path.with_suffix(suffix), [{"dialog": [f"I am {name} .", "Yes ."]}])
        path.with_suffix(suffix).rename(path)
    found = []
    for split in ("train", "validation", "test"):
        try:
            read = load_dialogues(str(tmp_path), split, test_share=0)
        except ValueError:
            continue
        found.append(split)
        for dialogue in read:
            name = dialogue.utterances[0].split()[2].lower()
            assert split[:3] in name or (split, name[0]) == ("validation", "d") or "eval" in name or "ary" in name
    assert found == splits.split()
    assert ("persons.json" in files) == ("names have no split: persons.json" in capsys.readouterr().err)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["en/train.jsonl", "de/train.jsonl"], r"holds several datasets, train is in de/train\.jsonl, en/train\.jsonl"),
        (["train.jsonl", "train.csv"], r"holds several datasets, train is in train\.csv, train\.jsonl"),
        (
            ["train_gen-00000-of-00001.jsonl", "train_sft-00000-of-00001.jsonl"],
            r"holds several datasets, train is in train_gen-\*\.jsonl, train_sft-\*\.jsonl",
        ),
        ([f"{name}/train.jsonl" for name in "abcdefg"], r"train is in a/train\.jsonl, .* and 3 more: name"),
    ],
)
def test_a_folder_of_several_datasets_is_refused(tmp_path, files, message):
    for name in files:
        write(tmp_path / name, [{"dialog": CHATS[0]}])
    with pytest.raises(ValueError, match=message):
        load_dialogues(str(tmp_path), "train")


def test_the_only_file_of_a_folder_has_the_split_of_its_name(tmp_path):
    write(tmp_path / "test.jsonl", [{"dialog": CHATS[0]}, {"dialog": CHATS[1], "split": "dev"}])
    assert [len(load_dialogues(str(tmp_path), split)) for split in ("validation", "test")] == [1, 1]
    with pytest.raises(ValueError, match="has no split 'train': it has validation, test"):
        load_dialogues(str(tmp_path), "train")


def test_folders_behind_symbolic_links_are_read_once(tmp_path):
    write(tmp_path / "elsewhere/test-1.jsonl", [{"dialog": CHATS[5]}])
    write(tmp_path / "talk/train.jsonl", [{"dialog": chat} for chat in CHATS[:2]])
    (tmp_path / "talk/data").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "talk/data/back").symlink_to(tmp_path / "talk")
    assert [len(load_dialogues(str(tmp_path / "talk"), split)) for split in ("train", "test")] == [1, 1]


def test_splits_of_a_table_are_found_by_words_of_their_names(tmp_path):
    tables = {f"{split}_sft": datasets.Dataset.from_list([{"dialog": CHATS[i]}]) for i, split in enumerate(SPLITS)}
    tables["train_small"] = tables["train"] = tables.pop("train_sft")
    datasets.DatasetDict(tables).save_to_disk(tmp_path)
    assert [len(load_dialogues(str(tmp_path), split)) for split in SPLITS] == [1, 1, 1]


@pytest.mark.parametrize("names", [("dev", "valid"), ("test_gen", "test_sft")])
def test_two_splits_of_one_kind_are_refused(tmp_path, names):
    tables = {name: datasets.Dataset.from_list([{"dialog": CHATS[0]}]) for name in ("train", *names)}
    datasets.DatasetDict(tables).save_to_disk(tmp_path)
    with pytest.raises(ValueError, match=rf"has several splits for \w+, {', '.join(names)}: save the one"):
        load_dialogues(str(tmp_path), "train")


def test_a_single_saved_dataset_is_read(tmp_path):
    datasets.Dataset.from_list([{"dialog": SHOP[0], "act": SHOP[1]}]).save_to_disk(tmp_path)
    assert load_dialogues(str(tmp_path), "train") == (Dialogue(tuple(SHOP[0]), tuple(SHOP[1])),)


# Splits


@pytest.mark.parametrize("name", ["valid", "val", "dev", "eval", "Validation"])
def test_other_names_of_the_validation_split(tmp_path, name):
    rows = [{"dialog": SHOP[0], "split": name}, {"dialog": RAIN[0], "split": "train"}]
    file = write(tmp_path / "talk.jsonl", rows)
    tables = {split: datasets.Dataset.from_list([row]) for split, row in zip((name, "train"), rows, strict=True)}
    datasets.DatasetDict(tables).save_to_disk(tmp_path / "saved")
    for source in (file, tmp_path / "saved"):
        assert [list(d.utterances) for d in load_dialogues(str(source), "validation")] == [SHOP[0]]


def test_missing_splits_are_held_out_and_stay_the_same_when_dialogues_are_added(tmp_path):
    def splits(name, chats, share):
        file = write(tmp_path / name, [{"dialog": chat} for chat in chats])
        read = {s: load_dialogues(str(file), s, test_share=share) for s in ("train", "validation", "test")}
        return {split: {dialogue.utterances for dialogue in dialogues} for split, dialogues in read.items()}

    few, many = splits("few.jsonl", CHATS[:30], 0.2), splits("many.jsonl", CHATS, 0.2)
    for part in (few, many):
        assert sum(map(len, part.values())) == len(set().union(*part.values())) == (30 if part is few else 40)
    for split in few:
        assert few[split] and few[split] <= many[split]
    assert 2 <= len(few["test"]) <= 12  # 6 are expected


def test_holding_out_is_told_and_leaves_something_to_train_on(tmp_path, capsys):
    file = write(tmp_path / "talk.jsonl", [{"dialog": chat} for chat in CHATS[:3]])
    assert [len(load_dialogues(str(file), s)) for s in ("train", "validation", "test")] == [1, 1, 1]
    lines = capsys.readouterr().err.splitlines()
    assert all("2 of 3 held out as test and validation, see --test-share" in line for line in lines)
    file = write(tmp_path / "two.jsonl", [{"dialog": chat} for chat in CHATS[:2]])
    assert len(load_dialogues(str(file), "train")) == 2
    with pytest.raises(ValueError, match="split 'test' contains no dialogue"):
        load_dialogues(str(file), "test")


def test_what_is_held_out_has_a_reply(tmp_path):
    rows = [{"dialog": [f"I am number {i} ."]} for i in range(20)] + [{"dialog": chat} for chat in CHATS[:3]]
    file = write(tmp_path / "talk.jsonl", rows)
    assert [len(d.utterances) for s in ("validation", "test") for d in load_dialogues(str(file), s)] == [3, 3]
    assert len(load_dialogues(str(file), "train")) == 21


def test_copies_of_a_dialogue_are_held_out_together(tmp_path):
    file = write(
        tmp_path / "talk.jsonl", [{"dialog": chat} for chat in [*CHATS, *[[t.upper() for t in c] for c in CHATS]]]
    )
    held_out = {d.utterances[0].lower() for d in load_dialogues(str(file), "test", test_share=0.2)}
    assert not held_out & {d.utterances[0].lower() for d in load_dialogues(str(file), "train", test_share=0.2)}


def test_near_duplicates_are_left_out_of_training_but_not_of_dailydialog_itself(tmp_path, capsys):
    near = ([text.upper().replace(" .", "!") for text in SHOP[0]], SHOP[1])
    dialogues = {"train": [near, RAIN], "validation": [FERRY], "test": [SHOP]}
    rows = [{"split": split, "dialog": u, "act": a} for split, rows in dialogues.items() for u, a in rows]
    file = write(tmp_path / "talk.jsonl", rows)
    assert [list(d.utterances) for d in load_dialogues(str(file), "train")] == [RAIN[0]]
    assert "1 left out because" in capsys.readouterr().err
    (tmp_path / "release").mkdir()
    assert len(load_dialogues(write_zips(tmp_path / "release", dialogues), "train")) == 2
    assert "1 near-duplicates of validation or test kept" in capsys.readouterr().err


# Text


@pytest.mark.parametrize(
    ("spacing", "text"),
    [(None, "Hi, Ann! How are you?"), ("ordinary", "Hi, Ann! How are you?"), ("spaced", "Hi , Ann ! How are you ?")],
)
def test_text_stays_as_it_is_unless_another_spacing_is_asked_for(tmp_path, spacing, text):
    file = write(tmp_path / "talk.jsonl", [{"dialog": ["Hi, Ann! How are you?", "Fine, thanks."]}])
    samples = load_samples(str(file), spacing=spacing)
    assert samples.prompts == [f"{text} <EOU>"]
    assert samples.spacing == (spacing or "ordinary")
    assert load_samples("builtin", "test").spacing == "spaced"


def test_samples_without_acts_have_act_zero(tmp_path):
    import gymnasium as gym

    file = write(tmp_path / "talk.jsonl", [{"dialog": chat} for chat in CHATS])
    env = gym.make("DailyDialog-v0", dataset=str(file), max_new_tokens=1)
    info = env.reset(seed=0)[1] | env.step(5)[4]
    assert info["act"] == info["intent"] == 0


def test_a_special_token_inside_an_utterance_is_text(tmp_path):
    """Otherwise "Hi <EOU> I am rich" would be two utterances, and the intent model would read the second."""
    said = ["Hi <EOU> I am rich <EOU>", "No<PAD> , <|endoftext|> you <EOU are not .", "Oh ."]
    file = write(tmp_path / "talk.jsonl", [{"dialog": said}])
    samples = load_samples(str(file))
    tokenizer = samples.tokenizer
    assert samples.prompts[1].count("<EOU>") == 2
    special = {i for i, token in tokenizer.backend.get_added_tokens_decoder().items() if token.special}
    (eou,) = tokenizer.encode([" <EOU>"])[0]
    for ids, mask, count in zip(samples.prompt_ids, samples.prompt_mask, (1, 2), strict=True):
        found = [i for i in ids[mask].tolist() if i in special]
        assert found == [eou] * count


# Files that can't be read: by case, a function that writes them into a folder and returns what to load, and the message


def file_of(name, content):
    def make(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return make


def after_a_good_line(line):
    return file_of("talk.jsonl", json.dumps({"dialog": SHOP[0]}).encode() + b"\n" + line + b"\n")


def zip_of(*members):
    def make(folder):
        write_zips(folder, DIALOGUES)
        with zipfile.ZipFile(folder / "test.zip", "w") as archive:
            for name, text in [*members, *text_files("test", [SHOP])]:
                archive.writestr(name, text)
        return folder

    return make


def encrypted(folder):
    write_zips(folder, DIALOGUES)
    content = bytearray((folder / "test.zip").read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag of each member in both of its headers
        for found in re.finditer(re.escape(signature), bytes(content)):
            content[found.start() + flags] |= 1
    (folder / "test.zip").write_bytes(content)
    return folder


def damaged_bzip2(folder):
    write_zips(folder, DIALOGUES)
    with zipfile.ZipFile(folder / "test.zip", "w", zipfile.ZIP_BZIP2) as archive:
        for name, text in text_files("test", [SHOP]):
            archive.writestr(name, text)
    content = bytearray((folder / "test.zip").read_bytes())
    content[60:90] = bytes(30)
    (folder / "test.zip").write_bytes(content)
    return folder


def pipe(folder):
    os.mkfifo(folder / "talk.jsonl")
    return folder / "talk.jsonl"


def loop(folder):
    (folder / "a").symlink_to(folder / "b")
    (folder / "b").symlink_to(folder / "a")
    return folder / "a"


BAD = {
    "lone surrogate": (
        after_a_good_line(b'{"dialog": ["Hi \\ud800 .", "Yes ."]}'),
        r"talk\.jsonl, line 2: expected text, got the character U\+D800",
    ),
    "NUL": (
        after_a_good_line(b'{"messages": [{"role": "user", "content": "a\\u0000"}]}'),
        r"talk\.jsonl, line 2: expected text, got the character U\+0000",
    ),
    "deep nesting": (
        after_a_good_line(b'{"dialog": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
        r"talk\.jsonl, line 2: expected \{\"dialog\": .*lists in lists too deep",
    ),
    "deep nesting in a list": (
        file_of("talk.json", b'[\n{"dialog": ["Hi ."]},\n' + b"[" * 200_000),
        r"talk\.json, line 3: expected \{\"dialog\": .*lists in lists too deep",
    ),
    "a number of 5,000 digits": (
        after_a_good_line(b'{"dialog": ["Hi .", "Yes ."], "act": [1, ' + b"9" * 5000 + b"]}"),
        r"talk\.jsonl, line 2: expected .*limit",
    ),
    "an infinite act": (
        after_a_good_line(b'{"dialog": ["Hi ."], "act": [1e999]}'),
        "line 2: expected 'act' to be a list",
    ),
    "an act that is a fraction": (
        after_a_good_line(b'{"dialog": ["Hi ."], "act": [2.5]}'),
        "line 2: expected 'act' to be a list of numbers",
    ),
    "a list without its end": (
        file_of("talk.json", b'[{"dialog": ["Hi ."]}'),
        r"talk\.json, line 1: expected , or \] after",
    ),
    "text after a list": (file_of("talk.json", b"[]\n[]"), "expected nothing after the list, got"),
    "a message without content": (
        after_a_good_line(b'{"messages": [{"role": "user"}]}'),
        "line 2: expected 'messages' to be a list of texts, got",
    ),
    "a role that is no text": (
        after_a_good_line(b'{"messages": [{"role": [], "content": 5}], "dialog_id": [1]}'),
        "line 2: expected 'messages' to be a list of texts, got",
    ),
    "UTF-16": (file_of("talk.jsonl", '{"dialog": []}'.encode("utf-16")), "line 1: expected UTF-8 text, got byte 0xff"),
    "empty file": (file_of("talk.jsonl", b""), "split 'train' contains no dialogue"),
    "empty Parquet file": (file_of("talk.parquet", b""), r"cannot read .*talk\.parquet \(Arrow"),
    "a pointer of Git LFS": (
        file_of("talk.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n"),
        r"talk\.parquet is a pointer of Git LFS, not the data itself: run git lfs pull",
    ),
    "a picture in a message": (
        after_a_good_line(b'{"messages": [{"content": [{"type": "image_url"}, {"type": "text", "text": "A"}]}]}'),
        "line 2: expected 'messages' to be a list of texts, got .*image_url.* as number 1",
    ),
    "a part without text": (
        after_a_good_line(b'{"messages": [{"content": "A"}, {"content": [{"type": "text", "text": null}]}]}'),
        "line 2: expected 'messages' to be a list of texts, got .* as number 2",
    ),
    "a number for a split": (
        after_a_good_line(b'{"dialog": [], "split": 0}'),
        "line 2: expected 'split' to be one of .*, got 0",
    ),
    "a wrong act among many": (
        after_a_good_line(json.dumps({"dialog": ["Hi ."] * 20, "act": [1] * 18 + [7, 10**400]}).encode()),
        r"line 2: expected acts from 1 to 4, got \[7, 10+\.\.\.0+\]$",
    ),
    "a word among acts": (
        after_a_good_line(json.dumps({"dialog": ["Hi ."] * 20, "act": [*NAMES] * 4 + ["joke"]}).encode()),
        r"line 2: expected 'act' to be a list of numbers or names .*, got \['joke'\]$",
    ),
    "a CSV row with too many cells": (
        file_of("talk.csv", b'dialog_id,text\n1,"Hi ,\nthere ."\n\n1,Well ,yes .\n'),
        r"talk\.csv, line 5: expected 2 cells, as in the first line, got 3",
    ),
    "a CSV file with an open quote": (
        file_of("talk.csv", b'dialog_id,text\n1,Hi .\n1,"Well .\n1,Yes .\n'),
        r"talk\.csv, line 3: expected comma-separated values \(unexpected end of data\)",
    ),
    "a CSV file with two columns of one name": (
        file_of("talk.csv", b"dialog_id,text,text\n1,a,b\n"),
        r"talk\.csv, line 1: expected columns of different names, got text twice",
    ),
    "NUL in a CSV file": (
        file_of("talk.csv", b"dialog_id,text\n1,a\x00b\n"),
        r"talk\.csv, line 2: expected text, got the character U\+0000",
    ),
    "a zip file with a damaged bzip2 member": (damaged_bzip2, r"test\.zip is not a readable zip file: "),
    "no name": (lambda folder: "", "no such file or folder: '': expected"),
    "the home of nobody": (lambda folder: "~nobody-of-this-name/x", "no such file or folder: '~nobody"),
    "a long name": (lambda folder: "x" * 5000, "no such file or folder: 'x{200}': expected"),
    "no Parquet file": (file_of("talk.parquet", b"PAR1 but no more"), r"cannot read .*talk\.parquet \(Arrow"),
    "binary CSV file": (
        file_of("talk.csv", b"dialog\n\xff\xfe\x00"),
        r"talk\.csv, line 2: expected UTF-8 text, got byte 0xff",
    ),
    "a list in Python's notation in a CSV file": (
        file_of("talk.csv", b"dialog\n\"['Hi .', 'Yes .']\"\n"),
        r"talk\.csv, line 2: expected a list as JSON, got",
    ),
    "encrypted zip": (encrypted, r"test\.zip is encrypted: unpack it"),
    "two members of one name": (
        zip_of(("other/dialogues_test.txt", "x")),
        r"test\.zip has 2 members named dialogues_test\.txt: expected one",
    ),
    "no such file": (lambda folder: folder / "talk.jsonl", r"no such file or folder: '.*talk\.jsonl'"),
    "pipe": (pipe, r"no such file or folder: '.*' is a pipe"),
    "symbolic links in a circle": (loop, r"no such file or folder: '.*' is a symbolic link that leads to no file"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path, make, message):
    split = "test" if "test" in message and "zip" in message else "train"
    with pytest.raises(ValueError, match=message) as error:
        load_dialogues(str(make(tmp_path)), split)
    assert len(str(error.value)) < 900


def test_a_stranger_in_a_zip_is_not_unpacked(tmp_path, monkeypatch):
    zip_of(("test/video.mp4", "0" * 1000))(tmp_path)
    read, names = zipfile.ZipFile.read, []
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda self, info: names.append(info.filename) or read(self, info))
    load_dialogues(str(tmp_path), "test")
    assert names == ["dialogues_test.txt", "dialogues_act_test.txt"]


def test_arrays_of_samples_are_not_touched_by_the_new_arguments():
    plain, explicit = load_samples("builtin", "test"), load_samples("builtin", "test", test_share=0.2, spacing="spaced")
    assert plain.prompts == explicit.prompts and plain.references == explicit.references
    np.testing.assert_array_equal(plain.prompt_ids, explicit.prompt_ids)
