"""What a rerun of a stage would do and why: what it would want now, beside what it has made. Imports no Prefect."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb

from ctclip_model.errors import ConfigurationError, MissingInputError
from tasks.plan.wanted import Call, Wanted, name_variant, want
from tasks.run.fingerprints import VERSION, Fingerprint, find_moved, flatten, parts_of
from tasks.settings import STAGES
from warehouse import store

Why = tuple[str, str]  # the reason, alike for many items, and what more there is to say of this one
TRAINING = ("train", "finetune")
VARIANT_IS = {"convert": "recipe", "label": "labeller", "embed": "model", "evaluate": "model", "report": "model"}
OF_ANY_STAGE = ("preset", "labeller", "seed")  # what one stage's call tells of how another will be called


def explain_plan(
    data_root: Path, stage: str, limit: int, given: Mapping[str, str | None] | None = None
) -> dict[str, Any]:
    """What a rerun of a stage would do as far as is known now, by reason, and item by item up to `limit`.

    It is called as it was last, or with the `given` preset, labeller or model. What an earlier stage has yet to make
    is not foreseen. Raises `ConfigurationError`.
    """
    if stage not in STAGES:
        raise ConfigurationError(f"there is no stage {stage!r}; there are {', '.join(STAGES)}")
    chosen = {name: value for name, value in (given or {}).items() if value is not None}
    count, reasons, items, notes = 0, Counter[str](), list[dict[str, str]](), list[str]()
    for variant, wanted in _list_wanted(data_root, stage, chosen, notes):
        count += len(wanted)
        with store.read(data_root) as connection:
            explained = _explain(connection, stage, variant, wanted)
        for item, (reason, more) in explained.items():
            reasons[reason] += 1
            items.append({"variant": variant, "item": item, "why": f"{reason}: {more}" if more else reason})
    downloads = _list_downloads(data_root, [one["item"] for one in items]) if stage == "convert" else {}
    return {
        "stage": stage, "wanted": count, "pending": len(items), "reasons": dict(reasons.most_common()),
        "downloads": {"files": len(downloads), "bytes": sum(downloads.values())}, "notes": notes,
        "items": items[:limit],
    }  # fmt: skip


def _list_wanted(
    data_root: Path, stage: str, chosen: Mapping[str, str], notes: list[str]
) -> Iterator[tuple[str, Wanted]]:
    """What a rerun would want, by variant: the one that it would be of, and, unless something is chosen, those in use.

    `notes` get what else there is to say.
    """
    with store.read(data_root) as connection:
        if stage == "ingest":
            notes.append(_describe_ingest(connection))
            return
        used = [variant for (variant,) in connection.execute(_VARIANTS, [stage]).fetchall()]
        found = connection.execute(_LAST_CALL, {"stage": stage}).fetchone()
    of_stage, last = (found[0], json.loads(found[1])) if found else ("", {})
    if of_stage != stage and not used:
        notes.append(f"{stage} has never run")
    told = Call.__dataclass_fields__ if of_stage == stage else OF_ANY_STAGE
    call = Call(**{name: last[name] for name in told if last.get(name) is not None} | dict(chosen))
    if chosen or of_stage == stage or not used:
        try:
            due = name_variant(data_root, stage, call)
        except MissingInputError as error:
            notes.append(str(error))
            used = [] if chosen else used
        else:
            used = [due] if chosen else [due, *(variant for variant in used if variant != due)]
    for variant in used:
        try:
            yield variant, want(data_root, stage, variant, call)
        except MissingInputError as error:
            notes.append(str(error))
        if stage in TRAINING:
            notes.extend(_describe_stale(data_root, stage, variant))


def _explain(connection: duckdb.DuckDBPyConnection, stage: str, variant: str, wanted: Wanted) -> dict[str, Why]:
    """Why each item that is pending is, in the order of `wanted`."""
    key = {"stage": stage, "variant": variant}
    if stage in TRAINING:
        made = connection.execute("select fingerprint from current_models").fetchall()
        done = {fingerprint: fingerprint for (fingerprint,) in made}
    else:
        done = dict(connection.execute(_DONE, key).fetchall())
    rejects = {item: rest for item, *rest in connection.execute(_REJECTS, key).fetchall()}
    pending = [item for item, fingerprint in wanted.items() if done.get(item) != fingerprint]
    pending = [item for item in pending if rejects.get(item, [])[:1] != [wanted[item]] or not rejects[item][2]]
    elsewhere = _done_elsewhere(connection, stage, variant, wanted) if pending and not done else {}
    known = _read_parts(connection, stage, pending)
    why: dict[str, Why] = {}
    for item in pending:
        fingerprint = wanted[item]
        if item in rejects and rejects[item][0] == fingerprint:
            why[item] = (f"failed before: {rejects[item][1]}", "")
        elif stage in TRAINING:
            why[item] = _explain_training(connection, stage, variant, parts_of(fingerprint) or {})
        elif item in done or item in rejects:
            before = done[item] if item in done else rejects[item][0]
            reason, more = _explain_change(
                stage, known.get((item, before)), parts_of(fingerprint) or known.get((item, fingerprint))
            )
            why[item] = (reason if item in done else f"{reason} since it was rejected", more)
        elif item in elsewhere:
            other, before = elsewhere[item]
            why[item] = _explain_variant(stage, other, known.get((item, before)), parts_of(fingerprint))
        else:
            why[item] = ("never made", "")
    return why


def _explain_change(stage: str, before: Mapping[str, str] | None, now: Mapping[str, str] | None) -> Why:
    """Which parts have moved; no more than that something has, where the parts were not recorded then."""
    moved = find_moved(before, now) if before and now else {}
    if not moved:
        return "changed", ""
    names = [name for name in moved if name != VERSION]
    more_names = [f"{len(names) - 3} more"] if len(names) > 4 else []
    reasons = [f"{', '.join([*names[: 3 if more_names else 4], *more_names])} changed"] if names else []
    if VERSION in moved:
        reasons.append(f"VERSION of {stage} raised")
    return " and ".join(reasons), ", ".join(f"{name} {was} → {is_}" for name, (was, is_) in moved.items())


def _explain_variant(stage: str, other: str, before: Mapping[str, str] | None, now: Mapping[str, str] | None) -> Why:
    """Of what has been made, but for another recipe, by another labeller or with another model."""
    if stage == "convert" and before and now:  # a recipe's identifier is of its content and the stage's VERSION
        return _explain_change(stage, before, now)
    return f"another {VARIANT_IS[stage]} than {other}", ""


def _explain_training(connection: duckdb.DuckDBPyConnection, stage: str, variant: str, now: Mapping[str, str]) -> Why:
    """What of the configuration differs from that of the newest such model, which keeps its own."""
    row = connection.execute(_NEWEST_MODEL, {"stage": stage, "variant": variant}).fetchone()
    if row is None:
        return "never trained", ""
    config = Fingerprint("", flatten(json.loads(row[1]))).parts
    reason, more = _explain_change(stage, {name: config[name] for name in config.keys() & now.keys()}, now)
    return (reason, more) if more else (f"VERSION of {stage} raised", "")


def _read_parts(
    connection: duckdb.DuckDBPyConnection, stage: str, items: Iterable[str]
) -> dict[tuple[str, str], dict[str, str]]:
    rows = connection.execute(_PARTS, {"stage": stage, "items": list(items)}).fetchall()
    return {(item, fingerprint): parts for item, fingerprint, parts in rows}


def _done_elsewhere(
    connection: duckdb.DuckDBPyConnection, stage: str, variant: str, wanted: Wanted
) -> dict[str, tuple[str, str]]:
    """The items that are done in the variant that was worked on last, as {item: (that variant, fingerprint)}."""
    rows = connection.execute(_ELSEWHERE, {"stage": stage, "variant": variant}).fetchall()
    return {item: (other, fingerprint) for item, other, fingerprint in rows if item in wanted}


def _describe_ingest(connection: duckdb.DuckDBPyConnection) -> str:
    rows = connection.execute("select source, revision from current_sources order by run_id desc").fetchall()
    if not rows:
        return "ingest has never run"
    source, revision = rows[0]
    return f"ingest asks the source whether it has moved: {source} was last read at revision {revision[:12]}"


def _describe_stale(data_root: Path, stage: str, variant: str) -> list[str]:
    with store.read(data_root) as connection:
        rows = connection.execute(_STALE, {"stage": stage, "variant": variant}).fetchall()
    return [line for (line,) in rows]


def _list_downloads(data_root: Path, names: list[str]) -> dict[str, int]:
    """Of the volumes those of the Hub that are not in `raw/`, and their sizes in bytes."""
    with store.read(data_root) as connection:
        rows = connection.execute(_OF_THE_HUB, [names]).fetchall()
    if not rows:
        return {}
    from tasks.volumes.downloader import list_raw_files  # and with it the Hub's client, which no other question needs

    folder = data_root.resolve() / "raw"
    there = list_raw_files(folder)
    return {path: size for path, size in rows if str(folder / path) not in there}


_VARIANTS = "select variant from current_wanted where stage = ? group by variant order by max(run_id) desc"
# the latest call of the stage, or, of a stage that has not run, of any other that says most
_LAST_CALL = """
select stage, parameters
from runs
where length(parameters) > 2
order by stage = $stage desc, parameters ->> '$.preset' is not null desc, run_id desc
limit 1
"""
_DONE = "select item, fingerprint from done where stage = $stage and variant = $variant"
_REJECTS = """
select item, fingerprint, any_value(reason), bool_or(is_permanent)
from current_rejects
where stage = $stage and variant = $variant
group by item, fingerprint
"""
_PARTS = """
select item, fingerprint, any_value(parts)
from wanted
where stage = $stage and item in (select unnest($items)) and parts is not null
group by item, fingerprint
"""
_ELSEWHERE = """
with latest as (
    select variant from current_wanted where stage = $stage and variant <> $variant
    group by variant order by max(run_id) desc limit 1
)
select item, variant, fingerprint from done where stage = $stage and variant in (from latest)
"""
_NEWEST_MODEL = """
select model_id, config
from current_models
where case
    when $stage = 'train' then kind = 'ct-clip' and preset = $variant and source_sha256 is null
    else concat(parent_model_id, '/', kind) = $variant
end
order by run_id desc
limit 1
"""
_STALE = """
select format('{} is stale: {} of its {} samples moved; --retrain trains anew',
    stage_status.model_id, stale_models.count_moved_samples, stale_models.count_samples)
from stage_status
join stale_models using (model_id)
where stale_models.is_stale and stage = $stage and variant = $variant
"""
_OF_THE_HUB = """
select path, size_bytes
from current_volumes
where starts_with(source, 'hf://') and volume_name in (select unnest($1))
"""
