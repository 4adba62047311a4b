"""The path of the composed configuration through a package: which functions take it, and how often it climbs.

    python scripts/follow_config.py [CHECKOUT ...]

Static, by the syntax tree: starts at the parameter of every function that hydra.main decorates, and follows the calls that
pass the configuration on, in the order of the code, each function once. The configuration is the composed node, copies of
it, and what a function that takes it returns as a whole configuration (a DictConfig, or a dict[str, Any]). Values and nodes
read from it are not followed. A unit is a subpackage or a module at the root. Its floor is one above all units that it
imports.

    functions   that take the configuration, without the entry point
    stays       consecutive functions of one file, counted once
    climbs      stays on a higher floor than the stay before
    returns     stays in a file that it has been in before
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).resolve().parents[1]
COPIES = {"deepcopy", "copy", "dict", "masked_copy", "merge", "create", "to_container"}  # calls that return a copy
# annotations of a configuration
WHOLE = (
    "DictConfig",
    "dict[str, Any]",
    "Mapping[str, Any]",
    "Iterator[dict[str, Any]]",
)


class Function(NamedTuple):
    """A function of the package: its file, its qualified name, its syntax tree."""

    path: str
    name: str
    tree: ast.FunctionDef


class Package:
    """The functions of a package, and what every name in its files refers to.

    Arguments:
        root: its folder.
    """

    def __init__(self, root: Path):
        self.name = root.name
        self.trees = {
            path.relative_to(root).as_posix(): ast.parse(path.read_text()) for path in sorted(root.rglob("*.py"))
        }
        self.functions: dict[tuple[str, str], Function] = {}
        self.bases: dict[tuple[str, str], list[str]] = {}
        for path, tree in self.trees.items():
            for node in tree.body:
                if isinstance(node, ast.FunctionDef):
                    self.functions[path, node.name] = Function(path, node.name, node)
                elif isinstance(node, ast.ClassDef):
                    self.bases[path, node.name] = [base.id for base in node.bases if isinstance(base, ast.Name)]
                    for part in node.body:
                        if isinstance(part, ast.FunctionDef):
                            name = f"{node.name}.{part.name}"
                            self.functions[path, name] = Function(path, name, part)
        self.imports = {path: dict(self.imported_names(path)) for path in self.trees}
        self.floors = self.measure_floors()

    def imported_names(self, path: str) -> Iterator[tuple[str, tuple[str, str]]]:
        """(local name, (file, name in it)) of everything that a file imports from the package; name "" = a module."""
        parent = [self.name, *path.split("/")[:-1]]
        for node in ast.walk(self.trees[path]):
            if not isinstance(node, ast.ImportFrom):
                continue
            module = [*parent[: len(parent) - node.level + 1], *(node.module or "").split(".")] if node.level else None
            names = [name for name in module or (node.module or "").split(".") if name]
            if names[:1] != [self.name]:
                continue
            base = "/".join(names[1:])
            for alias in node.names:
                file = next((f for f in (f"{base}.py", f"{base}/__init__.py".lstrip("/")) if f in self.trees), "")
                inner = "/".join([*names[1:], alias.name])
                submodule = next((f for f in (f"{inner}.py", f"{inner}/__init__.py") if f in self.trees), None)
                yield alias.asname or alias.name, (submodule, "") if submodule else (file, alias.name)

    def measure_floors(self) -> dict[str, int]:
        """The floor of every unit; an import that closes a circle is ignored."""
        used: dict[str, set[str]] = {}
        for path, names in self.imports.items():
            used.setdefault(unit_of(path), set()).update(unit_of(file) for file, _ in names.values() if file)
        floors: dict[str, int] = {}

        def measure(unit: str, above: tuple[str, ...]) -> int:
            if unit not in floors:
                below = [measure(other, (*above, unit)) for other in sorted(used[unit]) if other not in (*above, unit)]
                floors[unit] = 1 + max(below, default=0)
            return floors[unit]

        for unit in used:
            measure(unit, ())
        return floors

    def find(self, path: str, name: str) -> Function | None:
        """A function, a method (Class.method, inherited ones too) or the constructor of a class, through re-exports."""
        first, _, method = name.partition(".")
        if (path, name) in self.functions:
            return self.functions[path, name]
        if (path, first) in self.bases:
            own = self.functions.get((path, f"{first}.{method or '__init__'}"))
            inherited = (self.find(path, f"{base}.{method or '__init__'}") for base in self.bases[path, first])
            return own or next(filter(None, inherited), None)
        file, inner = self.imports[path].get(first, ("", ""))
        if not file or (file, inner) == (path, first):
            return None
        return self.find(file, ".".join(part for part in (inner, method) if part))

    def callee(self, path: str, call: ast.Call) -> tuple[Function | None, list[ast.expr]]:
        """The function of the package that a call calls, None = another one, and its arguments by position."""
        if isinstance(call.func, ast.Name) and call.func.id == "partial" and call.args:
            return self.find(path, ast.unparse(call.args[0])), call.args[1:]
        return self.find(path, ast.unparse(call.func)), call.args


class Walk:
    """The path of a configuration from an entry point.

    Arguments:
        package: that it walks through.
        entry: function whose first parameter is the configuration.
    """

    def __init__(self, package: Package, entry: Function):
        self.package = package
        self.seen: set[tuple[str, str]] = set()
        self.files = [entry.path]  # of every function that it enters, in order
        self.follow(entry, {entry.tree.args.args[0].arg})

    def follow(self, function: Function, names: set[str]) -> None:
        """Follows the configuration, which has these names, through the body of a function."""
        if (function.path, function.name) in self.seen:
            return
        self.seen.add((function.path, function.name))
        for statement in function.tree.body:
            self.visit(statement, function.path, names)

    def visit(self, node: ast.AST, path: str, names: set[str]) -> None:
        """Follows the calls in a statement in the order of the code, and adds the names that it binds."""
        for child in ast.iter_child_nodes(node):
            self.visit(child, path, names)
        if isinstance(node, ast.Call):
            self.enter(node, path, names)
        bound = []
        if isinstance(node, ast.Assign):
            bound = [(target, node.value) for target in node.targets]
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            bound = [(node.optional_vars, node.context_expr)]
        for target, value in bound:
            if isinstance(target, ast.Tuple):
                target = target.elts[0]
            if isinstance(target, ast.Name) and self.is_whole(value, path, names):
                names.add(target.id)

    def enter(self, call: ast.Call, path: str, names: set[str]) -> None:
        """Follows a call that passes the configuration to a function of the package."""
        function, arguments = self.package.callee(path, call)
        if function is None:
            return
        parameters = [part.arg for part in (*function.tree.args.posonlyargs, *function.tree.args.args)]
        parameters = parameters[1:] if parameters[:1] in (["self"], ["cls"]) else parameters
        passed = [name for name, value in zip(parameters, arguments) if self.is_whole(value, path, names)]
        passed += [part.arg for part in call.keywords if part.arg and self.is_whole(part.value, path, names)]
        if passed:
            self.files.append(function.path)
            self.follow(function, set(passed))

    def is_whole(self, value: ast.expr, path: str, names: set[str]) -> bool:
        """Whether an expression is the whole configuration: by name, copied, merged, or returned by a function."""
        if isinstance(value, ast.Name):
            return value.id in names
        if isinstance(value, ast.Tuple | ast.List):
            return bool(value.elts) and self.is_whole(value.elts[0], path, names)
        if isinstance(value, ast.IfExp):
            return self.is_whole(value.body, path, names) or self.is_whole(value.orelse, path, names)
        if isinstance(value, ast.BinOp):
            return self.is_whole(value.left, path, names) or self.is_whole(value.right, path, names)
        if isinstance(value, ast.DictComp):  # {... for key, value in config.items()}
            source = value.generators[0].iter
            method = source.func if isinstance(source, ast.Call) else None
            return isinstance(method, ast.Attribute) and self.is_whole(method.value, path, names)
        if not isinstance(value, ast.Call):
            return False
        function, arguments = self.package.callee(path, value)
        arguments = [*arguments, *(part.value for part in value.keywords)]
        if not any(self.is_whole(part, path, names) for part in arguments):
            return False
        if function is None:
            return ast.unparse(value.func).rpartition(".")[2] in COPIES
        returned = ast.unparse(function.tree.returns) if function.tree.returns else ""
        return returned.removeprefix("tuple[").startswith(WHOLE)

    def figures(self) -> dict[str, int]:
        """The figures of the path, see above."""
        stays = [file for file, before in zip(self.files, [None, *self.files]) if file != before]
        floors = [self.package.floors[unit_of(file)] for file in stays]
        return {
            "functions": len(self.seen) - 1,
            "stays": len(stays),
            "climbs": sum(after > before for before, after in zip(floors, floors[1:])),
            "returns": len(stays) - len(set(stays)),
        }


def unit_of(path: str) -> str:
    """The unit of a file: its subpackage, or the module at the root."""
    return path.split("/")[0].removesuffix(".py")


def measure_commands(package: Path) -> dict[str, dict[str, int]]:
    """The figures of every function that hydra.main decorates, by its module."""
    read = Package(package)
    decorated = (
        function
        for function in read.functions.values()
        if any("hydra.main" in ast.unparse(decorator) for decorator in function.tree.decorator_list)
    )
    return {unit_of(function.path): Walk(read, function).figures() for function in decorated}


def main(arguments: list[str]) -> None:
    """Prints the figures of every command of every checkout."""
    for checkout in map(Path, arguments or [str(CHECKOUT)]):
        for command, figures in measure_commands(checkout.resolve() / "diffguide").items():
            print(
                f"{checkout.resolve().name} {command}: "
                + ", ".join(f"{name} {count}" for name, count in figures.items())
            )


if __name__ == "__main__":
    main(sys.argv[1:])
