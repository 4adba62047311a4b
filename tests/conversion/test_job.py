"""The job of a conversion: what it holds in memory, and that it leaves nothing behind."""

import pytest
import torch
from published_adm import Settings, unet
from published_layers import Drawn

from diffguide.conversion import job as job_file
from diffguide.conversion.adm import ADM
from diffguide.conversion.job import ConversionJob
from diffguide.runtime.errors import InputError

S = Settings(blocks=1, classes=5, new_attention_order=True, size=8, sides=(4,))


@pytest.fixture
def source(tmp_path):
    weights = Drawn(0)
    unet(weights, torch.randn(1, 3, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.long), S)
    torch.save(dict(weights), tmp_path / "adm.pt")
    return tmp_path / "adm.pt"


def make_job(source, **architecture) -> ConversionJob:
    return ConversionJob(ADM(S.size, None, S.head_channels, **architecture), source, source.parent / "run", "run")


@pytest.mark.parametrize("new_order", [True, False])
def test_only_reordered_layers_are_copied_before_they_are_written(source, monkeypatch, new_order):
    """All others are the memory that is mapped from the file, up to the call that writes them."""
    read, saved, written = job_file.read_tensors, [], []
    monkeypatch.setattr(job_file, "read_tensors", lambda path: saved.append(read(path)) or saved[0])
    save = job_file.save_converted
    monkeypatch.setattr(
        job_file, "save_converted", lambda folder, *rest: written.append(rest[0]) or save(folder, *rest)
    )
    make_job(source, new_attention_order=new_order).run()
    mapped = {value.data_ptr() for value in saved[0][0].values()}
    copied = {name for name, value in written[0].state_dict().items() if value.data_ptr() not in mapped}
    assert {name.rpartition(".")[0] for name in copied if "qkv" not in name} == {"model.backbone.embedding.classes"}
    assert all(("qkv" in name) != new_order for name in copied if "classes" not in name)


@pytest.mark.parametrize("problem", [OSError("the disk is full"), KeyboardInterrupt()])
def test_a_conversion_that_fails_leaves_nothing(source, monkeypatch, problem):
    def fail(*arguments):
        raise problem

    monkeypatch.setattr(job_file, "save_converted", fail)
    with pytest.raises((InputError, KeyboardInterrupt)):
        make_job(source).run()
    assert [path.name for path in source.parent.iterdir()] == ["adm.pt"]


def test_a_folder_that_appeared_meanwhile_is_kept(source, monkeypatch):
    save = job_file.save_converted
    (made := source.parent / "run").relative_to(source.parent)
    monkeypatch.setattr(job_file, "save_converted", lambda *arguments: (made.mkdir(), save(*arguments)))
    with pytest.raises(InputError, match="run: it exists, and nothing is overwritten"):
        make_job(source).run()
    assert list(made.iterdir()) == []
