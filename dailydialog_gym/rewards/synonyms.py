"""WordNet's synonyms from the embedded table, in the shape in which NLTK's METEOR asks for them."""

from __future__ import annotations

import gzip
from collections.abc import Set
from functools import cache, lru_cache

from nltk.corpus.reader.wordnet import POS_LIST, WordNetCorpusReader

from dailydialog_gym.embedded import asset


@cache
def _table() -> dict[str, tuple[dict[str, str], dict[str, str]]]:
    """For each part of speech: word -> names in its synsets; irregular form -> base forms. Both apart by blanks."""
    with asset("synonyms.txt.gz") as path:
        blocks = gzip.decompress(path.read_bytes()).decode().split("\n\n")[1:]
    table = {}
    for part, synsets, exceptions in zip(POS_LIST, blocks[::2], blocks[1::2], strict=True):
        names: dict[str, str] = {}
        for synset in synsets.splitlines():
            for word in synset.lower().split():
                names[word] = f"{names[word]} {synset}" if word in names else synset
        table[part] = names, dict(line.split(" ", 1) for line in exceptions.splitlines())
    return table


class _Lemma(str):
    __slots__ = ()

    def name(self) -> str:
        return self


class _Synset(tuple):
    __slots__ = ()

    def lemmas(self) -> tuple[_Lemma, ...]:
        return self


@lru_cache(maxsize=1 << 16)  # bounded: an exploring policy never stops inventing words
def _synonyms(word: str) -> frozenset[str]:
    word, found = word.lower(), set()
    for part, (names, exceptions) in _table().items():
        if word in exceptions:
            forms = exceptions[word].split()
        else:
            rules = WordNetCorpusReader.MORPHOLOGICAL_SUBSTITUTIONS[part]
            forms = [word[: -len(suffix)] + ending for suffix, ending in rules if word.endswith(suffix)]
        for form in (word, *forms):
            found.update(names.get(form, "").split())
    return frozenset(name for name in found if name == name.lower() and "_" not in name)


class Synonyms:
    """What METEOR sees of WordNet 3.0: `synsets` gives NLTK's METEOR the matches that NLTK's WordNet reader gives it.

    Names that METEOR can't match (several words, or capitals) are left out, and all of a word's synsets are one, since
    METEOR unites them. Not covered: words that themselves contain an underscore ("hot_dog").

    Args:
        among: leave out synonyms other than these: METEOR spends half of its time on lemmas that the reference lacks.

    >>> synonyms = Synonyms(among={"large", "heavy", "tea"})
    >>> sorted(lemma.name() for synset in synonyms.synsets("bigger") for lemma in synset.lemmas())
    ['heavy', 'large']
    """

    def __init__(self, among: Set[str] | None = None):
        self.among = among

    def synsets(self, word: str) -> list[_Synset]:
        lemmas = _synonyms(word) if self.among is None else _synonyms(word) & self.among
        return [_Synset(map(_Lemma, lemmas))] if lemmas else []
