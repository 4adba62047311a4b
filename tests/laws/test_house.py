"""Rules of the package: imports point downwards, few packages import hydra, no torch before main."""

import ast
import subprocess
import sys
from pathlib import Path

import diffguide

PACKAGE = Path(diffguide.__file__).parent
FLOORS = [  # a package imports only from its own floor or a lower one
    {"version"},
    {"files", "runtime", "nodes", "class_names"},
    {"schedules"},
    {"randomness", "figures", "backbones", "datasets"},
    {"conditions"},
    {"models", "first_stages"},
    {"oracles"},
    {"objectives", "guidance", "samplers"},
    {"evaluation"},
    {"checkpoints"},
    {"training", "sampling", "conversion", "export"},
    {"config"},
    {"cli"},
    {"train", "sample", "evaluate", "convert"},
]
FLOOR = {package: floor for floor, packages in enumerate(FLOORS) for package in packages}
HYDRA = {"config", "cli", "train", "sample", "evaluate", "convert"}
MAX_ROOT_MODULES = 8


def imports(path: Path) -> set[str]:
    """Packages and root modules of diffguide, and foreign packages with a leading '!', that a file imports anywhere."""
    package = ["diffguide", *path.relative_to(PACKAGE).parent.parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {f"!{alias.name.split('.')[0]}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *(node.module.split(".") if node.module else [])]
            names = [[*module, alias.name] for alias in node.names]
            found |= {name[1] if name[0] == "diffguide" else f"!{name[0]}" for name in names}
    return found


def packages() -> dict[str, set[str]]:
    """What each package, or module at the root, imports."""
    result: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        package = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if package != "__init__":
            result.setdefault(package, set()).update(imports(path))
    return result


def test_imports_point_downwards():
    for package, used in packages().items():
        assert package in FLOOR, f"{package} has no floor"
        higher = {name for name in used & FLOOR.keys() if FLOOR[name] > FLOOR[package]}
        assert not higher, f"{package} imports {higher}, which stand above it"


def test_packages_of_one_floor_do_not_import_each_other():
    for package, used in packages().items():
        beside = {name for name in used & FLOOR.keys() if FLOOR[name] == FLOOR[package]} - {package}
        assert not beside, f"{package} imports {beside}, which stand beside it"


def test_few_modules_are_at_the_root():
    assert len([path for path in PACKAGE.glob("*.py") if path.name != "__init__.py"]) <= MAX_ROOT_MODULES


def test_only_the_command_line_imports_hydra():
    assert {name for name, used in packages().items() if used & {"!hydra", "!omegaconf"}} <= HYDRA


def test_only_engine_imports_fabric():
    know = {path for path in PACKAGE.rglob("*.py") if "!lightning_fabric" in imports(path)}
    assert know == {PACKAGE / "runtime" / "engine.py"}


def test_entry_points_import_no_torch():
    entries = ", ".join(f"diffguide.{name}" for name in sorted(FLOORS[-1]))
    code = f"import sys, {entries}; print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == ["False"] * 2


def test_files_are_short():
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 300, f"{path.name} is too long"


def test_no_module_imports_private_modules_of_hydra():
    assert [path for path in PACKAGE.rglob("*.py") if "hydra._internal" in path.read_text()] == []
