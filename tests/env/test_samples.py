import pickle
import sys

import numpy as np
import pytest
from dialogue_files import DIALOGUES, FERRY, SHOP, every_source, write_jsonl
from hypothesis import given
from hypothesis import strategies as st
from paths import DAILYDIALOG, needs_dailydialog
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dailydialog_gym.embedded import ASSETS
from dailydialog_gym.env.dialogues import ACTS, load_dialogues
from dailydialog_gym.env.samples import format_prompt, load_samples


@every_source
def test_every_source_gives_the_same_samples(tmp_path, write):
    (tmp_path / "plain").mkdir()
    (tmp_path / "other").mkdir()
    ours = load_samples(write(tmp_path / "other", DIALOGUES), context_size=2, max_prompt_length=24)
    reference = load_samples(write_jsonl(tmp_path / "plain", DIALOGUES), context_size=2, max_prompt_length=24)
    assert ours.prompts == reference.prompts
    assert ours.references == reference.references
    np.testing.assert_array_equal(ours.acts, reference.acts)
    np.testing.assert_array_equal(ours.prompt_ids, reference.prompt_ids)
    np.testing.assert_array_equal(ours.prompt_mask, reference.prompt_mask)


@needs_dailydialog
def test_the_release_gives_a_sample_for_every_reply():
    samples = load_samples(str(DAILYDIALOG), "test", full_context=True)
    assert len(samples) == len(samples.prompts) == len(samples.references) == 3_123
    assert samples.prompt_ids.shape == samples.prompt_mask.shape == (3_123, 128)
    assert set(samples.acts) == set(ACTS)


def test_a_sample_is_a_reply_with_the_utterances_before_it(tmp_path):
    samples = load_samples(write_jsonl(tmp_path, {"train": [SHOP, FERRY]}), context_size=2)
    a, b, c, d = SHOP[0]
    assert samples.prompts == [
        f"{a} <EOU>",
        f"{a} <EOU> {b} <EOU>",
        f"{b} <EOU> {c} <EOU>",
        f"{FERRY[0][0]} <EOU>",
    ]
    assert samples.references == [b, c, d, FERRY[0][1]]
    assert samples.acts.tolist() == [2, 3, 4, 1]
    assert samples.acts.dtype == np.int64
    assert len(samples) == 4


@pytest.mark.parametrize("context_size", [1, 3, 5, 99])
def test_contexts_of_builtin_dialogues_are_their_last_utterances(context_size):
    samples = load_samples("builtin", "validation", context_size=context_size)
    row = 0
    for dialogue in load_dialogues("builtin", "validation"):
        for i in range(1, len(dialogue.utterances)):
            before = [u.strip() for u in samples.prompts[row].split("<EOU>")[:-1]]
            assert before == list(dialogue.utterances[:i][-context_size:])
            assert (samples.references[row], samples.acts[row]) == (dialogue.utterances[i], dialogue.acts[i])
            row += 1
    assert row == len(samples)


def test_full_context_leaves_out_replies_with_too_few_utterances_before_them():
    every = load_samples("builtin", "test", context_size=3)
    full = load_samples("builtin", "test", context_size=3, full_context=True)
    kept = [i for i, prompt in enumerate(every.prompts) if prompt.count("<EOU>") == 3]
    assert 0 < len(kept) < len(every)
    assert full.prompts == [every.prompts[i] for i in kept]
    assert full.references == [every.references[i] for i in kept]
    assert full.acts.tolist() == every.acts[kept].tolist()


def test_a_split_of_dialogues_too_short_for_full_context_is_an_error(tmp_path):
    source = write_jsonl(tmp_path, {"train": [FERRY]})
    with pytest.raises(ValueError, match="split 'train': no reply has 5 utterances before it"):
        load_samples(source, full_context=True)


@pytest.mark.parametrize("name", ["context_size", "max_prompt_length"])
@pytest.mark.parametrize("value", [0, -1, 2.5, "3", True, None])
def test_sizes_that_are_no_positive_integers_are_errors_naming_the_argument(name, value):
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1, got {value!r}"):
        load_samples(**{name: value})


