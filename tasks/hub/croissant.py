"""Croissant metadata of a data set in Parquet files: https://docs.mlcommons.org/croissant/docs/croissant-spec.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ctclip_model.errors import ConfigurationError
from ctclip_model.files import sha256_of
from tasks.hub.requests import Repository

CITATION = "Hamamci et al., arXiv:2403.17834"
CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def describe_parquet(
    repository: Repository,
    files: Mapping[str, Path],
    *,
    description: str,
    licence: str,
    columns: Mapping[str, str],
    keywords: Sequence[str] = (),
) -> dict[str, Any]:
    """A data set in Croissant 1.0: each Parquet file with its SHA-256, and a record set with its columns.

    `files` are by path in the repository. `columns` describe columns by name. Raises `ConfigurationError` for a column
    of a type other than text, numbers and lists of numbers.
    """
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": repository.repo_id.split("/")[1],
        "description": description,
        "url": repository.page,
        "citeAs": CITATION,
        "license": f"https://spdx.org/licenses/{licence.upper()}.html",
        "keywords": list(keywords),
        "distribution": [_describe_file(repository, path, file) for path, file in files.items()],
        "recordSet": [_describe_records(path, pq.read_schema(file), columns) for path, file in files.items()],
    }


def _describe_file(repository: Repository, path: str, file: Path) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": path,
        "name": path,
        "contentUrl": f"{repository.page}/resolve/main/{path}",
        "contentSize": f"{file.stat().st_size} B",
        "encodingFormat": "application/x-parquet",
        "sha256": sha256_of(file),
    }


def _describe_records(path: str, schema: pa.Schema, columns: Mapping[str, str]) -> dict[str, Any]:
    name = Path(path).stem
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"{name}/{column.name}",
            "name": column.name,
            "description": columns.get(column.name, ""),
            "source": {"fileObject": {"@id": path}, "extract": {"column": column.name}},
        }
        | _describe_type(column)
        for column in schema
    ]
    return {"@type": "cr:RecordSet", "@id": name, "name": name, "field": fields}


def _describe_type(column: pa.Field) -> dict[str, Any]:
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return {"repeated": True, "dataType": "sc:Float"}
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return {"dataType": "sc:Text"}
    if pa.types.is_floating(kind):
        return {"dataType": "sc:Float"}
    if pa.types.is_integer(kind):
        return {"dataType": "sc:Integer"}
    raise ConfigurationError(f"column {column.name} is of the type {kind}, which has no description")
