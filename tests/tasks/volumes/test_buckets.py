"""CT-RATE from a bucket of a real S3 server on loopback: the right bytes or a reject, and no credentials anywhere."""

from __future__ import annotations

import dataclasses
import gzip
import pickle
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.data_roots import (
    QUICK,
    assert_every_volume_is_converted,
    assert_same_files,
    convert,
    download,
    ingest,
    list_reasons,
    raw_files,
)
from support.processes import kill_after, start_python, wait_for
from support.volumes import COARSE

from ctclip_model.data.phantom import PhantomConfig, make_phantoms
from ctclip_model.errors import (
    FileRefusedError,
    RemoteAccessError,
    RemoteNotFoundError,
    RemoteUnavailableError,
)
from ctclip_model.files import sha256_of
from tasks.sources.address import parse_address
from tasks.sources.bucket_source import BucketSource
from tasks.sources.local_source import LocalSource
from tasks.sources.tables import METADATA
from tasks.volumes.downloader import Downloader, DownloadOptions, count_raw_bytes
from tasks.volumes.jobs import read_volumes
from warehouse import store

for package in ("moto.server", "s3fs", "boto3"):
    pytest.importorskip(package, reason=f"SKIPPED LOUDLY: no {package}, install the extra `dev`")

from support.bucket import KEY_ID, SECRET, LoopbackBucket, set_environment  # noqa: E402

PREFIX = "mirror of CT-RATE+2 #é %41 [x]*"  # letters that mean something in addresses and patterns
ADDRESS = f"s3://mirror/{PREFIX}"


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    make_phantoms(folder, PhantomConfig(seed=2, train_patients=3, valid_patients=2), processes=1)
    return folder


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackBucket]:
    """An empty bucket, whose endpoint and credentials the environment tells as it does for s3fs itself."""
    with LoopbackBucket("mirror").running() as running:
        set_environment(monkeypatch, running, tmp_path)
        yield running


def open_bucket(data_root: Path, address: str = ADDRESS) -> BucketSource:
    limits = dataclasses.replace(QUICK, bucket_names_asked=3)
    return BucketSource(parse_address(address), data_root, limits=limits)


@pytest.fixture
def data_root(bucket: LoopbackBucket, phantoms: Path, tmp_path: Path) -> Path:
    """A data root that has ingested the phantoms from the bucket."""
    bucket.put_folder(phantoms, PREFIX)
    ingest(open_bucket(tmp_path / "data"), tmp_path / "data")
    return tmp_path / "data"


def key_of(phantoms: Path, name: str) -> str:
    (path,) = phantoms.rglob(f"{name}.nii.gz")
    return f"{PREFIX}/{path.relative_to(phantoms)}"


def test_catalogue_of_the_bucket_is_that_of_the_folder(bucket, phantoms, tmp_path):
    bucket.put_folder(phantoms, PREFIX, ChecksumAlgorithm="SHA256")
    source = open_bucket(tmp_path)
    _, catalogue = source.read()
    _, expected = LocalSource(phantoms, tmp_path / "local").read()
    checksums = [row.pop("checksum") for row in catalogue.volumes]
    for row in (*catalogue.volumes, *expected.volumes):
        del row["fingerprint"]
    assert catalogue == expected
    assert all(checksum.startswith("etag:") for checksum in checksums)
    assert (source.name, source.kind) == (ADDRESS, "phantom")


def test_many_objects_are_listed_and_few_are_asked_for_by_name(bucket, data_root, phantoms, tmp_path):
    assert bucket.count("list-type") == 3  # tables, train, valid
    by_name = BucketSource(parse_address(ADDRESS), tmp_path / "names", limits=QUICK).read()
    assert bucket.count("list-type") == 3
    assert by_name == open_bucket(tmp_path / "listed").read()


def test_bucket_that_may_not_be_listed_is_asked_by_name(bucket, phantoms, tmp_path):
    bucket.put_folder(phantoms, PREFIX)
    bucket.client.delete_object(Bucket="mirror", Key=f"{PREFIX}/dataset/metadata/no_chest_train.txt")
    expected = open_bucket(tmp_path / "listed").read()
    bucket.faults.play(403, "list-type", times=10)
    bucket.faults.play(403, "no_chest_train.txt", times=10)  # S3's answer to such an account for a missing object
    assert open_bucket(tmp_path / "names").read() == expected


def test_conversion_from_a_bucket_downloads_within_its_bound_and_drops_what_it_recorded(bucket, data_root, phantoms):
    volumes = read_volumes(data_root, COARSE, None)
    bound = 2.5 * max(volume.size_bytes for volume in volumes.values())
    result = convert(data_root, raw_cache_gb=bound / 1e9)
    assert (result["done"], result["rejected"], result["fetched"]) == (len(volumes), 0, len(volumes))
    assert_every_volume_is_converted(data_root)
    assert raw_files(data_root) == []
    hashes = store.query(data_root, "select volume_name, source_sha256 from current_shard_volumes")
    assert dict(hashes) == {path.name.removesuffix(".nii.gz"): sha256_of(path) for path in phantoms.rglob("*.nii.gz")}


