"""Report texts without their layout: sentences in lower case, whatever wrapped, tagged or capitalised them."""

from __future__ import annotations

import math
import re
import unicodedata
from itertools import compress, pairwise

from ctclip_model.data.report_markup import strip_markup

_COMPOUNDS = """air anterior band contrast cross effusion fluid follow free ground high hilar left lesion low lytic mass
mid nodule non oval pleural pericardial right soft solid space superior thick thickening thin upper lower well wide"""
_LINKS = """a an and any are as at be been but by for from has have in is nor not of on or than that the their there
these this those to was were which who with without"""
COMPOUNDS = frozenset(_COMPOUNDS.split())  # at a line end "ground-" keeps its hyphen, "effu-" loses it
LINKS = frozenset(_LINKS.split())  # words that neither end nor begin a point of a list
ABBREVIATIONS = frozenset(("approx", "cf", "dr", "etc", "fig", "incl", "prof", "resp", "vs"))
MIN_COLUMNS = 30  # shortest line that wraps a text; shorter ones are a list
MAX_CAPITALS = 0.1  # share of the characters; capital first letters of all words are 0.15

_LATE_BYTE = "[\u0080-\u00bf" + bytes(range(0x80, 0xC0)).decode("cp1252", "ignore") + "]"
_MISREAD = re.compile(f"[\u00c2-\u00c5]{_LATE_BYTE}|[\u00e2\u00ef]{_LATE_BYTE}{{2}}")  # UTF-8 read as a Latin code page
_QUOTED = re.compile("^(?:> ?)+", re.MULTILINE)  # the mark of a quoted line of a letter
_LETTERS = str.maketrans(
    dict.fromkeys("'\"`\u2018\u2019\u201a\u201c\u201d\u201e\u00b4")
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-")
    | {"\N{LATIN SMALL LETTER DOTLESS I}": "i", "\N{IDEOGRAPHIC FULL STOP}": ". "}
    | dict.fromkeys("\r\v\f\x1c\x1d\x1e\x85\u2028\u2029", "\n")
)
# A soft hyphen shows at a line end alone.
_SHOWN_HYPHEN = re.compile("\u00ad(?=[^\\S\n]*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029])")
# Combining accents, soft hyphens, zero-width characters, marks of direction and of variation.
_INVISIBLE = re.compile("[\u0300-\u036f\u00ad\u034f\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufe00-\ufe0f\ufeff]")
_HALF = re.compile(r"[^\W\d_]-$")  # the first half of a word that a line end cuts
_GAP_BEFORE_CAPITAL = re.compile(r"[^\S\n]{2,}(?=[A-Z][a-z])")  # separates points where quotation marks were removed
_POINT = re.compile(r"\s*(?:[-*+\u2022\u00b7\u25aa\u25cf]|\(?\d{1,2}[.)])\s+(?=\S)")  # the mark of a point of a list
# A question mark before an answer ends no sentence.
_ANSWER = re.compile(r"(?:no|none|nil|not|absent|yes|negative)\b", re.IGNORECASE)
# A stop before a space, a letter or a separator of fields. Decimals have none of them. A separator between words.
# The first set of characters makes the search fast.
_STOP = re.compile(
    r"[.!?;~^|\u2022\u00b7](?:(?<=[.!?;])(?:\s*[~^|]+\s*|\s+)|(?:(?<=[.!;])|(?<=[^\s(]\?)|(?<=[^\W\d_][~^|]))(?=[^\W\d_])"
    r"|(?<=\s[\u2022\u00b7|])\s)"
)


def normalise_report(text: str) -> str:
    """A report as sentences in lower case, each with its stop, one space apart.

    Undoes Unicode's look-alikes (NFKC, accents, the Turkish dotted and dotless i, soft hyphens, zero-width characters,
    ligatures), markup, hyphenated line ends, wrapped lines, repeated spaces, and stops without a space after them. The
    points of a list become sentences. A normalised text stays as it is.

    >>> normalise_report("No mass.Pleural effu-\\nsion was<br/>NOT seen")
    'no mass. pleural effusion was not seen.'
    """
    return " ".join(split_statements(text))


def split_statements(text: str) -> list[str]:
    """The sentences of a report as `normalise_report` writes them."""
    lines = _STOP.sub(_end_sentence, _resolve_lines(_fold(strip_markup(text)))).lower().split("\n")
    sentences = (_strip_point(" ".join(line.split())).rstrip(" ;") for line in lines)
    return [sentence if sentence[-1] in ".!?" else f"{sentence}." for sentence in sentences if sentence]


