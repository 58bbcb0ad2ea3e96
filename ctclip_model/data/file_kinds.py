"""Names of files that are no NIfTI, by their first bytes, each with the remedy."""

from __future__ import annotations

LONGEST = 512  # bytes that are looked at

# (offset, magic, sentence)
_MAGICS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"version https://git-lfs", "is a Git LFS pointer, not the volume: fetch it with `git lfs pull`"),
    (128, b"DICM", "is a DICOM file: give its folder, and install the extra `dicom`"),
    (0, b"NRRD", "is an NRRD file: convert it to NIfTI"),
    (0, b"ObjectType", "is a MetaImage header (.mha, .mhd): convert it to NIfTI"),
    (0, b"NDims", "is a MetaImage header (.mha, .mhd): convert it to NIfTI"),
    (0, b"\x28\xb5\x2f\xfd", "is compressed with zstd: unpack it, or compress it with gzip"),
    (0, b"BZh", "is compressed with bzip2: unpack it, or compress it with gzip"),
    (0, b"\xfd7zXZ", "is compressed with xz: unpack it, or compress it with gzip"),
    (0, b"7z\xbc\xaf", "is a 7z archive: unpack it"),
    (0, b"PK", "is a zip archive: unpack it"),
    (0, b"\x89HDF", "is an HDF5 file, such as a MINC volume: convert it to NIfTI"),
    (0, b"\x93NUMPY", "is a NumPy array: it states no spacing, so convert it to NIfTI"),
    (0, b"%PDF", "is a PDF"),
    (0, b"\x89PNG", "is a PNG picture"),
)
_TEXTS = (
    (b"<!doctype html", "is a web page, such as a login page that was saved in place of the volume: download it again"),
    (b"<html", "is a web page, such as a login page that was saved in place of the volume: download it again"),
    (b"<?xml", "is an XML text, such as a server's error: download it again"),
    (b"{", "is a JSON text, such as a server's error: download it again"),
)
PAIR_MAGIC = b"ni1\0"
GZIP_MAGIC = b"\x1f\x8b"


def describe_file(head: bytes, *, is_unpacked: bool = False) -> str:
    """A clause that says what a file is, from its first bytes, and what to do about it.

    `is_unpacked` says that the bytes come out of a gzip stream.
    """
    if not head:
        return "is empty: download or write it again"
    if is_unpacked and head.startswith(GZIP_MAGIC):
        return "is compressed twice with gzip: unpack it once"
    if head[344:348] == PAIR_MAGIC:
        return "is one of a .hdr/.img pair: save it as a single .nii.gz file"
    for offset, magic, sentence in _MAGICS:
        if head[offset : offset + len(magic)] == magic:
            return sentence
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for begin, sentence in _TEXTS:
        if text.startswith(begin):
            return sentence
    return "does not begin with a NIfTI header"
