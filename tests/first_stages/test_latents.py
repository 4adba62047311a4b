"""Latents of a data set: normalized, stored once, equal to direct encoding."""

import numpy
import pytest
import torch

from diffguide.datasets import Dataset, Split, Stream
from diffguide.datasets.base import ColumnSplit, RowStream, fetch_examples
from diffguide.first_stages import Autoencoder, SmallKL
from diffguide.first_stages import encoding as encoding_module
from diffguide.first_stages.encoding import cache_key, encode_dataset
from diffguide.first_stages.latent_data import DirectLatents
from diffguide.first_stages.space import LatentFacts, LatentSpace, hash_stage


def stage(seed: int = 0) -> Autoencoder:
    torch.manual_seed(seed)
    return Autoencoder(SmallKL(3, 8, 4, (1, 1), 2, head_channels=4)).eval()


def pictures(count: int = 40, flip: bool = True, seed: int = 0, **changes) -> Dataset:
    x = torch.randint(256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    split = ColumnSplit(x, torch.arange(count) % 2, {"captions": [[f"picture {row}"] for row in range(count)]})
    small = Split(x[:5], split.y[:5])
    return Dataset(split, small, Split(x[:0], split.y[:0]), ["a", "b"], flip=flip, **changes)


@pytest.fixture
def shards_of_16(monkeypatch):
    monkeypatch.setattr(encoding_module, "SHARD_ROWS", 16)


def test_latents_are_normalized_per_channel_and_decode_to_the_reconstruction():
    x, network = torch.rand(3, 3, 8, 8) * 2 - 1, stage()
    space = LatentSpace(network, (3, 8, 8), [0.5, -2.0], [2.0, 0.25])
    raw = network.encode(x).detach()
    wanted = numpy.stack([(raw[:, 0] - 0.5) / 2, (raw[:, 1] + 2) / 0.25], axis=1)
    numpy.testing.assert_allclose(space.encode(x), wanted, atol=1e-6)
    numpy.testing.assert_allclose(space.decode(space.encode(x)), network.decode(raw).detach(), atol=1e-5)
    assert space.shape == (2, 4, 4) and LatentFacts.read(space.facts()) == tuple(space.facts().values())


def test_the_training_latents_have_mean_0_and_variance_1():
    data = encode_dataset(stage(), pictures())
    both = data.space.normalize(data.train.x)  # both views
    assert both.shape == (40, 2, 2, 4, 4)
    numpy.testing.assert_allclose(both.double().mean((0, 1, 3, 4)), 0, atol=1e-5)
    numpy.testing.assert_allclose(both.double().var((0, 1, 3, 4), correction=0), 1, atol=1e-5)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("memory", [2e9, 0])
def test_stored_latents_are_those_of_direct_encoding(tmp_path, shards_of_16, flip, memory):
    """In memory and as a stream, with the same random mirroring as pictures have; labels and columns stay with them."""
    images = pictures(flip=flip)
    data = encode_dataset(stage(), images, tmp_path, batch_size=7, memory=memory)
    direct = DirectLatents(images, data.space)
    rows, chance = torch.tensor([3, 20, 39, 0]), torch.tensor([0.1, 0.9, 0.4, 0.6])[:, None].expand(4, 3)
    (x, y), (pixels, labels) = fetch_examples(data.train, rows), fetch_examples(images.train, rows)
    assert isinstance(data.train, Stream) == (memory == 0) and torch.equal(y, labels)
    for drawn in (None, chance):
        torch.testing.assert_close(data.preprocess(x, drawn), direct.preprocess(pixels, drawn), atol=1e-5, rtol=0)
    mirrored = [index for index in range(4) if flip and chance[index, 0] < 0.5]
    differ = (data.preprocess(x, chance) - data.preprocess(x)).flatten(1).abs().amax(1) > 1e-3
    assert differ.nonzero()[:, 0].tolist() == mirrored
    assert data.train.columns["captions"] == images.train.columns["captions"]
    assert data.shape == direct.shape == (2, 4, 4) and data.fingerprint() == images.fingerprint()
    assert len(data.validation.y) == 5 and len(data.test.y) == 0
    assert len(list(tmp_path.glob("*/train-*.safetensors"))) == 3


def encode_again(folder, **changes) -> int:
    """Encodes into a folder; the number of pictures that went through the network."""
    count, network = 0, stage(changes.pop("seed", 0))
    encode = network.encode

    def counted(x, noise=None):
        nonlocal count
        count += len(x)
        return encode(x, noise)

    network.encode = counted
    encode_dataset(network, pictures(**changes), folder)
    return count


def test_what_is_stored_is_not_encoded_again(tmp_path, shards_of_16):
    """A stopped encoding continues with its next shard, and a damaged shard is encoded again."""
    assert encode_again(tmp_path) == 85
    first = encode_dataset(stage(), pictures(), tmp_path)
    assert encode_again(tmp_path) == 0
    shards = sorted(tmp_path.glob("*/train-*.safetensors"))
    shards[2].unlink()
    assert encode_again(tmp_path) == 16  # both views of the last 8
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[:-4] + b"\0\0\0\1")
    assert encode_again(tmp_path) == 32
    assert shards[1].read_bytes() == whole
    again = encode_dataset(stage(), pictures(), tmp_path)
    assert torch.equal(again.train.x, first.train.x) and again.space.facts() == first.space.facts()


