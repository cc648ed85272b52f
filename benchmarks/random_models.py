"""Models of random weights in well-known shapes, with the embedded tokenizer: for speed, weights don't matter."""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, OPTConfig

from dailydialog_gym.models.loading import resolve

OPT = {"hidden_size": 2048, "word_embed_proj_dim": 2048, "ffn_dim": 8192, "num_hidden_layers": 24}
MODELS = {
    "6M": GPT2Config(n_embd=256, n_layer=6, n_head=4, vocab_size=4096),
    "27M": GPT2Config(n_embd=512, n_layer=8, n_head=8, vocab_size=4096),
    "gpt2-small": GPT2Config(),
    "gpt2-medium": GPT2Config(n_embd=1024, n_layer=24, n_head=16),
    "opt-1.3b": OPTConfig(num_attention_heads=32, **OPT),
}


def random_model(name: str, folder: Path) -> Path:
    """Save one of `MODELS` in float32, and the embedded tokenizer stretched to its vocabulary; returns the folder."""
    tokenizer, config = AutoTokenizer.from_pretrained(resolve("builtin")), MODELS[name]
    config.update(
        {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    state["model"]["vocab"] |= {f"unused{i}": i for i in range(len(tokenizer), config.vocab_size)}
    (folder / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    return folder
