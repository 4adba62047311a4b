"""CLIP guidance with local weights: python scripts/clip_sample.py RUN CLIP_FOLDER [PROMPT]

RUN is a training run on images (diffguide-train), CLIP_FOLDER the output of `CLIPModel.save_pretrained` (or a snapshot of
openai/clip-vit-base-patch32). Nothing is downloaded: without such a folder the script exits with a message.
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
    for scale in (0, 100, 400):  # 0 = no guidance
        main([
            f"checkpoint={checkpoint}", "guidance=clip", f'prompt="{prompt}"', f"guidance.scale={scale}", "n=16",
            f"guidance.potential.encoder.name={folder}", "sampler.steps=40", f"name=clip_{scale}",
        ])  # fmt: skip


if __name__ == "__main__":
    run(sys.argv[1:])
