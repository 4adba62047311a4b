"""The conditions of batches are functions of (seed, images seen), for any division and any storage, as the examples are."""

import torch
from one_rank import Rank, pictures

from diffguide.backbones import UNet
from diffguide.conditions import ByteText
from diffguide.conditions.examples import ConditionedData
from diffguide.datasets import Dataset, Split
from diffguide.datasets.base import ColumnSplit, RowStream
from diffguide.models.parameterizations import V
from diffguide.models.preconditioned import Preconditioned
from diffguide.objectives import Denoising
from diffguide.schedules import Cosine
from diffguide.training.batches import Batches
from diffguide.training.held_out import held_out_loss

CAPTIONS = [[f"{row} {choice}" for choice in range(1 + row % 3)] for row in range(20)]


class Rows(RowStream):
    """The examples of a split, one by one; the fourth cannot be read, and the fifth takes its place."""

    def __init__(self, split: ColumnSplit):
        self.split, self.y, self.columns = split, split.y, split.columns

    def __getitem__(self, index):
        row = index + (index == 3)
        return self.split.x[row], row


def model() -> Preconditioned:
    torch.manual_seed(0)
    network = UNet(
        3,
        size=6,
        channels=4,
        multipliers=(1,),
        attention=(6,),
        head_channels=4,
        blocks=1,
        conditioning=ByteText(8, 8, 1, 2),
    )
    return Preconditioned(network, Cosine(), V(), has_null=True)


def captioned(kind=ColumnSplit) -> Dataset:
    split = ColumnSplit(*pictures(), {"captions": CAPTIONS})
    return Dataset(*[split if kind is ColumnSplit else Rows(split)] * 3, ())


def asked(kind=ColumnSplit) -> ConditionedData:
    return ConditionedData(captioned(kind), model())


def spell(y) -> list[str]:
    return ["".join(chr(id - 1) for id in row if 0 < id < 257) for row in y.ids.tolist()]


def batch(rank: Rank, share: int, images: int = 16, kind=ColumnSplit) -> list[str]:
    batches = Batches(asked(kind).train, 0, rank, 8, share, images)
    return [text for _, (_, y, _) in zip(range(8 // rank.world_size // share), batches) for text in spell(y)]


def test_a_divided_batch_has_the_captions_of_the_batch():
    whole = batch(Rank(0, 1), 8)
    assert batch(Rank(0, 1), 2) == whole and batch(Rank(0, 2), 4) + batch(Rank(1, 2), 2) == whole
    assert [text.split()[0] for text in batch(Rank(0, 1), 8, kind=Rows)] == [
        "4" if text.split()[0] == "3" else text.split()[0] for text in whole
    ]


def test_an_example_has_one_of_its_captions_in_each_epoch():
    batches, seen = Batches(asked().train, 0, Rank(0, 1), 10, 10), []
    for _, (_, y, _) in zip(range(120), batches):
        assert all(text in CAPTIONS[int(text.split()[0])] for text in spell(y))
        seen += spell(y)
    counts = [seen.count(f"2 {choice}") for choice in range(3)]
    assert sum(counts) == 60 and min(counts) > 8 and seen.count("3 0") == 60


def test_labels_are_as_without_conditions():
    split = Split(*pictures())
    data = Dataset(split, split, split, ())
    plain, captions = (
        next(iter(Batches(each.train, 0, Rank(0, 1), 8, 8))) for each in (ConditionedData(data), asked())
    )
    assert torch.equal(plain[0], captions[0])  # captions do not change which pictures are shown, nor their windows
    assert torch.equal(plain[1], torch.tensor([int(text.split()[0]) for text in spell(captions[1])]))


def test_the_held_out_loss_takes_the_first_caption():
    objective = Denoising(model().backbone, Cosine(), p_uncond=0.0)
    for kind in (ColumnSplit, Rows):
        examples = ConditionedData(captioned(kind), objective.model).held_out
        found = held_out_loss(objective, examples, 0, torch.device("cpu"), 8).per_example
        x, y = examples.fetch(torch.arange(20))
        assert spell(y) == [CAPTIONS[row + (row == 3 and kind is Rows)][0] for row in range(20)] and found.shape == (
            20,
        )
        assert found.isfinite().all() and x.shape == (20, 3, 6, 6)
