"""The command line's copies of ComfyUI's nodes against ComfyUI's own: their inputs, and what they compute."""

import folder_paths
import numpy as np
import pytest
import torch
from comfyui_version import __version__
from glm_image_pack.cli.graph.stock import STOCK_NODES, Folders
from glm_image_pack.cli.graph.stock.reading import read_frames
from PIL import Image

import nodes as stock

pytestmark = pytest.mark.skipif(
    tuple(map(int, __version__.split(".")[:2])) < (0, 33), reason="the copies are of ComfyUI 0.33; older nodes compute otherwise"
)
SHOWN_ON_THE_SCREEN = {"SaveImage", "PreviewImage", "MaskPreview", "PreviewAny"}
NOT_WIDGETS = {
    *("IMAGE", "MASK", "LATENT", "VAE", "*"),
    *("MODEL", "CONDITIONING", "NOISE", "GUIDER", "SAMPLER", "SIGMAS"),
}
SOME_CHOICES = {  # of those that ComfyUI has
    "sampler_name": ["euler"],
    "scheduler": ["simple"],
    "upscale_method": ["nearest-exact", "bilinear", "area", "bicubic"],  # of latents
}
LATER = {"resolution_steps"}  # which ComfyUI has required since a newer version


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))


def blot(height: int, width: int, count: int = 1) -> torch.Tensor:
    mask = torch.zeros(count, height, width)
    mask[:, height // 3 : height // 2, width // 4 : width // 2] = 1
    mask[:, 0, 0] = 0.6
    return mask


PICTURE, SMALL, ALPHA = noise(2, 40, 56, 3), noise(1, 18, 22, 3), noise(1, 20, 20, 4)
CASES = [
    *(
        ("ImageScale", {"image": PICTURE, "upscale_method": method, "width": width, "height": height, "crop": crop})
        for method in ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")
        for width, height, crop in ((31, 47, "disabled"), (64, 24, "center"), (0, 21, "disabled"), (0, 0, "center"))
    ),
    ("ImageScale", {"image": ALPHA, "upscale_method": "lanczos", "width": 31, "height": 9, "crop": "center"}),
    ("ImageScaleBy", {"image": PICTURE, "upscale_method": "bicubic", "scale_by": 0.73}),
    ("ImageScaleToTotalPixels", {"image": SMALL, "upscale_method": "area", "megapixels": 0.013, "resolution_steps": 1}),
    ("ImageScaleToMaxDimension", {"image": SMALL, "upscale_method": "area", "largest_size": 71}),
    ("ImageScaleToMaxDimension", {"image": ALPHA, "upscale_method": "bilinear", "largest_size": 71}),
    ("ImageScaleToMaxDimension", {"image": SMALL.movedim(1, 2), "upscale_method": "bilinear", "largest_size": 71}),
    ("EmptyImage", {"width": 5, "height": 4, "batch_size": 2, "color": 0x12AB9F}),
    ("ImageBatch", {"image1": PICTURE, "image2": SMALL}),
    ("ImageBatch", {"image1": ALPHA, "image2": SMALL}),
    ("ImageBatch", {"image1": SMALL, "image2": ALPHA}),
    ("RepeatImageBatch", {"image": PICTURE, "amount": 3}),
    *(("ImageFromBatch", {"image": noise(4, 3, 3, 3), "batch_index": at, "length": 2}) for at in (0, 1, 3, 9, -1, -3, -9)),
    ("ImageCrop", {"image": PICTURE, "width": 30, "height": 60, "x": 40, "y": 7}),
    ("ImageCrop", {"image": PICTURE, "width": 30, "height": 60, "x": 400, "y": 700}),
    *(("ImageFlip", {"image": PICTURE, "flip_method": way}) for way in ("x-axis: vertically", "y-axis: horizontally")),
    *(("ImageRotate", {"image": PICTURE, "rotation": f"{turn} degrees"}) for turn in (90, 180, 270)),
    ("ImageRotate", {"image": PICTURE, "rotation": "none"}),
    *(
        (
            "ImageStitch",
            {
                **{"image1": PICTURE, "image2": SMALL, "direction": direction, "match_image_size": match},
                **{"spacing_width": spacing, "spacing_color": colour},
            },
        )
        for direction in ("right", "down", "left", "up")
        for match, spacing, colour in ((True, 0, "white"), (False, 0, "white"), (True, 5, "red"), (False, 4, "black"))
    ),
    ("ImageStitch", {"image1": ALPHA, "direction": "up", "match_image_size": True, "spacing_width": 2, "spacing_color": "blue"}),
    ("ImageInvert", {"image": PICTURE}),
    *(("ImageBlur", {"image": PICTURE, "blur_radius": radius, "sigma": sigma}) for radius, sigma in ((1, 1.0), (7, 0.4))),
    *(
        (
            "ImagePadForOutpaint",
            {"image": PICTURE, "left": left, "top": top, "right": right, "bottom": bottom, "feathering": feathering},
        )
        for left, top, right, bottom, feathering in ((8, 0, 16, 0, 5), (0, 24, 0, 8, 19), (8, 8, 8, 8, 20), (0, 0, 0, 0, 4))
    ),
    *(
        ("ImageCompositeMasked", {"destination": PICTURE, "source": source, "x": x, "y": y, "resize_source": resize} | mask)
        for source, x, y, resize in ((SMALL, 5, 9, False), (SMALL, 50, 30, False), (ALPHA, 0, 0, True), (PICTURE, 0, 0, False))
        for mask in ({}, {"mask": blot(40, 56)}, {"mask": noise(2, 18, 22)})
    ),
    ("SplitImageWithAlpha", {"image": ALPHA}),
    ("SplitImageWithAlpha", {"image": SMALL}),
    ("JoinImageWithAlpha", {"image": SMALL, "alpha": blot(40, 56, 2)}),
    ("SolidMask", {"value": 0.3, "width": 7, "height": 5}),
    ("InvertMask", {"mask": noise(1, 5, 6)}),
    ("CropMask", {"mask": noise(2, 20, 20), "x": 3, "y": 15, "width": 9, "height": 9}),
    *(
        ("MaskComposite", {"destination": noise(2, 20, 24), "source": noise(1, 12, 10), "x": x, "y": 3, "operation": operation})
        for operation in ("multiply", "add", "subtract", "and", "or", "xor")
        for x in (2, 19)
    ),
    ("FeatherMask", {"mask": torch.ones(1, 20, 30), "left": 4, "top": 1, "right": 50, "bottom": 7}),
    *(
        ("GrowMask", {"mask": blot(24, 30), "expand": expand, "tapered_corners": tapered})
        for expand in (0, 1, 4, -2, 100)
        for tapered in (True, False)
    ),
    ("ThresholdMask", {"mask": noise(1, 9, 9), "value": 0.5}),
    ("MaskToImage", {"mask": noise(9, 7)}),
    *(("ImageToMask", {"image": ALPHA, "channel": channel}) for channel in ("red", "green", "blue", "alpha")),
    ("ImageColorToMask", {"image": torch.tensor([[[[18, 171, 159], [18, 171, 160]]]]) / 255, "color": 0x12AB9F}),
]


def ours(name: str, inputs: dict) -> tuple:
    return getattr(STOCK_NODES[name](), STOCK_NODES[name].FUNCTION)(**inputs)


@pytest.mark.parametrize(("name", "inputs"), CASES, ids=[f"{name}-{index}" for index, (name, _) in enumerate(CASES)])
def test_a_copy_computes_what_comfyuis_own_node_does(name, inputs, run):
    if name not in stock.NODE_CLASS_MAPPINGS:
        pytest.skip(f"this ComfyUI has no {name}")
    for mine, theirs in zip(ours(name, inputs), run(name, **inputs), strict=True):
        assert mine.shape == theirs.shape and (mine - theirs).abs().max() < 1 / 255


def test_every_copy_is_compared():
    latents_and_files = {"SetLatentNoiseMask", "VAEEncode", "VAEDecode", "VAEEncodeForInpaint", "LoadImage", "LoadImageMask"}
    samplers = {
        "KSampler",
        "SamplerCustomAdvanced",
        "KSamplerSelect",
        "RandomNoise",
        "CFGGuider",
        "BasicGuider",
    }  # test_comfyui.py
    latents_and_files |= {"EmptyLatentImage", "EmptySD3LatentImage", "LatentUpscale", "LatentUpscaleBy"}
    values = {name for name in STOCK_NODES if name.startswith("Primitive")} | {"GetImageSize"}  # which wants its server
    assert {name for name, _ in CASES} == set(STOCK_NODES) - latents_and_files - samplers - values - SHOWN_ON_THE_SCREEN


@pytest.mark.parametrize("name", sorted(STOCK_NODES))
def test_a_copy_has_the_inputs_of_comfyuis_own_node_in_its_order(name):
    if name not in stock.NODE_CLASS_MAPPINGS:
        pytest.skip(f"this ComfyUI has no {name}")
    theirs, mine = (
        {name: entry for kind in ("required", "optional") for name, entry in node.INPUT_TYPES().get(kind, {}).items()}
        for node in (stock.NODE_CLASS_MAPPINGS[name], STOCK_NODES[name])
    )
    assert [input_name for input_name in mine if input_name not in LATER or input_name in theirs] == list(theirs)
    for input_name, (kind, *rest) in theirs.items():
        if name.startswith("LoadImage") and input_name == "image":
            continue  # a list of files there
        options = rest[0] if rest else {}
        choices = options.get("options") if kind == "COMBO" else kind
        if input_name in SOME_CHOICES and mine[input_name][0] != choices:
            assert mine[input_name][0] == SOME_CHOICES[input_name] == [one for one in choices if one in SOME_CHOICES[input_name]]
            continue
        assert mine[input_name][0] == (choices if choices else kind)
        assert {key: mine[input_name][1].get(key, options.get(key)) for key in ("default", "min", "max")} == {
            key: options.get(key) for key in ("default", "min", "max")
        }
        assert (
            isinstance(choices, list) or kind in NOT_WIDGETS or "default" in mine[input_name][1] or name.startswith("Primitive")
        )


@pytest.mark.parametrize("name", ["EmptyLatentImage", "EmptySD3LatentImage"])
def test_empty_latents_are_those_of_comfyuis_own_node(name, run):
    inputs = {"width": 264, "height": 328, "batch_size": 3}
    (mine,), (theirs, *_) = ours(name, inputs), run(name, **inputs)
    assert torch.equal(mine["samples"], theirs["samples"].cpu())


@pytest.mark.parametrize("method", ["nearest-exact", "bilinear", "area", "bicubic"])
def test_latents_are_resized_as_by_comfyuis_own_node(method, run):
    latent = {"samples": noise(2, 16, 20, 24)}
    sizes = ((320, 200, "center"), (320, 200, "disabled"), (0, 0, "center"), (0, 40, "disabled"), (256, 0, "center"))
    for width, height, crop in sizes:
        inputs = {"samples": latent, "upscale_method": method, "width": width, "height": height, "crop": crop}
        (mine,), (theirs, *_) = ours("LatentUpscale", inputs), run("LatentUpscale", **inputs)
        assert torch.equal(mine["samples"], theirs["samples"])
    inputs = {"samples": latent, "upscale_method": method, "scale_by": 1.3}
    (mine,), (theirs, *_) = ours("LatentUpscaleBy", inputs), run("LatentUpscaleBy", **inputs)
    assert torch.equal(mine["samples"], theirs["samples"])


def test_latents_for_inpainting_are_those_of_comfyuis_own_node(vae, run):
    for size, grow in (((128, 160), 6), ((131, 165), 7), ((128, 160), 0), ((128, 160), 1)):
        inputs = {"pixels": noise(1, *size, 3), "vae": vae, "mask": blot(*size), "grow_mask_by": grow}
        mine, theirs = ours("VAEEncodeForInpaint", inputs)[0], run("VAEEncodeForInpaint", **inputs)[0]
        assert torch.equal(mine["noise_mask"], theirs["noise_mask"])
        assert torch.allclose(mine["samples"].float(), theirs["samples"].float(), atol=1e-4)
        del inputs["mask"], inputs["grow_mask_by"]
        mine, theirs = ours("VAEEncode", inputs)[0], run("VAEEncode", **inputs)[0]
        assert torch.allclose(mine["samples"].float(), theirs["samples"].float(), atol=1e-4)


def test_pictures_are_read_as_comfyuis_own_node_reads_them(tmp_path, monkeypatch, run):
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path))
    levels = [noise(20, 24, 3).mul(255).byte().numpy() + number for number in range(3)]
    frames = [Image.fromarray(frame) for frame in levels]
    clear = [frame.convert("RGBA") for frame in frames]
    for frame in clear:
        frame.putalpha(Image.fromarray((noise(20, 24) * 255).byte().numpy()))
    turned = Image.Exif()
    turned[0x0112] = 6
    frames[0].save(tmp_path / "plain.bmp")
    frames[0].save(tmp_path / "turned.png", exif=turned)
    frames[0].convert("P").save(tmp_path / "palette.png")
    clear[0].save(tmp_path / "clear.png")
    Image.fromarray((noise(20, 24).numpy() * 65535).astype(np.uint16)).save(tmp_path / "deep.png")
    for name, pictures in (("moving.png", frames), ("moving.webp", frames), ("moving.gif", frames), ("clear_moving.png", clear)):
        pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:], duration=40, lossless=True)
    for file in sorted(tmp_path.iterdir()):
        image, mask = read_frames(file)
        their_image, their_mask = run("LoadImage", image=file.name)
        assert image.shape == their_image.shape, file.name
        assert (image - their_image).abs().max() < 1.2 / 255, file.name  # PyAV rounds a palette otherwise than Pillow
        assert mask.mean() == pytest.approx(float(their_mask.mean()), abs=1 / 255), file.name
        for channel in ("alpha", "red", "blue"):
            (mine,) = ours("LoadImageMask", {"image": file.name, "channel": channel, "folders": Folders(tmp_path, tmp_path, [])})
            (theirs,) = run("LoadImageMask", image=file.name, channel=channel)
            assert mine.mean() == pytest.approx(float(theirs.mean()), abs=1 / 255)
