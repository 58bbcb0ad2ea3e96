"""Exports of a model: the files hold the latents and tokens that the model computes."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from support.command_line import run_ctclip
from support.golden import load_tiny_weights
from support.hub import LoopbackHub
from support.models import TINY, load_tiny_model
from support.records import report_row, wanted_rows, write_run
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
from ctclip_model.models.vision import CTViT
from tasks.evaluation.embed import _record, plan_work
from tasks.evaluation.embed import embed_volumes as embed_converted
from tasks.evaluation.export import export_latents, export_tokens
from tasks.hub.origins import hide_folders
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


def push_latents(data_root: Path, *arguments: str):
    return run_ctclip(
        "push", "latents", "--model", MODEL, "--to", "someone/latents", "--data-root", data_root, *arguments
    )


def pushed_files(hub: LoopbackHub) -> dict[str, bytes]:
    repository = hub.repositories["datasets", "someone/latents"]
    commit = repository.commits[repository.branches["main"]]
    return {path: (hub.store / blob.sha256).read_bytes() for path, blob in commit.items()}


def test_pushed_latents_are_a_private_data_set_without_reports(data_root, hub, tmp_path):
    result = push_latents(data_root)
    assert result.returncode == 0, result.stderr
    assert f"{hub.endpoint}/datasets/someone/latents (private)" in result.stdout
    files = pushed_files(hub)
    assert set(files) - {".gitattributes"} == {
        "README.md", "croissant.json", "latents/train.parquet", "latents/valid.parquet",
    }  # fmt: skip
    export_latents(data_root, MODEL, Selection(), tmp_path / "all.parquet")
    pushed = [pq.read_table(pa.BufferReader(files[f"latents/{split}.parquet"])) for split in ("train", "valid")]
    assert pa.concat_tables(pushed).equals(pq.read_table(tmp_path / "all.parquet"))
    assert "is up to date: no new commit" in push_latents(data_root).stdout


def test_croissant_names_each_file_with_its_hash_and_each_column(data_root, hub):
    push_latents(data_root)
    files = pushed_files(hub)
    found = json.loads(files["croissant.json"])
    assert found["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert found["license"].endswith("CC-BY-NC-SA-4.0.html")
    for one in found["distribution"]:
        assert one["sha256"] == hashlib.sha256(files[one["@id"]]).hexdigest()
    (train, _) = found["recordSet"]
    assert [field["name"] for field in train["field"]] == ["volume_name", "model_id", "latent"]
    assert train["field"][2]["repeated"] is True


def test_card_of_latents_names_model_rows_splits_and_licence(data_root, hub):
    push_latents(data_root)
    _, head, text = pushed_files(hub)["README.md"].decode().split("---\n", 2)
    facts = yaml.safe_load(head)
    assert facts["license"] == "cc-by-nc-sa-4.0"
    assert facts["configs"][0]["data_files"][1] == {"split": "valid", "path": "latents/valid.parquet"}
    assert "| `latents/train.parquet` | 3 |" in text
    assert f"{MODEL}, kind ct-clip, SHA-256 of the weights w." in text
    assert "16 numbers of float32" in text
    assert "Reports: not part of this data set." in text


def test_reports_go_along_only_if_asked_for_and_are_taken_off_again(data_root, hub, tmp_path):
    root = Path(shutil.copytree(data_root, tmp_path / "copy"))
    reports = [report_row("train_1_a", "A nodule."), report_row("train_99_a", "Not embedded.")]
    write_run(root, 2, "ingest", reports=reports)
    store.publish(root)
    assert push_latents(root, "--with-reports").returncode == 0
    table = pq.read_table(pa.BufferReader(pushed_files(hub)["reports.parquet"]))
    assert (table["scan_id"].to_pylist(), table["findings"].to_pylist()) == (["train_1_a"], ["A nodule."])
    assert push_latents(root).returncode == 0
    assert not any(b"A nodule." in content for content in pushed_files(hub).values())
    assert "reports.parquet" not in pushed_files(hub)


def test_latents_of_no_model_and_of_a_model_without_any_are_one_line(data_root, hub):
    for arguments, line in (
        (["latents", "--to", "a/b"], "name it with --model"),
        (["latents", "--model", "absent", "--to", "a/b"], "there is no model 'absent'"),
        ([MODEL, "--model", MODEL, "--to", "a/b"], "are for `ctclip push latents`"),
    ):
        result = run_ctclip("push", *arguments, "--data-root", data_root)
        assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
        assert line in result.stderr
    assert hub.requests == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ct-rate:/home/me/my ct, revision 12", "ct-rate, a local folder, revision 12"),
        ("| source | file:///home/me/x.pt |", "| source | a local file |"),
        ("- Data: ct-rate:/home/me/x; 7 volumes", "- Data: ct-rate, a local folder; 7 volumes"),
        ("hf://datasets/a/b, revision 12", "hf://datasets/a/b, revision 12"),
        ("see https://huggingface.co/a/b; arXiv:2403.17834", "see https://huggingface.co/a/b; arXiv:2403.17834"),
    ],
)
def test_folder_of_this_machine_is_not_told(text, shown):
    assert hide_folders(text) == shown


def read_as_ct_chat(folder: Path, image: str) -> torch.Tensor:
    """Tokens of an entry `image` of CT-CHAT's instructions, as its training reads them: `LazySupervisedDataset`."""
    return torch.tensor(np.load(folder / image.replace(".nii.gz", ".npz"))["arr"][0])


