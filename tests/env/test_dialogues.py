import json
import socket
import tempfile
import time
import zipfile
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from dialogue_files import (
    DIALOGUES,
    FERRY,
    RAIN,
    SHOP,
    TRAIN,
    dataset_dict,
    every_source,
    expected,
    text_files,
    write_flat,
    write_folders,
    write_jsonl,
    write_saved,
    write_zips,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import DAILYDIALOG, needs_dailydialog

from dailydialog_gym.embedded import ASSETS
from dailydialog_gym.env.dialogues import SPLITS, load_dialogues
from dailydialog_gym.env.samples import load_samples
from dailydialog_gym.hub import hub_is_off


@pytest.fixture
def hub(monkeypatch):
    """Replaces the hub's datasets with those in this dict, from name to `DatasetDict`."""
    hub_datasets = {}
    monkeypatch.setattr(datasets, "load_dataset", hub_datasets.__getitem__)
    monkeypatch.setattr("dailydialog_gym.env.formats.hub_is_off", lambda: False)
    load_dialogues.cache_clear()
    load_samples.cache_clear()
    return hub_datasets


# Sources


@every_source
def test_every_source_gives_the_same_dialogues(tmp_path, write):
    source = write(tmp_path, DIALOGUES)
    assert load_dialogues(source, "train", raw_split=True) == expected("train")
    assert load_dialogues(source, "validation") == expected("validation")
    assert load_dialogues(source, "test") == expected("test")


def test_hub_datasets_give_the_same_dialogues(hub):
    hub["someone/talk"] = dataset_dict(DIALOGUES)
    for split in SPLITS:
        assert load_dialogues("someone/talk", split, raw_split=True) == expected(split)


def test_daily_dialog_is_short_for_the_parquet_copy_on_the_hub(hub):
    hub["OpenRL/daily_dialog"] = dataset_dict(DIALOGUES)
    assert load_dialogues("daily_dialog", "test") == expected("test")


def test_jsonl_lines_without_split_are_training_dialogues(tmp_path):
    file = tmp_path / "talk.jsonl"
    file.write_text(
        "".join(json.dumps({"dialog": u, "act": a, "emotion": [0] * len(a)}) + "\n" for u, a in [SHOP, RAIN]),
        encoding="utf-8",
    )
    assert [dialogue.acts for dialogue in load_dialogues(str(file), "train")] == [(1, 2, 3, 4), (1, 3, 4)]
    with pytest.raises(ValueError, match=r"talk\.jsonl.* has no split 'test': it has train"):
        load_dialogues(str(file), "test", test_share=0)


def test_builtin_dialogues_equal_their_file_read_as_jsonl():
    for split in SPLITS:
        assert load_dialogues("builtin", split) == load_dialogues(str(ASSETS / "dialogues.jsonl"), split)


def test_a_home_folder_may_be_written_as_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_jsonl(tmp_path, DIALOGUES)
    assert load_dialogues("~/talk.jsonl", "test") == expected("test")


@needs_dailydialog
def test_the_release_has_the_documented_numbers(capsys):
    name = str(DAILYDIALOG)
    raw, clean = load_dialogues(name, "train", raw_split=True), load_dialogues(name, "train")
    assert (len(raw), len(clean)) == (11_117, 10_945)
    assert "172 left out" in capsys.readouterr().err
    for dialogues, replies, with_full_context in ((clean, 75_006, 35_368), (raw, 76_042, 35_775)):
        assert sum(len(d.utterances) - 1 for d in dialogues) == replies
        assert sum(max(0, len(d.utterances) - 5) for d in dialogues) == with_full_context
        assert f"{with_full_context:,} of" in load_samples.__doc__
        assert f"{replies:,}" in load_samples.__doc__


# Dialogues in two splits, and dialogues whose numbers of utterances and acts differ


@every_source
def test_training_dialogues_of_other_splits_are_left_out_and_counted(tmp_path, write, capsys):
    source = write(tmp_path, DIALOGUES)
    capsys.readouterr()
    # TRAIN is also in the test split, with other acts: only the utterances are compared.
    assert load_dialogues(source, "train") == expected("train", without=[RAIN, TRAIN, FERRY])
    assert capsys.readouterr().err == (
        f"{source}, train: 1 dialogues (3 left out because they are also in validation or test, "
        "0 skipped because their numbers of utterances and acts differ)\n"
    )


def test_raw_split_keeps_dialogues_of_other_splits_and_prints_nothing(tmp_path, capsys):
    assert len(load_dialogues(write_zips(tmp_path, DIALOGUES), "train", raw_split=True)) == 4
    assert capsys.readouterr().err == ""


def test_repeats_within_a_split_are_kept(tmp_path):
    assert len(load_dialogues(write_flat(tmp_path, {"train": [SHOP, SHOP]}), "train")) == 2


def test_a_test_dialogue_with_mismatched_acts_still_keeps_its_copy_out_of_training(tmp_path):
    source = write_flat(tmp_path, {"train": [SHOP, RAIN], "test": [(RAIN[0], [1]), SHOP], "validation": [FERRY]})
    with pytest.raises(ValueError, match="contains no dialogue"):
        load_dialogues(source, "train")


@every_source
def test_a_dialogue_with_mismatched_acts_is_skipped_and_counted(tmp_path, write, capsys):
    source = write(tmp_path, {"test": [SHOP, (RAIN[0], [1, 3]), (FERRY[0], [2, 1, 1]), TRAIN]})
    assert load_dialogues(source, "test") == expected("train", without=[RAIN, FERRY])
    assert "test: 2 dialogues (0 left out" in (err := capsys.readouterr().err)
    assert ", 2 skipped because their numbers of utterances and acts differ)" in err


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(0, 6)), min_size=1, max_size=8),
    st.sampled_from([write_zips, write_folders, write_jsonl]),
)
def test_skipped_dialogues_never_misalign_others(lines, write):
    rows = [([f"Line {i} , act {act}" for act in acts], (acts * 3)[:labels]) for i, (acts, labels) in enumerate(lines)]
    whole = [utterances for utterances, acts in rows if len(utterances) == len(acts)]
    with tempfile.TemporaryDirectory() as folder:
        source = write(Path(folder), {"test": rows})
        if not whole:
            with pytest.raises(ValueError, match="contains no dialogue"):
                load_dialogues(source, "test")
            return
        dialogues = load_dialogues(source, "test")
    assert [list(dialogue.utterances) for dialogue in dialogues] == whole
    for dialogue in dialogues:
        assert [int(utterance[-1]) for utterance in dialogue.utterances] == list(dialogue.acts)


