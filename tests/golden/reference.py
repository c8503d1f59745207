"""From the reference's way of speaking to the package's: contexts, answers, caches, pictures."""

import re
from dataclasses import dataclass, field

import numpy as np
import torch

from unimedvl.modeling_unimedvl.blocks_unimedvl import Block, BlockKind, block_layout, pack_samples, rope_position_ids
from unimedvl.modeling_unimedvl.flow_unimedvl import TASK_PRESETS, FlowSettings
from unimedvl.modeling_unimedvl.flow_unimedvl import unpatchify_latents
from unimedvl.processing.image_processing_unimedvl import UniMedVLImageProcessor
from unimedvl.processing.outputs_unimedvl import pictures_from_pixels

from .records import TENSOR, Golden

JSON = "infer.json"
MARKER_NAMES = {
    "bos_token_id": "<|im_start|>",
    "eos_token_id": "<|im_end|>",
    "start_of_image": "<|vision_start|>",
    "end_of_image": "<|vision_end|>",
}


class Pictures:
    """The folder's pictures through the package's image processor, numbered as in infer.json.

    Attributes:
        files: where they lie.
        processor: configured with the two transforms of infer.json or train.json.
    """

    def __init__(self, golden: Golden, transforms: str = JSON):
        count = len(golden.value(JSON, "/images"))
        self.files = [golden.folder / golden.argument(JSON, f"/images/{index}/file") for index in range(count)]
        vit = golden.argument(transforms, "/vit_transform")
        self.processor = UniMedVLImageProcessor(
            patch_size=golden.value(JSON, "/config/vit/patch_size"),
            understanding_transform=vit,
            vae_transform=golden.argument(transforms, "/vae_transform"),
            vit_transform=vit,
        )
        self._tensors: dict[tuple, dict[str, torch.Tensor]] = {}

    def index_of(self, name: str) -> int | None:
        """Number of the picture that an input like "image1" means, None for the name of a prompt."""
        match = re.fullmatch(r"image(\d+)", name)
        return int(match[1]) if match else None

    def tensors(self, index: int, **settings) -> dict[str, torch.Tensor]:
        """Output of the image processor for one picture."""
        key = (index, *sorted(settings.items()))
        if key not in self._tensors:
            self._tensors[key] = self.processor(self.files[index], return_tensors="pt", **settings)
        return self._tensors[key]

    def vae_pixels(self, index: int) -> torch.Tensor:
        """(3, H, W) for the autoencoder."""
        return self.tensors(index, generation_mode="image")["latent_pixel_values"][0]

    def vit_patches(
        self, index: int, after_vae: bool = False, num_images: int = 1
    ) -> tuple[torch.Tensor, tuple[int, int]]:
        """Patches and their (rows, columns) for the ViT, from the original or from the picture resized for the VAE."""
        pipeline = "chain" if after_vae else "direct"
        tensors = self.tensors(index, generation_mode="text", pipeline=pipeline, num_images=num_images)
        _, rows, columns = tensors["image_grid_thw"][0].tolist()
        return tensors["pixel_values"], (rows, columns)


def to_uint8(pixels: torch.Tensor) -> torch.Tensor:
    """The picture of float pixels (3, H, W) as the processor makes it, (H, W, 3)."""
    return torch.tensor(np.asarray(pictures_from_pixels([pixels])[0]))


