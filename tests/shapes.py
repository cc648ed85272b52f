"""Tiny configurations of architectures that differ in position ids, padding and caches."""

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, OPTConfig, PreTrainedModel

SHAPES = {
    "gpt2": (GPT2Config, {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 160}),
    "opt": (
        OPTConfig,
        {
            "hidden_size": 16,
            "word_embed_proj_dim": 16,
            "ffn_dim": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 160,
        },
    ),
    "llama": (
        LlamaConfig,
        {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 160,
        },
    ),
}


def tiny_model(kind: str, **changes) -> PreTrainedModel:
    """A model of one of the `SHAPES` with 50 tokens of vocabulary. Its random weights are the same in every call."""
    config, sizes = SHAPES[kind]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config(vocab_size=50, **sizes | changes)).eval()


ARCHITECTURES = [  # for `benchmarks.architectures.tiny_config`
    "gpt2",
    "gptj",  # eager attention
    "opt",
    "llama",
    "mistral",  # a sliding window in all layers
    "mixtral",
    "phi3",
    "qwen2",  # in some layers
    "gemma2",  # eager attention and sliding windows
    "gemma3_text",
    "gpt_oss",
    "modernbert-decoder",
    "llama4_text",  # chunks
    "deepseek_v3",  # keys and values of different widths
    "hrm_text",  # runs its layers several times
]
