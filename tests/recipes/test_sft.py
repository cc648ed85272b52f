"""The recipe of the embedded policy, on the builtin dialogues and at toy size."""

import gzip
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from dailydialog_gym.env.dialogues import load_dialogues
from dailydialog_gym.recipes import sft

TOY = {
    "dataset": "builtin",
    "vocab_size": 400,
    "layers": 1,
    "width": 64,
    "context": 64,
    "epochs": 2,
    "warmup_steps": 10,
    "batch_tokens": 4096,
}


def curve(folder):
    rows = [json.loads(line) for line in (folder / "sft.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "tokens_per_second"} for row in rows]


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    sft.main(sft.Args(out=whole, **TOY))
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in TOY.items()]
    command = [sys.executable, "-m", "dailydialog_gym.recipes.sft", f"--out={killed}", *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (killed / "training_state.pt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    sft.main(sft.Args(out=killed, **TOY))
    assert curve(killed) == curve(whole)
    assert curve(whole)[1]["bits_per_character"] < curve(whole)[0]["bits_per_character"]


@pytest.fixture(scope="module")
def encoded():
    dialogues = load_dialogues("builtin", "validation")
    return sft.encode(sft.train_tokenizer(dialogues, 400), (dialogue.utterances for dialogue in dialogues))


def test_every_token_is_predicted_once(encoded):
    tokens = Counter(token for dialogue in encoded for utterance in dialogue for token in utterance)
    whole = sft.windows(encoded, 64, None)
    assert Counter(token for piece in whole for token in piece[1:]) == tokens
    split = sft.windows(encoded, 64, random.Random(1))
    left = tokens - Counter(token for piece in split for token in piece[1:])
    assert 0 < left.total() < len(encoded)  # where a dialogue is entered midway, its first token
    assert max(map(len, whole + split)) == 65
    data = sft.batches(whole, 1024)
    assert sum((batch >= 0).sum().item() for batch in data) == sum(map(len, whole))
    assert all(batch.numel() <= 1024 for batch in data)


def test_a_deepened_model_begins_as_the_one_it_came_from(tmp_path):
    sft.main(sft.Args(out=tmp_path, **{**TOY, "epochs": 1}))
    shallow = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    config = GPT2Config.from_pretrained(tmp_path, n_layer=3)
    deep = GPT2LMHeadModel(config).eval()
    sft.begin_with(deep, tmp_path)
    ids = torch.arange(50)[None]
    torch.testing.assert_close(deep(ids).logits, shallow(ids).logits)
    with pytest.raises(ValueError, match=f"{tmp_path} has more layers than the 0 asked for"):
        sft.begin_with(GPT2LMHeadModel(GPT2Config.from_pretrained(tmp_path, n_layer=0)), tmp_path)


def test_pretraining_adds_its_epochs_and_a_bad_line_is_named(tmp_path):
    file = tmp_path / "dialogues.jsonl.gz"
    with gzip.open(file, "wt") as lines:
        lines.write('{"dialog": ["Hello!", "Don\'t go."]}\n' * 20)
    assert sft.read_pretraining(file)[0] == ["Hello !", "Don't go ."]
    sft.main(sft.Args(out=tmp_path / "out", pretraining=file, pretraining_epochs=2, **{**TOY, "epochs": 1}))
    losses = [row["train_loss"] for row in curve(tmp_path / "out")]
    assert len(losses) == 3
    with gzip.open(file, "at") as lines:
        lines.write('{"text": "Hello"}\n')
    with pytest.raises(ValueError, match=r"dialogues.jsonl.gz, line 21: expected {\"dialog\""):
        sft.read_pretraining(file)


def test_a_word_has_one_token_wherever_it_stands_in_an_utterance():
    dialogues = load_dialogues("builtin", "train")
    tokenizer = sft.train_tokenizer(dialogues, 4096)
    assert tokenizer("the <EOU> the the<EOU>the")["input_ids"].count(tokenizer("the")["input_ids"][0]) == 4


def test_the_result_is_a_float16_folder_that_transformers_loads(tmp_path):
    sft.main(sft.Args(out=tmp_path, **{**TOY, "epochs": 1}))
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert model.dtype.itemsize == 2
    parameters = sum(p.numel() for p in model.parameters())
    assert (tmp_path / "model.safetensors").stat().st_size < 2 * parameters + 10_000  # tied weights stand once
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token == "<EOU>"
