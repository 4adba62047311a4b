"""CLIP guidance with real weights, where they lie on this machine: python scripts/clip_sample.py RUN CLIP_FOLDER [PROMPT]

RUN is a training run of images (diffguide-train), CLIP_FOLDER what `CLIPModel.save_pretrained` wrote (or a snapshot of
openai/clip-vit-base-patch32). Nothing is downloaded: where there is no such folder, it says so and ends.
"""

import sys
from pathlib import Path

from diffguide.sample import main


def run(arguments: list[str]) -> None:
    if len(arguments) not in (2, 3):
        sys.exit(__doc__)
    checkpoint, folder = arguments[:2]
    prompt = arguments[2] if len(arguments) == 3 else "a photograph of a landscape"
    if not (Path(folder) / "config.json").is_file():
        sys.exit(f"no CLIP weights in {folder}: nothing was sampled")
    for scale in (0, 100, 400):  # 0 = the pictures as they are
        main([
            f"checkpoint={checkpoint}", "guidance=clip", f'prompt="{prompt}"', f"guidance.scale={scale}", "n=16",
            f"guidance.potential.encoder.name={folder}", "sampler.steps=40", f"name=clip_{scale}",
        ])  # fmt: skip


if __name__ == "__main__":
    run(sys.argv[1:])
