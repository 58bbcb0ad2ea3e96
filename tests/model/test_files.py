"""Atomic writes: old content or new content, never a part, whatever moment a process fails or dies."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

from ctclip_model.files import replace_folder, whole_file

OLD, NEW = "old content", "new content"

# Forks a process for each line of the write, and kills it before that line. Prints the content found after each.
KILL_AT_EVERY_LINE = """
import json, os, signal, sys
from pathlib import Path
from ctclip_model import files

def write_file(path):
    with files.whole_file(path) as file:
        file.write(b"new ")
        file.flush()
        file.write(b"content")

def write_folder(folder):
    with files.replace_folder(folder) as temporary:
        (temporary / "a").write_text("new ")
        (temporary / "b").write_text("content")

def content(path):
    if path.is_dir():
        return "".join(part.read_text() for part in sorted(path.iterdir()))
    return path.read_text() if path.exists() else None

def trace(frame, event, argument):
    global left
    if frame.f_code.co_filename not in (files.__file__, "<string>"):
        return None
    if event == "line":
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
    return trace

write, path, found = globals()[sys.argv[1]], Path(sys.argv[2]), []
status = 1
while status:
    left = len(found)
    if path.is_dir():
        (path / "a").write_text("old ")
        (path / "b").write_text("content")
    elif path.exists():
        path.write_text("old content")
    child = os.fork()
    if not child:
        sys.settrace(trace)
        write(path)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    found.append(content(path))
    if len(sys.argv) > 3 and not path.exists():
        path.mkdir()
