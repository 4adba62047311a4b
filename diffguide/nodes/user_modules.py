"""Modules of the user's own: beside where a command runs, and beside the configuration files that it was given.

`_target_: mymod.Half` on the command line, in a file of one's own or in trust=[...] names a module that need not be
installed. It is looked for in the given folders, behind everything that is installed: a json.py in the working folder
shadows nothing. Only the modules that were named are found there, and while one of them is being imported those beside it,
for its own imports. The folders are never on sys.path, so what a library imports if it is there (or what a checkpoint of
somebody else names) is not taken from them.

Processes that unpickle objects of such classes (readers of data, where they are spawned) get the list through an
environment variable.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from pathlib import Path

__all__ = ["import_hint", "importing", "searching"]

VARIABLE = "DIFFGUIDE_OWN_MODULES"  # folders and names, for processes that this one starts


class OwnModules(MetaPathFinder):
    """The last place where Python looks for a module.

    Arguments:
        folders: absolute paths, searched in this order.
        names: top-level modules that are found there.
    """

    def __init__(self, folders: Sequence[str], names: Iterable[str]):
        self.folders, self.names = list(folders), set(names)
        self.imported: set[str] = set()
        self.depth = 0  # of imports of modules that were named

    def find_spec(self, fullname, path=None, target=None):  # the signature is Python's
        if path is not None or not (fullname in self.names or self.depth):
            return None
        spec = PathFinder.find_spec(fullname, self.folders)
        if spec is None or (spec.loader is None and fullname not in self.names):  # a folder without code beside it
            return None
        self.imported.add(fullname)
        return spec

    def forget(self) -> None:
        """Removes what was imported from Python's memory: the next command may run in another folder."""
        for name in [name for name in sys.modules if name.partition(".")[0] in self.imported]:
            del sys.modules[name]

    def record(self) -> None:
        """What was imported is found by the processes that this one starts."""
        os.environ[VARIABLE] = json.dumps([self.folders, sorted(self.names | self.imported)])


def installed() -> OwnModules | None:
    """The finder of the command that is running."""
    return next((finder for finder in reversed(sys.meta_path) if isinstance(finder, OwnModules)), None)


@contextmanager
def searching(names: Iterable[str], folders: Iterable[str | Path]) -> Iterator[None]:
    """Lets the modules of some dotted names be found in some folders.

    Arguments:
        names: as the user wrote them, my.module.Class.
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
def importing(name: str) -> Iterator[None]:
    """Around the import of a dotted name: a module that the user named may import those beside it."""
    finder = installed()
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
    """What may help where a dotted name cannot be imported, to be put behind a sentence; empty where nothing is known."""
    finder, top = installed(), name.partition(".")[0]
    if finder is None or top not in finder.names:
        return ""
    if top not in sys.modules:
        return f"; a module of your own is looked for in {' and '.join(finder.folders)}"
    beside = PathFinder.find_spec(top, finder.folders)
    if top in finder.imported or beside is None or beside.loader is None:
        return ""
    return f"; an installed module {top} goes before {beside.origin}: give yours another name"


if VARIABLE in os.environ:  # of a process that a command has started
    sys.meta_path.append(OwnModules(*json.loads(os.environ[VARIABLE])))
