import os

# The workers share the cores, and toy models gain nothing from threads. Set before torch is imported; subprocesses
# inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from shapes import SHAPES
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from dailydialog_gym.embedded import ASSETS
from dailydialog_gym.env.dialogues import ACTS


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> dict[str, str]:
    """By architecture, the folder of a random two-layer model with the builtin tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "policy")
    folders = {}
    for name, (config, shape) in SHAPES.items():
        torch.manual_seed(0)
        ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        folder = tmp_path_factory.mktemp(name)
        AutoModelForCausalLM.from_config(config(vocab_size=len(tokenizer), **shape, **ends)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders[name] = str(folder)
    return folders


@pytest.fixture(scope="session")
def tiny_intent_model(tiny_model, tmp_path_factory) -> str:
    """A random classifier of the four acts."""
    config, shape = SHAPES["gpt2"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    acts = {"id2label": dict(enumerate(ACTS.values())), "label2id": {act: i for i, act in enumerate(ACTS.values())}}
    folder = tmp_path_factory.mktemp("intent")
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(
        config(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **shape, **acts)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_model(tiny_models) -> str:
    return tiny_models["gpt2"]
