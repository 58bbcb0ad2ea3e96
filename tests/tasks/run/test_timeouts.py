"""Work that would hang for ever ends, with a line that names it."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import pytest

from ctclip_model.config import smoke
from ctclip_model.errors import StageFailedError
from tasks.run.dask_jobs import fan_out
from tasks.run.lease import hold_lease
from tasks.settings import LIMITS
from tasks.volumes.convert import convert_job
from tasks.volumes.jobs import ConversionJob, VolumeFile
from warehouse.store import query

RECIPE = smoke().recipe


def volume(path: Path, size_bytes: int = 0) -> VolumeFile:
    return VolumeFile(path.name, "f", str(path), size_bytes, "sha", (1.0, 1.0, 1.0), 1.0, 0.0)


def test_volume_whose_file_never_answers_is_a_reject_and_the_next_is_read(tmp_path):
    os.mkfifo(tmp_path / "hangs.npz")  # nobody writes to it
    (tmp_path / "next").write_bytes(b"not a volume")
    files = (volume(tmp_path / "hangs.npz"), volume(tmp_path / "next", 12))
    result = convert_job(ConversionJob(RECIPE, tmp_path / "x.arrow", files, "abc", volume_timeout_s=0.5))
    assert [(error.item, error.reason) for error in result.rejects] == [
        ("hangs.npz", "timed_out"),
        ("next", "not_nifti"),
    ]
    assert "more than 0.5 s" in result.rejects[0].detail


def test_fan_out_of_which_no_job_ends_is_given_up():
    limits = dataclasses.replace(LIMITS, fan_out_stall_s=1.0)
    with pytest.raises(StageFailedError, match="no job of 1 has ended for 1 s, on 1 Dask workers"):
        list(fan_out(time.sleep, [60], workers=1, limits=limits))


@pytest.mark.timeout(300, method="thread")  # or pytest itself would own the alarm that Prefect sets
def test_stage_that_hangs_is_ended_and_recorded_as_failed(prefect_server, tmp_path):
    from prefect import flow, task

    from tasks.stages.stage import stage_run

    @task
    def hang() -> None:
        time.sleep(60)

    @flow(timeout_seconds=2)
    def stage() -> None:
        with stage_run(tmp_path, "label"):
            hang()

    started = time.monotonic()
    with pytest.raises(StageFailedError, match=r"label: not done after \d+ s, and ended"):
        stage()
    assert time.monotonic() - started < 30
    assert not list(tmp_path.glob("locks/*.lease"))
    assert query(tmp_path, "select status from runs order by 1") == [("failed",), ("running",)]


@pytest.mark.timeout(300, method="thread")
def test_stage_that_waits_for_another_too_long_is_ended(prefect_server, few_phantoms, tmp_path):
    from flows.ingest import ingest

    assert ingest.timeout_seconds == LIMITS.stage_timeout_s
    with hold_lease(tmp_path.resolve() / "data", "ingest"), pytest.raises(StageFailedError, match="ended"):
        ingest.with_options(timeout_seconds=2)(str(few_phantoms), tmp_path / "data")
