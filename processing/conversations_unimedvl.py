"""Conversations as callers write them: checked, made plain for the chat template, and their images loaded."""

from collections.abc import Mapping
from typing import Any

from PIL import Image

from .medical_formats_unimedvl import open_image
from .view_unimedvl import LIMITS, View

ROLES = ("system", "user", "assistant")
IMAGE_KEYS = ("image", "path", "url", "base64")
VIEW_OPTIONS = tuple(name for name in View.__dataclass_fields__ if name not in LIMITS)


def is_text(value: Any) -> bool:
    """Whether a value is a string of characters: not empty, and without lone surrogates, which no tokenizer takes."""
    return isinstance(value, str) and value != "" and not any("\ud800" <= character <= "\udfff" for character in value)


def plain_conversations(
    conversation: Any, start_mark: str, end_mark: str, mark: bool
) -> tuple[list[list[dict[str, Any]]], bool]:
    """Conversations the template can render, and whether a batch was given.

    Images are left out of the image items, and with `mark` every text is enclosed in the two marks (which are
    removed from the texts themselves).

    Args:
        conversation: one conversation or a batch of them, as `apply_chat_template` takes them.
        start_mark, end_mark: single characters.
        mark: whether to mark.

    Raises:
        ValueError: for everything malformed.
    """
    conversations, is_batch = _as_batch(conversation)

    def plain_text(text: Any) -> str:
        if not isinstance(text, str) or not text:
            raise ValueError(f"The text of a message must be a non-empty string, not {text!r}.")
        if not is_text(text):
            raise ValueError(
                "The text of a message holds lone surrogates, which UTF-8 has no bytes for: decode it anew."
            )
        if not mark:
            return text
        return start_mark + text.replace(start_mark, "").replace(end_mark, "") + end_mark

    def plain_item(item: dict[str, Any]) -> dict[str, str]:
        return {"type": "text", "text": plain_text(item.get("text"))} if item["type"] == "text" else {"type": "image"}

    return [
        [
            {
                "role": message["role"],
                "content": plain_text(message["content"])
                if isinstance(message["content"], str)
                else [plain_item(item) for item in items],
            }
            for message, items in _messages_with_items(messages)
        ]
        for messages in conversations
    ], is_batch


def conversations_with_images(
    conversation: Any, images: list, allow_url: bool, max_pixels: int
) -> list[list[Image.Image]]:
    """Load the images of each conversation; image items without one take the next of `images`.

    Args:
        conversation: one conversation or a batch of them.
        images: images for the items that have none, in order.
        allow_url: whether http(s) URLs may be fetched.
        max_pixels: larger images are refused.

    Raises:
        ValueError: for an image that can not be read, and if `images` are too few or too many.
    """
    remaining = list(images)
    loaded: list[list[Image.Image]] = []
    for messages in _as_batch(conversation)[0]:
        loaded.append([])
        for _, items in _messages_with_items(messages):
            for item in items:
                if item["type"] == "text":
                    continue
                source = _image_source(item)
                if source is None:
                    if not remaining:
                        raise ValueError('An image item has no image: write {"type": "image", "image": image}.')
                    source = remaining.pop(0)
                options = {name: item[name] for name in VIEW_OPTIONS if item.get(name) is not None}
                view = View.from_dict(options, max_pixels=max_pixels, allow_url=allow_url)
                loaded[-1].append(open_image(source, view))
    if remaining:
        raise ValueError(
            f'{len(remaining)} of the images given have no place in the conversation: add {{"type": "image"}} items.'
        )
    return loaded


def _as_batch(conversation: Any) -> tuple[list, bool]:
    conversation = getattr(conversation, "messages", conversation)
    if not isinstance(conversation, list | tuple) or not conversation:
        raise ValueError('A conversation must be a non-empty list of {"role": ..., "content": ...} messages.')
    is_batch = not isinstance(conversation[0], Mapping) and not hasattr(conversation[0], "content")
    conversations = [getattr(entry, "messages", entry) for entry in conversation] if is_batch else [conversation]
    if not all(isinstance(entry, list | tuple) and entry for entry in conversations):
        raise ValueError("A batch of conversations must hold non-empty lists of messages only.")
    return conversations, is_batch


def _messages_with_items(messages: list) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Every message with its items (none where the content is a string), checked."""
    checked: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    for message in map(_as_dict, messages):
        if not isinstance(message, dict):
            raise ValueError(f'A message must be {{"role": ..., "content": ...}}, not a {type(message).__name__}.')
        if message.get("role") not in ROLES:
            raise ValueError(f"Unknown role {message.get('role')!r}: use {', '.join(ROLES)}.")
        content = message.get("content")
        if isinstance(content, str):
            checked.append((message, []))
            continue
        if not isinstance(content, list | tuple) or not content:
            raise ValueError("The content of a message must be a string or a non-empty list of text and image items.")
        checked.append((message, [_checked_item(item) for item in content]))
    return checked


def _as_dict(value: Any) -> Any:
    """A message or an item as a dict, where it is an object with the same fields, such as those of OpenAI's client."""
    if isinstance(value, Mapping):
        return dict(value)
    if not (hasattr(value, "role") or hasattr(value, "type")):
        return value
    return {name: field for name, field in vars(value).items() if field is not None}


def _checked_item(item: Any) -> dict[str, Any]:
    item = _as_dict(item)
    if not isinstance(item, dict) or "type" not in item:
        raise ValueError('A content item must be {"type": "text", "text": ...} or {"type": "image", "image": ...}.')
    if item["type"] == "image_url":
        # The OpenAI form of the same thing.
        address = item.get("image_url")
        return {"type": "image", "url": address.get("url") if isinstance(address, dict) else address}
    if item["type"] not in ("text", "image"):
        raise ValueError(f"Unknown content type {item['type']!r}: use text or image (frames of a video are images).")
    return item


def _image_source(item: dict[str, Any]) -> Any:
    """What an image item holds, or None."""
    sources = [item[key] for key in IMAGE_KEYS if item.get(key) is not None]
    if len(sources) > 1:
        raise ValueError(f"An image item holds {len(sources)} images: keep one of {', '.join(IMAGE_KEYS)}.")
    if sources and item.get("base64") is not None:
        data = item["base64"]
        return data if data.startswith("data:") else f"data:image/png;base64,{data}"
    return sources[0] if sources else None
