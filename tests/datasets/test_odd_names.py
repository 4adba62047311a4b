"""Unprintable file names and special files: escaped in messages, or rejected in one line."""

import os
import socket
from contextlib import closing

import pytest
from image_files import folder_of, paint, refusal, split_of

from diffguide.train import main

ODD = {
    "line\nbreak": "line\\nbreak",
    "\x1b[2Jclear": "\\x1b[2Jclear",
    "byte \udcff": "byte \\udcff",
    "\u2028": "\\u2028",
}


@pytest.mark.parametrize("name, written", ODD.items(), ids=ODD.values())
def test_a_class_folder_with_an_unprintable_name_is_refused(tmp_path, name, written):
    for folder in (name, "cat"):
        for i in range(4):
            paint(tmp_path / folder / f"{i}.png", i)
    message = refusal(tmp_path, num_classes=2)
    assert message.isprintable() and f"class folder '{written}'" in message and "rename it" in message
    assert len(split_of(folder_of(tmp_path, num_classes=0))) == 4  # without classes no name is printed


def test_names_of_unreadable_files_are_escaped(tmp_path, command):
    """In attributes, on stderr, and in the data sheet, which is UTF-8."""
    for i in range(40):
        paint(tmp_path / "x" / f"{i}.png", i, (8, 8))
    for name in ODD:
        (tmp_path / "x" / f"{name}.png").write_bytes(b"no picture")
    data = folder_of(tmp_path / "x")
    assert sorted(str(path) for path, _ in data.unreadable) == sorted(f"{name}.png" for name in ODD.values())
    assert all(line.isprintable() and line.isascii() for line in data.summary())
    done = command(
        main,
        "dry_run=true",
        "dataset=image_folder",
        "dataset.path=x",
        "dataset.num_classes=0",
        "dataset.size=8",
        "guidance=none",
        "backbone.channels=8",
        "backbone.head_channels=8",
        "backbone.attention=[]",
        "training.batch_size=8",
        at=tmp_path,
    )
    assert done.code == 0 and "Traceback" not in done.err, done.err
    sheet = (tmp_path / done.folder / "data_sheet.txt").read_text(encoding="utf-8")
    assert "unreadable: 4 files skipped: " in sheet and "\x1b" not in sheet


def test_the_name_of_a_file_that_becomes_unreadable_is_escaped(tmp_path, capfd):
    for i in range(8):
        paint(tmp_path / f"\x1b[2J{i}.png", i)
    data = folder_of(tmp_path, memory=0)
    (tmp_path / f"\x1b[2J{int(data.train[0][0][0, 0, 0])}.png").write_bytes(b"")
    data.train[0]
    message = capfd.readouterr().err
    assert "\\x1b[2J" in message and "\x1b" not in message


def test_pipes_sockets_and_devices_are_named_and_not_opened(tmp_path, monkeypatch):
    for i in range(8):
        paint(tmp_path / f"{i}.png", i)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    monkeypatch.chdir(tmp_path)  # a socket's name has at most about a hundred characters
    with closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind("socket.png")
        for memory in (1e9, 0):
            data = folder_of(tmp_path, memory=memory)
            unreadable = {str(path): reason for path, reason in data.unreadable}
            assert unreadable == dict.fromkeys(("pipe.png", "device.png", "socket.png"), "not a regular file")
    file = tmp_path / f"{int(data.train[0][0][0, 0, 0])}.png"
    file.unlink()
    os.mkfifo(file)  # while it trains
    assert len(data.train[0][0]) == 3 and data.train.reported[0]
