"""The demonstration's models have learned the phantoms, with any seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctclip_model.data.phantom import VISIBLE_ABNORMALITIES
from warehouse import store


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scores_on_held_out_patients(tmp_path: Path, seed: int) -> None:
    """Zero-shot is at least 0.93, and fine-tuning about as good: there is little left to learn."""
    from flows.demo import demo

    demo(tmp_path, seed)
    with store.read(tmp_path / "data") as connection:
        macro = dict(
            connection.execute(
                "select protocol, avg(value) from current_metrics "
                "where metric = 'auroc' and list_contains(?, abnormality) group by protocol",
                [list(VISIBLE_ABNORMALITIES)],
            ).fetchall()
        )
    assert macro["zero-shot"] >= 0.93
    assert macro["lipro"] >= macro["zero-shot"] - 0.01
    assert macro["vocabfine"] >= macro["zero-shot"] - 0.01