def draw(seed: int, shapes: list[list[int]]) -> list[torch.Tensor]:
    """Normal draws in order from a fresh CPU generator, as the reference makes them."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def special_ids(config) -> dict[str, int]:
    """The arguments of `pack_samples` that name tokens."""
    names = ("bos_token_id", "eos_token_id", "vision_start_token_id", "vision_end_token_id")
    return {name: getattr(config, name) for name in (*names, "image_token_id", "latent_token_id")}


def decode(ids: list[int], config) -> str:
    """The fixtures' stand-in tokenizer, and the reference's cut around it: what follows BOS, up to EOS."""
    ours = ("bos_token_id", "eos_token_id", "vision_start_token_id", "vision_end_token_id")
    names = {getattr(config, key): name for key, name in zip(ours, MARKER_NAMES.values(), strict=True)}
    text = " ".join(names.get(token, f"t{token}") for token in ids)
    return text.split("<|im_end|>")[0].split("<|im_start|>")[1]


@dataclass
class Context:
    """A sequence of blocks with the tensors of its images, grown the way the reference's inferencer grows its cache.

    Attributes:
        blocks: the blocks in order.
        patches, grids: ViT patches of each ViT block and their (rows, columns).
        latent_pixels: pixels (3, H, W) of each VAE block.
    """

    config: object
    blocks: list[Block] = field(default_factory=list)
    patches: list[torch.Tensor] = field(default_factory=list)
    grids: list[tuple[int, int]] = field(default_factory=list)
    latent_pixels: list[torch.Tensor] = field(default_factory=list)

    def text(self, ids: list[int]) -> "Context":
        self.blocks.append(Block(BlockKind.TEXT, token_ids=list(ids)))
        return self

    def vit(self, patches: torch.Tensor, grid: tuple[int, int]) -> "Context":
        self.blocks.append(Block(BlockKind.VIT, grid=grid))
        self.patches.append(patches)
        self.grids.append(grid)
        return self

    def vae(self, pixels: torch.Tensor) -> "Context":
        cell = self.config.pixels_per_latent_token
        self.blocks.append(Block(BlockKind.CLEAN, grid=(pixels.shape[1] // cell, pixels.shape[2] // cell)))
        self.latent_pixels.append(pixels)
        return self

    def pack(self) -> dict[str, torch.Tensor]:
        return pack_samples([self.blocks], **special_ids(self.config))

    def segments(self) -> list[slice]:
        """Where each block lies in the sequence."""
        lengths = [
            2 + (len(block.token_ids) if block.kind == BlockKind.TEXT else block.grid[0] * block.grid[1])
            for block in self.blocks
        ]
        ends = torch.tensor(lengths).cumsum(0).tolist()
        return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]

    def inputs(self, generation_prompt: bool = False) -> dict[str, torch.Tensor]:
        """Arguments of `forward` and `generate`, as a processor would make them."""
        pack = self.pack()
        names = ("input_ids", "mm_token_type_ids")
        inputs = {name: pack[name] for name in names}
        if generation_prompt:
            tail = {"input_ids": self.config.bos_token_id, "mm_token_type_ids": 0}
            inputs = {name: torch.cat([inputs[name], torch.tensor([[tail[name]]])], dim=1) for name in names}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if self.patches:
            inputs["pixel_values"] = torch.cat(self.patches)
            inputs["image_grid_thw"] = torch.tensor([[1, *grid] for grid in self.grids])
        if self.latent_pixels:
            inputs["latent_pixel_values"] = pad_pixels(self.latent_pixels)
            inputs["latent_image_sizes"] = torch.tensor([pixels.shape[1:] for pixels in self.latent_pixels])
        return inputs

    def position_ids(self) -> torch.Tensor:
        """RoPE ids that `forward` gives the context's tokens, (S,)."""
        return rope_position_ids(block_layout(self.inputs()["mm_token_type_ids"]))[0]

    def next_position(self) -> int:
        """The reference's RoPE counter after the context, 0 for an empty one."""
        return int(self.position_ids()[-1]) + 1 if self.blocks else 0


def pad_pixels(pixels: list[torch.Tensor]) -> torch.Tensor:
    """Stack pictures (3, H, W), zero padded at the bottom and right."""
    height, width = (max(picture.shape[axis] for picture in pixels) for axis in (1, 2))
    return torch.stack(
        [torch.nn.functional.pad(picture, (0, width - picture.shape[2], 0, height - picture.shape[1])) for picture in pixels]
    )


