"""What the demonstration promises: a CT-CLIP that has really learned the phantoms, whatever the seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctclip_model.data.phantom import VISIBLE_ABNORMALITIES
from warehouse import store


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_zero_shot_auroc_on_held_out_patients_is_at_least_080(tmp_path: Path, seed: int) -> None:
    from flows.demo import demo

    demo(tmp_path, seed)
    with store.read(tmp_path / "data") as connection:
        scores = dict(
            connection.execute("select abnormality, value from current_metrics where metric = 'auroc'").fetchall()
        )
    visible = [scores[name] for name in VISIBLE_ABNORMALITIES]
    assert sum(visible) / len(visible) >= 0.80
