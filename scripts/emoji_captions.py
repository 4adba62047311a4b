"""Writes an archive of captioned pictures into a folder for `dataset=captioned`.

    python scripts/emoji_captions.py emoji32.npz emoji
    diffguide-train dataset=captioned dataset.path=emoji dataset.size=32 ... (or dataset.num_classes=9 for its categories)

The archive has `images` uint8 [N, 32, 32, 3], `captions` str [N], `labels` [N] with `class_names`, and `styles` [N], such as
emoji of two vendors. The folder gets a PNG per picture in a folder per category, and metadata.jsonl with two captions each:
"tiger face" and "tiger face, google style". Takes seconds.
"""

import argparse
import json
from pathlib import Path

import numpy
from PIL import Image

KEYS = ("images", "captions", "labels", "class_names", "styles")


def write_folder(archive: Path, folder: Path) -> int:
    """Writes the pictures and metadata.jsonl; returns the number of pictures.

    Raises:
        ValueError: an archive without one of the arrays, arrays of different lengths, or a folder with files.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty")
    with numpy.load(archive, allow_pickle=False) as arrays:
        if missing := [key for key in KEYS if key not in arrays]:
            raise ValueError(f"{archive} has no {missing[0]}; it must have {', '.join(KEYS)}")
        images, captions, labels, names, styles = (arrays[key] for key in KEYS)
    if not len(images) == len(captions) == len(labels) == len(styles):
        raise ValueError(f"{archive} has {len(images)} images, {len(captions)} captions and {len(labels)} labels")
    rows = []
    for number, (image, caption, label, style) in enumerate(zip(images, captions, labels, styles)):
        path = Path(str(names[label]).replace("/", "-"), f"{number:05d}.png")
        (folder / path.parent).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / path)
        texts = [str(caption), f"{caption}, {style} style"] if caption else [""]
        rows.append(json.dumps({"file_name": path.as_posix(), "text": texts}, ensure_ascii=False))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return len(rows)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="the .npz")
    parser.add_argument("folder", type=Path, help="a new or empty folder")
    asked = parser.parse_args(words)
    try:
        print(f"{write_folder(asked.archive, asked.folder)} captioned pictures in {asked.folder}")
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