# Datasets that can't be read


def replace(file, old, new):
    content = file.read_bytes()
    assert old in content
    file.write_bytes(content.replace(old, new, 1))


def overwrite_with_zeros(file, at):
    """Turn 40 bytes into zeros, beginning at this fraction of the file."""
    content = bytearray(file.read_bytes())
    start = int(len(content) * at)
    content[start : start + 40] = bytes(40)
    file.write_bytes(content)


def zip_without(lacking, folder):
    with zipfile.ZipFile(folder / "test.zip", "w") as archive:
        for name, text in text_files("test", [SHOP]):
            if name != lacking:
                archive.writestr(f"test/{name}", text)


# By case: the format in which DIALOGUES is written into a folder, how it is damaged there, and the error text, where
# FOLDER is the folder.
DAMAGED = {
    "acts file missing": (
        write_flat,
        lambda folder: (folder / "dialogues_act_test.txt").unlink(),
        r"dialogues_act_test\.txt is missing: expected dialogues_test\.txt and dialogues_act_test\.txt in ",
    ),
    "texts file missing": (
        write_flat,
        lambda folder: (folder / "dialogues_test.txt").unlink(),
        r"dialogues_test\.txt is missing: expected dialogues_test\.txt and dialogues_act_test\.txt in ",
    ),
    "not UTF-8": (
        write_flat,
        lambda folder: replace(folder / "dialogues_test.txt", "\u2019".encode(), b"\x92"),
        r"dialogues_test\.txt, line 2: expected UTF-8 text, got byte 0x92",
    ),
    "acts not UTF-8": (
        write_flat,
        lambda folder: replace(folder / "dialogues_act_test.txt", b"2 4", b"\xff 4"),
        r"dialogues_act_test\.txt, line 2: expected UTF-8 text, got byte 0xff",
    ),
    "act not a number": (
        write_flat,
        lambda folder: replace(folder / "dialogues_act_test.txt", b"2 4", b"2 inform"),
        r"dialogues_act_test\.txt, line 2: expected numbers from 1 to 4, got '2 inform ?'",
    ),
    "act above range": (
        write_flat,
        lambda folder: replace(folder / "dialogues_act_test.txt", b"2 4", b"2 5"),
        r"dialogues_act_test\.txt, line 2: expected acts from 1 to 4, got \[5\]",
    ),
    "act below range": (
        write_flat,
        lambda folder: replace(folder / "dialogues_act_test.txt", b"2 4", b"-1 4"),
        r"dialogues_act_test\.txt, line 2: expected acts from 1 to 4, got \[-1\]",
    ),
    "no __eou__": (
        write_flat,
        lambda folder: replace(folder / "dialogues_test.txt", b"there it is . __eou__", b"there it is ."),
        r"dialogues_test\.txt, line 1: expected __eou__ after every utterance, got '.*there it is \. '",
    ),
    "text line missing": (
        write_flat,
        lambda folder: replace(folder / "dialogues_test.txt", b"__eou__ \n", b"__eou__ "),
        r"dialogues_act_test\.txt has 2 lines: expected 1, as .*dialogues_test\.txt has",
    ),
    "act line missing": (
        write_flat,
        lambda folder: replace(folder / "dialogues_act_test.txt", b"2 1 \n", b""),
        r"dialogues_act_test\.txt has 1 lines: expected 2, as .*dialogues_test\.txt has",
    ),
    "split empty": (
        write_flat,
        lambda folder: [(folder / f"dialogues{kind}_test.txt").write_bytes(b"") for kind in ("", "_act")],
        "split 'test' contains no dialogue",
    ),
    "texts file missing in a split's folder": (
        write_folders,
        lambda folder: (folder / "test" / "dialogues_test.txt").unlink(),
        r"test/dialogues_test\.txt is missing: expected dialogues_test\.txt",
    ),
    "acts file missing in a split's folder": (
        write_folders,
        lambda folder: (folder / "test" / "dialogues_act_test.txt").unlink(),
        r"test/dialogues_act_test\.txt is missing: expected dialogues_test\.txt",
    ),
    "not a zip file": (
        write_zips,
        lambda folder: (folder / "test.zip").write_text("a page that says 404", encoding="utf-8"),
        r"test\.zip is not a readable zip file",
    ),
    "texts file missing in a zip file": (
        write_zips,
        lambda folder: zip_without("dialogues_test.txt", folder),
        r"test\.zip lacks dialogues_test\.txt: expected dialogues_test\.txt and dialogues_act_",
    ),
    "acts file missing in a zip file": (
        write_zips,
        lambda folder: zip_without("dialogues_act_test.txt", folder),
        r"test\.zip lacks dialogues_act_test\.txt: expected dialogues_test\.txt and dialogues_act_",
    ),
    "act above range in a zip file": (
        write_zips,
        lambda folder: write_zips(folder, {"test": [SHOP, (RAIN[0], [1, 9, 1])]}),
        r"test\.zip/test/dialogues_act_test\.txt, line 2: expected acts from 1 to 4",
    ),
    **{
        f"saved dataset with a damaged {file}": (
            write_saved,
            lambda folder, file=file: (folder / "test" / file).write_text("gone", encoding="utf-8"),
            "cannot read FOLDER, written by save_to_disk",
        )
        for file in ("state.json", "dataset_info.json", "data-00000-of-00001.arrow")
    },
    **{
        f"zip file damaged at {at}": (
            write_zips,
            lambda folder, at=at: (
                write_zips(folder, {"test": [SHOP] * 50}),
                overwrite_with_zeros(folder / "test.zip", at),
            ),
            r"test\.zip is not a readable zip file",
        )
        for at in (0.1, 0.3, 0.6)
    },
}


