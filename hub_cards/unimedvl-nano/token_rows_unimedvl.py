"""Rows of token ids: control tokens, parts not to be parsed, truncation and padding."""

import re
from collections.abc import Iterator
from typing import Any


def control_token_id(tokenizer: Any, token: str) -> int:
    """Id of a control token. Raises ValueError unless the tokenizer parses the token as one."""
    token_id = tokenizer.convert_tokens_to_ids(token)
    if token_id is None or token_id == tokenizer.unk_token_id or token not in tokenizer.get_added_vocab():
        raise ValueError(
            f"The tokenizer does not know {token}: use a Qwen2 or Qwen2.5 tokenizer, which has it. (It is not added, "
            "because that would change the size of the embeddings.)"
        )
    return token_id


def marked_parts(text: str, start_mark: str, end_mark: str) -> Iterator[tuple[str, int, bool]]:
    """(part, its start in `text`, verbatim) of a prompt whose verbatim parts stand between the two marks.

    Raises ValueError if the marks are not in pairs: then a template has cut a text apart and nothing can tell which of
    its parts are a user's.
    """
    position, verbatim = 0, False
    for mark in [*re.finditer(f"[{start_mark}{end_mark}]", text), None]:
        if verbatim != (mark is not None and mark.group() == end_mark):
            raise ValueError("The chat template cuts texts apart, which split_special_tokens can not allow: use ours.")
        end = len(text) if mark is None else mark.start()
        if end > position:
            yield text[position:end], position, verbatim
        position, verbatim = end + 1, not verbatim


def truncated(row: dict[str, list], image_ids: set[int], max_length: int | None, tokenizer: Any) -> dict[str, list]:
    """The row cut to `max_length` (or the tokenizer's own limit) on the tokenizer's truncation side.

    Raises ValueError if that would remove any part of a picture.
    """
    limit = max_length or tokenizer.model_max_length
    excess = len(row["input_ids"]) - limit
    if excess <= 0:
        return row
    from_left = tokenizer.truncation_side == "left"
    if image_ids & set(row["input_ids"][:excess] if from_left else row["input_ids"][-excess:]):
        raise ValueError(
            f"Truncation from {len(row['input_ids'])} to {limit} tokens would cut a picture: raise max_length, or "
            "lower max_image_size of the transforms."
        )
    return {key: values[excess:] if from_left else values[:-excess] for key, values in row.items()}


def padded(
    rows: list[dict[str, list]],
    tokenizer: Any,
    padding: bool | str | None,
    padding_side: str | None,
    max_length: int | None,
    pad_to_multiple_of: int | None,
    as_tensors: bool,
) -> dict[str, list]:
    """Columns of the rows, padded, with their attention_mask. `padding` None means True where tensors are wanted."""
    padding = as_tensors if padding is None else getattr(padding, "value", padding)
    if padding not in (True, False, "longest", "max_length", "do_not_pad"):
        raise ValueError(f"padding={padding!r}: choose True, False, 'longest' or 'max_length'.")
    side = padding_side or tokenizer.padding_side
    if side not in ("left", "right"):
        raise ValueError(f"padding_side={side!r}: choose 'left' or 'right'.")
    lengths = [len(row["input_ids"]) for row in rows]
    width: int = max(lengths)
    if padding in (False, "do_not_pad"):
        if as_tensors and len(set(lengths)) > 1:
            raise ValueError(f"Texts of {lengths} tokens do not make one tensor: pass padding=True.")
        width = 0
    elif padding == "max_length":
        width = max(width, max_length or tokenizer.model_max_length)
    if width and pad_to_multiple_of:
        width += -width % pad_to_multiple_of
    fillers = {"input_ids": tokenizer.pad_token_id, "offset_mapping": (0, 0)}
    columns: dict[str, list] = {key: [] for key in ("input_ids", "attention_mask", *rows[0])}
    for row in rows:
        for key, values in {**row, "attention_mask": [1] * len(row["input_ids"])}.items():
            fill = [fillers.get(key, 0)] * max(width - len(values), 0)
            columns[key].append(fill + values if side == "left" else values + fill)
    return columns
