"""Draws the pictures that the shipped workflows name, into workflows/input.

python scripts/make_pictures.py
"""

from _pack import ROOT
from glm_image_pack.glmimage_core.glm_image.pipeline import GlmImage
from glm_image_pack.glmimage_core.glm_image.plans.kept import TEXT_KEY, prior_text
from glm_image_pack.glmimage_core.images import to_pictures
from glm_image_pack.training.drawing import draw
from glm_image_pack.training.world import Scene, Shape
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

INPUT = ROOT / "workflows" / "input"
PLANNED = 'A large red star in the centre and the word "HI" in white at the bottom on a blue background.'
SMOOTH = 4  # drawn larger, then reduced
SHAPES = Scene(8, 8, "white", (Shape("circle", "red", "large", 1, 1), Shape("square", "green", "small", 5, 5)))


def scene() -> Image.Image:
    """A house on a lawn, 768 x 576."""
    w, h = 768 * SMOOTH, 576 * SMOOTH
    picture = Image.new("RGB", (w, h))
    draw = ImageDraw.Draw(picture)
    for y in range(h):
        t = y / h
        draw.line([(0, y), (w, y)], fill=(int(110 + 120 * t), int(170 + 60 * t), 235))
    s = SMOOTH
    draw.ellipse([600 * s, 50 * s, 690 * s, 140 * s], fill=(255, 226, 140))
    draw.rectangle([0, 430 * s, w, h], fill=(104, 160, 84))
    draw.rectangle([230 * s, 230 * s, 540 * s, 460 * s], fill=(214, 186, 150))
    draw.polygon([(200 * s, 230 * s), (385 * s, 100 * s), (570 * s, 230 * s)], fill=(158, 72, 58))
    draw.rectangle([350 * s, 320 * s, 425 * s, 460 * s], fill=(92, 62, 44))
    for x in (265, 450):
        draw.rectangle([x * s, 280 * s, (x + 60) * s, 345 * s], fill=(250, 240, 190), outline=(92, 62, 44), width=5 * s)
        draw.line([((x + 30) * s, 280 * s), ((x + 30) * s, 345 * s)], fill=(92, 62, 44), width=4 * s)
    draw.rectangle([110 * s, 330 * s, 135 * s, 460 * s], fill=(96, 70, 48))
    draw.ellipse([50 * s, 190 * s, 195 * s, 350 * s], fill=(70, 128, 66))
    return picture.resize((768, 576), Image.Resampling.LANCZOS)


def mug() -> Image.Image:
    """A striped mug on a table, 512 x 640."""
    s = SMOOTH
    picture = Image.new("RGB", (512 * s, 640 * s), (236, 226, 212))
    draw = ImageDraw.Draw(picture)
    draw.rectangle([0, 470 * s, 512 * s, 640 * s], fill=(176, 132, 92))
    draw.ellipse([120 * s, 480 * s, 400 * s, 540 * s], fill=(150, 110, 76))
    draw.arc([320 * s, 230 * s, 450 * s, 420 * s], -100, 100, fill=(36, 92, 140), width=28 * s)
    draw.rectangle([130 * s, 190 * s, 370 * s, 480 * s], fill=(46, 112, 168))
    draw.ellipse([130 * s, 450 * s, 370 * s, 515 * s], fill=(46, 112, 168))
    for y in (260, 340, 420):
        draw.rectangle([130 * s, y * s, 370 * s, (y + 34) * s], fill=(244, 240, 228))
    draw.ellipse([130 * s, 155 * s, 370 * s, 225 * s], fill=(244, 240, 228))
    draw.ellipse([148 * s, 166 * s, 352 * s, 216 * s], fill=(78, 48, 34))
    return picture.resize((512, 640), Image.Resampling.LANCZOS)


def shapes() -> Image.Image:
    """SHAPES as nano draws them, 256 x 256."""
    return to_pictures(draw(SHAPES)[None])[0]


def small_shapes() -> Image.Image:
    """Two small shapes as nano draws them, 256 x 256: one and a half times as large they are its large ones."""
    shapes = Shape("star", "red", "small", row=2, column=2), Shape("square", "yellow", "small", row=4, column=4)
    return to_pictures(draw(Scene(8, 8, "blue", shapes))[None])[0]


def masked() -> Image.Image:
    """SHAPES with the circle and some room around it transparent, as the mask editor saves a mask."""
    picture = shapes().convert("RGBA")
    alpha = Image.new("L", picture.size, 255)
    alpha.paste(0, (16, 16, 144, 144))
    picture.putalpha(alpha)
    return picture


def with_plan() -> tuple[Image.Image, PngInfo]:
    """A picture that nano paints, 256 x 256, and the texts with which its PNG carries the plan."""
    glm, carried = GlmImage.load(ROOT / "nano", dtype="float32"), PngInfo()
    plan = glm.plan(PLANNED, 256, 256, seed=0)
    carried.add_text(TEXT_KEY, prior_text(plan))
    return glm.paint(plan, seed=0, steps=20)[0], carried


if __name__ == "__main__":
    INPUT.mkdir(parents=True, exist_ok=True)
    scene().save(INPUT / "glm-image-scene.png", optimize=True)
    mug().save(INPUT / "glm-image-mug.png", optimize=True)
    shapes().save(INPUT / "glm-image-shapes.png", optimize=True)
    small_shapes().save(INPUT / "glm-image-small-shapes.png", optimize=True)
    masked().save(INPUT / "glm-image-shapes-masked.png", optimize=True)
    picture, carried = with_plan()
    picture.save(INPUT / "glm-image-plan.png", optimize=True, pnginfo=carried)
