"""Text: DailyDialog's spacing of punctuation and ordinary text, special tokens spelt out, invisible characters."""

import re
import unicodedata
from collections.abc import Iterable
from itertools import islice
from typing import Literal

# "spaced": punctuation is separated from words by spaces, as in DailyDialog; "ordinary": as people write
Spacing = Literal["spaced", "ordinary"]

# For a character class of a regular expression: what belongs to the character before it and is not in \w, combining
# marks (accents, the vowel signs of Hindi, Tamil and other languages), joiners, and the skin tones of emoji.
MARKS = "\u200c\u200d\U0001f3fb-\U0001f3ff" + "".join(
    char for char in map(chr, range(0x300, 0x20000)) if unicodedata.category(char) in ("Mn", "Mc", "Me")
)
# An ellipsis, a word with inner apostrophes and hyphens, a number with inner punctuation, or one punctuation character
# or emoji.
_TOKEN = re.compile(
    rf"\.{{2,}}|[\w{MARKS}]+(?:(?:['’-]|(?<=\d)[.,:](?=\d))[\w{MARKS}]+)*|[^\w\s](?:[{MARKS}]|(?<=\u200d)[^\w\s])*"
)


def space_punctuation(text: str) -> str:
    """Separate punctuation from words by spaces, as in DailyDialog.

    >>> space_punctuation("Don't worry, it's only $5! See you at 6:30.")
    "Don't worry , it's only $ 5 ! See you at 6:30 ."
    >>> space_punctuation("नमस्ते, आप कैसे हैं?")
    'नमस्ते , आप कैसे हैं ?'
    """
    return " ".join(_TOKEN.findall(text))


def join_punctuation(text: str) -> str:
    """Turn text in DailyDialog's format into ordinary text.

    >>> join_punctuation("I ’ m fine , Mr . Lee.And you ? I paid $ 5 , 10 % off , at 8 a . m .")
    "I'm fine, Mr. Lee. And you? I paid $5, 10% off, at 8 a.m."
    """
    # Contractions. DailyDialog also capitalises them ("I ' Ve").
    text = re.sub(r"(\w) ?['’] ?(s|m|re|ve|ll|d|t)\b", lambda m: f"{m[1]}'{m[2].lower()}", text, flags=re.IGNORECASE)
    text = re.sub(r"s ' (?=\w)", "s' ", text)  # "the residents ' group"
    text = re.sub(r"\b([ap]) \. m \.", r"\1.m.", text)
    text = re.sub(r" ([,.?!;:%)])", r"\1", text)
    text = re.sub(r"([$£(]) ", r"\1", text)
    text = re.sub(r'(?<![^\s(])" ([^"]*?) "', r'"\1"', text)  # an opening quote follows a space or "("
    return re.sub(r"([a-z][.?!])([A-Z])", r"\1 \2", text)


def spacing_of(texts: Iterable[str]) -> Spacing:
    """The spacing of most of the first 10,000 texts: whether their marks (.,?!) follow a space.

    >>> spacing_of(["Good morning , Ann !"]), spacing_of(["Good morning, Ann!"])
    ('spaced', 'ordinary')
    """
    marks = [before for text in islice(texts, 10_000) for before in re.findall(r"(.)[.,?!](?=\s|$)", text)]
    return "spaced" if 2 * sum(before == " " for before in marks) > len(marks) else "ordinary"


def convert_spacing(text: str, source: Spacing, target: Spacing) -> str:
    """A text in another spacing; unchanged if the two are the same.

    >>> convert_spacing("Hi , Ann !", "spaced", "ordinary")
    'Hi, Ann!'
    """
    if source == target:
        return text
    return space_punctuation(text) if target == "spaced" else join_punctuation(text)


def pattern_of(names: Iterable[str]) -> re.Pattern[str]:
    """A pattern that matches each of the names, for `spell_out`; nothing if there are none."""
    return re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)) or "(?!)")


def spell_out(text: str, special: re.Pattern[str]) -> str:
    """A text in which the names of special tokens are ordinary words: a blank follows their first character.

    >>> spell_out("Hi <EOU> I agree", pattern_of(["<EOU>"]))
    'Hi < EOU> I agree'
    """
    return special.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)


def escape_invisible(text: str) -> str:
    """Replace invisible characters, and those that change the direction of the text, by their code points.

    Newlines are kept, and so are joiners, which some scripts and emoji need.

    >>> escape_invisible("a\\u202eb\\x00")
    'a⟨U+202E⟩b⟨U+0000⟩'
    """
    return "".join(f"⟨U+{ord(char):04X}⟩" if _is_invisible(char) else char for char in text)


def _is_invisible(char: str) -> bool:
    # Unicode's categories of control and format characters, surrogates, line and paragraph separators
    return unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char not in "\n\u200c\u200d"
