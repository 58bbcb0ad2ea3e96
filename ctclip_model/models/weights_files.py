"""Files and folders that weights come in: PyTorch's and safetensors' files, sharded ones, folders of Hugging Face.

The first bytes of a file decide, not its name. Code in a file is never run. Whatever holds no weights is refused with
a clause that says what it is and names its top-level keys.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ctclip_model.config import FOLDER_WEIGHTS, WEIGHTS_SUFFIXES
from ctclip_model.data.file_kinds import BLANKS, LONGEST, recognize_magic
from ctclip_model.errors import CheckpointError
from ctclip_model.files import sha256_of

INDEX = ".index.json"  # end of the name of an index of shards
SHARD = re.compile(r"-(\d+)-of-(\d+)\.")
LARGEST_JSON = 100_000_000  # bytes of an index or of a safetensors header
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of a file of PyTorch before 1.6
# Globals that PyTorch's own files name and that are no code of their writer.
PLAIN_GLOBALS = re.compile(
    r"collections\.OrderedDict|torch\.\w+|torch\.(_utils|_tensor|storage|nn\.parameter|serialization)\..*"
)
# First bytes of other formats, before those of `recognize_magic`, whose remedies are those of volumes.
_OTHERS = (
    (b"\x1f\x8b", "is compressed with gzip: unpack it"),
    (b"\x89HDF", "is an HDF5 file, as Keras writes: these weights are PyTorch's"),
    (b"GGUF", "is a GGUF file of llama.cpp: these weights are PyTorch's"),
    (b"PK", "is a zip archive that is cut short or damaged: download it again"),
)


def list_names(names: Iterable[Any], most: int = 8) -> str:
    """The first names, and how many more there are."""
    texts = [str(name) for name in names]
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def name_keys(content: Mapping[Any, Any]) -> str:
    """A clause that names the top-level keys of a file's content."""
    return f"its top-level keys are {list_names(content)}"


def describe_keys(content: Any) -> str:
    """The end of a sentence, with the top-level keys of a file's content. Empty for a content without keys."""
    return f"; {name_keys(content)}" if isinstance(content, Mapping) and content else ""


def find_weights_file(folder: Path) -> Path:
    """The weights in a folder: a file with one of the usual names, or the only file with a suffix of weights.

    Raises `CheckpointError` for none or several.
    """
    if found := next((path for name in FOLDER_WEIGHTS if (path := folder / name).is_file()), None):
        return found
    files = sorted(path.name for path in folder.iterdir() if path.is_file())
    weights = [name for name in files if name.lower().endswith(WEIGHTS_SUFFIXES)]
    if len(weights) == 1:
        return folder / weights[0]
    if weights:
        raise CheckpointError(f"{folder}: holds {len(weights)} weights files: name one of {list_names(weights)}")
    raise CheckpointError(f"{folder}: is not a model folder and holds no weights, but {list_names(files) or 'nothing'}")


