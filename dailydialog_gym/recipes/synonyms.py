"""Build the embedded synonym table from the files of WordNet 3.0, which are in Debian's package ``wordnet-base``.

    python -m dailydialog_gym.recipes.synonyms --wordnet /usr/share/wordnet --out dailydialog_gym/assets/synonyms.txt.gz

The table is a text file: a header, and then for each part of speech, in NLTK's order, its synsets and its exception
list, with a blank line between all parts. A line is one synset, by its names of a single word. METEOR cannot match
names with capitals, but a lower-case word can find a synset by them ("quaker" finds `Quaker trembler`). A name of
several words is only kept if the exception list leads from a word to it (from "comics" to `comic_strip`).
"""

from __future__ import annotations

import gzip
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from dailydialog_gym.errors import run_script
from dailydialog_gym.files import check_output, read_text

PARTS = ("noun", "verb", "adj", "adv")
HEADER = """\
Derived from WordNet 3.0: single-word names of synsets, and exception lists.
WordNet 3.0 Copyright 2006 by Princeton University.  All rights reserved.
The licence is WORDNET-LICENSE.txt."""


@dataclass
class Args:
    out: Path
    """the gzip file to write"""
    wordnet: Path = Path("/usr/share/wordnet")
    """folder with WordNet's files, such as `data.noun` and `noun.exc`"""


def read_synsets(path: Path, bases: set[str]) -> set[frozenset[str]]:
    """The names of each synset in a data file (see wndb(5WN)) that are single words or in ``bases``.

    A synset that METEOR can match by none of its names is left out.
    """
    synsets = set()
    for line in read_text(path).splitlines():
        if line.startswith("  "):  # the licence
            continue
        fields = line.split(" ")
        count = int(fields[3], 16)
        words = (re.sub(r"\(\w+\)$", "", word) for word in fields[4 : 4 + 2 * count : 2])  # "galore(ip)"
        names = frozenset(word for word in words if "_" not in word or word in bases)
        if any(name == name.lower() and "_" not in name for name in names):
            synsets.add(names)
    return synsets


def without_subsets(synsets: set[frozenset[str]]) -> list[frozenset[str]]:
    """The synsets that are not a subset of another one, which has all of their words' synonyms."""
    of_word = defaultdict(list)
    for names in synsets:
        for name in names:
            of_word[name].append(names)
    return [names for names in synsets if not any(names < other for other in of_word[min(names)])]


def read_exceptions(path: Path) -> dict[str, str]:
    """The base forms of each irregular form; if a form has two lines, the last one counts, as in NLTK."""
    lines = read_text(path).splitlines()
    return {form: bases for form, bases in (line.split(" ", 1) for line in lines) if "_" not in form}


def main(args: Args) -> None:
    check_output(args.out, "--out")
    if not args.wordnet.is_dir():
        raise ValueError(f"--wordnet {args.wordnet} is not a folder: install Debian's package wordnet-base")
    blocks = [HEADER]
    for part in PARTS:
        exceptions = read_exceptions(args.wordnet / f"{part}.exc")
        bases = {base for line in exceptions.values() for base in line.split()}
        synsets = without_subsets(read_synsets(args.wordnet / f"data.{part}", bases))
        blocks.append("\n".join(sorted(" ".join(sorted(names)) for names in synsets)))
        blocks.append("\n".join(f"{form} {bases}" for form, bases in sorted(exceptions.items())))
        print(f"{part}: {len(synsets):,} synsets, {len(exceptions):,} exceptions")
    # Without a name and a time in the gzip header, the same files give the same bytes.
    with args.out.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as table:
        table.write(("\n\n".join(blocks) + "\n").encode())
    print(f"{args.out}: {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    run_script(main, Args, __doc__)
