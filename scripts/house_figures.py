"""Figures of the source code, one column per checkout, for comparing versions.

    python scripts/house_figures.py [CHECKOUT ...] [--no-runs] [--names]

From the syntax tree of <checkout>/diffguide: sizes, guards, repeated names, the path of the configuration
(`follow_config.py`). Guards are `raise` statements and the `if`s that contain nothing else, as a share of the lines of code.
Calls from main to the network are the frames of the package on the stack inside UNet.forward, in one tiny training and one
sampling with classifier-free guidance, each in its own process (a minute on one core; --no-runs skips them). --names lists the
repeated names and the functions named by a past participle.
"""

import argparse
import ast
import collections
import io
import os
import subprocess
import sys
import tempfile
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from follow_config import measure_commands

CHECKOUT = Path(__file__).resolve().parents[1]
LONG = 50  # lines; a function with more is long
IRREGULAR = set(
    "told shown made held kept chosen drawn taken given written found built left said seen sent set cut put run read begun "
    "bound brought come done gone grown known laid led lost met paid sought spent split spread stood struck thought "
    "understood worn hidden broken driven risen woven".split()
)
# also present tenses or nouns
VERBS = {
    "set",
    "cut",
    "put",
    "run",
    "read",
    "split",
    "spread",
    "come",
    "bound",
    "found",
}
NOUNS = {"seed", "need", "speed", "feed", "embed", "exceed", "proceed", "shed"}
PARTICLES = {"out", "up", "down", "of", "at", "in", "on", "off", "to", "by", "as", "with", "from", "beside"}
TINY = [
    "backbone.multipliers=[1]", "backbone.attention=[]", "backbone.blocks=1", "backbone.channels=4", "training.images=256",
    "training.batch_size=32", "sampler.steps=2", "name=figures",
]  # fmt: skip
SAMPLED = ["checkpoint=outputs/train/figures/v001", "guidance=cfg", "sampler=heun", "sampler.steps=8", "n=10"]
TRACE = """
import collections, sys, torch
from pathlib import Path
import diffguide
from diffguide.backbones import UNet
package, plain, chains = str(Path(diffguide.__file__).parent), UNet.forward, collections.Counter()
job, words = sys.argv[1], sys.argv[2:]
def traced(self, *arguments, **options):
    names, frame = [], sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(package) and code.co_name not in ("<listcomp>", "<genexpr>", "<dictcomp>"):
            names.append(f"{Path(code.co_filename).stem}.{code.co_name}")
        frame = frame.f_back
    if self.training or job == "sample":
        chains[" > ".join(reversed(names))] += 1
    return plain(self, *arguments, **options)
UNet.forward = traced
main = __import__(f"diffguide.{job}", fromlist=["main"]).main
try:
    main(words)
except SystemExit as left:
    assert not left.code, left.code
print("CHAIN", chains.most_common(1)[0][0])
"""


class Module(NamedTuple):
    """A source file: its path in the package, its text, its syntax tree, the numbers of its lines of code."""

    path: Path
    text: str
    tree: ast.Module
    code: set[int]


def read_modules(package: Path) -> list[Module]:
    """Reads every module of a package."""
    modules = []
    for path in sorted(package.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        modules.append(Module(path.relative_to(package), text, tree, code_lines(text, tree)))
    return modules


def code_lines(text: str, tree: ast.Module) -> set[int]:
    """The numbers of the lines with more than blanks, comments and docstrings."""
    comments = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in comments:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return lines


def nodes(modules: list[Module], *kinds: type) -> Iterator:
    """All nodes of some kinds."""
    return (node for module in modules for node in ast.walk(module.tree) if isinstance(node, kinds))


def functions(modules: list[Module]) -> list:
    """All functions and methods."""
    return list(nodes(modules, ast.FunctionDef, ast.AsyncFunctionDef))


def length(node: ast.stmt) -> int:
    """Lines of a statement."""
    return node.end_lineno - node.lineno + 1


def guard_lines(module: Module) -> set[int]:
    """Lines of code of `raise` statements and of the `if`s that contain nothing else."""
    lines: set[int] = set()
    for node in ast.walk(module.tree):
        only_raises = isinstance(node, ast.If) and not node.orelse and all(isinstance(s, ast.Raise) for s in node.body)
        if isinstance(node, ast.Raise) or only_raises:
            lines |= set(range(node.lineno, node.end_lineno + 1))
    return lines & module.code


def repeated_names(modules: list[Module], constants: bool) -> dict[str, list[str]]:
    """Top-level functions and classes (or constants) that several modules define, and these modules."""
    places: dict[str, list[str]] = collections.defaultdict(list)
    for module in modules:
        names = set()
        for node in module.tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not constants:
                names.add(node.name)
            elif isinstance(node, ast.Assign | ast.AnnAssign) and constants:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names |= {leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)}
        for name in names - {"__all__"}:
            places[name].append(module.path.as_posix())
    return {name: found for name, found in places.items() if len(found) > 1}


def is_participle(name: str) -> bool:
    """Whether a name is a past participle, alone or with a particle: told, moved, held_out."""
    first, *rest = name.strip("_").split("_")
    regular = first.endswith("ed") and first not in NOUNS
    return (regular or first in IRREGULAR - VERBS) and set(rest) <= PARTICLES


