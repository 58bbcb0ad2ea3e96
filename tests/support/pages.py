"""Blocks of code in Markdown pages, run one after the other as a reader would."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.command_line import run_ctclip
from support.paths import ROOT
from warehouse import store

FENCE = re.compile(r"(?:^<!-- not run: (?P<reason>.+) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S)
RUN = ("sh", "sql", "python")


@dataclass(frozen=True)
class Block:
    """A fenced block. `reason` says why it cannot be run here, and is empty for a block that is run."""

    page: str
    line: int
    language: str
    code: str
    reason: str


def read_blocks(path: Path) -> list[Block]:
    """Blocks of a page in their order. A line `<!-- not run: REASON -->` above a block leaves it out."""
    text = path.read_text()
    return [
        Block(
            path.name, text[: match.start("code")].count("\n"), match["language"], match["code"], match["reason"] or ""
        )
        for match in FENCE.finditer(text)
    ]


def run_blocks(path: Path, data_root: Path, replaced: Mapping[str, str]) -> list[Block]:
    """Runs the blocks of a page in the current folder and returns them. A block that fails raises `AssertionError`.

    `replaced` has what a page calls by a name of the reader's, or makes too large for a test.
    """
    done, names = [], {}
    for block in read_blocks(path):
        if block.language in RUN and not block.reason:
            code = block.code
            for name, value in replaced.items():
                code = code.replace(name, value)
            run_block(block, code, data_root, names)
            done.append(block)
    return done


def run_block(block: Block, code: str, data_root: Path, names: dict[str, Any]) -> None:
    """Runs a block. Python blocks of a page share `names`, as in one session."""
    place = f"{block.page}:{block.line}"
    if block.language == "python":
        exec(compile(code, place, "exec"), names)
    elif block.language == "sql":
        store.query(data_root, code)
    else:
        for line in code.replace("\\\n", " ").splitlines():
            run_line(line, place)


def run_line(line: str, place: str) -> None:
    """Runs a line of a shell: `ctclip` and `export` in this process, all else by a shell."""
    words = shlex.split(line, comments=True)
    if not words:
        return
    if words[0] == "export":
        os.environ.update([word.split("=", 1) for word in words[1:]])
        return
    if words[0] == "ctclip":
        done = run_ctclip(*words[1:])
        assert done.returncode == 0, f"{place}: {line}\n{done.stdout}{done.stderr}"
    else:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(["sh", "-ec", line], capture_output=True, text=True, env=environment, timeout=120)
        assert done.returncode == 0, f"{place}: {line}\n{done.stdout}{done.stderr}"
