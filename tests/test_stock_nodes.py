"""ComfyUI's own nodes, as they are without ComfyUI."""

import random
import struct
import warnings

import numpy as np
import pytest
import torch
from glm_image_pack.cli.graph.errors import NodeError, WorkflowError
from glm_image_pack.cli.graph.stock import STOCK_NODES, Folders
from glm_image_pack.cli.graph.stock.files import _write_whole
from glm_image_pack.cli.graph.stock.reading import read_frames
from glm_image_pack.glmimage_core.checkpoints.names import check_names
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pictures import pattern
from shipped import saved, set_input, shipped


@pytest.mark.parametrize(
    ("image", "message"),
    [("../pyproject.toml", "leaves the folder"), ("/etc/passwd", "leaves the folder"), ("none.png", "no picture 'none.png'")],
)
def test_a_reference_outside_the_input_folder_is_refused(runner, image, message):
    workflow = shipped("image_edit")
    set_input(workflow, "LoadImage", image=image)
    with pytest.raises(WorkflowError, match=message):
        runner.run(workflow)


def test_the_pictures_of_shipped_workflows_are_found_wherever_render_is_called(runner, folders, tmp_path):
    runner.folders = Folders(tmp_path, folders.output, folders.written)
    runner.run(shipped("image_edit"))
    assert len(folders.written) == 1
    own = Image.new("RGB", (256, 288), "red")
    own.save(tmp_path / "glm-image-mug.png")  # a picture of the user's goes first
    image, _ = STOCK_NODES["LoadImage"]().load("glm-image-mug.png", runner.folders)
    assert image[0, 0, 0].tolist() == [1, 0, 0]
    for name in ("sub/glm-image-mug.png", "../input/glm-image-mug.png", "glm-image-mug.png [output]"):
        assert STOCK_NODES["LoadImage"].VALIDATE_INPUTS(name, Folders(tmp_path / "none", tmp_path / "none", [])) is not True


@pytest.mark.parametrize("name", ["stock_sampler", "custom_sampler"])
def test_stock_samplers_paint_as_many_pictures_as_there_are_latents(runner, folders, name):
    workflow = shipped(name)
    set_input(workflow, "EmptySD3LatentImage", batch_size=2)
    runner.run(workflow)
    assert len(folders.written) == 2
    set_input(workflow, "GLMImageGeneratePrior", batch_size=2)
    set_input(workflow, "EmptySD3LatentImage", batch_size=1)
    with pytest.raises(NodeError, match="the prior plans 2 images and 1 were asked for"):
        runner.run(workflow)


def test_a_file_name_may_come_from_a_primitive(runner, folders):
    workflow = shipped("image_edit")
    workflow.prompt["50"] = {"class_type": "PrimitiveString", "inputs": {"value": "glm-image-mug.png"}}
    set_input(workflow, "LoadImage", image=["50", 0])
    runner.run(workflow)
    assert len(folders.written) == 1
    workflow.prompt["50"]["inputs"]["value"] = "../secret.png"
    with pytest.raises(WorkflowError, match="leaves the folder"):
        runner.run(workflow)


def test_text_can_be_previewed(runner, capsys):
    workflow = shipped("text_to_image")
    (encode,) = (node_id for node_id, node in workflow.prompt.items() if node["class_type"] == "GLMImageEncodePrompt")
    workflow.prompt["50"] = {"class_type": "PreviewAny", "inputs": {"source": [encode, 2]}}
    runner.run(workflow)
    assert "THE LAST PAGE" in capsys.readouterr().err


@pytest.mark.parametrize(("mode", "value", "expected"), [("I;16", 128 * 257, 128), ("L", 128, 128), ("P", 0, 0), ("RGBA", 0, 0)])
def test_pictures_of_any_mode_are_loaded(tmp_path, mode, value, expected):
    Image.new(mode, (40, 30), value).save(tmp_path / "picture.png")
    image, mask = STOCK_NODES["LoadImage"]().load("picture.png", Folders(tmp_path, tmp_path, []))
    assert image.shape == (1, 30, 40, 3)
    assert abs(float(image.mean()) * 255 - expected) <= 1
    assert mask.shape == ((1, 30, 40) if mode == "RGBA" else (1, 64, 64))


