"""A checkpoint at work for the demonstration page: it answers, draws and edits, and every result is judged."""

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image

from ..checkpoint.loading import Loaded
from ..checkpoint.provenance import save_generated_image
from ..evaluation.metrics.answers import is_right, kind_of
from ..evaluation.metrics.images import psnr, ssim
from ..evaluation.metrics.masks import dice
from ..hub_cards.demo_images import BRAIN, CT, FUNDUS, PackageImage, Question, disc_mask, fluid_levels
from ..modeling_unimedvl.flow_unimedvl import TASK_PRESETS
from ..processing.image_processing_unimedvl import resize_image
from ..unimed5m.pages import data_address
from ..unimed5m.task_images import lower_resolution
from ..utils.digests import hash_file

# What is drawn of each modality, in plain words that the records of the nano hold.
PROMPTS = {
    "CFP": "a fundus photograph",
    "OCT": "an OCT image",
    "CXR": "a chest X-ray",
    "CT": "a CT image",
    "MRI": "an MRI image",
    "US": "an ultrasound image",
    "ENDO": "an endoscopy image",
    "HIS": "a microscopy image",
}
DRAWINGS = 3
ANSWER_TOKENS = 24
SUPER_RESOLUTION = 4
# Overlap with the true mask from which a structure counts as found.
FOUND_DICE = 0.5
# Gray level of fluid, as a share of that of tissue, below which it counts as dark.
DARK_SHARE = 0.75
# Longer side in pixels of what the page shows of a real image.
SHOWN_SIDE = 320


@dataclass(frozen=True)
class Figure:
    """An image of the page: caption, pixels, the `data:` URL of its PNG file, and words for who does not see it."""

    caption: str
    image: Image.Image
    address: str
    alt: str
    synthetic: bool = False


@dataclass(frozen=True)
class Answer:
    """A question, what the model answered, and whether that is the truth."""

    question: str
    answer: str
    truth: str
    right: bool


@dataclass(frozen=True)
class Edit:
    """An edit of an image: the request, the images before and after, and whether it did what was asked."""

    title: str
    prompt: str
    figures: tuple[Figure, ...]
    verdict: str
    succeeded: bool


def real_figure(shown: PackageImage, image: Image.Image, caption: str) -> Figure:
    """An image of a package, or what was made of it without a model, on the page."""
    small = image.copy()
    small.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return Figure(caption, image, data_address(buffer.getvalue()), f"{shown.name} ({shown.package}): {caption}")


def judge_mask(made: Image.Image, truth: Image.Image) -> tuple[str, bool]:
    """Whether a mask overlaps the true one enough, in words and as a fact."""
    overlap = dice(made, truth)
    found = overlap >= FOUND_DICE
    return f"Dice {overlap:.2f}, {'found' if found else 'missed'} (found: {FOUND_DICE} or more)", found


def judge_sharpness(made: Image.Image, bicubic: Image.Image, truth: Image.Image) -> tuple[str, bool]:
    """Whether an image is closer to the truth than bicubic interpolation in SSIM and PSNR, in words and as a fact."""
    likeness, likeness_of_bicubic = (ssim(image, truth) for image in (made, bicubic))
    ratio, ratio_of_bicubic = (psnr(image, truth) or math.inf for image in (made, bicubic))
    better = likeness > likeness_of_bicubic and ratio > ratio_of_bicubic
    words = (
        f"SSIM {likeness:.3f}, bicubic {likeness_of_bicubic:.3f}; PSNR {ratio:.1f} dB, bicubic "
        f"{ratio_of_bicubic:.1f} dB: {'better' if better else 'not better'} than bicubic in both"
    )
    return words, better


def judge_fluid(before: Image.Image, after: Image.Image) -> tuple[str, bool]:
    """Whether the fluid of a T2 image is dark in its translation to FLAIR, in words and as a fact."""
    fluid, tissue = fluid_levels(before, after)
    dark = fluid < DARK_SHARE * tissue
    words = (
        f"no FLAIR of this brain exists; fluid has to become dark, below {DARK_SHARE} of the gray level of tissue: "
        f"{fluid:.0f} against {tissue:.0f}, {'dark' if dark else 'not dark'}"
    )
    return words, dark


