"""Label sets: named lists of findings with prompts. The 18 abnormalities of CT-RATE are built in."""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ctclip_model.config import compute_fingerprint
from ctclip_model.data.abnormalities import ABNORMALITIES, prompt_pair
from ctclip_model.errors import ConfigurationError

BUILT_IN = "ct-rate-18"
LARGEST_FILE_BYTES = 1_000_000
MOST_FINDINGS = 2_000
LONGEST_NAME = 100  # characters
LONGEST_PROMPT = 1_000  # characters
SET_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")  # a part of keys, file names and options
TAKEN_NAMES = frozenset({"macro", "micro"})  # means over abnormalities, in tables of scores
KEYS = ("name", "present", "absent")


@dataclass(frozen=True)
class Finding:
    """A finding and its two prompts. A softmax over both gives the zero-shot probability."""

    name: str
    present: str
    absent: str


@dataclass(frozen=True)
class LabelSet:
    """A named list of findings. Labels, probabilities and heads hold them in this order.

    Raises `ConfigurationError` for a bad name, no finding, two findings of one name, or a missing or bad prompt.
    """

    name: str
    findings: tuple[Finding, ...]

    def __post_init__(self) -> None:
        check_name(self.name, f"label set {self.name!r}")
        if not 0 < len(self.findings) <= MOST_FINDINGS:
            raise ConfigurationError(f"{self.name}: has {len(self.findings)} findings, not 1 to {MOST_FINDINGS}")
        seen: dict[str, str] = {}
        for finding in self.findings:
            _check_finding(finding, self.name)
            earlier = seen.setdefault(fold_name(finding.name), finding.name)
            if earlier is not finding.name:
                raise ConfigurationError(
                    f"{self.name}: the finding {finding.name!r} is there twice, as {earlier!r} too"
                )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(finding.name for finding in self.findings)

    @property
    def prompts(self) -> list[str]:
        """Both prompts of every finding: present, absent, present, ..."""
        return [prompt for finding in self.findings for prompt in (finding.present, finding.absent)]

    @property
    def is_built_in(self) -> bool:
        return self.name == BUILT_IN

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the name, the findings, their order and their prompts."""
        return compute_fingerprint(self.name, [(one.name, one.present, one.absent) for one in self.findings])

    def __len__(self) -> int:
        return len(self.findings)

    def find(self, name: str) -> int | None:
        """Index of a finding by its name, or None. Case, spaces, hyphens and underscores do not matter."""
        return self._indices.get(fold_name(name))

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {fold_name(name): index for index, name in enumerate(self.names)}


def fold_name(name: str) -> str:
    """A finding's name in lower case with single spaces for spaces, underscores and hyphens.

    >>> fold_name(" Pleural_effusion")
    'pleural effusion'
    """
    return " ".join(unicodedata.normalize("NFC", name).casefold().replace("_", " ").replace("-", " ").split())


def check_name(name: str, what: str) -> None:
    """Raises `ConfigurationError` unless a set or a source of labels can be called so. `what` opens the message."""
    if not SET_NAME.fullmatch(name):
        raise ConfigurationError(
            f"{what}: a name has 1 to 64 of a-z, 0-9, point, hyphen and underscore, and opens with a letter or digit"
        )


def read_label_set(path: Path) -> LabelSet:
    """Reads a label set from a TOML file.

    The file holds the set's `name` and, for each finding, a table `[[findings]]` with `name`, `present` and `absent`:

        name = "lung-screening"

        [[findings]]
        name = "Ground-glass nodule"
        present = "A ground-glass nodule is present."
        absent = "There is no ground-glass nodule."

    Raises `ConfigurationError` that names the file and the finding for a fault, and for a file of another form.
    """
    table = _read_table(path)
    _require_keys(table, ("name", "findings"), f"{path}")
    name, rows = table["name"], table["findings"]
    if not isinstance(name, str):
        raise ConfigurationError(f"{path}: name is {name!r}, not a text")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigurationError(f"{path}: findings are tables: each begins with a line [[findings]]")
    try:
        read = LabelSet(name, tuple(_read_finding(row, number) for number, row in enumerate(rows, start=1)))
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from error
    if read.is_built_in and read != CT_RATE_18:
        raise ConfigurationError(f"{path}: {BUILT_IN!r} is the built-in set: choose another name")
    return read


def _read_table(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from error
    if len(content) > LARGEST_FILE_BYTES:
        raise ConfigurationError(f"{path}: is larger than {LARGEST_FILE_BYTES:,} bytes, the limit of a label set")
    try:
        return tomllib.loads(content.decode("utf-8-sig").replace("\r\n", "\n"))
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: is not UTF-8 (byte {error.start})") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{path}: is not TOML ({error})") from error


def _read_finding(row: Mapping[str, Any], number: int) -> Finding:
    label = f"finding {number}"
    if isinstance(row.get("name"), str):
        label += f" ({row['name']!r})"
    for key, prompt in (("present", "prompt of presence"), ("absent", "prompt of absence")):
        if key not in row:
            raise ConfigurationError(f'{label} has no {prompt}: add {key} = "..."')
    _require_keys(row, KEYS, label)
    for key in KEYS:
        if not isinstance(row[key], str):
            raise ConfigurationError(f"{label}: {key} is {row[key]!r}, not a text")
    return Finding(*(row[key] for key in KEYS))


def _require_keys(row: Mapping[str, Any], keys: tuple[str, ...], label: str) -> None:
    for key in keys:
        if key not in row:
            raise ConfigurationError(f"{label}: has no {key}")
    if unknown := sorted(row.keys() - {*keys}):
        raise ConfigurationError(f"{label}: has an unknown key {unknown[0]!r}; the keys are {', '.join(keys)}")


def _check_finding(finding: Finding, set_name: str) -> None:
    label = f"{set_name}: finding {finding.name!r}"
    _check_text(finding.name, LONGEST_NAME, f"{label}: its name")
    if fold_name(finding.name) in TAKEN_NAMES:
        raise ConfigurationError(f"{label}: this name is taken by the mean over all findings")
    _check_text(finding.present, LONGEST_PROMPT, f"{label}: its prompt of presence")
    _check_text(finding.absent, LONGEST_PROMPT, f"{label}: its prompt of absence")
    if finding.present == finding.absent:
        raise ConfigurationError(f"{label}: both prompts are the same, {finding.present!r}")


def _check_text(text: str, longest: int, label: str) -> None:
    """Raises `ConfigurationError` for an empty or long text, outer spaces, or characters that a line cannot show."""
    if not text.strip():
        raise ConfigurationError(f"{label} is empty")
    if text != text.strip():
        raise ConfigurationError(f"{label} begins or ends with a space")
    if len(text) > longest:
        raise ConfigurationError(f"{label} has {len(text)} characters, more than {longest}")
    for character in text:
        # Controls, line breaks, unassigned characters, halves of surrogates and marks that turn the text around.
        if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}:
            raise ConfigurationError(f"{label} holds the character U+{ord(character):04X}, which a line cannot show")


CT_RATE_18 = LabelSet(BUILT_IN, tuple(Finding(name, *prompt_pair(name)) for name in ABNORMALITIES))