def read_content(path: Path) -> Any:
    """The content of a file of weights or of an index of shards: tensors, in whatever they are wrapped.

    Takes a folder too, as `find_weights_file` does. Tensors are mapped: their content stays in the file until it is
    used. Raises `CheckpointError`.
    """
    if path.is_dir():
        path = find_weights_file(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    if (shard := SHARD.search(path.name)) and int(shard[2]) > 1:
        raise CheckpointError(f"{path}: is shard {shard[1]} of {shard[2]}: name the index ({INDEX}) or the folder")
    return _read_shards(path) if _is_json(path) else _read_file(path)


def hash_weights(path: Path) -> str:
    """SHA-256 of a weights file, or of an index of shards and all its shards, in hexadecimal. Raises `OSError`."""
    digests = [sha256_of(file) for file in list_files(path)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def list_files(path: Path) -> list[Path]:
    """A weights file, or an index of shards and its shards."""
    if not _is_json(path):
        return [path]
    return [path, *(path.with_name(name) for name in sorted(set(_read_index(path).values())))]


def _refused(path: Path, clause: str) -> CheckpointError:
    return CheckpointError(f"{path}: cannot be read as weights: it {clause}")


def _read_head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(LONGEST)
    except OSError as error:
        raise _refused(path, f"cannot be opened ({error.strerror})") from error


def _is_safetensors(head: bytes) -> bool:
    """True for the length of a header and the beginning of its JSON."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= LARGEST_JSON


def _is_json(path: Path) -> bool:
    head = _read_head(path)
    return head.lstrip(BLANKS).startswith(b"{") and not _is_safetensors(head)


def _read_file(path: Path) -> Any:
    head = _read_head(path)
    if _is_safetensors(head):
        return _read_safetensors(path)
    if zipfile.is_zipfile(path):
        _check_archive(path)
        return _read_pickle(path, is_zip=True)
    if head[:1] == b"\x80" and head[1:2] <= bytes([pickle.HIGHEST_PROTOCOL]):
        return _read_pickle(path, is_zip=False)
    raise _refused(path, _describe_other(head))


def _describe_other(head: bytes) -> str:
    if not head.strip(b"\0"):
        return "is empty: download or write it again" if not head else "begins with zeros: download it again"
    if known := next((clause for magic, clause in _OTHERS if head.startswith(magic)), None):
        return known
    if known := recognize_magic(head):
        what, _, remedy = known.partition(":")
        if "compressed" in what or "archive" in what:
            return f"{what}: unpack it"
        return what if "NIfTI" in remedy else known
    if head.isascii():
        return "is a text, such as a server's error: download it again"
    return "is neither a file of PyTorch nor one of safetensors, or it is damaged"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
        if tensors:
            return tensors
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _refused(path, f"is damaged, cut short or of an unknown type ({error})") from error
    raise _refused(path, f"is a file of safetensors without tensors, with metadata {list_names(metadata) or 'nothing'}")


def _check_archive(path: Path) -> None:
    """Raises `CheckpointError` for a zip archive that holds no pickle of PyTorch, or that holds a program."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise _refused(path, f"is a damaged zip archive ({error})") from error
    inside = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inside or any(name.startswith("code/") for name in inside):
        raise _refused(path, "carries code, a program of TorchScript, which is never run: save its state_dict() alone")
    if "data.pkl" not in inside:
        raise _refused(path, f"is a zip archive of {list_names(names) or 'nothing'}, and not of weights: unpack it")


def _read_pickle(path: Path, *, is_zip: bool) -> Any:
    if path.suffix.lower() == ".safetensors":
        raise _refused(path, "is a file of PyTorch with the name of one of safetensors: give it the suffix .pt")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about protocols of pickles
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # parsers of damaged files raise anything
        content, names = _inspect(path, is_zip)
        if names:
            raise _refused(
                path,
                f"carries code ({list_names(names)}), which is never run: save the state_dict() alone"
                f"{describe_keys(content)}",
            ) from error
        raise _refused(path, f"is damaged or cut short ({type(error).__name__})") from error


class _Inert(dict[Any, Any]):
    """Stands for every object of a pickle that is inspected. It keeps entries and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> _Inert:
        return _Inert()

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def add(self, value: Any) -> None:
        pass


class _Inspector(pickle.Unpickler):
    """Reads the structure of a pickle. Imports nothing and calls nothing: each object is `_Inert`."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="bytes")
        self.names: list[str] = []

    def find_class(self, module: str, name: str) -> Any:
        self.names.append(f"{module}.{name}")
        return _Inert

    def persistent_load(self, pid: Any) -> Any:
        is_class = isinstance(pid, tuple) and pid[:1] in (("module",), (b"module",))  # PyTorch marks a whole module so
        return _Inert if is_class else _Inert()


def _inspect(path: Path, is_zip: bool) -> tuple[Any, list[str]]:
    """The structure of a pickle, and the names of the code that it would import, without running any of it.

    A structure that cannot be read is None.
    """
    names: list[str] = []
    content: Any = None
    try:
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                inside = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
                with archive.open(inside) as file:
                    content = _inspect_one(file, names)
        else:
            with path.open("rb") as file:
                content = _inspect_one(file, names)
                if content == LEGACY_MAGIC:
                    _, _, content = (_inspect_one(file, names) for _ in range(3))  # protocol, system, content
    except Exception:  # noqa: BLE001  parsers of damaged files raise anything
        content = None
    return content, [name for name in dict.fromkeys(names) if not PLAIN_GLOBALS.fullmatch(name)]


def _inspect_one(file: Any, names: list[str]) -> Any:
    inspector = _Inspector(file)
    try:
        return inspector.load()
    finally:
        names += inspector.names


def _read_shards(path: Path) -> dict[str, Tensor]:
    """The tensors of all shards that an index names, each from its own shard. Raises `CheckpointError`."""
    shards = _read_index(path)
    folder = path.parent
    tensors: dict[str, Tensor] = {}
    if absent := sorted(name for name in set(shards.values()) if not (folder / name).is_file()):
        raise _refused(path, f"is an index whose shards are missing: put {list_names(absent)} beside it")
    for name in sorted(set(shards.values())):
        content = _read_file(folder / name)
        wanted = [key for key, shard in shards.items() if shard == name]
        if missing := [key for key in wanted if not isinstance(content, Mapping) or key not in content]:
            raise _refused(path, f"is an index that differs from its shards: {name} lacks {list_names(missing)}")
        tensors |= {key: content[key] for key in wanted}
    return tensors


def _read_index(path: Path) -> dict[str, str]:
    """The shard of each tensor, by name. Raises `CheckpointError` for another JSON and for paths out of the folder."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError("it is too large")
        index = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise _refused(path, f"begins like a JSON text and is none ({type(error).__name__})") from error
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise _refused(path, f"is a JSON text that names no shards of weights{describe_keys(index)}")
    if outside := sorted({name for name in shards.values() if not _is_plain_name(name)}):
        raise _refused(path, f"is an index of shards outside its folder, which are never read: {list_names(outside)}")
    return shards


def _is_plain_name(name: str) -> bool:
    return name not in ("", ".", "..") and not set(name) & set("/\\\0:")
