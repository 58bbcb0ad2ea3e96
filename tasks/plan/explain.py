"""Plan of a rerun: the items that a stage would make now, and their reasons. Imports no Prefect, writes nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ctclip_model.config import Preset
from ctclip_model.errors import ConfigurationError, MissingInputError
from ctclip_model.stages import PIPELINE
from tasks.labels.estimate import Estimate, Prices, estimate_labelling
from tasks.labels.labellers import find_questionnaire
from tasks.plan.wanted import StageOptions, Wanted, find_wanted, name_variant
from tasks.run.collector import pausing_collector
from tasks.run.fingerprints import VERSION, Fingerprint, find_moved, flatten, get_parts
from tasks.run.lost import find_lost_volumes, is_there
from tasks.settings import STAGES
from tasks.upkeep.queries import list_absent_encoders, list_stale_models
from warehouse import store

Parts = Mapping[str, str]  # {name of a fingerprint's part: its value}

SHARED_OPTIONS = ("preset", "labeller", "seed")  # options that hold for every stage of a rebuild
NAMES_SHOWN = 4  # names of changed parts in one summary


@dataclass(frozen=True)
class Reason:
    """Reason for a pending item: a summary that many items share, and this item's own detail."""

    summary: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.summary}: {self.detail}" if self.detail else self.summary


@dataclass(frozen=True)
class Reject:
    """Last rejection of an item."""

    fingerprint: str
    reason: str
    is_permanent: bool


@dataclass(frozen=True)
class History:
    """Records of the items of one variant."""

    done: Mapping[str, str]  # {item: fingerprint}
    rejects: Mapping[str, Reject]  # {item: reject}
    elsewhere: Mapping[str, tuple[str, str]]  # {item: (latest other variant, fingerprint)}
    parts: Mapping[tuple[str, str], Parts]  # {(item, fingerprint): parts}
    lost: Mapping[str, str]  # {item: reason}: its file is gone


@pausing_collector()
def explain_plan(
    data_root: Path,
    stage: str,
    limit: int,
    given: Mapping[str, str | None] | None = None,
    prices: Prices | None = None,
) -> dict[str, Any]:
    """Plans a rerun of a stage with the options of its last run, or with the `given` preset, labeller or model.

    Returns the counts of wanted and pending items, a count for each reason, the downloads, notes, and the first `limit`
    pending items. A labelling by a language model has an estimate too, with its cost at the `prices`. Work that waits
    for an earlier stage is not counted. Raises `ConfigurationError`.
    """
    if stage not in STAGES:
        raise ConfigurationError(f"there is no stage {stage!r}; there are {', '.join(STAGES)}")
    chosen = {name: value for name, value in (given or {}).items() if value is not None}
    notes: list[str] = []
    variants, options = _choose_variants(data_root, stage, chosen, notes)
    count, reasons, items = 0, Counter[str](), list[dict[str, str]]()
    for variant in variants:
        try:
            wanted = find_wanted(data_root, stage, variant, options)
            pending = _explain_pending(data_root, stage, variant, wanted)
        except MissingInputError as error:
            notes.append(str(error))
            wanted, pending = {}, {}
        count += len(wanted)
        for item, reason in pending.items():
            reasons[reason.summary] += 1
            items.append({"variant": variant, "item": item, "why": str(reason)})
        if PIPELINE[stage].trains:
            notes.extend(list_stale_models(data_root, stage, variant))
    if stage == "embed":
        notes.extend(list_absent_encoders(data_root))
    downloads = _list_downloads(data_root, [row["item"] for row in items]) if stage == "convert" else {}
    estimate = _estimate(data_root, options, items, prices) if stage == "label" else None
    return {
        "stage": stage, "wanted": count, "pending": len(items), "reasons": dict(reasons.most_common()),
        "downloads": {"files": len(downloads), "bytes": sum(downloads.values())},
        "estimate": None if estimate is None else asdict(estimate),
        "notes": [*notes, *([str(estimate)] if estimate is not None else [])],
        "items": items[:limit],
    }  # fmt: skip


