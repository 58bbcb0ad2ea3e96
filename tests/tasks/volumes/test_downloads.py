"""Volumes from a faulty hub: the right bytes or a reject with its reason, and a rerun that mends it."""

from __future__ import annotations

import dataclasses
import gzip
import random
import subprocess
import time
from pathlib import Path

import pytest
from support.data_roots import (
    QUICK,
    assert_every_volume_is_converted,
    assert_same_files,
    convert,
    download,
    ingest,
    list_converted,
    list_reasons,
    raw_files,
)
from support.hub import LoopbackHub
from support.hub.server import NOT_ACCEPTED
from support.processes import kill_after, start_python, wait_for
from support.volumes import COARSE

from ctclip_model.data.phantom import PhantomConfig, make_phantoms
from ctclip_model.errors import (
    ConfigurationError,
    FileRefusedError,
    HubAccessError,
    HubUnavailableError,
    StageFailedError,
)
from ctclip_model.files import sha256_of
from tasks.plan.explain import explain_plan
from tasks.run.pending import plan_items
from tasks.run.stage_run import open_run
from tasks.sources.address import parse_address
from tasks.sources.hub_source import HubSource
from tasks.volumes.download import download_files
from tasks.volumes.downloader import Downloader, DownloadOptions, count_raw_bytes
from tasks.volumes.jobs import read_volumes
from warehouse import store

ADDRESS = "hf://datasets/owner/CT-RATE"


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    make_phantoms(folder, PhantomConfig(seed=2, train_patients=3, valid_patients=2), processes=1)
    return folder


@pytest.fixture
def data_root(hub: LoopbackHub, phantoms: Path, tmp_path: Path) -> Path:
    """A data root that has ingested the phantoms from the hub."""
    hub.repository("owner/CT-RATE", is_gated=True).commit(phantoms)
    ingest(HubSource(parse_address(ADDRESS), tmp_path / "data", limits=QUICK), tmp_path / "data")
    return tmp_path / "data"


def test_files_that_stand_in_xet_come_whole_over_plain_http_too(hub, phantoms, tmp_path):
    hub.repository("owner/CT-RATE", is_xet=True).commit(phantoms)
    ingest(HubSource(parse_address(ADDRESS), tmp_path / "data", limits=QUICK), tmp_path / "data")
    assert download(tmp_path / "data")["rejected"] == 0
    assert_same_files(tmp_path / "data", phantoms)
    assert hub.count("xet-read-token") == 0


@pytest.mark.parametrize(
    ("kind", "on", "times"),
    [
        (429, "/resolve/", 2), (500, "/content/", 2), (502, "/resolve/", 2), (503, "/content/", 2),
        ("reset", "/content/", 2), ("stall", "/content/", 1), ("truncated", "/content/", 1),
        ("wrong_bytes", "/content/", 1), ("wrong_size", "/content/", 1),
    ],
)  # fmt: skip
def test_fault_that_passes_leaves_no_trace(hub, data_root, phantoms, kind, on, times):
    hub.faults.play(kind, on, times, Retry_After="0")
    summary = download(data_root, threads=1)
    assert len(hub.faults.played) == times
    assert summary["rejected"] == 0
    assert_same_files(data_root, phantoms)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (404, "not_on_hub"), (503, "download_failed"), ("reset", "download_failed"), ("wrong_bytes", "wrong_hash"),
        ("wrong_size", "wrong_size"), ("redirect", "wrong_size"),
    ],
)  # fmt: skip
def test_fault_that_lasts_is_a_reject_and_the_rest_is_fetched(hub, data_root, phantoms, kind, reason):
    hub.faults.play(kind, "train_1_a_1.nii.gz", times=50)
    assert download(data_root)["rejected"] == 1
    assert list_reasons(data_root) == [reason]
    hub.faults.waiting.clear()
    assert download(data_root)["done"] == 1
    assert_same_files(data_root, phantoms)
    assert list_reasons(data_root) == []


def test_volumes_of_a_lost_shard_are_downloaded_again(data_root):
    convert(data_root)
    assert download(data_root)["done"] == 0
    rows = list_converted(data_root)
    lost = min(path for path, _ in rows.values())
    (data_root / lost).unlink()
    assert download(data_root)["done"] == sum(path == lost for path, _ in rows.values())


