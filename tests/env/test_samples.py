import json
import pickle
import re
import socket
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import DAILYDIALOG, needs_dailydialog
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dailydialog_gym.embedded import ASSETS
from dailydialog_gym.env.dialogues import ACTS, SPLITS, Dialogue, load_dialogues
from dailydialog_gym.env.samples import format_prompt, load_samples
from dailydialog_gym.hub import hub_is_off

SHOP = (["Good morning .", "Hi ! Is the blue kettle still here ?", "It is . Take it along .", "I will ."], [1, 2, 3, 4])
RAIN = (["It rains again .", "Then let's stay in .", "All right , I'll cook ."], [1, 3, 4])
TRAIN = (["Where does this train\u2028go ?", "It\u2019s the one to the sea .\x0c"], [2, 1])
FERRY = (["Is the ferry late ?", "No , look , there it is ."], [2, 1])
DIALOGUES = {"train": [SHOP, RAIN, TRAIN, FERRY], "validation": [RAIN], "test": [FERRY, (TRAIN[0], [2, 4])]}


def expected(split, *, without=()):
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


@pytest.fixture
def hub(monkeypatch):
    """Datasets on a hub of our own: a dict from name to DatasetDict."""
    shelf = {}
    monkeypatch.setattr(datasets, "load_dataset", shelf.__getitem__)
    monkeypatch.setattr("dailydialog_gym.env.dialogues.hub_is_off", lambda: False)
    load_dialogues.cache_clear()
    load_samples.cache_clear()
    return shelf


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


@every_source
def test_every_source_gives_the_same_samples(tmp_path, write):
    (tmp_path / "plain").mkdir()
    (tmp_path / "other").mkdir()
    ours = load_samples(write(tmp_path / "other", DIALOGUES), context_size=2, max_prompt_length=24)
    reference = load_samples(write_jsonl(tmp_path / "plain", DIALOGUES), context_size=2, max_prompt_length=24)
    assert ours.prompts == reference.prompts
    assert ours.references == reference.references
    np.testing.assert_array_equal(ours.acts, reference.acts)
    np.testing.assert_array_equal(ours.prompt_ids, reference.prompt_ids)
    np.testing.assert_array_equal(ours.prompt_mask, reference.prompt_mask)


def test_daily_dialog_is_short_for_the_parquet_copy_on_the_hub(hub):
    hub["OpenRL/daily_dialog"] = dataset_dict(DIALOGUES)
    assert load_dialogues("daily_dialog", "test") == expected("test")


def test_jsonl_lines_without_split_are_training_dialogues(tmp_path):
    file = tmp_path / "talk.jsonl"
    file.write_text(
        "".join(json.dumps({"dialog": u, "act": a, "emotion": [0] * len(a)}) + "\n" for u, a in [SHOP, RAIN])
    )
    assert [dialogue.acts for dialogue in load_dialogues(str(file), "train")] == [(1, 2, 3, 4), (1, 3, 4)]
    with pytest.raises(ValueError, match=r"talk\.jsonl.* has no split 'test': it has train"):
        load_dialogues(str(file), "test")


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


@needs_dailydialog
def test_the_release_gives_a_sample_for_every_reply():
    samples = load_samples(str(DAILYDIALOG), "test", full_context=True)
    assert len(samples) == len(samples.prompts) == len(samples.references) == 3_123
    assert samples.prompt_ids.shape == samples.prompt_mask.shape == (3_123, 128)
    assert set(samples.acts) == set(ACTS)


# Dialogues that stand in two splits, labels that don't fit


@every_source
def test_training_dialogues_of_other_splits_are_left_out_and_counted(tmp_path, write, capsys):
    source = write(tmp_path, DIALOGUES)
    capsys.readouterr()
    # TRAIN stands in test with other labels: the texts decide
    assert load_dialogues(source, "train") == expected("train", without=[RAIN, TRAIN, FERRY])
    assert capsys.readouterr().err == (
        f"{source}, train: 1 dialogues (3 left out that also stand in validation or test, "
        "0 skipped whose utterances and acts differ in number)\n"
    )


def test_raw_split_keeps_what_stands_in_other_splits_and_prints_nothing(tmp_path, capsys):
    assert len(load_dialogues(write_zips(tmp_path, DIALOGUES), "train", raw_split=True)) == 4
    assert capsys.readouterr().err == ""


