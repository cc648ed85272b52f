import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from random_episodes import make_episodes
from shapes import SHAPES
from transformers import AutoModelForCausalLM

from dailydialog_gym.rewards import kl
from dailydialog_gym.rewards.kl import KLDivergence

VOCAB = 50
# The weights have a large variance, so that a wrong position or mask changes the log-probabilities by far more than the
# tolerance.
WIDE = {
    "gpt2": {"initializer_range": 0.4},
    "opt": {"init_std": 0.4},
    "llama": {"initializer_range": 0.4, "num_attention_heads": 4, "num_key_value_heads": 2},
}
every_model = pytest.mark.parametrize("name", WIDE)


def make_model(name, seed=0):
    config, sizes = SHAPES[name]
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config(vocab_size=VOCAB, **sizes | WIDE[name])).eval()


@torch.no_grad()
def slow_log_probs(model, episodes, vocab_size=VOCAB):
    """The log-probabilities of a forward pass of each row alone, without padding and masks, in float64."""
    model = copy.deepcopy(model).double()
    result = np.zeros((len(episodes), episodes.max_new_tokens))
    for row, mask in enumerate(episodes.attention_mask.astype(bool)):
        ids = torch.from_numpy(episodes.input_ids[row, mask])
        reply = int(episodes.reply_mask[row].sum())
        log_probs = model(ids[None]).logits[0, :, :vocab_size].log_softmax(-1)
        result[row, :reply] = log_probs[-reply - 1 : -1].gather(1, ids[-reply:, None])[:, 0].numpy()
    return result


@pytest.fixture
def ragged():
    """Replies and prompts of different lengths, with arbitrary log-probabilities after the end of the replies."""
    episodes = make_episodes([5, 1, 3, 2], 6, prompt_lengths=[1, 7, 4, 6], width=9)
    return replace(episodes, log_probs=-np.random.default_rng(1).exponential(2, (4, 6)))


@every_model
def test_kl_equals_a_slow_forward_of_each_row_alone(name, ragged):
    model = make_model(name)
    expected = np.where(ragged.reply_mask, ragged.log_probs - slow_log_probs(model, ragged), 0)
    scores = KLDivergence(model, VOCAB)(ragged)
    assert scores.shape == (4, 6)
    np.testing.assert_allclose(scores, expected, atol=1e-4, rtol=0)


def test_a_batch_whose_logits_are_too_many_is_read_in_several_forwards(ragged, monkeypatch):
    model, forwards = make_model("gpt2"), []
    expected = KLDivergence(model, VOCAB)(ragged)
    monkeypatch.setattr(kl, "MAX_LOGITS", 6 * VOCAB)
    model.register_forward_hook(lambda _module, _inputs, outputs: forwards.append(outputs.logits.shape[1]))
    np.testing.assert_allclose(KLDivergence(model, VOCAB)(ragged), expected, atol=1e-5, rtol=0)
    assert len(forwards) > 1 and sum(forwards) == ragged.reply_mask.sum()  # logits of the reply tokens and no others


@every_model
def test_kl_is_zero_while_the_policy_is_the_reference(name, ragged):
    model = make_model(name)
    drawn = replace(ragged, log_probs=slow_log_probs(model, ragged))
    np.testing.assert_allclose(KLDivergence(model, VOCAB)(drawn), 0, atol=1e-4)
    assert np.abs(KLDivergence(make_model(name, seed=1), VOCAB)(drawn)).max() > 0.1


@every_model
def test_columns_that_are_padding_in_every_row_change_nothing(name, ragged):
    wider = replace(
        ragged,
        input_ids=np.pad(ragged.input_ids, ((0, 0), (5, 4)), constant_values=1),
        attention_mask=np.pad(ragged.attention_mask, ((0, 0), (5, 4))),
        max_new_tokens=10,
        log_probs=np.pad(ragged.log_probs, ((0, 0), (0, 4))),
    )
    score = KLDivergence(make_model(name), VOCAB)
    np.testing.assert_allclose(score(wider), np.pad(score(ragged), ((0, 0), (0, 4))), atol=1e-5)


def test_reference_reads_no_padding(ragged):
    seen = []
    scorer = KLDivergence(make_model("gpt2"), VOCAB)
    scorer.model.register_forward_pre_hook(lambda *call: seen.append(call[2]), with_kwargs=True)
    scorer(ragged)
    assert len(seen) == 1
    assert ragged.attention_mask.sum() == 29
    assert seen[0]["attention_mask"].shape == (2, 1, 15, 15)


