"""How the pack is built: which module may import which, what the lists in the packages say, how functions are called.

Files are read, not run: imports count wherever they stand, inside a function or behind TYPE_CHECKING too.
"""

import ast
import inspect
import re
import shutil
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import pytest
from _pack import ROOT
from glm_image_pack.cli.graph.stock import STOCK_NODES
from glm_image_pack.nodes import NODE_CLASS_MAPPINGS

LIBRARY = "glmimage_core"
ROOMS = {
    "families": ["glm_image", "cogview3", "language", "tiny"],  # tiny writes checkpoints of the others, so it may import them
    "shared": [
        "progress",
        "images",
        "component",
        "diffusion",
        "vae",
        "latent_preview",
        "stated",
        "endpoint",
        "quotation_marks",
        "quoted",
        "masks",
        "units",
        "json_text",
        "libraries",
        "version",
    ],
    "plumbing": ["checkpoints", "weights", "placement"],
}
LAYERS = {room: layer for layer, rooms in ROOMS.items() for room in rooms}
# What plumbing may import of the shared modules: a type, spellings, what is installed: none knows a model.
LEAVES = {"progress", "units", "json_text", "libraries"}
MOST_LEVELS_OF_MODULES = 12
MOST_LEVELS_OF_ROOMS = 8
# Modules and packages that import others of the pack inside functions, and what such an import waits for.
LATE_IMPORTS = {
    LIBRARY: "whoever wants one module does not load the others",
    f"{LIBRARY}.glm_image.files.components": "the DiT's class is a subclass of diffusers', which takes seconds to import",
    f"{LIBRARY}.weights.compiled": "nf4 is written in comfy-kitchen, which need not be installed",
    f"{LIBRARY}.weights.formats": "nf4 is written in comfy-kitchen, which need not be installed",
    "nodes.host": "only one of the two hosts can be imported",
    "cli.*": "a command imports torch when it runs, so that --help and a mistyped file name answer at once",
}
UNLISTED = ["nodes", "training"]  # nodes lists the nodes themselves, training what it trains
COMFYUI = re.compile(r"comfy(?!_kitchen)\w*|folder_paths|server|execution|latent_preview|nodes|node_helpers")
POSITIONAL = 4  # arguments of one call
# Calls whose arguments are any number of equals.
OPEN_ENDED = {"max", "min", "zip", "print", "chain", "view", "reshape", "permute", "expand"}
JUDGED_TOGETHER = {"GLMImageSampler": ["cfg_start", "cfg_end"]}  # inputs of which none is the wrong one
# Functions whose arguments somebody else names in a row.
NOT_OURS = {
    "_apply_model": "ComfyUI's BaseModel calls it",
    "_relay": "ComfyUI's KSAMPLER calls it",
}


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the pack, by its name below the root."""
    folders = (LIBRARY, "nodes", "cli", "bench", "training")
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    return {module_name(file): ast.parse(file.read_text("utf-8")) for file in files}


def is_package(name: str) -> bool:
    return (ROOT / name.replace(".", "/")).is_dir()


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def targets(importer: str, statement: ast.ImportFrom) -> list[str]:
    """The modules of the pack that a relative import names."""
    parts = importer.split(".")
    kept = len(parts) - statement.level + is_package(importer)
    base = ".".join([*parts[:kept], *filter(None, [statement.module])])
    below = [f"{base}.{alias.name}" for alias in statement.names]
    return [name if name in modules() else base for name in below]


def relative_imports(name: str, tree: ast.AST | None = None) -> list[str]:
    nodes = ast.walk(tree or modules()[name])
    found = [targets(name, node) for node in nodes if isinstance(node, ast.ImportFrom) and node.level]
    return [target for several in found for target in several]


def absolute_imports(name: str) -> set[str]:
    """The libraries that a module imports, by their first names."""
    found = []
    for node in ast.walk(modules()[name]):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.append(node.module)
    return {name.split(".")[0] for name in found}


def library_arrows() -> dict[str, set[str]]:
    """Module of the library -> those that it imports."""
    return {name: set(relative_imports(name)) - {name} for name in modules() if within(name, LIBRARY)}


def room_of(name: str) -> str:
    """A folder of the library, or a module beside the folders: glmimage_core.weights.nf4 -> weights."""
    return name.split(".")[1] if "." in name else LIBRARY


def longest_chain(arrows: dict[str, set[str]]) -> list[str]:
    """The most nodes that arrows lead through. Raises CycleError, with the circle, where there is one."""
    chains: dict[str, list[str]] = {}
    for name in TopologicalSorter(arrows).static_order():
        chains[name] = [name, *max((chains[below] for below in arrows.get(name, ())), key=len, default=[])]
    return max(chains.values(), key=len)


def test_every_room_of_the_library_has_its_layer():
    assert {room_of(name) for name in library_arrows()} - {LIBRARY} == set(LAYERS)


def test_the_librarys_arrows_point_down():
    order = list(ROOMS)
    wrong = []
    for name, imported in library_arrows().items():
        for target in imported:
            room, below = room_of(name), room_of(target)
            if LIBRARY in (room, below):
                right = room == LIBRARY  # the door to all of it, which nothing inside goes through
            elif room == below:
                right = True
            elif LAYERS[room] == LAYERS[below]:
                right = LAYERS[room] != "families" or room == "tiny"
            else:
                leaf = LAYERS[room] == "plumbing" and below in LEAVES
                right = leaf or order.index(LAYERS[room]) < order.index(LAYERS[below])
            if not right:
                wrong.append(f"{name} -> {target}")
    assert not wrong, "\n".join(wrong)


def test_modules_make_no_circle_and_few_levels():
    arrows = library_arrows()
    del arrows[LIBRARY]  # the door, which stands before all of them
    chain = longest_chain(arrows)
    assert len(chain) <= MOST_LEVELS_OF_MODULES, " -> ".join(chain)


def test_rooms_make_no_circle_and_few_levels():
    arrows: dict[str, set[str]] = {}
    for name, imported in library_arrows().items():
        arrows.setdefault(room_of(name), set()).update(room_of(target) for target in imported)
    chain = longest_chain({room: below - {room} for room, below in arrows.items()})
    assert len(chain) <= MOST_LEVELS_OF_ROOMS, " -> ".join(chain)


def test_a_circle_and_the_longest_chain_are_found():
    assert longest_chain({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == ["a", "b", "c"]
    with pytest.raises(CycleError):
        longest_chain({"a": {"b"}, "b": {"a"}})


def test_the_library_imports_nothing_of_the_pack_around_it():
    wrong = [f"{name} -> {target}" for name, below in library_arrows().items() for target in below if not within(target, LIBRARY)]
    assert not wrong, "\n".join(wrong)


def test_only_the_host_knows_comfyui():
    knowing = {name for name in modules() if any(map(COMFYUI.fullmatch, absolute_imports(name)))}
    assert [name for name in sorted(knowing) if not within(name, "nodes.host.comfyui")] == []
    assert knowing  # or the pattern finds nothing


def test_inside_the_pack_imports_are_relative():
    own = {folder.name for folder in ROOT.iterdir() if (folder / "__init__.py").is_file()} - {"nodes"}  # which ComfyUI has, too
    assert [f"{name} -> {found}" for name in modules() for found in absolute_imports(name) & own] == []


def test_no_import_hides_in_a_function_but_those_that_wait_for_something():
    late = set()
    for name, tree in modules().items():
        if name in LATE_IMPORTS or f"{name.split('.')[0]}.*" in LATE_IMPORTS:
            continue
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        late |= {f"{name} -> {target}" for function in functions for target in relative_imports(name, function)}
    assert not (wrong := sorted(late)), "\n".join(wrong)


@pytest.mark.parametrize("package", [name for name in modules() if is_package(name) and name not in UNLISTED])
def test_a_package_lists_its_modules(package):
    folder = ROOT / package.replace(".", "/")
    there = {file.stem for file in folder.glob("*.py")} | {file.parent.name for file in folder.glob("*/__init__.py")}
    listed = re.findall(r"^(?: {4})?(\w+)/? {2,}\S", modules()[package].body[0].value.value, re.MULTILINE)
    there.discard("__init__")
    assert len(listed) == len(set(listed))
    assert not (missing := there - set(listed)), missing
    assert not (gone := set(listed) - there), gone


def positional(call: ast.Call) -> int:
    """How many arguments stand without a name; a tuple that is unpacked on the spot counts as what it holds."""
    unpacked = [arg.value for arg in call.args if isinstance(arg, ast.Starred) and isinstance(arg.value, ast.Tuple)]
    bound = ast.unparse(call.func) == "partial"  # whose first argument is what it calls
    return len(call.args) - bound + sum(len(value.elts) - 1 for value in unpacked)


@pytest.mark.parametrize("package", [LIBRARY, "nodes", "cli", "bench"])
def test_no_call_has_more_than_four_arguments_without_a_name(package):
    wrong = []
    for name in modules():
        for node in ast.walk(modules()[name]) if within(name, package) else ():
            if (
                isinstance(node, ast.Call)
                and positional(node) > POSITIONAL
                and ast.unparse(node.func).split(".")[-1] not in OPEN_ENDED
            ):
                wrong.append(f"{name}:{node.lineno} {ast.unparse(node.func)} takes {positional(node)}")
    assert not wrong, "\n".join(wrong)


def node_methods() -> set[tuple[str, str]]:
    """What ComfyUI and the graph runner call a node by, always with names: a parameter for each of its inputs."""
    methods = [inspect.unwrap(getattr(node, node.FUNCTION)) for node in (STOCK_NODES | NODE_CLASS_MAPPINGS).values()]
    return {(method.__module__.removeprefix("glm_image_pack."), method.__name__) for method in methods}


@pytest.mark.parametrize("package", [LIBRARY, "nodes", "cli", "bench"])
def test_no_function_asks_for_more_than_four_arguments_without_a_name(package):
    wrong = []
    for name in modules():
        for node in ast.walk(modules()[name]) if within(name, package) else ():
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names = [arg.arg for arg in [*node.args.posonlyargs, *node.args.args]]
                count = len(names) - (names[:1] in (["self"], ["cls"]))
                if count > POSITIONAL and node.name not in NOT_OURS and (name, node.name) not in node_methods():
                    wrong.append(f"{name}:{node.lineno} {node.name} has {count}")
    assert not wrong, "\n".join(wrong)


def test_a_fault_is_told_at_one_input_in_comfyui():
    """ComfyUI repeats it at every input that inspect.getfullargspec(...).args names, which leaves out what is keyword-only."""
    for name, node in NODE_CLASS_MAPPINGS.items():
        if validate := getattr(node, "VALIDATE_INPUTS", None):
            asked = inspect.getfullargspec(validate)
            assert len(asked.args) == 2 or asked.args[1:] == JUDGED_TOGETHER.get(name), name
            assert set(asked.kwonlyargs) == set(asked.kwonlydefaults or ()), f"{name}: ComfyUI passes none of them"


def tracked(*patterns: str) -> list[Path]:
    """The files that git has or would take."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def test_python_files_are_ascii_and_name_no_machines_folder():
    machine = re.compile(r"/(?:home|root|Users|work|mnt)/\w|[A-Z]:\\\\?Users")
    for file in tracked("*.py"):
        text = file.read_bytes().decode("ascii")
        assert not (found := machine.search(text)), f"{file}: {found.group()}"


