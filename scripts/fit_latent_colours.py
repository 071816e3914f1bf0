"""Fits the colours of the sampler's previews to a checkpoint's VAE, and says how much of the picture they explain.

    python scripts/fit_latent_colours.py CHECKPOINT [PICTURE]

In ComfyUI the pack does the same when the first preview is drawn (glmimage_core/latent_preview.py): nothing is copied from here.
With a PICTURE it is judged on that one; what previews show of it, beside what the VAE decodes, goes to latent-colours.png.
"""

import argparse
from pathlib import Path

import _pack  # noqa: F401, before what it loads
import torch
from glm_image_pack.glmimage_core.diffusion import LATENT_PX
from glm_image_pack.glmimage_core.glm_image.files.load import load_vae
from glm_image_pack.glmimage_core.images import from_picture, to_pictures
from glm_image_pack.glmimage_core.latent_preview import averaged, colour_chart, fit_latent_colours
from glm_image_pack.glmimage_core.vae import encode
from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(description="Fits preview colours to a checkpoint's VAE.")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("picture", type=Path, metavar="PICTURE", nargs="?")
    options = parser.parse_args()
    vae = load_vae(options.checkpoint, "float32")
    colours = fit_latent_colours(vae)
    image = colour_chart() if options.picture is None else _fitting(options.picture)
    latents = encode(vae, image)
    decoded = averaged(vae, latents)
    shown = colours.guess(vae.space.normalise(latents)).clamp(-1, 1)
    unexplained = (shown - decoded).pow(2).mean() / (decoded - decoded.mean(dim=(0, 1, 2))).pow(2).mean()
    print("factors [channels, red green blue]:")
    for row in colours.factors.tolist():
        print("   ", " ".join(f"{value:8.4f}" for value in row))
    print("bias:", " ".join(f"{value:8.4f}" for value in colours.bias.tolist()))
    print(f"explains {1 - unexplained:.1%} of the variance of the decoded picture, averaged over 8 x 8 pixels")
    if options.picture:
        both = to_pictures((torch.cat([shown, decoded], dim=2) + 1) / 2)[0]
        both.resize((both.width * 4, both.height * 4), Image.Resampling.NEAREST).save("latent-colours.png")


def _fitting(path: Path) -> torch.Tensor:
    """A picture as [1, H, W, 3], cut to multiples of 8 pixels."""
    image = from_picture(Image.open(path))
    height, width = (side // LATENT_PX * LATENT_PX for side in image.shape[1:3])
    return image[:, :height, :width]


if __name__ == "__main__":
    main()
