"""A trained run on the hub of Hugging Face, with a model card and without paths of this machine."""

import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from ..checkpoints.first_stages import COPY
from ..checkpoints.store import find, load, read
from ..files.hub import NAME
from ..files.run_folders import create_dir, hash_file
from ..files.safetensors import write_sealed
from .model_card import find_metrics, read_metrics, write_card
from .paths import shorten_paths

__all__ = ["push"]

LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")


def push(
    run: str | Path,
    repo: str,
    license: str,
    metrics: Sequence[str | Path] = (),
    folder: str | Path | None = None,
    private: bool = True,
    message: str = "Upload a model of diffguide",
    trust: Sequence[str] = (),
) -> str:
    """Uploads a run, its newest checkpoint with a model card, and returns its address; or writes the files into a folder.

    The files are README.md, config.yaml, checkpoints/<images>.safetensors, and the copy of a first stage.
    `diffguide.load(repo)` and `diffguide-sample checkpoint=<repo>` read them. In the configuration, also in that of the
    checkpoint, paths are shortened to their last name. huggingface_hub finds the user's token itself.

    Arguments:
        run: run folder, or a checkpoint of it.
        repo: name on the hub, owner/name; made if it does not exist.
        license: identifier of the hub, such as mit, apache-2.0, cc-by-nc-4.0 or other.
        metrics: folders or files metrics.json of diffguide-eval for this checkpoint, besides those in the run folder.
        folder: to write to instead of uploading; must not exist.
        private: whether a new repository is private.
        message: of the commit.
        trust: dotted names of classes outside diffguide that the checkpoint may build.

    Raises:
        ValueError: an invalid name, licence or metrics file; huggingface_hub is not installed.
        CheckpointError: a checkpoint that is missing or damaged, or one that diffguide did not write.
        WriteError: the folder exists, or cannot be written.
    """
    if not NAME.fullmatch(repo):
        raise ValueError(f"repo must be owner/name, got {repo!r}")
    if not LICENSE.fullmatch(license):
        raise ValueError(f"license must be an identifier such as mit, apache-2.0, cc-by-4.0 or other, got {license!r}")
    write = prepare(Path(run).expanduser(), repo, license, [Path(path).expanduser() for path in metrics], trust)
    if folder is not None:
        create_dir(Path(folder).expanduser(), write)
        return str(folder)
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise ValueError("push needs huggingface_hub: pip install 'diffguide[hub]'") from None
    with tempfile.TemporaryDirectory() as staged:
        write(Path(staged))
        hub = HfApi()
        address = hub.create_repo(repo, private=private, exist_ok=True)
        hub.upload_folder(repo_id=repo, folder_path=staged, commit_message=message)
    return str(address)


def prepare(
    run: Path, repo: str, license: str, metrics: Sequence[Path], trust: Sequence[str]
) -> Callable[[Path], None]:
    """A function that writes the files into a folder. All of them are made before anything is written."""
    file = find(run)
    loaded = load(file, trust=trust)
    tensors, metadata = read(file)
    metadata = {key: value for key, value in shorten_paths(metadata).items() if key != "format"}
    copy = file.parent.parent / COPY
    stage = read(copy) if loaded.facts.get("first_stage") and copy.is_file() else None
    found = list(dict.fromkeys([*find_metrics(run), *metrics]))
    card = write_card(loaded, metadata["config"], repo, license, read_metrics(found, hash_file(file)))

    def write(folder: Path) -> None:
        (folder / "README.md").write_text(card, encoding="utf-8")
        config = yaml.safe_dump(metadata["config"], sort_keys=False, allow_unicode=True)
        (folder / "config.yaml").write_text(config, encoding="utf-8")
        (folder / "checkpoints").mkdir()
        write_sealed(folder / "checkpoints" / file.name, tensors, metadata)
        if stage is not None:
            facts = {key: value for key, value in shorten_paths(stage[1]).items() if key != "format"}
            write_sealed(folder / COPY, stage[0], facts)

    return write