def test_repeats_within_a_split_are_kept(tmp_path):
    assert len(load_dialogues(write_flat(tmp_path, {"train": [SHOP, SHOP]}), "train")) == 2


def test_a_mislabelled_dialogue_still_keeps_its_twin_out_of_training(tmp_path):
    source = write_flat(tmp_path, {"train": [SHOP, RAIN], "test": [(RAIN[0], [1]), SHOP], "validation": [FERRY]})
    with pytest.raises(ValueError, match="no dialogue in it"):
        load_dialogues(source, "train")


@every_source
def test_a_dialogue_whose_labels_do_not_fit_is_skipped_and_counted(tmp_path, write, capsys):
    source = write(tmp_path, {"test": [SHOP, (RAIN[0], [1, 3]), (FERRY[0], [2, 1, 1]), TRAIN]})
    assert load_dialogues(source, "test") == expected("train", without=[RAIN, FERRY])
    assert "test: 2 dialogues (0 left out" in (err := capsys.readouterr().err)
    assert ", 2 skipped whose utterances and acts differ in number)" in err


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
            with pytest.raises(ValueError, match="no dialogue in it"):
                load_dialogues(source, "test")
            return
        dialogues = load_dialogues(source, "test")
    assert [list(dialogue.utterances) for dialogue in dialogues] == whole
    for dialogue in dialogues:
        assert [int(utterance[-1]) for utterance in dialogue.utterances] == list(dialogue.acts)


# Files that can't be read


def spoil(file, old, new):
    content = file.read_bytes()
    assert old in content
    file.write_bytes(content.replace(old, new, 1))


UNREADABLE_TEXT = {
    "acts file missing": (
        lambda folder: (folder / "dialogues_act_test.txt").unlink(),
        r"dialogues_act_test\.txt is missing: expected dialogues_test\.txt and dialogues_act_test\.txt in ",
    ),
    "texts file missing": (
        lambda folder: (folder / "dialogues_test.txt").unlink(),
        r"dialogues_test\.txt is missing: expected dialogues_test\.txt and dialogues_act_test\.txt in ",
    ),
    "not UTF-8": (
        lambda folder: spoil(folder / "dialogues_test.txt", "\u2019".encode(), b"\x92"),
        r"dialogues_test\.txt, line 2: expected UTF-8 text, got byte 0x92",
    ),
    "acts not UTF-8": (
        lambda folder: spoil(folder / "dialogues_act_test.txt", b"2 4", b"\xff 4"),
        r"dialogues_act_test\.txt, line 2: expected UTF-8 text, got byte 0xff",
    ),
    "act not a number": (
        lambda folder: spoil(folder / "dialogues_act_test.txt", b"2 4", b"2 inform"),
        r"dialogues_act_test\.txt, line 2: expected numbers from 1 to 4, got '2 inform ?'",
    ),
    "act above range": (
        lambda folder: spoil(folder / "dialogues_act_test.txt", b"2 4", b"2 5"),
        r"dialogues_act_test\.txt, line 2: expected acts from 1 to 4, got \[2, 5\]",
    ),
    "act below range": (
        lambda folder: spoil(folder / "dialogues_act_test.txt", b"2 4", b"0 4"),
        r"dialogues_act_test\.txt, line 2: expected acts from 1 to 4, got \[0, 4\]",
    ),
    "no __eou__": (
        lambda folder: spoil(folder / "dialogues_test.txt", b"there it is . __eou__", b"there it is ."),
        r"dialogues_test\.txt, line 1: expected __eou__ after every utterance, got '.*there it is \. '",
    ),
    "text line missing": (
        lambda folder: spoil(folder / "dialogues_test.txt", b"__eou__ \n", b"__eou__ "),
        r"dialogues_act_test\.txt has 2 lines: expected 1, as .*dialogues_test\.txt has",
    ),
    "act line missing": (
        lambda folder: spoil(folder / "dialogues_act_test.txt", b"2 1 \n", b""),
        r"dialogues_act_test\.txt has 1 lines: expected 2, as .*dialogues_test\.txt has",
    ),
    "split empty": (
        lambda folder: [(folder / f"dialogues{kind}_test.txt").write_bytes(b"") for kind in ("", "_act")],
        r"dialogues_test\.txt, line 1: expected __eou__ after every utterance, got ''",
    ),
}


