"""How nano is trained: what the models are shown is what the library shows them, and training stopped goes on."""

import math
import random
import shutil
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from glm_image_pack.cli import choices
from glm_image_pack.cli.main import main
from glm_image_pack.glmimage_core.diffusion import Grid
from glm_image_pack.glmimage_core.glm_image.ar_model import vision_tokens
from glm_image_pack.glmimage_core.glm_image.dit import Dit
from glm_image_pack.glmimage_core.glm_image.draw import Sampling
from glm_image_pack.glmimage_core.glm_image.files import load as checkpoints
from glm_image_pack.glmimage_core.glm_image.files.inspect import inspect_checkpoint, scheduler_shift
from glm_image_pack.glmimage_core.glm_image.geometry import prior_for_dit
from glm_image_pack.glmimage_core.glm_image.prior import generate_prior
from glm_image_pack.glmimage_core.glm_image.reference_cache import reference_keys_values
from glm_image_pack.glmimage_core.glm_image.references import Reference, encode_reference
from glm_image_pack.glmimage_core.images import to_pictures
from glm_image_pack.training import (
    allowed,
    captions,
    decoder,
    drawing,
    keeping,
    larger,
    letters,
    loop,
    make,
    plans,
    vision,
    world,
)
from glm_image_pack.training import ar as ar_training
from glm_image_pack.training import dit as dit_training
from glm_image_pack.training.structure import structured
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode

scoring = pytest.importorskip("glm_image_pack.training.scoring", reason="needs SciPy")
LIKELIEST = Sampling(temperature=0)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkpoint whose phases were two steps each."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        short = loop.Recipe(steps=2, learning_rate=1e-3, warmup=1)
        patch.setattr(letters, "FINDER_RECIPE", short)
        for module in (make.vae, make.vision, make.ar, make.dit, letters, plans, decoder, keeping, larger, allowed, make.words):
            patch.setattr(module, "RECIPE", short)
        for name in make.PHASES:
            assert make.train_phase(name, folder, torch.device("cpu"), report=lambda line: None)
    return folder / "nano"


@pytest.fixture(scope="module")
def nano_ar(made):
    return checkpoints.load_ar(made, "float32")


@pytest.fixture(scope="module")
def nano_vae(made):
    return checkpoints.load_vae(made, "float32")


def as_reference(ar, vae, scene: world.Scene) -> Reference:
    return encode_reference(ar, vae, to_pictures(drawing.draw(scene)[None])[0])


def a_scene(seed: int = 0, rows: int = 8, columns: int = 8) -> world.Scene:
    return world.random_scene(random.Random(seed), rows, columns, with_word=1)


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (6, 10), (12, 7)])
@pytest.mark.parametrize("references", [0, 1, 2])
def test_the_language_half_is_taught_in_the_place_where_it_plans(nano_ar, nano_vae, references, rows, columns):
    """What it plans by the likeliest token is, fed as a lesson, what it finds likeliest at each place."""
    scenes = tuple(a_scene(seed, rows, columns) for seed in range(references))
    seen = [as_reference(nano_ar, nano_vae, scene) for scene in scenes]
    prior = generate_prior(nano_ar, "a red star on black", columns * 32, rows * 32, seed=0, sampling=LIKELIEST, references=seen)
    planned = [prior.tokens[0]] if references else [prior.preview[0], prior.tokens[0]]
    sequence = ar_training.sequence_of(nano_ar, prior.prompt, [reference.vision_tokens for reference in seen], planned)
    core = nano_ar.model.model.language_model
    with torch.inference_mode():
        hidden = core(
            inputs_embeds=core.embed_tokens(sequence.ids[None, :-1]),
            position_ids=sequence.positions[:, None, :-1],
            use_cache=False,
        ).last_hidden_state[0, -sequence.learned :]
        likeliest = nano_ar.model.lm_head(hidden)[:, : world.CODES].argmax(dim=1)
    assert torch.equal(likeliest, torch.cat([grid.flatten() for grid in planned]))


def test_the_vision_half_is_taught_on_what_the_image_processor_makes_of_a_picture(nano_ar):
    picture = drawing.draw(a_scene())
    halved = to_pictures(picture[None])[0].resize((128, 128), nano_ar.image_processor.resample)
    theirs = nano_ar.image_processor(images=halved, do_resize=False, return_tensors="pt").pixel_values
    ours = vision.patches_of(picture.movedim(-1, 0))
    assert ours.shape == theirs.shape == (64, 3 * 16 * 16)
    assert (ours - theirs).abs().max() < 4 / 255 and (ours - theirs).abs().mean() < 0.2 / 255