def required_arguments(modules: list[Module]) -> tuple[int, int]:
    """Arguments of constructors without a default, and all of them."""
    required = total = 0
    for function in functions(modules):
        if function.name == "__init__":
            positional = [*function.args.posonlyargs, *function.args.args][1:]
            total += len(positional) + len(function.args.kwonlyargs)
            required += len(positional) - len(function.args.defaults) + function.args.kw_defaults.count(None)
    return required, total


def parallel_assignments(modules: list[Module]) -> int:
    """Statements a, b = x, y."""
    return sum(
        isinstance(node.value, ast.Tuple) and isinstance(node.targets[0], ast.Tuple)
        for node in nodes(modules, ast.Assign)
    )


def trace_calls(checkout: Path, folder: Path, command: str, words: list[str]) -> str:
    """The most frequent chain of calls of the package from main to the network in a run."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", TRACE, command, *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{command} failed in {checkout}:\n{done.stderr}")
    return done.stdout.splitlines()[-1].removeprefix("CHAIN ")


def measure(checkout: Path, runs: bool) -> dict[str, str]:
    """Every figure of a checkout, by name."""
    package = checkout / "diffguide"
    modules, readme = read_modules(package), (checkout / "README.md").read_text(encoding="utf-8")
    code = sum(len(module.code) for module in modules)
    texts = [module.text.splitlines()[line - 1] for module in modules for line in module.code]
    guards = sum(len(guard_lines(module)) for module in modules)
    long = [function for function in functions(modules) if length(function) > LONG]
    required, total = required_arguments(modules)
    comprehensions = nodes(modules, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)

    def rate(count: int) -> str:
        return f"{1000 * count / code:.1f}"

    figures = {
        "package: files": str(len(modules)),
        "package: lines": str(sum(len(module.text.splitlines()) for module in modules)),
        "package: lines of code": str(code),
        "modules at the root": str(len([path for path in package.glob("*.py") if path.name != "__init__.py"])),
        "longest file": str(max(len(module.text.splitlines()) for module in modules)),
        "longest function": str(max(length(function) for function in functions(modules))),
        f"functions over {LONG} lines, of all": f"{len(long)} of {len(functions(modules))}",
        "characters per line of code": f"{sum(map(len, texts)) / code:.1f}",
        "guards, share of the lines of code": f"{100 * guards / code:.1f} %",
        "raise per 1000 lines of code": rate(sum(1 for _ in nodes(modules, ast.Raise))),
        "a, b = x, y per 1000 lines of code": rate(parallel_assignments(modules)),
        "comprehensions per 1000": rate(sum(1 for _ in comprehensions)),
        "ternaries per 1000": rate(sum(1 for _ in nodes(modules, ast.IfExp))),
        "# fmt: skip": str(sum(module.text.count("# fmt: skip") for module in modules)),
        "constructor arguments without default": f"{required} of {total} ({100 * required / total:.0f} %)",
        "functions, classes in several modules": str(len(repeated_names(modules, constants=False))),
        "constants in several modules": str(len(repeated_names(modules, constants=True))),
        "functions named by a past participle": str(sum(is_participle(f.name) for f in functions(modules))),
        "README: lines, words": f"{len(readme.splitlines())}, {len(readme.split())}",
    }
    for command, path in measure_commands(package).items():
        figures[f"{command}: functions that take the configuration"] = str(path["functions"])
        figures[f"{command}: its climbs, returns"] = f"{path['climbs']}, {path['returns']}"
    return figures | (measure_calls(checkout) if runs else {})


def measure_calls(checkout: Path) -> dict[str, str]:
    """Calls from main to the network, in training and in sampling."""
    with tempfile.TemporaryDirectory() as folder:
        chains = {
            "train": trace_calls(checkout, Path(folder), "train", TINY),
            "sample with cfg": trace_calls(checkout, Path(folder), "sample", SAMPLED),
        }
    for job, chain in chains.items():
        print(f"{checkout.name}, {job}: {chain} > UNet", file=sys.stderr)
    return {f"calls from main to the network, {job}": str(chain.count(">") + 1) for job, chain in chains.items()}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Figures of the source code, one column per checkout.")
    parser.add_argument("checkouts", nargs="*", type=Path, default=[CHECKOUT], metavar="CHECKOUT")
    parser.add_argument("--no-runs", action="store_true", help="count only, run nothing")
    parser.add_argument("--names", action="store_true", help="list repeated names and past participles")
    options = parser.parse_args(arguments)
    checkouts = [path.resolve() for path in options.checkouts]
    columns = [measure(path, not options.no_runs) for path in checkouts]
    print(f"{'':46}" + "".join(f"{path.name:>18}" for path in checkouts))
    for figure in columns[0]:
        print(f"{figure:46}" + "".join(f"{column[figure]:>18}" for column in columns))
    for path in checkouts if options.names else ():
        modules = read_modules(path / "diffguide")
        print(f"\n{path.name}: names in several modules")
        for constants in (False, True):
            for name, places in sorted(repeated_names(modules, constants).items()):
                print(f"  {name}: {', '.join(places)}")
        participles = sorted({function.name for function in functions(modules) if is_participle(function.name)})
        print(f"{path.name}: past participles\n  {' '.join(participles)}")


if __name__ == "__main__":
    main(sys.argv[1:])
