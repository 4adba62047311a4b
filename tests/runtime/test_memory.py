"""Training keeps the memory that it frees."""

import resource
import sys

import pytest
import torch

from diffguide.runtime.memory import keep_freed_memory

PAGE = 4096
MEGABYTES = 16 * 2**20


def count_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_reused(monkeypatch):
    """Twenty times 64 MB in blocks of 16 would else be 16,384 pages each."""
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    if not keep_freed_memory():
        pytest.skip("another C library")

    def use() -> None:
        blocks = [torch.ones(MEGABYTES // 4) for _ in range(4)]
        blocks.clear()

    use()
    before = count_faults()
    for _ in range(20):
        use()
    assert count_faults() - before < 4 * MEGABYTES / PAGE


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_the_environment_decides(monkeypatch, name):
    monkeypatch.setenv(name, "")
    assert keep_freed_memory() is False


def test_the_command_sets_it(tmp_path, command, monkeypatch):
    from diffguide.train import main

    calls = []
    monkeypatch.setattr("diffguide.training.job.keep_freed_memory", lambda: calls.append(1))
    monkeypatch.setattr("diffguide.training.job.TrainingJob.write_dry_run", lambda self: None)
    assert command(main, "dry_run=true", "backbone.channels=8", "backbone.head_channels=8", at=tmp_path).code == 0
    assert calls == [1]
