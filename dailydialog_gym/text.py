"""Conversion between ordinary text and DailyDialog's format, which separates punctuation from words by spaces."""

import re
import unicodedata

# An ellipsis, a word with inner apostrophes and hyphens, a number with inner punctuation, or one punctuation character.
_TOKEN = re.compile(r"\.{2,}|\w+(?:(?:['’-]|(?<=\d)[.,:](?=\d))\w+)*|[^\w\s]")


def space_punctuation(text: str) -> str:
    """Separate punctuation from words by spaces, as in DailyDialog.

    >>> space_punctuation("Don't worry, it's only $5! See you at 6:30.")
    "Don't worry , it's only $ 5 ! See you at 6:30 ."
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
