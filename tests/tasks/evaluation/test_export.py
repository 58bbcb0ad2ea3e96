"""Exports of a model: the files hold the latents and tokens that the model computes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.command_line import run_ctclip
from support.records import wanted_rows, write_run
from support.volumes import make_shard_volume

from ctclip_model.config import smoke
from ctclip_model.data.abnormalities import ABNORMALITIES, prompt_pair
from ctclip_model.data.shards import read_volume, write_shard
from ctclip_model.device import Precision
from ctclip_model.errors import ConfigurationError, MissingInputError
from ctclip_model.evaluation.embed import embed_volumes
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.model_folder import save_model_folder
from ctclip_model.models.text import train_tokenizer
from tasks.evaluation.embed import _record, plan_work
from tasks.evaluation.embed import embed_volumes as embed_converted
from tasks.evaluation.export import export_latents, export_tokens
from tasks.models.find import find_model
from tasks.run.pending import plan_items
from tasks.run.selection import Selection
from tasks.run.stage_run import open_run
from warehouse import store
from warehouse.store import query

MODEL = "smoke-own"
NAMES = ("valid_2_a_1", "train_1_a_2", "train_10_a_1", "train_1_a_1", "valid_1_a_1")  # order in the shard


@pytest.fixture(scope="module")
def model() -> CTCLIP:
    torch.manual_seed(0)
    return CTCLIP(smoke().model).eval()


@pytest.fixture(scope="module")
def data_root(model: CTCLIP, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five converted volumes and their latents, from a model with random weights."""
    data_root = tmp_path_factory.mktemp("data")
    recipe = smoke().recipe
    converted = [make_shard_volume(name, recipe, seed=seed) for seed, name in enumerate(NAMES)]
    write_shard(data_root / "shards/a.arrow", recipe, converted)
    shard = {"recipe_id": recipe.recipe_id, "shard_path": "shards/a.arrow", "fingerprint": "f"}
    write_run(
        data_root, 0, "convert", volumes=[{"volume_name": name} for name in NAMES],
        shard_volumes=[shard | {"volume_name": name, "row_index": row} for row, name in enumerate(NAMES)],
        wanted=wanted_rows("convert", recipe.recipe_id, dict.fromkeys(NAMES, "f")),
    )  # fmt: skip
    tokenizer = train_tokenizer([prompt for name in ABNORMALITIES for prompt in prompt_pair(name)] * 2, 200)
    save_model_folder(data_root / "models" / MODEL, model, tokenizer, extra={"preset": "smoke"})
    row = {"model_id": MODEL, "kind": "ct-clip", "preset": "smoke", "path": f"models/{MODEL}", "fingerprint": "f"}
    write_run(
        data_root, 1, "train",
        models=[row | {"recipe_id": recipe.recipe_id, "logit_scale": 1.0, "weights_sha256": "w"}],
    )  # fmt: skip
    store.publish(data_root)
    reference = find_model(data_root, "smoke", MODEL)
    work = plan_work(data_root, reference, Precision.float32)
    with open_run(data_root, "embed", MODEL) as run:
        plan_items(run, MODEL, work.fingerprints)
        embed_converted(run, reference, work, "cpu")
    return data_root


def shards(data_root: Path) -> dict[str, tuple[str, int]]:
    rows = query(data_root, "select volume_name, shard_path, row_index from converted_volumes order by 1")
    return {name: (path, row) for name, path, row in rows}


def volume(data_root: Path, name: str) -> torch.Tensor:
    """int16 HU (1, 1, depth, height, width)"""
    path, row = shards(data_root)[name]
    return torch.from_numpy(read_volume(data_root / path, row))[None, None]


def test_latent_without_a_direction_is_a_reject_and_the_others_are_recorded(data_root, tmp_path):
    root = Path(shutil.copytree(data_root, tmp_path / "copy"))
    reference = find_model(root, "smoke", MODEL)
    work = plan_work(root, reference, Precision.float32)
    bad = {f"volume:{name}": value for name, value in zip(NAMES, (np.nan, np.inf, 0.0), strict=False)}
    latents = np.eye(len(NAMES), 16, dtype=np.float32)
    latents[:3] = np.array(list(bad.values()), np.float32)[:, None]
    with open_run(root, "embed", MODEL) as run:
        _record(run, reference, work, [f"volume:{name}" for name in NAMES], latents)
        _record(run, reference, work, list(bad), latents[:3])
        assert (run.count_done, run.count_rejected) == (2, 6)
    rejects = query(root, "select distinct item, reason, is_permanent from current_rejects")
    assert sorted(rejects) == sorted((item, "no_latent", True) for item in bad)
    assert query(root, "select count(*) from current_latents where kind = 'volume' and latent[4] + latent[5] = 1") == [
        (2,)
    ]