def test_changed_and_withdrawn_objects_are_the_only_difference(bucket, data_root, phantoms):
    convert(data_root)
    ingest(open_bucket(data_root), data_root)
    assert convert(data_root)["done"] == 0
    content = gzip.compress(gzip.decompress(next(phantoms.rglob("train_1_a_1.nii.gz")).read_bytes()), 1)
    bucket.client.put_object(Bucket="mirror", Key=key_of(phantoms, "train_1_a_1"), Body=content)
    bucket.client.delete_object(Bucket="mirror", Key=key_of(phantoms, "train_2_a_1"))
    ingest(open_bucket(data_root), data_root)
    (without,) = store.query(data_root, "select volume_name from current_volumes where size_bytes is null")
    assert without == ("train_2_a_1",)
    assert (convert(data_root)["done"], list_reasons(data_root)) == (1, [])


def test_object_that_changes_between_ingest_and_download_is_a_reject_until_the_next_ingest(bucket, data_root, phantoms):
    size = next(phantoms.rglob("train_1_a_1.nii.gz")).stat().st_size
    bucket.client.put_object(Bucket="mirror", Key=key_of(phantoms, "train_1_a_1"), Body=bytes(size))
    bucket.client.delete_object(Bucket="mirror", Key=key_of(phantoms, "train_2_a_1"))
    assert download(data_root)["rejected"] == 2
    assert list_reasons(data_root) == ["changed_since_ingest", "not_in_bucket"]
    assert_same_files(data_root, phantoms, missing=2)
    bucket.put_folder(phantoms, PREFIX)
    assert download(data_root)["done"] == 2
    assert_same_files(data_root, phantoms)
    assert list_reasons(data_root) == []


@pytest.mark.parametrize("kind", [500, 503, "truncated", "wrong_size", "wrong_bytes"])
def test_fault_that_passes_leaves_no_trace(bucket, data_root, phantoms, kind):
    bucket.faults.play(kind, "GET", times=1)
    assert download(data_root, threads=1)["rejected"] == 0
    assert len(bucket.faults.played) == 1
    assert_same_files(data_root, phantoms)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (404, "not_in_bucket"), (403, "refused"), (503, "download_failed"), ("truncated", "download_failed"),
        ("wrong_bytes", "wrong_hash"),
    ],
)  # fmt: skip
def test_fault_that_lasts_is_a_reject_and_the_rest_is_fetched(bucket, data_root, phantoms, kind, reason):
    bucket.faults.play(kind, "train_1_a_1.nii.gz", times=200)
    assert download(data_root)["rejected"] == 1
    assert list_reasons(data_root) == [reason]
    bucket.faults.waiting.clear()
    assert download(data_root)["done"] == 1
    assert_same_files(data_root, phantoms)
    assert list_reasons(data_root) == []


def test_object_in_parts_is_kept_by_its_own_hash(bucket, data_root, phantoms, tmp_path):
    content = random.Random(0).randbytes(6 << 20)
    bucket.put_in_parts(key_of(phantoms, "train_1_a_1"), content)
    ingest(open_bucket(data_root), data_root)
    assert download(data_root)["rejected"] == 0
    (path,) = (data_root / "raw").rglob("train_1_a_1.nii.gz")
    assert path.read_bytes() == content
    sent = bucket.sent_bytes
    assert download(data_root)["done"] == 0
    assert bucket.sent_bytes == sent
    path.write_bytes(bytes(len(content)))
    assert download(data_root)["done"] == 1
    assert path.read_bytes() == content


def test_etag_of_an_object_that_a_key_encrypts_is_no_md5(bucket, phantoms, tmp_path):
    bucket.put_folder(phantoms, PREFIX, ServerSideEncryption="aws:kms")
    bucket.has_md5 = False
    data_root = tmp_path / "data"
    ingest(open_bucket(data_root), data_root)
    assert download(data_root)["rejected"] == 0
    assert_same_files(data_root, phantoms)
    assert download(data_root)["done"] == 0


