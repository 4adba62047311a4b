"""The images in a folder of the user with captions: texts beside the images, or a table of them."""

import hashlib
import json
from collections.abc import Mapping, Sequence

from .captions import describe_captions, find_captions
from .fingerprints import Fingerprint, fingerprint_files
from .image_folder import ImageFolder

__all__ = ["Captioned"]


class Captioned(ImageFolder):
    """An `ImageFolder` whose images have captions, one or several each, in `columns["captions"]` of every split.

    Arguments:
        path: the folder, with a `.txt` beside each image, or metadata.csv or metadata.jsonl (`captions`).
        column: of metadata.csv or metadata.jsonl with the captions.
        channels, ..., quantization_levels: as for `ImageFolder`; images are not mirrored, since captions may say left.

    Attributes:
        captions: captions of each file, at least one; "" = none.
        source: the files that they come from.

    Raises:
        ValueError: as for `ImageFolder` and `captions.find_captions`.
    """

    captions: Mapping[str, Sequence[str]]

    def __init__(
        self,
        path: str,
        column: str = "text",
        channels: int = 3,
        size: int = 64,
        num_classes: int = 0,
        resize: int | None = None,
        stretch: bool = False,
        flip: bool = False,
        validation: float = 0.05,
        test: float = 0.0,
        memory: float = 2.0e9,
        workers: int = 2,
        suffixes: Sequence[str] | None = None,
        class_order: str = "numbers",
        quantization_levels: int = 256,
    ):
        self.column = column
        super().__init__(
            path, channels, size, num_classes, resize, stretch, flip, validation, test, memory, workers, suffixes,
            class_order, quantization_levels=quantization_levels,
        )  # fmt: skip
        used = [texts for split in (self.train, self.validation, self.test) for texts in split.columns["captions"]]
        self.notes += describe_captions(self.source, used)

    def read_columns(self) -> Mapping[str, Mapping[str, Sequence[str]]]:
        self.source, self.captions = find_captions(self.listing, self.column)
        return {"captions": self.captions}

    def fingerprint(self) -> Fingerprint:
        """The hash of the relative paths, contents and captions of the files."""
        return fingerprint_files({file: self.hash_captioned(file) for file in self.hashes})

    def hash_captioned(self, file: str) -> str:
        """The hash of a file and of its captions."""
        return hashlib.sha256(json.dumps([self.hashes[file], *self.captions[file]]).encode()).hexdigest()
