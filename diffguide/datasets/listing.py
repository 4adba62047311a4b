"""What lies below a folder: the pictures that are read, and everything that is not, by kind."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from ..files.text import escape_unprintable
from .decoding import is_image

__all__ = ["Listing", "list_files"]

MAX_NAMED_SKIPPED, MAX_HIDDEN = (
    3,
    10_000,
)  # of what is not read: how many are named; how many hidden files are looked at
HIDDEN, LOOP = "hidden", "links back to a folder that holds them"


class Listing:
    """The files below a folder.

    Arguments:
        folder: whose files they are.
        wanted: endings that are read, in lower case; None = all that Pillow reads.

    Attributes:
        files: the pictures, as POSIX paths inside the folder, in no order.
        passed_over: the paths of what is not read, by kind.

    Raises:
        OSError: a folder that cannot be listed.
    """

    def __init__(self, folder: Path, wanted: Sequence[str] | None = None):
        self.folder, self.wanted = folder, wanted
        self.files: list[str] = []
        self.skipped_paths: dict[str, list[str]] = {}
        self.walk(folder, frozenset({os.path.realpath(folder)}))

    def walk(self, folder: Path, above: frozenset[str]) -> None:
        """Lists a folder and those below it; links are followed, but for one to a folder above, which would never end."""
        for name in os.listdir(folder):
            path = folder / name
            if name.startswith("."):
                for file in islice(walk_hidden(path), MAX_HIDDEN):
                    self.skip(HIDDEN, file)
            elif not path.is_dir():
                if is_image(path, self.wanted):
                    self.files.append(self.inside(path))
                else:
                    self.skip(path.suffix.lower() or "no ending", path)
            elif (real := os.path.realpath(path)) in above:
                self.skip(LOOP, path)
            else:
                self.walk(path, above | {real})

    def inside(self, path: Path) -> str:
        """A path as it is called inside the folder."""
        return path.relative_to(self.folder).as_posix()

    def skip(self, kind: str, path: Path) -> None:
        """Notes something that is not read."""
        self.skipped_paths.setdefault(kind, []).append(self.inside(path))

    def describe(self) -> list[str]:
        """What is not read, for a reader: a line with the number of each kind and the first names."""
        parts = []
        for kind, paths in sorted(self.skipped_paths.items(), key=lambda item: (-len(item[1]), item[0])):
            pictures = [path for path in paths if is_image(Path(path))]
            first = sorted(pictures or paths)[:MAX_NAMED_SKIPPED]
            names = ", ".join(map(escape_unprintable, first)) + (", ..." if len(paths) > len(first) else "")
            count = f"{len(paths)} or more" if kind == HIDDEN and len(paths) >= MAX_HIDDEN else str(len(paths))
            held = f", {len(pictures)} of them pictures" if kind == HIDDEN and pictures else ""
            parts.append(f"{count} {escape_unprintable(kind)}{held} ({names})")
        return ["not read: " + "; ".join(parts)] if parts else []

    def describe_endings(self) -> str:
        """The endings of what is not read, the commonest first."""
        counts = Counter({kind: len(paths) for kind, paths in self.skipped_paths.items()})
        return ", ".join(f"{count} {escape_unprintable(kind)}" for kind, count in counts.most_common(MAX_NAMED_SKIPPED))


def walk_hidden(path: Path) -> Iterator[Path]:
    """A hidden file, or the files in a hidden folder; unlistable folders are skipped."""
    if not path.is_dir():
        yield path
    for folder, _, names in os.walk(path):
        yield from (Path(folder) / name for name in names)


def list_files(folder: Path, wanted: Sequence[str] | None = None) -> Listing:
    """What lies below a folder.

    Raises:
        ValueError: no folder there, or no image inside.
    """
    if not folder.exists():
        raise ValueError(f"dataset.path is {folder}, which does not exist: give the folder that holds your images")
    if not folder.is_dir():
        raise ValueError(f"dataset.path is {folder}, which is a file: give the folder that holds your images")
    try:
        listing = Listing(folder, wanted)
    except OSError as error:
        raise ValueError(
            f"dataset.path is {folder}, where {escape_unprintable(error.filename)} cannot be listed: {error.strerror}"
        ) from error
    if not listing.files:
        other = f"; it holds {listing.describe_endings()}" if listing.skipped_paths else ""
        raise ValueError(
            f"dataset.path is {folder}, which holds no image (png, jpg, webp, tif, ... whatever Pillow reads){other}: give "
            "the folder that holds your images"
        )
    return listing