def test_prompt_ids_are_the_tokenizers_own_encoding_of_the_prompt_text():
    samples = load_samples("builtin", "validation", max_prompt_length=400)
    backend = Tokenizer.from_file(str(ASSETS / "policy" / "tokenizer.json"))
    for prompt, ids, mask in zip(samples.prompts, samples.prompt_ids, samples.prompt_mask, strict=True):
        assert ids[mask].tolist() == backend.encode(prompt).ids


def test_prompts_are_padded_on_the_left_and_lose_their_beginning():
    whole = load_samples("builtin", "validation", max_prompt_length=400)
    short = load_samples("builtin", "validation", max_prompt_length=50)
    lengths = whole.prompt_mask.sum(1)
    assert lengths.min() < 50 < lengths.max() < 400
    np.testing.assert_array_equal(short.prompt_mask.sum(1), lengths.clip(max=50))
    for samples, width in ((whole, 400), (short, 50)):
        assert samples.prompt_ids.shape == samples.prompt_mask.shape == (len(samples.prompts), width)
        assert (samples.prompt_ids.dtype, samples.prompt_mask.dtype) == (np.int32, np.bool_)
        assert (np.diff(samples.prompt_mask.astype(int), axis=1) >= 0).all()
        assert (samples.prompt_ids[~samples.prompt_mask] == samples.tokenizer.pad_id).all()
    np.testing.assert_array_equal(short.prompt_ids[short.prompt_mask], whole.prompt_ids[:, -50:][short.prompt_mask])


@pytest.fixture(scope="module")
def bos_tokenizer(tmp_path_factory):
    """The folder of a word tokenizer that begins every text with ``<s>``."""
    words = ["<s>", "</s>", "<unk>", "<EOU>", *sorted({w for u in SHOP[0] + FERRY[0] for w in u.split()})]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    folder = tmp_path_factory.mktemp("bos")
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return str(folder)


def test_a_tokenizers_bos_stands_first_in_every_prompt_cut_or_whole(tmp_path, bos_tokenizer):
    source = write_jsonl(tmp_path, {"train": [SHOP, FERRY]})
    encode = AutoTokenizer.from_pretrained(bos_tokenizer)
    for width in (64, 12, 2):
        samples = load_samples(source, tokenizer=bos_tokenizer, max_prompt_length=width)
        for prompt, ids, mask in zip(samples.prompts, samples.prompt_ids, samples.prompt_mask, strict=True):
            own = encode(prompt)["input_ids"]
            assert own[0] == 0
            assert ids[mask].tolist() == [0, *own[1:][-(width - 1) :]]


def test_a_prompt_length_that_holds_only_bos_is_an_error(bos_tokenizer):
    with pytest.raises(ValueError, match="max_prompt_length 1 leaves no room for text after the tokenizer's BOS token"):
        load_samples(tokenizer=bos_tokenizer, max_prompt_length=1)


@given(st.lists(st.text(alphabet=st.characters(exclude_characters="<>"), max_size=8), max_size=5))
def test_format_prompt_ends_every_utterance(utterances):
    prompt = format_prompt(utterances)
    assert prompt == format_prompt(tuple(utterances))
    assert prompt.split(" <EOU>")[:-1] == [("" if i == 0 else " ") + u for i, u in enumerate(utterances)]
    assert prompt == "" or prompt.endswith(" <EOU>")


# Caching and pickling


def test_equal_arguments_share_one_load():
    assert load_samples("builtin", "test") is load_samples("builtin", "test")


def test_pickled_samples_carry_only_their_recipe():
    samples = load_samples("builtin", "test", context_size=2, max_prompt_length=32, full_context=True)
    pickled = pickle.dumps(samples)
    assert len(pickled) < 500
    load_samples.cache_clear()
    again = pickle.loads(pickled)
    assert again is not samples
    assert again.prompts == samples.prompts
    np.testing.assert_array_equal(again.prompt_ids, samples.prompt_ids)
    assert sys.getsizeof(pickled) < samples.prompt_ids.nbytes
