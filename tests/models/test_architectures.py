"""Packed rows, rollout, chat and the reference give what a model gives for single rows, or the model is refused."""

import random
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from shapes import ARCHITECTURES
from transformers import AutoModelForCausalLM, BartConfig, GPT2LMHeadModel, T5Config

from benchmarks.architectures import LONGEST, TOLERANCE, VOCAB, WIDTH, WINDOW, differences, tiny_config, tiny_model
from dailydialog_gym.models.cache import FixedCache
from dailydialog_gym.models.decoder import Decoder
from dailydialog_gym.models.forward import forward_cached, forward_packed
from dailydialog_gym.models.loading import load_model
from dailydialog_gym.models.masks import attention_masks, check_supported
from dailydialog_gym.models.self_check import self_check

REFUSED = {
    "bloom": "takes no position_ids",
    "mpt": "takes no position_ids",
    "gpt_neo": "local attention counts columns",
    "openai-gpt": "takes no past_key_values",
    "bert": "encoder of BERT's kind",
    "mamba": "linear_attention",
    "lfm2": r"\(conv\)",
    "qwen3_next": "linear_attention",
    "falcon_h1": r"\(hybrid\)",
    "recurrent_gemma": "another state than keys and values",
    "rwkv": "another state than keys and values",
    "deepseek_v32": "indexed_attention",
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_part_equals_single_rows(kind):
    for part, difference in differences(tiny_model(tiny_config(kind))).items():
        assert difference < TOLERANCE, part


@pytest.mark.parametrize("kind", ["gpt2", "mistral", "gemma2", "gpt_oss", "llama4_text"])
@torch.no_grad()
def test_steps_with_a_fixed_cache_are_those_with_one_that_grows(kind):
    """`--compile` decodes with a fixed cache; its steps see columns that hold nothing yet."""
    model, columns = tiny_model(tiny_config(kind)), WIDTH + LONGEST
    ids = np.random.default_rng(0).integers(3, VOCAB, (4, columns))
    mask = (np.arange(WIDTH) >= np.array([5, 9, 5, 20])[:, None]).astype(np.int64)
    results = []
    for cache in (None, FixedCache(columns)):
        decoder = Decoder(
            lambda ids, **inputs: (forward_cached(model, ids, **inputs).logits[:, -1],),
            np.zeros((2, VOCAB), np.int64),  # no reply ends
            LONGEST,
            nullcontext(),
            model.device,
            fixed_cache=cache,
        )
        logits = [*decoder.prefill(ids[:, :WIDTH] * mask, mask, copies=1)]
        for t in range(WIDTH, columns - 1):
            logits += decoder.step(torch.from_numpy(ids[:, t]))
        assert decoder.step(torch.from_numpy(ids[:, -1])) is None
        results.append(torch.stack(logits))
    torch.testing.assert_close(*results, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_be_wrong_is_refused_at_load(kind, tmp_path):
    model = tiny_model(tiny_config(kind))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"^{type(model).__name__} is not supported: .*{REFUSED[kind]}"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_separate_critic_gets_hidden_states_or_is_refused(kind, tmp_path):
    model = tiny_model(tiny_config(kind))
    model.save_pretrained(tmp_path)
    if kind == "llama4_text":
        with pytest.raises(ValueError, match=r"cannot separate Llama4ForCausalLM from its head.*--critic shared"):
            load_model(str(tmp_path), with_head=False)
    else:
        hidden = load_model(str(tmp_path), with_head=False)(torch.ones(1, 2, dtype=torch.long))[0]
        assert hidden.shape == (1, 2, model.get_output_embeddings().in_features)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [("falcon", {"alibi": True}, "ALiBi"), ("gemma2", {"use_bidirectional_attention": True}, "not causal")],
)
def test_configurations_that_would_be_wrong_are_refused(kind, changes, message):
    config = tiny_config(kind)
    for name, value in changes.items():
        check_supported(tiny_model(config))
        setattr(config, name, value)
    with pytest.raises(ValueError, match=message):
        check_supported(tiny_model(config))


@pytest.mark.parametrize("config_class", [T5Config, BartConfig])
def test_an_encoder_decoder_model_is_called_one(config_class, tmp_path):
    config_class().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"is an encoder-decoder model \({config_class.model_type}\)"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("whole", [False, True])
def test_an_adapter_is_called_one(whole, tmp_path):
    if whole:
        tiny_model(tiny_config("gpt2")).save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "base_model_name_or_path": "gpt2"}', encoding="utf-8"
    )
    with pytest.raises(ValueError, match=r"is an adapter \(adapter_config.json\).*merge"):
        load_model(str(tmp_path))


def test_a_class_of_ones_own_may_pass_on_what_it_is_given():
    class Mine(type(tiny_model(tiny_config("gpt2")))):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    check_supported(Mine(tiny_config("gpt2")))


