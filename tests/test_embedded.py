"""Embedded files: each is what the manifest says, and a damaged one is named."""

import pytest
from shapes import SHAPES
from transformers import AutoModelForCausalLM, AutoTokenizer

from dailydialog_gym import embedded
from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.embedded import ASSETS, asset, damaged
from dailydialog_gym.env import EOU, load_samples
from dailydialog_gym.env.dialogues import load_dialogues
from dailydialog_gym.env.tokenizer import load_tokenizer
from dailydialog_gym.evaluate import evenly_spread
from dailydialog_gym.models.loading import load_model
from dailydialog_gym.recipes import smollm2
from dailydialog_gym.recipes.reward import read_pairs
from dailydialog_gym.rewards import IntentMatch, synonyms


def tiny_llama():
    """A model with the layers that the adapter changes, and a tokenizer."""
    config, shape = SHAPES["llama"]
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "policy")
    return AutoModelForCausalLM.from_config(config(vocab_size=len(tokenizer), **shape)), tokenizer


FILES = sorted(str(path.relative_to(ASSETS)) for path in ASSETS.rglob("*") if path.is_file())
# Each without its cache.
LOADERS = {
    "policy/tokenizer.json": lambda: load_tokenizer.__wrapped__("builtin"),
    "policy/tokenizer_config.json": lambda: load_tokenizer.__wrapped__("builtin"),
    "policy/config.json": lambda: load_model("builtin"),
    "policy/model.safetensors": lambda: load_model("builtin"),
    **dict.fromkeys(
        [f"intent/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")],
        lambda: IntentMatch("builtin"),
    ),
    **dict.fromkeys(
        [f"{smollm2.ADAPTER}/{name}" for name in ("adapter_config.json", "adapter_model.safetensors")],
        lambda: smollm2.fine_tuned(*tiny_llama()),
    ),
    "dialogues.jsonl": lambda: load_dialogues.__wrapped__("builtin", "train"),
    "pairs.jsonl.gz": lambda: read_pairs("builtin"),
    "synonyms.txt.gz": lambda: synonyms._table.__wrapped__(),
}


def test_the_manifest_lists_every_file_with_its_checksum():
    listed = [line.split("  ")[1] for line in (ASSETS / "MANIFEST").read_text(encoding="utf-8").splitlines()]
    assert listed == [file for file in FILES if file not in ("MANIFEST", "README.md")]
    assert damaged() == []


def test_embedded_files_take_less_than_30_megabytes():
    assert sum((ASSETS / file).stat().st_size for file in FILES) < 30e6
    assert sum((ASSETS / file).stat().st_size for file in FILES if file.endswith(".safetensors")) < 29e6


@pytest.mark.parametrize("harm", ["missing", "cut"])
@pytest.mark.parametrize("file", LOADERS)
def test_a_missing_or_damaged_file_is_named_with_its_cure(file, harm, tmp_path, monkeypatch):
    for other in FILES:
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).symlink_to(ASSETS / other)
    (tmp_path / file).unlink()
    if harm == "cut":
        whole = (ASSETS / file).read_bytes()
        (tmp_path / file).write_bytes(whole[: len(whole) // 2])
    monkeypatch.setattr(embedded, "ASSETS", tmp_path)
    name = file.split("/")[0]
    with pytest.raises(ValueError) as error:
        LOADERS[file]()
    assert str(error.value) == (
        f"missing or damaged in the installed package: {tmp_path / file}. Restore with "
        f"'git checkout -- dailydialog_gym/assets/{name}', or reinstall the package"
    )


def test_an_error_with_whole_files_stays_itself():
    with pytest.raises(KeyError, match="elsewhere"), asset("dialogues.jsonl"):
        raise KeyError("elsewhere")


def test_the_card_shows_the_replies_that_its_code_draws():
    samples = load_samples("builtin", "test")
    prompts = [samples.prompts[i] for i in evenly_spread(samples, 20)]
    replies = DialogueAgent.load("builtin").reply(prompts, sample=True, top_k=20, seed=1)
    rows = [f"| {prompt.split(EOU)[-2].strip()} | {reply} |" for prompt, reply in zip(prompts, replies, strict=True)]
    assert "\n".join(rows) in (ASSETS / "README.md").read_text(encoding="utf-8")
