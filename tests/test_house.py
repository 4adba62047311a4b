"""The house rules that a machine can hold: one-way imports, who may import hydra, no torch before main."""

import ast
import subprocess
import sys
from pathlib import Path

import diffguide

PACKAGE = Path(diffguide.__file__).parent
ORDER = [  # a module imports only from its own line or an earlier one
    {
        "runs",
        "progress",
        "interrupts",
        "schedules",
        "datasets",
        "backbones",
        "engine",
        "class_names",
        "learning_rates",
        "own_modules",
        "old_keys",
        "decompositions",
    },  # fmt: skip
    {"spelling"},
    {"annotations", "config_files", "key_comments", "mistakes", "options", "plugins", "quoting", "recipes", "shards"},
    {"vectors"},
    {
        "parameterizations",
        "randomness",
        "images",
        "trajectories",
        "journal",
        "configuration",
        "commands",
        "archives",
        "arguments",
        "stray_words",
        "option_help",
        "multiruns",
    },
    {"provenance"},
    {"denoisers", "energies", "joint_energy", "preconditioned", "decoders", "batches", "vetting", "classifiers"},
    {"noisy_energies", "counters"},
    {"objectives", "guidance", "samplers", "oracles", "inspection"},
    {"checkpoints", "evaluation"},
    {"sources", "guides"},
    {"retyped"},
    {"resume", "training", "watch", "sampling", "results", "sweeps", "tradeoff", "curves", "tables", "held_out"},
    {"dry_run", "subjects", "alternatives", "training_data", "model_choice"},
    {"train", "sample", "evaluate"},
]
RANK = {module: rank for rank, line in enumerate(ORDER) for module in line}
ALONE = {
    "backbones", "datasets", "schedules", "runs", "progress", "interrupts", "engine", "annotations", "class_names",
    "config_files", "quoting", "own_modules", "learning_rates", "old_keys",
}  # fmt: skip
SIBLINGS = [("samplers", "objectives"), ("samplers", "guidance"), ("guidance", "samplers"), ("guidance", "objectives")]
HYDRA = {
    "train",
    "sample",
    "evaluate",
    "subjects",
    "resume",
    "configuration",
    "commands",
    "model_choice", "alternatives", "retyped", "spelling", "training_data",
    "arguments", "config_files", "key_comments", "mistakes", "multiruns", "option_help", "plugins",
    "quoting", "recipes", "stray_words",
}  # fmt: skip


def imports(path: Path) -> set[str]:
    """Top-level rooms of diffguide, and foreign packages with a leading '!', that a file imports anywhere."""
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


def rooms() -> dict[str, set[str]]:
    """What each room of the package imports."""
    result: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room != "__init__":
            result.setdefault(room, set()).update(imports(path))
    return result


def test_imports_point_one_way():
    for room, used in rooms().items():
        own = {name for name in used if not name.startswith("!") and name in RANK} - {room}
        assert room in RANK, f"{room} has no place in the order of rooms"
        later = {name for name in own if RANK[name] > RANK[room]}
        assert not later, f"{room} imports {later}, which come after it"
        if room in ALONE:
            assert not own, f"{room} imports {own}, and should import no other room"


def test_siblings_do_not_import_each_other():
    used = rooms()
    for room, other in SIBLINGS:
        assert other not in used[room], f"{room} imports {other}"


def test_only_entry_points_know_hydra():
    know = {room for room, used in rooms().items() if "!hydra" in used or "!omegaconf" in used}
    assert know <= HYDRA


def test_only_engine_knows_fabric():
    assert {room for room, used in rooms().items() if "!lightning_fabric" in used} == {"engine"}


def test_entry_points_import_no_torch():
    entries = ", ".join(f"diffguide.{name}" for name in sorted(ORDER[-1]))
    code = f"import sys, {entries}; print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == ["False"] * 2


def test_files_are_short():
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 300, f"{path.name} is too long"