def _fold(text: str) -> str:
    """Letters without accents and invisible characters, and one kind of line end."""
    if not text.isascii():
        text = _SHOWN_HYPHEN.sub("-", _MISREAD.sub(_decode_again, text))
    text = text.replace("\r\n", "\n").translate(_LETTERS)
    if not text.isascii():
        text = _INVISIBLE.sub("", unicodedata.normalize("NFKD", text)).translate(_LETTERS)
    return _QUOTED.sub("", text) if ">" in text else text


def _decode_again(match: re.Match[str]) -> str:
    return b"".join(char.encode("cp1252" if ord(char) > 0xFF else "latin-1") for char in match[0]).decode("utf-8")


def _resolve_lines(text: str) -> str:
    """A text whose line ends are ends of sentences or of points of a list. Wrapped lines and halves are joined."""
    if "\n" not in text and "  " not in text:
        return text
    has_capitals = _has_sentence_case(text)
    lines = _drop_spacing(text.split("\n"))
    columns = _guess_columns(lines, has_capitals)
    joined = [_strip_point(lines[0])]
    for line, following in pairwise(lines):
        joint = _choose_joint(line, following, columns - len(line), has_capitals)
        if joint != "\n":
            joined[-1], following = joined[-1].rstrip(), following.lstrip()
        if not joint and line.split()[-1].rpartition("-")[0].lower() not in COMPOUNDS:
            joined[-1] = joined[-1][:-1]
        joined += [joint, _strip_point(following)]
    text = "".join(joined)
    return _GAP_BEFORE_CAPITAL.sub("\n", text) if has_capitals else text


def _drop_spacing(lines: list[str]) -> list[str]:
    """Lines without the blank ones, where a blank one follows each."""
    is_filled = [bool(line.strip()) for line in lines]
    is_spaced = not any(one and other for one, other in pairwise(is_filled))
    return list(compress(lines, is_filled)) if is_spaced and any(is_filled) else lines


def _guess_columns(lines: list[str], has_capitals: bool) -> float:
    """The width at which a text is wrapped: 0 where every line without a stop goes on, infinite for a list."""
    if not has_capitals and _is_prose(lines):
        return 0
    return longest if (longest := max(map(len, lines))) >= MIN_COLUMNS else math.inf


def _is_prose(lines: list[str]) -> bool:
    """True if stops, not line ends, separate the sentences: a line without one at its end goes on."""
    stops = sum(len(re.findall(r"[.!?]\s+[^\W\d_]", line)) for line in lines)
    return 2 * stops >= sum(not line.rstrip().endswith((".", "!", "?")) for line in lines)


def _choose_joint(line: str, following: str, room: float, has_capitals: bool) -> str:
    """A line end between sentences or points, a space in a wrapped sentence, nothing between the halves of a word."""
    words, next_words = line.split(), following.split(maxsplit=1)
    if not words or not next_words or _POINT.match(following):
        return "\n"
    if _HALF.search(words[-1]) and next_words[0][0].isalpha():
        return ""
    return " " if _is_wrapped(words[-1], next_words[0], room, has_capitals) else "\n"


def _has_sentence_case(text: str) -> bool:
    """True if a text has capitals, though not in most words."""
    return 0 < len(re.findall("[A-Z]", text)) < len(text) * MAX_CAPITALS


def _is_wrapped(last: str, first: str, room: float, has_capitals: bool) -> bool:
    """True if one sentence goes on over a line end: a word links its halves, or the line had no room for the next."""
    if last.lower() in LINKS or last.endswith(","):
        return True
    if first.lower() in LINKS:
        return not (has_capitals and first[0].isupper())
    if has_capitals and first[0].isalpha() and not first.isupper():
        return first.islower()
    return len(first) >= room


def _end_sentence(match: re.Match[str]) -> str:
    """A stop with a line end, or without one after an abbreviation or before the answer to a question."""
    stop, text = match[0][0], match.string
    if stop == ".":
        word = re.split(r"[ .]", text[max(0, match.start() - 8) : match.start()].lower())[-1]
        if (len(word) == 1 and word.isalpha()) or word in ABBREVIATIONS:
            return match[0][1:]
    if stop == "?" and _ANSWER.match(text, match.end()):
        return "? "
    return f"{stop}\n" if stop in ".!?;" else "\n"


def _strip_point(line: str) -> str:
    match = _POINT.match(line)
    return line[match.end() :] if match else line
