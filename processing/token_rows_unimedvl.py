"""Rows of token ids: control tokens, parts not to be parsed, truncation and padding."""

import re
from collections.abc import Iterator
from typing import Any


def control_token_id(tokenizer: Any, token: str) -> int:
    """Look up the id of a control token.

    Raises:
        ValueError: unless the tokenizer parses the token as one.
    """
    token_id = tokenizer.convert_tokens_to_ids(token)
    if token_id is None or token_id == tokenizer.unk_token_id or token not in tokenizer.get_added_vocab():
        raise ValueError(
            f"The tokenizer does not know {token}: use a Qwen2 or Qwen2.5 tokenizer, which has it. (It is not added, "
            "because that would change the size of the embeddings.)"
        )
    return token_id


def marked_parts(text: str, start_mark: str, end_mark: str) -> Iterator[tuple[str, int, bool]]:
    """(part, its start in `text`, verbatim) of a prompt whose verbatim parts are enclosed in the two marks.

    Raises:
        ValueError: if the marks are not in pairs: then a template has cut a text apart, and which of its parts are a
            user's is unknown.
    """
    position, verbatim = 0, False
    for mark in [*re.finditer(f"[{start_mark}{end_mark}]", text), None]:
        if verbatim != (mark is not None and mark.group() == end_mark):
            raise ValueError("The chat template cuts texts apart, which split_special_tokens can not allow: use ours.")
        end = len(text) if mark is None else mark.start()
        if end > position:
            yield text[position:end], position, verbatim
        position, verbatim = end + 1, not verbatim


def encoded_text(
    tokenizer: Any, text: str, split_special_tokens: bool, marks: tuple[str, str] | None, control_ids: set[int]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokenize a prompt, of which marked parts, or all of it, are not parsed for control tokens.

    Args:
        tokenizer: a fast one.
        text: the prompt.
        split_special_tokens: tokenize control tokens as plain characters wherever no marks are given.
        marks: enclose the parts that are not parsed.
        control_ids: ids that must not come of such a part.

    Returns:
        Token ids, and the span of characters in `text` of each.

    Raises:
        ValueError: if the tokenizer parses control tokens in any text, or if the marks are not in pairs.
    """
    parts = [(text, 0, split_special_tokens)] if marks is None else marked_parts(text, *marks)
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    for part, start, verbatim in parts:
        encoding = tokenizer(
            part,
            add_special_tokens=False,
            padding=False,
            split_special_tokens=verbatim,
            return_attention_mask=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        if verbatim and control_ids & set(encoding["input_ids"]):
            raise ValueError("The tokenizer parses its control tokens in any text: mark them special=True in it.")
        ids += encoding["input_ids"]
        offsets += [(start + begin, start + end) for begin, end in encoding["offset_mapping"]]
    return ids, offsets


def check_placeholders(row: list[int], generation_mode: str, latent_id: int, image_id: int, tokenizer: Any) -> None:
    """Raise ValueError unless the image placeholders of a row of ids are those of the mode, before they are repeated.

    Args:
        row: ids of one prompt.
        generation_mode: "text" knows no latents; in "image" and "interleaved" a latent precedes each image.
        latent_id, image_id: the two placeholders.
        tokenizer: names them in the message.
    """
    order = [token for token in row if token in (latent_id, image_id)]
    latent, image = (tokenizer.convert_ids_to_tokens(token_id) for token_id in (latent_id, image_id))
    if generation_mode == "text" and latent_id in order:
        raise ValueError(
            f"The text holds {latent}, which represents a VAE image: remove it, or pass generation_mode='image'."
        )
    if generation_mode != "text" and order != [latent_id, image_id] * (len(order) // 2):
        raise ValueError(
            f"In {generation_mode} mode each image needs {latent} and then {image}: render the text with "
            f"apply_chat_template(generation_mode={generation_mode!r})."
        )


def span_masks(spans: list[list[tuple[int, int]]], offsets: list[list[tuple[int, int]]]) -> list[list[int]]:
    """Mark the tokens of each row that overlap one of its spans; both are (start, end) in characters of its text.

    Returns:
        1 for a token that overlaps a span, else 0.
    """
    return [
        [int(any(start < span[1] and end > span[0] for span in row_spans)) for start, end in row_offsets]
        for row_spans, row_offsets in zip(spans, offsets, strict=True)
    ]


def truncated(row: dict[str, list], image_ids: set[int], max_length: int | None, tokenizer: Any) -> dict[str, list]:
    """The row cut to `max_length` (or the tokenizer's own limit) on the tokenizer's truncation side.

    Args:
        row: columns of equal length by name, `input_ids` among them.
        image_ids: ids of placeholders and markers of images.
        max_length: limit in tokens.
        tokenizer: gives the side and the default limit.

    Raises:
        ValueError: if that would remove any part of an image.
    """
    limit = max_length or tokenizer.model_max_length
    excess = len(row["input_ids"]) - limit
    if excess <= 0:
        return row
    from_left = tokenizer.truncation_side == "left"
    if image_ids & set(row["input_ids"][:excess] if from_left else row["input_ids"][-excess:]):
        raise ValueError(
            f"Truncation from {len(row['input_ids'])} to {limit} tokens would cut an image: raise max_length, or "
            "lower max_image_size of the transforms."
        )
    return {key: values[excess:] if from_left else values[:-excess] for key, values in row.items()}


def padded(rows: list[dict[str, list]], tokenizer: Any, options: dict[str, Any]) -> dict[str, list]:
    """Columns of the rows, padded as the options of `__call__` say, with their attention_mask.

    Args:
        rows: `input_ids`, `mm_token_type_ids` and `offset_mapping` of each text.
        tokenizer: pads.
        options: arguments of `__call__`; `padding` None means True where tensors are wanted.

    Raises:
        ValueError: for options that do not fit.
    """
    as_tensors = options.get("return_tensors") is not None
    padding, side = options.get("padding"), options.get("padding_side")
    padding = as_tensors if padding is None else padding
    if padding not in (True, False, "longest", "max_length", "do_not_pad"):
        raise ValueError(f"padding={padding!r}: choose True, False, 'longest' or 'max_length'.")
    if side not in (None, "left", "right"):
        raise ValueError(f"padding_side={side!r}: choose 'left' or 'right'.")
    lengths = [len(row["input_ids"]) for row in rows]
    if padding in (False, "do_not_pad") and as_tensors and len(set(lengths)) > 1:
        raise ValueError(f"Texts of {lengths} tokens do not make one tensor: pass padding=True.")
    max_length = options.get("max_length")
    columns = tokenizer.pad(
        {"input_ids": [row["input_ids"] for row in rows]},
        padding=padding,
        padding_side=side,
        max_length=max(*lengths, max_length or tokenizer.model_max_length) if padding == "max_length" else None,
        pad_to_multiple_of=options.get("pad_to_multiple_of"),
        return_attention_mask=True,
        verbose=False,
    ).data
    # Columns that `tokenizer.pad` does not know.
    for name, filler in (("mm_token_type_ids", 0), ("offset_mapping", (0, 0))):
        columns[name] = []
        for row, mask in zip(rows, columns["attention_mask"], strict=True):
            values = iter(row[name])
            columns[name].append([next(values) if kept else filler for kept in mask])
    return columns