class Demonstration:
    """A loaded checkpoint that answers, draws and edits, and keeps what it makes in a folder.

    Args:
        loaded: the checkpoint, its processor and its name.
        folder: an existing folder for generated images.
        seed: of the first image of every request; further ones count up.

    Attributes:
        settings: of the sampler, by preset, for every preset that was used.
    """

    def __init__(self, loaded: Loaded, folder: Path, seed: int):
        self.model, self.processor, self.checkpoint = loaded
        self.folder, self.seed = folder, seed
        self.settings: dict[str, dict[str, Any]] = {}

    def answers(self, questions: tuple[Question, ...], image: Image.Image) -> list[Answer]:
        """Greedy answers to questions about one image, each right where it holds the truth (`metrics.answers`)."""
        inputs = self._inputs([(question.text, image) for question in questions], "text")
        ids = self.model.generate(**inputs, max_new_tokens=ANSWER_TOKENS, do_sample=False)
        texts = self.processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        found = []
        for question, text in zip(questions, texts, strict=True):
            right = is_right(text, question.truth, kind_of(question.truth), rule="contains")
            found.append(Answer(question.text, text.strip(), question.truth, right))
        return found

    def drawings(self, modality: str) -> list[Figure]:
        """`DRAWINGS` images of one modality, from words."""
        prompt = PROMPTS[modality]
        made = self._made(prompt, None, "t2i", DRAWINGS)
        return [
            self._kept(
                image,
                f"{modality.lower()}-{number}",
                f"{prompt}, {number} of {DRAWINGS}",
                f"seed {self.seed + number - 1}",
                preset="t2i",
                prompt=prompt,
                seed=self.seed + number - 1,
            )
            for number, image in enumerate(made, start=1)
        ]

    def edits(self) -> list[Edit]:
        """One segmentation, one super-resolution and one translation."""
        return [self._segmentation(), self._super_resolution(), self._translation()]

    def _segmentation(self) -> Edit:
        image, prompt = FUNDUS.open(), "Mark the optic disc in the image."
        made = self._edited(prompt, image, "segmentation", FUNDUS)
        outlined = Image.fromarray(disc_mask(made.image.size).astype(numpy.uint8) * 255)
        figures = (
            real_figure(FUNDUS, image, "before"),
            made,
            real_figure(FUNDUS, outlined, "truth: the disc, outlined by eye"),
        )
        return Edit("Segmentation of the optic disc", prompt, figures, *judge_mask(made.image, outlined))

    def _super_resolution(self) -> Edit:
        """A CT at the size that the checkpoint makes, from one sample in 4 x 4."""
        truth = resize_image(CT.open(), self.processor.image_processor.vae_transform)
        bicubic = Image.fromarray(lower_resolution(numpy.asarray(truth), SUPER_RESOLUTION, "bicubic"))
        prompt = f"Perform super-resolution, factor {SUPER_RESOLUTION}."
        made = self._edited(prompt, bicubic, "super_resolution", CT)
        figures = (
            real_figure(CT, bicubic, "before: coarse, interpolated (bicubic)"),
            made,
            real_figure(CT, truth, "truth"),
        )
        title = f"{SUPER_RESOLUTION}x super-resolution"
        return Edit(title, prompt, figures, *judge_sharpness(made.image, bicubic, truth))

    def _translation(self) -> Edit:
        image, prompt = BRAIN.open(), "Translate this T2 image into FLAIR."
        made = self._edited(prompt, image, "cross_modal", BRAIN)
        figures = (real_figure(BRAIN, image, "before"), made)
        return Edit("Translation of T2 to FLAIR", prompt, figures, *judge_fluid(image, made.image))

    def _inputs(self, rows: list[tuple[str, Image.Image | None]], generation_mode: str) -> Any:
        """Model inputs of one user turn per row: a text, after an image where there is one."""
        conversations = []
        for text, image in rows:
            content: list[dict[str, Any]] = [] if image is None else [{"type": "image", "image": image}]
            conversations.append([{"role": "user", "content": [*content, {"type": "text", "text": text}]}])
        inputs: Any = self.processor.apply_chat_template(
            conversations,
            generation_mode=generation_mode,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        return inputs.to(self.model.device, dtype=self.model.dtype)

    def _made(self, prompt: str, image: Image.Image | None, preset: str, count: int = 1) -> list[Image.Image]:
        presets = getattr(self.model.generation_config, "task_presets", None) or TASK_PRESETS
        # `generate` refuses a preset that is not there.
        self.settings[preset] = dict(presets.get(preset, {}))
        pixels = self.model.generate(
            **self._inputs([(prompt, image)], "image"),
            generation_mode="image",
            preset=preset,
            num_images_per_prompt=count,
            generator=[torch.Generator().manual_seed(self.seed + number) for number in range(count)],
            show_progress=False,
        )
        return self.processor.post_process_multimodal_output(pixels, generation_mode="image")

    def _edited(self, prompt: str, image: Image.Image, preset: str, shown: PackageImage) -> Figure:
        """What the model makes of an image of a package."""
        (made,) = self._made(prompt, image, preset)
        hashes = [hash_file(shown.path())]
        what = f"{preset.replace('_', ' ')} of the {shown.name}"
        name = preset.replace("_", "-")
        return self._kept(made, name, what, "after", preset=preset, prompt=prompt, seed=self.seed, input_hashes=hashes)

    def _kept(self, image: Image.Image, name: str, what: str, caption: str, *, preset: str, **fields: Any) -> Figure:
        """Write a generated image with its record; the page carries the bytes of that file."""
        path = self.folder / f"generated-{name}.png"
        settings = {"preset": preset, **self.settings[preset]}
        fields |= {"model": self.checkpoint.name, "revision": self.checkpoint.revision, "settings": settings}
        save_generated_image(image, path, overwrite=True, keep_prompt=True, **fields)
        return Figure(caption, image, data_address(path.read_bytes()), f"synthetic image: {what}", synthetic=True)
