"""Defaults and limits of the orchestration, each declared once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ctclip_model.models.kinds import FINE_TUNED
from ctclip_model.stages import PIPELINE

DATA_ROOT_VARIABLE = "CTCLIP_DATA_ROOT"
DATA_ROOT = Path(os.environ.get(DATA_ROOT_VARIABLE) or "data")
PRESET = "published"
LABELLER = "radbert"
RAW_CACHE_GB = 20.0  # disk space for volumes that are downloaded and not yet converted
DOWNLOAD_THREADS = 8
HUB_TOKEN_BLOCK = "hugging-face-token"  # name of a Prefect Secret
ENDPOINT_KEY_VARIABLE = "CTCLIP_ENDPOINT_KEY"  # holds the key of a language model's server
ENDPOINT_KEY_BLOCK = "ctclip-endpoint-key"  # name of a Prefect Secret with that key
REQUESTS_AT_ONCE = 8  # to a language model's server
LABELLER_KINDS = ("roberta", "tfidf")  # kinds that can be trained here

STAGES = tuple(stage.name for stage in PIPELINE.values() if stage.is_rebuilt)  # stages of a rebuild, in its order
FINETUNE = tuple(kind.value for kind in FINE_TUNED)  # kinds of fine-tuning, in a rebuild's order
HAND = "hand"  # label source: people
PHANTOM = "phantom"  # kind and data set of the demonstration, which never pass for CT-RATE
PUBLISHED_LABELS = "published"  # id of CT-RATE's own labels, in place of a labeller's

CT_RATE = "ibrahimhamamci/CT-RATE"  # repository on the Hub of the data set and of the published models

DEPLOYED_POLL_S = 2.0  # seconds between polls of a deployed run
DEPLOYED_SILENCE_S = 60.0  # seconds without a worker before a warning
DEPLOYED_ATTEMPTS = 3  # runs of a deployment whose worker dies

DEMO_PATIENTS = (2000, 300)  # phantom patients of the splits train and valid


@dataclass(frozen=True)
class Limits:
    """Limits of a stage: times in seconds, sizes in bytes."""

    publish_interval_s: float = 60.0  # shortest time between two publishes of a running stage
    lease_heartbeat_s: float = 5.0
    lease_expiry_s: float = 60.0  # age of the last heartbeat at which a lease is free
    lease_wait_s: float = 24 * 3600.0
    stage_timeout_s: float = 24 * 3600.0  # ingest, label, evaluate and report, including the wait for the lease
    volume_timeout_s: float = 1800.0  # conversion of one volume, which normally takes seconds
    fan_out_stall_s: float = 6 * 3600.0  # longest time in which no Dask job ends
    reject_share: float = 0.5  # share of rejected items above which a stage fails
    rejects_tolerated: int = 10  # rejects that never fail a stage, because a small update may be all bad
    shard_bytes: int = 1_000_000_000
    compacted_share: float = 0.5  # share of superseded volumes from which `gc --compact` rewrites a shard
    shard_volumes: int = 512  # most volumes of a shard
    label_batch: int = 2048  # labelled or embedded items of one record file
    worker_memory_bytes: int = 4_000_000_000
    jobs_in_flight_per_worker: int = 2
    worker_deaths: int = 3  # deaths before a job is split or rejected
    abandoned_s: float = 30 * 24 * 3600.0  # age of the last write at which an unfinished training is garbage
    training_retries: int = 3  # attempts after a process died, each from the last checkpoint
    training_retry_delay_s: float = 10.0
    training_silence_s: float = 3600.0  # longest time without a message of a training process
    training_stop_s: float = 40.0  # time for a process to save its state: torchrun gives it 30 s
    prefect_start_s: float = 120.0  # time for a temporary Prefect server to answer
    prefect_restart_s: float = 30.0  # wait between two starts of one that was lost
    endpoint_attempts: int = 5  # attempts of one request to a language model's server
    endpoint_wait_s: float = 1.0  # wait before the second attempt, doubled before each further one
    endpoint_longest_wait_s: float = 300.0  # the most that Retry-After is heeded
    endpoint_connect_s: float = 20.0
    endpoint_timeout_s: float = 300.0  # time for an answer: a model on a CPU takes minutes
    endpoint_batch: int = 256  # answers of one record file
    hub_attempts: int = 8  # attempts of one request to the Hub or a bucket
    hub_wait_s: float = 1.0  # wait before the second attempt, doubled before each further one
    hub_longest_wait_s: float = 300.0  # the window in which the Hub counts requests
    hub_timeout_s: float = 60.0  # a request for facts of hundreds of files is slow
    hub_paths_a_request: int = 500  # the Hub refuses more than 1,000
    hub_requests_at_once: int = 4
    bucket_names_asked: int = 100  # files of a bucket from which their folder is listed instead
    bucket_requests_at_once: int = 16


LIMITS = Limits()


def hub_endpoint() -> str:
    """Address of the Hugging Face Hub."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def count_workers() -> int:
    """Number of worker processes on this machine: one for each core that the process may use."""
    return max(1, len(os.sched_getaffinity(0)))
