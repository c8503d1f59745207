"""UniMedVL as a diffusers pipeline: text to image, and image to image by instruction.

    pipe = DiffusionPipeline.from_pretrained(FOLDER_OR_HUB_ID, trust_remote_code=True)
    image = pipe("a chest X-ray", generator=torch.Generator().manual_seed(0)).images[0]
    prompt = "Convert this H&E section to HER2 IHC."
    stained = pipe(prompt, image=section, preset="virtual_staining").images[0]

The file lies in a saved pipeline three times. diffusers fetches of a component's folder no Python files but the one
that `model_index.json` names, unless the folder holds no weights. So `model/` holds the weights and their
configuration, and `processor/` all code of the model and the processor, and the presets of the tasks.

Shape legend: N images, T latent tokens of an image, L values of a latent token.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.hooks import CpuOffload
from diffusers import DiffusionPipeline, ImagePipelineOutput
from transformers import AutoProcessor, GenerationConfig, PreTrainedModel, ProcessorMixin
from transformers.dynamic_module_utils import get_class_from_dynamic_module

MODULE = "pipeline_unimedvl"  # the name of this file, in each of its places
MODEL_CLASS = "modeling_unimedvl.UniMedVLForConditionalGeneration"
MODEL_FILES = ("config.json", "model*.safetensors", "model.safetensors.index.json")
OUTPUT_TYPES = ("pil", "np", "pt", "latent")

# `f(pipeline, step, timestep, tensors) -> dict | None`, diffusers' own form.
StepCallback = Callable[[DiffusionPipeline, int, float, dict[str, Any]], dict[str, Any] | None]


# diffusers imports its classes when they are asked for, which hides their methods from type checkers.
if TYPE_CHECKING:
    _Pipeline = Any
else:
    _Pipeline = DiffusionPipeline


class UniMedVLPipeline(_Pipeline):
    """Text to image and image to image through diffusers' standard call, with the pixels of the model's `generate`.

    Research use only: not a medical device. The images are synthetic; who stores them says so (`unimedvl generate`
    writes it into its files).

    Args:
        model: a `UniMedVLForConditionalGeneration` with its generation half.
        processor: its `UniMedVLProcessor`.
    """

    model_cpu_offload_seq = "model"
    _callback_tensor_inputs = ("latents", "velocity")

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin):
        super().__init__()
        self.register_modules(model=model, processor=processor)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        image: Any = None,
        preset: str | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | list[torch.Tensor] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **options: Any,
    ) -> ImagePipelineOutput | tuple:
        """Make images.

        Args:
            prompt: one text or several.
            image: nothing; for one text an image, or a list of its input images; for a list of texts a list with the
                image, or the list of images, of each. Whatever the processor opens: PIL images, arrays, files.
            preset: settings of a task, see the checkpoint's `task_presets`; by default "edit" with images, else "t2i".
            height, width: pixels; by default those of the last input image, else the preset's.
            num_inference_steps, guidance_scale, image_guidance_scale: replace the preset's.
            num_images_per_prompt: images of each text, adjacent in the result.
            generator: one, or one for each image.
            latents: initial noise, (N, T, L) or a list of (T, L).
            output_type: "pil"; "np", float32 (N, H, W, 3) in [0, 1]; "pt", float (N, 3, H, W) in [0, 1]; or "latent",
                (N, T, L). Lists where sizes differ.
            return_dict: False for a tuple.
            callback_on_step_end: called with the pipeline, the step, the flow time and a dictionary of tensors after
                each step; the "latents" that it returns replace the state.
            callback_on_step_end_tensor_inputs: what is in the dictionary: "latents" and "velocity", (N, T, L).
            **options: further arguments of `generate` in image mode (`cfg_interval`, `think`, `vae_noise`, ...).

        Raises:
            ValueError: for unknown arguments, presets and output types, and for values out of range.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, not {output_type!r}.")
        unknown = [name for name in callback_on_step_end_tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs can name {', '.join(self._callback_tensor_inputs)}, not "
                f"{', '.join(unknown)}."
            )
        inputs = self.processor.apply_chat_template(
            conversations(prompt, image),
            generation_mode="image",
            split_special_tokens=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            think=bool(options.get("think", False)),
        )
        chosen = {
            "preset": preset,
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "image_guidance_scale": image_guidance_scale,
        }
        hook = getattr(self.model, "_hf_hook", None)
        if isinstance(hook, CpuOffload):
            # It waits for a call of `forward`, in whose place `generate` calls the parts of the model.
            hook.pre_forward(self.model)
        output = self.model.generate(
            **inputs.to(self._execution_device, dtype=self.model.dtype),
            **{name: value for name, value in chosen.items() if value is not None},
            **options,
            generation_mode="image",
            height=height,
            width=width,
            num_images_per_prompt=num_images_per_prompt,
            generator=generator,
            latents=latents,
            callback_on_step_end=self._callback(callback_on_step_end, callback_on_step_end_tensor_inputs),
            show_progress=not getattr(self, "_progress_bar_config", {}).get("disable", False),
            return_dict_in_generate=True,
        )
        images = self._finished(output, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _finished(self, output: Any, output_type: str) -> Any:
        """What `generate` returned, in the form that the caller wants."""
        if output_type == "latent":
            return stacked(output.latents)
        if output_type == "pil":
            return self.processor.post_process_multimodal_output(output.images, generation_mode="image")
        images: Any = stacked([(pixels.float() * 0.5 + 0.5).clamp(0, 1) for pixels in output.images])
        if output_type == "pt":
            return images
        if isinstance(images, torch.Tensor):
            return images.permute(0, 2, 3, 1).cpu().numpy()
        return [pixels.permute(1, 2, 0).cpu().numpy() for pixels in images]

    def _callback(self, callback: StepCallback | None, names: Sequence[str]) -> Callable | None:
        """diffusers' form of a callback as the one that `generate` calls."""
        if callback is None:
            return None

        def call(_: PreTrainedModel, step: int, timestep: float, values: dict[str, Any]) -> dict[str, Any] | None:
            changed = callback(self, step, timestep, {name: stacked(values[name]) for name in names}) or {}
            return {"latents": list(changed["latents"])} if "latents" in changed else None

        return call

    def save_config(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write `model_index.json`, and lay out the code where `from_pretrained` finds it.

        `save_pretrained` calls it when the parts are written.
        """
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)
        folder = Path(save_directory)
        index = json.loads((folder / self.config_name).read_text(encoding="utf-8"))
        index |= {
            "_class_name": [MODULE, type(self).__name__],
            "model": [MODULE, PipelineModel.__name__],
            "processor": [MODULE, PipelineProcessor.__name__],
        }
        index.pop("_name_or_path", None)  # a folder of this machine, perhaps
        (folder / self.config_name).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        kept = {path for pattern in MODEL_FILES for path in (folder / "model").glob(pattern)}
        for path in set((folder / "model").iterdir()) - kept:
            path.replace(folder / "processor" / path.name)
        for place in (folder, folder / "model", folder / "processor"):
            shutil.copyfile(__file__, place / f"{MODULE}.py")


def conversations(prompt: str | list[str], image: Any) -> list[list[dict[str, Any]]]:
    """The conversation of each text with its input images.

    Args:
        prompt, image: see `UniMedVLPipeline`.

    Raises:
        ValueError: for no text, and for another number of images than of texts.
    """
    if isinstance(prompt, str):
        prompts, images = [prompt], [image]
    else:
        prompts = list(prompt)
        images = [None] * len(prompts) if image is None else image
        if not isinstance(images, (list, tuple)) or len(images) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need a list of as many images, or of lists of images.")
    if not prompts or not all(isinstance(text, str) and text.strip() for text in prompts):
        raise ValueError("prompt must be a text or a list of texts, none of them empty.")
    turns = []
    for text, given in zip(prompts, images, strict=True):
        several = given if isinstance(given, (list, tuple)) else [] if given is None else [given]
        content = [{"type": "image", "image": one} for one in several] + [{"type": "text", "text": text}]
        turns.append([{"role": "user", "content": content}])
    return turns


def stacked(tensors: list[torch.Tensor] | None) -> torch.Tensor | list[torch.Tensor] | None:
    """One tensor where all have one shape, else the list."""
    if tensors is None or len({tensor.shape for tensor in tensors}) != 1:
        return tensors
    return torch.stack(list(tensors))


class PipelineModel(PreTrainedModel):
    """Stands in `model_index.json` for the model; loading it gives a `UniMedVLForConditionalGeneration`."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **options):
        """Load the weights of a pipeline's folder `model`, with the code and the presets beside it.

        Args:
            pretrained_model_name_or_path: the component's folder.
            **options: arguments of `PreTrainedModel.from_pretrained`. Pickles are never opened.
        """
        code = Path(pretrained_model_name_or_path).parent / "processor"
        # diffusers' way to build a model without weights first, which transformers does by itself.
        options.pop("low_cpu_mem_usage", None)
        options["use_safetensors"] = True
        model_class: Any = get_class_from_dynamic_module(MODEL_CLASS, str(code))
        model = model_class.from_pretrained(pretrained_model_name_or_path, *model_args, **options)
        model.generation_config = GenerationConfig.from_pretrained(code)
        return model


class PipelineProcessor(ProcessorMixin):
    """Stands in `model_index.json` for the processor; loading it gives a `UniMedVLProcessor`."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **options):
        """Load the processor of a pipeline's folder. Who opens the pipeline has agreed to run its code."""
        return AutoProcessor.from_pretrained(pretrained_model_name_or_path, trust_remote_code=True, **options)
