"""Imports run one way: between packages, between the layers of the core and between the rooms of `tasks/`."""

import ast
from pathlib import Path

import pytest
from support.paths import ROOT

FORBIDDEN = {
    "ctclip_model": {"prefect", "duckdb", "dask", "distributed", "warehouse", "tasks", "flows"},
    "warehouse": {"prefect", "torch", "dask", "distributed", "tasks", "flows"},
    "tasks": {"flows"},
}
CORE = ("training", "evaluation", "labelling", "models", "data")  # a layer imports only those to its right
ROOMS = (  # from the top floor down: a room imports only those after it
    "stages", "plan", "training", "evaluation", "report", "models", "upkeep", "labels", "volumes", "sources", "hub",
    "remote", "run", "settings",
)  # fmt: skip
ENGINE_MAY_IMPORT = ("ctclip_model.errors", "ctclip_model.files", "ctclip_model.device", "ctclip_model.training.engine")
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


def upward(package: str, order: tuple[str, ...]) -> set[str]:
    """Imports, inside a package, of a part that stands above the importing one or is in no order."""
    wrong = set()
    for path in modules(package):
        parts = path.relative_to(ROOT / package).with_suffix("").parts
        if parts[0] == "__init__":
            continue
        for name in imports(path):
            part = name.removeprefix(f"{package}.").split(".")[0]
            if {part, parts[0]} <= set(order) and order.index(part) < order.index(parts[0]):
                wrong.add(f"{path.relative_to(ROOT)} imports {name}")
    return wrong


def test_core_layers_import_one_way():
    assert not upward("ctclip_model", CORE)


def test_rooms_of_tasks_import_one_way():
    rooms = {path.parent.name for path in (ROOT / "tasks").glob("*/__init__.py")} | {"settings"}
    assert rooms == set(ROOMS)
    assert not upward("tasks", ROOMS)


def test_training_engine_knows_no_ct():
    for path in modules("ctclip_model/training/engine"):
        inside = {name for name in imports(path) if name.startswith("ctclip_model.")}
        wrong = {name for name in inside if not name.startswith(ENGINE_MAY_IMPORT)}
        assert not wrong, path


def test_test_files_import_only_support_from_tests():
    tests = {path.stem for path in (ROOT / "tests").rglob("*.py") if "support" not in path.parts}
    for path in (ROOT / "tests").rglob("test_*.py"):
        assert not {name for name in imports(path) if name.split(".")[0] in tests}, path


def test_prefect_is_imported_by_flows_and_stages_alone():
    for path in modules("tasks"):
        place = str(path.relative_to(ROOT))
        if not place.startswith(PREFECT):
            assert not any(name.split(".")[0] == "prefect" for name in imports(path)), place
