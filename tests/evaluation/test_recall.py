"""Recall of captions: the loss and the ranks against NumPy, texts that say the same, a dual encoder and its cache."""

import numpy as np
import pytest
import torch
from captioned_stripes import draw_stripes, striped

from diffguide.datasets import Dataset, Digits
from diffguide.datasets.base import ColumnSplit, Split
from diffguide.evaluation.metric import MetricError
from diffguide.evaluation.quality.dual_encoder import (
    DualEncoder,
    DualNetwork,
    contrastive_loss,
    cut_text,
    train_dual_network,
)
from diffguide.evaluation.quality.recall import choose_candidates, find_related, is_nearest

CPU = torch.device("cpu")


def silent(done, total, unit):
    pass


def random(*shape, seed=0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cross_entropy(logits: np.ndarray, target: int) -> float:
    return float(np.log(np.exp(logits).sum()) - logits[target])


def test_with_one_text_per_picture_the_loss_is_that_of_clip():
    """Figure 3 of arXiv 2103.00020: the mean of the cross-entropies of rows and columns with labels 0, 1, ..."""
    logits = 3 * random(7, 7)
    rows = np.mean([cross_entropy(logits[i].numpy(), i) for i in range(7)])
    columns = np.mean([cross_entropy(logits[:, i].numpy(), i) for i in range(7)])
    found = contrastive_loss(logits, torch.eye(7, dtype=torch.bool))
    np.testing.assert_allclose(float(found), (rows + columns) / 2, rtol=1e-13)


def test_texts_that_fit_several_pictures_share_one():
    logits, fits = 2 * random(5, 5, seed=1), torch.eye(5, dtype=torch.bool)
    fits[0, 3] = fits[1, 2] = fits[2, 1] = True
    u = logits.numpy()
    rows = [np.mean([cross_entropy(u[i], j) for j in range(5) if fits[i, j]]) for i in range(5)]
    columns = [np.mean([cross_entropy(u[:, j], i) for i in range(5) if fits[i, j]]) for j in range(5)]
    np.testing.assert_allclose(
        float(contrastive_loss(logits, fits)), np.mean(rows) / 2 + np.mean(columns) / 2, rtol=1e-13
    )


def test_captions_of_one_picture_say_the_same():
    captions = [["seven", "the digit 7"], ["seven", "7", ""], ["eight"], ["the digit 7"]]
    related = find_related(captions)
    assert related["seven"] == {"seven", "the digit 7", "7"} and related["eight"] == {"eight"}
    assert related["the digit 7"] == {"seven", "the digit 7"} and "" not in related


def test_candidates_are_the_own_text_and_others_that_say_something_else():
    pool = ["a", "b", "c", "d", "e", "f"]
    related = {"a": {"a", "b"}, "c": {"c", "d", "z"}}
    texts = ["a", "c", "f", "a"]
    found = choose_candidates(texts, pool, related, 4, seed=0)
    assert found.shape == (4, 4)
    for row, text in zip(found.tolist(), texts):
        names = [pool[index] for index in row]
        assert names[0] == text and len(set(names)) == 4 and not set(names[1:]) & (related.get(text, set()) | {text})
    assert torch.equal(found, choose_candidates(texts, pool, related, 4, seed=0))
    assert torch.equal(found[:2], choose_candidates(texts[:2], pool, related, 4, seed=0))
    assert not torch.equal(choose_candidates(texts, pool, related, 3, 0), choose_candidates(texts, pool, related, 3, 1))
    assert choose_candidates(texts, pool, related, 100, 0).shape == (4, 5), "a and c have four others"
    drawn = choose_candidates(["f"] * 3000, pool, related, 2, 0)[:, 1]
    assert drawn.bincount(minlength=6)[:5].min() > 3000 / 5 - 5 * (3000 * 0.2 * 0.8) ** 0.5 and 5 not in drawn
    with pytest.raises(ValueError, match="several texts that say something else"):
        choose_candidates(["a"], ["a", "b"], related, 2, 0)


def test_a_picture_recalls_its_text_if_no_other_is_as_near():
    pictures, texts = (torch.nn.functional.normalize(random(n, 4, seed=n), dim=1) for n in (30, 9))
    candidates = torch.stack([torch.randperm(9, generator=torch.Generator().manual_seed(i))[:3] for i in range(30)])
    cosines = pictures.numpy() @ texts.numpy().T
    expected = [max(row, key=lambda index: cosines[i, index]) == row[0] for i, row in enumerate(candidates.tolist())]
    assert is_nearest(pictures, texts, candidates).tolist() == expected and 0 < sum(expected) < 30
    same = torch.ones(1, 4)
    assert not is_nearest(same, torch.ones(2, 4), torch.tensor([[0, 1]])).any(), "a tie is wrong"


def test_a_dual_encoder_learns_which_text_is_whose():
    """After twenty steps it finds the texts of new pictures, and those of other pictures it does not find."""
    train, test = draw_stripes(200, 0), draw_stripes(60, 1)
    network = train_dual_network(train.x, train.columns["captions"], 20, seed=0)
    pool = ["above", "on top", "below", "at the bottom"]
    candidates = torch.tensor([[0, 2], [2, 0]])[test.y]
    v = network.encode_texts(network.read(pool))
    right = is_nearest(network.encode_pictures(test.x.float() / 127.5 - 1), v, candidates)
    assert right.double().mean() > 0.95
    wrong = is_nearest(network.encode_pictures(255 - test.x.float() / 127.5 - 1), v, candidates)
    assert wrong.double().mean() < 0.9
    assert not network.training and not any(part.requires_grad for part in network.parameters())


def test_training_is_a_function_of_its_arguments():
    train = draw_stripes(40, 0)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (train_dual_network(train.x, train.columns["captions"], 2, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [network.state_dict() for network in (first, again, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["projection.weight"], weights[2]["projection.weight"])


def test_texts_are_cut_and_padded_to_the_longest():
    network = DualNetwork(1, 8, length=6).eval()
    ids = network.read(["ab", "abcdefgh", "é" * 9])
    assert ids.shape == (3, 6) and ids[0].tolist() == [98, 99, 257, 0, 0, 0] and ids[1, -1] == 257
    assert network.read(["ab"]).shape == (1, 3) and cut_text("ééé", 5) == "éé"
    with torch.no_grad():
        torch.testing.assert_close(network.encode_texts(ids)[:1], network.encode_texts(network.read(["ab"])))


def test_the_network_is_cached_by_its_data_and_its_recipe(tmp_path, monkeypatch):
    from diffguide.evaluation.quality import dual_encoder

    counted = []
    original = dual_encoder.train_dual_network
    monkeypatch.setattr(dual_encoder, "train_dual_network", lambda *rest: counted.append(1) or original(*rest))

    def prepared(steps=1, seed=0, train=None):
        encoder = DualEncoder(steps, seed, str(tmp_path / "cache"))
        encoder.prepare(striped(train or draw_stripes(20, 0)), CPU, silent)
        return encoder

    first, again = prepared(), prepared()
    x = draw_stripes(5, 3).x
    assert len(counted) == 1 and torch.equal(first.encode_pictures(x), again.encode_pictures(x))
    assert torch.equal(first.encode_texts(["above", "new"]), again.encode_texts(["above", "new"]))
    renamed = draw_stripes(20, 0)
    renamed.columns["captions"][0] = ["up"]
    for arguments in ((2,), (1, 1), (1, 0, draw_stripes(20, 4)), (1, 0, renamed)):
        prepared(*arguments)
    assert len(counted) == 5 and len(list((tmp_path / "cache").iterdir())) == 5
    (tmp_path / "cache" / f"dual-{first.digest[:16]}.safetensors").write_bytes(b"torn")
    with pytest.raises(MetricError, match="cannot be read"):
        prepared()
    (tmp_path / "file").write_text("")
    with pytest.raises(MetricError, match="metric.encoder.cache=.*null"):
        DualEncoder(1, 0, str(tmp_path / "file")).prepare(striped(draw_stripes(20, 0)), CPU, silent)


def test_pictures_without_captions_are_left_out():
    train = draw_stripes(20, 0)
    train.columns["captions"][3] = [""]
    encoder = DualEncoder(1, 0, None)
    encoder.prepare(striped(train), CPU, silent)
    rest = torch.arange(20) != 3
    given = [texts for texts in train.columns["captions"] if texts != [""]]
    expected = train_dual_network(train.x[rest], given, 1, 0)
    assert torch.equal(encoder.network.projection.weight, expected.projection.weight)


def test_other_data_are_refused():
    with pytest.raises(ValueError, match="needs data with captions"):
        DualEncoder().check(Dataset(*[Split(*draw_stripes(4, 0))] * 3, ("a", "b")))
    wide = ColumnSplit(torch.zeros(2, 1, 8, 12), torch.zeros(2).long(), {"captions": [["a"], ["b"]]})
    with pytest.raises(ValueError, match=r"square pictures of 8 to 64 pixels per side; these are \[1, 8, 12\]"):
        DualEncoder().check(Dataset(wide, wide, wide, ()))
    DualEncoder().check(Digits())
