"""Fits the colours of the sampler's previews to a checkpoint's VAE, and says how much of the picture they explain.

    python scripts/fit_latent_colours.py CHECKPOINT [PICTURE]

In ComfyUI the pack does the same when the first preview is drawn (glmimage_core/preview.py), so nothing is copied from here.
With a PICTURE it is judged on that one; what previews show of it, beside what the VAE decodes, goes to latent-colours.png.
"""

import argparse
import importlib
import runpy
from pathlib import Path

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PACK = "glm_image_pack"
runpy.run_path(str(ROOT / "__main__.py"))["load_pack"](PACK)
checkpoints, geometry, pixels, preview, vaes = (
    importlib.import_module(f"{PACK}.glmimage_core.{name}") for name in ("checkpoint", "geometry", "pixels", "preview", "vae")
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fits preview colours to a checkpoint's VAE.")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("picture", type=Path, metavar="PICTURE", nargs="?")
    options = parser.parse_args()
    vae = checkpoints.load_vae(options.checkpoint, "float32")
    colours = preview.fit_latent_colours(vae)
    image = preview.colour_chart() if options.picture is None else _fitting(options.picture)
    latents = vaes.encode(vae, image)
    decoded = preview.averaged(vae, latents)
    shown = colours.guess(vae.space.normalise(latents)).clamp(-1, 1)
    unexplained = (shown - decoded).pow(2).mean() / (decoded - decoded.mean(dim=(0, 1, 2))).pow(2).mean()
    print("factors [channels, red green blue]:")
    for row in colours.factors.tolist():
        print("   ", " ".join(f"{value:8.4f}" for value in row))
    print("bias:", " ".join(f"{value:8.4f}" for value in colours.bias.tolist()))
    print(f"explains {1 - unexplained:.1%} of the variance of the decoded picture, averaged over 8 x 8 pixels")
    if options.picture:
        both = pixels.to_pictures((torch.cat([shown, decoded], dim=2) + 1) / 2)[0]
        both.resize((both.width * 4, both.height * 4), Image.Resampling.NEAREST).save("latent-colours.png")


def _fitting(path: Path) -> torch.Tensor:
    """[1, H, W, 3], cut to multiples of 8 pixels."""
    image = pixels.from_picture(Image.open(path))
    height, width = (side // geometry.LATENT_PX * geometry.LATENT_PX for side in image.shape[1:3])
    return image[:, :height, :width]


if __name__ == "__main__":
    main()