@pytest.mark.parametrize("changes", [{"seed": 1}, {"flip": False}, {"count": 39}])
def test_other_latents_are_never_read(tmp_path, changes):
    encode_again(tmp_path)
    assert encode_again(tmp_path, **changes) > 0
    assert len(list(tmp_path.iterdir())) == 2
    assert cache_key("0", pictures(), {"stretch": True}) != cache_key("0", pictures(), {"stretch": False})


class Replaced(RowStream):
    """A stream whose example 1 cannot be read and is replaced by example 2."""

    def __init__(self, split: Split):
        self.x, self.y, self.columns = split.x, split.y, split.columns

    def __getitem__(self, index):
        row = 2 if index == 1 else index
        return self.x[row], row


def test_a_replaced_picture_brings_its_label_and_caption():
    images = pictures(6)
    images.train = Replaced(images.train)
    data = encode_dataset(stage(), images)
    assert data.train.y.tolist() == [0, 0, 0, 1, 0, 1]
    assert data.train.columns["captions"][:3] == [["picture 0"], ["picture 2"], ["picture 2"]]
    assert torch.equal(data.train.x[1], data.train.x[2])


def test_known_facts_normalize_in_place_of_the_data():
    facts = LatentFacts(hash_stage(stage()), [3, 8, 8], [0.25, 0.5], [2.0, 4.0])
    data = encode_dataset(stage(), pictures(), facts=facts)
    raw = stage().encode(pictures().preprocess(pictures().train.x[:4])).detach()
    wanted = (raw - torch.tensor([0.25, 0.5])[:, None, None]) / torch.tensor([2.0, 4.0])[:, None, None]
    torch.testing.assert_close(data.preprocess(data.train.x[:4]), wanted, atol=1e-5, rtol=0)


def test_data_that_cannot_be_encoded_are_refused():
    with pytest.raises(ValueError, match="windows"):
        encode_dataset(stage(), pictures(size=4))
    with pytest.raises(ValueError, match="shape"):
        vectors = Split(torch.zeros(4, 2), torch.zeros(4).long())
        encode_dataset(stage(), Dataset(vectors, vectors, vectors, ["a"]))
    dead = stage()
    torch.nn.init.zeros_(dead.backbone.encoder.conv_out.weight[0])
    with pytest.raises(ValueError, match="without information"):
        encode_dataset(dead, pictures())


@pytest.mark.parametrize("changes", [{"mean": [0.0]}, {"std": [0.0, 1.0]}, {"std": [1.0, "1"]}, {"image_shape": [3, 8]},
                                     {"mean": [float("nan"), 0.0]}, {"sha256": 5}, {"more": 1}])  # fmt: skip
def test_facts_of_a_file_are_checked(changes):
    facts = LatentSpace(stage(), (3, 8, 8), [0.0, 0.0], [1.0, 1.0]).facts()
    with pytest.raises(ValueError, match="first_stage"):
        LatentFacts.read(facts | changes)
    with pytest.raises(ValueError, match="channels"):
        LatentSpace(stage(), (3, 8, 8), [0.0] * 3, [1.0] * 3)
