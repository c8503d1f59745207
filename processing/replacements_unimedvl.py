"""What became of the placeholders of prompts: engines that merge images themselves ask for it."""

import itertools
from typing import Any


def replacements_of_texts(texts: list[str], rows: list[dict[str, list]]) -> list[list[dict[str, Any]]]:
    """What each placeholder became, in the form of transformers.

    Args:
        texts: prompts.
        rows: `mm_token_type_ids` and `offset_mapping` of each, in which every placeholder is repeated.

    Returns:
        For each prompt and placeholder in order: `type` ("image" for ViT patches, "latent"), `text` and its `span` in
        the prompt, `replacement` and its `new_span` in the prompt with all placeholders repeated, in characters.
    """
    return [_replacements(text, row) for text, row in zip(texts, rows, strict=True)]


def _replacements(text: str, row: dict[str, list]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    grown = 0
    tokens = zip(row["mm_token_type_ids"], row["offset_mapping"], strict=True)
    for (kind, (start, end)), repeated in itertools.groupby(tokens):
        if kind == 0:
            continue
        placeholder = text[start:end]
        replacement = placeholder * len(list(repeated))
        begin = start + grown
        found.append(
            {
                "type": "image" if kind == 1 else "latent",
                "text": placeholder,
                "span": (start, end),
                "replacement": replacement,
                "new_span": (begin, begin + len(replacement)),
            }
        )
        grown += len(replacement) - len(placeholder)
    return found
