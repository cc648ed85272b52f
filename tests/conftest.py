import os

# The workers share the cores, and toy models gain nothing from threads. Set before torch is imported; subprocesses
# inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

import huggingface_hub.constants
import pytest
import torch
from chromium import CHROMIUM
from forks import Server, without_curves
from hypothesis import settings
from paths import ROOT
from shapes import SHAPES
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from dailydialog_gym.embedded import ASSETS
from dailydialog_gym.env.dialogues import ACTS, load_dialogues

settings.register_profile("tests", deadline=None)  # the workers share the cores, so any example may take long
settings.load_profile("tests")

# The files that take longest. What starts last should be short, or the other workers wait for it in the end.
LONGEST = (
    "distributed/test_deepspeed.py",
    "chat/test_page.py",
    "test_first_steps.py",
    "test_ppo_dialog.py",
    "test_docs.py",
    "chat/test_guard.py",
    "recipes/test_training.py",
    "test_mistakes.py",
    "test_benchmarks.py",
    "test_docs_site.py",
    "runs/test_checkpoints.py",
    "test_ppo_equivalence.py",
    "test_own_data.py",
)


def pytest_collection_modifyitems(items):
    """Put the longest files first, in the same order in every worker. Within a file nothing changes."""
    ranks = {ROOT / "tests" / name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(LONGEST)))


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
def tiny_reward_model(tiny_model, tmp_path_factory) -> str:
    """A random classifier with one output, in a folder named judge."""
    config, shape = SHAPES["gpt2"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    folder = tmp_path_factory.mktemp("reward") / "judge"
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(
        config(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, num_labels=1, **shape)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_model(tiny_models) -> str:
    return tiny_models["gpt2"]


CHATML = (
    "{% for m in messages %}<|im_start|> {{ m.role }} {{ m.content }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


@pytest.fixture(scope="session")
def tiny_instruct_model(tmp_path_factory) -> str:
    """A random Llama whose tokenizer has a chat template, and whole words as tokens: it can't spell ``<EOU>``."""
    texts = {word for d in load_dialogues("builtin", "train") for text in d.utterances for word in text.split()}
    words = ["<|im_start|>", "<|im_end|>", "<unk>", "<|endoftext|>", "user", "assistant", *sorted(texts)]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"additional_special_tokens": words[:2], "unk_token": "<unk>", "eos_token": "<|endoftext|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    tokenizer.chat_template = CHATML
    config, shape = SHAPES["llama"]
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("instruct")
    AutoModelForCausalLM.from_config(config(vocab_size=len(words), eos_token_id=3, **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def server(tiny_model):
    """Runs ppo_dialog.py again and again without importing it again."""
    server = Server(ROOT / "ppo_dialog.py", tiny_model)
    yield server
    server.close()


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window, for tests with the mark `browser_test`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def offline(monkeypatch) -> None:
    """The Hugging Face hub is switched off in this process, so what a test sees does not depend on the network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def no_curves(monkeypatch) -> None:
    """Runs in this process save an empty figure."""
    without_curves(monkeypatch.setattr)


@pytest.fixture
def fake_graphs(monkeypatch) -> None:
    """CUDA graphs on a CPU."""
    import fake_graphs

    fake_graphs.install(monkeypatch.setattr)
