"""Every default of the orchestration, once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ctclip_model.models.kinds import FINE_TUNED
from ctclip_model.stages import PIPELINE

DATA_ROOT_VARIABLE = "CTCLIP_DATA_ROOT"
DATA_ROOT = Path(os.environ.get(DATA_ROOT_VARIABLE, "data"))
PRESET = "published"
LABELLER = "radbert"
RAW_CACHE_GB = 20.0  # of volumes downloaded and not yet converted
DOWNLOAD_THREADS = 8
HUB_TOKEN_BLOCK = "hugging-face-token"  # the name of a Prefect Secret
LABELLER_KINDS = ("roberta", "tfidf")  # that can be trained

STAGES = tuple(stage.name for stage in PIPELINE.values() if stage.is_rebuilt)  # in a rebuild's order
FINETUNE = tuple(kind.value for kind in FINE_TUNED)  # kinds of fine-tuning, in a rebuild's order
HAND = "hand"  # the source of labels that people gave
PUBLISHED_LABELS = "published"  # the labeller that CT-RATE's own labels stand under

CT_RATE = "ibrahimhamamci/CT-RATE"  # a data set's repository on the Hub, which holds the published models too

DEPLOYED_POLL_S = 2.0  # between two questions after a stage that runs elsewhere
DEPLOYED_SILENCE_S = 60.0  # after which one is told that no worker has taken what was asked of a pool
DEPLOYED_ATTEMPTS = 3  # at a stage whose worker dies

DEMO_PATIENTS = (2000, 300)  # train, valid


@dataclass(frozen=True)
class Limits:
    """What bounds a stage; each is a number that somebody may need to change."""

    publish_interval_s: float = 60.0
    lease_heartbeat_s: float = 5.0
    lease_expiry_s: float = 60.0  # a lease without a heartbeat for so long belongs to a dead host
    lease_wait_s: float = 24 * 3600.0
    stage_timeout_s: float = 24 * 3600.0  # of ingest, label, evaluate and report, waiting for a lease included
    volume_timeout_s: float = 1800.0  # of one volume's conversion, which takes seconds
    fan_out_stall_s: float = 6 * 3600.0  # without a single job's end, such as for want of any Dask worker
    reject_share: float = 0.5  # of a run's items; above it the stage fails
    rejects_tolerated: int = 10  # however large their share: a small update may be all bad
    shard_bytes: int = 1_000_000_000
    compacted_share: float = 0.5  # of a shard's volumes superseded; from there on `gc --compact` rewrites it
    shard_volumes: int = 512  # at most, however small the volumes are
    label_batch: int = 2048  # reports between two records
    worker_memory_bytes: int = 4_000_000_000
    jobs_in_flight_per_worker: int = 2
    worker_deaths: int = 3  # that one job may cause before it is split, or rejected
    abandoned_s: float = 30 * 24 * 3600.0  # without a write, after which a training that is not done is given up
    training_retries: int = 3  # of a training whose processes have died; each goes on from the last checkpoint
    training_retry_delay_s: float = 10.0
    training_silence_s: float = 3600.0  # without a word of a training's processes, after which they hang and are ended
    training_stop_s: float = 40.0  # that processes have to save their state: torchrun gives them 30
    hub_attempts: int = 8  # at one request of the Hub
    hub_wait_s: float = 1.0  # before the second attempt; then ever longer
    hub_longest_wait_s: float = 300.0  # the window in which the Hub counts requests
    hub_timeout_s: float = 60.0  # of a request for facts, which take it long for hundreds of files
    hub_paths_a_request: int = 500  # the Hub refuses more than 1,000
    hub_requests_at_once: int = 4


LIMITS = Limits()


def hub_endpoint() -> str:
    """Where the Hugging Face Hub is."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def count_workers() -> int:
    """Worker processes on this machine: one a core that the process may use."""
    return max(1, len(os.sched_getaffinity(0)))
