"""What the notes in the shipped workflows say, in Markdown. Without code in a line: Nodes 2.0 draws it blue on blue."""

_FAULT = (
    "Something wrong? *If something goes wrong* in the pack's README. Report a fault where you got the pack (its page in the "
    "Manager has the address), with what *python . info* prints in its folder."
)
NANO_MODEL = (
    "*nano (built in)* comes with the pack: nothing to download, and a CPU is enough. For pictures of anything else choose "
    f"another checkpoint; *GLM-Image 11 text to image* says where it comes from.\n\n{_FAULT}"
)
_HF = "https://huggingface.co"
_CARDS = "**quantization** on a card of 24 GB: *none*; 12 or 16 GB: *int8*; 8 GB: *nf4*."


def glm_image(on_nano: str = " and type *A red star on blue.*", cards: str = _CARDS) -> str:
    """Where GLM-Image comes from. on_nano: what to do after nano is chosen, to try the graph. cards: settings for each card."""
    return f"""## [zai-org/GLM-Image]({_HF}/zai-org/GLM-Image), 35 GB
Download the whole folder:

```
ComfyUI/models/diffusers/GLM-Image/
  model_index.json
  vision_language_encoder/   20 GB
  transformer/               14 GB
  text_encoder/ tokenizer/ processor/
  scheduler/ vae/
```
Then press **R**. To try the graph at once, choose *nano (built in)*{on_nano}

{cards} The last two need the package *comfy-kitchen*. Main memory holds 35 GB without.

{_FAULT}"""