@pytest.mark.parametrize(("write", "damage", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_dataset_is_named_with_the_place_and_what_was_expected(tmp_path, write, damage, message):
    source = write(tmp_path, DIALOGUES)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message.replace("FOLDER", str(tmp_path))) as error:
        load_dialogues(source, "test")
    assert str(tmp_path) in str(error.value)


def test_a_damaged_test_split_is_not_passed_over_when_training_dialogues_are_compared_with_it(tmp_path):
    write_flat(tmp_path, DIALOGUES)
    (tmp_path / "dialogues_act_test.txt").unlink()
    with pytest.raises(ValueError, match=r"dialogues_act_test\.txt is missing"):
        load_dialogues(str(tmp_path), "train")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"dialog": ["Hi ."], "act": [1]', r'expected \{"dialog": .*got \'\{"dialog": \["Hi \."\], "act": \[1\]\''),
        (b'{"talk": ["Hi ."], "act": [1]}', "expected a column dialog, .*, messages or conversations, got talk, act"),
        (b'["Hi .", "Hello ."]', r'expected \{"dialog": '),
        (b"7", r'expected \{"dialog": '),
        (b'{"dialog": "Hi .", "act": [1, 1, 1, 1]}', "expected 'dialog' to be a list of texts, got 'Hi .'"),
        (b'{"dialog": ["Hi .", 3], "act": [1, 1]}', "expected 'dialog' to be a list of texts"),
        (b'{"dialog": null, "act": [1]}', "expected 'dialog' to be a list of texts"),
        (
            b'{"dialog": ["Hi ."], "act": ["joke"]}',
            r"expected 'act' to be a list of numbers or names .*, got \['joke'\]",
        ),
        (b'{"dialog": ["Hi ."], "act": [true]}', "expected 'act' to be a list of numbers"),
        (b'{"dialog": ["Hi ."], "act": [1.5]}', "expected 'act' to be a list of numbers"),
        (b'{"dialog": ["Hi ."], "act": 1}', "expected 'act' to be a list of numbers"),
        (b'{"dialog": ["Hi ."], "act": [5]}', r"expected acts from 1 to 4, got \[5\]"),
        (b'{"dialog": ["Hi ."], "act": [1], "split": "mine"}', "expected 'split' to be one of train, .*got 'mine'"),
        (b'{"dialog": ["\xe9t\xe9"], "act": [1]}', "expected UTF-8 text, got byte 0xe9"),
    ],
)
def test_unreadable_jsonl_lines_are_named_with_what_was_expected(tmp_path, line, message):
    file = tmp_path / "talk.jsonl"
    file.write_bytes(json.dumps({"dialog": SHOP[0], "act": SHOP[1]}).encode() + b"\n" + line + b"\n")
    with pytest.raises(ValueError, match=r"talk\.jsonl, line 2: " + message):
        load_dialogues(str(file), "train")