@pytest.mark.parametrize("damage", UNREADABLE_TEXT)
def test_unreadable_text_files_are_named_with_line_and_what_was_expected(tmp_path, damage):
    spoil_it, message = UNREADABLE_TEXT[damage]
    write_flat(tmp_path, DIALOGUES)
    spoil_it(tmp_path)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path)) + ".*" + message):
        load_dialogues(str(tmp_path), "test")


@pytest.mark.parametrize("kind", ["", "_act"])
def test_a_split_folder_without_one_of_its_files_names_the_file(tmp_path, kind):
    write_folders(tmp_path, DIALOGUES)
    (tmp_path / "test" / f"dialogues{kind}_test.txt").unlink()
    with pytest.raises(ValueError, match=rf"test/dialogues{kind}_test\.txt is missing: expected dialogues_test\.txt"):
        load_dialogues(str(tmp_path), "test")


def test_a_damaged_test_split_is_not_passed_over_when_training_dialogues_are_compared_with_it(tmp_path):
    write_flat(tmp_path, DIALOGUES)
    (tmp_path / "dialogues_act_test.txt").unlink()
    with pytest.raises(ValueError, match=r"dialogues_act_test\.txt is missing"):
        load_dialogues(str(tmp_path), "train")


def test_a_file_that_is_no_zip_is_named(tmp_path):
    write_zips(tmp_path, DIALOGUES)
    (tmp_path / "test.zip").write_text("a page that says 404")
    with pytest.raises(ValueError, match=r"test\.zip is not a readable zip file"):
        load_dialogues(str(tmp_path), "test")


@pytest.mark.parametrize("at", [0.1, 0.3, 0.6])
def test_a_damaged_zip_is_named(tmp_path, at):
    write_zips(tmp_path, {"test": [SHOP] * 50})
    content = bytearray((tmp_path / "test.zip").read_bytes())
    start = int(len(content) * at)
    content[start : start + 40] = bytes(40)
    (tmp_path / "test.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"test\.zip is not a readable zip file"):
        load_dialogues(str(tmp_path), "test")


@pytest.mark.parametrize("lacking", ["dialogues_test.txt", "dialogues_act_test.txt"])
def test_a_zip_that_lacks_a_file_names_both(tmp_path, lacking):
    with zipfile.ZipFile(tmp_path / "test.zip", "w") as archive:
        for name, text in text_files("test", [SHOP]):
            if name != lacking:
                archive.writestr(f"test/{name}", text)
    with pytest.raises(
        ValueError, match=rf"test\.zip lacks {lacking}: expected dialogues_test\.txt and dialogues_act_"
    ):
        load_dialogues(str(tmp_path), "test")


def test_errors_inside_a_zip_name_archive_member_and_line(tmp_path):
    source = write_zips(tmp_path, {"test": [SHOP, (RAIN[0], [1, 9, 1])]})
    with pytest.raises(ValueError, match=r"test\.zip/test/dialogues_act_test\.txt, line 2: expected acts from 1 to 4"):
        load_dialogues(source, "test")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"dialog": ["Hi ."], "act": [1]', r'expected \{"dialog": .*got \'\{"dialog": \["Hi \."\], "act": \[1\]\''),
        ('{"dialog": ["Hi ."]}', r'expected \{"dialog": \[\.\.\.\], "act": \[\.\.\.\]\}, got'),
        ('{"utterances": ["Hi ."], "act": [1]}', r'expected \{"dialog": \[\.\.\.\], "act": \[\.\.\.\]\}, got'),
        ('["Hi .", "Hello ."]', r'expected \{"dialog": '),
        ("7", r'expected \{"dialog": '),
        ("", r'expected \{"dialog": '),
        ('{"dialog": "Hi .", "act": [1, 1, 1, 1]}', "expected 'dialog' to be a list of texts, got 'Hi .'"),
        ('{"dialog": ["Hi .", 3], "act": [1, 1]}', "expected 'dialog' to be a list of texts"),
        ('{"dialog": null, "act": [1]}', "expected 'dialog' to be a list of texts"),
        ('{"dialog": ["Hi ."], "act": ["inform"]}', r"expected 'act' to be a list of numbers, got \"\['inform'\]\""),
        ('{"dialog": ["Hi ."], "act": [1.5]}', "expected 'act' to be a list of numbers"),
        ('{"dialog": ["Hi ."], "act": 1}', "expected 'act' to be a list of numbers"),
        ('{"dialog": ["Hi ."], "act": [5]}', r"expected acts from 1 to 4, got \[5\]"),
        ('{"dialog": ["Hi ."], "act": [1], "split": "dev"}', "expected 'split' to be one of train, .*got 'dev'"),
    ],
)
def test_unreadable_jsonl_lines_are_named_with_what_was_expected(tmp_path, line, message):
    file = tmp_path / "talk.jsonl"
    file.write_text(json.dumps({"dialog": SHOP[0], "act": SHOP[1]}) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=r"talk\.jsonl, line 2: " + message):
        load_dialogues(str(file), "train")


