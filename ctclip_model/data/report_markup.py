"""Report texts without the markup of their carriers: HTML, RTF, quoted-printable, and the escapes of HL7 and JSON."""

from __future__ import annotations

import html
import quopri
import re

_INLINE = """a abbr acronym b bdi bdo big cite code data del dfn em font i img ins kbd label mark nobr o:p q s samp
small span strike strong sub sup time tt u var wbr"""
INLINE_TAGS = frozenset(_INLINE.split())  # every other tag ends a line
_FLAGS = frozenset(("checked", "compact", "disabled", "noshade", "nowrap", "selected", "/"))  # attributes without "="

# A comment holds no other one, so that many unclosed ones are read once.
_HIDDEN = re.compile(
    r"<!--(?:(?!<!--).)*?-->|<(style|script)\b[^<>]*>(?:(?!<\1\b).)*?</\1\s*>", re.IGNORECASE | re.DOTALL
)
_CDATA = re.compile(r"<!\[CDATA\[|\]\]>")
_DECLARATION = re.compile(r"<[!?][a-z\[/][^<>]*>", re.IGNORECASE)
_TAG = re.compile(r"</?([a-z][\w:.-]*+)([^<>]*)>([^\S\n]*+\n?)", re.IGNORECASE)

_SOFT_LINE_END = re.compile(r"=\r?\n")
_RTF_TABLE = re.compile(r"\{\\(?:\*|fonttbl|colortbl|stylesheet|info)[^{}]*+(?:\{[^{}]*+\}[^{}]*+)*+\}")
_RTF_LETTER = re.compile(r"\\'([0-9a-f]{2})", re.IGNORECASE)
_RTF_LINE_END = re.compile(r"\\(?:par|line|page|sect|row|cell)\b ?")
_RTF_WORD = re.compile(r"\\[a-z]+-?\d* ?|[{}]")

_LINE_END = re.compile(r"\\(?:par|line)\b ?|\\X(?:0[AD])+\\|\\\.(?:br|sp)\d*\\|(?:\\r)?\\n|_x000D_", re.IGNORECASE)
_SPACE = re.compile(r"\\[TFSREHN]\\|\\tab\b ?|\\t")


def strip_markup(text: str) -> str:
    """A text with line ends where tags, escapes and control words end a line, and without the others.

    A "<" before a letter is a tag if a ">" follows and, between them, only a name or a name and attributes.

    >>> strip_markup("<dd>No <b>mass</b></dd><dd>a<b and c>d</dd>")
    '\\nNo mass\\n\\na<b and c>d\\n'
    """
    if "=" in text and text.isascii() and _SOFT_LINE_END.search(text):
        text = quopri.decodestring(text.encode()).decode("utf-8", "replace")
    if text.startswith("{\\rtf"):
        text = _strip_rtf(text)
    text = _strip_html(text)
    return _LINE_END.sub("\n", _SPACE.sub(" ", text)) if "\\" in text or "_x000" in text else text


def _strip_rtf(text: str) -> str:
    text = _RTF_LINE_END.sub("\n", _RTF_TABLE.sub("", text.replace("\r", "").replace("\n", "")))
    text = _RTF_LETTER.sub(lambda match: bytes.fromhex(match[1]).decode("cp1252", "replace"), text)
    return _RTF_WORD.sub("", text)


def _strip_html(text: str) -> str:
    if "&" in text:
        text = html.unescape(html.unescape(text))
    if "<" not in text:
        return text
    return _TAG.sub(_resolve_tag, _DECLARATION.sub("", _CDATA.sub("", _HIDDEN.sub("", text))))


def _resolve_tag(match: re.Match[str]) -> str:
    """A line end for a tag that ends a line, what follows it for an inline one, and the match for what is no tag."""
    name, attributes, following = match.groups()
    if "=" not in attributes and not _FLAGS.issuperset(attributes.lower().replace("/", " / ").split()):
        return match[0]
    return following if name.lower() in INLINE_TAGS or ":" in name else "\n"
