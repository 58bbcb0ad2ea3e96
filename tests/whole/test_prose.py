"""Prose of code and SQL stays plain: docstrings, help texts, comments and column descriptions."""

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import ROOT

SCANNED = ("benchmarks", "ctclip_model", "flows", "tasks", "tests", "warehouse")
VAGUE_OPENING = re.compile(r"\W*(what|which|of|where|how|whether)\b", re.IGNORECASE)
HALF_SENTENCE = re.compile(r"[#\s-]*(of|that|which|what|by)\b", re.IGNORECASE)
BUT_OF = re.compile(r"\bbut[\s#-]+(of|those)\b", re.IGNORECASE)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def python_prose(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line, kind and text of each docstring, help text and trailing comment of a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
            yield node.body[0].lineno, "docstring", text
        if isinstance(node, ast.keyword) and node.arg in ("help", "description"):
            parts = node.value.values if isinstance(node.value, ast.JoinedStr) else [node.value]
            if isinstance(parts[0], ast.Constant) and isinstance(parts[0].value, str):
                yield node.value.lineno, "help text", parts[0].value
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.COMMENT and token.line[: token.start[1]].strip():
                yield token.start[0], "trailing comment", token.string


def sql_prose(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line, kind and text of the first comment of an SQL file and of its trailing comments."""
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        code, dashes, comment = line.partition("--")
        if dashes and (number == 1 or code.strip()):
            yield number, "trailing comment" if code.strip() else "view comment", comment


def column_prose(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line, kind and text of each column's description."""
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if match := re.match(r'\S+ = "(.*)"$', line):
            yield number, "view comment", match[1]


READERS = {".py": python_prose, ".sql": sql_prose, ".toml": column_prose}


def offences(root: Path, package: str) -> Iterator[tuple[str, str]]:
    """Kind of each offence and its message, with file and line. Migrations never change, so they are left out."""
    for path in sorted((root / package).rglob("*")):
        if path.suffix not in READERS or path.parent.name == "migrations":
            continue
        name, text = path.relative_to(root), path.read_text()
        for match in BUT_OF.finditer(text):
            line = text[: match.start()].count("\n") + 1
            yield "exception", f"{name}:{line}: {match[0]!r}"
        for line, kind, prose in READERS[path.suffix](path):
            if kind == "trailing comment" and HALF_SENTENCE.match(prose):
                yield kind, f"{name}:{line}: half a sentence: {prose}"
            if kind != "trailing comment" and (opening := VAGUE_OPENING.match(prose)):
                yield kind, f"{name}:{line}: {kind} opens with {opening[1]!r}"
            if kind == "docstring" and prose.count(";") > 1:
                yield "semicolons", f"{name}:{line}: {prose.count(';')} semicolons in a docstring"


@pytest.mark.parametrize("package", SCANNED)
def test_prose_is_plain(package):
    found = [message for _, message in offences(ROOT, package)]
    assert not found, "\n".join(found)