def test_partial_file_is_fetched_on_from_where_it_stopped(bucket, data_root, phantoms):
    from tasks.remote.files import RemoteFile

    volumes = read_volumes(data_root, COARSE, None)
    sent = bucket.sent_bytes
    for volume in volumes.values():
        path = str(Path(volume.path).relative_to(data_root.resolve() / "raw"))
        name = RemoteFile(path, volume.size_bytes, volume.sha256, volume.checksum).partial_name
        partial = data_root / "raw/.partial" / name
        partial.parent.mkdir(exist_ok=True)
        content = (phantoms / path).read_bytes()
        partial.write_bytes(content[: len(content) * 3 // 4])
    download(data_root)
    assert_same_files(data_root, phantoms)
    assert bucket.sent_bytes - sent < 0.3 * count_raw_bytes(volumes.values())


@pytest.mark.parametrize(
    ("status", "error", "line"),
    [
        (403, FileRefusedError, r"refuses access \(403\): check the credentials that s3fs finds"),
        (503, RemoteUnavailableError, r"cannot be read \(503\): check the network"),
    ],
)
def test_fault_of_every_file_stops_the_downloads(bucket, data_root, status, error, line):
    bucket.faults.play(status, "nii.gz", times=1000)
    limits = dataclasses.replace(QUICK, rejects_tolerated=2)
    volumes = list(read_volumes(data_root, COARSE, None).values())
    with (
        Downloader(data_root, DownloadOptions(threads=1), None, limits) as downloader,
        pytest.raises(error, match=line),
    ):
        list(map(downloader.fetch, volumes))


@pytest.mark.parametrize(
    ("change", "error", "line"),
    [
        (
            "refused",
            RemoteAccessError,
            r"^s3://mirror/.* refuses access \(403\): check the credentials",
        ),
        ("nobody", RemoteAccessError, r"s3fs finds no valid credentials \(NoCredentialsError\): set them as s3fs"),
        ("no bucket", RemoteNotFoundError, r"^s3://other/a: there is no such bucket"),
        ("no endpoint", RemoteUnavailableError, r"cannot be read \(EndpointConnectionError\): check the network"),
    ],
)
def test_what_cannot_be_read_is_one_line_without_credentials(bucket, tmp_path, monkeypatch, change, error, line):
    if change == "refused":
        bucket.faults.play(403, "mirror", times=100)
    elif change == "nobody":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    elif change == "no endpoint":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(error, match=line) as caught:
        open_bucket(tmp_path, "s3://other/a" if change == "no bucket" else ADDRESS).read()
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_credentials_are_recorded_nowhere(bucket, data_root, caplog):
    convert(data_root)
    files = [path for path in data_root.rglob("*") if path.is_file()]
    assert not [path for path in files if any(text.encode() in path.read_bytes() for text in (KEY_ID, SECRET))]
    assert not any(text in caplog.text for text in (KEY_ID, SECRET))


def test_two_downloads_at_once_fetch_each_file_once(bucket, data_root, phantoms):
    bucket.delay_s = 0.05
    volumes = list(read_volumes(data_root, COARSE, None).values())
    before = bucket.sent_bytes
    downloaders = [Downloader(data_root, DownloadOptions(threads=2), None, QUICK) for _ in range(2)]
    futures = [one.submit(volume) for volume in volumes for one in downloaders]
    assert all(future.result() for future in futures)
    for one in downloaders:
        one.__exit__()
    assert_same_files(data_root, phantoms)
    assert bucket.sent_bytes - before == count_raw_bytes(volumes)
    assert sum(one.count_fetched for one in downloaders) == len(volumes)


@pytest.mark.slow
def test_downloads_killed_ten_times_fetch_little_twice(bucket, tmp_path):
    names = [f"valid_{patient}_a_1" for patient in range(1, 61)]
    rng = random.Random(0)
    folder = tmp_path / "many"
    for name in names:
        path = folder / "dataset/valid_fixed" / name[: -len("_a_1")] / name[: -len("_1")] / f"{name}.nii.gz"
        path.parent.mkdir(parents=True)
        path.write_bytes(gzip.compress(rng.randbytes(1_000_000), 0))
    table = folder / METADATA["valid"]
    table.parent.mkdir(parents=True)
    rows = "".join(f'{name}.nii.gz,"[1, 1]",1\n' for name in names)
    table.write_text(f"VolumeName,XYSpacing,ZSpacing\n{rows}")
    bucket.put_folder(folder, PREFIX)
    data_root = tmp_path / "data"
    ingest(open_bucket(data_root), data_root)
    bucket.sent_bytes, bucket.delay_s = 0, 0.3
    program = "import sys, pathlib; from support.data_roots import download; download(pathlib.Path(sys.argv[1]))"
    for _ in range(10):
        before = len(raw_files(data_root))
        with start_python(program, data_root, stderr=subprocess.DEVNULL, start_new_session=True) as child:
            wait_for(lambda before=before, child=child: len(raw_files(data_root)) > before or child.poll() is not None)
            kill_after(child, rng.uniform(0, 0.4))
    bucket.delay_s = 0.0
    download(data_root)
    assert_same_files(data_root, folder)
    size = count_raw_bytes(read_volumes(data_root, COARSE, None).values())
    assert bucket.sent_bytes <= 2.4 * size, f"{bucket.sent_bytes / size:.2f} of what there is"
