"""Options of the flows, each declared once: name, type, default and help text.

A flow, its form in Prefect's UI and its command of `ctclip` are made of the same class of options. Nothing here imports
Prefect, so that `ctclip --help` stays fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from typer import Option

from ctclip_model.config import PRESETS
from ctclip_model.data.names import Storage as StorageName
from ctclip_model.data.reports import SECTIONS
from ctclip_model.device import Precision
from ctclip_model.evaluation.protocols import ON_REQUEST, check_protocols
from ctclip_model.seeds import check_seed
from tasks.settings import (
    DATA_ROOT,
    DATA_ROOT_VARIABLE,
    DOWNLOAD_THREADS,
    FINETUNE,
    LABELLER,
    LABELLER_KINDS,
    PRESET,
    PUBLISHED_LABELS,
    RAW_CACHE_GB,
    REQUESTS_AT_ONCE,
    STAGES,
)

# Options that several flows or commands share. A parameter without a name of its own here is `--its-name`.
DataRoot = Annotated[Path, Option(envvar=DATA_ROOT_VARIABLE, help="Folder of all data.", file_okay=False)]
Preset = Annotated[str, Option(help=f"Name of a preset: {', '.join(PRESETS)}.")]
Json = Annotated[bool, Option("--json", help="Print JSON, for programs.")]

Source = Annotated[
    str | None,
    Option(
        help="Folder, hf://datasets/OWNER/NAME, bucket such as s3://BUCKET/PREFIX, or rad-chestct:FOLDER. "
        "Default: the source of the last ingest."
    ),
]
Revision = Annotated[str | None, Option(help="Branch, tag or commit of a hf:// source. Default: main.")]
Storage = Annotated[
    StorageName | None, Option(help="Version of CT-RATE's storage. Default: as in the last ingest, or as found.")
]
Recipe = Annotated[str | None, Option(help="Changes to the preset's recipe: JSON, or a JSON file.")]

Split = Annotated[str | None, Option(help="Split to take alone: train, valid or external.")]
Volumes = Annotated[str | None, Option(help="Volumes to take alone: a file of names, or a glob.")]
Limit = Annotated[int | None, Option(min=1, help="Largest number of items.")]
Force = Annotated[bool, Option("--force", help="Make existing results again.")]
RetryRejects = Annotated[bool, Option("--retry-rejects", help="Try permanent rejects again.")]

DaskAddress = Annotated[str | None, Option(help="Address of a running Dask scheduler. Default: a local cluster.")]
RawCacheGb = Annotated[float, Option(help="Disk space for downloaded volumes, in GB.")]
KeepRaw = Annotated[bool, Option("--keep-raw", help="Keep downloaded volumes. --raw-cache-gb is ignored.")]
DownloadThreads = Annotated[int, Option(min=1, help="Number of parallel downloads.")]
MaxMbPerS = Annotated[float | None, Option(help="Limit of the download rate in MB/s, over all downloads.")]

Labels = Annotated[str, Option("--labels", help="Labels: `published`, the id of a labeller, or the name of an import.")]
TrainingLabels = Annotated[
    str | None,
    Option("--labels", help="Labels to learn and to validate by, as in finetune. Default: those of --labeller."),
]
RebuildLabels = Annotated[
    str | None,
    Option("--labels", help="Labels to train on, and to score by beside the published ones: the name of an import."),
]
Labeller = Annotated[
    str,
    Option(
        help="Report labeller: radbert, tfidf (needs no weights), openai:MODEL (see --endpoint), the id of a trained "
        "one, or a path."
    ),
]
EndpointUrl = Annotated[
    str | None,
    Option("--endpoint", help="Base URL of the server of openai:MODEL, such as http://127.0.0.1:8000/v1."),
]
AllowRemote = Annotated[
    bool, Option("--allow-remote", help="Let reports leave this machine and its private network, by https.")
]
RequestsAtOnce = Annotated[int, Option(min=1, help="Number of parallel requests to the endpoint.")]
LabellerKind = Annotated[str, Option(help=f"Kind of labeller: {', '.join(LABELLER_KINDS)}.")]
Model = Annotated[str | None, Option(help="Id of a model. Default: the preset's latest CT-CLIP.")]
HandLabels = Annotated[
    Path | None, Option(help="CSV of hand-labelled reports: AccessionNo, report_text and the 18 labels.")
]
FinetuneKind = Annotated[str, Option(help=f"Kind of fine-tuning: {', '.join(FINETUNE)}.")]
ReportSections = Annotated[
    tuple[str, ...],
    Option("--report-sections", help="Sections of reports in reading order, with commas. The end may be cut."),
]
FinetuneKinds = Annotated[
    tuple[str, ...], Option("--finetune", help="Kinds of fine-tuning. On the command line: with commas, or none.")
]
Protocols = Annotated[
    tuple[str, ...],
    Option("--protocols", help=f"More protocols on the split valid, with commas: {', '.join(ON_REQUEST)}."),
]
Against = Annotated[
    str | None, Option(help="Id of a model: the pages open with paired differences to it. Default: none.")
]

Seed = Annotated[int, Option(help="Seed of the training: 0 or more.")]
Retrain = Annotated[bool, Option("--retrain", help="Train again although a model exists.")]
Device = Annotated[str, Option(help="Device of the computation: auto, cpu or cuda.")]
Dtype = Annotated[Precision, Option(help="Number format of the computation. bfloat16 is faster on a GPU.")]
Recompute = Annotated[
    bool | None, Option(help="Recompute activations: less memory, more time. Default: as in the preset.")
]
Processes = Annotated[
    int | None,
    Option(min=1, help="Training processes on this machine. Default: one per GPU (VocabFine, labellers: one)."),
]
AtOnce = Annotated[
    int | None,
    Option("--at-once", min=1, help="Volumes in memory per process. Default: the process's share of the batch."),
]
Deployed = Annotated[bool, Option("--deployed", help="Order the GPU work from a worker of the deployment `compute`.")]


@dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    """Options of flows that run a model."""

    device: Device = "auto"
    dtype: Dtype = Precision.float32


@dataclass(frozen=True, kw_only=True)
class EndpointOptions:
    """Options of flows that ask a language model behind an endpoint."""

    endpoint: EndpointUrl = None
    allow_remote: AllowRemote = False
    requests_at_once: RequestsAtOnce = REQUESTS_AT_ONCE


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(ComputeOptions):
    """Options of flows that train CT-CLIP or fine-tune it."""

    seed: Seed = 0
    retrain: Retrain = False
    recompute: Recompute = None
    processes: Processes = None
    encoded_at_once: AtOnce = None
    deployed: Deployed = False

    def __post_init__(self) -> None:
        check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class RawFileOptions:
    """Options of flows that download volumes."""

    raw_cache_gb: RawCacheGb = RAW_CACHE_GB
    keep_raw: KeepRaw = False
    download_threads: DownloadThreads = DOWNLOAD_THREADS
    max_mb_per_s: MaxMbPerS = None


@dataclass(frozen=True)
class DemoOptions:
    """Run the whole pipeline on phantoms, in minutes on two cores.

    The phantoms lie in FOLDER/phantoms, all results in FOLDER/data.
    """

    folder: Annotated[Path, Option(help="Folder of the phantoms and the results.")] = Path("demo")
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)


@dataclass(frozen=True)
class IngestOptions:
    """Record new, changed and withdrawn scans of a source."""

    source: Source = None
    data_root: DataRoot = DATA_ROOT
    storage: Storage = None
    force: Force = False
    orientation: Annotated[
        str | None,
        Option(
            help="Orientation of a folder's arrays: stored (taken as LPS), header, or a code such as RAS. Axes of "
            "RAD-ChestCT's: such as xyz, a capital reverses. Default: as in the last ingest, or stored (xyz)."
        ),
    ] = None
    revision: Revision = None


@dataclass(frozen=True)
class DownloadOptions(RawFileOptions):
    """Download volumes of the Hub ahead of their conversion.

    Volumes that have a shard are left out. Downloads stop at --raw-cache-gb, or go on to the end with --keep-raw.
    """

    data_root: DataRoot = DATA_ROOT
    preset: Preset = PRESET
    source: Source = None
    split: Split = None
    volumes: Volumes = None
    limit: Limit = None
    force: Force = False
    recipe: Recipe = None


@dataclass(frozen=True)
class ConvertOptions(RawFileOptions):
    """Convert new and changed volumes to shards.

    Volumes of the Hub are downloaded for the conversion and deleted after it, unless --keep-raw is given. Each recipe
    has a folder of shards of its own.
    """

    data_root: DataRoot = DATA_ROOT
    preset: Preset = PRESET
    source: Annotated[
        str | None, Option(help="Present address of the ingested source. Default: the address of the last ingest.")
    ] = None
    split: Split = None
    volumes: Volumes = None
    limit: Limit = None
    force: Force = False
    retry_rejects: RetryRejects = False
    dask_address: DaskAddress = None
    recipe: Recipe = None
    uncompressed: Annotated[
        bool, Option("--uncompressed", help="Three times the disk space, three times the reading speed.")
    ] = False


@dataclass(frozen=True)
class LabelOptions(EndpointOptions, ComputeOptions):
    """Label new and changed reports.

    tfidf is the latest labeller of that kind. If there is none, one is trained first, in seconds. openai:MODEL asks a
    language model at --endpoint. Its key is in CTCLIP_ENDPOINT_KEY or in a Prefect Secret, ctclip-endpoint-key.
    """

    data_root: DataRoot = DATA_ROOT
    labeller: Labeller = LABELLER
    findings: Annotated[
        Path | None, Option(help="TOML file of a label set that openai:MODEL is asked about in place of the 18.")
    ] = None
    split: Split = None
    limit: Limit = None
    force: Force = False
    retry_rejects: RetryRejects = False
    hand_labels: HandLabels = None
    trained_on: Annotated[
        Path | None, Option(help="CSV of the reports that trained an imported labeller. They never score it.")
    ] = None


@dataclass(frozen=True)
class TrainLabellerOptions(ComputeOptions):
    """Train a report labeller on the published labels.

    It learns from the reports of the train split, or from --hand-labels instead.
    """

    data_root: DataRoot = DATA_ROOT
    preset: Preset = PRESET
    kind: LabellerKind = LABELLER_KINDS[0]
    hand_labels: HandLabels = None
    force: Force = False
    processes: Processes = None
    deployed: Deployed = False


@dataclass(frozen=True)
class TrainOptions(TrainingOptions):
    """Train CT-CLIP, if the configuration has no model.

    A model whose data changed is stale and stays, unless --retrain is given. torchrun starts the training on a GPU or
    with --processes.
    """

    data_root: DataRoot = DATA_ROOT
    preset: Preset = PRESET
    labeller: Labeller = LABELLER
    labels_of: TrainingLabels = None
    compile: Annotated[bool, Option("--compile", help="Use PyTorch's compiler.")] = False
    nodes: Annotated[int, Option(min=1, help="Number of machines. The log shows the command for the others.")] = 1
    rendezvous: Annotated[str | None, Option(help="HOST:PORT of this machine, for several machines.")] = None
    sharded: Annotated[bool, Option("--sharded", help="Split the weights over the processes (FSDP2).")] = False
    validate_every: Annotated[
        int, Option(min=0, help="Steps between two zero-shot scores on held-out scans. 0: never.")
    ] = 0
    report_sections: ReportSections = SECTIONS
    tensorboard: Annotated[bool, Option("--tensorboard", help="Write TensorBoard event files too.")] = False


@dataclass(frozen=True)
class FinetuneOptions(TrainingOptions):
    """Fine-tune CT-CLIP on labels, as LiPro or VocabFine.

    A model whose data changed is stale and stays, unless --retrain is given. LiPro learns from the latents of its
    parent: embed the parent first. A trained VocabFine is embedded at once.
    """

    data_root: DataRoot = DATA_ROOT
    preset: Preset = PRESET
    kind: FinetuneKind = FINETUNE[0]
    model: Annotated[str | None, Option(help="Id of the parent. Default: the preset's latest CT-CLIP.")] = None
    labels_of: Labels = PUBLISHED_LABELS


@dataclass(frozen=True)
class EmbedOptions(ComputeOptions):
    """Embed new and changed volumes, reports and prompts."""

    data_root: DataRoot = DATA_ROOT
    preset: Preset = PRESET
    model: Model = None
    force: Force = False
    processes: Annotated[int | None, Option(min=1, help="Processes that encode volumes. Default: one per GPU.")] = None
    deployed: Deployed = False


@dataclass(frozen=True)
class EvaluateOptions:
    """Score a model from its latents, beside other models."""

    data_root: DataRoot = DATA_ROOT
    preset: Preset = PRESET
    model: Model = None
    split: Annotated[str | None, Option(help="Split to score. Default: all that were held out.")] = None
    unit: Annotated[
        Literal["scan", "volume"], Option(help="Unit of a prediction. scan: the mean of its reconstructions.")
    ] = "scan"
    force: Force = False
    labels_of: Labels = PUBLISHED_LABELS
    protocols: Protocols = ()

    def __post_init__(self) -> None:
        check_protocols(self.protocols)


@dataclass(frozen=True)
class ReportOptions:
    """Write the HTML page of an evaluation, and the index page."""

    data_root: DataRoot = DATA_ROOT
    preset: Preset = PRESET
    model: Model = None
    force: Force = False
    labels_of: Labels = PUBLISHED_LABELS
    against: Against = None
    index: Annotated[
        bool, Option("--index", help="Write the index page alone, reports/index.html. It needs no model.")
    ] = False


@dataclass(frozen=True)
class RebuildOptions(RawFileOptions, EndpointOptions, ComputeOptions):
    """Run every stage in turn. Each does only pending work."""

    source: Source = None
    data_root: DataRoot = DATA_ROOT
    preset: Preset = PRESET
    labeller: Labeller = LABELLER
    model: Annotated[str | None, Option(help="Id of a model to embed and evaluate. Nothing is trained then.")] = None
    storage: Storage = None
    revision: Revision = None
    from_stage: Annotated[str, Option("--from", help="First stage.")] = STAGES[0]
    to_stage: Annotated[str, Option("--to", help="Last stage.")] = STAGES[-1]
    finetune_kinds: FinetuneKinds = FINETUNE
    labels_of: RebuildLabels = None
    report_sections: ReportSections = SECTIONS
    protocols: Protocols = ()
    against: Against = None
    seed: Seed = 0
    retrain: Retrain = False
    force: Force = False
    retry_rejects: RetryRejects = False
    dask_address: DaskAddress = None
    deployed: Annotated[
        bool, Option("--deployed", help="Run each stage as its deployment, on a worker of its pool.")
    ] = False

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_protocols(self.protocols)


# Options by the name of the flow and its command, in the order of the work.
OPTIONS: dict[str, type] = {
    "demo": DemoOptions,
    "rebuild": RebuildOptions,
    "ingest": IngestOptions,
    "download": DownloadOptions,
    "convert": ConvertOptions,
    "train-labeller": TrainLabellerOptions,
    "label": LabelOptions,
    "train": TrainOptions,
    "embed": EmbedOptions,
    "finetune": FinetuneOptions,
    "evaluate": EvaluateOptions,
    "report": ReportOptions,
}