def test_the_nearest_row_is_the_one_that_the_library_takes(nano_ar):
    picture = to_pictures(drawing.draw(a_scene(3, 6, 10))[None])[0]
    halved = picture.resize((160, 96), nano_ar.image_processor.resample)
    patches = nano_ar.image_processor(images=halved, do_resize=False, return_tensors="pt").pixel_values
    with torch.inference_mode():
        nearest = vision.code_logits(nano_ar.model, patches, [Grid(6, 10)]).argmax(dim=1)
    assert torch.equal(nearest, vision_tokens(nano_ar, picture).flatten())


def test_references_are_written_as_the_sampler_writes_them(made, nano_vae):
    dit = checkpoints.load_dit(made, "float32")
    scene = a_scene(1)
    tokens = world.tokens_of(scene)
    with torch.inference_mode():
        latents = dit_training.latents_of_scenes(dit, nano_vae, [scene])
        layers = dit_training.written_references(dit, nano_vae, [(scene,)], width=256, height=256)
        reference = Reference(256, 256, tokens, dit.space.denormalise(latents), "", dit.space)
        expected = reference_keys_values(dit, reference)
    for layer, keys_values in zip(layers, expected, strict=True):
        for ours, theirs in zip(layer.references[0], keys_values, strict=True):
            assert ours.shape[0] == dit_training.DRAWS
            torch.testing.assert_close(ours[:1], theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("seed", range(6))
def test_a_lesson_is_of_one_size_and_length(seed):
    lesson = dit_training.random_lesson(random.Random(seed))
    assert len({(scene.rows, scene.columns) for scene in lesson.scenes}) == 1
    assert len(set(map(len, lesson.texts))) == 1 and len(set(map(len, lesson.references))) == 1
    for scene, text in zip(lesson.scenes, lesson.texts, strict=True):
        assert not text or scene.word.text == text


def word_stays(lesson: dit_training.Lesson) -> bool:
    pairs = zip(lesson.scenes, lesson.references, strict=True)
    return all(scene.word in [reference.word for reference in references] for scene, references in pairs)


def test_some_edits_are_taught_with_the_word_that_stays_as_glyph_text():
    lessons = [dit_training.random_lesson(random.Random(f"staying/{seed}")) for seed in range(60)]
    edits = [lesson for lesson in lessons if lesson.references[0]]
    staying = [lesson for lesson in edits if lesson.texts[0] and word_stays(lesson)]
    assert any(not lesson.texts[0] for lesson in edits) and len(staying) >= 3
    for lesson in staying:
        assert lesson.texts == [scene.word.text for scene in lesson.scenes]


def test_score_prints_one_table_and_keeps_the_pictures(made, tmp_path, capsys):
    assert main(["score", str(made), "--share", "0.02", "--steps", "1", "--save", str(tmp_path / "seen")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines if line.startswith("|")][2:6] == [*scoring.SUBJECTS]
    assert "| 0 |" in lines[4].replace("  ", "")  # two steps of training teach nothing
    assert len(list((tmp_path / "seen").glob("x *.png"))) >= 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere"], "nowhere is no folder with a model_index.json"),
        (["--share", "0"], "--share is 0.0; it must lie above 0"),
        (["--steps", "0"], "--steps is 0; at least one is needed"),
    ],
)
def test_a_wrong_option_of_score_is_named(made, options, message, capsys):
    given = options if options[0] == "nowhere" else [str(made), *options]
    assert main(["score", *given]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [(["hands"], "no phase 'hands'; the phases are vae, vision, ar, dit"), (["--minutes", "0"], "--minutes is 0.0")],
)
def test_a_wrong_option_of_train_is_named(tmp_path, options, message, capsys):
    assert main(["train", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err


def test_by_default_all_phases_are_trained_in_order(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(make, "train_phase", lambda name, *where, **how: trained.append(name) or True)
    assert main(["train", str(tmp_path)]) == 0 and tuple(trained) == choices.TRAINED_PHASES
    assert main(["train", str(tmp_path), "larger"]) == 0 and trained[len(choices.TRAINED_PHASES) :] == ["larger"]


def test_train_stops_in_time_and_says_how_to_go_on(tmp_path, capsys):
    assert main(["train", str(tmp_path), "vision", "--minutes", "0.0001"]) == 0
    assert "vision is not done yet; run the same command again to continue" in capsys.readouterr().err
    assert (tmp_path / "vision.pt").is_file() and (tmp_path / "nano" / "vision_language_encoder" / "model.safetensors").is_file()


def test_cells_that_share_something_begin_alike():
    table = torch.nn.functional.normalize(structured(64), dim=1)
    code = {cell: index for index, cell in enumerate(world.cells())}
    one = table[code[world.Cell("red", "blue", 0)]]
    alike = table[code[world.Cell("red", "green", 0)]]
    unlike = table[code[world.Cell("black", "white", world.letter_slot(2))]]
    assert one @ alike > 0.5 > one @ unlike


def test_a_preview_shows_the_token_under_each_middle():
    tokens = torch.arange(6).reshape(2, 3)
    afar = ar_training.resampled(tokens, Grid(4, 6))
    assert torch.equal(afar, tokens.repeat_interleave(2, 0).repeat_interleave(2, 1))
    assert torch.equal(ar_training.resampled(tokens, Grid(2, 3)), tokens)


class Line(torch.nn.Linear):
    """Learns y = 2 x."""

    def loss_of(self, rng: random.Random, generator: torch.Generator) -> torch.Tensor:
        x = torch.randn(8, 1, generator=generator) + rng.random()
        return (self(x) - 2 * x).square().mean()


def trained(folder, layered: bool, seconds: float = math.inf) -> Line:
    """layered: whether its matrix is one of the layers, which go by Muon."""
    with make.seeded(0):
        line = Line(1, 1)
    recipe = loop.Recipe(steps=150, learning_rate=0.1, warmup=4)
    settings = {"folder": folder, "layers": [line] if layered else [], "seconds": seconds}
    loop.train("line", line, line.loss_of, recipe, **settings, report=lambda line: None)
    return line


@pytest.mark.parametrize("layered", [False, True])
def test_training_stopped_and_begun_again_ends_where_one_run_does(tmp_path, monkeypatch, layered):
    whole = trained(tmp_path / "whole", layered)
    assert whole.weight.item() == pytest.approx(2, abs=0.1)
    with monkeypatch.context() as clock:
        ticks = iter(range(1000))
        clock.setattr(time, "monotonic", lambda: next(ticks))
        stopped = trained(tmp_path / "parts", layered, seconds=9)
    assert 0 < torch.load(tmp_path / "parts" / "line.pt", weights_only=True)["step"] < 150
    assert not torch.equal(stopped.weight, whole.weight)
    assert torch.equal(trained(tmp_path / "parts", layered).weight, whole.weight)


def test_the_matrices_of_layers_go_by_muon(tmp_path):
    trained(tmp_path, layered=True)
    adamw, muon = torch.load(tmp_path / "line.pt", weights_only=True)["optimizers"]
    assert [len(state["state"]) for state in (adamw, muon)] == [1, 1]  # bias, weight
    assert "momentum_buffer" in muon["state"][0] and "exp_avg" in adamw["state"][0]


def test_where_bfloat16_is_emulated_nothing_is_computed_in_it(tmp_path, monkeypatch):
    """An optimizer step by Muon asks for bfloat16, whatever the precision of the weights."""
    products = []

    class Watched(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            if isinstance(made, torch.Tensor):
                products.append(made.dtype)
            return made

    for emulated in (False, True):
        monkeypatch.setattr(loop, "emulates", lambda device, dtype, emulated=emulated: emulated)
        products.clear()
        with Watched():
            trained(tmp_path / str(emulated), layered=True, seconds=0.1)
            with loop.mixed_precision(torch.device("cpu")):
                torch.ones(2, 2) @ torch.ones(2, 2)
        assert (torch.bfloat16 in products) is not emulated


def test_the_state_files_keep_their_format(made):
    """A run that an older version began goes on."""
    prefixes = {
        "vae": {"encoder", "decoder"},
        "vision": {"visual", "vqmodel"},
        "ar": {"language_model", "lm_head"},
        "dit": {"dit", "glyph"},
        "glyphs": {"dit", "glyph", "reader"},
        "letters": {"dit", "glyph"},
        "plans": {"language_model", "lm_head"},
        "decoder": {"conv_in", "mid_block", "up_blocks", "conv_norm_out", "conv_out"},
        "words": {"visual", "quant_conv"},
        "keeping": {"dit", "glyph"},
        "larger": {"language_model", "lm_head"},
        "allowed": {"language_model", "lm_head"},
    }
    assert prefixes.keys() == make.PHASES.keys()
    for name, expected in prefixes.items():
        state = torch.load(made.parent / f"{name}.pt", weights_only=True)
        assert state.keys() == {"model", "optimizers", "average", "step", "seconds"}
        assert {key.split(".")[0] for key in state["average"]} == {key.split(".")[0] for key in state["model"]} == expected


def test_every_phase_is_written_as_a_checkpoint(made):
    reports = inspect_checkpoint(made)
    assert not [problem for report in reports for problem in report.problems]
    assert {report.stored_dtype for report in reports if report.parameters} == {torch.bfloat16}
    assert checkpoints.load_dit(made).model.proj_out.weight.any()  # begins at zero
    sampled_by = checkpoints.load_ar(made).model.generation_config
    assert (sampled_by.temperature, sampled_by.top_p, sampled_by.do_sample) == (0.9, 0.75, True)


def start_phase(name, made) -> make.Phase:
    with make.seeded(0):
        return make.PHASES[name](made, torch.device("cpu"))


def models_of(phase, made, vae) -> dit_training.DitModels:
    dit = Dit(phase.modules["dit"], vae.space, scheduler_shift(made))
    return dit_training.DitModels(dit, checkpoints.glyph_encoder(phase.modules["glyph"], made), vae)


def attention_on_the_right_bytes(phase, made, vae) -> float:
    """The share of the finder's attention from the cells of letters that goes to their bytes, over words of all lengths."""
    models, shares = models_of(phase, made, vae), []
    for seed in range(4):
        lesson = letters.random_words(random.Random(f"found/{seed}"))
        with torch.no_grad():
            scores, _ = letters.finder_scores(models, lesson, torch.Generator().manual_seed(seed))
        after = prior_for_dit(torch.stack([world.letters_after(scene) for scene in lesson.scenes]))
        after = after.repeat_interleave(dit_training.DRAWS, 0)
        byte = (len(lesson.texts[0]) - 1 - after).clamp(0)
        shares.append(scores.softmax(-1).gather(2, byte[..., None])[..., 0][after >= 0].mean().item())
    return sum(shares) / len(shares)


def test_the_finder_learns_to_find_letters(made, nano_vae, tmp_path):
    phase = start_phase("glyphs", made)
    before = attention_on_the_right_bytes(phase, made, nano_vae)
    recipe = loop.Recipe(steps=60, learning_rate=3e-3, warmup=20)
    loop.train("glyphs", phase.modules, phase.loss_of, recipe, folder=tmp_path, report=lambda line: None)
    assert before < 0.1 and attention_on_the_right_bytes(phase, made, nano_vae) > 0.4


def test_the_finders_scores_are_those_of_the_librarys_attention(made, nano_vae, monkeypatch):
    models = models_of(start_phase("glyphs", made), made, nano_vae)
    head_width = models.dit.model.config.attention_head_dim
    lesson, scores, attend = letters.random_strips(random.Random(0)), [], torch.nn.functional.scaled_dot_product_attention

    def attending(query, key, *rest, **settings):
        if query.shape[-1] == head_width:
            scores.append(query[:, letters.HEAD].float() @ key[:, letters.HEAD].float().mT * head_width**-0.5)
        return attend(query, key, *rest, **settings)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attending)
    with torch.no_grad():
        ours, _ = letters.finder_scores(models, lesson, torch.Generator().manual_seed(0))
    text_tokens = len(lesson.texts[0]) + 1
    torch.testing.assert_close(ours, scores[-1][:, text_tokens:].float(), atol=0.1, rtol=0.05)  # bfloat16 there


def test_the_finder_is_frozen_while_the_dit_learns_to_read_it(made):
    phase = start_phase("letters", made)
    found = loop.averaged("glyphs", made.parent)
    weights = dict(phase.modules.named_parameters())
    frozen = {name for name, weight in weights.items() if not weight.requires_grad}
    attention = "dit.transformer_blocks.0.attn1"
    assert {"glyph.shared.weight", "dit.prior_token_embedding.weight", f"{attention}.to_k.weight"} <= frozen
    assert not frozen & {f"{attention}.to_v.weight", "dit.transformer_blocks.1.attn1.to_k.weight", "dit.proj_out.weight"}
    assert all(torch.equal(weights[name], found[name]) for name in frozen if name in found)


def test_edits_are_taught_with_their_references_in_order(nano_ar):
    edit = captions.random_edit(random.Random(0), 8, 8, "en", kind="first into second")
    sequence = ar_training.edit_lesson(nano_ar, edit)
    first, second = (world.tokens_of(scene).flatten() for scene in edit.references)
    assert torch.equal(sequence.ids[1:65], first) and torch.equal(sequence.ids[67:131], second)
    assert torch.equal(sequence.ids[-64:], world.tokens_of(edit.scene).flatten())


def test_the_phase_plans_goes_on_with_the_checkpoint_that_it_finds(made, tmp_path):
    folder = tmp_path / "nano"
    shutil.copytree(made, folder)
    found = load_file(folder / "vision_language_encoder" / "model.safetensors")
    phase = start_phase("plans", folder)
    assert all(weight.dtype == torch.float32 for weight in phase.modules.parameters())
    for name, weight in phase.modules["language_model"].state_dict().items():
        assert torch.equal(weight, found[f"model.language_model.{name}"].float())
    with torch.no_grad():
        phase.modules["lm_head"].weight.add_(1)
    phase.write()
    written = load_file(folder / "vision_language_encoder" / "model.safetensors")
    changed = {name for name in found if not torch.equal(found[name], written[name])}
    assert written.keys() == found.keys() and changed == {"lm_head.weight"}


def test_every_size_is_taught_as_often_as_the_score_asks_for_it():
    rng = random.Random(0)
    sizes = Counter(plans.random_size(rng) for _ in range(4000))
    asked = [sizes[size] / count for size, count in Counter(scoring.SIZES).items()]
    assert min(asked) > 0.8 * max(asked) and sum(sizes[size] for size in set(scoring.SIZES)) > 0.7 * 4000


@pytest.mark.parametrize("kind", captions.EDITS)
def test_the_weights_of_an_edit_follow_from_its_references_alone(kind):
    edit = captions.random_edit(random.Random(kind), 8, 12, "en", kind=kind, anywhere=True)
    weights = plans.edit_weights(edit)
    elsewhere = replace(edit, scene=replace(edit.scene, shapes=(), word=None))
    assert weights.shape == (8, 12) and torch.equal(weights, plans.edit_weights(elsewhere))
    for scene in edit.references:
        for thing in scene.things:
            assert weights[thing.row, thing.column] == ar_training.START_WEIGHT
            assert thing.column == 0 or weights[thing.row, thing.column - 1] >= plans.NEAR_WEIGHT


def test_a_shape_with_an_empty_corner_may_show_first_one_cell_to_the_right():
    for kind in world.KINDS:
        for size in world.SPANS:
            shape = world.Shape(kind, "red", size, 0, 0)
            tokens = world.tokens_of(world.Scene(6, 6, "blue", shapes=(shape,)))
            first = int((tokens.flatten() >= len(world.COLOURS)).nonzero()[0])
            assert first == world.first_visible(shape)
            assert (0, first) in set(world.beginnings(6, 6))


def test_the_loss_of_a_step_is_that_of_its_batches(nano_ar):
    rng = random.Random(0)
    kinds = [plans.pictures_of_size] * plans.PICTURE_BATCHES + [plans.edits_of_size] * plans.EDIT_BATCHES
    batches = [batch(nano_ar, rng, *plans.random_size(rng)) for batch in kinds]
    assert {len(batch) for batch in batches} == {plans.LESSONS}
    expected = sum(ar_training.batch_loss(nano_ar, batch).item() for batch in batches) / len(batches)
    assert plans.loss_of(nano_ar, random.Random(0), torch.Generator()).item() == pytest.approx(expected, rel=1e-5)


def test_larger_lessons_are_of_the_sizes_that_larger_questions_ask_for():
    rng = random.Random(1)
    sizes = Counter(larger.random_size(rng) for _ in range(4000))
    assert all(sizes[size] > 0.1 * 4000 for size in scoring.LARGER_SIZES)
    assert all(sizes[size] > 0.02 * 4000 for size in scoring.SIZES)
    assert {side for size in sizes for side in size} == set(larger.SIDES)
    assert larger.loss_of.keywords == {"size_of": larger.random_size}


def test_a_batch_of_larger_pictures_has_fewer_lessons(nano_ar, monkeypatch):
    batches = []
    monkeypatch.setattr(plans, "batch_loss", lambda ar, batch: batches.append(batch) or torch.zeros(()))
    for size, lessons in (((12, 12), 6), ((16, 16), 3), ((8, 16), 6)):
        plans.loss_of(nano_ar, random.Random(0), torch.Generator(), size_of=lambda rng, size=size: size)
        assert {len(batch) for batch in batches} == {lessons} and len(batches) == 5
        batches.clear()


def test_a_phase_that_is_done_is_not_written_over_a_later_one(made, tmp_path):
    shutil.copytree(made.parent, tmp_path, dirs_exist_ok=True)
    found = {file: file.read_bytes() for file in (tmp_path / "nano").rglob("*") if file.is_file()}
    with pytest.MonkeyPatch.context() as patch:
        for module in (make.vision, make.ar, make.dit):
            patch.setattr(module, "RECIPE", loop.Recipe(steps=2, learning_rate=1e-3))
        for name in ("vision", "ar", "dit"):
            assert make.train_phase(name, tmp_path, torch.device("cpu"))
        assert found == {file: file.read_bytes() for file in found}
        assert make.train_phase("ar", tmp_path, torch.device("cpu"), rewrite=True)
    weights = Path("nano", "vision_language_encoder", "model.safetensors")
    assert found[tmp_path / weights] != (tmp_path / weights).read_bytes()


def test_the_phase_larger_states_the_sizes_that_it_teaches(tmp_path):
    folder = tmp_path / "nano"
    make.write_nano_layout(folder)
    make._save(make._initial_model(folder, "vision_language_encoder"), folder / "vision_language_encoder")
    before = checkpoints.load_ar(folder)
    start_phase("larger", folder).write()
    after = checkpoints.load_ar(folder)
    assert (before.trained_on.sides, after.trained_on.sides) == ((192, 384), (192, 512))
    assert before.trained_on.words == after.trained_on.words
    assert after.image_processor.size["longest_edge"] == 512**2


def test_a_phase_that_goes_on_leaves_the_configs_as_it_finds_them(tmp_path):
    folder = tmp_path / "nano"
    make.write_nano_layout(folder)
    for name in ("vae", "vision_language_encoder"):
        make._save(make._initial_model(folder, name), folder / name)
    start_phase("dit", folder).write()
    components = ("vae", "vision_language_encoder", "transformer", "text_encoder")
    found = {name: (folder / name / "config.json").read_text(encoding="utf-8") for name in components}
    for phase in ("plans", "words", "decoder", "keeping", "allowed"):
        start_phase(phase, folder).write()
        written = {name: (folder / name / "config.json").read_text(encoding="utf-8") for name in components}
        assert written == found, phase


def test_the_phase_decoder_changes_no_latent(made, tmp_path):
    folder = tmp_path / "nano"
    shutil.copytree(made, folder)
    phase = start_phase("decoder", folder)
    found = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    recipe = loop.Recipe(steps=2, learning_rate=1e-2, warmup=1)
    loop.train("decoder", phase.modules, phase.loss_of, recipe, folder=tmp_path, report=lambda line: None)
    phase.write()
    written = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    assert written.keys() == found.keys()
    changed = {name for name in found if not torch.equal(found[name], written[name])}
    assert changed and all(name.startswith("decoder.") for name in changed)


def test_the_phase_keeping_goes_on_with_the_checkpoint_that_it_finds(made, tmp_path):
    """What decides where the finder looks stays as it is."""
    folder = tmp_path / "nano"
    shutil.copytree(made, folder)
    phase = start_phase("keeping", folder)
    files = {"dit": "transformer/diffusion_pytorch_model.safetensors", "glyph": "text_encoder/model.safetensors"}
    for name, file in files.items():
        weights, found = phase.modules[name].state_dict(), load_file(folder / file)
        assert all(torch.equal(weights[key], weight.float()) for key, weight in found.items())
    recipe = loop.Recipe(steps=2, learning_rate=1e-2, warmup=1)
    before = {name: load_file(folder / file) for name, file in files.items()}
    loop.train("keeping", phase.modules, phase.loss_of, recipe, folder=tmp_path, layers=phase.layers, report=lambda line: None)
    phase.write()
    after = {name: load_file(folder / file) for name, file in files.items()}
    changed = {key for key in before["dit"] if not torch.equal(before["dit"][key], after["dit"][key])}
    assert "transformer_blocks.1.attn1.to_k.weight" in changed and "transformer_blocks.0.attn1.to_k.weight" not in changed
    assert all(torch.equal(before["glyph"][key], after["glyph"][key]) for key in before["glyph"])


def test_the_phase_keeping_shows_words_that_stay_and_no_text_says():
    kinds = set()
    for seed in range(40):
        lesson = keeping.random_kept_words(random.Random(seed))
        assert set(lesson.texts) == {""} and word_stays(lesson)
        assert len({(scene.rows, scene.columns) for scene in lesson.scenes}) == 1
        kinds.add(len(lesson.references[0]))
    assert kinds == {1, 2}


def test_the_phase_keeping_shows_words_alone_whose_background_changes():
    for seed in range(10):
        lesson = keeping.random_kept_strips(random.Random(seed))
        assert set(lesson.texts) == {""} and {scene.rows for scene in lesson.scenes} == {2}
        for scene, (reference,) in zip(lesson.scenes, lesson.references, strict=True):
            assert reference.word == scene.word and not scene.shapes and not reference.shapes
            assert reference.ground not in (scene.ground, scene.word.colour)


def test_the_phase_keeping_shows_words_that_a_text_changes():
    same = 0
    for seed in range(10):
        lesson = keeping.random_changed_strips(random.Random(seed))
        for scene, text, (reference,) in zip(lesson.scenes, lesson.texts, lesson.references, strict=True):
            assert text == scene.word.text and reference.ground == scene.ground
            assert reference.is_free(reference.word, ()) and reference.word.column == scene.word.column
            same += reference.word.text == text
    assert same < 10  # of 240; a single letter may be drawn twice


@pytest.fixture
def dit_models(made, nano_vae):
    return dit_training.DitModels(
        checkpoints.load_dit(made, "float32"), checkpoints.load_glyph_encoder(made, "float32"), nano_vae
    )


def test_a_strip_and_its_reference_are_told_the_size_of_a_whole_picture(dit_models, monkeypatch):
    told, embed_time = [], dit_models.dit.model.embed_time

    def told_and_embedded(timestep, width, height, dtype):
        told.append((width, height))
        return embed_time(timestep, width, height, dtype)

    monkeypatch.setattr(dit_models.dit.model, "embed_time", told_and_embedded)
    lesson = keeping.random_kept_strips(random.Random(1))
    with torch.inference_mode():
        loss = dit_training.lesson_loss(dit_models, lesson, torch.Generator().manual_seed(1))
    assert told == [(256, 256), (256, 256)] and loss.isfinite()


def test_letters_weigh_more_in_the_loss_than_shapes_and_those_more_than_the_background():
    scene = world.Scene(8, 8, "white", (world.Shape("square", "red", "small", 0, 0),), world.Word("AB", "blue", 4, 2))
    weights = dit_training._loss_weights([scene], 8.0)[0, 0]
    assert weights.shape == (32, 32)
    assert (weights == 8).sum() == 2 * 16 and (weights[16:20, 8:16] == 8).all()
    assert (weights == 2).sum() == 4 * 16 and (weights[:8, :8] == 2).all()


def test_the_phase_keeping_gives_letters_twice_the_weight(dit_models, monkeypatch):
    monkeypatch.setattr(keeping, "SHARES", {keeping.random_kept_strips: 1.0})
    rng = random.Random(1)
    rng.random()  # which lesson
    lesson = keeping.random_kept_strips(rng)

    def loss(weight):
        generator = torch.Generator().manual_seed(1)
        return dit_training.lesson_loss(dit_models, lesson, generator, letter_weight=weight * dit_training.LETTER_WEIGHT)

    with torch.inference_mode():
        found = keeping.loss_of(dit_models, random.Random(1), torch.Generator().manual_seed(1))
        torch.testing.assert_close(found, loss(2))
        assert not torch.isclose(found, loss(1))
