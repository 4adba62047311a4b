"""The images below a folder, and the other files by kind."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from ..files.text import escape_unprintable
from .decoding import is_image

__all__ = ["Listing", "list_files"]

MAX_NAMED_SKIPPED = 3  # skipped files named per kind
MAX_HIDDEN = 10_000  # hidden files counted per hidden folder
HIDDEN, LOOP = "hidden", "links back to a folder above"


class Listing:
    """The files below a folder.

    Arguments:
        folder: the folder to list, with all folders below it.
        suffixes: suffixes of the images to read, in lower case; None = all that Pillow reads.

    Attributes:
        files: the images, as POSIX paths relative to the folder, unsorted.
        skipped_paths: the paths of the other files, by kind.

    Raises:
        OSError: a folder that cannot be listed.
    """

    def __init__(self, folder: Path, suffixes: Sequence[str] | None = None):
        self.folder, self.suffixes = folder, suffixes
        self.files: list[str] = []
        self.skipped_paths: dict[str, list[str]] = {}
        self.walk(folder, frozenset({os.path.realpath(folder)}))

    def walk(self, folder: Path, above: frozenset[str]) -> None:
        """Lists a folder and those below it. Links are followed, unless they lead to a folder above."""
        for name in os.listdir(folder):
            path = folder / name
            if name.startswith("."):
                for file in islice(walk_hidden(path), MAX_HIDDEN):
                    self.skip(HIDDEN, file)
            elif not path.is_dir():
                if is_image(path, self.suffixes):
                    self.files.append(self.relative(path))
                else:
                    self.skip(path.suffix.lower() or "no ending", path)
            elif (real := os.path.realpath(path)) in above:
                self.skip(LOOP, path)
            else:
                self.walk(path, above | {real})

    def relative(self, path: Path) -> str:
        """A path relative to the folder."""
        return path.relative_to(self.folder).as_posix()

    def skip(self, kind: str, path: Path) -> None:
        """Records a file that is not read."""
        self.skipped_paths.setdefault(kind, []).append(self.relative(path))

    def describe(self) -> list[str]:
        """At most one line with the number of skipped files of each kind and their first names."""
        parts = []
        for kind, paths in sorted(self.skipped_paths.items(), key=lambda item: (-len(item[1]), item[0])):
            pictures = [path for path in paths if is_image(Path(path))]
            first = sorted(pictures or paths)[:MAX_NAMED_SKIPPED]
            names = ", ".join(map(escape_unprintable, first)) + (", ..." if len(paths) > len(first) else "")
            count = f"{len(paths)} or more" if kind == HIDDEN and len(paths) >= MAX_HIDDEN else str(len(paths))
            note = f", {len(pictures)} of them images" if kind == HIDDEN and pictures else ""
            parts.append(f"{count} {escape_unprintable(kind)}{note} ({names})")
        return ["not read: " + "; ".join(parts)] if parts else []

    def describe_kinds(self) -> str:
        """The most common kinds of skipped files."""
        counts = Counter({kind: len(paths) for kind, paths in self.skipped_paths.items()})
        return ", ".join(f"{count} {escape_unprintable(kind)}" for kind, count in counts.most_common(MAX_NAMED_SKIPPED))


def walk_hidden(path: Path) -> Iterator[Path]:
    """A hidden file, or the files in a hidden folder; folders that cannot be listed are skipped."""
    if not path.is_dir():
        yield path
    for folder, _, names in os.walk(path):
        yield from (Path(folder) / name for name in names)


def list_files(folder: Path, suffixes: Sequence[str] | None = None) -> Listing:
    """The files below a folder.

    Raises:
        ValueError: a missing folder, a folder that cannot be listed, or no image in it.
    """
    if not folder.exists():
        raise ValueError(f"dataset.path is {folder}, which does not exist; give the folder with your images")
    if not folder.is_dir():
        raise ValueError(f"dataset.path is {folder}, which is a file; give the folder with your images")
    try:
        listing = Listing(folder, suffixes)
    except OSError as error:
        raise ValueError(
            f"dataset.path is {folder}, where {escape_unprintable(error.filename)} cannot be listed: {error.strerror}"
        ) from error
    if not listing.files:
        other = f" but {listing.describe_kinds()}" if listing.skipped_paths else ""
        raise ValueError(
            f"dataset.path is {folder}, which has no image that Pillow reads (png, jpg, webp, tif, ...){other}; give the "
            "folder with your images"
        )
    return listing