@every_model
def test_reference_reads_a_context_once_for_all_its_replies(name, ragged):
    shared = replace(ragged, input_ids=ragged.input_ids.copy(), attention_mask=ragged.attention_mask.copy())
    for array in (shared.input_ids, shared.attention_mask):
        array[[0, 3], :9] = array[1, :9]  # rows 0, 1 and 3 have the same context
    seen = []
    scorer = KLDivergence(make_model(name), VOCAB)
    scorer.model.register_forward_pre_hook(lambda _, args: seen.append(args[0].numel()))
    expected = np.where(shared.reply_mask, shared.log_probs - slow_log_probs(make_model(name), shared), 0)
    np.testing.assert_allclose(scorer(shared), expected, atol=1e-4, rtol=0)
    used = shared.attention_mask[1:3, :9].sum() + shared.reply_mask.sum()
    assert used <= seen[0] < used + shared.attention_mask[1, :9].sum()


@every_model
def test_kl_of_a_full_width_batch(name):
    episodes = make_episodes([6, 6], 6)
    episodes = replace(episodes, log_probs=np.full((2, 6), -1.5))
    scores = KLDivergence(make_model(name), VOCAB)(episodes)
    np.testing.assert_allclose(scores, -1.5 - slow_log_probs(make_model(name), episodes), atol=1e-4, rtol=0)


def test_kl_of_a_batch_is_that_of_its_rows(ragged):
    score = KLDivergence(make_model("gpt2"), VOCAB)
    rows = [
        replace(
            ragged,
            **{key: getattr(ragged, key)[i : i + 1] for key in ("prompts", "input_ids", "attention_mask", "log_probs")},
        )
        for i in range(4)
    ]
    np.testing.assert_allclose(score(ragged), np.concatenate([score(row) for row in rows]), atol=1e-5)


def test_larger_reference_vocabulary_is_cut(ragged):
    model = make_model("gpt2")
    ragged = replace(ragged, input_ids=ragged.input_ids % 40)
    expected = ragged.log_probs - slow_log_probs(model, ragged, vocab_size=40)
    np.testing.assert_allclose(
        KLDivergence(model, 40)(ragged), np.where(ragged.reply_mask, expected, 0), atol=1e-4, rtol=0
    )


def test_smaller_reference_vocabulary_is_an_error():
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel, has 50 tokens, .* policy has 51: choose .* same tokenizer"):
        KLDivergence(make_model("gpt2"), 51)
    with pytest.raises(ValueError, match="GPT2Model has no language-model head"):
        KLDivergence(make_model("gpt2").transformer, 50)


def test_kl_needs_log_probs():
    with pytest.raises(ValueError, match="KLPenalty"):
        KLDivergence(make_model("gpt2"), VOCAB)(make_episodes([2]))


def test_reference_loads_from_a_folder(tmp_path, ragged):
    model = make_model("gpt2")
    model.save_pretrained(tmp_path)
    loaded = KLDivergence(str(tmp_path), VOCAB)(ragged)  # with GPT-2's activation in one operation
    np.testing.assert_allclose(loaded, KLDivergence(model, VOCAB)(ragged), rtol=0, atol=1e-5)


@every_model
def test_amp_dtype_gives_what_autocast_gives_with_half_of_the_memory_for_linear_layers(ragged, name):
    full = KLDivergence(make_model(name), VOCAB)
    half = KLDivergence(make_model(name), VOCAB, amp_dtype=torch.bfloat16)
    stored = {parameter.dtype for parameter in half.model.parameters()}
    assert stored == {torch.float32, torch.bfloat16}  # norms and embeddings, linear layers
    assert 0 < np.abs(full(ragged) - half(ragged)).max() < 0.5
    full.amp_dtype = torch.bfloat16  # autocast casts its float32 weights in every forward
    np.testing.assert_array_equal(half(ragged), full(ragged))


def test_reference_is_frozen_and_has_no_dropout(ragged):
    scorer = KLDivergence(make_model("gpt2").train(), VOCAB)
    assert not any(parameter.requires_grad for parameter in scorer.model.parameters())
    np.testing.assert_array_equal(scorer(ragged), scorer(ragged))
