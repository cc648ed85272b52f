"""The recipe of the embedded policy, on the builtin dialogues and at toy size."""

import gzip
import json
import random
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
    assert 0 < left.total() < len(encoded)  # the first token after a split is not predicted
    assert max(map(len, whole + split)) == 65
    data = sft.batches(whole, 1024)
    assert sum((batch >= 0).sum().item() for batch in data) == sum(map(len, whole))
    assert all(batch.numel() <= 1024 for batch in data)


def test_a_deepened_model_begins_as_the_one_it_came_from(tmp_path):
    sft.main(sft.Args(out=tmp_path, **{**TOY, "epochs": 1}))
    shallow = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    config = GPT2Config.from_pretrained(tmp_path, n_layer=3)
    deep = GPT2LMHeadModel(config).eval()
    sft.copy_weights(tmp_path, deep)
    ids = torch.arange(50)[None]
    torch.testing.assert_close(deep(ids).logits, shallow(ids).logits)
    for shape in {"n_layer": 0}, {"n_embd": 128}, {"n_positions": 32}:
        other = GPT2LMHeadModel(GPT2Config.from_pretrained(tmp_path, **shape))
        with pytest.raises(ValueError, match=f"{tmp_path} needs --width 64, --context 64 and at least --layers 1"):
            sft.copy_weights(tmp_path, other)


def test_pretraining_adds_its_epochs_which_do_not_count_for_patience(tmp_path):
    file = tmp_path / "dialogues.jsonl.gz"
    with gzip.open(file, "wt") as lines:
        lines.write('{"dialog": ["Hello!", "Don\'t go."]}\n' * 20)
    flags = {**TOY, "pretraining": file, "pretraining_epochs": 2, "epochs": 1, "learning_rate": 0.0}
    sft.main(sft.Args(out=tmp_path / "out", patience=1, **flags))
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[0]["bits_per_character"] == rows[1]["bits_per_character"]  # no better than the epoch before


def test_a_word_has_the_same_token_in_every_position_of_an_utterance():
    dialogues = load_dialogues("builtin", "train")
    tokenizer = sft.train_tokenizer(dialogues, 4096)
    assert tokenizer("the <EOU> the the<EOU>the")["input_ids"].count(tokenizer("the")["input_ids"][0]) == 4


def test_the_result_is_a_float16_folder_that_transformers_loads(tmp_path):
    sft.main(sft.Args(out=tmp_path, **{**TOY, "epochs": 1}))
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert model.dtype.itemsize == 2
    parameters = sum(p.numel() for p in model.parameters())
    assert (tmp_path / "model.safetensors").stat().st_size < 2 * parameters + 10_000  # tied weights are saved once
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token == "<EOU>"
