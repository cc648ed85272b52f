"""WordNet's synonyms, read from an embedded table."""

from __future__ import annotations

import gzip
from functools import cache, lru_cache

from nltk.corpus.reader.wordnet import POS_LIST, WordNetCorpusReader

from dailydialog_gym.embedded import asset


@cache
def _table() -> dict[str, tuple[dict[str, str], dict[str, str]]]:
    """The synonym table.

    Returns:
        For each part of speech two dicts: from a word to the lemma names of all its synsets, and from an irregular form
        to its base forms. Names and forms are separated by spaces.
    """
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


@lru_cache(maxsize=1 << 16)  # bounded, because an exploring policy keeps producing new words
def synonyms(word: str) -> frozenset[str]:
    """The lemma names of all synsets of a word in WordNet 3.0, as NLTK's METEOR uses them.

    Names that METEOR cannot match, because they have several words or capital letters, are left out. Words that contain
    an underscore themselves ("hot_dog") are not supported.

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
