"""Measures of replies, and the command that prints them."""

import itertools
import json
import os
import re
import runpy
import socket
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import sacrebleu
from dialogue_files import DIALOGUES, write_jsonl
from hypothesis import given
from hypothesis import strategies as st
from nltk.tokenize import NLTKWordTokenizer, word_tokenize
from nltk.translate.meteor_score import single_meteor_score
from nltk_synonyms import Synonyms
from paths import ROOT
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer
from transformers import AutoModelForCausalLM, BloomConfig

from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.env.samples import load_samples
from dailydialog_gym.evaluate import __main__ as evaluate
from dailydialog_gym.evaluate import change_intervals, evenly_spread
from dailydialog_gym.evaluate.metrics import UnicodeTokenizer, bleu, judge_with_marker, score_replies, summary
from dailydialog_gym.reports.tables import score_cells
from dailydialog_gym.rewards import IntentMatch

REPLIES = ["I like green tea .", "No , thanks .", "No , thanks .", ""]
REFERENCES = ["I like black tea .", "No , thank you .", "See you at six .", "Why ?"]


def test_scores_are_the_libraries_own():
    scores = score_replies(REPLIES, REFERENCES)
    pairs = list(zip(REPLIES, REFERENCES, strict=True))
    rouge = RougeScorer(["rouge1", "rougeLsum"], use_stemmer=True)
    for name in ("rouge1", "rougeLsum"):
        assert scores[name] == pytest.approx(sum(rouge.score(b, a)[name].fmeasure for a, b in pairs) / 4)
    split = [[word_tokenize(text, preserve_line=True) for text in (b, a)] for a, b in pairs]
    expected = sum(single_meteor_score(*pair, wordnet=Synonyms()) for pair in split) / 4
    assert scores["meteor"] == pytest.approx(expected)
    assert scores["sacrebleu"] == pytest.approx(sacrebleu.corpus_bleu(REPLIES, [REFERENCES]).score)
    assert scores["length"] == pytest.approx(13 / 4)
    assert scores["unique"] == pytest.approx(3 / 4)
    assert scores["distinct1"] == pytest.approx(8 / 13)
    assert scores["distinct2"] == pytest.approx(7 / 10)


def test_the_longest_common_subsequence_is_that_of_a_summary():
    """ROUGE-Lsum takes it line by line, so the order of the lines does not count; ROUGE-L does not know lines."""
    assert score_replies(["one two\nthree four"], ["three four\none two"])["rougeLsum"] == 1


def test_perfect_and_disjoint_replies_bound_the_scores():
    perfect = score_replies(REFERENCES, REFERENCES)
    assert perfect["rouge1"] == perfect["rougeLsum"] == 1
    assert perfect["sacrebleu"] == pytest.approx(100)
    disjoint = score_replies(["xyzzy"] * 4, REFERENCES)
    assert disjoint["rouge1"] == disjoint["rougeLsum"] == disjoint["meteor"] == 0


