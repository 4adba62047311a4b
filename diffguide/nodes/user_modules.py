"""Imports of modules of the user, from the working folder and the folders of the user's configuration files.

`_target_: mymod.Half` on the command line, in a configuration file of the user or in trust=[...] may name a module that is
not installed. Such a module is imported from the given folders if no installed module has its name, so that a json.py in
the working folder replaces nothing. Only named modules are found there, and during their import the modules beside them.
The folders are never on sys.path, so that optional imports of libraries and names in foreign checkpoints are not found
there.

Spawned processes, such as data loaders, get the list through an environment variable.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from pathlib import Path

__all__ = ["allow_neighbour_imports", "import_hint", "search_user_modules"]

VARIABLE = "DIFFGUIDE_OWN_MODULES"  # JSON of folders and names, for child processes


class OwnModules(MetaPathFinder):
    """The last finder on sys.meta_path.

    Arguments:
        folders: absolute paths, searched in this order.
        names: top-level modules to find there.
    """

    def __init__(self, folders: Sequence[str], names: Iterable[str]):
        self.folders, self.names = list(folders), set(names)
        self.imported: set[str] = set()
        self.depth = 0  # number of imports of named modules in progress

    def find_spec(self, fullname, path=None, target=None):  # the signature of MetaPathFinder
        if path is not None or not (fullname in self.names or self.depth):
            return None
        spec = PathFinder.find_spec(fullname, self.folders)
        if spec is None or (spec.loader is None and fullname not in self.names):  # a folder without code
            return None
        self.imported.add(fullname)
        return spec

    def forget(self) -> None:
        """Removes the imported modules from sys.modules: the next command may run in another folder."""
        for name in [name for name in sys.modules if name.partition(".")[0] in self.imported]:
            del sys.modules[name]

    def record(self) -> None:
        """Lets child processes find the imported modules."""
        os.environ[VARIABLE] = json.dumps([self.folders, sorted(self.names | self.imported)])


def current_finder() -> OwnModules | None:
    """The finder of the running command."""
    return next((finder for finder in reversed(sys.meta_path) if isinstance(finder, OwnModules)), None)


@contextmanager
def search_user_modules(names: Iterable[str], folders: Iterable[str | Path]) -> Iterator[None]:
    """Lets the modules of dotted names be found in some folders.

    Arguments:
        names: dotted names such as my.module.Class.
        folders: searched in this order.
    """
    tops = {name.partition(".")[0] for name in names} - {"diffguide", ""}
    finder = OwnModules(list(dict.fromkeys(os.path.abspath(folder) for folder in folders)), tops)
    before = os.environ.get(VARIABLE)
    sys.meta_path.append(finder)
    finder.record()
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        finder.forget()
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before


@contextmanager
def allow_neighbour_imports(name: str) -> Iterator[None]:
    """Lets a module of the user import the modules beside it, during the import of a dotted name."""
    finder = current_finder()
    if finder is None or name.partition(".")[0] not in finder.names:
        yield
        return
    finder.depth += 1
    try:
        yield
    finally:
        finder.depth -= 1
        finder.record()


def import_hint(name: str) -> str:
    """The last part of an error message on a failed import, with the folders searched; "" for other modules."""
    finder, top = current_finder(), name.partition(".")[0]
    if finder is None or top not in finder.names:
        return ""
    if top not in sys.modules:
        return f"; modules of your own are searched in {' and '.join(finder.folders)}"
    beside = PathFinder.find_spec(top, finder.folders)
    if top in finder.imported or beside is None or beside.loader is None:
        return ""
    return f"; the installed module {top} hides {beside.origin}; rename yours"


if VARIABLE in os.environ:  # in a child process of a command
    sys.meta_path.append(OwnModules(*json.loads(os.environ[VARIABLE])))
