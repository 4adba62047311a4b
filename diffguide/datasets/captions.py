"""Captions of the images in a folder: a text file beside each image, or tables of file names and texts.

The tables are those of Hugging Face's imagefolder: metadata.csv or metadata.jsonl in any folder, with `file_name` relative to
that folder, and a text. An image has several captions by several lines of its text file, several rows of a table, or a list
in metadata.jsonl. An image without caption, or with a blank one, has the empty caption "".
"""

import csv
import io
import json
import posixpath
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from ..files.text import escape_unprintable, shorten
from .decoding import Unreadable, check_regular
from .listing import Listing

__all__ = ["describe_captions", "find_captions"]

TABLES = ("metadata.csv", "metadata.jsonl")
TABLE_KINDS, TEXT_KIND = (".csv", ".jsonl"), ".txt"
NAME = "file_name"  # column of the path in a table
MAX_NAMED_COLUMNS = 10
MAX_SHOWN = 3  # images whose captions the data sheet shows
MAX_SHOWN_LENGTH = 100  # letters of a caption in the data sheet


def find_captions(listing: Listing, column: str) -> tuple[str, dict[str, list[str]]]:
    """Where the captions of a folder come from, and the captions of each of its images, at least one.

    The files that were read are removed from `listing.skipped_paths`.

    Arguments:
        column: of the text in a table.

    Raises:
        ValueError: no captions, captions of both kinds, a table without the column, a caption of a missing image, or a file
            that is not UTF-8.
    """
    skipped = listing.skipped_paths
    listed = [path for kind in TABLE_KINDS for path in skipped.get(kind, [])]
    tables = sorted(path for path in listed if posixpath.basename(path) in TABLES)
    texts = sorted(skipped.get(TEXT_KIND, []))
    images = by_stem(listing.files)
    beside = [path for path in texts if stem(path) in images]
    if tables and beside:
        raise ValueError(
            f"dataset.path is {listing.folder}, which has {show(tables[0])} and {show(beside[0])} beside an image; keep one "
            "kind of captions"
        )
    found: dict[str, list[str]] = {file: [] for file in listing.files}
    if tables:
        source, used = ", ".join(map(show, tables)), tables
        add_tables(listing, tables, column, found)
    else:
        source, used = f"{len(beside)} text files", beside
        add_texts(listing, texts, images, found)
    if not any(text for captions in found.values() for text in captions):
        raise ValueError(
            f"dataset.path is {listing.folder}, where no image has a caption; write a .txt beside each image, or "
            f"metadata.csv or metadata.jsonl with {NAME} and {column}"
        )
    read = {*used}
    remaining = {kind: [path for path in paths if path not in read] for kind, paths in skipped.items()}
    listing.skipped_paths = {kind: paths for kind, paths in remaining.items() if paths}
    return source, {file: captions or [""] for file, captions in found.items()}


def stem(path: str) -> str:
    """A path without suffix, in NFC form."""
    return unicodedata.normalize("NFC", posixpath.splitext(path)[0])


def by_stem(files: Sequence[str]) -> dict[str, list[str]]:
    """The files by their path without suffix."""
    found: dict[str, list[str]] = {}
    for file in files:
        found.setdefault(stem(file), []).append(file)
    return found


def show(path: str) -> str:
    """A path for a message."""
    return escape_unprintable(path)


