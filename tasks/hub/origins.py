"""Origin and licence of what is pushed, as cards state them."""

from __future__ import annotations

import re

CT_RATE_LICENCE = "cc-by-nc-sa-4.0"  # CT-RATE's licence, which holds for derived models and latents too
LICENCES = {
    CT_RATE_LICENCE: "CC-BY-NC-SA 4.0, as CT-RATE asks for what is made of it: name the source, no commercial use, and "
    "the same licence for what you make of it. Cite Hamamci et al., arXiv:2403.17834."
}
# `ct-rate:/folder` or `file:///folder`, up to the end of the fact that names it
_FOLDER = re.compile(r"(?<![\w/:])(?!https?:|hf:)([a-z][\w-]*):(?://)?/.*?(?=, revision|;| \||\.?$)", re.MULTILINE)


def hide_folders(text: str) -> str:
    """The text without folders of this machine: of a local source, only its kind."""
    return _FOLDER.sub(lambda found: "a local file" if found[1] == "file" else f"{found[1]}, a local folder", text)
