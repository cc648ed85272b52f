"""Properties of the embedded dialogues: their number, balance, variety and style."""

import json
import random
import re
from collections import Counter

import pytest
from paths import DAILYDIALOG

from dailydialog_gym.embedded import ASSETS
from dailydialog_gym.env.dialogues import load_dialogues
from dailydialog_gym.env.tokenizer import EOU
from dailydialog_gym.text import space_punctuation

RECORDS = [json.loads(line) for line in (ASSETS / "dialogues.jsonl").read_text(encoding="utf-8").splitlines()]
UTTERANCES = [utterance for record in RECORDS for utterance in record["dialog"]]
TOPICS = {
    "Ordinary Life",
    "School Life",
    "Culture & Education",
    "Attitude & Emotion",
    "Relationship",
    "Tourism",
    "Health",
    "Work",
    "Politics",
    "Finance",
}


def test_there_are_320_dialogues_in_three_splits():
    assert Counter(record["split"] for record in RECORDS) == {"train": 260, "validation": 30, "test": 30}
    assert [len(load_dialogues("builtin", s)) for s in ("train", "validation", "test")] == [260, 30, 30]


def test_dialogues_have_six_to_twelve_utterances():
    lengths = {len(record["dialog"]) for record in RECORDS}
    assert min(lengths) >= 6
    assert max(lengths) <= 12


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_every_split_holds_all_ten_topics_evenly(split):
    counts = Counter(record["topic"] for record in RECORDS if record["split"] == split)
    assert counts.keys() == TOPICS
    assert len(set(counts.values())) == 1


def test_every_utterance_has_an_act_and_an_emotion_of_dailydialogs():
    for record in RECORDS:
        assert len(record["dialog"]) == len(record["act"]) == len(record["emotion"])
        assert set(record["act"]) <= {1, 2, 3, 4}
        assert set(record["emotion"]) <= set(range(7))


def test_no_utterance_of_more_than_six_words_stands_twice():
    long = Counter(u.lower() for u in UTTERANCES if len(re.findall(r"\w+", u)) > 6)
    assert [u for u, count in long.items() if count > 1] == []


def test_shares_of_acts_among_replies_are_dailydialogs():
    counts = Counter(act for record in RECORDS for act in record["act"][1:])
    shares = [100 * counts[act] / counts.total() for act in (1, 2, 3, 4)]
    assert shares == pytest.approx([48, 26, 15, 11], abs=3)


def test_punctuation_is_spaced_as_in_dailydialog():
    assert [u for u in UTTERANCES if space_punctuation(u) != u] == []


def test_utterances_are_plain_ascii_and_free_of_markers():
    assert all(u.isascii() and u.isprintable() and u for u in UTTERANCES)
    assert not any(EOU in u or "__eou__" in u for u in UTTERANCES)


def test_every_utterance_ends_like_a_sentence():
    assert [u for u in UTTERANCES if u.rstrip(' "').rsplit(" ", 1)[-1] not in {".", "?", "!", "..."}] == []


def test_distinct_four_grams_are_no_rarer_than_in_dailydialog():
    if not DAILYDIALOG.exists():
        pytest.skip("needs the DailyDialog release in ../shared/data/dailydialog")

    def four_grams(utterances):
        for words in (u.lower().split() for u in utterances):
            yield from zip(words, words[1:], words[2:], words[3:], strict=False)

    ours = list(four_grams(UTTERANCES))
    dialogues = list(load_dialogues(str(DAILYDIALOG), "train"))
    random.Random(0).shuffle(dialogues)
    theirs = list(four_grams(u for dialogue in dialogues for u in dialogue.utterances))[: len(ours)]
    assert len(theirs) == len(ours)
    assert len(set(ours)) >= len(set(theirs))
