"""Prints the pip configuration of this machine, for a root folder in which this machine's folders are mounted.

A line `PIP_NAME=value` is an environment variable. Paths in its value begin with `/host`. A line `/path` is a file or
folder of this machine, to be mounted at `/host/path`.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

MOUNTED = "/host"
FILE_URL = "file://"
ENVIRONMENT = ":env:"
LEFT_OUT = {"config-file", "require-virtualenv"}  # the settings of a configuration file are printed themselves


def read_settings(listing: str) -> dict[str, str]:
    """Values by name, from the output of `pip config list`. A variable goes before a command's section, and that
    before `global`."""
    ranked = []
    for line in listing.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if name not in LEFT_OUT:
            rank = {ENVIRONMENT: 2, "global": 0}.get(section, 1)
            ranked.append((rank, name, str(ast.literal_eval(value))))
    return {name: value for _, name, value in sorted(ranked, key=lambda one: one[0])}


def move_path(word: str) -> tuple[str, Path | None]:
    """A word of a value with its path below `/host`, and the path to mount. Other words stay as they are.

    Pages of an index in a folder may name files beside it, so its parent is mounted.
    """
    path = Path(word.removeprefix(FILE_URL))
    if not path.is_absolute() or not path.exists():
        return word, None
    if word.startswith(FILE_URL):
        return f"{FILE_URL}{MOUNTED}{path}", path.parent
    return f"{MOUNTED}{path}", path


def print_lines(settings: Mapping[str, str]) -> Iterator[str]:
    """The lines that this script prints."""
    mounts = set()
    for name, value in settings.items():
        moved = [move_path(word) for word in value.split()]
        mounts |= {path for _, path in moved if path}
        yield f"PIP_{name.upper().replace('-', '_')}={' '.join(word for word, _ in moved)}"
    yield from sorted(map(str, mounts))


if __name__ == "__main__":
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    print("\n".join(print_lines(read_settings(listed.stdout))))
