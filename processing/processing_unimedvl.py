"""Processor: conversations and images to model inputs, and model outputs back to text, images and masks."""

import re
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer, Qwen2Config
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import MultiModalData, ProcessorMixin
from transformers.utils import cached_file
from transformers.utils.chat_template_utils import render_jinja_template

from .call_arguments_unimedvl import IMAGE_SETTINGS, KNOWN_SETTINGS, flat_options, name_in_parent, once_only
from .chat_template_unimedvl import CHAT_TEMPLATE
from .conversations_unimedvl import conversations_with_images, is_text, plain_conversations
from .image_processing_unimedvl import GENERATION_MODES, UniMedVLImageProcessor, flatten_images, images_of_texts
from .outputs_unimedvl import are_images, class_maps_from_images, decoded, generated, images_from_pixels
from .replacements_unimedvl import replacements_of_texts
from .token_rows_unimedvl import check_placeholders, control_token_id, encoded_text, padded, span_masks, truncated

# Unicode non-characters, which enclose the texts of a conversation in safe mode. They never reach the tokenizer.
VERBATIM_START, VERBATIM_END = "\ufdd0", "\ufdd1"


class UniMedVLProcessor(ProcessorMixin):
    """An image processor and a Qwen2-family tokenizer as one processor.

    Token kinds in `mm_token_type_ids`: 0 text and markers, 1 ViT patch of an image (`image_token`), 2 VAE latent of an
    image (`latent_token`). An image is `<|vision_start|>`, its tokens, `<|vision_end|>`; in image and interleaved
    mode it enters twice, as latents, then as patches (UniMedVL section 3.3, after BAGEL).

    Args:
        image_processor: a `UniMedVLImageProcessor`; by default one with the reference's settings.
        tokenizer: any tokenizer that knows the Qwen2 control tokens named below. They are looked up, never added
            (that would change the size of the embedding table). Its padding side becomes left, as generation needs;
            set `processor.tokenizer.padding_side` or pass `padding_side` to change it.
        chat_template: a Jinja template; by default the one without role words that the model was trained with.

    Raises:
        ValueError: if the tokenizer is missing or does not know a control token.
    """

    _auto_class = "AutoProcessor"
    return_mm_token_type_ids = True
    bos_token, eos_token = "<|im_start|>", "<|im_end|>"
    vision_start_token, vision_end_token = "<|vision_start|>", "<|vision_end|>"
    image_token, latent_token = "<|image_pad|>", "<|vision_pad|>"

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
        image_processor = UniMedVLImageProcessor() if image_processor is None else image_processor
        if tokenizer is None:
            raise ValueError("UniMedVLProcessor needs a tokenizer: pass AutoTokenizer.from_pretrained(directory).")
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)
        self.bos_token_id = control_token_id(tokenizer, self.bos_token)
        self.eos_token_id = control_token_id(tokenizer, self.eos_token)
        self.vision_start_token_id = control_token_id(tokenizer, self.vision_start_token)
        self.vision_end_token_id = control_token_id(tokenizer, self.vision_end_token)
        self.image_token_id = control_token_id(tokenizer, self.image_token)
        self.latent_token_id = control_token_id(tokenizer, self.latent_token)
        if tokenizer.pad_token_id is None:
            known = tokenizer.convert_tokens_to_ids("<|endoftext|>") not in (None, tokenizer.unk_token_id)
            tokenizer.pad_token = "<|endoftext|>" if known else self.eos_token
        tokenizer.padding_side = "left"

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        """Load the parts for `from_pretrained`, whose hook this is.

        The image processor is this code's own class and the tokenizer one of transformers', so unlike loading by auto
        class it needs no trust in code of the repository. Where only a tokenizer is found the image processor gets
        the reference's settings.
        """
        own = {name: value for name, value in kwargs.items() if name != "trust_remote_code"}
        has_settings = processor_dict or cached_file(
            pretrained_model_name_or_path,
            "preprocessor_config.json",
            _raise_exceptions_for_missing_entries=False,
            **own,
        )
        image_processor = (
            UniMedVLImageProcessor.from_pretrained(pretrained_model_name_or_path, **own)
            if has_settings
            else UniMedVLImageProcessor()
        )
        # Without a config AutoTokenizer reads the model's, whose auto_map asks for that trust.
        tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, config=Qwen2Config(), **own)
        return [image_processor, tokenizer]

    @property
    def model_input_names(self) -> list[str]:
        """Every key `__call__` may return for the model's `forward`."""
        return ["input_ids", "attention_mask", "mm_token_type_ids", *self.image_processor.model_input_names]

    # ------------------------------------------------------------------------------------------------- to the model

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        videos: None = None,
        audio: None = None,
        generation_mode: str | None = None,
        allow_url: bool = False,
        verbatim_marks: bool = False,
        **kwargs,
    ) -> BatchFeature:
        """Make the model inputs of rendered prompts (B texts) and their images.

        Args:
            images: flat, or one list per text; anything `open_image` reads.
            text: prompts as `apply_chat_template(..., tokenize=False)` renders them, one `<|image_pad|>` per image,
                and in image and interleaved mode one `<|vision_pad|>` before it. Other text is tokenized as it is.
            videos, audio: refused.
            generation_mode: "text", "image" or "interleaved"; by default read off the placeholders.
            allow_url: fetch images given as http(s) URLs. Refused by default.
            verbatim_marks: set by `apply_chat_template`, whose safe mode marks the parts of `text` not to parse.
            **kwargs: as for tokenizers `padding` (True by default where tensors are returned), `padding_side`,
                `truncation`, `max_length`, `pad_to_multiple_of` and `return_tensors` ("pt", "np" or None for unpadded
                lists); `split_special_tokens` tokenizes control tokens in `text` as plain characters.
                `return_text_replacement_offsets` adds what `replacements_of_texts` returns. Settings of the
                image processor hold for this call. `text_kwargs`, `images_kwargs` and `common_kwargs` may group them.

        Returns:
            `input_ids`, `attention_mask` and `mm_token_type_ids`, int64 (B, S), and with images what the image
            processor returns (tensors also where `return_tensors` is None).

        Raises:
            ValueError: if placeholders and images do not match, or an argument is wrong.
        """
        if videos is not None or audio is not None:
            raise ValueError("UniMedVL reads text and images only: leave videos and audio out.")
        options = flat_options(kwargs, self.tokenizer.init_kwargs)
        texts = [text] if isinstance(text, str) else list(text or [])
        if not texts or not all(map(is_text, texts)):
            raise ValueError("text must be a non-empty string in UTF-8 or a list: render it with apply_chat_template.")

        marks = (VERBATIM_START, VERBATIM_END) if verbatim_marks else None
        control_ids = self._image_ids | {self.bos_token_id, self.eos_token_id}
        verbatim = options.get("split_special_tokens", False)
        encoded = [encoded_text(self.tokenizer, entry, verbatim, marks, control_ids) for entry in texts]
        counts = [ids.count(self.image_token_id) for ids, _ in encoded]
        images_per_text = images_of_texts(images, counts, self.image_token)
        has_latents = any(self.latent_token_id in ids for ids, _ in encoded)
        if generation_mode is None:
            generation_mode = "image" if has_latents else "text"
        if generation_mode not in GENERATION_MODES:
            raise ValueError(f"generation_mode={generation_mode!r}: choose one of {', '.join(GENERATION_MODES)}.")
        for ids, _ in encoded:
            check_placeholders(ids, generation_mode, self.latent_token_id, self.image_token_id, self.tokenizer)

        pixel_inputs = self.image_processor(
            images_per_text,
            generation_mode=generation_mode,
            allow_url=allow_url,
            return_tensors=options.get("return_tensors") or "pt",
            **{name: options[name] for name in IMAGE_SETTINGS if options.get(name) is not None},
        )
        rows = self._expanded_rows(encoded, pixel_inputs, options)
        return_tensors = options.get("return_tensors")
        data: dict[str, Any] = dict(padded(rows, self.tokenizer, options))
        if return_tensors is not None:
            to_tensor = torch.tensor if return_tensors == "pt" else np.array
            data = {key: value if key == "offset_mapping" else to_tensor(value) for key, value in data.items()}
        if not options.get("return_offsets_mapping"):
            del data["offset_mapping"]
        if options.get("return_text_replacement_offsets"):
            data["text_replacement_offsets"] = replacements_of_texts(texts, rows)
        return BatchFeature({**data, **pixel_inputs})

    def apply_chat_template(
        self,
        conversation: list,
        chat_template: str | None = None,
        tools: list | None = None,
        documents: list | None = None,
        generation_mode: str | None = None,
        think: bool = False,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_assistant_tokens_mask: bool = False,
        tokenize: bool = False,
        return_tensors: str | None = None,
        return_dict: bool = False,
        split_special_tokens: bool = False,
        sanitize_control_tokens: bool = False,
        allow_url: bool = False,
        processor_kwargs: dict | None = None,
        **kwargs,
    ) -> str | list[str] | BatchFeature | Any:
        """Render a conversation (or a batch of them) and, with `tokenize=True, return_dict=True`, make model inputs.

        Args:
            conversation: messages `{"role": "system" | "user" | "assistant", "content": str or list of items}`; an
                item is `{"type": "text", "text": str}` or `{"type": "image", "image": image}` where the image is
                anything `open_image` reads (keys "path", "base64" and, with `allow_url`, "url" work too). An image
                item may also hold the fields of a `View`. Image items without an image take the next of `images`.
            chat_template: a template, or the name of one of the processor's.
            tools, documents: variables of the template; the package's own ignores them.
            generation_mode: "text" (default), "image" or "interleaved": decides how images enter.
            think: begin with the reference's thinking instruction (to reason in text mode, else to plan).
            add_generation_prompt: begin the model's turn; in text mode only.
            continue_final_message: let the model continue the last text instead of beginning a turn.
            return_assistant_tokens_mask: add `assistant_masks` (B, S), 1 on what an answering model has to produce:
                the tokens of assistant texts and the end token after each.
            tokenize, return_tensors, return_dict: see the returned value and `__call__`.
            split_special_tokens: control tokens written in the texts stay plain characters. Off by default, as in the
                reference, which parses them. `sanitize_control_tokens` is transformers' name for it.
            allow_url: fetch images given as http(s) URLs. Refused by default.
            processor_kwargs: `images` and arguments of `__call__`.
            **kwargs: the same; others are variables of the chat template, if it is not the package's own.

        Returns:
            The text (a list for a batch); with `tokenize`, the `input_ids` or, with `return_dict`, what `__call__`
            returns.

        Raises:
            ValueError: for malformed conversations and wrong arguments.
        """
        template = self._chosen_template(chat_template)
        passed_on = once_only(processor_kwargs or {}, kwargs, return_tensors=return_tensors)
        images = flatten_images(passed_on.pop("images", kwargs.pop("images", None)))
        # Pipelines reach only processor_kwargs.
        generation_mode = passed_on.pop("generation_mode", generation_mode) or "text"
        allow_url = passed_on.pop("allow_url", allow_url)
        # Misspelled arguments would otherwise pass for variables of the template.
        passed_on |= {
            name: kwargs.pop(name) for name in list(kwargs) if name in KNOWN_SETTINGS or template == CHAT_TEMPLATE
        }
        options = flat_options(passed_on)
        if return_tensors not in (None, "auto"):
            options["return_tensors"] = return_tensors
        safe = options.pop("split_special_tokens", False) or split_special_tokens or sanitize_control_tokens
        if generation_mode not in GENERATION_MODES:
            raise ValueError(f"generation_mode={generation_mode!r}: choose one of {', '.join(GENERATION_MODES)}.")
        if continue_final_message and (add_generation_prompt or return_assistant_tokens_mask):
            raise ValueError(
                "continue_final_message, add_generation_prompt and return_assistant_tokens_mask: pass continue alone."
            )
        if return_assistant_tokens_mask and not (tokenize and return_dict):
            raise ValueError("return_assistant_tokens_mask needs tokenize=True and return_dict=True.")

        conversations, is_batch = plain_conversations(conversation, VERBATIM_START, VERBATIM_END, mark=safe)
        rendering: Any = render_jinja_template(
            conversations=conversations,
            tools=tools,
            documents=documents,
            chat_template=template,
            return_assistant_tokens_mask=return_assistant_tokens_mask,
            continue_final_message=continue_final_message,
            add_generation_prompt=add_generation_prompt,
            **{**self.tokenizer.special_tokens_map, **kwargs, "generation_mode": generation_mode, "think": think},
        )
        rendered, answer_spans = rendering
        if not tokenize:
            texts = [re.sub(f"[{VERBATIM_START}{VERBATIM_END}]", "", text) for text in rendered]
            return texts if is_batch else texts[0]
        if return_assistant_tokens_mask:
            options["return_offsets_mapping"] = True
        inputs = self(
            images=conversations_with_images(
                conversation,
                images,
                allow_url,
                options.get("max_image_pixels") or self.image_processor.max_image_pixels,
            ),
            text=rendered,
            generation_mode=generation_mode,
            verbatim_marks=safe,
            **options,
        )
        if return_assistant_tokens_mask:
            masks = span_masks(answer_spans, inputs.pop("offset_mapping"))
            like = inputs["input_ids"]
            is_tensor, is_array = isinstance(like, torch.Tensor), isinstance(like, np.ndarray)
            inputs["assistant_masks"] = torch.tensor(masks) if is_tensor else np.array(masks) if is_array else masks
        return inputs if return_dict else inputs["input_ids"]

    def _chosen_template(self, chat_template: str | None) -> str:
        templates = self.chat_template if isinstance(self.chat_template, dict) else {"default": self.chat_template}
        return templates.get(chat_template or "default", chat_template) or CHAT_TEMPLATE

    def _get_num_multimodal_tokens(self, image_sizes: list[tuple[int, int]] | None = None, **kwargs) -> MultiModalData:
        """Count the tokens of images (height, width) in text mode, for engines that plan before they read them."""
        settings = {name: kwargs[name] for name in IMAGE_SETTINGS if kwargs.get(name) is not None}
        grids = [self.image_processor.patch_grid(height, width, **settings) for height, width in image_sizes or []]
        counts = [rows * columns for rows, columns in grids]
        return MultiModalData(num_image_tokens=counts, num_image_patches=counts)

    @property
    def _image_ids(self) -> set[int]:
        return {self.vision_start_token_id, self.vision_end_token_id, self.image_token_id, self.latent_token_id}

    def _expanded_rows(
        self, encoded: list[tuple[list[int], list[tuple]]], pixel_inputs: BatchFeature, options: dict[str, Any]
    ) -> list[dict[str, list]]:
        """Rows with every placeholder repeated for the tokens of its image, and truncated if asked to."""
        grids = pixel_inputs.get("image_grid_thw", [])
        patch_counts = iter([int(rows) * int(columns) for _, rows, columns in grids])
        stride = (options.get("vae_transform") or self.image_processor.vae_transform)["image_stride"]
        sizes = pixel_inputs.get("latent_image_sizes", [])
        latent_counts = iter([int(height) // stride * (int(width) // stride) for height, width in sizes])
        rows = []
        for ids, offsets in encoded:
            row: dict[str, list] = {"input_ids": [], "mm_token_type_ids": [], "offset_mapping": []}
            for token, offset in zip(ids, offsets, strict=True):
                kind = 1 if token == self.image_token_id else 2 if token == self.latent_token_id else 0
                count = next(patch_counts) if kind == 1 else next(latent_counts) if kind == 2 else 1
                row["input_ids"] += [token] * count
                row["mm_token_type_ids"] += [kind] * count
                row["offset_mapping"] += [offset] * count
            rows.append(
                truncated(row, self._image_ids, options.get("max_length"), self.tokenizer)
                if options.get("truncation") not in (None, False, "do_not_truncate")
                else row
            )
        return rows

    # ----------------------------------------------------------------------------------------------- from the model

    def post_process_multimodal_output(
        self,
        generated_outputs: Any,
        skip_special_tokens: bool = True,
        generation_mode: str | None = "text",
        **kwargs,
    ) -> list:
        """Convert what `generate` returned to texts and PIL images.

        Args:
            generated_outputs: generate's output object, or in mode "text" (or None) ids (B, S), (S,) or a list of
                them; in mode "image" float pixels (N, 3, H, W), (3, H, W) or a list of (3, H, W) in [-1, 1]; in mode
                "interleaved" segments in order (str, id tensors, pixel tensors), or a list of such lists for a batch.
            skip_special_tokens: leave control tokens out of texts.
            generation_mode: the mode of the call of `generate`.
            **kwargs: arguments of the tokenizer's decoding.

        Returns:
            A list of str, of PIL images (levels `(x * 0.5 + 0.5).clamp(0, 1) * 255` truncated, as in the reference),
            or of both in order.

        Raises:
            ValueError: for outputs of another mode.
        """
        if generation_mode in (None, "text"):
            ids = generated(generated_outputs, "sequences")
            return decoded(self.tokenizer, ids, skip_special_tokens=skip_special_tokens, **kwargs)
        if generation_mode == "image":
            return images_from_pixels(generated(generated_outputs, "images"))
        if generation_mode != "interleaved":
            raise ValueError(f"generation_mode={generation_mode!r}: choose one of {', '.join(GENERATION_MODES)}.")
        results: list = []
        for segment in generated(generated_outputs, "segments"):
            if isinstance(segment, list | tuple) and not all(isinstance(token, int) for token in segment):
                results.append(
                    self.post_process_multimodal_output(segment, skip_special_tokens, generation_mode, **kwargs)
                )
            elif isinstance(segment, str | Image.Image):
                results.append(segment)
            elif isinstance(segment, torch.Tensor) and segment.is_floating_point():
                results += images_from_pixels(segment)
            else:
                results += decoded(self.tokenizer, segment, skip_special_tokens=skip_special_tokens, **kwargs)
        return results

    def post_process_masks(
        self,
        images: Any,
        num_classes: int = 1,
        palette: list | None = None,
        size: tuple[int, int] | list[tuple[int, int]] | None = None,
    ) -> list[torch.Tensor]:
        """Read generated masks as class maps.

        The image is taken to uint8 as in `post_process_multimodal_output`. Without a palette the level of
        a pixel is the mean of its channels, class k of K = `num_classes` owns the level round(255 * k / K), and a
        pixel belongs to the class with the nearest level, the lower one in a tie. For one class that is a threshold at
        one half. With a `palette`, a list of (R, G, B) in 0..255 whose first entry is the background, a pixel belongs
        to the nearest color (Euclidean), the earlier one in a tie.

        Args:
            images: what `post_process_multimodal_output` takes in image mode, or PIL images.
            num_classes: K, the number of classes besides background, 1 to 255; ignored with a palette.
            palette: 2 to 256 colors, the background first.
            size: (height, width) of the result in pixels, or one per image; resized by nearest neighbor.

        Returns:
            A class map for each image, int64 (H, W): 0 is background, 1..K the classes.

        Raises:
            ValueError: for an argument out of range.
        """
        shown = images if are_images(images) else images_from_pixels(generated(images, "images"))
        return class_maps_from_images(shown, num_classes, palette, size)


name_in_parent(__name__)
