"""Pictures drawn from formulas, the same on every machine."""

import numpy as np
from PIL import Image


def pattern(width: int, height: int, twist: int) -> Image.Image:
    """Two gradients and diagonal stripes; `twist` changes the stripes."""
    y, x = np.mgrid[0:height, 0:width]
    stripes = (x * twist + y) // 8 % 2 * 255
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, stripes], -1).astype(np.uint8))
