"""Tiny configurations of architectures that differ in position ids, padding and caches."""

from transformers import GPT2Config, LlamaConfig, OPTConfig

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
