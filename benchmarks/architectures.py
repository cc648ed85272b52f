"""Which architectures of transformers are right, as a Markdown table. Run: python benchmarks/architectures.py [NAME]

For each causal language model of the installed transformers: a tiny model with random weights, in float32, and the
largest difference from single rows, which the plain model reads without padding, mask, positions and cache. Contexts
and replies are longer than the sliding windows.
"""

import dataclasses
import datetime
import os
import sys
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from dailydialog_gym.models.decoder import Decoder
from dailydialog_gym.models.decoding import Decoding, DecodingBatch, Reply
from dailydialog_gym.models.forward import forward_cached, forward_packed
from dailydialog_gym.models.masks import check_supported
from dailydialog_gym.models.packing import pack
from dailydialog_gym.models.precision import MixedPrecision
from dailydialog_gym.rewards.episodes import Episodes
from dailydialog_gym.rewards.kl import KLDivergence

VOCAB, WINDOW, LAYERS = 60, 16, 4
CONTEXTS, REPLIES, WIDTH, LONGEST = 5, 3, 40, 10  # contexts of 20 to 39 tokens, three replies of 1 to 10 tokens to each
END = 2  # the token that ends a reply
TOLERANCE = 2e-4  # relative to values above 1; a wrong mask gives 1e-2 and more

WIDTHS = ("hidden_size", "n_embd", "d_model", "embedding_size", "word_embed_proj_dim", "dim_model")
INNER = ("intermediate_size", "ffn_dim", "d_ff", "dff", "dim_ff", "d_inner", "n_inner", "ffn_hidden_size")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads")
HEAD_WIDTHS = ("head_dim", "dim_head", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "index_head_dim")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
SIZES = {  # by the names that configurations give them
    **dict.fromkeys(WIDTHS, 32),
    **dict.fromkeys((*INNER, "decoder_ffn_dim", "intermediate_size_mlp"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 16),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), LAYERS),
    **dict.fromkeys((*HEADS, *EXPERTS, "rotary_dim", "linear_num_value_heads"), 4),
    **dict.fromkeys((*HEAD_WIDTHS, "linear_key_head_dim", "linear_value_head_dim", "query_pre_attn_scalar"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_head_dim"), 16),
    **dict.fromkeys(("num_key_value_heads", "index_n_heads", "linear_num_key_heads", "max_window_layers"), 2),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 512),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCAB),
    **dict.fromkeys(("sliding_window", "attention_chunk_size"), WINDOW),
    "hidden_size_per_layer_input": 8,
    "use_sliding_window": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LATENT = {"num_key_value_heads": 4}  # latent attention has a key for each query