def test_a_jsonl_file_that_is_not_utf8_names_file_and_line(tmp_path):
    file = tmp_path / "talk.jsonl"
    file.write_bytes(
        json.dumps({"dialog": SHOP[0], "act": SHOP[1]}).encode() + b'\n{"dialog": ["\xe9t\xe9"], "act": [1]}'
    )
    with pytest.raises(ValueError, match=r"talk\.jsonl, line 2: expected UTF-8 text, got byte 0xe9"):
        load_dialogues(str(file), "train")


def test_saved_datasets_with_other_columns_name_folder_and_columns(tmp_path):
    rows = datasets.Dataset.from_dict({"utterances": [SHOP[0]], "acts": [SHOP[1]]})
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path)
    with pytest.raises(
        ValueError, match=rf"{tmp_path}, train: expected columns 'dialog' and 'act', got .*'utterances'"
    ):
        load_dialogues(str(tmp_path), "train")


@pytest.mark.parametrize("row", [{"dialog": "Hi .", "act": [1]}, {"dialog": ["Hi ."], "act": 1}])
def test_saved_datasets_with_one_utterance_a_row_name_folder_and_row(tmp_path, row):
    datasets.DatasetDict({"train": datasets.Dataset.from_list([row])}).save_to_disk(tmp_path)
    with pytest.raises(ValueError, match=rf"{tmp_path}, train, row 0: expected '(dialog|act)' to be a list of"):
        load_dialogues(str(tmp_path), "train")


@pytest.mark.parametrize("damage", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
def test_a_damaged_saved_dataset_is_named(tmp_path, damage):
    write_saved(tmp_path, DIALOGUES)
    (tmp_path / "test" / damage).write_text("gone")
    with pytest.raises(ValueError, match=f"cannot read {tmp_path}, written by save_to_disk"):
        load_dialogues(str(tmp_path), "test")


def test_an_empty_saved_split_is_an_error(tmp_path):
    write_saved(tmp_path, {"train": []})
    with pytest.raises(ValueError, match=f"{tmp_path}"):
        load_dialogues(str(tmp_path), "train")


def test_an_empty_split_on_the_hub_is_an_error(hub):
    hub["someone/talk"] = dataset_dict({"train": []})
    with pytest.raises(ValueError, match="dataset 'someone/talk', split 'train': no dialogue in it"):
        load_dialogues("someone/talk", "train")


# Names that lead nowhere


@pytest.mark.parametrize("name", ["nothing", "nothing.jsonl", "./nowhere/talk", "/nowhere/talk", "a/b/c"])
def test_unknown_datasets_are_named_with_what_was_expected(name):
    with pytest.raises(ValueError, match=rf"unknown dataset '{name}': expected 'builtin'; a folder in DailyDialog's"):
        load_dialogues(name, "train")


def test_a_file_of_another_kind_is_an_error(tmp_path):
    (tmp_path / "talk.csv").write_text("dialog,act\n")
    with pytest.raises(ValueError, match=r"talk\.csv' is a file, but not a \.jsonl: expected 'builtin'"):
        load_dialogues(str(tmp_path / "talk.csv"), "train")


def test_a_folder_that_holds_no_dataset_is_an_error(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing to see")
    with pytest.raises(ValueError, match=rf"folder '{tmp_path}' holds no dataset: expected 'builtin'"):
        load_dialogues(str(tmp_path), "train")


def test_a_single_saved_split_is_no_dataset(tmp_path):
    dataset_dict(DIALOGUES)["train"].save_to_disk(tmp_path)
    with pytest.raises(ValueError, match=r"holds no dataset: .*save_to_disk"):
        load_dialogues(str(tmp_path), "train")


@pytest.mark.parametrize("split", ["dev", "Train", ""])
def test_an_unknown_split_is_an_error(split):
    with pytest.raises(ValueError, match=rf"unknown split '{split}': expected one of train, validation, test"):
        load_dialogues("builtin", split)
    with pytest.raises(ValueError, match="unknown split"):
        load_samples("builtin", split)


@every_source
def test_a_split_that_the_source_lacks_is_an_error_naming_those_it_has(tmp_path, write):
    source = write(tmp_path, {"train": [SHOP], "validation": [RAIN]})
    with pytest.raises(ValueError, match=rf"{source}' has no split 'test': it has train, validation$"):
        load_dialogues(source, "test")


def test_a_split_that_a_hub_dataset_lacks_is_an_error(hub):
    hub["someone/talk"] = dataset_dict({"train": [SHOP]})
    with pytest.raises(ValueError, match=r"'someone/talk' has no split 'test': it has train$"):
        load_dialogues("someone/talk", "test")


def test_hub_datasets_with_other_columns_are_named(hub):
    hub["someone/talk"] = dataset_dict({"test": [SHOP]}).rename_columns({"dialog": "utterances"})
    with pytest.raises(ValueError, match=r"someone/talk, test: expected columns 'dialog' and 'act', got .*utterances"):
        load_dialogues("someone/talk", "test")


@pytest.fixture
def no_network(monkeypatch):
    """A hub that refuses every connection."""
    nowhere = "http://127.0.0.1:9"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", nowhere)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", nowhere)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)


