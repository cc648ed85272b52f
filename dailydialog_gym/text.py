"""DailyDialog's spaced punctuation, and ordinary text: how people's words reach a model and a model's words people."""

import re
import unicodedata

# A word with its inner apostrophes and hyphens, a number with its inner points, dots of omission, or one sign.
_TOKEN = re.compile(r"\.{2,}|\w+(?:(?:['’-]|(?<=\d)[.,:](?=\d))\w+)*|[^\w\s]")


def space_punctuation(text: str) -> str:
    """Ordinary text in DailyDialog's spacing.

    >>> space_punctuation("Don't worry, it's only $5! See you at 6:30.")
    "Don't worry , it's only $ 5 ! See you at 6:30 ."
    """
    return " ".join(_TOKEN.findall(text))


def join_punctuation(text: str) -> str:
    """DailyDialog's spacing as ordinary text.

    >>> join_punctuation("I ’ m fine , Mr . Lee.And you ? I paid $ 5 , 10 % off , at 8 a . m .")
    "I'm fine, Mr. Lee. And you? I paid $5, 10% off, at 8 a.m."
    """
    # DailyDialog has capitals there too (Ve for ve)
    text = re.sub(r"(\w) ?['’] ?(s|m|re|ve|ll|d|t)\b", lambda m: f"{m[1]}'{m[2].lower()}", text, flags=re.IGNORECASE)
    text = re.sub(r"s ' (?=\w)", "s' ", text)  # the residents' group
    text = re.sub(r"\b([ap]) \. m \.", r"\1.m.", text)
    text = re.sub(r" ([,.?!;:%)])", r"\1", text)
    text = re.sub(r"([$£(]) ", r"\1", text)
    text = re.sub(r'(?<![^\s(])" ([^"]*?) "', r'"\1"', text)  # not from a closing quote to the next opening one
    return re.sub(r"([a-z][.?!])([A-Z])", r"\1 \2", text)


def visible(text: str) -> str:
    """A text without signs that can't be seen or that turn the direction of reading: their names stand instead.

    Newlines stay, and so do joiners, without which some scripts and emoji fall apart.

    >>> visible("a\\u202eb\\x00")
    'a⟨U+202E⟩b⟨U+0000⟩'
    """
    return "".join(f"⟨U+{ord(char):04X}⟩" if _is_hidden(char) else char for char in text)


def _is_hidden(char: str) -> bool:
    # control, format, half of a surrogate pair, line and paragraph separators
    return unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char not in "\n\u200c\u200d"