KINDS = ["sliding_attention", "full_attention"]
MIXED = {"layer_types": KINDS * 2}
HYBRID = {"layer_types": ["conv", "full_attention"] * 2}
SHARED_CACHE = {"num_hidden_layers": 6, "layer_types": KINDS * 3, "num_kv_shared_layers": 2}
INDEXED = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 16}
INDEXED |= {"indexer_compress_ratio": 1, "ple_embed_dim": 8, "ple_layer_ids": []}
SPECIAL = {  # what an architecture needs beside, or instead of, the sizes
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite"), LATENT),
    **dict.fromkeys(("glm_moe_dsa", "longcat_flash", "minicpm3", "youtu", "dots3_note_text"), LATENT),
    **dict.fromkeys(("qwen2", "qwen3", "smollm3", "dots1"), MIXED),
    **dict.fromkeys(("lfm2", "lfm2_moe"), HYBRID),
    "cohere_compass_text": MIXED | {"rope_parameters": {k: {"rope_type": "default", "rope_theta": 1e4} for k in KINDS}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "gemma3n_text": SHARED_CACHE | {"laurel_rank": 4, "activation_sparsity_pattern": [0.0] * 6},
    "gemma4_text": SHARED_CACHE,
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": WINDOW},
    "mllama": {"text_config": {"cross_attention_layers": [1]}},
    "modernbert-decoder": {"local_attention": 2 * WINDOW, "global_attn_every_n_layers": 2},
    "qwen4_exp": {"text_config": INDEXED},
    "qwen4_exp_text": INDEXED,
    "reformer": {"is_decoder": True, "hidden_size": 256},
}


def tiny_config(model_type: str) -> PreTrainedConfig:
    """An architecture's configuration with small sizes and small windows."""
    config_class = transformers.CONFIG_MAPPING[model_type]
    sizes = _sizes(config_class) | SPECIAL.get(model_type, {})
    text_class = getattr(config_class, "sub_configs", {}).get("text_config")
    if text_class is not None and dataclasses.is_dataclass(text_class):
        sizes["text_config"] = _sizes(text_class) | sizes.get("text_config", {})
    for name, alias in config_class.attribute_map.items():
        if alias in sizes:
            sizes.pop(name, None)
    return config_class(**sizes)


def _sizes(config_class: type[PreTrainedConfig]) -> dict[str, object]:
    names = {field.name for field in dataclasses.fields(config_class)} | config_class.attribute_map.keys()
    return {name: size for name, size in SIZES.items() if name in names}


def tiny_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A model with random weights, the same each time, far enough from 0 that its attention matters."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@torch.no_grad()
def differences(model: PreTrainedModel) -> dict[str, float]:
    """By part of the package, the largest difference from single rows."""
    rng = np.random.default_rng(0)
    rows = CONTEXTS * REPLIES
    ids, columns = rng.integers(3, VOCAB, (rows, WIDTH + LONGEST)), np.arange(WIDTH + LONGEST)
    ids[:, :WIDTH] = ids[::REPLIES, :WIDTH].repeat(REPLIES, axis=0)
    prompt_lengths = rng.integers(WIDTH // 2, WIDTH, CONTEXTS).repeat(REPLIES)
    reply_lengths = rng.integers(1, LONGEST + 1, rows)
    np.put_along_axis(ids, WIDTH + reply_lengths[:, None] - 1, END, axis=1)
    mask = (columns >= WIDTH - prompt_lengths[:, None]) & (columns < WIDTH + reply_lengths[:, None])
    ids, mask = ids * mask, mask.astype(np.int64)
    live, device = mask[:, WIDTH:].astype(bool), model.device
    tokens, reply_mask = torch.from_numpy(ids[:, WIDTH:]).to(device), torch.from_numpy(live).to(device)

    expected, expected_states = [], []
    for row, there, count in zip(ids, mask, reply_lengths, strict=True):
        row = torch.from_numpy(row[there == 1]).to(device)
        outputs = model(row[None], use_cache=False, output_hidden_states=True)
        expected.append(_log_probs(outputs.logits[0, -count - 1 : -1], row[-count:]))
        expected_states.append(outputs.hidden_states[-1][0, -count - 1 : -1])
    expected, expected_states = torch.cat(expected), torch.cat(expected_states)

    packed = pack(ids, mask, WIDTH, np.arange(rows) // REPLIES, device)
    outputs = forward_packed(model, packed, logits_to_keep=packed.tail, output_hidden_states=True)
    update = _log_probs(packed.predicting(outputs.logits), tokens[reply_mask])
    states = packed.predicting(outputs.hidden_states[-1])

    log_probs = np.zeros(live.shape)
    log_probs[live] = expected.cpu().numpy()
    nothing = [""] * rows
    episodes = Episodes(nothing, nothing, nothing, np.ones(rows, np.int64), ids, mask, LONGEST, log_probs)
    kl = KLDivergence(model, VOCAB, device)(episodes)

    def next_token(input_ids, **inputs):
        return (forward_cached(model, input_ids, **inputs).logits[:, -1],)

    ends = np.zeros((2, VOCAB), np.int64)
    ends[:, END] = 1
    precision = MixedPrecision(device, None, WIDTH + REPLIES * LONGEST)
    decoder = Decoder(next_token, ends, LONGEST, precision, device, network=model)
    rollout = torch.zeros(live.shape, device=device)
    outputs = decoder.prefill(ids[::REPLIES, :WIDTH], mask[::REPLIES, :WIDTH], copies=REPLIES)
    while outputs:
        written = tokens[decoder.rows, decoder.written]
        rollout[decoder.rows, decoder.written] = _log_probs(outputs[0], written)
        outputs = decoder.step(written)

    return {
        "update": _difference(update, expected),
        "critic": _difference(states, expected_states),
        "reference": _difference(torch.from_numpy(log_probs - kl), torch.from_numpy(log_probs)),
        "rollout": _difference(rollout[reply_mask], expected),
        "chat": _chat(model, [ids[i][mask[i] == 1][: prompt_lengths[i]].tolist() for i in range(0, rows, REPLIES)]),
    }


def _chat(model: PreTrainedModel, prompts: list[list[int]]) -> float:
    """The same for the probabilities of greedy replies, in a batch that grows while it decodes."""
    replies = [Reply(prompt, Decoding(max_new_tokens=LONGEST), lambda ids: False) for prompt in prompts]
    batch = DecodingBatch(model, VOCAB)
    for some in (replies[:2], replies[2:4], replies[4:]):
        batch.add(some)
        batch.step()
    while batch.replies:
        batch.step()
    worst = 0.0
    for reply in replies:
        if reply.error:
            raise reply.error
        row = torch.tensor(reply.prompt_ids + reply.ids, device=model.device)
        logits = model(row[None], use_cache=False).logits[0, -len(reply.ids) - 1 : -1]
        alone = _log_probs(logits, row[-len(reply.ids) :])
        worst = max(worst, _difference(torch.tensor(reply.probabilities).log(), alone.cpu()))
    return worst


def _log_probs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return logits[:, :VOCAB].log_softmax(-1).gather(1, tokens[:, None])[:, 0]


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))


def verdict(model_type: str) -> str:
    """`right`, `refused`, `wrong` or `not built`, and why."""
    try:
        try:
            config = tiny_config(model_type)
            with torch.device("meta"):  # without weights, since some are large all the same
                model = AutoModelForCausalLM.from_config(config)
        except Exception:
            config = transformers.CONFIG_MAPPING[model_type]()
            if config.is_encoder_decoder:
                return "refused: it is an encoder-decoder model"
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config)
    except Exception as error:
        return f"not built: {_line(error)}"
    if config.is_encoder_decoder:
        return "refused: it is an encoder-decoder model"
    try:
        check_supported(model)
    except ValueError as error:
        return f"refused: {str(error).partition(': ')[2]}"
    if sum(parameter.numel() for parameter in model.parameters()) > 2e7:
        return "not built: this script knows no small sizes for it"
    try:
        found = differences(tiny_model(config))
    except Exception as error:
        return f"wrong: {type(error).__name__}: {_line(error)}"
    worst = max(found, key=lambda part: found[part] if found[part] == found[part] else np.inf)
    return f"{'right' if found[worst] < TOLERANCE else 'wrong'}: {found[worst]:.0e}, {worst}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).split(". ")[0][:130]


def main(names: list[str]) -> None:
    for name in names:
        if name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise SystemExit(f"{name!r} is no architecture of a causal language model in transformers")
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    print(
        f"{datetime.date.today()}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"`python {' '.join(sys.argv)}`\n\n| architecture | class | verdict |\n| --- | --- | --- |"
    )
    verdicts = []
    for name in names or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        verdicts.append(verdict(name))
        print(f"| {name} | {MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name]} | {verdicts[-1]} |", flush=True)
    counts = {kind: sum(v.startswith(kind) for v in verdicts) for kind in ("right", "refused", "wrong", "not built")}
    print("\n" + ", ".join(f"{count} {kind}" for kind, count in counts.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