@pytest.mark.parametrize("status", [401, 403])
def test_refused_token_stops_the_downloads_with_what_to_do(hub, data_root, status):
    hub.faults.play(status, "/resolve/", times=1000)
    with pytest.raises(HubAccessError, match="settings/tokens" if status == 401 else "accept them there"):
        download(data_root)


@pytest.mark.parametrize("status", [401, 403])
def test_file_that_the_content_network_refuses_is_a_reject_and_the_account_is_not(hub, data_root, phantoms, status):
    (refused,) = phantoms.rglob("train_1_a_1.nii.gz")
    hub.faults.play(status, f"/content/{sha256_of(refused)}", times=2)
    assert download(data_root)["rejected"] == 1
    assert list_reasons(data_root) == ["refused"]
    assert download(data_root)["done"] == 1
    assert list_reasons(data_root) == []
    assert_same_files(data_root, phantoms)


def test_refusal_that_passes_leaves_no_trace(hub, data_root, phantoms):
    hub.faults.play(403, "/content/", times=1)
    assert download(data_root, threads=1)["rejected"] == 0
    assert_same_files(data_root, phantoms)


def test_file_that_the_hub_itself_refuses_without_a_reason_is_a_reject(hub, data_root, phantoms):
    hub.faults.play(403, "train_1_a_1.nii.gz", times=50)
    assert download(data_root)["rejected"] == 1
    assert list_reasons(data_root) == ["refused"]
    assert len(raw_files(data_root)) == len(list(phantoms.rglob("*.nii.gz"))) - 1


