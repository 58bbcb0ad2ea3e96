"""Imports run one way: flows -> tasks -> {ctclip_model, warehouse}; inside the core, training -> ... -> data."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "ctclip_model": {"prefect", "duckdb", "dask", "distributed", "warehouse", "tasks", "flows"},
    "warehouse": {"prefect", "torch", "dask", "distributed", "tasks", "flows"},
    "tasks": {"flows"},
}
CORE = ("training", "evaluation", "models", "data")  # a layer imports only those to its right
# only these may import Prefect: everything else also runs where nobody orchestrates
PREFECT = ("flows/", "tasks/stages/")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", FORBIDDEN)
def test_package_imports_nothing_above_it(package):
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(package)
        for name in imports(path)
        if name.split(".")[0] in FORBIDDEN[package]
    }
    assert not wrong


def test_core_layers_import_one_way():
    wrong = set()
    for place, layer in enumerate(CORE):
        above = {f"ctclip_model.{name}" for name in CORE[:place]}
        for path in modules(f"ctclip_model/{layer}"):
            wrong |= {f"{path} imports {name}" for name in imports(path) if ".".join(name.split(".")[:2]) in above}
    assert not wrong


def test_prefect_is_imported_by_flows_and_stages_alone():
    for path in modules("tasks"):
        place = str(path.relative_to(ROOT))
        if not place.startswith(PREFECT):
            assert not any(name.split(".")[0] == "prefect" for name in imports(path)), place
