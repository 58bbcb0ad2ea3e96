"""isal and numba only make it fast: without them, and where no cache can be kept, the same comes out."""

from __future__ import annotations

import os
import shutil
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from support.paths import ROOT
from support.processes import run_python

from ctclip_model.config import Recipe
from ctclip_model.data.volume import convert_volume

RECIPE = Recipe("small", spacing_mm=(3.0, 2.0, 2.0), shape=(60, 110, 100))
BARE = "import sys; sys.modules['numba'] = sys.modules['isal'] = None; "
CONVERT = (
    "import numpy, sys; from ctclip_model.config import Recipe; from ctclip_model.data.volume import convert_volume; "
    f"recipe = Recipe({RECIPE.name!r}, spacing_mm={RECIPE.spacing_mm}, shape={RECIPE.shape}); "
    "numpy.save(sys.argv[2], convert_volume(sys.argv[1], recipe=recipe).voxels); "
)


@pytest.fixture
def volume(tmp_path) -> Path:
    hu = np.random.default_rng(0).integers(-1500, 1500, (90, 130, 70)).astype(np.int16)
    nib.save(nib.Nifti1Image(hu, np.diag([2.3, 1.7, 2.9, 1.0])), tmp_path / "a.nii.gz")
    return tmp_path / "a.nii.gz"


def run(code: str, *arguments: Path, root: Path = ROOT, **environment: str) -> str:
    """Output of a program that imports the project's core from `root`. Its warnings are errors."""
    paths = os.pathsep.join(map(str, (root, ROOT / "tests")))
    environment |= {"PYTHONPATH": paths, "PYTHONWARNINGS": "error"}
    return run_python(code, *arguments, environment=environment, cwd=root, timeout_s=250)


def test_everything_holds_without_them():
    files = [str(ROOT / "tests" / "model" / f"test_{name}.py") for name in ("volume", "shards", "loader")]
    chosen = ["-k", "(not golden or train_2_a_1) and not worker"]
    run(f"{BARE} import pytest; sys.exit(pytest.main({files + chosen!r}))")


def test_both_ways_make_the_same_volume(volume):
    out = volume.with_name("bare.npy")
    run(BARE + CONVERT, volume, out)
    difference = np.abs(np.load(out) - convert_volume(volume, recipe=RECIPE).voxels)
    assert difference.max() <= 1  # a value halfway between two may fall to either side
    assert np.count_nonzero(difference) < 1e-3 * difference.size


def test_compiled_code_is_kept_for_the_next_process(volume, tmp_path):
    code = CONVERT + "from ctclip_model.data import kernels; print(sum(kernels.blend_planes.stats.cache_hits.values()))"
    hits = [int(run(code, volume, tmp_path / "out.npy", NUMBA_CACHE_DIR=str(tmp_path))) for _ in range(2)]
    assert hits == [0, 1]


def test_an_install_that_nothing_can_be_written_to_works(volume, tmp_path):
    copy = tmp_path / "install"
    shutil.copytree(ROOT / "ctclip_model", copy / "ctclip_model", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "ctclip_model" / "data" / "__pycache__").write_text("no folder, so nothing fits in")
    run(CONVERT, volume, tmp_path / "out.npy", root=copy, HOME="/dev/null", XDG_CACHE_HOME="/dev/null")
    assert np.array_equal(np.load(tmp_path / "out.npy"), convert_volume(volume, recipe=RECIPE).voxels)


def test_the_checksum_is_that_of_zlib():
    from ctclip_model.data.accelerators import crc32

    for size in (0, 1, 1000, 100_001):
        data = np.random.default_rng(size).bytes(size)
        assert crc32(data) == zlib.crc32(data)