def test_a_masked_part_of_a_picture_is_kept(runner, folders, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    picture = pattern(256, 288, 3).convert("RGBA")
    picture.putalpha(Image.new("L", picture.size, 255))
    picture.paste((0, 0, 0, 0), (128, 0, 256, 288))  # the transparent half may change
    picture.save(source / "in.png")
    runner.folders = Folders(source, folders.output, [])
    workflow = shipped("text_to_image")
    ids = {node["class_type"]: node_id for node_id, node in workflow.prompt.items()}
    more = {
        "50": ("LoadImage", {"image": "in.png"}),
        "51": ("GLMImageVAEEncode", {"vae": [ids["GLMImageLoad"], 3], "image": ["50", 0]}),
        "52": ("SetLatentNoiseMask", {"samples": ["51", 0], "mask": ["50", 1]}),
    }
    workflow.prompt |= {node_id: {"class_type": kind, "inputs": inputs} for node_id, (kind, inputs) in more.items()}
    set_input(workflow, "GLMImageSampler", latent_image=["52", 0], denoise=0.8)
    runner.run(workflow)
    assert len(runner.folders.written) == 1


def test_two_processes_never_write_one_file(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda i: _write_whole(tmp_path / "x", pattern(32, 32, i), PngInfo()), range(24)))
    assert len(set(paths)) == 24 and sorted(tmp_path.iterdir()) == sorted(paths)


def stock(name: str, **inputs) -> tuple:
    """What a stock node gives."""
    return getattr(STOCK_NODES[name](), STOCK_NODES[name].FUNCTION)(**inputs)


@pytest.mark.parametrize("name", ["x.gif", "x.webp", "x.png"])
def test_every_frame_of_an_animated_picture_is_one_of_a_batch(tmp_path, name):
    greys = [Image.new("RGB", (40, 30), (grey,) * 3) for grey in (0, 128, 255)]
    greys[0].save(tmp_path / name, save_all=True, append_images=greys[1:], duration=40, lossless=True)
    image, mask = stock("LoadImage", image=name, folders=Folders(tmp_path, tmp_path, []))
    assert image.shape == (3, 30, 40, 3) and mask.shape == (3, 64, 64)
    assert [round(float(frame.mean()) * 255) for frame in image] == [0, 128, 255]


def test_the_pages_of_a_document_are_no_frames(tmp_path):
    pages = [Image.new("RGB", (40, 30), (grey,) * 3) for grey in (0, 255)]
    pages[0].save(tmp_path / "x.tiff", save_all=True, append_images=pages[1:])
    assert read_frames(tmp_path / "x.tiff")[0].shape == (1, 30, 40, 3)


def test_pixels_that_are_floats_are_taken_as_they_are(tmp_path):
    levels = np.linspace(0, 1, 30 * 40, dtype=np.float32).reshape(30, 40)
    Image.fromarray(levels).save(tmp_path / "x.tif")
    image, _ = read_frames(tmp_path / "x.tif")
    assert torch.equal(image, torch.from_numpy(levels)[None, ..., None].expand(1, 30, 40, 3))


def test_a_name_may_say_which_folder_it_lies_in(tmp_path):
    folders = Folders(tmp_path / "in", tmp_path / "out", [])
    for folder, width in ((folders.input, 1), (folders.output, 2), (folders.temp, 3)):
        (folder / "sub").mkdir(parents=True)
        Image.new("L", (width, 1)).save(folder / "sub" / "x.png")
    for name, width in (("sub/x.png", 1), ("sub/x.png [input]", 1), ("sub/x.png [output]", 2), ("sub\\x.png [temp]", 3)):
        assert STOCK_NODES["LoadImage"].VALIDATE_INPUTS(name, folders) is True
        assert stock("LoadImage", image=name, folders=folders)[0].shape[2] == width
    for name in ("sub/y.png [output]", "../in/sub/x.png [output]", "sub/x.png [nowhere]", "..\\secret.png"):
        assert isinstance(STOCK_NODES["LoadImage"].VALIDATE_INPUTS(name, folders), str)


def test_a_picture_is_turned_as_its_exif_data_say_and_read_where_they_are_broken(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x829A] = 6, "camera", 1.5
    whole, rng = exif.tobytes(), random.Random(5)
    turned = 0
    for round_ in range(150):
        bytes_ = bytearray(whole)
        for _ in range(round_ % 4):
            bytes_[rng.randrange(len(bytes_))] = rng.randrange(256)
        for suffix in ("png", "webp"):
            Image.new("RGB", (4, 2)).save(tmp_path / f"x.{suffix}", exif=bytes(bytes_[: rng.choice([len(bytes_), 9])]))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow tells of what it cannot read
                shape = read_frames(tmp_path / f"x.{suffix}")[0].shape[1:3]
            assert shape in ((2, 4), (4, 2))
            turned += shape == (4, 2)
    assert turned > 50


