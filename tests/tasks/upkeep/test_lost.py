"""A lost warehouse, lost shards and lost models are noticed and made again."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.command_line import run_ctclip
from support.data_roots import convert as convert_volumes
from support.data_roots import count_volumes, list_converted, start_cluster
from support.data_roots import ingest as ingest_folder

from ctclip_model.config import PRESETS
from ctclip_model.errors import MissingInputError
from ctclip_model.files import sha256_of
from tasks.labels.labellers import find_newest_labeller
from tasks.models.presets import find_preset
from tasks.plan.explain import explain_plan
from tasks.run import lost
from tasks.run.lost import find_lost_volumes, list_lost, require_shards
from tasks.run.publish import publish
from tasks.run.stage_run import open_run
from tasks.training.manifest import config_fingerprint
from tasks.training.records import find_trained, must_train_again
from tasks.upkeep import doctor, verify
from tasks.upkeep.verify import _check_record
from tasks.volumes.jobs import read_volumes
from warehouse import store

needs_prefect = pytest.mark.usefixtures("prefect_server")
RECIPE = PRESETS["smoke"]().recipe


@needs_prefect
def test_ingest_and_rebuild_publish_the_records_of_a_lost_warehouse(few_phantoms, tmp_path):
    from flows.ingest import ingest
    from flows.rebuild import rebuild

    ingest(str(few_phantoms), tmp_path)
    for run in (ingest, lambda _, root: rebuild(None, root, to_stage="ingest")[0]):
        (tmp_path / store.WAREHOUSE_FILE).unlink()
        assert "nothing changed" in run(None, tmp_path)["detail"]


@needs_prefect
def test_questions_to_a_lost_warehouse_name_the_publish_and_write_nothing(few_phantoms, tmp_path):
    from flows.ingest import ingest

    ingest(str(few_phantoms), tmp_path)
    (tmp_path / store.WAREHOUSE_FILE).unlink()
    before = sorted(tmp_path.rglob("*"))
    for command in (["status"], ["plan", "convert"], ["sql", "select 1"], ["export", "volumes"]):
        done = run_ctclip(*command, "--data-root", tmp_path)
        assert done.returncode == 1
        assert "run `ctclip publish`" in done.stderr
    assert "run `ctclip publish`" in [result.text for result in doctor.check_data_root(tmp_path)][-1]
    assert sorted(tmp_path.rglob("*")) == before


@needs_prefect
def test_an_empty_data_root_is_sent_to_the_ingest(tmp_path):
    for command in (["status"], ["plan", "convert"], ["convert"]):
        assert "run `ctclip ingest`" in run_ctclip(*command, "--data-root", tmp_path / "new").stderr


def record_model(root: Path) -> Path:
    """Row and folder of a CT-CLIP of the preset `smoke`, as if it had been trained."""
    folder = root / "models/smoke-1"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    row = {
        "model_id": "smoke-1", "kind": "ct-clip", "preset": "smoke", "path": "models/smoke-1", "recipe_id": "r",
        "logit_scale": 1.0, "fingerprint": config_fingerprint(find_preset("smoke")), "config": "{}",
        "weights_sha256": sha256_of(folder / "model.safetensors"),
    }  # fmt: skip
    with open_run(root, "train", "smoke") as run:
        run.record("models", [row])
    return folder


@pytest.fixture(scope="module")
def made(few_phantoms, tmp_path_factory):
    """Data root with the shards of the preset `smoke` and a model, which every test copies."""
    root = tmp_path_factory.mktemp("made") / "data"
    ingest_folder(few_phantoms, root)
    convert_volumes(root, RECIPE)
    record_model(root)
    return root


@pytest.fixture
def data_root(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "data"))


def find_shard(root: Path) -> tuple[Path, int]:
    """A shard and its number of volumes."""
    ((path, count),) = store.query(
        root, "select shard_path, count(*) from current_shard_volumes group by all order by all limit 1"
    )
    return root / path, count


def find_model(root: Path) -> Path:
    ((path,),) = store.query(root, "select path from current_models")
    return root / path


def test_volumes_of_a_lost_shard_are_pending_and_converted_again(data_root):
    shard, count = find_shard(data_root)
    shard.unlink()
    plan = explain_plan(data_root, "convert", 99, {"preset": "smoke"})
    assert plan["reasons"] == {"its shard is lost": count}
    assert any("shards of the recipe" in line and "ctclip convert" in line for line in list_lost(data_root))
    with pytest.raises(MissingInputError, match="run `ctclip convert`"):
        require_shards(data_root, [str(shard.relative_to(data_root))])
    assert convert_volumes(data_root, RECIPE)["done"] == count
    assert explain_plan(data_root, "convert", 99, {"preset": "smoke"})["pending"] == 0
    assert convert_volumes(data_root, RECIPE)["done"] == 0
    assert list_lost(data_root) == []


@needs_prefect
@pytest.mark.parametrize("kept", ["shards", "shards/RECIPE"])
def test_an_unmounted_folder_of_shards_is_named_and_converted_again_only_by_force(data_root, kept):
    from flows.convert import convert
    from flows.rebuild import rebuild

    shutil.rmtree(data_root / "shards")
    (data_root / kept.replace("RECIPE", RECIPE.recipe_id)).mkdir(parents=True)  # an empty mount point
    named = rf"all \d+ shards of {RECIPE.recipe_id} are missing: is {data_root}/shards mounted\? .*convert --force"
    with pytest.raises(MissingInputError, match=named):
        rebuild(None, data_root, "smoke", from_stage="convert", to_stage="convert")
    (line,) = list_lost(data_root)
    (note,) = explain_plan(data_root, "convert", 9, {"preset": "smoke"})["notes"]
    assert re.match(named, line)
    assert note == line
    assert not list((data_root / "shards").rglob("*.arrow"))
    assert convert(data_root, "smoke", force=True, dask_address=start_cluster())["done"] == count_volumes(data_root)
    assert list_lost(data_root) == []


@needs_prefect
def test_a_rebuild_converts_the_volumes_of_a_lost_shard_again(data_root):
    from flows.rebuild import rebuild

    shard, count = find_shard(data_root)
    shard.unlink()
    (done,) = rebuild(None, data_root, "smoke", from_stage="convert", to_stage="convert", dask_address=start_cluster())
    assert done["done"] == count


def read_wanted(root: Path) -> dict[str, str]:
    return {name: volume.fingerprint for name, volume in read_volumes(root, RECIPE, None).items()}


def test_no_lost_shard_of_a_withdrawn_volume_is_named(data_root):
    shard, count = find_shard(data_root)
    rows = store.query(data_root, "select volume_name, fingerprint, source from current_volumes")
    gone = [row for row in rows if list_converted(data_root)[row[0]][0] == str(shard.relative_to(data_root))]
    names = ("volume_name", "fingerprint", "source", "is_withdrawn")
    with open_run(data_root, "ingest") as run:
        run.record("volumes", [dict(zip(names, (*row, True), strict=True)) for row in gone])
    shard.unlink()
    assert len(gone) == count
    assert list_lost(data_root) == []
    assert find_lost_volumes(data_root, RECIPE.recipe_id, read_wanted(data_root)) == {}


def test_lost_volumes_that_were_rejected_since_wait_for_a_retry(data_root):
    shard, count = find_shard(data_root)
    shard.unlink()
    wanted = read_wanted(data_root)
    lost = find_lost_volumes(data_root, RECIPE.recipe_id, wanted)
    row = {"stage": "convert", "variant": RECIPE.recipe_id, "is_permanent": True, "is_withdrawn": False}
    with open_run(data_root, "convert", RECIPE.recipe_id) as run:
        run.record("rejects", [row | {"item": item, "fingerprint": wanted[item], "reason": "x"} for item in lost])
    assert len(lost) == count
    assert find_lost_volumes(data_root, RECIPE.recipe_id, wanted) == {}
    assert find_lost_volumes(data_root, RECIPE.recipe_id, wanted, with_rejects=True) == lost
    (line,) = list_lost(data_root)
    assert "convert --retry-rejects" in line


@pytest.mark.parametrize("kind", ["folder", "dangling link", "link to itself"])
def test_what_only_has_the_name_of_a_shard_is_lost(data_root, kind):
    shard, count = find_shard(data_root)
    shard.unlink()
    if kind == "folder":
        shard.mkdir()
    else:
        shard.symlink_to("gone" if kind == "dangling link" else shard.name)
    assert len(find_lost_volumes(data_root, RECIPE.recipe_id, read_wanted(data_root))) == count
    code, lines = verify_lines(data_root)
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith(str(shard.relative_to(data_root)))


def test_an_unreadable_folder_is_a_line_and_no_end(data_root):
    """A folder that is a link to itself stands for one without permission or of a stale mount."""
    loops = [data_root / "shards" / RECIPE.recipe_id, data_root / "models/smoke-1", data_root / "records/volumes"]
    for loop in loops:
        shutil.rmtree(loop)
        loop.symlink_to(loop.name)
    lines = list_lost(data_root)
    assert [line.partition(" cannot be read: ")[0] for line in lines] == [str(loop) for loop in loops[:2]]
    code, lines = verify_lines(data_root)
    assert code == 1
    assert sorted(line.partition(" cannot be read: ")[0] for line in lines) == sorted(
        str(loop.relative_to(data_root)) for loop in loops
    )
    with pytest.raises(MissingInputError, match="cannot be read"):  # and nothing is taken for lost
        find_lost_volumes(data_root, RECIPE.recipe_id, read_wanted(data_root))


def test_an_empty_shard_is_damaged(data_root):
    shard, _ = find_shard(data_root)
    shard.chmod(0o644)
    shard.write_bytes(b"")
    _, (line,) = verify_lines(data_root)
    assert "is damaged" in line
    assert "ctclip convert" in line


def test_a_record_with_broken_text_is_damaged(data_root):
    record = max((data_root / "records/volumes").iterdir())
    record.chmod(0o644)
    record.write_bytes(record.read_bytes().replace(b"volume_name", b"volume_nam\xe5"))
    _, (line,) = verify_lines(data_root)
    assert line.startswith(f"{record.relative_to(data_root)} is damaged")


def test_files_that_come_and_go_during_a_verification_are_not_reported(data_root, monkeypatch):
    """A stage publishes records after the warehouse was asked, and a superseded shard is deleted."""
    known = verify._read_known
    shard, _ = find_shard(data_root)
    asked = []

    def read_known(root):
        found = known(root)
        asked.append(root)
        if len(asked) == 1:
            with open_run(root, "convert", RECIPE.recipe_id):
                pass
            publish(root)
            return replace(
                found, shards=found.shards | {"shards/gone.arrow": found.shards[str(shard.relative_to(root))]}
            )
        return found

    monkeypatch.setattr(verify, "_read_known", read_known)
    assert verify.verify(data_root).damages == []
    assert len(asked) == 2
    shard.unlink()
    assert [damage.fault for damage in verify.verify(data_root).damages] == ["is lost"]


def test_each_folder_of_shards_is_listed_once_and_no_shard_is_looked_at(data_root, monkeypatch):
    listed = []
    names = lost._list_files
    monkeypatch.setattr(lost, "_list_files", lambda folder: listed.append(folder) or names(folder))
    monkeypatch.setattr(Path, "stat", None)
    monkeypatch.setattr(Path, "exists", None)
    paths = [f"shards/recipe/{number}.arrow" for number in range(50_188)]
    assert len(lost.find_lost_shards(data_root, paths)) == 50_188
    assert listed == [data_root / "shards/recipe"]


@pytest.mark.slow
@needs_prefect
@pytest.mark.parametrize("gone", ["", "model.safetensors", "config.json"])
def test_a_lost_labeller_is_trained_again(data_root, gone):
    from flows.train_labeller import train_labeller

    labeller = train_labeller(data_root, "smoke", kind="tfidf")["labeller_id"]
    folder = data_root / "models" / labeller
    shutil.rmtree(folder) if not gone else (folder / gone).unlink()
    assert find_newest_labeller(data_root, "tfidf") is None
    assert any(labeller in line for line in list_lost(data_root))
    assert train_labeller(data_root, "smoke", kind="tfidf")["done"] == 1
    assert list_lost(data_root) == []
    assert train_labeller(data_root, "smoke", kind="tfidf")["done"] == 0


def test_a_lost_model_is_pending(data_root):
    folder = find_model(data_root)
    fingerprint = config_fingerprint(find_preset("smoke"))
    assert find_trained(data_root, fingerprint) == "smoke-1"
    assert not must_train_again(data_root, fingerprint)
    assert explain_plan(data_root, "train", 9, {"preset": "smoke"})["pending"] == 0
    shutil.rmtree(folder)
    assert find_trained(data_root, fingerprint) is None
    assert must_train_again(data_root, fingerprint)
    plan = explain_plan(data_root, "train", 9, {"preset": "smoke"})
    assert plan["reasons"] == {"its model folder is lost": 1}


@needs_prefect
def test_no_stage_works_with_a_lost_model(data_root):
    shutil.rmtree(find_model(data_root))
    for command in (["embed"], ["finetune"]):
        done = run_ctclip(*command, "--preset", "smoke", "--data-root", data_root)
        assert (done.returncode, "smoke-1 is lost" in done.stderr) == (1, True)


@needs_prefect
def test_a_training_names_lost_shards(data_root):
    from flows.train_labeller import train_labeller

    train_labeller(data_root, "smoke", kind="tfidf")
    run_ctclip("label", "--labeller", "tfidf", "--data-root", data_root)
    shutil.rmtree(data_root / "models/smoke-1")
    shard, _ = find_shard(data_root)
    shard.unlink()
    done = run_ctclip("train", "--preset", "smoke", "--labeller", "tfidf", "--data-root", data_root)
    assert done.returncode == 1
    assert "run `ctclip convert`" in done.stderr


def flip(path: Path, offset: int) -> None:
    """Changes one bit of a file, whose size and times stay."""
    times = path.stat()
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def verify_lines(root: Path) -> tuple[int, list[str]]:
    done = run_ctclip("verify", "--data-root", root)
    return done.returncode, done.stdout.splitlines()[:-1]


def test_a_whole_data_root_is_verified_and_not_written_to(data_root):
    before = {path: path.stat().st_mtime_ns for path in data_root.rglob("*")}
    assert verify_lines(data_root) == (0, [])
    assert {path: path.stat().st_mtime_ns for path in data_root.rglob("*")} == before


def test_damaged_shards_models_and_records_have_a_line_and_a_remedy_each(data_root):
    shard, model = find_shard(data_root)[0], find_model(data_root)
    record = max((data_root / "records/volumes").iterdir())
    flip(shard, shard.stat().st_size // 2)
    flip(model / "model.safetensors", -1)
    flip(record, 40)
    code, lines = verify_lines(data_root)
    assert code == 1
    assert [line.split()[0] for line in lines] == [
        str(path.relative_to(data_root)) for path in (record, shard, model / "model.safetensors")
    ]
    for line, remedy in zip(lines, ("backup", "ctclip convert --preset", "ctclip train --preset smoke"), strict=True):
        assert remedy in line


def test_lost_and_cut_files_are_found(data_root):
    shard, model = find_shard(data_root)[0], find_model(data_root)
    records = sorted((data_root / "records/shard_volumes").iterdir())
    shard.write_bytes(shard.read_bytes()[:-9])
    (model / "config.json").write_text('{"half')
    records[0].unlink()
    code, lines = verify_lines(data_root)
    assert (code, len(lines)) == (1, 3)
    assert "is lost" in lines[0]


def test_no_record_file_with_changed_values_passes(data_root):
    record = max((data_root / "records/volumes").iterdir())
    path, whole = str(record.relative_to(data_root)), record.read_bytes()
    rows = pq.read_table(record).to_pylist()
    count_found = 0
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    for offset in range(4, len(whole) - footer, 61):
        flip(record, offset)
        if found := _check_record(data_root, {path: len(whole)}, path):
            count_found += found[0].path == path
        else:
            assert pq.read_table(record).to_pylist() == rows, offset
        record.write_bytes(whole)
    assert count_found > 5


def test_a_damaged_warehouse_is_named_and_the_records_are_still_checked(data_root):
    record = max((data_root / "records/volumes").iterdir())
    flip(record, 40)
    (data_root / store.WAREHOUSE_FILE).unlink()
    code, lines = verify_lines(data_root)
    assert (code, len(lines)) == (1, 2)
    assert "ctclip publish --from-scratch" in lines[0]


def test_while_no_shard_is_lost_no_volume_is_read(data_root, monkeypatch):
    wanted = read_wanted(data_root)
    monkeypatch.setattr(lost, "_read_rows", lambda *_: pytest.fail("a row for each volume was read"))
    assert find_lost_volumes(data_root, RECIPE.recipe_id, wanted) == {}
    assert list_lost(data_root) == []