def _choose_variants(
    data_root: Path, stage: str, chosen: Mapping[str, str], notes: list[str]
) -> tuple[list[str], StageOptions]:
    """Variants that the plan covers, and the options of the planned call.

    The call's own variant comes first. Without a `chosen` option the variants in use follow, latest first. An ingest
    has no variant. Notes receive the reasons for missing variants.
    """
    if stage == "ingest":
        notes.append(_describe_ingest(data_root))
        return [], StageOptions()
    used = [variant for (variant,) in store.query(data_root, _VARIANTS_IN_USE, [stage])]
    calls = store.query(data_root, store.load_sql(__package__, "last_call"), {"stage": stage})
    last_stage, last = (calls[0][0], json.loads(calls[0][1])) if calls else ("", {})
    has_run = last_stage == stage
    if not has_run and not used:
        notes.append(f"{stage} has never run")
    names = [field.name for field in fields(StageOptions)] if has_run else SHARED_OPTIONS
    kept = {name: last[name] for name in names if last.get(name) is not None}
    if "labeller" in chosen:
        kept.pop("findings", None)  # the last labeller was asked about them
    options = StageOptions(**kept | dict(chosen))
    if used and not has_run and not chosen:
        return used, options
    try:
        called = name_variant(data_root, stage, options)
    except MissingInputError as error:
        notes.append(str(error))
        return ([] if chosen else used), options
    return ([called] if chosen else list(dict.fromkeys([called, *used]))), options


def _explain_pending(data_root: Path, stage: str, variant: str, wanted: Wanted) -> dict[str, Reason]:
    """Reasons of the pending items, in the order of `wanted`."""
    history = _read_history(data_root, stage, variant, wanted)
    done, lost = history.done, history.lost
    undone = {
        item: fingerprint for item, fingerprint in wanted.items() if done.get(item) != fingerprint or item in lost
    }
    pending = {item: fingerprint for item, fingerprint in undone.items() if _is_pending(history, item, fingerprint)}
    if not PIPELINE[stage].trains:
        return {item: _explain_item(history, stage, item, fingerprint) for item, fingerprint in pending.items()}
    config = _read_newest_config(data_root, stage, variant)
    return {
        item: Reason("its model folder is lost", history.lost[item])
        if item in history.lost
        else _explain_training(stage, config, get_parts(fingerprint) or {})
        for item, fingerprint in pending.items()
    }


def _is_pending(history: History, item: str, fingerprint: str) -> bool:
    """Pending = wanted - done with that fingerprint - permanent rejects of that fingerprint + lost.

    The item is not done with the fingerprint, or it is lost.
    """
    reject = history.rejects.get(item)
    is_rejected = reject is not None and reject.is_permanent and reject.fingerprint == fingerprint
    return item in history.lost or not is_rejected


def _explain_item(history: History, stage: str, item: str, fingerprint: str) -> Reason:
    if item in history.lost and history.done.get(item) == fingerprint:
        return Reason("its shard is lost", history.lost[item])
    reject = history.rejects.get(item)
    if reject is not None and reject.fingerprint == fingerprint:
        return Reason(f"failed before: {reject.reason}")
    now = get_parts(fingerprint) or history.parts.get((item, fingerprint))
    if item in history.done:
        return _explain_change(stage, history.parts.get((item, history.done[item])), now)
    if reject is not None:
        change = _explain_change(stage, history.parts.get((item, reject.fingerprint)), now)
        return replace(change, summary=f"{change.summary} since it was rejected")
    if item in history.elsewhere:
        other, made = history.elsewhere[item]
        before = history.parts.get((item, made))
        # A recipe's identifier hashes the recipe's content and the stage's VERSION, so its parts say what changed.
        if stage == "convert" and before and now:
            return _explain_change(stage, before, now)
        return Reason(f"another {PIPELINE[stage].variant} than {other}")
    return Reason("never made")


def _explain_change(stage: str, before: Parts | None, now: Parts | None) -> Reason:
    """Names the parts of a fingerprint that differ. Older records have no parts: the reason is then "changed"."""
    moved = find_moved(before, now) if before and now else {}
    if not moved:
        return Reason("changed")
    names = [name for name in moved if name != VERSION]
    if len(names) > NAMES_SHOWN:
        names[NAMES_SHOWN - 1 :] = [f"{len(names) - NAMES_SHOWN + 1} more"]
    causes = [f"{', '.join(names)} changed"] if names else []
    if VERSION in moved:
        causes.append(f"VERSION of {stage} raised")
    detail = ", ".join(f"{name} {old} → {new}" for name, (old, new) in moved.items())
    return Reason(" and ".join(causes), detail)