def test_exported_latents_are_the_models_in_the_order_of_the_volumes(data_root, model, tmp_path):
    path = tmp_path / "latents.parquet"
    result = run_ctclip("export", "latents", "--model", MODEL, "--output", path, "--data-root", data_root)
    assert result.returncode == 0, result.stderr
    table = pq.read_table(path)
    assert table.schema.names == ["volume_name", "model_id", "latent"]
    assert table.schema.field("latent").type == pa.list_(pa.float32())
    names = table["volume_name"].to_pylist()
    assert names == list(shards(data_root))
    assert set(table["model_id"].to_pylist()) == {MODEL}
    expected = [next(embed_volumes(model, [([name], volume(data_root, name))]))[1][0] for name in names]
    assert np.array(table["latent"].to_pylist()) == pytest.approx(np.array(expected), abs=1e-6)


def test_exported_tokens_are_the_models_and_pool_to_the_latent(data_root, model, tmp_path):
    command = (
        "export",
        "latents",
        "--encoded-tokens",
        "--model",
        MODEL,
        "--output",
        tmp_path,
        "--data-root",
        data_root,
    )
    result = run_ctclip(*command, "--split", "valid")
    assert result.returncode == 0, result.stderr
    names = [name for name in shards(data_root) if name.startswith("valid")]
    assert f"{len(names)} files written in" in result.stdout
    assert sorted(path.stem for path in tmp_path.iterdir()) == names
    latents = dict(query(data_root, "select item, latent from latents where kind = 'volume'"))
    for name in names:
        with safe_open(tmp_path / f"{name}.safetensors", "pt") as file:
            assert list(file.keys()) == ["tokens"]
            assert (file.metadata()["volume_name"], file.metadata()["model_id"]) == (name, MODEL)
            tokens = file.get_tensor("tokens")
        with torch.inference_mode():
            assert torch.equal(tokens, model.image_tokens(volume(data_root, name).float() / 1000)[0])
            pooled = model.to_visual_latent(tokens[None].mean(dim=1).flatten(1))
        latent = torch.nn.functional.normalize(pooled, dim=-1)[0]
        assert latent.tolist() == pytest.approx(latents[name], abs=1e-5)


def test_second_export_writes_only_missing_damaged_and_other_precision_tokens(data_root, tmp_path):
    folder, count = tmp_path / "tokens", len(shards(data_root))
    assert export_tokens(data_root, MODEL, Selection(limit=2), folder, "cpu", Precision.float32) == (2, 0)
    assert export_tokens(data_root, MODEL, Selection(), folder, "cpu", Precision.float32) == (count - 2, 2)
    first, second, *_ = sorted(folder.iterdir())
    untouched, tokens = second.stat().st_mtime_ns, load_file(first)["tokens"].clone()
    first.write_bytes(first.read_bytes()[:-100])
    assert export_tokens(data_root, MODEL, Selection(), folder, "cpu", Precision.float32) == (1, count - 1)
    assert torch.equal(load_file(first)["tokens"], tokens)
    assert second.stat().st_mtime_ns == untouched
    assert export_tokens(data_root, MODEL, Selection(limit=1), folder, "cpu", Precision.bfloat16) == (1, 0)
    types = [load_file(path)["tokens"].dtype for path in folder.iterdir()]
    assert sorted(map(str, types)) == ["torch.bfloat16", *["torch.float32"] * (count - 1)]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["latents", "--format", "csv"], "written as Parquet"),
        (["latents", "--encoded-tokens"], "name it with --model"),
        (["current_latents", "--model", MODEL], "are for `ctclip export latents`"),
    ],
)
def test_mistake_is_one_clear_line_and_leaves_no_file(data_root, tmp_path, arguments, line):
    output = tmp_path / "output"
    result = run_ctclip("export", *arguments, "--output", output, "--data-root", data_root)
    assert result.returncode == 1
    assert line in re.sub(r"\s+", " ", result.stderr)
    assert len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_export_is_said_and_leaves_no_file(data_root, tmp_path):
    path = tmp_path / "output"
    with pytest.raises(ConfigurationError, match="there is no model 'absent'"):
        export_latents(data_root, "absent", Selection(), path)
    for selection, error, line in (
        (Selection(volumes="valid_99*"), ConfigurationError, "selects none of the ingested volumes"),
        (Selection("external"), MissingInputError, "run `ctclip (embed|convert)`"),
    ):
        with pytest.raises(error, match=line):
            export_latents(data_root, MODEL, selection, path)
        with pytest.raises(error, match=line):
            export_tokens(data_root, MODEL, selection, path, "cpu", Precision.float32)
    assert list(tmp_path.iterdir()) == []
