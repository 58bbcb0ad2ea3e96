"""Standard streams of a terminal that cannot show every character, as in ISO-8859-1 or ASCII."""

from __future__ import annotations

import codecs
import io
import sys
import unicodedata

HANDLER = "ctclip-stand-ins"
STAND_INS = {
    "✓": "ok", "✗": "FAULT", "→": "->", "–": "-", "—": "-", "−": "-", "×": "x", "·": "-", "•": "*",  # noqa: RUF001
    "━": "-", "╸": "-", "╺": "-", "─": "-", "≥": ">=", "≤": "<=", "“": '"', "”": '"', "‘": "'", "’": "'",  # noqa: RUF001
}  # fmt: skip


def replace_unshowable() -> None:
    """Makes stdout and stderr replace characters that they cannot encode, where they would raise an error."""
    codecs.register_error(HANDLER, _replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=HANDLER)


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_stand_in, error.object[error.start : error.end])), error.end


def _stand_in(character: str) -> str:
    """ASCII for a character: its stand-in, its letter without an accent, or a question mark."""
    plain = unicodedata.normalize("NFKD", STAND_INS.get(character, character)).encode("ascii", "ignore").decode()
    is_mark = bool(unicodedata.combining(character))
    return plain or ("" if is_mark else "?")
