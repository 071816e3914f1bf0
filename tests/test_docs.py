"""The documents: links lead somewhere, every node and command is named, and no picture shows what is wrong."""

import re
from pathlib import Path

import pytest
from glm_image_pack.cli.main import main
from glm_image_pack.nodes import NODE_CLASS_MAPPINGS
from glm_image_pack.training.world import Scene, Shape, Word
from glm_image_pack.workflows import TEMPLATES

from package import left_out
from take_pictures import PAINTINGS, is_right, record_of

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
FOR_USERS = [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "nano" / "README.md"]
FOR_ALL = [*FOR_USERS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
HELP_PAGES = sorted((ROOT / "nodes" / "web" / "docs").rglob("*.md"))
NAMES = {title: name for name, title in TEMPLATES.items()}
PICTURES = sorted([*(ROOT / "workflows").glob("*.jpg"), *(ROOT / "docs" / "graphs").glob("*.jpg")])
PICTURE_SUFFIXES = {".jpg", ".png"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def relative_links(page: Path) -> list[str]:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
    return [link for link in links if not link.startswith(("https://", "http://"))]


def test_what_the_package_leaves_out_is_seen_here():
    assert left_out(["scripts/take_pictures.py", "README.md"]) == ["scripts/take_pictures.py"]


@pytest.mark.parametrize("page", FOR_ALL, ids=name_of)
def test_every_link_leads_to_a_file_of_the_package(page):
    targets = [(page.parent / link).resolve() for link in relative_links(page)]
    assert [target for target in targets if not target.exists()] == []
    texts = [target for target in [*targets, page] if target.suffix not in PICTURE_SUFFIXES]  # pictures are shown by the host
    assert left_out([name_of(target) for target in texts]) == []


@pytest.mark.parametrize("page", [*FOR_USERS, *HELP_PAGES], ids=name_of)
def test_users_are_sent_to_nothing_that_the_package_leaves_out(page):
    text = page.read_text("utf-8")
    assert re.findall(r"\b(?:scripts|tests)/[\w.]*|`make \w+|\bMakefile\b", text) == []


def test_every_page_is_linked():
    linked = {(page.parent / link).resolve() for page in FOR_ALL for link in relative_links(page)}
    assert [name_of(page) for page in FOR_ALL if page not in linked and page != README] == []


def test_the_readme_is_short():
    assert README.stat().st_size <= 10_000


def test_a_page_says_of_every_node_what_it_is_for():
    lines = re.findall(r"^- \*\*(.+?)\*\*: \w.*\.$", (ROOT / "docs" / "nodes.md").read_text("utf-8"), re.MULTILINE)
    titles = [node.TITLE for node in NODE_CLASS_MAPPINGS.values()]
    assert sorted(line for line in lines if line in titles) == sorted(titles)


def test_the_readme_shows_every_workflow():
    shown = re.findall(r"^\| \*\*.+?\*\*: .+ \| !\[\]\(docs/graphs/(\w+)\.jpg\) \|$", README.read_text("utf-8"), re.MULTILINE)
    assert sorted(shown) == sorted(TEMPLATES)


def test_every_command_is_documented(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = re.findall(r"^    (\w+) ", capsys.readouterr().out, re.MULTILINE)
    page = (ROOT / "docs" / "command-line.md").read_text("utf-8")
    assert "render" in commands
    assert [command for command in commands if f"\n## {command}\n" not in page or f"| `{command}` |" not in page] == []


# Pictures


def scene_of(record: dict) -> Scene:
    """A scene as a picture's comment holds it."""
    word = record["word"] and Word(**record["word"])
    return Scene(**record | {"shapes": tuple(Shape(**shape) for shape in record["shapes"]), "word": word})


@pytest.mark.parametrize("picture", PICTURES, ids=name_of)
def test_no_picture_shows_a_result_that_is_wrong(picture):
    """What nano painted was read back as its prompt asks; where nothing was painted, the graph stands alone."""
    record = record_of(picture)
    name = NAMES.get(picture.stem, picture.stem)
    if name not in PAINTINGS:
        assert record == {"shows": "the graph alone"}
        return
    painting = PAINTINGS[name]
    assert record["prompt"] == painting.asked.prompt and record["seed"] >= 0
    assert is_right(painting, [scene_of(scene) for scene in record["seen"]])


def test_a_wrong_picture_would_be_refused():
    """As nano painted it once: the star of the second picture is not in the first one."""
    asked = PAINTINGS["several_references"].asked
    assert is_right(PAINTINGS["several_references"], [asked.scene])
    assert not is_right(PAINTINGS["several_references"], [asked.into])
    assert not is_right(PAINTINGS["several_references"], [])
