"""`ctclip predict` and `ctclip embed-volume`: your own CT volumes through a model."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table
from rich.text import Text

from ctclip_model.config import compute_fingerprint
from ctclip_model.data.label_sets import LabelSet
from ctclip_model.data.names import HEADER
from ctclip_model.data.orientation import turn_to_lps
from ctclip_model.device import Precision
from ctclip_model.errors import ConfigurationError, VolumeError
from ctclip_model.evaluation.decisions import Decisions
from ctclip_model.evaluation.evidence_files import prepare_folder
from ctclip_model.evaluation.predict import (
    EmbeddedVolume,
    PredictedVolume,
    Volume,
    VolumeModel,
    list_volumes,
    open_model,
    path_of,
)
from ctclip_model.files import whole_file
from ctclip_model.models.find_model import find_model
from ctclip_model.models.hub import HUB_SCHEME
from flows.commands.running import showing_progress
from flows.display import console, print_json
from flows.prediction_rows import (
    csv_cells,
    csv_columns,
    csv_line,
    describe_prediction,
    describe_rules,
    describe_volume,
    evidence_folder,
    has_evidence,
    printable,
    score_words,
)
from flows.row_file import KEY, RowFile
from tasks.run.progress import show_progress

if TYPE_CHECKING:
    from tasks.report.own_ct import OwnPage

BAR_WIDTH = 24  # columns
FORMATS = (".parquet", ".npz")
SHOWN_VALUES = 4  # printed values of a latent
NO_RULES_OF_SET = "uncalibrated: no evaluation of this model by labels of {name} yet"
NOT_EVALUATED = "the model has no evaluation: `ctclip evaluate` leaves thresholds with it"
RESEARCH_ONLY = "research use only: this is not a medical device"
FEW = "* fewer than 5 counted patients have it, or lack it"
NO_RULE = "+ no threshold, too few patients: the value is an uncalibrated score"


@dataclass(frozen=True)
class Request:
    """Arguments of both commands."""

    volumes: Sequence[Path]
    models: Path  # folder of models in the data root
    model: str | None
    device: str
    dtype: Precision
    as_json: bool = False
    as_csv: bool = False
    orientation: str = HEADER
    show_ids: bool = False
    label_set: LabelSet | None = None  # None: the findings that the model learned


@dataclass
class Session:
    """Open model and the files to read. A bad file is a line on stderr, and the others go on."""

    request: Request
    files: list[Volume]
    model: VolumeModel
    failed: list[dict[str, Any]] = field(default_factory=list)

    @staticmethod
    def start(request: Request, *, with_text: bool, tokenizer: Path | None = None) -> Session:
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its warning for each retry repeats our error
        if request.orientation != HEADER:
            turn_to_lps(request.orientation)  # refuses what is no code before anything is read
        files = list_volumes(request.volumes, with_ids=request.show_ids)
        name = request.model or ""
        source = name if name.startswith(HUB_SCHEME) else find_model(request.models, request.model)
        model = open_model(
            source, device=request.device, precision=request.dtype, with_text=with_text, tokenizer=tokenizer,
            label_set=request.label_set,
        )  # fmt: skip
        return Session(request, files, model)

    def fingerprint(self, volume: Volume) -> str:
        """Hash of what a row depends on: the sizes and times of its files, the model and its decisions, the options."""
        if isinstance(volume, VolumeError):
            return ""
        files = [volume] if isinstance(volume, Path) else sorted({part.path for part in volume.slices})
        stamps = [(str(file), *_stamp(file)) for file in files]
        options = (self.request.orientation, str(self.request.dtype), self.request.show_ids)
        label_set = self.model.label_set
        prompts = () if label_set.is_built_in else (label_set.fingerprint,)
        decisions = None if self.model.decisions is None else self.model.decisions.parts
        return compute_fingerprint(stamps, self.model.weights_sha256, decisions, options, *prompts)

    def record_failure(self, path: Path, error: VolumeError) -> None:
        self.failed.append({"file": str(path), "reason": error.reason, "detail": error.detail})
        print(f"ctclip: {printable(path)}: {error.detail} [{error.reason}]", file=sys.stderr, flush=True)

    def describe(self) -> str:
        parts = (f"recipe {self.model.recipe.name}", self.model.device.type, self.request.dtype)
        return f"{self.model.name} ({', '.join(parts)})"

    def as_json(self, volumes: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "model": self.model.name, "recipe": self.model.recipe.name, "dtype": str(self.request.dtype),
            "device": self.model.device.type, "label_set": self.model.label_set.name,
            "volumes": volumes, "failed": self.failed,
        }  # fmt: skip


def predict(
    request: Request,
    tokenizer: Path | None,
    evidence: Path | None = None,
    output: Path | None = None,
    page: Path | None = None,
) -> int:
    """Prints the abnormalities of each volume as it comes. Returns the number of failed files.

    Writes evidence into the folder `evidence`, rows into the file `output` and a page into `page`, if they are given.
    """
    if page is not None and (page.is_dir() or not page.parent.is_dir()):
        raise ConfigurationError(f"--page {page}: is a folder, or its folder does not exist")
    if evidence is not None:
        prepare_folder(evidence)
    session = Session.start(request, with_text=True, tokenizer=tokenizer)
    session.model.check_predict(with_evidence=evidence is not None or page is not None)
    shown = None if page is None else _start_page(session)
    if output is not None:
        with RowFile(output, session.model.label_set.names) as file:
            count_done = _predict_into(file, session, evidence, shown)
    else:
        _predict_and_print(session, evidence, shown)
    if shown is not None and page is not None:
        shown.write(page, [(printable(one["file"]), one["detail"]) for one in session.failed])
    if output is not None:
        _print_end(output, session, count_done)
    return len(session.failed)


def _predict_and_print(session: Session, evidence: Path | None, shown: OwnPage | None) -> None:
    """Prints each volume, and adds it to the page if there is one."""
    request, decisions, printed = session.request, session.model.decisions, []
    if request.as_csv:
        sys.stdout.write(csv_line(csv_columns(session.model.label_set.names)))
    elif not request.as_json:
        _print_model(session)
    for volume in session.model.predict(
        session.files, orientation=request.orientation, on_error=session.record_failure, evidence=evidence,
        with_slices=shown is not None,
    ):  # fmt: skip
        row = describe_prediction(volume)
        if shown is not None:
            shown.add(volume, printable(volume.path))
        if request.as_csv:
            sys.stdout.write(csv_line(csv_cells(row)))
            sys.stdout.flush()
        elif request.as_json:
            printed.append(row)
        else:
            _print_prediction(volume, decisions, in_columns=len(session.files) > 1)
    if request.as_json:
        print_json(session.as_json(printed) | describe_rules(session.model))


def _start_page(session: Session) -> OwnPage:
    from tasks.report.own_ct import OwnPage

    decisions = session.model.decisions
    cohort = None if decisions is None else decisions.cohort
    return OwnPage(f"Model {session.describe()}", score_words(session.model), cohort)


def _predict_into(file: RowFile, session: Session, evidence: Path | None, shown: OwnPage | None) -> int:
    """Adds a row for each volume that has none, or that changed since. Returns the number of rows that were there.

    A page shows every volume, so those with a row are predicted too, without new evidence files.
    """
    request = session.request
    if not request.as_json:
        _print_model(session)
    keys = {path_of(volume): session.fingerprint(volume) for volume in session.files}
    by_name = {printable(path): key for path, key in keys.items()}
    file.keep(
        lambda row: row["file"] not in by_name or (by_name[row["file"]] == row[KEY] and has_evidence(row, evidence))
    )
    rows = file.rows
    todo = [volume for volume in session.files if printable(path_of(volume)) not in rows]
    folders = [evidence_folder(row) for row in rows.values()]
    taken = {folder.name for folder in folders if folder is not None and folder.parent == evidence}
    count_done = len(session.files) - len(todo)
    again = [] if shown is None else [volume for volume in session.files if printable(path_of(volume)) in rows]
    count = count_done - len(again)
    with showing_progress(), show_progress("predict", len(session.files), "volumes") as progress:
        progress.advance(count)
        for volumes, folder in ((again, None), (todo, evidence)):
            for volume in session.model.predict(
                volumes, orientation=request.orientation, on_error=session.record_failure, evidence=folder,
                taken=taken, with_slices=shown is not None,
            ):  # fmt: skip
                if volumes is todo:
                    file.append(describe_prediction(volume), keys[volume.path])
                if shown is not None:
                    shown.add(volume, printable(volume.path))
                count += 1
                failed = len(session.failed)
                progress.advance(count + failed - progress.done, f"{failed} failed" if failed else "")
        progress.advance(len(session.files) - progress.done)
    if shown is not None:
        shown.arrange([printable(path_of(volume)) for volume in session.files])
    return count_done


def _print_end(output: Path, session: Session, count_done: int) -> None:
    """Prints the counts of a call, and lists the files that failed."""
    failed, counts = session.failed, {"volumes": len(session.files), "done_before": count_done}
    if session.request.as_json:
        print_json(session.as_json([]) | describe_rules(session.model) | counts | {"output": str(output)})
    else:
        new = len(session.files) - count_done - len(failed)
        console.print(f"\n{new} rows added, {count_done} were there, {len(failed)} of {len(session.files)} failed")
        console.print(Text(f"{printable(output)}"), soft_wrap=True)
    if failed:
        print(f"ctclip: {len(failed)} of {len(session.files)} volumes failed:", file=sys.stderr)
    for failure in failed:
        print(f"  {printable(failure['file'])}: [{failure['reason']}]", file=sys.stderr)


def _stamp(file: Path) -> tuple[int, int]:
    """Size and time of a file. A file that is gone is reported once it is read."""
    try:
        found = file.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def embed_volume(request: Request, output: Path | None) -> int:
    """Prints or writes the latent of each volume. Returns the number of failed files."""
    if output is not None:
        _check_output(output)
    session = Session.start(request, with_text=False)
    if not request.as_json:
        console.print(Text(f"model  {session.describe()}"))
    volumes = []
    for volume in session.model.embed(session.files, orientation=request.orientation, on_error=session.record_failure):
        volumes.append(volume)
        if not request.as_json:
            _print_volume(volume)
            shown = "  ".join(f"{value:+.5f}" for value in volume.latent[:SHOWN_VALUES])
            console.print(Text(f"latent   {shown} ... {len(volume.latent)} values"))
    if output is not None and volumes:
        write_latents(output, session.model.name, volumes)
    if request.as_json:
        print_json(
            session.as_json([describe_volume(volume) | {"latent": volume.latent.tolist()} for volume in volumes])
        )
    elif output is None:
        console.print("\n--output FILE.parquet (or .npz) writes complete latents, --json prints them.")
    elif volumes:
        console.print(Text(f"\n{len(volumes)} latents in {output}"))
    return len(session.failed)


def write_latents(path: Path, model: str, volumes: Sequence[EmbeddedVolume]) -> None:
    """Writes a row for each volume: file and latent (float32, norm 1). Parquet also holds spacing_mm by array axis."""
    files = [printable(volume.path) for volume in volumes]
    latents = np.stack([volume.latent for volume in volumes])  # (N, latent)
    with whole_file(path) as file:
        if path.suffix == ".npz":
            np.savez(file, files=np.array(files), latents=latents, model_id=np.array(model))
            return
        width = latents.shape[1]
        columns = {
            "file": files, "model_id": [model] * len(files),
            "spacing_mm": [list(volume.spacing_mm) for volume in volumes],
            "latent": pa.FixedSizeListArray.from_arrays(latents.ravel(), width),
        }  # fmt: skip
        pq.write_table(pa.table(columns), file, compression="zstd")


def _check_output(output: Path) -> None:
    if output.suffix not in FORMATS:
        raise ConfigurationError(f"--output {output}: latents are written as {' or '.join(FORMATS)}")
    if not output.parent.is_dir() or output.is_dir():
        raise ConfigurationError(f"--output {output}: is a folder, or its folder does not exist")


def _print_volume(volume: EmbeddedVolume) -> None:
    spacing = " x ".join(f"{value:.4g}" for value in volume.spacing_mm)
    console.print()
    console.print(Text(printable(volume.path), style="bold"), soft_wrap=True)
    console.print(Text(f"spacing  {spacing} mm, axes {volume.turn}"))
    for keyword, value in volume.ids.items():
        console.print(Text(f"{keyword}  {printable(value)}"), soft_wrap=True)
    for doubt in volume.doubts:
        console.print(Text(f"note     {doubt}", style="yellow"), soft_wrap=True)


def _print_model(session: Session) -> None:
    """Prints the model, and the cohort of its decisions, or that there are none."""
    model = session.model
    console.print(Text(f"model  {session.describe()}"))
    why = NOT_EVALUATED if model.label_set.is_built_in else NO_RULES_OF_SET.format(name=model.label_set.name)
    lines = [f"probabilities are {score_words(model)}", why]
    if model.decisions is not None:
        lines = ["calibrated, with sensitivity and specificity on", *map(printable, model.decisions.cohort.lines)]
    for line in [*lines, RESEARCH_ONLY]:
        console.print(Text(f"       {line}", style="dim"), soft_wrap=True)


def _print_prediction(volume: PredictedVolume, decisions: Decisions | None, *, in_columns: bool) -> None:
    _print_volume(volume)
    if decisions is None:
        _print_probabilities(volume.by_abnormality, in_columns=in_columns)
    else:
        _print_decisions(volume)
    if volume.evidence:
        console.print(Text(f"evidence {printable(volume.evidence.folder)}"), soft_wrap=True)


def _print_decisions(volume: PredictedVolume) -> None:
    """Prints a line for each abnormality: probability, decision, sensitivity and specificity."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 1), header_style="dim")
    table.add_column("")
    for heading in ("prob.", "decision", "sens.", "spec."):
        table.add_column(heading, justify="left" if heading == "decision" else "right")
    notes = set()
    for decision in volume.decisions:
        rule = decision.rule
        note = NO_RULE if rule is None else FEW if rule.has_few_patients else ""
        notes.add(note)
        shares = ("", "") if rule is None else (f"{rule.sensitivity:.2f}", f"{rule.specificity:.2f}")
        value = decision.score if decision.probability is None else decision.probability
        style = "bold" if decision.is_present else ""
        cells = (decision.abnormality + note[:1], f"{value:.3f}", decision.word, *shares)
        table.add_row(*(Text(cell, style=style) for cell in cells))
    console.print(table)
    for note in sorted(notes - {""}):
        console.print(Text(note, style="dim"), soft_wrap=True)


def _print_probabilities(probabilities: Mapping[str, float], *, in_columns: bool) -> None:
    """Prints a line with a bar for each abnormality, or two columns without bars."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 1, 0, 1))
    cells = [(Text(name), Text(f"{value:.3f}")) for name, value in probabilities.items()]
    if in_columns:
        half = (len(cells) + 1) // 2
        for left, right in zip_longest(cells[:half], cells[half:], fillvalue=()):
            table.add_row(*left, *right)
    else:
        bar = "\N{BOX DRAWINGS HEAVY HORIZONTAL}" if console.encoding.startswith("utf") else "="
        for cell, value in zip(cells, probabilities.values(), strict=True):
            table.add_row(*cell, Text(bar * round(value * BAR_WIDTH), style="cyan"))
    console.print(table)
