"""Input images and prompts of requests, checked against the limits before anything is computed."""

import asyncio
import base64
import binascii
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from unimedvl.processing.medical_formats_unimedvl import open_image
from unimedvl.processing.pixel_windows_unimedvl import TooManyPixels
from unimedvl.processing.view_unimedvl import View

from .addresses import REFUSED, fetch, is_public
from .budget import Budget, Share
from .errors import ApiError
from .requests import ImagePart, Message, TextPart, ViewFields
from .settings import Limits, Settings

DATA_URI = re.compile(r"data:[\w.+/-]*(?:;[\w.+=-]+)*;base64,", re.ASCII)
# Files are read here, beside the event loop, which answers others meanwhile.
READERS = 2
# For all addresses of a request together.
FETCH_SECONDS = 30.0


class Inputs:
    """Reads what requests bring along.

    Args:
        settings: limits, and whether addresses may be fetched.
        max_pixels: the image processor's limit, which holds beside the server's own.
        budget: of bytes that are held; fetched files count.
        allowed: which IP addresses may be reached.
    """

    def __init__(
        self, settings: Settings, max_pixels: int, budget: Budget, allowed: Callable[[str], bool] = is_public
    ):
        self.budget, self._settings, self._allowed = budget, settings, allowed
        self._pixels = min(settings.limits.pixels, max_pixels)
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="unimedvl-inputs")

    @property
    def limits(self) -> Limits:
        return self._settings.limits

    async def run(self, function: Any, *arguments: Any) -> Any:
        """Run a function beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    async def read(self, function: Any, *arguments: Any) -> Any:
        """Run a function beside the event loop that opens images.

        Its first argument is a `Reading`, which opens no more of them once this is cancelled.
        """
        reading = Reading(self._pixels, self.limits.total_pixels)
        try:
            return await self.run(function, reading, *arguments)
        finally:
            reading.cancelled.set()

    def close(self) -> None:
        """Take no more work."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def check(self, messages: list[Message]) -> None:
        """Raise ApiError if the texts and images of a conversation exceed a limit, or an image is given otherwise."""
        parts = [part for message in messages for part in message.parts()]
        self.check_prompt(*(part.text for part in parts if isinstance(part, TextPart)))
        images = [part for part in parts if isinstance(part, ImagePart)]
        self.check_images(len(images))
        for image in images:
            if is_remote(image.address):
                if not self._settings.allow_url:
                    raise ApiError(
                        400, "This server fetches no addresses: send the image as a data URI.", "address_not_allowed"
                    )
            elif DATA_URI.match(image.address) is None:
                raise ApiError(400, "An image must be a data URI (data:image/png;base64,...): send the file that way.")

    def check_prompt(self, *texts: str) -> None:
        """Raise ApiError if the texts are too long, or one is empty."""
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

    async def fetched(self, messages: list[Message], share: Share) -> dict[str, bytes]:
        """The files behind the http(s) addresses of a checked conversation, one after another.

        Args:
            messages: the conversation.
            share: grows with what comes.

        Raises:
            ApiError: 429 if the server holds too many bytes.
            ValueError: for an address that cannot be fetched, and if all of them together take too long.
        """
        parts = (part for message in messages for part in message.parts())
        files: dict[str, bytes] = {}
        held = 0

        def grown(size: int) -> None:
            share.grow_to(held + size)

        try:
            async with asyncio.timeout(FETCH_SECONDS):
                for address in (part.address for part in parts if isinstance(part, ImagePart)):
                    if not is_remote(address) or address in files:
                        continue
                    files[address] = await fetch(address, self.limits.download_bytes, self._allowed, grown)
                    held += len(files[address])
        except TimeoutError:
            raise ValueError(f"{REFUSED}: it takes too long.") from None
        return files


class Reading:
    """The images of one request, opened one after another within limits of pixels.

    Args:
        pixels: of each.
        total_pixels: of all together.

    Attributes:
        cancelled: set once nobody waits for them.
    """

    def __init__(self, pixels: int, total_pixels: int):
        self._pixels, self._total, self._left = pixels, total_pixels, total_pixels
        self.cancelled = threading.Event()

    def open(self, content: bytes, view: ViewFields | None) -> Image.Image:
        """An image file's content as an 8-bit image.

        Raises:
            ApiError: if nobody waits for it.
            ValueError: for a file that is no image, is too large, or has no such view.
        """
        if self.cancelled.is_set():
            raise ApiError(499, "The client left.")
        together = ValueError(
            f"The images of the request have more than {self._total} pixels together: send fewer or smaller ones."
        )
        if self._left < 1:
            raise together
        fields = {} if view is None else view.model_dump(exclude_none=True)
        try:
            # What has to be read for one slice counts like what is shown.
            limits = {"max_pixels": min(self._pixels, self._left), "max_values": self._total}
            image = open_image(content, View.from_dict(fields, **limits))
        except TooManyPixels as error:
            if error.width * error.height <= self._pixels:
                raise together from None
            raise ValueError(
                f"The image has {error.width} x {error.height} pixels, more than this server's limit of "
                f"{self._pixels}: send it smaller."
            ) from None
        self._left -= image.width * image.height
        return image

    def conversation(self, messages: list[Message], files: Mapping[str, bytes]) -> list[dict[str, Any]]:
        """A checked conversation as the processor takes it, with its images opened.

        Args:
            messages: the conversation.
            files: contents by address, of those that were fetched.

        Raises:
            ApiError: if nobody waits for it.
            ValueError: for an image that cannot be read.
        """
        return [
            {
                # OpenAI's later name of the same role.
                "role": "system" if message.role == "developer" else message.role,
                "content": [self._item(part, files) for part in message.parts()],
            }
            for message in messages
        ]

    def _item(self, part: TextPart | ImagePart, files: Mapping[str, bytes]) -> dict[str, Any]:
        if isinstance(part, TextPart):
            return {"type": "text", "text": part.text}
        content = files[part.address] if is_remote(part.address) else _decoded(part.address)
        return {"type": "image", "image": self.open(content, part.view)}


def is_remote(address: str) -> bool:
    """Whether an image's address has to be fetched."""
    return address.startswith(("http://", "https://"))


def _decoded(address: str) -> bytes:
    found = DATA_URI.match(address)
    assert found is not None, "the conversation was checked"
    try:
        return base64.b64decode(address[found.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("The data URI of an image is not valid base64: encode the file again.") from None
