"""`benchmarks/gpu.py` runs through without a GPU, so that no GPU's time is spent on mistakes."""

import json
import os
import subprocess
import sys

import pytest
from support.paths import ROOT


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_section_runs_on_a_cpu(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--out", str(tmp_path)]
    subprocess.run(command, check=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=1000)
    results = json.loads((tmp_path / "gpu.json").read_text())["results"]
    assert not [result for result in results if "failed" in result]
    assert {result["section"] for result in results} == {
        "peaks", "kernels", "parity", "steps", "train", "use", "restart", "profile", "parts",
    }  # fmt: skip
    restart = next(result for result in results if result["section"] == "restart")
    assert (restart["continued_at_step"], restart["ended_at_step"]) == (5, 8)
    assert len((tmp_path / "gpu.md").read_text().splitlines()) == len(results) + 4
