"""The conditions of a batch come from its device: nothing is read back. Encodings in memory are those on the disk."""

import pytest
import torch
from text_encoders import write_clip

from diffguide.backbones.conditions import Several
from diffguide.conditions import ByteText, Classes, ClipText, Continuous, LowResolution, MultiLabel, SeveralConditions
from diffguide.conditions.captions import CaptionTable
from diffguide.conditions.encoded_texts import EncodedTexts, PackedTexts

CAPTIONS = [["a red dot", "red"], [""], ["an egg"], [], ["red"], ["a", "b", "c"], ["an egg", "a"], ["dot"]]
COLUMNS = {
    "captions": CAPTIONS,
    "attributes": torch.arange(16).reshape(8, 2) % 3 - 1,
    "numbers": torch.arange(8.0)[:, None],
}
LABELS = torch.arange(8) % 3
ROWS = torch.tensor([5, 0, 7, 2, 0, 3, 6, 5, 1, 4])
X = torch.zeros(10, 3, 8, 8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("encoders") / "clip")


def frozen(clip, folder, memory=2e9) -> ClipText:
    return ClipText(str(clip), length=12, cache=str(folder), memory=memory)


def chances(draws: int) -> torch.Tensor:
    return torch.rand(len(ROWS), draws, generator=torch.Generator().manual_seed(1))


def several(clip, folder) -> SeveralConditions:
    parts = {
        "text": ByteText(12, 8, 1, 2),
        "clip": frozen(clip, folder),
        "class": Classes(3),
        "numbers": Continuous(["n"], [0], [1]),
        "attributes": MultiLabel(["a", "b"]),
        "picture": LowResolution(3, 8, 2),
    }
    return SeveralConditions(parts)


def choose_texts(rows, chance) -> list[str]:
    """The text that each row draws, one by one in Python."""
    drawn = [0.0] * len(rows) if chance is None else chance.tolist()
    given = [CAPTIONS[row] or [""] for row in rows.tolist()]
    return [texts[int(torch.tensor(u) * len(texts))] for texts, u in zip(given, drawn)]


@pytest.mark.parametrize("drawn", [False, True])
def test_every_row_has_one_of_its_texts(drawn):
    """Bit for bit what a loop over the rows finds."""
    text = ByteText(12, 8, 1, 2)
    table = text.tabulate(COLUMNS, LABELS)
    chance = chances(table.draws) if drawn else None
    y = table(ROWS, X, chance)
    assert torch.equal(y.ids, text.read(choose_texts(ROWS, chance[:, 0] if drawn else None)).ids)


def test_encodings_in_memory_are_those_on_the_disk(clip, tmp_path, monkeypatch):
    monkeypatch.setattr("diffguide.conditions.encoded_texts.SHARD_ROWS", 3)
    kept, read = (frozen(clip, tmp_path, memory).tabulate(COLUMNS, LABELS) for memory in (2e9, 0))
    assert isinstance(kept.conditions, PackedTexts) and isinstance(read.conditions, EncodedTexts)
    for chance in (None, chances(1)):
        for mine, theirs in zip(*(table(ROWS, X, chance).tensors() for table in (kept, read))):
            assert mine.dtype == theirs.dtype and torch.equal(mine, theirs)
        assert torch.equal(kept(ROWS, X, chance).keep, read(ROWS, X, chance).keep)


def test_encodings_are_kept_in_memory_up_to_a_limit(clip, tmp_path):
    table = frozen(clip, tmp_path).tabulate(COLUMNS, LABELS)
    size = sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))
    kinds = [type(frozen(clip, tmp_path, memory).tabulate(COLUMNS, LABELS).conditions) for memory in (size, size - 1)]
    assert isinstance(table, CaptionTable) and kinds == [PackedTexts, EncodedTexts]
    with pytest.raises(ValueError, match="condition.memory"):
        frozen(clip, tmp_path, -1)


def test_nothing_is_read_back_from_the_device_of_a_batch(clip, tmp_path):
    """A tensor on the device meta has a shape and no numbers: to read one raises, as here."""
    with pytest.raises((NotImplementedError, RuntimeError)):
        ROWS.to("meta").cpu()
    with pytest.raises((NotImplementedError, RuntimeError)):
        ROWS.to("meta").tolist()
    table = several(clip, tmp_path).tabulate(COLUMNS, LABELS)
    on_host = table(ROWS, X, chances(table.draws))
    rows, x, chance = (part.to("meta") for part in (ROWS, X, chances(table.draws)))
    y = table(rows, x, chance)
    assert isinstance(y, Several) and y.keep.shape == (10,) and y.parts.keys() == on_host.parts.keys()
    for name, part in y.parts.items():
        whole = on_host.parts[name]
        mine, theirs = ([part], [whole]) if isinstance(part, torch.Tensor) else (part.tensors(), whole.tensors())
        assert [each.shape for each in mine] == [each.shape for each in theirs]
        assert all(each.device.type == "meta" for each in mine)
    read = frozen(clip, tmp_path, 0).tabulate(COLUMNS, LABELS)
    with pytest.raises((NotImplementedError, RuntimeError)):
        read(rows, x, chance[:, :1])  # encodings on the disk are read where their rows are known
