"""The recipe of the embedded policy, on the builtin dialogues and at toy size."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from dailydialog_gym.data import load_dialogues
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
def encoded(tmp_path_factory):
    dialogues = load_dialogues("builtin", "validation")
    return sft.encode(sft.train_tokenizer(dialogues, 400), dialogues)


def test_every_token_stands_in_one_window_of_an_epoch(encoded):
    tokens = sorted(token for dialogue in encoded for utterance in dialogue for token in utterance)
    for rng in (None, random.Random(1)):
        pieces = sft.windows(encoded, 64, rng)
        assert max(map(len, pieces)) <= 64
        left = len(tokens) - sum(map(len, pieces))
        assert 0 <= left <= len(encoded)  # a window of one token predicts nothing and is left out
    data = sft.batches(pieces, 1024)
    assert sum((batch >= 0).sum().item() for batch in data) == sum(map(len, pieces))
    assert all(batch.numel() <= 1024 for batch in data)


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