def _explain_training(stage: str, config: Parts | None, now: Parts) -> Reason:
    """Names the settings that differ between the newest model's configuration and the preset.

    A setting that is newer than the model had its default value.
    """
    if config is None:
        return Reason("never trained")
    before = {**Fingerprint("", flatten(asdict(Preset("")))).parts, **config}
    reason = _explain_change(stage, {name: value for name, value in before.items() if name in now}, now)
    return reason if reason.detail else Reason(f"VERSION of {stage} raised")


def _read_history(data_root: Path, stage: str, variant: str, wanted: Wanted) -> History:
    key = {"stage": stage, "variant": variant}
    lost: dict[str, str] = {}
    if PIPELINE[stage].trains:  # item = fingerprint of a configuration, done once any model has the fingerprint
        models = store.query(data_root, _NEWEST_MODELS)
        done = {fingerprint: fingerprint for fingerprint, _ in models}
        lost = {
            fingerprint: path
            for fingerprint, path in models
            if path and fingerprint in wanted and not is_there(data_root / path)
        }
    else:
        lost = find_lost_volumes(data_root, variant, wanted) if stage == "convert" else {}
        done = dict(store.query(data_root, _DONE, key))
    rejects = {
        item: Reject(*rest) for item, *rest in store.query(data_root, store.load_sql(__package__, "rejects"), key)
    }
    others = [] if done else store.query(data_root, store.load_sql(__package__, "done_in_latest_variant"), key)
    elsewhere = {item: (other, fingerprint) for item, other, fingerprint in others}
    items = [item for item, fingerprint in wanted.items() if done.get(item) != fingerprint]
    rows = store.query(data_root, store.load_sql(__package__, "parts"), {"stage": stage, "items": items})
    parts = {(item, fingerprint): part for item, fingerprint, part in rows}
    return History(done, rejects, elsewhere, parts, lost)


def _read_newest_config(data_root: Path, stage: str, variant: str) -> Parts | None:
    """Flat configuration of the variant's newest model, or None if there is no model."""
    key = {"stage": stage, "variant": variant}
    rows = store.query(data_root, store.load_sql(__package__, "newest_model"), key)
    return Fingerprint("", flatten(json.loads(rows[0][0]))).parts if rows else None


def _estimate(
    data_root: Path, options: StageOptions, items: Sequence[Mapping[str, str]], prices: Prices | None
) -> Estimate | None:
    """Estimate of the pending reports of a language model. None: the labeller is none."""
    if (questionnaire := find_questionnaire(options.labeller, options.findings_file)) is None:
        return None
    from tasks.labels.label import read_reports  # imports what scores labels, which no other plan needs

    texts = read_reports(data_root)
    asked = [row["item"] for row in items if row["variant"] == questionnaire.labeller_id]
    return estimate_labelling(data_root, questionnaire, [texts[scan] for scan in asked if texts[scan]], prices=prices)


def _describe_ingest(data_root: Path) -> str:
    rows = store.query(data_root, "select source, revision from current_sources order by run_id desc limit 1")
    if not rows:
        return "ingest has never run"
    source, revision = rows[0]
    return f"ingest asks the source for a new revision: {source} was last read at revision {revision[:12]}"


def _list_downloads(data_root: Path, names: Sequence[str]) -> dict[str, int]:
    """Remote files that the volumes need and `raw/` lacks, as {path: bytes}."""
    rows = store.query(data_root, _REMOTE_FILES, [names])
    if not rows:
        return {}
    from tasks.volumes.downloader import list_raw_files  # imports the Hub's client, which no other plan needs

    folder = data_root.resolve() / "raw"
    present = list_raw_files(folder)
    return {path: size for path, size in rows if str(folder / path) not in present}


_VARIANTS_IN_USE = "select variant from current_wanted where stage = ? group by variant order by max(run_id) desc"
_NEWEST_MODELS = "select fingerprint, max_by(path, run_id) from current_models group by fingerprint"
_DONE = "select item, fingerprint from done where stage = $stage and variant = $variant"
_REMOTE_FILES = """
select path, size_bytes
from current_volumes
where
    not starts_with(source, 'file://') and not starts_with(source, 'rad-chestct://')
    and volume_name in (select unnest($1))
"""
