"""The folder that is written of an archive is read as captioned data."""

import emoji_captions
import numpy as np
import pytest
import torch

from diffguide.datasets import Captioned


@pytest.fixture
def archive(tmp_path):
    """Six pictures of two categories and two styles, one without caption."""
    arrays = {
        "images": np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8),
        "captions": np.array(["cat", "dog", "", "café, open", "cat", "tent"]),
        "labels": np.array([1, 1, 0, 0, 1, 0], dtype=np.uint8),
        "class_names": np.array(["Travel & Places", "Animals"]),
        "styles": np.array(["a", "a", "a", "b", "b", "b"]),
    }
    np.savez(tmp_path / "small.npz", **arrays)
    return tmp_path / "small.npz", arrays


def test_the_folder_has_the_pictures_and_captions(archive, tmp_path, capsys):
    path, arrays = archive
    emoji_captions.main([str(path), str(tmp_path / "out")])
    assert capsys.readouterr().out.startswith("6 captioned pictures in ")
    data = Captioned(str(tmp_path / "out"), size=32, num_classes=2, validation=0, test=0)
    assert data.class_names == ("Animals", "Travel & Places")
    for x, y, texts in zip(data.train.x, data.train.y.tolist(), data.train.columns["captions"]):
        row = next(i for i in range(6) if torch.equal(x, torch.from_numpy(arrays["images"][i]).permute(2, 0, 1)))
        caption, style = arrays["captions"][row], arrays["styles"][row]
        assert texts == ([caption, f"{caption}, {style} style"] if caption else [""])
        assert data.class_names[y] == arrays["class_names"][arrays["labels"][row]]


def test_mistakes_end_with_a_line(archive, tmp_path, capsys):
    path, arrays = archive
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("")
    np.savez(tmp_path / "less.npz", **{key: value for key, value in arrays.items() if key != "styles"})
    np.savez(tmp_path / "odd.npz", **arrays | {"captions": np.array(["a"])})
    for words, message in [
        ((path, tmp_path / "full"), "full is not empty"),
        ((tmp_path / "none.npz", tmp_path / "out"), "none.npz"),
        ((tmp_path / "less.npz", tmp_path / "out"), "less.npz has no styles"),
        ((tmp_path / "odd.npz", tmp_path / "out"), "odd.npz has 6 images, 1 captions"),
    ]:
        with pytest.raises(SystemExit):
            emoji_captions.main([*map(str, words)])
        assert message in capsys.readouterr().err.splitlines()[-1]
