"""Input images and prompts of requests, checked against the limits before anything is computed."""

import asyncio
import base64
import binascii
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from unimedvl.processing.medical_formats_unimedvl import open_image
from unimedvl.processing.view_unimedvl import View

from .addresses import fetch
from .errors import ApiError
from .requests import ImagePart, Message, TextPart, ViewFields
from .settings import Limits, Settings

DATA_URI = re.compile(r"data:[\w.+/-]*(?:;[\w.+=-]+)*;base64,", re.ASCII)
# Files are read here, beside the event loop, which answers others meanwhile.
READERS = 2


class Inputs:
    """Reads what requests bring along.

    Args:
        settings: limits, and whether addresses may be fetched.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="unimedvl-inputs")

    @property
    def limits(self) -> Limits:
        return self._settings.limits

    async def read(self, function: Any, *arguments: Any) -> Any:
        """Run a function beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    def close(self) -> None:
        """Take no more work."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def conversation(self, messages: list[Message]) -> list[dict[str, Any]]:
        """Messages as the processor takes them, with their images opened.

        Raises:
            ApiError: if they exceed a limit.
            ValueError: for an image that cannot be read.
        """
        parts = [part for message in messages for part in message.parts()]
        self.check_prompt(*(part.text for part in parts if isinstance(part, TextPart)))
        self.check_images(sum(isinstance(part, ImagePart) for part in parts))
        return [
            {
                # OpenAI's later name of the same role.
                "role": "system" if message.role == "developer" else message.role,
                "content": [self._item(part) for part in message.parts()],
            }
            for message in messages
        ]

    def check_prompt(self, *texts: str) -> None:
        """Raise ApiError if the texts are too long, or cannot be written as UTF-8."""
        length, limit = sum(map(len, texts)), self.limits.prompt_characters
        if length > limit:
            raise ApiError(400, f"The texts have {length} characters: shorten them to {limit}.", "prompt_too_long")
        if any(not text.strip() for text in texts):
            raise ApiError(400, "A text is empty: write what you want.")

    def check_images(self, count: int) -> None:
        """Raise ApiError for more images than a request may bring."""
        if count > self.limits.images:
            raise ApiError(
                400, f"The request has {count} images: send at most {self.limits.images}.", "too_many_images"
            )

    def open(self, content: bytes, view: ViewFields | None) -> Image.Image:
        """An image file's content as an 8-bit image.

        Raises:
            ValueError: for a file that is no image, is too large, or has no such view.
        """
        fields = {} if view is None else view.model_dump(exclude_none=True)
        return open_image(content, View.from_dict(fields, max_pixels=self.limits.pixels))

    def _item(self, part: TextPart | ImagePart) -> dict[str, Any]:
        if isinstance(part, TextPart):
            return {"type": "text", "text": part.text}
        return {"type": "image", "image": self.open(self._content(part.address), part.view)}

    def _content(self, address: str) -> bytes:
        if found := DATA_URI.match(address):
            try:
                return base64.b64decode(address[found.end() :], validate=True)
            except (binascii.Error, ValueError):
                raise ValueError("The data URI of an image is not valid base64: encode the file again.") from None
        if not address.startswith(("http://", "https://")):
            raise ApiError(400, "An image must be a data URI (data:image/png;base64,...): send the file that way.")
        if not self._settings.allow_url:
            raise ApiError(
                400, "This server fetches no addresses: send the image as a data URI.", "address_not_allowed"
            )
        return fetch(address, self.limits.download_bytes)