def test_a_picture_is_turned_also_where_another_entry_is_broken(tmp_path):
    entries = [struct.pack("<HHII", 0x0112, 3, 1, 6), struct.pack("<HHI4s", 0x0150, 2, 4, b"abc")]  # letters for a number
    exif = b"Exif\x00\x00II*\x00" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4)
    Image.new("RGB", (4, 2)).save(tmp_path / "x.png", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert read_frames(tmp_path / "x.png")[0].shape == (1, 4, 2, 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bomb.png", "more than 178 megapixels"),
        ("drawing.eps", "not a picture in a format that is read"),
        ("text.png", "not a picture in a format that is read"),
        ("folder", "no picture 'folder'"),
    ],
)
def test_what_cannot_be_read_is_refused_before_anything_runs(runner, folders, tmp_path, name, message):
    (tmp_path / "folder").mkdir()
    Image.new("1", (14000, 13000)).save(tmp_path / "bomb.png")
    Image.new("RGB", (4, 2)).save(tmp_path / "drawing.eps")
    (tmp_path / "text.png").write_text("no picture")
    runner.folders = Folders(tmp_path, folders.output, [])
    workflow = shipped("image_edit")
    set_input(workflow, "LoadImage", image=name)
    with pytest.raises(WorkflowError, match=message):
        runner.run(workflow)
    assert runner.executed == []


def test_a_clip_that_memory_cannot_hold_is_refused_by_its_header(tmp_path, monkeypatch):
    frames = [Image.new("L", (100, 100), grey) for grey in range(5)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 5 * 100 * 100 * 15}))
    message = STOCK_NODES["LoadImage"].VALIDATE_INPUTS("x.gif", Folders(tmp_path, tmp_path, []))
    assert "5 frame(s) of 100x100" in message


@pytest.mark.parametrize(
    "prefix",
    [
        *("CON/x", "nul.", "a/aux.png", "com1/x", "LPT9.txt", "aux .png", "a\\PRN\\b", "com\xb9/x", "conin$.x"),
        *("a:b", "12:30/x", 'say "hi"', "what?", "a*", "a|b", "<a>", "a\nb", "a./b", "a /b"),
    ],
)
def test_a_name_that_windows_cannot_write_is_refused_before_anything_runs(runner, prefix):
    workflow = shipped("text_to_image")
    set_input(workflow, "SaveImage", filename_prefix=prefix)
    with pytest.raises(WorkflowError, match=r"(?i)filename_prefix.*windows"):
        runner.run(workflow)


@pytest.mark.parametrize(
    "prefix", ["console", "auxiliary.png", "com10", "a/./b", "a/b/../c", "null", "%year%-%width%", "\u56fe/\u03bb", ".hidden"]
)
def test_a_name_that_any_system_can_write_is_taken(prefix):
    check_names(prefix)


@pytest.mark.parametrize("prefix", ["CON", "nul", "ends.", "ends ", "x" * 244, "\u00e9" * 122])
def test_a_prefix_of_which_the_number_makes_a_name_is_taken(tmp_path, prefix):
    folders = Folders(tmp_path, tmp_path, [])
    assert STOCK_NODES["SaveImage"].VALIDATE_INPUTS(prefix, folders) is True
    STOCK_NODES["SaveImage"]().save(torch.zeros(1, 8, 8, 3), folders, {}, None, prefix)
    assert [path.name for path in tmp_path.iterdir()] == [f"{prefix}_00001_.png"]
    assert "too long" in STOCK_NODES["SaveImage"].VALIDATE_INPUTS("x" * 245, folders)


def test_a_backslash_in_a_prefix_parts_folders(tmp_path):
    folders = Folders(tmp_path, tmp_path, [])
    STOCK_NODES["SaveImage"]().save(torch.zeros(1, 8, 8, 3), folders, {}, None, "a\\b")
    assert (tmp_path / "a" / "b_00001_.png").is_file()
    assert "leaves the folder" in STOCK_NODES["SaveImage"].VALIDATE_INPUTS("..\\x", folders)