MODEL = glm_image()
EDIT_MODEL = glm_image(" and the picture *glm-image-shapes.png*, and type *Change the red circle to blue.*")
TWO_PICTURES_MODEL = glm_image(
    ", *glm-image-shapes.png* as Reference 1, bypass the other *Encode Reference* (Ctrl+B), and type *Change the red circle to "
    "blue.*"
)
RESTYLE_MODEL = glm_image(" and the picture *glm-image-shapes.png*, and type *A red star on blue.*")
REWRITTEN_MODEL = glm_image(" and type *A red star on blue.* The writer would change that: bypass it (Ctrl+B).")
PARTS_MODEL = glm_image(
    " in *Checkpoint of all four*, and type *A red star on blue.*",
    "Single files go into *models/diffusion_models* (DiT), *text_encoders* (AR model) and *vae*.\n\n**quantization** on a card "
    "of 24 GB: *none*; 16 GB: *int8* for the AR model; 12 GB: *int8* for it and the DiT; 8 GB: *nf4* for the AR model, the DiT "
    "is streamed.",
)
VLM_MODEL = f"""Glmga, [GLM-4.1V]({_HF}/zai-org/GLM-4.1V-9B-Thinking) (21 GB) or another \
vision-language model that transformers opens, as downloaded:

```
ComfyUI/models/LLM/Glmga/
  config.json
  *.safetensors
  tokenizer and processor
```
On a card of less than 24 GB choose a **quantization** in the loader."""
COGVIEW3_PLUS_MODEL = f"""## [THUDM/CogView3-Plus-3B]({_HF}/THUDM/CogView3-Plus-3B), 15 GB
Download the whole folder:

```
ComfyUI/models/diffusers/CogView3-Plus-3B/
  model_index.json
  transformer/ text_encoder/ tokenizer/
  scheduler/ vae/
```
Its tokenizer needs the packages *sentencepiece* and *protobuf*. One part after the other goes to the card: the text \
encoder has 9.5 GB, the DiT 5.7 GB.

{_FAULT}"""
COGVIEW3_BASE_MODEL = f"""*python . convert* in the pack's folder makes the two folders from the published \
checkpoints, to which [THUDM/CogView3](https://github.com/THUDM/CogView3) links, and from *sdxl_vae.safetensors* of \
[stabilityai/sdxl-vae]({_HF}/stabilityai/sdxl-vae); see *docs/cogview3.md*. T5, 9.5 GB on the card, comes from \
[THUDM/CogView3-Plus-3B]({_HF}/THUDM/CogView3-Plus-3B):

```
ComfyUI/models/diffusers/
  cogview3-base-3b/
  cogview3-relay-3b/
  CogView3-Plus-3B/
```

{_FAULT}"""
ABOUT = {
    "nano": (
        "A very small GLM-Image that comes with the pack: press **Run**. It draws circles, squares, triangles, stars and crosses "
        'in eight colours, up to four of them, and a word of capitals and digits in "quotation marks". It reads English and '
        "Chinese.\n\nA new seed in **Generate Prior** changes the composition, one in **Sampler** the details."
    ),
    "nano_edit": (
        "An edit by the built-in model: press **Run**. It understands another colour for a shape or for the ground, move, add "
        "and remove a shape, another word, a shape from one picture into another."
    ),
    "text_to_image": (
        'Type the prompt once, in **Prompt**. Put text that should be drawn in "quotation marks".\n\n**Generate Prior** plans '
        "the composition, **Sampler** paints it. Each run changes both seeds. To keep the composition, set the seed of Generate "
        "Prior to *fixed* before you run."
    ),
    "variations": (
        "**batch_size** in Generate Prior plans that many different compositions in one go. Image i uses seed + i in both "
        "stages, so you can make your favourite again alone.\n\n**Variation** is bypassed: switch it on (Ctrl+B) for "
        "compositions near that of one seed."
    ),
    "same_prior_new_seed": (
        "Both samplers paint the same prior tokens with their own seed: the composition stays, details differ. The AR stage "
        "runs once, and again when you change its seed."
    ),
    "lora": (
        "Choose a file of *models/loras* in **Load GLM-Image LoRA** and switch the node on (Ctrl+B); until then it is "
        "bypassed. One file may change the DiT, the AR model, or both; the node says what it changed."
    ),
    "one_node": (
        "The whole of *text to image* in one node. From run to run **composition seed** stays and **detail seed** changes: the "
        "same composition is painted anew.\n\n*Enter subgraph*, or the icon in the node's title, opens the graph inside. The "
        "node library has this node and others for edits and inpainting: search for *GLM-Image* there."
    ),
    "separate_loaders": (
        "Each part has a loader of its own, with more settings: another quantization for AR model and DiT, single safetensors "
        "or GGUF files, the attention backend, torch.compile, and an AR model on a second card.\n\n"
        "**Checkpoint of all four** chooses for every loader. To give one a file of its own, cut its link and choose there."
    ),
    "image_edit": (
        "Choose your picture in **Reference 1** and say in **Prompt** what is different. Any size and aspect works.\n\n"
        "**GLM-Image Size** sets the size of the result."
    ),
    "several_references": (
        "References are chained: the first one is *the first picture* for the prompt, and so on. Add as many Encode Reference "
        "nodes as you like. Each is encoded once, and again only when its picture changes."
    ),
    "restyle": (
        "The picture is encoded, partly noised and painted over under a new plan. **denoise** in the sampler says how much: 0.5 "
        "keeps most of it, 0.9 little. To change a picture by words, use *GLM-Image 21 image edit*."
    ),
    "inpaint": (
        "Draw a mask on your picture (right click, *Open in MaskEditor*) and say in **Prompt** what becomes of it. Outside the "
        "mask every pixel stays. **under_mask** *change it* lets the models see what is there; *replace it* hides it, for "
        "something new in its place: then say where it is."
    ),
    "outpaint": (
        "**Pad for Outpainting** makes room on any side, and **Prompt** says what appears there, and where. The old part stays, "
        "to the pixel."
    ),
    "edit_untouched": (
        "An edit by words, and **Changed Mask** finds which part of the plan it changed. The sampler paints only there, and "
        "**Composite Masked** keeps every other pixel of the picture."
    ),
    "regions": (
        "**Regrow Prior** plans a masked part anew by a prompt of its own and leaves the rest as it is, token for token. Chain "
        "more of them for more regions, each with its mask and its prompt."
    ),
    "mix_plans": (
        "**Mix Priors** takes the left half from one plan, whose seed is fixed, and the right half from another, which each run "
        "plans anew; any mask will do. **Paste Prior** and **Drop Prior** are bypassed: switch them on (Ctrl+B) to lay a part of "
        "the other plan over it, or to have the sampler invent the masked half. **Shift Prior** moves everything by whole tokens "
        "of 32 pixels."
    ),
    "sketch_plans": (
        "**Sketch Priors** writes only the small previews of four plans, a fifth of the tokens at 1024 x 1024. **Contact Sheet** "
        "shows them with their numbers: write those that you like into **Choose Priors**, and only they are expanded and "
        "painted. The sheet shows tokens, similar ones in similar colours. The seed of the sketches is fixed, so that the "
        "numbers stay; another seed gives other sketches.\n\n**Choose Surest** is bypassed: switch it on (Ctrl+B) and the "
        "planner itself chooses."
    ),
    "enlarge": (
        "The picture is enlarged, read as a plan of its own at the new size, and painted over in tiles that grow together. "
        "**denoise** in the sampler says how much is painted: 0.4 keeps the pixels, 1 only what is where. With the released "
        'model use tiles of 1024 and an overlap of 256.\n\nText stays sharp if it stands in "quotation marks" in **Text to be '
        "drawn**."
    ),
    "keep_plan": (
        "**Save Prior** saves the picture as a PNG that carries its plan. *GLM-Image 32 paint a kept plan* reads it from there "
        "another day. Without **images** it saves the plan alone, a few kB.\n\n**Look** shows the tokens over the picture, where "
        "the planner was unsure, and a draft in few steps."
    ),
    "load_plan": (
        "**Load Prior** takes the plan out of a picture or a file that *Save Prior* wrote; here one that comes with the pack. No "
        "AR model runs. The same seed and settings paint the same picture; another seed in **Sampler** paints other details."
    ),
    "picture_plan": (
        "**Prior from Image** reads the plan that a picture has of itself, and **Sampler** paints it from noise: what is in it "
        "and where stays, the pixels are new. A drawing made by hand is a plan drawn by hand.\n\nText is drawn if it stands "
        'in "quotation marks" in **Text to be drawn**; another text of as many letters takes its place.'
    ),
    "custom_sampler": (
        "**GLM-Image Scheduler** gives GLM-Image's own sigmas to **SamplerCustomAdvanced**: with euler this paints what "
        "GLM-Image Sampler paints."
    ),
    "stock_sampler": (
        "**KSampler** paints the plan, so any sampler, scheduler and model patch of ComfyUI can be used.\n\n**GLM-Image Size** "
        "sets the size of the plan, of the schedule and of the latent together; here one that z.ai recommends."
    ),
    "enhance_prompt_api": (
        "A chat model turns a few words into the long caption that GLM-Image works best with. Say where it is: **base_url** and "
        "**model**; the default is Ollama on this machine. Texts in quotation marks stay as they are. A key goes into an "
        "environment variable, and **key_variable** says which."
    ),
    "enhance_prompt": (
        "A vision-language model turns a few words into the long caption that GLM-Image works best with. Texts in quotation "
        "marks stay as they are. **style** says what kind of picture it is."
    ),
    "describe": (
        "A vision-language model describes a picture, and GLM-Image paints from the description. **Prompt** says what to "
        "describe; empty asks for a plain caption. For the frames of a clip, give **frame_rate**."
    ),
    "cogview3_plus": (
        "GLM-Image's predecessor of 3B paints from the prompt without a plan: 512 to 2048 pixels, long English captions. "
        "**GLM-Image Enhance Prompt** writes such a caption from a few words: switch it and its loader on (Ctrl+B)."
    ),
    "cogview3_base": (
        "The first CogView3 paints 512 x 512 pixels, and the relay paints that anew at twice the sides. Distilled models: base "
        "4 **steps**; relay 5 **steps**, 1 of **relay_steps**."
    ),
    "remote": (
        "**base_url** is the address of an SGLang or a vLLM-Omni that serves GLM-Image; nothing is needed here. For an edit, "
        f"connect the pictures to **images**.\n\nA request that may have arrived is never sent twice.\n\n{_FAULT}"
    ),
}
"""What each workflow is for, by its short name."""