print(json.dumps(found))
"""


def kill_at_every_line(function: str, path: Path, *arguments: str) -> list[str | None]:
    command = [sys.executable, "-c", KILL_AT_EVERY_LINE, function, str(path), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, timeout=120)
    found: list[str | None] = json.loads(done.stdout)
    assert found[-1] == NEW  # the last process was not killed
    return found


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def write_old(folder: Path) -> None:
    folder.mkdir()
    (folder / "old").write_text(OLD)


def test_new_file_is_whole_or_absent_whenever_its_writer_is_killed(tmp_path):
    found = kill_at_every_line("write_file", tmp_path / "file")
    assert set(found) == {None, NEW}
    assert visible(tmp_path) == ["file"]


def test_replaced_file_is_the_old_or_the_new_one_whenever_its_writer_is_killed(tmp_path):
    (tmp_path / "file").write_text(OLD)
    assert set(kill_at_every_line("write_file", tmp_path / "file")) == {OLD, NEW}
    assert visible(tmp_path) == ["file"]


def test_folder_is_the_old_or_the_new_one_or_absent_whenever_its_writer_is_killed(tmp_path):
    (tmp_path / "folder").mkdir()
    assert set(kill_at_every_line("write_folder", tmp_path / "folder", "again")) == {OLD, NEW, None}
    assert visible(tmp_path) == ["folder"]


@pytest.mark.parametrize("content", [None, OLD])
def test_error_while_writing_a_file_leaves_everything_as_it_was(tmp_path, content):
    path = tmp_path / "file"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ZeroDivisionError), whole_file(path) as file:
        file.write(b"half")
        file.flush()
        assert (path.read_text() if path.exists() else None) == content
        raise ZeroDivisionError
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == ([("file", content)] if content else [])


def test_error_while_filling_a_folder_leaves_everything_as_it_was(tmp_path):
    write_old(tmp_path / "folder")
    with pytest.raises(ZeroDivisionError), replace_folder(tmp_path / "folder") as temporary:
        (temporary / "new").write_text("half")
        raise ZeroDivisionError
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["folder", "folder/old"]


def test_folder_that_cannot_be_renamed_into_place_leaves_the_old_one(tmp_path, monkeypatch):
    write_old(tmp_path / "folder")
    rename = Path.rename

    def refuse(path, target):
        if (path / "new").exists():
            raise OSError("refused")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="refused"), replace_folder(tmp_path / "folder") as temporary:
        (temporary / "new").write_text(NEW)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["folder", "folder/old"]


def test_folder_is_replaced_with_all_that_it_held(tmp_path):
    write_old(tmp_path / "folder")
    with replace_folder(tmp_path / "folder") as temporary:
        (temporary / "below").mkdir()
        (temporary / "below/new").write_text(NEW)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "folder",
        "folder/below",
        "folder/below/new",
    ]


@pytest.fixture
def calls(monkeypatch):
    """The names of files and folders that are synced, and the targets of renames, in order."""
    made: list[tuple[str, str]] = []
    fsync, rename = os.fsync, Path.rename

    def record_fsync(descriptor):
        made.append(("fsync", Path(f"/proc/self/fd/{descriptor}").readlink().name.partition(".tmp")[0]))
        fsync(descriptor)

    def record_rename(path, target):
        made.append(("rename", target.name))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "rename", record_rename)
    return made


def test_file_is_on_the_disk_before_its_rename_and_the_rename_thereafter(tmp_path, calls):
    with whole_file(tmp_path / "file") as file:
        file.write(b"content")
        temporary = Path(file.name).stem
    assert calls == [("fsync", temporary), ("rename", "file"), ("fsync", tmp_path.name)]


def test_files_of_a_folder_are_on_the_disk_before_its_rename_and_the_rename_thereafter(tmp_path, calls):
    with replace_folder(tmp_path / "folder") as temporary:
        (temporary / "below").mkdir()
        (temporary / "below/file").write_text(NEW)
    assert sorted(calls[:3]) == [("fsync", temporary.stem), ("fsync", "below"), ("fsync", "file")]
    assert calls[3:] == [("rename", "folder"), ("fsync", tmp_path.name)]


@pytest.fixture
def refuse_fsync(monkeypatch):
    """Makes `os.fsync` of folders, or of files, fail with an errno, as some file systems do."""
    fsync = os.fsync

    def refuse(code, *, of_folders):
        def answer(descriptor):
            if stat.S_ISDIR(os.fstat(descriptor).st_mode) is of_folders:
                raise OSError(code, os.strerror(code))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", answer)

    return refuse


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_that_syncs_no_folder_takes_files_and_folders(tmp_path, refuse_fsync, code):
    refuse_fsync(code, of_folders=True)
    with whole_file(tmp_path / "file") as file:
        file.write(NEW.encode())
    with replace_folder(tmp_path / "folder") as temporary:
        (temporary / "below").mkdir()
        (temporary / "below/file").write_text(NEW)
    assert (tmp_path / "file").read_text() == (tmp_path / "folder/below/file").read_text() == NEW


@pytest.mark.parametrize(("code", "of_folders"), [(errno.EIO, True), (errno.EIO, False), (errno.EINVAL, False)])
def test_a_sync_that_fails_names_the_file_and_the_cause(tmp_path, refuse_fsync, code, of_folders):
    refuse_fsync(code, of_folders=of_folders)
    with pytest.raises(OSError, match=os.strerror(code)) as caught, whole_file(tmp_path / "file") as file:
        file.write(NEW.encode())
    assert caught.value.errno == code
    assert str(tmp_path) in str(caught.value)
    assert (tmp_path / "file").exists() is of_folders  # a folder is synced after the rename


def test_symbolic_link_stays_and_the_file_that_it_names_is_replaced(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link, target = tmp_path / "link", tmp_path / "elsewhere/file"
    link.symlink_to(target)
    for content in (b"first", b"second"):
        with whole_file(link) as file:
            file.write(content)
        assert (link.readlink(), target.read_bytes()) == (target, content)
        assert list(tmp_path.rglob("*.tmp")) == []


def test_device_and_pipe_are_written_to_and_stay(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    for path in (pipe, Path("/dev/null")):
        kind = stat.S_IFMT(path.stat().st_mode)
        with whole_file(path) as file:
            file.write(b"content")
        assert stat.S_IFMT(path.stat().st_mode) == kind
    assert os.read(reader, 100) == b"content"
    os.close(reader)


def test_standard_output_is_written_to_even_where_it_is_a_file(tmp_path):
    code = "from pathlib import Path; from ctclip_model.files import whole_file\n"
    code += "with whole_file(Path('/dev/stdout')) as file: file.write(b'content')"
    output = tmp_path / "output"
    with output.open("wb") as file:
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=file, check=True, timeout=60)
    assert output.read_bytes() == b"content"
    assert list(tmp_path.iterdir()) == [output]
