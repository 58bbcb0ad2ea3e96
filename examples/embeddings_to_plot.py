"""Image latents to a map: volumes that the model finds alike are near each other. It is an SVG file.

ctclip export latents --model MODEL_ID --output latents.parquet
python examples/embeddings_to_plot.py latents.parquet map.svg
"""

import sys
from html import escape
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

SIZE, MARGIN = 640, 20  # pixels


def project(latents: np.ndarray) -> np.ndarray:
    """Coordinates (volumes, 2) on the two principal axes of the latents (volumes, latent), each from 0 to 1."""
    centred = latents - latents.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    places = centred @ axes.T
    return (places - places.min(axis=0)) / np.maximum(np.ptp(places, axis=0), 1e-9)


def main(latents: str, picture: str) -> None:
    """Draws a dot for each volume, with its name as a tooltip. Scans of the split valid are orange."""
    table = pq.read_table(latents)
    places = MARGIN + project(np.stack(table["vector"].to_numpy())) * (SIZE - 2 * MARGIN)
    dots = [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{"#d95f02" if name.startswith("valid") else "#1f78b4"}">'
        f"<title>{escape(name)}</title></circle>"
        for (x, y), name in zip(places, table["name"].to_pylist(), strict=True)
    ]
    frame = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE} {SIZE}" fill-opacity="0.7">'
    Path(picture).write_text("\n".join([frame, *dots, "</svg>"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
