"""CT volumes of your own to a table of 18 probabilities, and maps of what each is read from.

Volumes are NIfTI files, DICOM series, or folders of them. Maps lie beside the table, in the folder `evidence`.

python examples/own_ct_to_abnormalities.py CT-CLIP_v2.pt scans/ probabilities.csv

For research, not for diagnosis.
"""

import csv
import sys
from pathlib import Path

from ctclip_model import open_model
from ctclip_model.data.abnormalities import ABNORMALITIES


def main(weights: str, scans: str, table: str) -> None:
    """Writes a row for each volume. Files that cannot be used are named, and the others go on."""
    model = open_model(weights, device="auto")
    with Path(table).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["volume", *ABNORMALITIES, "turned", "doubts", "picture"])
        maps = Path(table).with_name("evidence")
        for volume in model.predict([scans], on_error=report_error, evidence=maps):
            probabilities = [f"{volume.by_abnormality[name]:.4f}" for name in ABNORMALITIES]
            picture = volume.evidence.picture if volume.evidence else ""
            writer.writerow([volume.path.name, *probabilities, volume.turn, "; ".join(volume.doubts), picture])


def report_error(path: Path, error: Exception) -> None:
    print(f"left out: {path}: {error}", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
