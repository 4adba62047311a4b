"""The benchmark runs with a small network; its figures are not tested."""

import re

import benchmark
import pytest
import torch

CPU = torch.device("cpu")
SMALL = ["backbone.channels=4", "backbone.blocks=1", "backbone.attention=[]", "training.batch_size=16"]


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
    compose = benchmark.build_components
    monkeypatch.setattr(benchmark, "build_components", lambda *overrides: compose(*SMALL, *overrides))


def test_training_is_compared_with_bare_steps(capsys):
    benchmark.measure_training(CPU, rounds=1, steps=1)
    assert re.match(r"training +\d+ images/s of +\d+ bare +[\d.]+% \(bar 95 %\)", capsys.readouterr().out)


def test_a_sampler_is_compared_with_bare_calls(capsys):
    benchmark.measure_samplers(CPU, 1, ["ddim"])
    assert re.match(r"sampler ddim +20 calls .* x \(bar 1.05\)", capsys.readouterr().out)
