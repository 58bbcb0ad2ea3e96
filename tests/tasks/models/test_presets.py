"""Presets by name: what no training can use is refused before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.command_line import run_ctclip

from ctclip_model.data.phantom import PhantomConfig
from ctclip_model.errors import ConfigurationError
from flows.options import OPTIONS
from tasks.models.presets import find_preset

SEEDS = [-1, -(2**63), 2**64, 10**30]


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**64 - 1])
def test_seeds_that_every_generator_takes_are_kept(seed: int) -> None:
    preset = find_preset("smoke", seed=seed)
    assert preset.training.seed == preset.vocabfine.seed == preset.lipro.seed == seed


@pytest.mark.parametrize("seed", [*SEEDS, 0.5, True, "1"])
@pytest.mark.parametrize("make", [lambda seed: find_preset("smoke", seed=seed), lambda seed: PhantomConfig(seed=seed)])
def test_other_seeds_are_refused(make, seed) -> None:
    with pytest.raises(ConfigurationError, match=r"seed .* is not a whole number from 0 to"):
        make(seed)


@pytest.mark.parametrize("command", ["train", "rebuild", "finetune", "demo"])
def test_commands_refuse_a_seed_before_they_write(tmp_path: Path, command: str) -> None:
    has_root = "data_root" in OPTIONS[command].__dataclass_fields__
    where = ["--data-root" if has_root else "--folder", tmp_path / "data"]
    result = run_ctclip(command, *where, "--seed", "-1")
    assert result.returncode != 0
    assert "seed -1 is not a whole number from 0 to" in result.stderr
    assert not list(tmp_path.rglob("manifest.parquet"))
