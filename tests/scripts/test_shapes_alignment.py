"""The table of what texts give, for a model that draws exactly what it is asked for."""

from types import SimpleNamespace

import pytest
import shapes_alignment
import torch

from diffguide.datasets.shapes import Shapes


@pytest.fixture
def shown(monkeypatch, capsys):
    """Pictures of the data in place of samples, those of the prompts' combinations where `right`."""
    data = Shapes(train=1, validation=60, test=60)

    def draw(guided, texts):
        by_text = {}
        for split in (data.validation, data.test):
            for x, captions in zip(split.x, split.columns["captions"]):
                by_text.setdefault(captions[0], x)
        return torch.stack([by_text.get(text, data.validation.x[0]) for text in texts])

    def prompts(split, seed, n, wording, complete=True):
        captions = getattr(data, split).columns["captions"]
        return [(given[0] if complete else given[1], {}) for given in captions[:n]]

    monkeypatch.setattr(shapes_alignment, "draw", draw)
    monkeypatch.setattr(shapes_alignment, "prompts", prompts)
    monkeypatch.setattr(
        shapes_alignment, "guidances", lambda scales: [(f"cfg {s:g}", lambda model: model) for s in scales]
    )
    monkeypatch.setattr(shapes_alignment.diffguide, "load", lambda run: SimpleNamespace())

    def run(*words):
        shapes_alignment.main(list(words))
        return capsys.readouterr().out.splitlines()

    return run


def test_exact_pictures_are_all_right_and_means_are_over_the_runs(shown):
    lines = shown("one", "two", "--n", "20", "--scales", "1", "3")
    assert len(lines) == 6 and lines[-1].startswith("mean cfg 3")
    for line in lines:
        assert "seen 1.000" in line and "unseen 1.000" in line and "order 1.000" in line