def test_ct_chat_reads_the_tokens_and_a_rerun_keeps_them(data_root, model, tmp_path):
    command = ("export", "tokens", "--format", "ct-chat", "--model", MODEL, "--output", tmp_path / "npz")
    result = run_ctclip(*command, "--data-root", data_root)
    assert result.returncode == 0, result.stderr
    for name in shards(data_root):
        with np.load(tmp_path / f"npz/{name}.npz") as file:
            assert file.files == ["arr"]
            assert (file["arr"].dtype, file["arr"].ndim, len(file["arr"])) == (np.float32, 5, 1)
        with torch.inference_mode():
            expected = model.image_tokens(volume(data_root, name).float() / 1000)[0]
        assert torch.equal(read_as_ct_chat(tmp_path / "npz", f"{name}.nii.gz"), expected)
    first, *_, last = sorted((tmp_path / "npz").iterdir())
    first.write_bytes(first.read_bytes()[:-10])
    untouched = last.stat().st_mtime_ns
    result = run_ctclip(*command, "--data-root", data_root)
    assert f"1 files written in {tmp_path / 'npz'}, {len(NAMES) - 1} were there" in " ".join(result.stdout.split())
    assert last.stat().st_mtime_ns == untouched
    assert read_as_ct_chat(tmp_path / "npz", first.name).ndim == 4


def test_image_encoder_is_the_state_dict_that_ct_chat_loads(tmp_path):
    info = {"recipe": {"name": "tiny", "shape": (30, 40, 40), "spacing_mm": (8.0, 8.0, 8.0)}}
    save_model_folder(tmp_path / "data/models/tiny", load_tiny_model(), None, extra=info)
    path = tmp_path / "clip_visual_encoder.pth"
    result = run_ctclip("export", "image-encoder", "--output", path, "--data-root", tmp_path / "data")
    assert result.returncode == 0, result.stderr
    prefix = "visual_transformer."
    published = {name.removeprefix(prefix): value for name, value in load_tiny_weights().items() if prefix in name}
    found = torch.load(path)
    assert set(found) == set(published)
    assert all(torch.equal(found[name], value) for name, value in published.items())
    CTViT(TINY.vision).load_state_dict(found)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["tokens", "--model", MODEL, "--format", "csv"], "written as safetensors or ct-chat, not as csv"),
        (["tokens", "--format", "ct-chat"], "name it with --model"),
        (["current_latents", "--format", "ct-chat"], "written as parquet or csv"),
        (["image-encoder", "--model", "absent"], "there is no model 'absent'"),
        (["image-encoder", "--split", "valid"], "are for `ctclip export latents` and `tokens`"),
    ],
)
def test_wrong_export_of_a_model_is_one_line(data_root, tmp_path, arguments, line):
    result = run_ctclip("export", *arguments, "--output", tmp_path / "output", "--data-root", data_root)
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert line in result.stderr
    assert list(tmp_path.iterdir()) == []
