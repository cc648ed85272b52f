"""METEOR against the reference reply (Banerjee and Lavie 2005), as NLTK computes it."""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np
from nltk.stem.porter import PorterStemmer
from nltk.tokenize import NLTKWordTokenizer
from nltk.translate.meteor_score import single_meteor_score

from dailydialog_gym.rewards.episodes import Episodes
from dailydialog_gym.rewards.synonyms import Synonyms


class _Stemmer:
    """Porter's stemmer with a memory: NLTK stems every word of every pair anew."""

    def __init__(self):
        # Bounded: an exploring policy never stops inventing words.
        self.stem = lru_cache(maxsize=1 << 16)(PorterStemmer().stem)


_STEMMER, _TOKENIZER = _Stemmer(), NLTKWordTokenizer()
_WORD = r"(?:\w+(?:[-.]\w+)*(?:'(?:[dmst]|ll|re|ve))?|[,.;:?!\u2019]|\.\.\.)"
_SPACED = re.compile(f"{_WORD}(?: {_WORD})*")
_CLITIC = re.compile("('(?:[dms]|ll|re|ve)|n't)(?![^ ])")
_CONTRACTION = re.compile(r"\b(?:cannot|gimme|gonna|gotta|lemme|wanna)\b", re.IGNORECASE)


@lru_cache(maxsize=1 << 16)  # references come back
def words(text: str) -> tuple[str, ...]:
    """The words of a text as NLTK's `word_tokenize` cuts them.

    NLTK's tokenizer takes two thirds of METEOR's time, for some 30 substitutions. In a text in DailyDialog's spacing
    only clitics are left to cut, so that such texts need one; the others go to NLTK.

    >>> words("I don't know , it's OK .")
    ('I', 'do', "n't", 'know', ',', 'it', "'s", 'OK', '.')
    """
    if _SPACED.fullmatch(text) and not _CONTRACTION.search(text):
        return tuple(_CLITIC.sub(r" \1", text).split())
    return tuple(_TOKENIZER.tokenize(text))


def meteor(response: str, reference: str) -> float:
    """METEOR of one pair, in [0, 1]: NLTK's, with alpha 0.9, beta 3, gamma 0.5, exact, stem and synonym matches.

    Words are cut as in the `evaluate` library's METEOR (Treebank rules), synonyms are WordNet 3.0's, from an embedded
    table. NLTK looks for synonyms among stems, so it misses those that Porter's stemmer changes ("large" becomes
    "larg"). An empty response scores 0.

    >>> meteor("I like green tea .", "I like green tea .")
    0.996
    >>> meteor("", "Yes .")
    0.0
    """
    response_words, reference_words = words(response), words(reference)
    if not response_words or not reference_words:
        return 0.0
    # What NLTK compares in its last stage is the stems of lower-cased words.
    candidates = frozenset(_STEMMER.stem(word.lower()) for word in reference_words)
    return single_meteor_score(reference_words, response_words, stemmer=_STEMMER, wordnet=Synonyms(candidates))


class Meteor:
    """Scorer: `meteor` of each reply against its reference."""

    def __call__(self, episodes: Episodes) -> np.ndarray:
        return np.array([meteor(*pair) for pair in zip(episodes.responses, episodes.references, strict=True)])