def test_a_picture_that_is_cut_off_is_named(tmp_path):
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    (tmp_path / "x.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"x\.png cannot be read to its end"):
        STOCK_NODES["LoadImage"]().load("x.png", Folders(tmp_path, tmp_path, []))


def test_a_saved_picture_may_be_used_on(runner, folders):
    workflow = shipped("text_to_image")
    (save,) = (node_id for node_id, node in workflow.prompt.items() if node["class_type"] == "SaveImage")
    workflow.prompt["50"] = {"class_type": "ImageInvert", "inputs": {"image": [save, 0]}}
    workflow.prompt["51"] = {"class_type": "SaveImage", "inputs": {"images": ["50", 0], "filename_prefix": "negative"}}
    runner.run(workflow)
    first, second = (np.asarray(Image.open(path)).astype(int) for path in sorted(folders.written))
    assert np.abs(first + second - 255).max() <= 1


def test_a_picture_is_padded_for_what_is_painted_around_it():
    image, mask = stock("ImagePadForOutpaint", image=torch.ones(1, 8, 8, 3), left=4, top=0, right=0, bottom=0, feathering=2)
    assert image.shape == (1, 8, 12, 3) and float(image[..., :4, :].max()) == 0.5 and float(image[..., 4:, :].min()) == 1
    assert mask.shape == (1, 8, 12) and mask[0, 3].tolist() == [1] * 4 + [1, 0.25] + [0] * 6


def test_a_picture_lies_on_another_where_the_mask_says():
    below, above, mask = torch.zeros(1, 6, 8, 3), torch.ones(1, 4, 4, 3), torch.ones(1, 4, 4)
    mask[:, :, 0] = 0.25
    (image,) = stock("ImageCompositeMasked", destination=below, source=above, x=5, y=4, resize_source=False, mask=mask)
    assert image[0, 5, :, 0].tolist() == [0] * 5 + [0.25, 1, 1] and float(image[0, :4].max()) == 0
    assert float(below.max()) == 0  # another node may use it, too


def test_a_mask_grows_and_shrinks():
    mask = torch.zeros(1, 7, 7)
    mask[0, 3, 3] = 1
    for tapered, count in ((True, 13), (False, 25)):
        (grown,) = stock("GrowMask", mask=mask, expand=2, tapered_corners=tapered)
        assert grown.sum() == count
        assert torch.equal(stock("GrowMask", mask=grown, expand=-2, tapered_corners=tapered)[0], mask)


def test_an_inpainting_workflow_runs_without_a_screen(runner, folders, tmp_path):
    """Load, scale, crop a mask out of the picture, grow and feather it, paint there, and lay the result over the picture."""
    picture = pattern(300, 280, 3).convert("RGBA")
    picture.paste((0, 0, 0, 0), (50, 60, 150, 200))
    picture.save(tmp_path / "in.png")
    runner.folders = Folders(tmp_path, folders.output, [])
    workflow = shipped("text_to_image")
    ids = {node["class_type"]: node_id for node_id, node in workflow.prompt.items()}
    vae, painted = [ids["GLMImageLoad"], 3], [ids["GLMImageVAEDecode"], 0]
    more = {
        "50": ("LoadImage", {"image": "in.png"}),
        "51": ("ImageScale", {"image": ["50", 0], "upscale_method": "area", "width": 256, "height": 288, "crop": "center"}),
        "52": ("GrowMask", {"mask": ["50", 1], "expand": 3, "tapered_corners": True}),
        "53": ("FeatherMask", {"mask": ["52", 0], "left": 4, "top": 4, "right": 4, "bottom": 4}),
        "54": ("VAEEncodeForInpaint", {"pixels": ["51", 0], "vae": vae, "mask": ["53", 0], "grow_mask_by": 6}),
        "55": (
            "ImageCompositeMasked",
            {"destination": ["51", 0], "source": painted, "x": 0, "y": 0, "resize_source": False, "mask": ["53", 0]},
        ),
        "56": ("MaskPreview", {"mask": ["53", 0]}),
    }
    workflow.prompt |= {node_id: {"class_type": kind, "inputs": inputs} for node_id, (kind, inputs) in more.items()}
    set_input(workflow, "GLMImageSampler", latent_image=["54", 0])
    set_input(workflow, "SaveImage", images=["55", 0])
    runner.run(workflow)
    (path,) = saved(runner.folders)
    result = np.asarray(Image.open(path)).astype(int)
    scaled, _ = read_frames(tmp_path / "in.png")
    (scaled,) = stock("ImageScale", image=scaled, upscale_method="area", width=256, height=288, crop="center")
    outside = np.abs(result - np.trunc(scaled[0].numpy() * 255))
    assert outside[:20].max() <= 1 and outside[80:150, 60:120].max() > 20