def test_account_without_access_stops_the_downloads(hub, data_root, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", NOT_ACCEPTED)
    with pytest.raises(HubAccessError, match="accept them there"):
        download(data_root)


def test_content_network_that_refuses_everything_stops_the_downloads(hub, data_root):
    hub.faults.play(403, "/content/", times=1000)
    limits = dataclasses.replace(QUICK, rejects_tolerated=2)
    with Downloader(data_root, DownloadOptions(threads=1), None, limits) as downloader:
        volumes = list(read_volumes(data_root, COARSE, None).values())
        with pytest.raises(FileRefusedError, match=r"127\.0\.0\.1 refuses .*nii\.gz with status 403") as raised:
            list(map(downloader.fetch, volumes))
    assert "Signature" not in str(raised.value)


def test_hub_that_is_down_stops_the_downloads(hub, data_root):
    hub.faults.play(503, "/resolve/", times=1000)
    with pytest.raises(HubUnavailableError, match="answers 503"), open_run(data_root, "download", limits=QUICK) as run:
        volumes = list(read_volumes(data_root, COARSE, None).values())
        limits = dataclasses.replace(QUICK, rejects_tolerated=2)
        with Downloader(data_root, DownloadOptions(threads=1), None, limits) as downloader:
            for volume in volumes:
                downloader.fetch(volume)
    assert run.count_done == 0


def test_partial_file_is_fetched_on_from_where_it_stopped(hub, data_root, phantoms):
    volumes = read_volumes(data_root, COARSE, None)
    sent = hub.sent_bytes
    for volume in volumes.values():
        partial = data_root / "raw/.partial" / volume.sha256
        partial.parent.mkdir(exist_ok=True)
        content = Path(phantoms, Path(volume.path).relative_to(data_root.resolve() / "raw")).read_bytes()
        partial.write_bytes(content[: len(content) * 3 // 4])
    download(data_root)
    assert_same_files(data_root, phantoms)
    assert hub.sent_bytes - sent < 0.3 * count_raw_bytes(volumes.values())


def test_attempts_are_counted_anew_while_bytes_come(hub, data_root, phantoms):
    hub.chunk_bytes = 2000
    hub.faults.play("reset", on="train_1_a_1.nii.gz", times=2 * QUICK.hub_attempts)
    assert download(data_root, threads=1)["rejected"] == 0
    assert_same_files(data_root, phantoms)


def test_hub_that_knows_no_ranges_sends_a_partial_file_whole_and_once(hub, data_root, phantoms):
    volumes = read_volumes(data_root, COARSE, None)
    first = next(iter(volumes.values()))
    partial = data_root / "raw/.partial" / first.sha256
    partial.parent.mkdir(exist_ok=True)
    partial.write_bytes(b"x" * (first.size_bytes // 2))
    hub.faults.play("no_ranges", on=first.volume_name)
    sent = hub.sent_bytes
    download(data_root)
    assert_same_files(data_root, phantoms)
    assert hub.sent_bytes - sent == count_raw_bytes(volumes.values())


def test_damaged_raw_file_is_fetched_again_and_a_good_one_is_not(hub, data_root, phantoms):
    download(data_root)
    damaged = raw_files(data_root)[0]
    damaged.write_bytes(bytes(damaged.stat().st_size))
    summary = download(data_root)
    assert summary["done"] == 1
    assert "1 files fetched" in str(summary["detail"])
    assert f"{len(raw_files(data_root)) - 1} reused" in str(summary["detail"])
    assert_same_files(data_root, phantoms)


def test_conversion_downloads_within_its_bound_and_drops_what_it_recorded(hub, data_root):
    volumes = read_volumes(data_root, COARSE, None)
    bound = 2.5 * max(volume.size_bytes for volume in volumes.values())
    result = convert(data_root, raw_cache_gb=bound / 1e9)
    assert (result["done"], result["rejected"], result["fetched"]) == (len(volumes), 0, len(volumes))
    assert_every_volume_is_converted(data_root)
    assert raw_files(data_root) == []


def test_plan_says_how_much_is_to_be_downloaded(data_root):
    volumes = read_volumes(data_root, COARSE, None)
    with open_run(data_root, "convert", COARSE.recipe_id, limits=QUICK) as run:
        plan_items(run, COARSE.recipe_id, {name: one.fingerprint for name, one in volumes.items()})
    planned = explain_plan(data_root, "convert", 1)
    assert planned["downloads"] == {"files": len(volumes), "bytes": count_raw_bytes(volumes.values())}
    download(data_root)
    assert explain_plan(data_root, "convert", 1)["downloads"]["files"] == 0


@pytest.mark.slow
def test_kept_raw_files_are_used_by_the_next_recipe_without_a_request(hub, data_root):
    convert(data_root, keep_raw=True)
    assert len(raw_files(data_root)) == len(list_converted(data_root))
    asked = len(hub.requests)
    with open_run(data_root, "convert", COARSE.recipe_id, limits=QUICK):
        volumes = list(read_volumes(data_root, COARSE, None).values())
        with Downloader(data_root, DownloadOptions(keep_raw=True), None, QUICK) as downloader:
            assert all(map(downloader.fetch, volumes))
    assert len(hub.requests) == asked
    assert downloader.count_reused == len(volumes)


@pytest.mark.slow
def test_volume_that_cannot_be_had_is_left_out_of_its_shard_and_made_by_the_rerun(hub, data_root):
    hub.faults.play("wrong_bytes", "train_1_a_1.nii.gz", times=50)
    count = len(read_volumes(data_root, COARSE, None))
    first = convert(data_root)
    assert (first["done"], first["rejected"], list_reasons(data_root)) == (count - 1, 1, ["wrong_hash"])
    hub.faults.waiting.clear()
    assert convert(data_root)["done"] == 1
    assert_every_volume_is_converted(data_root)


def test_bound_smaller_than_the_selection_says_what_is_left(data_root, phantoms):
    sizes = [volume.size_bytes for volume in read_volumes(data_root, COARSE, None).values()]
    summary = download(data_root, raw_cache_gb=(sizes[0] + sizes[1]) / 1e9)
    assert summary["done"] == 2
    assert f"{len(sizes) - 2} more" in str(summary["detail"])
    assert "--keep-raw" in str(summary["detail"])


def test_bound_too_small_for_a_volume_is_refused(data_root):
    with pytest.raises(ConfigurationError, match=r"too small: .* GB are needed at once"):
        convert(data_root, raw_cache_gb=1e-6)


def test_downloads_keep_to_their_rate(data_root):
    total = count_raw_bytes(read_volumes(data_root, COARSE, None).values())
    started = time.monotonic()
    download(data_root, max_mb_per_s=total / 1e6 / 1.5)
    assert time.monotonic() - started > 1.2


def test_full_disk_stops_the_stage_with_one_line_and_all_is_whole(data_root):
    volumes = list(read_volumes(data_root, COARSE, None).values())
    convert(data_root)
    with store.read(data_root) as connection:
        before = connection.execute("select * from current_shard_volumes order by all").fetchall()
    partial = data_root / "raw/.partial" / volumes[-1].sha256
    partial.symlink_to("/dev/full")  # each write to it fails as on a disk without room
    with (
        pytest.raises(StageFailedError, match=r"the disk is full: .* GB are needed .* GB are free") as caught,
        open_run(data_root, "download", limits=QUICK) as run,
    ):
        download_files(run, volumes, DownloadOptions(), None)
    assert "\n" not in str(caught.value)
    with store.read(data_root) as connection:
        assert connection.execute("select * from current_shard_volumes order by all").fetchall() == before
    assert_every_volume_is_converted(data_root)


def test_disk_without_room_is_found_before_anything_is_fetched(hub, data_root):
    volumes = [dataclasses.replace(one, size_bytes=10**15) for one in read_volumes(data_root, COARSE, None).values()]
    with (
        Downloader(data_root, DownloadOptions(keep_raw=True), None, QUICK) as downloader,
        pytest.raises(ConfigurationError, match=r"downloads need .* GB .* are free"),
    ):
        downloader.prepare(volumes, 10**15)


@pytest.mark.slow
def test_machine_without_a_network_uses_what_is_there_and_names_the_rest(data_root):
    download(data_root)
    raw_files(data_root)[0].unlink()
    program = "from pathlib import Path; from support.data_roots import convert; convert(Path(sys.argv[1]))"
    child = start_python(
        f"import sys\nif __name__ == '__main__':\n    {program}", data_root, environment={"HF_HUB_OFFLINE": "1"}
    )
    _, errors = child.communicate()
    last = errors.splitlines()[-1]
    assert "1 volumes, such as" in last
    assert "HF_HUB_OFFLINE is set: run `ctclip download`" in last
    assert len(list_converted(data_root)) == len(read_volumes(data_root, COARSE, None)) - 1


@pytest.mark.slow
def test_downloads_killed_ten_times_fetch_little_twice(hub, tmp_path):
    names = [f"valid_{patient}_a_1" for patient in range(1, 61)]
    rng = random.Random(0)
    folder = tmp_path / "many"
    for name in names:
        patient, scan = name.rsplit("_", 2)[0], name.rsplit("_", 1)[0]
        path = folder / "dataset/valid_fixed" / patient / scan / f"{name}.nii.gz"
        path.parent.mkdir(parents=True)
        path.write_bytes(gzip.compress(rng.randbytes(1_000_000), 0))
    table = folder / "dataset/metadata/validation_metadata.csv"
    table.parent.mkdir(parents=True)
    rows = "".join(f'{name}.nii.gz,"[1, 1]",1\n' for name in names)
    table.write_text(f"VolumeName,XYSpacing,ZSpacing\n{rows}")
    hub.repository("owner/CT-RATE").commit(folder)
    data_root = tmp_path / "data"
    ingest(HubSource(parse_address(ADDRESS), data_root, limits=QUICK), data_root)
    hub.sent_bytes, hub.chunk_bytes, hub.chunk_delay_s = 0, 50_000, 0.02
    program = "import sys, pathlib; from support.data_roots import download; download(pathlib.Path(sys.argv[1]))"
    for _ in range(10):
        before = len(raw_files(data_root))
        with start_python(program, data_root, stderr=subprocess.DEVNULL, start_new_session=True) as child:
            wait_for(lambda before=before, child=child: len(raw_files(data_root)) > before or child.poll() is not None)
            kill_after(child, rng.uniform(0, 0.4))
    hub.chunk_delay_s = 0.0
    download(data_root)
    assert_same_files(data_root, folder)
    size = count_raw_bytes(read_volumes(data_root, COARSE, None).values())
    assert hub.sent_bytes <= 1.2 * size, f"{hub.sent_bytes / size:.2f} of what there is"
