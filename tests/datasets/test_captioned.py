"""Captioned folders: texts beside images and tables of them, streams, fingerprints, the data sheet, and mistakes."""

import json
from pathlib import Path

import pytest
import torch
from image_files import numbers, paint, split_of
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from diffguide.config.build import build, config_dir
from diffguide.datasets import Captioned, Split
from diffguide.datasets.base import RowStream, fetch_examples


def captioned(path: Path, **changes) -> Captioned:
    return Captioned(**dict(path=str(path), size=4, validation=0.25, test=0.25, memory=1e9) | changes)


def caption_of(data: Captioned) -> dict[int, list[str]]:
    """The captions by number of the image, through all splits."""
    splits = (data.train, data.validation, data.test)
    return {n: texts for split in splits for n, texts in zip(numbers(split), split.columns["captions"])}


def write_texts(folder: Path, count: int = 12) -> None:
    for i in range(count):
        paint(folder / "deep" / f"{i} é.png", i)
        (folder / "deep" / f"{i} é.txt").write_text(f"  number {i}  \n\nzahl {i} über\n", encoding="utf-8")


def write_table(folder: Path, name: str, rows: list[dict]) -> None:
    if name.endswith(".jsonl"):
        lines = [json.dumps(row) for row in rows]
    else:
        lines = [",".join(rows[0]), *(",".join(f'"{value}"' for value in row.values()) for row in rows)]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def refusal(path: Path, **changes) -> str:
    with pytest.raises(ValueError) as raised:
        captioned(path, **changes)
    assert "\n" not in str(raised.value) and str(raised.value).startswith("dataset.path is ")
    return str(raised.value)


def test_lines_of_a_text_file_are_captions(tmp_path):
    write_texts(tmp_path)
    data = captioned(tmp_path)
    assert caption_of(data) == {i: [f"number {i}", f"zahl {i} über"] for i in range(12)}
    assert data.class_names == () and not data.flip and not any("not read" in line for line in data.summary())


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_tables_name_images_and_texts(tmp_path, name):
    """Relative to the folder of the table; several rows are several captions."""
    for i in range(6):
        paint(tmp_path / f"{i}.png", i)
        paint(tmp_path / "more" / "x" / f"{i}.png", 10 + i)
    rows = [{"file_name": f"{i}.png", "width": 4, "text": f"one, {i}"} for i in range(6)]
    write_table(tmp_path, name, rows + [{"file_name": "./2.png", "width": 4, "text": "zwei"}])
    write_table(tmp_path / "more", name, [{"file_name": f"x/{i}.png", "text": f"deep {i}"} for i in range(6)])
    expected = (
        {i: [f"one, {i}"] for i in range(6)} | {10 + i: [f"deep {i}"] for i in range(6)} | {2: ["one, 2", "zwei"]}
    )
    assert caption_of(captioned(tmp_path)) == expected


def test_a_list_in_a_table_is_several_captions(tmp_path):
    for i in range(4):
        paint(tmp_path / f"{i}.png", i)
    rows = [
        {"file_name": "0.png", "text": ["a", " b\nc "]},
        {"file_name": "1.png", "text": None},
        {"file_name": "2.png", "text": ""},
    ]
    write_table(tmp_path, "metadata.jsonl", rows)
    data = captioned(tmp_path, validation=0, test=0)
    assert caption_of(data) == {0: ["a", "b c"], 1: [""], 2: [""], 3: [""]}
    line = "captions: 2 of 4 images, from metadata.jsonl, 0 to 2 per image, 2 different ones; 3 images have the empty caption"
    assert line in data.summary()


def test_the_order_of_examples_and_splits_is_that_of_the_folder_without_captions(tmp_path):
    write_texts(tmp_path, 30)
    data = captioned(tmp_path)
    before = split_of(data)
    for i in range(30):
        (tmp_path / "deep" / f"{i} é.txt").write_text(f"other {i}")
    assert split_of(captioned(tmp_path)) == before and {*before.values()} == {"train", "validation", "test"}