def read_text(folder: Path, path: str) -> str:
    """The text of a UTF-8 file, without byte order mark.

    Raises:
        ValueError: a file that cannot be read, or is not UTF-8.
    """
    try:
        check_regular(folder / path)
        return (folder / path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"is not UTF-8 (byte {error.start})"
    except (OSError, Unreadable) as error:
        reason = f"cannot be read ({getattr(error, 'strerror', None) or error})"
    raise ValueError(f"dataset.path is {folder}, where {show(path)} {reason}; save it as UTF-8 text")


def add_texts(
    listing: Listing, texts: Sequence[str], images: Mapping[str, Sequence[str]], found: Mapping[str, list[str]]
) -> None:
    """Adds the lines of text files to the images of the same name.

    Raises:
        ValueError: a text file that belongs to no file, or cannot be read.
    """
    others = {stem(path) for kind, paths in listing.skipped_paths.items() if kind != TEXT_KIND for path in paths}
    beside = [path for path in texts if stem(path) in images]
    stray = [path for path in texts if stem(path) not in images and stem(path) not in others]
    if beside and stray:  # without any caption, find_captions says so
        raise ValueError(
            f"dataset.path is {listing.folder}, where {show(stray[0])} is the caption of no image; remove it, or give it the "
            "name of its image"
        )
    with ThreadPool() as pool:
        contents = pool.map(lambda path: read_text(listing.folder, path), beside)
    for path, content in zip(beside, contents):
        captions = [caption for line in content.splitlines() if (caption := line.strip())]
        for file in images[stem(path)]:
            found[file].extend(captions)


def add_tables(listing: Listing, tables: Sequence[str], column: str, found: Mapping[str, list[str]]) -> None:
    """Adds the texts of tables to the images that they name.

    Raises:
        ValueError: two tables in one folder, a missing file or column, or a table that cannot be read.
    """
    for one, other in zip(tables, tables[1:]):
        if posixpath.dirname(one) == posixpath.dirname(other):
            raise ValueError(
                f"dataset.path is {listing.folder}, which has {show(one)} and {show(other)}; keep one of them"
            )
    names = {unicodedata.normalize("NFC", file): file for file in listing.files}
    others = {unicodedata.normalize("NFC", path) for paths in listing.skipped_paths.values() for path in paths}
    for table in tables:
        place = f"dataset.path is {listing.folder}, where {show(table)}"
        content = read_text(listing.folder, table)
        rows = read_csv(content, column) if table.endswith(".csv") else read_jsonl(content, column)
        try:
            for name, texts in rows:
                path = posixpath.normpath(posixpath.join(posixpath.dirname(table), name.replace("\\", "/")))
                path = unicodedata.normalize("NFC", path)
                if path in names:
                    found[names[path]].extend(text for part in texts if (text := " ".join(part.split())))
                elif path not in others:
                    raise ValueError(f"lists {show(shorten(name, 100))}, which is not there")
        except csv.Error as error:
            raise ValueError(f"{place} is no CSV table ({error})") from error
        except ValueError as error:
            raise ValueError(f"{place} {error}") from error


def read_csv(content: str, column: str) -> Iterator[tuple[str, list[str]]]:
    """(file name, [text]) of every row.

    Raises:
        ValueError: a missing column, or a row with too few values. The message continues "<file> ...".
        csv.Error: a table that is not CSV.
    """
    rows = csv.DictReader(io.StringIO(content, newline=""), strict=True)
    check_columns(rows.fieldnames or [], column)
    for row in rows:
        if row[NAME] is None or row[column] is None:
            raise ValueError(f"has too few values in line {rows.line_num}")
        yield row[NAME], [row[column]]


def read_jsonl(content: str, column: str) -> Iterator[tuple[str, list[str]]]:
    """(file name, texts) of every line; a text may be a text, a list of texts, or null.

    Raises:
        ValueError: a line that is no object, or has no such text. The message continues "<file> ...".
    """
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"has no JSON in line {number}") from error
        if not isinstance(row, dict) or not isinstance(row.get(NAME, ""), str):
            raise ValueError(f"has no object with {NAME} in line {number}")
        check_columns([*row], column)
        texts = row[column] if isinstance(row[column], list) else [row[column] or ""]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"has a {column} that is not text in line {number}")
        yield row[NAME], texts


def check_columns(columns: Sequence[str], column: str) -> None:
    """Raises ValueError without a column of file names or of texts."""
    for name in (NAME, column):
        if name not in columns:
            listed = ", ".join(show(shorten(other, 40)) for other in columns[:MAX_NAMED_COLUMNS]) or "none"
            advice = "" if name == NAME else "; set dataset.column to the one with the captions"
            raise ValueError(f"has no column {show(name)} (its columns: {listed}){advice}")


def describe_captions(source: str, captions: Sequence[Sequence[str]]) -> list[str]:
    """Lines of the data sheet: number of captions, of empty ones, lengths, and examples.

    Arguments:
        source: where they come from.
        captions: of each image.
    """
    full = [text for texts in captions for text in texts if text]
    numbers = [sum(map(bool, texts)) for texts in captions]
    lengths = sorted(map(len, full))
    lines = [
        f"captions: {len(full)} of {len(captions)} images, from {source}, {min(numbers)} to {max(numbers)} per image, "
        f"{len(set(full))} different ones; {numbers.count(0)} images have the empty caption"
    ]
    if lengths:
        lines.append(
            "caption lengths, shortest / median / longest: "
            f"{lengths[0]} / {lengths[len(lengths) // 2]} / {lengths[-1]} characters"
        )
    shown = [texts for texts in captions if any(texts)][:MAX_SHOWN]
    examples = [" | ".join(show(shorten(text, MAX_SHOWN_LENGTH)) for text in texts) for texts in shown]
    return [*lines, *(f"captions of an image: {text}" for text in examples)]
