"""ComfyUI's own nodes, as they are without ComfyUI."""

import pytest
from glm_image_pack.cli.graph.errors import WorkflowError
from glm_image_pack.cli.graph.stock import STOCK_NODES, Folders, _write_whole
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pictures import pattern
from shipped import set_input, shipped


@pytest.mark.parametrize(
    ("image", "message"),
    [("../pyproject.toml", "leaves the folder"), ("/etc/passwd", "leaves the folder"), ("none.png", "no picture 'none.png'")],
)
def test_a_reference_outside_the_input_folder_is_refused(runner, image, message):
    workflow = shipped("image_edit")
    set_input(workflow, "LoadImage", image=image)
    with pytest.raises(WorkflowError, match=message):
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
        "51": ("GLMImageVAEEncode", {"vae": [ids["GLMImageLoadVAE"], 0], "image": ["50", 0]}),
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