def test_a_stream_has_the_captions_of_the_image_that_it_returns(tmp_path, capfd):
    write_texts(tmp_path, 20)
    held, streamed = captioned(tmp_path), captioned(tmp_path, memory=0)
    stream = streamed.train
    assert isinstance(stream, RowStream) and isinstance(held.train, Split)
    assert stream.columns == held.train.columns and caption_of(streamed) == caption_of(held)
    order = numbers(held.train)
    (tmp_path / "deep" / f"{order[1]} é.png").write_bytes(b"gone bad")
    x, rows = (torch.cat(parts) for parts in zip(*DataLoader(stream, batch_size=3, num_workers=2)))
    for image, row in zip(x, rows.tolist()):
        assert stream.columns["captions"][row][0] == f"number {int(image[0, 0, 0])}"
    assert rows.tolist()[:3] == [0, 2, 2] and "is skipped" in capfd.readouterr().err
    some, y = fetch_examples(stream, torch.tensor([1, 0]))
    assert some[:, 0, 0, 0].tolist() == [order[2], order[0]] and y.tolist() == [-1, -1]


def test_classes_are_folders_as_without_captions(tmp_path):
    for i in range(8):
        paint(tmp_path / "ab"[i % 2] / f"{i}.png", i)
    write_table(tmp_path, "metadata.csv", [{"file_name": f"{'ab'[i % 2]}/{i}.png", "text": str(i)} for i in range(8)])
    data = captioned(tmp_path, num_classes=2, memory=0)
    assert data.class_names == ("a", "b")
    for split in (data.train, data.validation, data.test):
        assert [n % 2 for n in numbers(split)] == split.y.tolist()


def test_the_fingerprint_covers_images_and_captions(tmp_path):
    write_texts(tmp_path)
    first = captioned(tmp_path).fingerprint()
    assert captioned(tmp_path, memory=0).fingerprint() == first and first.total == 12
    (tmp_path / "deep" / "3 é.txt").write_text("number 3\nzahl 3 uber")
    changed = captioned(tmp_path).fingerprint()
    assert changed.sha256 != first.sha256
    assert [file for file in first.files if first.files[file] != changed.files[file]] == ["deep/3 é.png"]
    paint(tmp_path / "deep" / "4 é.png", 400)
    assert captioned(tmp_path).fingerprint().sha256 != changed.sha256


def test_the_data_sheet_counts_and_shows_captions(tmp_path):
    write_texts(tmp_path)
    (tmp_path / "deep" / "5 é.txt").write_text(" \n")
    (tmp_path / "deep" / "6 é.txt").unlink()
    (tmp_path / "deep" / "7 é.txt").write_text("x" * 400 + "\nbell \a")
    lines = captioned(tmp_path).summary()
    assert (
        "captions: 20 of 12 images, from 11 text files, 0 to 2 per image, 20 different ones; 2 images have the empty caption"
        in lines
    )
    assert "caption lengths, shortest / median / longest: 6 / 11 / 400 characters" in lines
    examples = [line for line in lines if line.startswith("captions of an image: ")]
    assert len(examples) == 3 and all(len(line) < 240 and line.isprintable() for line in examples)


def test_texts_of_images_that_are_not_read_are_ignored(tmp_path):
    write_texts(tmp_path)
    (tmp_path / "raw.heic").write_bytes(b"")
    (tmp_path / "raw.txt").write_text("raw")
    data = captioned(tmp_path)
    assert len(caption_of(data)) == 12 and "1 .txt (raw.txt)" in data.summary()[-1]
    write_texts(tmp_path / "tables", 2)
    for file in (tmp_path / "tables").rglob("*.txt"):
        file.unlink()
    (tmp_path / "tables" / "LICENSE.txt").write_text("free")
    (tmp_path / "tables" / "raw.heic").write_bytes(b"")
    rows = [{"file_name": "deep/0 é.png", "text": "0"}, {"file_name": "raw.heic", "text": "raw"}]
    write_table(tmp_path / "tables", "metadata.csv", rows)
    assert caption_of(captioned(tmp_path / "tables", validation=0, test=0)) == {0: ["0"], 1: [""]}


def test_unreadable_images_are_skipped_with_their_captions(tmp_path):
    write_texts(tmp_path)
    (tmp_path / "deep" / "2 é.png").write_bytes(b"no image")
    data = captioned(tmp_path)
    assert caption_of(data) == {i: [f"number {i}", f"zahl {i} über"] for i in range(12) if i != 2}
    assert [str(path) for path, _ in data.unreadable] == ["deep/2 é.png"]


