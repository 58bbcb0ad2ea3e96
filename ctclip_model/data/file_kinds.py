"""Names of files that are no NIfTI, by their first bytes, each with the remedy."""

from __future__ import annotations

LONGEST = 348  # bytes that are looked at

PAIR = "is the header of a .hdr/.img pair: save both as a single .nii.gz file"
DATA_OF_PAIR = "holds voxels without a header, as the .img of a .hdr/.img pair does: save both as a single .nii.gz file"
ANALYZE = "is an Analyze 7.5 header (.hdr/.img), which states no orientation: convert it to NIfTI"
MARKUP = "is a web page or an XML text, such as a login page or a server's error: download the file again"
JSON = "is a JSON text, such as a server's error: download the file again"

# (offset, magic, sentence)
_MAGICS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"version https://git-lfs", "is a Git LFS pointer, not the file: fetch it with `git lfs pull`"),
    (128, b"DICM", "is a DICOM file: give the folder of its series, or convert it to NIfTI"),
    (344, b"ni1\0", PAIR),
    (4, b"ni2\0", PAIR),
    (0, b"NRRD", "is an NRRD file: convert it to NIfTI"),
    (0, b"ObjectType", "is a MetaImage header (.mha, .mhd): convert it to NIfTI"),
    (0, b"NDims", "is a MetaImage header (.mha, .mhd): convert it to NIfTI"),
    (0, b"\x28\xb5\x2f\xfd", "is compressed with zstd: unpack it, or compress it with gzip"),
    (0, b"BZh", "is compressed with bzip2: unpack it, or compress it with gzip"),
    (0, b"\xfd7zXZ", "is compressed with xz: unpack it, or compress it with gzip"),
    (0, b"7z\xbc\xaf", "is a 7z archive: unpack it"),
    (0, b"\x04\x22\x4d\x18", "is compressed with lz4: unpack it, or compress it with gzip"),
    (0, b"\x1f\x9d", "is compressed with compress: unpack it, or compress it with gzip"),
    (0, b"\x78\x01", "is a zlib stream: unpack it, or compress it with gzip"),
    (0, b"\x78\x9c", "is a zlib stream: unpack it, or compress it with gzip"),
    (0, b"\x78\xda", "is a zlib stream: unpack it, or compress it with gzip"),
    (257, b"ustar", "is a tar archive: unpack it"),
    (0, b"PK", "is a zip archive: unpack it"),
    (0, b"Rar!", "is a RAR archive: unpack it"),
    (0, b"\x89HDF", "is an HDF5 file, such as a MINC volume: convert it to NIfTI"),
    (0, b"\x93NUMPY", "is a NumPy array: it states no spacing, so convert it to NIfTI"),
    (0, b"CDF", "is a netCDF file, such as a MINC volume: convert it to NIfTI"),
    (0, b"\x00\x00\x00\x01\x00\x00", "is an MGH file of FreeSurfer: convert it to NIfTI"),
    (0, b"%PDF", "is a PDF"),
    (0, b"\x89PNG", "is a PNG picture"),
    (0, b"\xff\xd8\xff", "is a JPEG picture"),
    (0, b"GIF8", "is a GIF picture"),
    (0, b"II*\x00", "is a TIFF picture"),
    (0, b"MM\x00*", "is a TIFF picture"),
    (0, b"<", MARKUP),
    (0, b"{", JSON),
    (0, b"[", JSON),
)
GZIP_MAGIC = b"\x1f\x8b"
ANALYZE_LENGTHS = {(348).to_bytes(4, "little"), (348).to_bytes(4, "big")}  # first bytes of a header
HEADER_LENGTHS = ANALYZE_LENGTHS | {(540).to_bytes(4, "little"), (540).to_bytes(4, "big")}
BLANKS = b"\xef\xbb\xbf \t\r\n"  # a byte order mark and white space, which may precede a text


def describe_file(head: bytes, name: str = "", *, is_unpacked: bool = False) -> str:
    """A clause that says what a file is, from its first bytes and its name, and what to do about it.

    `is_unpacked` says that the bytes come out of a gzip stream.
    """
    if not head:
        return "is empty: download or write it again"
    if is_unpacked and head.startswith(GZIP_MAGIC):
        return "is compressed twice with gzip: unpack it once"
    if known := recognize_magic(head):
        return known
    if head[:4] in ANALYZE_LENGTHS and len(head) >= LONGEST:
        return ANALYZE
    if head[:4] in HEADER_LENGTHS:
        return "is too short to hold a NIfTI header"
    if name.lower().endswith((".img", ".img.gz")):
        return DATA_OF_PAIR
    if head.strip().isascii() and head.decode("ascii").isprintable():
        return "is a text, such as a server's error: download the file again"
    return "does not begin with a NIfTI header"


def recognize_magic(head: bytes) -> str | None:
    """A clause that says what a file is by the magic number at its beginning, or None for an unknown one."""
    for offset, magic, sentence in _MAGICS:
        if head[offset:].startswith(magic) or (offset == 0 and head.lstrip(BLANKS).startswith(magic)):
            return sentence
    return None