@pytest.mark.skipif(not find_spec("ruff"), reason="needs ruff")
def test_the_linter_is_content_whatever_the_packs_folder_is_called(tmp_path):
    """A clone is called comfyui-glm-image, which is no name for a Python package."""
    folder = tmp_path / "comfyui-glm-image"
    for file in [*tracked("*.py"), ROOT / "pyproject.toml"]:
        copy = folder / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", "."], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_git_leaves_out_what_was_installed_even_as_a_link(tmp_path):
    shutil.copy(ROOT / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    for name in (".venv", ".venv-oldest", ".ruff_cache", ".pytest_cache", ".hypothesis", "demo", "__pycache__"):
        (tmp_path / name).symlink_to(ROOT)
    status = subprocess.run(["git", "status", "--porcelain"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert status.split() == ["??", ".gitignore"]


@pytest.mark.parametrize("target", ["demo", "clean"])
def test_make_removes_nothing_that_it_did_not_make(target, tmp_path):
    """`true` stands in for the interpreter: what make does besides is at stake."""
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(shutil.which("true"))
    (tmp_path / ".venv" / "ready").touch()
    mine = [tmp_path / folder / "mine.png" for folder in ("demo", "demo/output/glm-image", "pictures")]
    for picture in mine:
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.touch()
    for folder in ("demo", "pictures", "."):
        subprocess.run(["make", target, f"DEMO={folder}"], cwd=tmp_path, check=True, capture_output=True)
    assert all(picture.is_file() for picture in mine)
    assert python.is_symlink() == (target == "demo")
