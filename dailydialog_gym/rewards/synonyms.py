"""WordNet's synonyms from the embedded table."""

from __future__ import annotations

import gzip
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


@lru_cache(maxsize=1 << 16)  # bounded: an exploring policy never stops inventing words
def synonyms(word: str) -> frozenset[str]:
    """The names that WordNet 3.0 has for what a word may mean, as NLTK's METEOR sees them.

    Names that METEOR can't match (several words, or capitals) are left out. Not covered: words that themselves contain
    an underscore ("hot_dog").

    >>> sorted(synonyms("bigger") & {"large", "heavy", "tea"})
    ['heavy', 'large']
    """
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
