"""The two calls that a benchmark makes of a model."""

from collections.abc import Sequence
from typing import Any, Protocol

from PIL import Image

Conversation = list[dict[str, Any]]


class Model(Protocol):
    """A model that a benchmark can ask.

    Attributes:
        name: for people.
        abilities: among "text" (text from text), "text_from_image", "image" (an image from text) and
            "image_from_image".
        settings: what a manifest should say about it, values that JSON can hold.
    """

    name: str
    abilities: frozenset[str]
    settings: dict[str, Any]

    def write(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[tuple[str, float | None]]:
        """The answer to each conversation without sampling, and the geometric mean of its tokens' probabilities."""
        ...

    def draw(self, conversations: Sequence[Conversation], preset: str, seeds: Sequence[int]) -> list[Image.Image]:
        """An image for each conversation, from the noise of its own seed."""
        ...


def last_text(conversation: Conversation) -> str:
    """The texts of the last user message."""
    users = [message for message in conversation if message["role"] == "user"]
    return "\n".join(item["text"] for item in users[-1]["content"] if item["type"] == "text")


def images_of(conversation: Conversation) -> list[Image.Image]:
    """The images of a conversation in their order."""
    return [item["image"] for message in conversation for item in message["content"] if item["type"] == "image"]