def save_rows(folder, *rows):
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(folder)


# By case: what is written into a folder, the name in the folder that is loaded, and the error text, where FOLDER is the
# folder.
NOT_A_DATASET = {
    "saved dataset with other columns": (
        lambda folder: save_rows(folder, {"lines": SHOP[0], "moods": SHOP[1]}),
        "",
        "FOLDER, train, row 0: expected a column dialog, dialogue, .* or conversations, got lines, moods",
    ),
    "saved dataset with an utterance per row": (
        lambda folder: save_rows(folder, {"dialog": "Hi .", "act": [1]}),
        "",
        "FOLDER, train, row 0: expected '(dialog|act)' to be a list of",
    ),
    "saved dataset with an act per row": (
        lambda folder: save_rows(folder, {"dialog": ["Hi ."], "act": 1}),
        "",
        "FOLDER, train, row 0: expected '(dialog|act)' to be a list of",
    ),
    "saved dataset without rows": (lambda folder: write_saved(folder, {"train": []}), "", "FOLDER"),
    "file of another kind": (
        lambda folder: (folder / "talk.docx").write_text("dialog,act\n", encoding="utf-8"),
        "talk.docx",
        r"talk\.docx' is a file, but none of \.jsonl, \.json, \.csv, \.parquet: expected 'builtin'",
    ),
    "folder of other files": (
        lambda folder: (folder / "notes.txt").write_text("nothing to see", encoding="utf-8"),
        "",
        "folder 'FOLDER' holds no dataset: expected 'builtin'",
    ),
}


