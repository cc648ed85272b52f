"""Supervised fine-tuning of any causal language model and of the embedded policy, at toy size."""

import gzip
import itertools
import json
import random
from collections import Counter
from functools import partial

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from dailydialog_gym.agent import AgentRecord, DialogueAgent, find_agent_folder
from dailydialog_gym.env.dialogues import load_dialogues
from dailydialog_gym.env.tokenizer import format_prompt, load_tokenizer
from dailydialog_gym.models.loading import load_model
from dailydialog_gym.models.precision import MixedPrecision
from dailydialog_gym.recipes import sft
from dailydialog_gym.recipes.training import train_bpe

TOY = {
    "dataset": "builtin",
    "vocab_size": 400,
    "layers": 1,
    "width": 64,
    "context": 64,
    "epochs": 2,
    "warmup_steps": 10,
    "batch_tokens": 4096,
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The folder of a toy model after one epoch."""
    folder = tmp_path_factory.mktemp("toy")
    sft.main(sft.Args(out=folder, **{**TOY, "epochs": 1}))
    return folder


@pytest.fixture(scope="module")
def encoded():
    dialogues = load_dialogues("builtin", "validation")
    return sft.encode(sft.train_tokenizer(dialogues, 400), (dialogue.utterances for dialogue in dialogues))


def test_every_token_is_predicted_once(encoded):
    tokens = Counter(token for dialogue in encoded for utterance in dialogue for token in utterance)
    whole = sft.windows(encoded, 64, None)
    assert Counter(token for piece in whole for token in piece[1:]) == tokens
    split = sft.windows(encoded, 64, random.Random(1))
    left = tokens - Counter(token for piece in split for token in piece[1:])
    assert 0 < left.total() < len(encoded)  # the first token after a split is not predicted
    assert max(map(len, whole + split)) == 65
    data = sft.batches(whole, 1024)
    assert [piece for batch in data for piece in batch] == whole
    assert max(map(sft.predicted, data)) <= 1024
    assert min(map(sft.predicted, data[:-1])) > 1024 - 64  # the next window did not fit


def test_windows_of_a_tokenizer_with_bos_begin_with_it(encoded):
    for rng in None, random.Random(1):
        pieces = sft.windows(encoded, 10_000, rng, bos=[7])
        assert {piece[0] for piece in pieces} == {7}
        assert sum(map(sft.predicted, [pieces])) == sum(len(u) for dialogue in encoded for u in dialogue)


def folder_of(path, model_class, config_class, tokenizer=None, **sizes):
    """A model folder with random weights, by default with a tokenizer that splits EOU."""
    dialogues = load_dialogues("builtin", "validation")
    if tokenizer is None:
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=train_bpe(dialogues, 400, ["<end>"]), eos_token="<end>")
    torch.manual_seed(0)
    model = model_class(config_class(vocab_size=len(tokenizer), eos_token_id=0, initializer_range=0.3, **sizes))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def tiny_llama(path, **options):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "max_position_embeddings": 128}
    return folder_of(path, LlamaForCausalLM, LlamaConfig, **sizes, **options)


def tiny_gpt2(path, **options):
    return folder_of(path, GPT2LMHeadModel, GPT2Config, n_embd=32, n_layer=1, n_head=2, n_positions=128, **options)


def byte_level():
    """GPT-2's kind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return tokenizer, trainers.BpeTrainer(vocab_size=400, special_tokens=["<end>"], initial_alphabet=alphabet)


def metaspace(scheme):
    """Llama's kind."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    return tokenizer, trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<end>"])


KINDS = {"GPT-2": byte_level, "Llama": partial(metaspace, "first"), "Llama, legacy": partial(metaspace, "always")}


@pytest.mark.parametrize("eou", ["of the recipe", "of the user"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_training_reads_the_tokens_that_the_environment_reads(kind, eou, tmp_path):
    """A word must not be another token after EOU in training than in a context; the name of a token is only text."""
    backend, trainer = kind()
    texts = [text for d in load_dialogues("builtin", "validation") for text in d.utterances]
    backend.train_from_iterator([*texts, "<EOU>"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    if eou == "of the user":
        tokenizer.add_special_tokens({"additional_special_tokens": ["<EOU>"]})
    _, tokenizer = sft.load_start(str(tiny_llama(tmp_path / "model", tokenizer=tokenizer)))
    tokenizer.save_pretrained(tmp_path / "out")
    environment = load_tokenizer(str(tmp_path / "out"))
    said = ["Hi , Ann !", "How are you ?", "Type <EOU> or <end> now ."]
    (ids,) = sft.encode(tokenizer, [said])
    assert [[*itertools.chain(*ids)]] == environment.encode_prompts([format_prompt(said)], 1000)
    assert ids[1:] == environment.encode_replies([said[1], "Type < EOU> or <end> now ."])
    assert len(ids) == 3 and all(part.count(part[-1]) == 1 for part in ids)


FINE_TUNING = {"context": 64, "epochs": 1, "warmup_steps": 5, "batch_tokens": 512, "learning_rate": 1e-2}


@pytest.mark.parametrize("tiny", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("amp", [False, True])
def test_windows_in_shared_rows_have_the_loss_of_single_rows(encoded, tiny, amp, tmp_path):
    model, tokenizer = sft.load_start(str(tiny(tmp_path)))
    ids = sft.encode(tokenizer, [d.utterances for d in load_dialogues("builtin", "validation")][:20])
    pieces = sft.windows(ids, 64, random.Random(1))
    precision = MixedPrecision(torch.device("cpu"), torch.bfloat16 if amp else None, 64)
    packed = sft.loss_of(model, pieces, precision)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        rows = [model(torch.tensor([piece])).logits[0, :-1].float() for piece in pieces]
    single = sum(
        cross_entropy(logits, torch.tensor(piece[1:]), reduction="sum")
        for logits, piece in zip(rows, pieces, strict=True)
    )
    torch.testing.assert_close(packed, single, rtol=2e-3 if amp else 1e-5, atol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_eou_becomes_one_token_with_the_rows_of_the_end_of_text_token(tied, tmp_path):
    before = AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path, tie_word_embeddings=tied))
    model, tokenizer = sft.load_start(str(tmp_path))
    assert len(tokenizer) == 401
    eou = tokenizer.convert_tokens_to_ids("<EOU>")
    assert tokenizer("Hello . <EOU> Hi !", add_special_tokens=False)["input_ids"].count(eou) == 1
    for old, new in zip(
        (before.get_input_embeddings(), before.get_output_embeddings()),
        (model.get_input_embeddings(), model.get_output_embeddings()),
        strict=True,
    ):
        assert torch.equal(new.weight, torch.cat([old.weight, old.weight[:1]]))
    assert (model.config.eos_token_id, model.generation_config.eos_token_id, model.config.pad_token_id) == (eou, eou, 0)


def test_a_tokenizer_with_eou_and_a_larger_embedding_stay_as_they_are(tmp_path):
    dialogues = load_dialogues("builtin", "validation")
    model, tokenizer = sft.load_start(str(tiny_gpt2(tmp_path, tokenizer=sft.train_tokenizer(dialogues, 400))))
    assert model.num_parameters() == AutoModelForCausalLM.from_pretrained(tmp_path).num_parameters()
    assert len(tokenizer) == 400


@pytest.mark.parametrize("flags", [{}, {"lora_rank": 4}, {"amp": True, "accumulate": 2}])
def test_a_model_of_any_kind_learns_dialogues_and_becomes_an_agent(flags, dataset, tmp_path):
    start = tiny_llama(tmp_path / "start")
    flags = {**FINE_TUNING, "dataset": dataset, "epochs": 2, **flags}
    sft.main(sft.Args(out=tmp_path / "out", start=str(start), **flags))
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    model, tokenizer = sft.load_start(str(start))
    held_out = [dialogue.utterances for dialogue in load_dialogues(dataset, "validation")]
    data = sft.batches(sft.windows(sft.encode(tokenizer, held_out), 64, None), 4096)
    characters = sum(map(len, itertools.chain(*held_out)))
    precision = MixedPrecision(torch.device("cpu"), None, 64)
    before = sft.validate(model, data, characters, precision)["bits_per_character"]
    tuned = load_model(str(tmp_path / "out"))
    after = sft.validate(tuned, data, characters, precision)["bits_per_character"]
    assert after < 0.9 * before
    assert after == pytest.approx(rows[-1]["bits_per_character"], rel=2e-3)  # of the merged weights, in float16
    assert tuned.num_parameters() == model.num_parameters()
    agent = DialogueAgent.load(str(tmp_path / "out"), max_prompt_length=64)
    assert agent.tokenizer.vocab_size == 401
    assert find_agent_folder(str(tmp_path / "out"))[1] == AgentRecord(dataset=dataset)
    assert isinstance(agent.chat("Hello !"), str)
    if "lora_rank" in flags:  # adapters and the embedding of EOU alone have learned
        eou = tokenizer.eos_token_id
        same = (tuned.get_input_embeddings().weight - model.get_input_embeddings().weight).abs().amax(1) < 1e-3
        assert same[:eou].all() and not same[eou]
        assert not torch.equal(tuned.model.layers[0].mlp.up_proj.weight, model.model.layers[0].mlp.up_proj.weight)


class Stopped(Exception):  # noqa: N818
    """Ends a run at its first update."""


def test_gradients_add_up_to_those_of_one_minibatch(dataset, tmp_path, monkeypatch):
    gradients = []

    def stop(training, **losses):
        gradients.append({name: parameter.grad for name, parameter in training.model.named_parameters()} | losses)
        raise Stopped

    monkeypatch.setattr(sft.Training, "update", stop)
    start = str(tiny_llama(tmp_path / "start"))
    for out, size, accumulate in ("one", 10**6, 1), ("many", 512, 10**6):
        flags = {**FINE_TUNING, "dataset": dataset, "batch_tokens": size, "accumulate": accumulate}
        with pytest.raises(Stopped):
            sft.main(sft.Args(out=tmp_path / out, start=start, **flags))
    one, many = gradients
    torch.testing.assert_close(many, one, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"context": 256}, "LlamaForCausalLM reads 128 tokens, but context 256: lower --context"),
        ({"layers": 3}, "--layers 3 adds blocks to a GPT-2 of at most as many, but --start is a LlamaForCausalLM of 2"),
    ],
)
def test_flags_that_do_not_fit_the_model_are_refused(flags, message, dataset, tmp_path):
    with pytest.raises(ValueError, match=message):
        flags = {**FINE_TUNING, "dataset": dataset, **flags}
        sft.main(sft.Args(out=tmp_path / "out", start=str(tiny_llama(tmp_path / "m")), **flags))


def test_a_tokenizer_without_an_end_of_text_token_is_refused(tmp_path):
    dialogues = load_dialogues("builtin", "validation")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=train_bpe(dialogues, 400, []))
    with pytest.raises(ValueError, match="has no EOS token to initialise <EOU> from"):
        sft.load_start(str(tiny_llama(tmp_path, tokenizer=tokenizer)))


def test_a_deepened_model_begins_as_the_one_it_came_from(toy, tmp_path):
    shallow = load_model(str(toy))
    deep = sft.deepen(shallow, 3, 0.2).eval()
    assert deep.config.embd_pdrop == deep.config.resid_pdrop == deep.transformer.h[2].mlp.dropout.p == 0.2
    assert deep.config.n_layer == 3
    ids = torch.arange(50)[None]
    torch.testing.assert_close(deep(ids).logits, shallow(ids).logits)
    with pytest.raises(ValueError, match="--layers 0 adds blocks to a GPT-2 of at most as many"):
        sft.deepen(shallow, 0, 0.1)
    flags = {**FINE_TUNING, "dataset": "builtin", "layers": 2}
    sft.main(sft.Args(out=tmp_path / "two", start=str(toy), **flags))
    assert load_model(str(tmp_path / "two")).config.n_layer == 2


def test_pretraining_adds_its_epochs_which_do_not_count_for_patience(tmp_path):
    file = tmp_path / "dialogues.jsonl.gz"
    with gzip.open(file, "wt", encoding="utf-8") as lines:
        lines.write('{"dialog": ["Hello!", "Don\'t go."]}\n' * 20)
    flags = {**TOY, "pretraining": file, "pretraining_epochs": 2, "epochs": 1, "learning_rate": 0.0}
    sft.main(sft.Args(out=tmp_path / "out", patience=1, **flags))
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[0]["bits_per_character"] == rows[1]["bits_per_character"]  # no better than the epoch before


@pytest.mark.parametrize(("said", "text"), [("I am number {}.", "Hello, Ann!"), ("I am number {} .", "Hello , Ann !")])
def test_pretraining_has_the_spacing_of_the_dataset(said, text, tmp_path, monkeypatch):
    rows = [json.dumps({"dialog": [said.format(i), said.format(i + 1)]}) for i in range(9)]
    (tmp_path / "talk.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (tmp_path / "more.jsonl").write_text('{"dialog": ["Hello, Ann!"]}\n', encoding="utf-8")
    seen, encode = [], sft.encode

    def see(tokenizer, dialogues):
        seen.append(list(dialogues))
        return encode(tokenizer, seen[-1])

    monkeypatch.setattr(sft, "encode", see)
    flags = {**TOY, "dataset": str(tmp_path / "talk.jsonl"), "epochs": 1}
    sft.main(sft.Args(out=tmp_path / "out", pretraining=tmp_path / "more.jsonl", **flags))
    assert [[text]] in seen


def test_copies_of_the_dataset_are_mixed_into_the_pretraining(tmp_path, monkeypatch):
    file = tmp_path / "dialogues.jsonl"
    file.write_text('{"dialog": ["Hello!", "Hello, Ann!"]}\n' * 5, encoding="utf-8")
    sizes, windows = [], sft.windows

    def count(encoded, *others):
        sizes.append(len(encoded))
        return windows(encoded, *others)

    monkeypatch.setattr(sft, "windows", count)
    sft.main(sft.Args(out=tmp_path / "out", **TOY | {"epochs": 1}, pretraining=file, dataset_copies=2))
    (held_out, mixed, own), rest = sizes[:3], sizes[3:]
    assert (held_out, own) == tuple(len(load_dialogues("builtin", split)) for split in ("validation", "train"))
    assert mixed == 5 + 2 * own
    assert rest == [mixed, own]  # the first ones were for the schedule
    with pytest.raises(ValueError, match="--dataset-copies are mixed into the dialogues of --pretraining FILE"):
        sft.main(sft.Args(out=tmp_path / "other", dataset="builtin", dataset_copies=2))
    assert not (tmp_path / "other").exists()


def test_a_word_has_the_same_token_in_every_position_of_an_utterance():
    dialogues = load_dialogues("builtin", "train")
    tokenizer = sft.train_tokenizer(dialogues, 4096)
    assert tokenizer("the <EOU> the the<EOU>the")["input_ids"].count(tokenizer("the")["input_ids"][0]) == 4


def test_the_result_is_a_float16_folder_that_transformers_loads(toy):
    model = AutoModelForCausalLM.from_pretrained(toy, dtype="auto")
    assert model.dtype.itemsize == 2
    parameters = sum(p.numel() for p in model.parameters())
    assert (toy / "model.safetensors").stat().st_size < 2 * parameters + 10_000  # tied weights are saved once
    assert AutoTokenizer.from_pretrained(toy).eos_token == "<EOU>"
