"""Selection of volumes or scans by split, names and number, as users give it."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ctclip_model.data.names import EXTERNAL, parse_any_name, split_of
from ctclip_model.errors import BadNameError, ConfigurationError, MissingInputError
from tasks.run.splits import require_split
from warehouse import store

WILDCARDS = frozenset("*?[")
NAMES_SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Selection:
    """Selection among a stage's pending items. Default: all of them.

    Raises `ConfigurationError` for an unknown split, and for `volumes` that is neither a file of names, a name nor a
    glob.
    """

    split: str | None = None
    volumes: str | None = None  # file with a name per line, a name, or a glob over names
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.split not in (None, "train", "valid", EXTERNAL):
            raise ConfigurationError(f"there is no split {self.split!r}: choose train, valid or {EXTERNAL}")
        _ = self._names

    def choose(self, items: Collection[str]) -> list[str]:
        """Selected items in their given order. Items are volume names or scan_ids."""
        chosen = [item for item in items if self.split is None or split_of(item) == self.split]
        return [item for item in chosen if self._has(item)][: self.limit]

    def check(self, data_root: Path) -> None:
        """Raises `ConfigurationError` for names that were never ingested, and if no ingested volume is selected."""
        if self.volumes is None:
            return
        known = [name for (name,) in store.query(data_root, "select volume_name from current_volumes")]
        if unknown := sorted((self._names or set()) - set(known)):
            shown = ", ".join(unknown[:NAMES_SHOWN]) + (", …" if len(unknown) > NAMES_SHOWN else "")
            raise ConfigurationError(f"--volumes {self.volumes}: names that were never ingested: {shown}")
        if not self.choose(known):
            of_split = f" of the {self.split} split" if self.split else ""
            raise ConfigurationError(f"--volumes {self.volumes} selects none of the ingested volumes{of_split}")

    def require_files(self, data_root: Path) -> None:
        """Raises as `check`, and `MissingInputError` if no selected volume has a file in its source."""
        require_split(data_root, self.split)
        self.check(data_root)
        sql = "select volume_name from current_volumes where size_bytes is not null"
        if not self.choose([name for (name,) in store.query(data_root, sql)]):
            raise MissingInputError(f"--volumes {self.volumes}: no selected volume has a file in its source")

    def _has(self, item: str) -> bool:
        if self.volumes is None:
            return True
        if self._names is not None:
            return item in self._names
        return fnmatch.fnmatchcase(item, self.volumes.removesuffix(".nii.gz"))

    @cached_property
    def _names(self) -> set[str] | None:
        """Names that `volumes` lists, or None if it is a glob, or all volumes are meant."""
        return None if self.volumes is None else _read_names(self.volumes)


EVERYTHING = Selection()


def _read_names(text: str) -> set[str] | None:
    """Names of a file, or a single name. None: a glob. Raises `ConfigurationError` for anything else."""
    path = Path(text)
    try:
        if path.is_file():
            names = path.read_text(encoding="utf-8-sig").split()
        elif WILDCARDS & set(text):
            return None
        else:
            names = [text]
        parsed = {str(parse_any_name(name)) for name in names}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--volumes {text}: the file cannot be read: {error}") from error
    except BadNameError as error:
        problem = error if path.is_file() else "is no file, no name of a volume, and no glob such as 'valid_1_*'"
        raise ConfigurationError(f"--volumes {text}: {problem}") from error
    if not parsed:
        raise ConfigurationError(f"--volumes {text}: the file names no volume")
    return parsed