def test_masks_cost_nothing_where_there_is_no_window_or_it_is_not_reached():
    mask, positions = torch.ones(1, 1, WINDOW, WINDOW, dtype=bool).tril(), torch.arange(WINDOW)[None]
    for kind in ("gpt2", "mistral"):
        assert attention_masks(tiny_model(tiny_config(kind)), mask, positions, positions) is mask


# The check at a run's start


class CheckedAgent:
    """A policy with a shared critic, as `self_check` sees the script's agent."""

    shared = True

    def __init__(self, policy):
        self.policy = policy
        self.critic = SimpleNamespace(value_head=torch.nn.Linear(policy.get_output_embeddings().in_features, 1))
        torch.nn.init.zeros_(self.critic.value_head.weight)

    def __call__(self, packed):
        outputs = forward_packed(self.policy, packed, logits_to_keep=packed.tail, output_hidden_states=True)
        values = self.critic.value_head(packed.predicting(outputs.hidden_states[-1]))[:, 0]
        return packed.predicting(outputs.logits)[:, :VOCAB], values

    def next_token(self, input_ids, **inputs):
        outputs = forward_cached(self.policy, input_ids, **inputs, output_hidden_states=True)
        return outputs.logits[:, -1, :VOCAB], self.critic.value_head(outputs.hidden_states[-1][:, -1])[:, 0]


def check(agent, cuda_graphs=False):
    self_check(agent, VOCAB, WIDTH, LONGEST, cuda_graphs)


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "gpt_oss"])
def test_the_check_passes_and_takes_no_random_numbers(kind, fake_graphs):
    model = tiny_model(tiny_config(kind))
    agent = CheckedAgent(model)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    check(agent, cuda_graphs=True)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    assert torch.get_float32_matmul_precision() == "highest"
    assert not agent.critic.value_head.weight.any()


class WithoutMasks(CheckedAgent):
    """Its model is given the boolean mask of `pack`, as if no model took another one."""

    def __call__(self, packed):
        inputs = {"attention_mask": packed.attention_mask, "position_ids": packed.position_ids}
        outputs = self.policy(packed.input_ids, **inputs, use_cache=False, output_hidden_states=True)
        values = self.critic.value_head(packed.predicting(outputs.hidden_states[-1]))[:, 0]
        return packed.predicting(outputs.logits), values


class WrongValues(CheckedAgent):
    def __call__(self, packed):
        logits, values = super().__call__(packed)
        return logits, values + packed.input_ids.shape[1]


class WrongSteps(CheckedAgent):
    def next_token(self, input_ids, position_ids, **inputs):
        return super().next_token(input_ids, position_ids=position_ids * 0, **inputs)


class WrongStepValues(CheckedAgent):
    def next_token(self, input_ids, **inputs):
        logits, values = super().next_token(input_ids, **inputs)
        return logits, values + 1


@pytest.mark.parametrize(
    ("kind", "agent_class", "what"),
    [
        ("gptj", WithoutMasks, "log-probabilities in packed rows"),
        ("mistral", WithoutMasks, "log-probabilities in packed rows"),
        ("gpt2", WrongValues, "values in packed rows"),
        ("gpt2", WrongSteps, "log-probabilities of decoding with a cache"),
        ("gpt2", WrongStepValues, "values of decoding with a cache"),
    ],
)
def test_the_check_finds_what_is_wrong(kind, agent_class, what):
    model = tiny_model(tiny_config(kind))
    with pytest.raises(ValueError, match=f"^{type(model).__name__}: {what} differ"):
        check(agent_class(model))


class CountsOnTheCpu(CheckedAgent):
    """Its positions are right, but a graph repeats the number from which it makes them."""

    def next_token(self, input_ids, position_ids, **inputs):
        if input_ids.shape[1] > 1:
            self.position = WIDTH
        else:
            position_ids = position_ids - position_ids[:1] + self.position  # the first row has the longest prompt
            self.position += 1
        return super().next_token(input_ids, position_ids=position_ids, **inputs)


def test_the_check_finds_steps_that_a_graph_would_repeat_wrongly(fake_graphs):
    agent = CountsOnTheCpu(tiny_model(tiny_config("gpt2")))
    check(agent)
    message = "GPT2LMHeadModel: log-probabilities of CUDA graphs differ.*Leave out --cuda-graphs"
    with pytest.raises(ValueError, match=message):
        check(agent, cuda_graphs=True)


class Forbidding(GPT2LMHeadModel):
    """A policy that never writes half of the tokens."""

    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.logits = outputs.logits.masked_fill(torch.arange(VOCAB) % 2 == 0, -torch.inf)
        return outputs


def test_the_check_allows_forbidden_tokens_and_not_nan():
    model = Forbidding(tiny_config("gpt2")).eval()
    check(CheckedAgent(model))
    model.transformer.ln_f.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="log-probabilities that are not finite"):
        check(CheckedAgent(model))


def test_a_loaded_model_is_the_same_in_the_check(tmp_path):
    AutoModelForCausalLM.from_config(tiny_config("gpt2")).save_pretrained(tmp_path)
    check(CheckedAgent(load_model(str(tmp_path))))