def left_pad(batch: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """One batch of single inputs, padded on the left; image tensors follow one another."""
    width = max(inputs["input_ids"].shape[1] for inputs in batch)
    padded = {}
    for name in ("input_ids", "mm_token_type_ids", "attention_mask"):
        rows = [inputs[name][0] for inputs in batch]
        padded[name] = torch.stack([torch.nn.functional.pad(row, (width - row.shape[0], 0)) for row in rows])
    for name in ("pixel_values", "image_grid_thw"):
        if any(name in inputs for inputs in batch):
            padded[name] = torch.cat([inputs[name] for inputs in batch if name in inputs])
    return padded


@dataclass
class Answer:
    """What greedy decoding or sampling gave.

    Attributes:
        ids: BOS and the ids before the end token, as the reference returns them.
        logits: float (steps, vocabulary) of every step the reference takes.
        margin: smallest distance of the two best logits over those steps.
    """

    ids: list[int]
    logits: torch.Tensor
    margin: float


def answer(model, context: Context, max_length: int, eos_token_id: int | None = None, **options) -> Answer:
    """Continue a context by text. The reference's `max_length` counts BOS; its last prediction is thrown away."""
    eos_token_id = model.config.eos_token_id if eos_token_id is None else eos_token_id
    inputs = context.inputs(generation_prompt=True)
    output = model.generate(
        **inputs,
        max_new_tokens=max_length,
        eos_token_id=eos_token_id,
        return_dict_in_generate=True,
        output_logits=True,
        **{"do_sample": False, **options},
    )
    new = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    if eos_token_id in new:
        new = new[: new.index(eos_token_id)]
    ids = [model.config.bos_token_id, *new[: max_length - 1]]
    logits = torch.cat(output.logits)[: len(ids)]
    return Answer(ids, logits, top2_margin(logits))


def top2_margin(logits: torch.Tensor) -> float:
    best = logits.topk(2, dim=-1).values
    return (best[..., 0] - best[..., 1]).min().item()


def cache_tokens(cache, layer: int, valid: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of a layer as (token, head, dim), samples one after another; `valid` (B, S) drops padding."""
    layers = cache.layers[layer]
    keys, values = layers.keys.transpose(1, 2), layers.values.transpose(1, 2)
    if valid is None:
        return keys.flatten(0, 1), values.flatten(0, 1)
    return keys[valid.bool()], values[valid.bool()]


def merged_places(cached: list[int], new: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference's packed order, sample by sample: cached tokens, then new ones. Places of both."""
    old_places, new_places, start = [], [], 0
    for old_length, new_length in zip(cached, new, strict=True):
        old_places += range(start, start + old_length)
        new_places += range(start + old_length, start + old_length + new_length)
        start += old_length + new_length
    return torch.tensor(old_places, dtype=torch.int64), torch.tensor(new_places, dtype=torch.int64)


# The reference's names of sampling arguments, and ours.
SAMPLING = {
    "cfg_text_scale": "guidance_scale",
    "cfg_img_scale": "image_guidance_scale",
    "cfg_interval": "cfg_interval",
    "cfg_renorm_type": "cfg_renorm_type",
    "cfg_renorm_min": "cfg_renorm_min",
    "timestep_shift": "timestep_shift",
}


def sampling_arguments(golden: Golden, pointer: str) -> dict:
    """The recorded sampling settings of a run, under our names. N time values make N - 1 updates."""
    arguments = {
        ours: golden.argument(JSON, f"{pointer}/{theirs}")
        for theirs, ours in SAMPLING.items()
        if golden.value(JSON, f"{pointer}/{theirs}") is not None
    }
    arguments["num_inference_steps"] = golden.argument(JSON, f"{pointer}/num_timesteps") - 1
    return arguments


def guided_steps(arguments: dict, timesteps: list[float]) -> list[bool]:
    """Whether each flow time lies in the guidance interval, by the package's rule."""
    settings = FlowSettings(**{**TASK_PRESETS["edit"], **arguments, "guidance_scale": 2.0})
    return [settings.guides(time) for time in timesteps]


@dataclass
class Flow:
    """One sampled image, under the reference's names.

    Attributes:
        tensors: `v_<step>` velocities, `x_<step>` states entering a step, raw branches `v_<step>_cond` and so on,
            `latent_grid`, `decoded`, `image`.
        timesteps: flow times of the updates.
        ids: thought with BOS in front, or None.
    """

    tensors: dict[str, torch.Tensor]
    timesteps: list[float]
    ids: list[int] | None = None


def sample(model, context: Context, size: tuple[int, int], **arguments) -> Flow:
    """Generate one image after a context, with every intermediate the reference recorded."""
    inputs = context.inputs()
    height, width = size
    steps = []

    def collect(_, step: int, time: float, values: dict):
        assert step == len(steps)
        steps.append(values)

    output = model.generate(
        **inputs,
        generation_mode="image",
        height=height,
        width=width,
        callback_on_step_end=collect,
        show_progress=False,
        return_dict_in_generate=True,
        **arguments,
    )
    return Flow(
        tensors=flow_tensors(model, steps, 0, output.latents[0], output.images[0], bool(context.latent_pixels)),
        timesteps=output.timesteps.tolist(),
        ids=None if output.text is None else [model.config.bos_token_id, *output.text[0]],
    )


def flow_tensors(
    model, steps: list[dict], index: int, latents: torch.Tensor, pixels: torch.Tensor, has_images: bool
) -> dict[str, torch.Tensor]:
    """The records of one image of a sampling run, from what the step callback was given."""
    cell = model.config.pixels_per_latent_token
    rows, columns = pixels.shape[1] // cell, pixels.shape[2] // cell
    grid = unpatchify_latents(latents, rows, columns, model.config.latent_patch_size)
    tensors = {"latent_grid": grid[None], "decoded": pixels[None], "image": to_uint8(pixels)}
    for step, values in enumerate(steps):
        tensors[f"v_{step}"] = values["velocity"][index]
        tensors[f"x_{step + 1}"] = values["latents"][index]
        tensors[f"v_{step}_cond"] = values["velocity_cond"][index]
        if values["velocity_text"] is not None:
            tensors[f"v_{step}_cfg_text"] = values["velocity_text"][index]
        if values["velocity_image"] is not None:
            tensors[f"v_{step}_cfg_img"] = values["velocity_image"][index]
        elif not has_images:
            # Without an image in the context this branch is the main one, and the sampler does not compute it again.
            tensors[f"v_{step}_cfg_img"] = values["velocity_cond"][index]
    return tensors


def noise_calls(model, pixels: list[torch.Tensor], sizes: list[tuple[int, int]]) -> list[list]:
    """The reference's draws of an image run: posterior noise of each picture, initial latents of each image."""
    config = model.config
    cell, downsample = config.pixels_per_latent_token, config.vae_config.downsample
    channels = config.vae_config.latent_channels
    posterior = [
        ["randn_like", [1, channels, picture.shape[1] // downsample, picture.shape[2] // downsample]] for picture in pixels
    ]
    initial = [["randn", [(height // cell) * (width // cell), config.latent_dim]] for height, width in sizes]
    return posterior + initial


def recorded_noise(golden: Golden, file: str, part: str, run: str) -> list[torch.Tensor]:
    """The draws of a run, which may be stored under another run's name."""
    owner = run
    while not golden.has_tensor(file, f"{owner}.noise_0"):
        pointer = f"/{part}/{owner}"
        found = [golden.argument(JSON, f"{pointer}/{key}") for key in ("noise_stored_under", "identical_to")]
        owner = next(name for name in found if name is not None)
    count = len(golden.value(JSON, f"/{part}/{run}/noise_calls"))
    return [golden.input(file, f"{owner}.noise_{index}") for index in range(count)]


def compare_noise(golden: Golden, file: str, part: str, run: str, calls: list[list]):
    """Compare what a run drew: shapes in order, and the values that its seed gives."""
    pointer = f"/{part}/{run}"
    golden.equal_all(JSON, pointer, {"noise_calls": calls})
    draws = draw(golden.argument(JSON, f"{pointer}/seed"), [shape for _, shape in calls])
    golden.compare_all(file, f"{run}.", {f"noise_{index}": noise for index, noise in enumerate(draws)})


def compare_schedule(golden: Golden, pointer: str, arguments: dict, timesteps: list[float]):
    """Compare the flow times of a run and the two guidance scales of each step."""
    golden.equal_all(JSON, pointer, {"timesteps": timesteps}, relative=TENSOR)
    guided = guided_steps(arguments, timesteps)
    scales = {
        f"{name}s": [arguments[SAMPLING[name]] if on else 1.0 for on in guided]
        for name in ("cfg_text_scale", "cfg_img_scale")
        if SAMPLING[name] in arguments
    }
    golden.equal_all(JSON, pointer, scales)


def our_name(name: str) -> str:
    """Our name of a weight of the reference."""
    if name.startswith("language_model.lm_head."):
        return name.removeprefix("language_model.")
    for theirs, ours in (("language_model.model.", "language_model."), ("vit_model.vision_model.", "vit_model.")):
        if name.startswith(theirs):
            return f"model.{ours}{name.removeprefix(theirs)}"
    return f"model.{name}"


def load_model(golden: Golden, freeze_und: bool = False):
    import json
    from safetensors.torch import load_file
    from unimedvl.modeling_unimedvl.configuration_unimedvl import UniMedVLConfig
    from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
    ck = golden.folder / "ckpt"
    llm = json.loads((ck / "llm_config.json").read_text()); vit = json.loads((ck / "vit_config.json").read_text())
    ae = json.loads((ck / "ae_params.json").read_text()); root = json.loads((ck / "config.json").read_text())
    sd = load_file(ck / "ema.safetensors")
    keep = lambda d, ks: {k: d[k] for k in ks}
    vit["num_hidden_layers"] = len({k.split(".")[4] for k in sd if ".encoder.layers." in k})
    st = golden.value(JSON, "/special_tokens")
    vae = dict(in_channels=3, out_channels=3, block_out_channels=[ae["ch"] * m for m in ae["ch_mult"]], layers_per_block=ae["num_res_blocks"], latent_channels=ae["z_channels"], scaling_factor=ae["scale_factor"], shift_factor=ae["shift_factor"])
    config = UniMedVLConfig(
        text_config=keep(llm, ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "rms_norm_eps", "rope_theta", "vocab_size", "max_position_embeddings"]) | {"freeze_und": freeze_und},
        vision_config=keep(vit, ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "layer_norm_eps", "patch_size", "image_size", "hidden_act"]),
        vae_config=vae,
        **keep(root, ["latent_patch_size", "max_latent_size", "vit_max_num_patch_per_side", "connector_act", "interpolate_pos", "timestep_shift"]),
        bos_token_id=st["bos_token_id"], eos_token_id=st["eos_token_id"], vision_start_token_id=st["start_of_image"], vision_end_token_id=st["end_of_image"], image_token_id=st["start_of_image"]+2, latent_token_id=st["start_of_image"]+3, pad_token_id=0,
    )
    model = UniMedVLForConditionalGeneration(config).eval()
    out = {our_name(k): v.float() for k, v in sd.items()}
    out |= {"model.vae." + k: v.float() for k, v in convert_ldm_vae_checkpoint(load_file(ck / "ae.safetensors"), model.model.vae.config).items()}
    missing, unexpected = model.load_state_dict(out, strict=False)
    assert not missing and not unexpected, (missing, unexpected)
    return model
