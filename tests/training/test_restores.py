"""A run with a loss that is not finite goes back to its last checkpoint once."""

import json

import pytest
import torch
from conftest import JEM as ARGUMENTS

from diffguide.objectives import JEM
from diffguide.train import main


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_uses_one_restore(tmp_path, command, monkeypatch, bad):
    """In the second step after a checkpoint: gradients of that step that are not finite have no effect."""
    steps, forward = [], JEM.forward

    def once(self, x_0, y, rng):
        loss = forward(self, x_0, y, rng)
        if torch.is_grad_enabled():
            steps.append(len(steps))
        return (
            loss._replace(per_example=loss.per_example * bad) if len(steps) == 5 and torch.is_grad_enabled() else loss
        )

    monkeypatch.setattr(JEM, "forward", once)
    done = command(main, *ARGUMENTS, "sampler.steps=1", at=tmp_path)
    assert done.code == 0, done.err
    assert "not finite at step 4 (128 images): back to 96 images, restore 1 of at most 5" in done.err
    lines = map(json.loads, (tmp_path / done.folder / "metrics.jsonl").read_text().splitlines())
    assert [line for line in lines if "restores" in line] == [{"images": 96, "restores": 1}] and len(steps) == 12