def test_folders_without_captions_are_refused(tmp_path):
    paint(tmp_path / "a.png", 1)
    assert "where no image has a caption" in refusal(tmp_path)
    (tmp_path / "LICENSE.txt").write_text("free")
    assert "where no image has a caption" in refusal(tmp_path)
    (tmp_path / "a.txt").write_text("")
    assert "LICENSE.txt is the caption of no image" in refusal(tmp_path)
    (tmp_path / "LICENSE.txt").unlink()
    assert "where no image has a caption" in refusal(tmp_path)


def test_captions_of_two_kinds_are_refused(tmp_path):
    write_texts(tmp_path)
    write_table(tmp_path, "metadata.csv", [{"file_name": "deep/0 é.png", "text": "0"}])
    assert "which has metadata.csv and deep/0 é.txt beside an image" in refusal(tmp_path)
    for file in tmp_path.rglob("*.txt"):
        file.unlink()
    write_table(tmp_path, "metadata.jsonl", [{"file_name": "deep/0 é.png", "text": "0"}])
    assert "which has metadata.csv and metadata.jsonl; keep one" in refusal(tmp_path)


@pytest.mark.parametrize(
    "name, content, message",
    [
        (
            "metadata.csv",
            "file_name,caption\n0.png,a\n",
            "metadata.csv has no column text (its columns: file_name, caption); set dataset.column",
        ),
        ("metadata.csv", "path,text\n0.png,a\n", "metadata.csv has no column file_name (its columns: path, text)"),
        ("metadata.csv", "", "has no column file_name (its columns: none)"),
        ("metadata.csv", "file_name,text\n0.png\n", "metadata.csv has too few values in line 2"),
        ("metadata.csv", 'file_name,text\n0.png,"a\n', "metadata.csv is no CSV table (unexpected end of data"),
        ("metadata.csv", "file_name,text\n0.png,a\n1.png,b\n", "metadata.csv lists 1.png, which is not there"),
        ("metadata.csv", "file_name,text\n../0.png,a\n", "lists ../0.png, which is not there"),
        ("metadata.csv", "file_name,text\n0.png,caf\xe9\n", "metadata.csv is not UTF-8 (byte 24)"),
        ("metadata.jsonl", '{"file_name": "0.png", "text": "a"}\n[1]\n', "has no object with file_name in line 2"),
        ("metadata.jsonl", '{"file_name": "0.png", "text": "a"}\n{"file\n', "metadata.jsonl has no JSON in line 2"),
        ("metadata.jsonl", '{"file_name": "0.png"}\n', "metadata.jsonl has no column text (its columns: file_name)"),
        ("metadata.jsonl", '{"file_name": "0.png", "text": 3}\n', "has a text that is not text in line 1"),
        ("0.txt", "caf\xe9", "0.txt is not UTF-8 (byte 3); save it as UTF-8 text"),
    ],
)
def test_mistakes_in_captions_are_named(tmp_path, name, content, message):
    paint(tmp_path / "0.png", 0)
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    assert message in refusal(tmp_path)


def test_a_byte_order_mark_and_another_form_of_accents_are_accepted(tmp_path):
    paint(tmp_path / "cafe\u0301.png", 0)
    paint(tmp_path / "sub" / "b.png", 1)
    (tmp_path / "metadata.csv").write_text(
        "\ufefffile_name,text\r\ncaf\u00e9.png,a\r\nsub\\b.png,b\r\n", encoding="utf-8"
    )
    assert caption_of(captioned(tmp_path, validation=0, test=0)) == {0: ["a"], 1: ["b"]}


def test_the_column_can_have_another_name(tmp_path):
    paint(tmp_path / "0.png", 0)
    write_table(tmp_path, "metadata.csv", [{"file_name": "0.png", "caption": "a"}])
    assert caption_of(captioned(tmp_path, column="caption", validation=0, test=0)) == {0: ["a"]}


def test_the_yaml_file_builds_it(tmp_path):
    write_texts(tmp_path)
    config = OmegaConf.create({"dataset": OmegaConf.load(Path(config_dir()) / "dataset/captioned.yaml")})
    config.dataset.path = str(tmp_path)
    data = build(config.dataset, "dataset")
    assert data.shape == (3, 64, 64) and len(data.train.columns["captions"]) == len(data.train.y)