@pytest.mark.parametrize(("make", "name", "message"), NOT_A_DATASET.values(), ids=NOT_A_DATASET)
def test_files_and_folders_that_are_no_dataset_are_named_with_what_was_expected(tmp_path, make, name, message):
    make(tmp_path)
    with pytest.raises(ValueError, match=message.replace("FOLDER", str(tmp_path))):
        load_dialogues(str(tmp_path / name), "train")


@pytest.mark.parametrize(
    "name", ["nothing", "nothing.jsonl", "./nowhere/talk", "/nowhere/talk", "a/b/c", "nowhere/talk.jsonl"]
)
def test_unknown_datasets_are_named_with_what_was_expected(name):
    with pytest.raises(ValueError, match=rf"no such file or folder: '{name}': expected 'builtin'; a folder in Daily"):
        load_dialogues(name, "train")


@pytest.mark.parametrize(
    ("dataset", "split", "message"),
    [
        (dataset_dict({"train": []}), "train", "dataset 'someone/talk', split 'train' contains no dialogue"),
        (datasets.DatasetDict({"all": dataset_dict(DIALOGUES)["test"]}), "test", "has no split 'test': it has all$"),
        (
            dataset_dict({"test": [SHOP]}).rename_columns({"dialog": "lines"}),
            "test",
            "someone/talk, test, row 0: expected a column dialog, .* or conversations, got act, lines",
        ),
    ],
    ids=["empty split", "no such split", "other columns"],
)
def test_unusable_hub_datasets_are_named(hub, dataset, split, message):
    hub["someone/talk"] = dataset
    with pytest.raises(ValueError, match=message):
        load_dialogues("someone/talk", split)


@pytest.mark.parametrize("split", ["dev", "Train", ""])
def test_an_unknown_split_is_an_error(split):
    with pytest.raises(ValueError, match=rf"unknown split '{split}': expected one of train, validation, test"):
        load_dialogues("builtin", split)
    with pytest.raises(ValueError, match="unknown split"):
        load_samples("builtin", split)


@every_source
def test_a_split_that_the_source_lacks_is_an_error_naming_those_it_has(tmp_path, write):
    """Unless a share of train is held out, which is never so in DailyDialog's own format: there a file is missing."""
    source = write(tmp_path, {"train": [SHOP], "validation": [RAIN]})
    share = 0 if write in (write_jsonl, write_saved) else 0.05
    with pytest.raises(ValueError, match=rf"{source}' has no split 'test': it has train, validation$"):
        load_dialogues(source, "test", test_share=share)


@pytest.mark.parametrize(
    ("name", "full"), [("nobody/nothing", "nobody/nothing"), ("daily_dialog", "OpenRL/daily_dialog")]
)
def test_without_a_network_a_hub_dataset_is_soon_an_error_naming_it(no_network, name, full):
    start = time.perf_counter()
    with pytest.raises(ValueError, match=f"dataset '{full}' is not a local file or folder, and it cannot be loaded"):
        load_dialogues.__wrapped__(name, "train")
    assert time.perf_counter() - start < 3


def test_without_a_network_a_dataset_downloaded_before_still_loads(no_network, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    files = {split: str(tmp_path / "files" / f"{split}.parquet") for split in SPLITS}
    for split, rows in dataset_dict(DIALOGUES).items():
        rows.to_parquet(files[split])
    datasets.load_dataset("parquet", data_files=files)
    # The cache of a dataset from the hub differs from this one only in its names.
    (cached,) = (tmp_path / "parquet").glob("default-*/0.0.0/*/")
    for arrow in cached.glob("*.arrow"):
        arrow.rename(arrow.with_name(arrow.name.replace("parquet-", "talk-")))
    (tmp_path / "someone___talk" / "default" / "0.0.0").mkdir(parents=True)
    cached.rename(tmp_path / "someone___talk" / "default" / "0.0.0" / ("a" * 40))
    load_dialogues.cache_clear()
    assert load_dialogues("someone/talk", "test") == expected("test")


def test_a_hub_that_accepts_and_never_answers_is_off_within_seconds(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr("dailydialog_gym.hub.TIMEOUT", 0.5)
        start = time.perf_counter()
        assert hub_is_off()
        assert time.perf_counter() - start < 3


def test_dialogues_are_loaded_once():
    assert load_dialogues("builtin", "test") is load_dialogues("builtin", "test")