def test_scoring_needs_no_network_and_writes_nothing_at_home(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a metric asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", os.devnull)  # where no folder can be made
    score_replies(REPLIES, REFERENCES)
    judge_with_marker(REPLIES, REFERENCES, [True] * 4)


def test_command_compares_an_agent_with_its_baseline(tiny_model, tmp_path, capsys):
    args = evaluate.Args(
        agent=tiny_model, baseline="builtin", samples=12, sample=True, top_k=20, json=tmp_path / "e.json"
    )
    evaluate.main(args)
    output = capsys.readouterr().out
    rows = json.loads((tmp_path / "e.json").read_text(encoding="utf-8"))
    assert list(rows) == ["builtin", tiny_model]
    assert {cell for line in score_cells(rows) for cell in line} < {cell.strip() for cell in output.split("|")}
    assert "| 95% from " in output
    assert "12 replies to 12 contexts of builtin, test; sampled, top-k 20" in output
    assert rows["builtin"]["meteor"] > rows[tiny_model]["meteor"]


def test_the_classifiers_outputs_are_what_the_flag_says(tiny_model, tiny_intent_model, tmp_path):
    acts = ("question", "inform", "directive", "commissive")
    judge = {"intent_model": tiny_intent_model, "intent_labels": acts, "json": tmp_path / "e.json"}
    evaluate.main(evaluate.Args(agent=tiny_model, samples=40, **judge))
    samples, agent = load_samples(split="test"), DialogueAgent.load(tiny_model)
    ids = evenly_spread(samples, 40)
    prompts, wanted = [samples.prompts[i] for i in ids], samples.acts[ids]
    found = [
        IntentMatch(tiny_intent_model, labels=labels).match(prompts, agent.reply(prompts), wanted).mean()
        for labels in (acts, None)
    ]
    (row,) = json.loads((tmp_path / "e.json").read_text(encoding="utf-8")).values()
    assert row["intent"] == found[0] != found[1]


def test_the_flags_of_the_split_choose_the_replies(tiny_model, tmp_path, capsys):
    data = {"dataset": write_jsonl(tmp_path, DIALOGUES), "split": "train", "context_size": 2}
    counts = {}
    for raw, full in itertools.product((False, True), repeat=2):
        evaluate.main(evaluate.Args(agent=tiny_model, max_new_tokens=2, raw_split=raw, full_context=full, **data))
        counts[raw, full] = int(re.search(r"(\d+) replies to", capsys.readouterr().out)[1])
    # Without copies of other splits SHOP alone is left, of 4 utterances; with them RAIN of 3, and two of 2
    assert counts == {(False, False): 3, (False, True): 2, (True, False): 7, (True, True): 3}


def test_an_agent_that_is_not_supported_ends_the_command_with_one_line(tmp_path, monkeypatch):
    config = BloomConfig(vocab_size=50, hidden_size=8, n_layer=1, n_head=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    monkeypatch.setattr(sys, "argv", ["evaluate", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^error: BloomForCausalLM is not supported.*$"):  # Python prints this line
        runpy.run_path(str(ROOT / "dailydialog_gym/evaluate/__main__.py"), run_name="__main__")


def test_samples_are_spread_evenly():
    samples = load_samples(split="test")
    ids = evaluate.evenly_spread(samples, 10)
    assert len(set(ids)) == 10
    assert ids[0] == 0
    assert ids[-1] >= 0.9 * (len(samples) - 1) - 1
    assert len(evaluate.evenly_spread(samples, 0)) == len(samples)


def test_greedy_replies_equal_the_environments_own_episodes():
    """The agent and the environment cut, pad, end and decode alike."""
    import gymnasium as gym
    import torch

    agent = DialogueAgent.load("builtin", max_prompt_length=32)
    ids = list(range(0, 40, 5))
    samples = load_samples(split="test")
    replies = agent.reply([samples.prompts[i] for i in ids], batch_size=3)
    envs = gym.make_vec("DailyDialog-v0", num_envs=len(ids), lockstep=True, split="test", max_prompt_length=32)
    observation, infos = envs.reset(options={"sample_id": ids})
    while "response" not in infos:
        mask = torch.from_numpy(observation["attention_mask"])
        with torch.no_grad():
            logits = agent.model(
                torch.from_numpy(observation["input_ids"]),
                attention_mask=mask,
                position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            ).logits
        last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
        observation, *_, infos = envs.step(logits[range(len(ids)), last].argmax(-1).numpy())
    assert list(infos["response"]) == replies


def test_drawn_replies_depend_on_the_seed_alone():
    agent = DialogueAgent.load("builtin")
    prompts = load_samples(split="test").prompts[:8]
    first = agent.reply(prompts, sample=True, seed=1)
    assert agent.reply(prompts, sample=True, seed=1) == first
    assert agent.reply(prompts, sample=True, seed=2) != first


@pytest.mark.parametrize("name", ["no/such-model-anywhere", "./nowhere"])
def test_a_missing_agent_is_named(offline, name):
    with pytest.raises(ValueError, match=name):
        DialogueAgent.load(name)


def test_pickled_weights_in_a_folder_are_refused(tiny_model, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        DialogueAgent.load(str(tmp_path))


def test_texts_with_the_marker_are_scored_as_published(tmp_path, capsys):
    """NLTK's METEOR of exact and stem matches, and sacrebleu's intl tokenizer, of texts that end with <EOU>."""

    class NoSynonyms:
        def synsets(self, word):
            return []

    ended = [True, True, False, True]
    scores = summary(judge_with_marker(REPLIES, REFERENCES, ended))
    marked = [f"{reply} <EOU>" if end else reply for reply, end in zip(REPLIES, ended, strict=True)]
    targets = [f"{reference} <EOU>" for reference in REFERENCES]
    pairs = [[NLTKWordTokenizer().tokenize(text) for text in pair] for pair in zip(targets, marked, strict=True)]
    assert scores["meteor"] == pytest.approx(
        sum(single_meteor_score(*pair, wordnet=NoSynonyms()) for pair in pairs) / 4
    )
    assert scores["sacrebleu"] == pytest.approx(sacrebleu.corpus_bleu(marked, [targets], tokenize="intl").score)


def test_intervals_of_changes_are_those_of_the_libraries_scores():
    samples, ids = load_samples(split="validation"), np.arange(30)
    references = [samples.references[i] for i in ids]
    unrelated = references[1:] + references[:1]
    evaluations = {
        (name, keep_eou): evaluate.Evaluation(evaluate.FixedReplies(replies), samples, ids, None, keep_eou)
        for name, replies in {"unrelated": unrelated, "half": references[:15] + unrelated[15:]}.items()
        for keep_eou in (False, True)
    }
    rows = np.random.default_rng(0).integers(30, size=30)
    counts = np.array(evaluations["half", False].by_reply["sacrebleu"])[rows].sum(0)
    texts = [[column[row] for row in rows] for column in (evaluations["half", False].replies, references)]
    assert bleu(counts) == pytest.approx(sacrebleu.corpus_bleu(texts[0], [texts[1]]).score)
    for keep_eou in (False, True):
        before, after = evaluations["unrelated", keep_eou], evaluations["half", keep_eou]
        found = change_intervals(before, after)
        assert found.keys() == {"rouge1", "rougeLsum", "meteor", "sacrebleu", "length"}
        for name, (low, high) in found.items():
            assert low < after.scores[name] - before.scores[name] < high, name
        assert found["rouge1"][0] > 0.2 and found["length"][0] < 0 < found["length"][1]
        assert change_intervals(before, before) == {name: [0, 0] for name in found}
    better = SimpleNamespace(prompts=range(80), by_reply={"intent": [1.0] * 40 + [np.nan] * 40})
    worse = SimpleNamespace(prompts=range(80), by_reply={"intent": [0.0] * 40 + [np.nan] * 40})
    assert change_intervals(worse, better) == {"intent": [1, 1]}  # of the replies that should have an act


def test_rows_of_floors_know_nothing_of_the_contexts(tiny_model, tmp_path, capsys):
    args = evaluate.Args(agent=tiny_model, samples=20, floors=True, json=tmp_path / "plain.json")
    evaluate.main(args)
    evaluate.main(replace(args, keep_eou=True, min_new_tokens=2, json=tmp_path / "kept.json"))
    caption = capsys.readouterr().out
    assert "scored with their <EOU>" in caption and "greedy, at least 2 tokens" in caption
    plain, kept = (json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8")) for name in ("plain", "kept"))
    assert list(plain) == ["an unrelated human reply", "the most frequent reply", "an empty reply", tiny_model]
    assert plain["an empty reply"]["meteor"] == 0 < 0.2 < kept["an empty reply"]["meteor"]
    assert plain["an unrelated human reply"]["unique"] > 0.9
    assert plain["the most frequent reply"]["unique"] == 1 / 20
    samples = load_samples(split="test")
    references = [samples.references[i] for i in evenly_spread(samples, 20)]
    assert plain["an unrelated human reply"]["meteor"] < 0.5 * score_replies(references, references)["meteor"]


@pytest.mark.parametrize(
    ("reply", "reference", "rouge"),
    [
        ("你好我是小明 .", "你好 , 我是小明", 1),
        ("我喜欢茶", "我喜欢咖啡", 2 * 3 / (4 + 5)),
        ("Привет , как дела ?", "Привет !", 2 / 4),
        ("Zwei Cafés", "zwei cafés .", 1),
    ],
)
def test_rouge_reads_other_scripts_than_latin(reply, reference, rouge):
    assert score_replies([reply], [reference])["rouge1"] == pytest.approx(rouge)


@given(st.text(st.sampled_from("aegnst I'\u2019\u201c\u2014\u2026_.,\n9")))
def test_rouge_reads_ascii_words_as_rouge_score_does_beside_any_signs(text):
    expected = DefaultTokenizer(use_stemmer=True).tokenize(text)
    assert UnicodeTokenizer(use_stemmer=True).tokenize(text) == expected


def test_a_reply_that_was_cut_off_has_no_marker(tiny_model):
    agent = DialogueAgent.load(tiny_model, max_new_tokens=3)
    prompts = ["How are you ? <EOU>"] * 40
    plain = agent.reply(prompts, sample=True, seed=1)
    marked = agent.reply(prompts, sample=True, seed=1, end=" END")
    assert [text.removesuffix(" END") for text in marked] == plain
    assert not marked[0].endswith("END")
