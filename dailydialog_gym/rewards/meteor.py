"""METEOR against the reference reply (Banerjee and Lavie 2005), as NLTK computes it."""

from __future__ import annotations

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


_STEMMER, _SYNONYMS, _TOKENIZER = _Stemmer(), Synonyms(), NLTKWordTokenizer()


@lru_cache(maxsize=1 << 16)  # references come back, and NLTK's tokeniser takes two thirds of METEOR's time
def _words(text: str) -> tuple[str, ...]:
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
    words, reference_words = _words(response), _words(reference)
    if not words or not reference_words:
        return 0.0
    return single_meteor_score(reference_words, words, stemmer=_STEMMER, wordnet=_SYNONYMS)


class Meteor:
    """Scorer: `meteor` of each reply against its reference."""

    def __call__(self, episodes: Episodes) -> np.ndarray:
        return np.array([meteor(*pair) for pair in zip(episodes.responses, episodes.references, strict=True)])
