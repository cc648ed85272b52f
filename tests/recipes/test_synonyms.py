import gzip
import shutil
from pathlib import Path

import nltk
import numpy as np
import pytest
from nltk.corpus.reader.wordnet import WordNetCorpusReader
from nltk.stem.porter import PorterStemmer
from nltk.tokenize import word_tokenize
from nltk.translate.meteor_score import single_meteor_score
from nltk_synonyms import Synonyms
from paths import DAILYDIALOG

from dailydialog_gym.embedded import ASSETS
from dailydialog_gym.env.dialogues import load_dialogues
from dailydialog_gym.recipes import synonyms as recipe
from dailydialog_gym.rewards.meteor import meteor
from dailydialog_gym.rewards.synonyms import synonyms

TABLE = ASSETS / "synonyms.txt.gz"
WORDNET = Path("/usr/share/wordnet")
needs_wordnet = pytest.mark.skipif(not WORDNET.exists(), reason=f"needs {WORDNET} (Debian's package wordnet-base)")


class NoSynonyms:
    def synsets(self, word):
        return []


class WordNet(WordNetCorpusReader):
    def map_wn(self, version="wordnet"):
        """None: the map to other versions of WordNet needs `index.sense`, which is in another package."""


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory):
    """NLTK's own reader on the whole of WordNet 3.0."""
    folder = tmp_path_factory.mktemp("nltk") / "wordnet"
    shutil.copytree(WORDNET, folder, ignore=lambda _, names: [name for name in names if "." not in name])
    # Debian leaves out the lexicographers' files' names, which NLTK wants and synonyms don't.
    (folder / "lexnames").write_text("".join(f"{i:02}\tfile{i}\t0\n" for i in range(45)), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, pytest.warns(UserWarning, match="multilingual"):
        patch.setattr(nltk.data, "path", [str(folder), *nltk.data.path])
        yield WordNet(str(folder), None)


def matches(wordnet, word):
    """The synonyms that METEOR can match with a word in lower case."""
    names = {lemma.name() for synset in wordnet.synsets(word) for lemma in synset.lemmas()}
    return {name for name in names if "_" not in name and name == name.lower()}


def utterances(dataset, split):
    return [text for dialogue in load_dialogues(dataset, split, raw_split=True) for text in dialogue.utterances]


@needs_wordnet
def test_synonyms_are_those_of_the_whole_wordnet(wordnet):
    texts = [text for split in ("train", "validation", "test") for text in utterances("builtin", split)]
    words = {word for text in texts for word in word_tokenize(text, preserve_line=True)}
    lemmas = sorted(word for word in wordnet._lemma_pos_offset_map if "_" not in word)[::40]
    irregular = [form for part in "nvar" for form in wordnet._exception_map[part] if "_" not in form][::10]
    words.update(PorterStemmer().stem(word) for word in list(words))
    words.update(lemmas, irregular, *((word + "s", word + "ed", word + "er") for word in lemmas))
    ours = Synonyms()
    assert {word for word in words if matches(ours, word) != matches(wordnet, word)} == set()
    assert sum(len(matches(ours, word)) > 1 for word in words) > 1000


@needs_wordnet
def test_meteor_is_nltks_with_the_whole_wordnet(wordnet):
    texts = utterances(str(DAILYDIALOG), "test") if DAILYDIALOG.exists() else utterances("builtin", "train")
    pairs = np.random.default_rng(0).choice(texts, (2000, 2))
    words = [[word_tokenize(text, preserve_line=True) for text in pair] for pair in pairs]
    expected, without = (
        [single_meteor_score(reference, response, wordnet=source) for response, reference in words]
        for source in (wordnet, NoSynonyms())
    )
    assert [meteor(*pair) for pair in pairs] == expected
    assert np.mean(np.array(expected) != without) > 0.1


@pytest.mark.parametrize(
    ("word", "synonym"),
    [
        ("big", "large"),
        ("went", "go"),  # irregular
        ("churches", "church"),  # by a rule
        ("Movie", "film"),
        ("better", "good"),  # irregular as an adjective
        ("better", "well"),  # and as an adverb
        ("comics", "funnies"),  # irregular, by way of "comic_strip"
        ("quaker", "trembler"),  # a name with a capital finds the synset
    ],
)
def test_synonym(word, synonym):
    assert synonym in synonyms(word)


def test_names_that_meteor_cannot_match_are_left_out():
    for word in ("movie", "france", "quaker", "comics", "1"):
        assert all(name == name.lower() and "_" not in name for name in synonyms(word))


@pytest.mark.parametrize("word", ["", "?", "<EOU>", "xyzzy", "é", "你好", "👍", "ed", "the", "larg"])
def test_word_without_synonyms(word):
    assert synonyms(word) == set()


@pytest.mark.parametrize(
    ("response", "reference"),
    [("he went home", "he go home"), ("my car stopped", "my auto stopped"), ("i am sick", "i am ill")],
)
def test_meteor_counts_synonyms_as_matches(response, reference):
    assert meteor(response, reference) == meteor(reference, reference)


def test_meteor_looks_for_synonyms_among_stems_as_nltk_does():
    assert meteor("big", "large") == 0  # the reference's stem is "larg"
    assert meteor("buy", "purchase") == 0


def test_table_is_small():
    assert TABLE.stat().st_size < 500_000
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in (ASSETS / "WORDNET-LICENSE.txt").read_text(
        encoding="utf-8"
    )


@needs_wordnet
def test_rebuilt_table_is_the_embedded_one(tmp_path):
    for name in ("one.gz", "two.gz"):
        recipe.main(recipe.Args(out=tmp_path / name, wordnet=WORDNET))
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "two.gz").read_bytes()
    # Uncompressed, as another version of zlib may pack the same text differently
    assert gzip.decompress((tmp_path / "one.gz").read_bytes()) == gzip.decompress(TABLE.read_bytes())
