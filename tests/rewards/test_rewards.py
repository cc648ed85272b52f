import copy
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.stem.porter import PorterStemmer
from nltk.tokenize import word_tokenize
from nltk.translate.meteor_score import single_meteor_score
from nltk_synonyms import Synonyms
from paths import SHARED, needs_dailydialog
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from dailydialog_gym.env.dialogues import ACTS, load_dialogues
from dailydialog_gym.rewards import Episodes, Meteor, pay
from dailydialog_gym.rewards.coefficients import AdaptiveCoefficient, FixedCoefficient, ZieglerCoefficient
from dailydialog_gym.rewards.intent import IntentMatch
from dailydialog_gym.rewards.kl import KLDivergence
from dailydialog_gym.rewards.length import words_beyond_people
from dailydialog_gym.rewards.meteor import meteor, words
from dailydialog_gym.rewards.own import load_scorer
from dailydialog_gym.rewards.surprise import token_surprise


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """For models this small, threads cost more than they give."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_episodes(reply_lengths, max_new_tokens=6, prompt_lengths=None, width=8, vocab_size=50, seed=0, **texts):
    """Episodes of random tokens, the prompt left-padded into `width` columns."""
    rng, n = np.random.default_rng(seed), len(reply_lengths)
    prompt_lengths = [width] * n if prompt_lengths is None else prompt_lengths
    columns = np.arange(width + max_new_tokens)
    starts, ends = width - np.array(prompt_lengths), width + np.array(reply_lengths)
    mask = ((columns >= starts[:, None]) & (columns < ends[:, None])).astype(np.int64)
    given = {"prompts": ["How are you ? <EOU>"] * n, "responses": [f"reply {i}" for i in range(n)]}
    given |= {"references": ["Fine ."] * n, "intents": np.ones(n, np.int64)} | texts
    return Episodes(
        **given,
        input_ids=np.where(mask, rng.integers(2, vocab_size, mask.shape), 1),
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
    )


# pay


def test_episode_score_is_paid_on_the_last_token():
    rewards, extra = pay(lambda _: np.array([3.0, -1.0]), 0.5, "x", make_episodes([2, 4], 4), np.zeros(2), {})
    assert rewards.tolist() == [1.5, -0.5]
    assert extra["reward/x"].tolist() == [3.0, -1.0]
    assert extra["token_rewards"].tolist() == [[0, 1.5, 0, 0], [0, 0, 0, -0.5]]


def test_token_scores_are_paid_as_their_sum():
    rewards, extra = pay(lambda _: np.array([[1.0, 2, 4], [8, 16, 32]]), 2, "x", make_episodes([3, 3], 3), [0, 0], {})
    assert rewards.tolist() == [14, 112]
    assert extra["reward/x"].tolist() == [7, 56]
    assert extra["token_rewards"].tolist() == [[2, 4, 8], [16, 32, 64]]


@pytest.mark.parametrize("padding", [100.0, np.nan, -np.inf])
def test_token_scores_after_the_end_of_the_reply_do_not_count(padding):
    scores = np.array([[1.0, padding, padding], [1, 2, padding]])
    rewards, extra = pay(lambda _: scores, 1, "x", make_episodes([1, 2], 3), np.zeros(2), {})
    assert rewards.tolist() == extra["reward/x"].tolist() == [1, 3]
    assert extra["token_rewards"].tolist() == [[1, 0, 0], [1, 2, 0]]


def test_reward_from_elsewhere_lands_on_the_last_token():
    episodes = make_episodes([1, 3], 3)
    rewards, extra = pay(lambda _: np.ones((2, 3)), 1, "x", episodes, np.array([5.0, -5.0]), {})
    assert rewards.tolist() == [6, -2]
    assert extra["token_rewards"].tolist() == [[6, 0, 0], [1, 1, -4]]
    rewards, extra = pay(lambda _: np.zeros(2), 1, "y", episodes, rewards * 2, extra)
    assert extra["token_rewards"].tolist() == [[12, 0, 0], [1, 1, -6]]


def test_pay_leaves_what_it_is_given_alone():
    before = {"token_rewards": np.array([[1.0, 2.0]])}
    rewards = np.array([3.0])
    pay(lambda _: np.array([1.0]), 1, "x", make_episodes([2], 2), rewards, before)
    assert rewards.tolist() == [3] and before["token_rewards"].tolist() == [[1, 2]]


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_token_rewards_sum_exactly_to_the_reward(data):
    finite = st.floats(-1e3, 1e3)
    width = data.draw(st.integers(1, 24))
    lengths = data.draw(st.lists(st.integers(1, width), min_size=1, max_size=4))
    n = len(lengths)
    episodes = make_episodes(lengths, width)
    rewards, info = np.array(data.draw(st.lists(finite, min_size=n, max_size=n))), {}
    expected = rewards.copy()
    for number in range(data.draw(st.integers(1, 4))):
        shape = data.draw(st.sampled_from([(n,), (n, width)]))
        seed, weight = data.draw(st.integers(0, 2**32 - 1)), data.draw(finite)
        scores = np.random.default_rng(seed).normal(size=shape)
        rewards, extra = pay(lambda _, scores=scores: scores, weight, str(number), episodes, rewards, info)
        info |= extra
        raw = scores if scores.ndim == 1 else np.where(episodes.reply_mask, scores, 0).sum(1)
        np.testing.assert_allclose(info[f"reward/{number}"], raw, rtol=1e-12, atol=1e-12)
        expected += weight * raw
        assert all(row.sum() == reward for row, reward in zip(info["token_rewards"], rewards, strict=True))
        assert (info["token_rewards"][~episodes.reply_mask] == 0).all()
    np.testing.assert_allclose(rewards, expected, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize(
    "scores",
    [
        [1.0, np.nan],
        [np.inf, 1.0],
        [[0, 0, 0], [0, np.nan, 0]],
        [1.0],
        [[1.0, 2.0]],
        1.0,
        None,
        ["good", "bad"],
        [[1.0], [1.0, 2.0]],
        [[1.0], [1.0]],
    ],
    ids=str,
)
def test_unusable_scores_are_an_error_that_names_the_scorer(scores):
    with pytest.raises(ValueError, match="scorer 'politeness'"):
        pay(lambda _: scores, 1.0, "politeness", make_episodes([3, 3], 3), np.zeros(2), {})


def test_not_finite_score_is_an_error_that_quotes_the_reply():
    episodes = make_episodes([1, 1], responses=["Yes .", "No !"])
    with pytest.raises(ValueError, match=r"nan for the reply 'No !'"):
        pay(lambda _: np.array([1.0, np.nan]), 1.0, "x", episodes, np.zeros(2), {})


def test_not_finite_weight_never_becomes_a_reward():
    with pytest.raises(ValueError, match="scorer 'x' of weight nan"):
        pay(lambda _: np.ones(1), math.nan, "x", make_episodes([1]), np.zeros(1), {})


# METEOR


def nltk_meteor(response, reference):
    words, reference_words = (word_tokenize(text, preserve_line=True) for text in (response, reference))
    return single_meteor_score(reference_words, words, stemmer=PorterStemmer(), wordnet=Synonyms())


def reply_pairs(dataset, split, count):
    """Random pairs of utterances, and pairs of an utterance and a shuffled part of it, which match in many words."""
    rng = np.random.default_rng(0)
    utterances = [text for dialogue in load_dialogues(dataset, split, raw_split=True) for text in dialogue.utterances]
    for i, j in rng.integers(len(utterances), size=(count // 2, 2)):
        reference = utterances[i]
        words = reference.split()
        yield utterances[j], reference
        yield " ".join(rng.permutation(words)[: rng.integers(1, len(words) + 1)]), str(reference)


def test_meteor_is_nltks_on_builtin_replies():
    pairs = list(reply_pairs("builtin", "train", 600))
    scores = [meteor(*pair) for pair in pairs]
    assert scores == [nltk_meteor(*pair) for pair in pairs]
    assert np.mean(np.array(scores) > 0.2) > 0.3


@needs_dailydialog
def test_meteor_is_nltks_on_real_replies():
    for pair in reply_pairs(str(SHARED / "dailydialog"), "test", 500):
        assert meteor(*pair) == nltk_meteor(*pair)


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=40), st.text(max_size=40))
def test_meteor_of_any_texts_is_nltks_and_a_number_from_0_to_1(response, reference):
    score = meteor(response, reference)
    assert 0.0 <= score <= 1.0
    assert list(words(response)) == word_tokenize(response, preserve_line=True)
    if response.split() and reference.split():
        assert score == nltk_meteor(response, reference)


# Words that are equal, that have equal stems, that are synonyms, or several of these, again and again
ALIKE = st.lists(
    st.sampled_from(
        [
            "go",
            "goes",
            "going",
            "went",
            "run",
            "runs",
            "big",
            "bigger",
            "sick",
            "ill",
            "ills",
            "film",
            "movie",
            "movies",
            "a",
            "A",
            ".",
        ]
    )
)


@settings(deadline=None, max_examples=300)
@given(ALIKE, ALIKE)
def test_meteor_of_words_that_match_in_many_ways_is_nltks(response, reference):
    response, reference = " ".join(response), " ".join(reference)
    assert meteor(response, reference) == (nltk_meteor(response, reference) if response and reference else 0)


def test_meteor_tokenises_as_word_tokenize():
    texts = [text for dialogue in load_dialogues("builtin", "validation") for text in dialogue.utterances]
    for text in [*texts, "Don't \"quote\" me... I'd pay $5.50, gonna ''go'' (now)? [x] a--b", "é 好的。 👍🏽 ok"]:
        assert list(words(text)) == word_tokenize(text, preserve_line=True)


PIECES = ["I'm", "don't", "N'T", "it's", "Cannot", "wanna", "more'n", "a-b", "5.50", "a.", ".", "..", "...", ",", ":"]
PIECES += [";", "?", "!", "'", "''", "`", "--", "'tis", "D'YE", "x'll", "'s", "n't", "(", "_", "1"]
PIECES += ['"', "\u2019", "\u00e9", "\u017f", "can\u017f"]


@settings(deadline=None, max_examples=500)
@given(st.lists(st.sampled_from(PIECES), max_size=8), st.sampled_from([" ", " ", "  ", ""]))
def test_words_are_nltks_where_the_short_cut_ends(pieces, blank):
    text = blank.join(pieces)
    assert list(words(text)) == word_tokenize(text, preserve_line=True)


def test_meteor_by_hand():
    # 3 matches in 1 chunk, "walked" by its stem: P = 1, R = 3/4, F = PR / (0.9 P + 0.1 R), penalty 0.5 (1/3)^3
    f_mean = 0.75 / (0.9 + 0.075)
    assert meteor("I walked home", "I walk home today") == pytest.approx(f_mean * (1 - 0.5 / 27))


def test_meteor_of_one_word():
    assert meteor("Yes", "Yes") == 0.5  # the one match is a chunk: penalty 0.5
    assert meteor("yes", "Yes") == 0.5
    assert meteor("No", "Yes") == 0.0
    assert 0 < meteor("Yes , of course .", "Yes") < 0.5


@pytest.mark.parametrize("response", ["", " ", "\n\t"])
def test_meteor_of_an_empty_reply_is_0(response):
    assert meteor(response, "Fine , thanks .") == meteor("Fine , thanks .", response) == meteor(response, "") == 0.0


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("👍👍 🙂", "🙂 fine"),
        ("你好 吗 ?", "你好 !"),
        ("مرحبا يا صديقي", "hello صديقي"),
        ("Grüß dich , Zoë !", "Zoë ?"),
    ],
)
def test_meteor_matches_words_of_every_script(text, other):
    assert meteor(text, text) > 0.9
    assert 0 < meteor(text, other) < meteor(text, text)


def test_meteor_scorer_gives_a_score_for_each_episode():
    pairs = [("Yes , I do .", "I do ."), ("", "No ."), ("👍", "👍")]
    responses, references = map(list, zip(*pairs, strict=True))
    scores = Meteor()(make_episodes([3, 1, 2], responses=responses, references=references))
    assert scores.shape == (3,)
    assert scores.tolist() == [meteor(*pair) for pair in pairs]


# KL divergence

VOCAB = 50
SIZES = {"vocab_size": VOCAB, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 1}
# Wide weights, so that a wrong position or mask moves the log-probabilities by far more than the tolerance
MODELS = {
    "gpt2": (GPT2LMHeadModel, GPT2Config(n_embd=16, n_layer=2, n_head=2, initializer_range=0.4, **SIZES)),
    "opt": (
        OPTForCausalLM,
        OPTConfig(
            hidden_size=16,
            word_embed_proj_dim=16,
            ffn_dim=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            init_std=0.4,
            **SIZES,
        ),
    ),
    "llama": (
        LlamaForCausalLM,
        LlamaConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.4,
            **SIZES,
        ),
    ),
}


def make_model(name, seed=0):
    torch.manual_seed(seed)
    kind, config = MODELS[name]
    return kind(copy.deepcopy(config)).eval()


@torch.no_grad()
def slow_log_probs(model, episodes, vocab_size=VOCAB):
    """Each row alone, without padding, masks or positions, in float64."""
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
    """Replies and prompts of all lengths, none as long as its columns; log-probabilities with rubbish after the end."""
    episodes = make_episodes([5, 1, 3, 2], 6, prompt_lengths=[1, 7, 4, 6], width=9)
    return replace(episodes, log_probs=-np.random.default_rng(1).exponential(2, (4, 6)))


@pytest.mark.parametrize("name", MODELS)
def test_kl_equals_a_slow_forward_of_each_row_alone(name, ragged):
    model = make_model(name)
    expected = np.where(ragged.reply_mask, ragged.log_probs - slow_log_probs(model, ragged), 0)
    scores = KLDivergence(model, VOCAB)(ragged)
    assert scores.shape == (4, 6)
    np.testing.assert_allclose(scores, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_kl_is_zero_while_the_policy_is_the_reference(name, ragged):
    model = make_model(name)
    drawn = replace(ragged, log_probs=slow_log_probs(model, ragged))
    np.testing.assert_allclose(KLDivergence(model, VOCAB)(drawn), 0, atol=1e-4)
    assert np.abs(KLDivergence(make_model(name, seed=1), VOCAB)(drawn)).max() > 0.1


@pytest.mark.parametrize("name", MODELS)
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


@pytest.mark.parametrize("name", MODELS)
def test_reference_reads_a_context_once_for_all_its_replies(name, ragged):
    shared = replace(ragged, input_ids=ragged.input_ids.copy(), attention_mask=ragged.attention_mask.copy())
    for array in (shared.input_ids, shared.attention_mask):
        array[[0, 3], :9] = array[1, :9]  # rows 0, 1 and 3 answer the same
    seen = []
    scorer = KLDivergence(make_model(name), VOCAB)
    scorer.model.register_forward_pre_hook(lambda _, args: seen.append(args[0].numel()))
    expected = np.where(shared.reply_mask, shared.log_probs - slow_log_probs(make_model(name), shared), 0)
    np.testing.assert_allclose(scorer(shared), expected, atol=1e-4, rtol=0)
    used = shared.attention_mask[1:3, :9].sum() + shared.reply_mask.sum()
    assert used <= seen[0] < used + shared.attention_mask[1, :9].sum()


@pytest.mark.parametrize("name", MODELS)
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
    with pytest.raises(ValueError, match="reference model has 50 tokens of vocabulary, but the policy has 51"):
        KLDivergence(make_model("gpt2"), 51)


def test_kl_needs_log_probs():
    with pytest.raises(ValueError, match="KLPenalty"):
        KLDivergence(make_model("gpt2"), VOCAB)(make_episodes([2]))


def test_reference_loads_from_a_folder(tmp_path, ragged):
    model = make_model("gpt2")
    model.save_pretrained(tmp_path)
    loaded = KLDivergence(str(tmp_path), VOCAB)(ragged)  # with GPT-2's activation in one operation
    np.testing.assert_allclose(loaded, KLDivergence(model, VOCAB)(ragged), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_amp_dtype_gives_what_autocast_gives_with_half_of_the_memory_for_linear_layers(ragged, name):
    full = KLDivergence(make_model(name), VOCAB)
    half = KLDivergence(make_model(name), VOCAB, amp_dtype=torch.bfloat16)
    stored = {parameter.dtype for parameter in half.model.parameters()}
    assert stored == {torch.float32, torch.bfloat16}  # norms and embeddings, linear layers
    assert 0 < np.abs(full(ragged) - half(ragged)).max() < 0.5
    full.amp_dtype = torch.bfloat16  # its weights, in float32, are cast in every forward
    np.testing.assert_array_equal(half(ragged), full(ragged))


def test_reference_is_frozen_and_has_no_dropout(ragged):
    scorer = KLDivergence(make_model("gpt2").train(), VOCAB)
    assert not any(parameter.requires_grad for parameter in scorer.model.parameters())
    np.testing.assert_array_equal(scorer(ragged), scorer(ragged))


# How long replies are


def test_words_beyond_people_is_the_mean_excess_over_prompts_and_references():
    prompts = ["one two <EOU> one two three four <EOU>", "one <EOU>"]
    episodes = make_episodes(
        [4, 3], 6, prompts=prompts, references=["one two three", "x " * 40], responses=["a b c", "a b"]
    )
    # 5 words in 7 tokens, so 6 tokens are 30/7 words; people: 2, 4, 3, 1, and 40 cut to 30/7
    excess = 2.5 - (2 + 4 + 3 + 1 + 30 / 7) / 5
    np.testing.assert_allclose(words_beyond_people(episodes), np.where(episodes.reply_mask, excess, 0))


def test_words_beyond_people_of_empty_replies():
    episodes = make_episodes([1, 1], 6, responses=["", ""])
    np.testing.assert_array_equal(words_beyond_people(episodes), np.zeros((2, 6)))


# How rare a token is


@pytest.mark.filterwarnings("error")  # a token that nobody said is no logarithm of 0
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_surprise_is_log_rarity_without_the_ends_and_zero_on_average(lengths, seed):
    episodes = make_episodes(lengths, 6, vocab_size=6, seed=seed)
    scores = token_surprise(episodes)
    said = [list(row[: length - 1]) for row, length in zip(episodes.reply_ids, lengths, strict=True)]
    tokens = [token for reply in said for token in reply]
    surprise = [-np.log(tokens.count(token) / len(tokens)) for token in tokens]
    expected = np.zeros((len(lengths), 6))
    for i, reply in enumerate(said):
        expected[i, : len(reply)] = [-np.log(tokens.count(token) / len(tokens)) - np.mean(surprise) for token in reply]
    np.testing.assert_allclose(scores, expected, atol=1e-12)
    assert scores.sum() == pytest.approx(0, abs=1e-9)


# The adaptive coefficient


@pytest.mark.parametrize(
    ("kl_per_token", "expected"),
    [
        (0.05, 0.2),
        (0.055, 0.2 * 1.01),  # 10% above the target: 10% of rate 0.1
        (0.5, 0.2 * 1.02),  # clipped to 20%
        (0.045, 0.2 * 0.99),
        (0.0, 0.2 * 0.98),
        (-3.0, 0.2 * 0.98),
    ],
)
def test_coefficient_follows_openrls_rule(kl_per_token, expected):
    coefficient = AdaptiveCoefficient(coef=0.2, target=0.05, rate=0.1, clip=0.2)
    coefficient.observe(np.array([4 * kl_per_token]), np.array([4]), every=1)
    assert coefficient.value == pytest.approx(expected, rel=1e-12)


def test_coefficient_moves_once_for_every_num_envs_episodes():
    coefficient = AdaptiveCoefficient(coef=0.2, target=0.05, rate=0.1, clip=0.2)
    coefficient.observe(np.array([0.3]), np.array([2]), every=3)
    assert coefficient.value == 0.2
    # 0.44 nats in 8 tokens, 10% above the target; the mean of the episodes' own means would be clipped
    coefficient.observe(np.array([0.1, 0.04]), np.array([3, 3]), every=3)
    assert coefficient.value == pytest.approx(0.2 * 1.01, rel=1e-12)
    coefficient.observe(np.array([0.0, 0.0]), np.array([1, 1]), every=3)
    assert coefficient.value == pytest.approx(0.2 * 1.01, rel=1e-12)
    coefficient.observe(np.array([0.0]), np.array([1]), every=3)
    assert coefficient.value == pytest.approx(0.2 * 1.01 * 0.98, rel=1e-12)


def test_fixed_coefficient_stays():
    coefficient = FixedCoefficient(0.3)
    coefficient.observe(np.array([9.0]), np.array([1]), every=1)
    assert coefficient.value == 0.3


def test_zieglers_coefficient_is_that_of_lm_human_preferences():
    # https://github.com/openai/lm-human-preferences/blob/master/lm_human_preferences/train_policy.py
    class AdaptiveKLController:
        def __init__(self, init_kl_coef, target, horizon):
            self.value, self.target, self.horizon = init_kl_coef, target, horizon

        def update(self, current, n_steps):
            proportional_error = np.clip(current / self.target - 1, -0.2, 0.2)
            self.value *= 1 + proportional_error * n_steps / self.horizon

    theirs, ours = AdaptiveKLController(0.15, 6.0, 10_000), ZieglerCoefficient(0.15)
    rng = np.random.default_rng(0)
    for _ in range(200):
        kl = rng.normal(6.0, 8.0, 64)  # nats a reply
        theirs.update(kl.mean(), 64)
        ours.observe(kl, rng.integers(1, 20, 64), every=64)
    assert ours.value == pytest.approx(theirs.value, rel=1e-12)
    assert abs(ours.value - 0.15) > 1e-3


@pytest.mark.parametrize("rule", [AdaptiveCoefficient, ZieglerCoefficient, FixedCoefficient])
@pytest.mark.parametrize("coef", [-0.1, math.nan, math.inf])
def test_impossible_coefficient_is_an_error(rule, coef):
    with pytest.raises(ValueError, match="coef of a KL coefficient"):
        rule(coef)


@pytest.mark.parametrize("rule", [AdaptiveCoefficient, ZieglerCoefficient])
@pytest.mark.parametrize("target", [0.0, -1.0, math.nan])
def test_impossible_target_is_an_error(rule, target):
    with pytest.raises(ValueError, match="target of a KL coefficient"):
        rule(0.2, target)


# A user's own reward


def test_load_scorer_finds_functions_and_classes(tmp_path, monkeypatch):
    (tmp_path / "scorers_of_mine.py").write_text(
        "import numpy as np\n"
        "def brevity(episodes):\n    return np.array([-len(text) for text in episodes.responses])\n"
        "class Ones:\n    def __call__(self, episodes):\n        return np.ones(len(episodes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    scorer, weight, name = load_scorer("scorers_of_mine:brevity=-0.25")
    assert (weight, name) == (-0.25, "brevity")
    assert scorer(make_episodes([1, 1], responses=["a", "abc"])).tolist() == [-1, -3]
    scorer, weight, name = load_scorer("scorers_of_mine:Ones=2")
    assert (weight, name) == (2.0, "Ones")
    assert scorer(make_episodes([1, 1])).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("brevity", "reward 'brevity' is not of the form module:callable=weight"),
        ("my_rewards:brevity", "not of the form"),
        ("my_rewards:brevity=much", "not of the form"),
        (":brevity=1", "--reward ':brevity': expected module:name"),
        ("math=1", "--reward 'math': expected module:name"),
        ("no_such_module:brevity=1", "--reward 'no_such_module:brevity': .*No module named 'no_such_module'"),
        ("math:brevity=1", "--reward 'math:brevity': .*module 'math' has no attribute 'brevity'"),
        ("math:pi=1", "reward 'math:pi=1': it is no function or class, but 3.14"),
    ],
)
def test_unusable_reward_is_an_error_that_quotes_it(text, message):
    with pytest.raises(ValueError, match=message):
        load_scorer(text)


# Intent

WORDS = ["do", "you", "like", "tea", "?", "yes", "no", "I", "go", "now", ".", "please", "come", "late", "fine", "!"]
NAMES = list(ACTS.values())


def save_classifier(folder, labels, kind="bert", model_max_length=64):
    """A random classifier of `labels` (names or a number), with a tokenizer of whole words."""
    specials = ["<pad>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate([*specials, *WORDS])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", model_max_length=model_max_length
    ).save_pretrained(folder)
    named = {"num_labels": labels}
    if not isinstance(labels, int):
        named = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(vocabulary),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 80,
        "initializer_range": 0.8,
        "pad_token_id": 0,
    }
    model = {
        "bert": lambda: BertForSequenceClassification(BertConfig(**sizes, **named)),
        "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**sizes, **named)),
    }[kind]()
    model.save_pretrained(folder)
    return str(folder)


def random_texts(count, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(count)]


@torch.no_grad()
def slow_labels(scorer, texts):
    """The index of the likeliest label of each text, read alone."""
    return [
        int(scorer.classifier(**scorer.tokenizer(text, return_tensors="pt")).logits.argmax(-1).item()) for text in texts
    ]


def found_acts(scorer, texts):
    return (scorer.classify(texts).argmax(1) + 1).tolist()


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("labels", [NAMES, ["Commissive", "QUESTION", "inform", "directive"], NAMES[::-1]], ids=str)
def test_labels_are_found_by_name_in_any_order(tmp_path, kind, labels):
    scorer = IntentMatch(save_classifier(tmp_path, labels, kind))
    texts = random_texts(40)
    expected = [NAMES.index(labels[i].lower()) + 1 for i in slow_labels(scorer, texts)]
    assert len(set(expected)) >= 3
    assert found_acts(scorer, texts) == expected


def test_labels_without_names_are_the_acts_in_order(tmp_path):
    scorer = IntentMatch(save_classifier(tmp_path, 4))
    texts = random_texts(40)
    assert found_acts(scorer, texts) == [i + 1 for i in slow_labels(scorer, texts)]


@pytest.mark.parametrize(
    "labels", [2, 5, ["joy", "anger", "fear", "surprise"], [*NAMES, "none"], [*NAMES[:3], "inform"]], ids=str
)
def test_other_labels_are_an_error_that_names_the_model(tmp_path, labels):
    folder = save_classifier(tmp_path / "classifier", labels)
    with pytest.raises(ValueError, match=r"classifier '.*classifier' has the labels .*expected \['inform'"):
        IntentMatch(folder)


def test_missing_classifier_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match=r"cannot load intent classifier .*nowhere"):
        IntentMatch(str(tmp_path / "nowhere"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("intent") / "classifier", NAMES)


@pytest.mark.parametrize("separator", [None, "<pad>", " | "])
def test_classifier_reads_the_last_utterance_its_separator_and_the_reply(classifier, tmp_path, separator):
    """A blank is what a foreign classifier gets, whose configuration names no separator."""
    folder = shutil.copytree(classifier, tmp_path / "classifier")
    if separator is not None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"separator": separator}))
    scorer = IntentMatch(str(folder))
    lasts, replies = random_texts(40, seed=1), random_texts(40, seed=2)
    replies[0] = ""
    prompts = [f"{earlier} <EOU> {last} <EOU>" for earlier, last in zip(random_texts(40, seed=3), lasts, strict=True)]
    prompts[1] = f"{lasts[1]} <EOU>"
    texts = [f"{last}{separator or ' '}{reply}" for last, reply in zip(lasts, replies, strict=True)]
    found = np.array([i + 1 for i in slow_labels(scorer, texts)])
    episodes = make_episodes([1] * 40, prompts=prompts, responses=replies, intents=found)
    scores = scorer(episodes)
    assert scores.shape == (40,) and (scores == 1.0).all()
    assert (scorer(replace(episodes, intents=found % 4 + 1)) == 0.0).all()


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_batching_does_not_change_what_is_found(tmp_path, kind):
    folder = save_classifier(tmp_path, NAMES, kind)
    texts = random_texts(50)
    expected = found_acts(IntentMatch(folder, batch_size=1), texts)
    assert found_acts(IntentMatch(folder), texts) == expected
    assert found_acts(IntentMatch(folder, batch_size=7), texts) == expected


def test_too_long_a_text_loses_its_beginning_not_the_reply(tmp_path):
    scorer = IntentMatch(save_classifier(tmp_path, NAMES, model_max_length=6))
    replies = random_texts(30)
    replies = [" ".join((reply.split() * 6)[:6]) for reply in replies]
    prompts = [" ".join(WORDS * 5) + " <EOU>"] * 30
    assert scorer.match(prompts, replies, found_acts(scorer, replies)).all()


def test_labels_can_be_said_where_the_configuration_names_them_wrongly(tmp_path):
    folder = save_classifier(tmp_path, ["joy", "optimism", "anger", "sadness"])
    scorer = IntentMatch(folder, labels=["question", "inform", "directive", "commissive"])
    texts = random_texts(40)
    assert found_acts(scorer, texts) == [[2, 1, 3, 4][i] for i in slow_labels(scorer, texts)]
    with pytest.raises(ValueError, match="has 4 outputs, but labels are"):
        IntentMatch(folder, labels=NAMES[:3])
    with pytest.raises(ValueError, match="has the labels"):
        IntentMatch(folder, labels=["joy", *NAMES[1:]])


def test_probability_of_the_target_act_is_paid_where_asked_for(classifier):
    prompts, replies = [f"{text} <EOU>" for text in random_texts(30, seed=1)], random_texts(30, seed=2)
    intents = np.arange(30) % 4 + 1
    scorer = IntentMatch(classifier, probability=True)
    scores = scorer(make_episodes([1] * 30, prompts=prompts, responses=replies, intents=intents))
    probabilities = scorer.probabilities(prompts, replies)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)
    assert scores.tolist() == [row[intent - 1] for row, intent in zip(probabilities, intents, strict=True)]


def test_amp_dtype_autocasts_the_classifier(classifier):
    texts = random_texts(20)
    full = IntentMatch(classifier).classify(texts)
    half = IntentMatch(classifier, amp_dtype=torch.bfloat16).classify(texts)
    assert 0 < np.abs(full - half).max() < 0.05


def test_a_causal_classifier_judges_a_batch_as_it_judges_single_texts(tiny_intent_model):
    match = IntentMatch(tiny_intent_model)
    texts = ["Yes .", "I am glad to see all of you in the garden .", "Where were you ?"]
    np.testing.assert_allclose(match.classify(texts), np.concatenate([match.classify([t]) for t in texts]), atol=1e-6)