@pytest.mark.parametrize(
    ("name", "full"), [("nobody/nothing", "nobody/nothing"), ("daily_dialog", "OpenRL/daily_dialog")]
)
def test_without_a_network_a_hub_dataset_is_soon_an_error_naming_it(no_network, name, full):
    start = time.perf_counter()
    with pytest.raises(ValueError, match=f"dataset '{full}' is no file or folder here, nor can it be had from the hub"):
        load_dialogues.__wrapped__(name, "train")
    assert time.perf_counter() - start < 3


def test_without_a_network_a_dataset_downloaded_before_still_loads(no_network, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    files = {split: str(tmp_path / "files" / f"{split}.parquet") for split in SPLITS}
    for split, rows in dataset_dict(DIALOGUES).items():
        rows.to_parquet(files[split])
    datasets.load_dataset("parquet", data_files=files)
    # What the hub's client leaves in its cache differs from this only in names.
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
        start = time.perf_counter()
        assert hub_is_off()
        assert time.perf_counter() - start < 8


# Samples


def test_a_sample_is_a_reply_with_the_utterances_before_it(tmp_path):
    samples = load_samples(write_jsonl(tmp_path, {"train": [SHOP, FERRY]}), context_size=2)
    a, b, c, d = SHOP[0]
    assert samples.prompts == [
        f"{a} <EOU>",
        f"{a} <EOU> {b} <EOU>",
        f"{b} <EOU> {c} <EOU>",
        f"{FERRY[0][0]} <EOU>",
    ]
    assert samples.references == [b, c, d, FERRY[0][1]]
    assert samples.acts.tolist() == [2, 3, 4, 1]
    assert samples.acts.dtype == np.int64
    assert len(samples) == 4


@pytest.mark.parametrize("context_size", [1, 3, 5, 99])
def test_contexts_of_builtin_dialogues_are_their_last_utterances(context_size):
    samples = load_samples("builtin", "validation", context_size=context_size)
    row = 0
    for dialogue in load_dialogues("builtin", "validation"):
        for i in range(1, len(dialogue.utterances)):
            before = [u.strip() for u in samples.prompts[row].split("<EOU>")[:-1]]
            assert before == list(dialogue.utterances[:i][-context_size:])
            assert (samples.references[row], samples.acts[row]) == (dialogue.utterances[i], dialogue.acts[i])
            row += 1
    assert row == len(samples)


def test_full_context_leaves_out_replies_with_too_few_utterances_before_them():
    every = load_samples("builtin", "test", context_size=3)
    full = load_samples("builtin", "test", context_size=3, full_context=True)
    kept = [i for i, prompt in enumerate(every.prompts) if prompt.count("<EOU>") == 3]
    assert 0 < len(kept) < len(every)
    assert full.prompts == [every.prompts[i] for i in kept]
    assert full.references == [every.references[i] for i in kept]
    assert full.acts.tolist() == every.acts[kept].tolist()


def test_a_split_of_dialogues_too_short_for_full_context_is_an_error(tmp_path):
    source = write_jsonl(tmp_path, {"train": [FERRY]})
    with pytest.raises(ValueError, match="split 'train': no reply has 5 utterances before it"):
        load_samples(source, full_context=True)


@pytest.mark.parametrize("name", ["context_size", "max_prompt_length"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_below_one_are_errors_naming_the_argument(name, value):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got {value}"):
        load_samples(**{name: value})


def test_prompt_ids_are_the_tokenizers_own_encoding_of_the_prompt_text():
    samples = load_samples("builtin", "validation", max_prompt_length=400)
    backend = Tokenizer.from_file(str(ASSETS / "policy" / "tokenizer.json"))
    for prompt, ids, mask in zip(samples.prompts, samples.prompt_ids, samples.prompt_mask, strict=True):
        assert ids[mask].tolist() == backend.encode(prompt).ids


def test_prompts_are_padded_on_the_left_and_lose_their_beginning():
    whole = load_samples("builtin", "validation", max_prompt_length=400)
    short = load_samples("builtin", "validation", max_prompt_length=50)
    lengths = whole.prompt_mask.sum(1)
    assert lengths.min() < 50 < lengths.max() < 400
    np.testing.assert_array_equal(short.prompt_mask.sum(1), lengths.clip(max=50))
    for samples, width in ((whole, 400), (short, 50)):
        assert samples.prompt_ids.shape == samples.prompt_mask.shape == (len(samples.prompts), width)
        assert (samples.prompt_ids.dtype, samples.prompt_mask.dtype) == (np.int32, np.bool_)
        assert (np.diff(samples.prompt_mask.astype(int), axis=1) >= 0).all()
        assert (samples.prompt_ids[~samples.prompt_mask] == samples.tokenizer.pad_id).all()
    np.testing.assert_array_equal(short.prompt_ids[short.prompt_mask], whole.prompt_ids[:, -50:][short.prompt_mask])


@pytest.fixture(scope="module")
def bos_tokenizer(tmp_path_factory):
    """The folder of a word tokenizer that begins every text with ``<s>``."""
    words = ["<s>", "</s>", "<unk>", "<EOU>", *sorted({w for u in SHOP[0] + FERRY[0] for w in u.split()})]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    folder = tmp_path_factory.mktemp("bos")
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return str(folder)


def test_a_tokenizers_bos_stands_first_in_every_prompt_cut_or_whole(tmp_path, bos_tokenizer):
    source = write_jsonl(tmp_path, {"train": [SHOP, FERRY]})
    encode = AutoTokenizer.from_pretrained(bos_tokenizer)
    for width in (64, 12, 2):
        samples = load_samples(source, tokenizer=bos_tokenizer, max_prompt_length=width)
        for prompt, ids, mask in zip(samples.prompts, samples.prompt_ids, samples.prompt_mask, strict=True):
            own = encode(prompt)["input_ids"]
            assert own[0] == 0
            assert ids[mask].tolist() == [0, *own[1:][-(width - 1) :]]


def test_a_prompt_length_that_holds_only_bos_is_an_error(bos_tokenizer):
    with pytest.raises(ValueError, match="max_prompt_length 1 has no room beside the tokenizer's BOS token"):
        load_samples(tokenizer=bos_tokenizer, max_prompt_length=1)


@given(st.lists(st.text(alphabet=st.characters(exclude_characters="<>"), max_size=8), max_size=5))
def test_format_prompt_ends_every_utterance(utterances):
    prompt = format_prompt(utterances)
    assert prompt == format_prompt(tuple(utterances))
    assert prompt.split(" <EOU>")[:-1] == [("" if i == 0 else " ") + u for i, u in enumerate(utterances)]
    assert prompt == "" or prompt.endswith(" <EOU>")


# One load for all


def test_equal_arguments_share_one_load():
    assert load_samples("builtin", "test") is load_samples("builtin", "test")
    assert load_dialogues("builtin", "test") is load_dialogues("builtin", "test")


def test_pickled_samples_carry_only_their_recipe():
    samples = load_samples("builtin", "test", context_size=2, max_prompt_length=32, full_context=True)
    pickled = pickle.dumps(samples)
    assert len(pickled) < 500
    load_samples.cache_clear()
    again = pickle.loads(pickled)
    assert again is not samples
    assert again.prompts == samples.prompts
    np.testing.assert_array_equal(again.prompt_ids, samples.prompt_ids)
    assert sys.getsizeof(pickled) < samples.prompt_ids.nbytes
