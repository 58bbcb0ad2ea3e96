"""Screens of the command line in terminals that cannot show every character."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest
from support.command_line import run_ctclip_process
from support.paths import ROOT

from flows.streams import replace_unshowable
from tasks.run.publish import publish
from tasks.run.records import RecordWriter, new_run_id

ASCII_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
NARROW = [
    pytest.param({"PYTHONIOENCODING": "ascii"}, id="ascii"),
    pytest.param({"PYTHONIOENCODING": "iso-8859-1"}, id="iso-8859-1"),
    pytest.param(ASCII_LOCALE, id="C"),
]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    """Warehouse whose volumes changed from one recipe to another, which a plan shows with an arrow."""
    folder = tmp_path_factory.mktemp("data")
    writer = RecordWriter(folder, new_run_id(folder))
    writer.write("runs", [{"run_id": writer.run_id, "status": "running", "stage": "label", "variant": "Größe → 見"}])
    writer.write("volumes", [{"volume_name": "valid_1_a_1", "fingerprint": "f", "split": "valid"}])
    wanted = {"stage": "label", "variant": "Größe → 見", "item": "valid_1_a", "fingerprint": "f", "is_withdrawn": False}
    writer.write("wanted", [wanted])
    publish(folder)
    return folder


PROGRAM = """
import sys
from flows.cli import run
root = sys.argv[1]
for command in (
    ["--help"], ["doctor"], ["status"], ["plan", "label"],
    ["plan", "gr\\u00f6\\u00dfer\\u2192\\u898b"], ["sql", "--list"],
    ["sql", "select '\\u2192 gr\\u00f6\\u00dfer \\u2026 \\u898b' as text"],
):
    sys.argv = ["ctclip", *command, *([] if command == ["--help"] else ["--data-root", root])]
    print(*command[:2], "ends with", run(), flush=True)
"""


@pytest.mark.parametrize("environment", NARROW)
def test_every_screen_is_printed_in_a_narrow_encoding(data_root, environment):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, data_root], capture_output=True, check=True, timeout=300, cwd=ROOT,
        env=os.environ | {"PREFECT_API_URL": "http://127.0.0.1:9/api"} | environment,
    )  # fmt: skip
    stdout, stderr = (text.decode("iso-8859-1") for text in (done.stdout, done.stderr))
    assert "Unicode" not in stderr
    assert [line.rpartition(" ")[2] for line in stdout.splitlines() if "ends with" in line] == list("0100100")
    assert "ok packages" in stdout
    assert "FAULT Prefect" in stdout
    assert "there is no stage 'gr" in stderr


def test_sql_reads_the_letters_of_an_argument_in_an_ascii_locale(data_root):
    done = run_ctclip_process("sql", "select length('größer') as count", "--data-root", data_root, **ASCII_LOCALE)
    assert done.stdout.split() == ["count", "6"]


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", "ok -> gro?er x 2 ?"), ("iso-8859-1", "ok -> größer \xd7 2 ?"), ("utf-8", "✓ → größer \xd7 2 見")],
)
def test_characters_have_stand_ins_where_they_cannot_be_shown(monkeypatch, encoding, shown):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    replace_unshowable()
    sys.stdout.write("✓ → größer \xd7 2 見")
    sys.stdout.flush()
    assert written.getvalue().decode(encoding) == shown


def test_a_name_of_bytes_that_are_no_text_is_shown(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(written, "utf-8"))
    replace_unshowable()
    sys.stderr.write(os.fsdecode(b"scan-\xff.nii"))
    sys.stderr.flush()
    assert written.getvalue() == b"scan-?.nii"


def test_our_own_files_are_read_as_utf_8_in_every_locale():
    named = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for package in ("ctclip_model", "warehouse", "tasks", "flows")
        for path in (ROOT / package).rglob("*.py")
        for line in path.read_text("utf-8").splitlines()
        if ".read_text()" in line
    ]
    assert not named
