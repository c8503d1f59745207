"""The bodies of requests: what the OpenAPI description says, and what is checked before anything is computed.

Fields of OpenAI's that only label a request are taken and ignored. Those that would change the answer and are not
supported are no fields, so that a client learns of it.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_SEED = 2**63 - 1

Seed = Annotated[int, Field(ge=0, le=MAX_SEED, description="Of all random draws; a new one by default.")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Words = Annotated[str, Field(min_length=1)]
Ignored = Annotated[Any, Field(description="Taken and ignored.")]


class Strict(BaseModel):
    """An object without other fields."""

    model_config = ConfigDict(extra="forbid")


class Loose(BaseModel):
    """An object whose other fields are ignored: parts of a conversation as clients send them back."""

    model_config = ConfigDict(extra="ignore")


class ViewFields(Strict):
    """What to show of a medical image file; the fields of `View`."""

    window: tuple[Finite, Finite] | None = None
    frame: int | None = None
    plane: str | None = None
    slice_index: int | None = None
    percentiles: tuple[Finite, Finite] | None = None
    percentiles_of: Literal["volume", "slice"] | None = None


class TextPart(Loose):
    """A text of a message."""

    type: Literal["text", "input_text", "output_text"]
    text: Words


class ImageAddress(Loose):
    """An image as a data URI, or an http(s) address where the server allows it."""

    url: str


class ImagePart(Loose):
    """An image of a message: PNG, JPEG, TIFF, DICOM, NIfTI, ..., recognized by content."""

    type: Literal["image_url", "input_image"]
    image_url: str | ImageAddress
    view: ViewFields | None = None

    @property
    def address(self) -> str:
        return self.image_url if isinstance(self.image_url, str) else self.image_url.url


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(Loose):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Words | Annotated[list[Part], Field(min_length=1)]

    def parts(self) -> list[TextPart | ImagePart]:
        """The content as parts."""
        if isinstance(self.content, str):
            return [TextPart(type="text", text=self.content)]
        return self.content


class TextBody(Strict):
    """What both ways of asking for text share."""

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = Field(
        None, description="Above 0 samples; by default the likeliest token is taken."
    )
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    seed: Seed | None = None
    stream: bool | None = False
    tools: Ignored = None
    tool_choice: Ignored = None
    parallel_tool_calls: Ignored = None
    metadata: Ignored = None
    service_tier: Ignored = None
    store: Ignored = None
    user: Ignored = None
    min_tokens: Annotated[int, Field(ge=0)] | None = Field(None, description="The answer does not end before.")
    think: bool = Field(False, description="Let the model reason before it answers.")


class ChatBody(TextBody):
    """A request for a chat completion."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    stop: (
        Annotated[str, Field(min_length=1, max_length=64)]
        | list[Annotated[str, Field(min_length=1, max_length=64)]]
        | None
    ) = Field(None, description="At most four texts before which the answer ends.")
    n: Literal[1] | None = 1
    stream_options: Ignored = None

    @property
    def new_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    def conversation(self) -> list[Message]:
        """The messages."""
        return self.messages


class ResponseBody(TextBody):
    """A request for a response."""

    input: Words | Annotated[list[Message | Part], Field(min_length=1)]
    instructions: Words | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    include: Ignored = None
    truncation: Ignored = None

    @property
    def new_tokens(self) -> int | None:
        return self.max_output_tokens

    @property
    def stops(self) -> list[str]:
        return []

    def conversation(self) -> list[Message]:
        """The input as messages; parts beside each other are one message of the user."""
        messages = [Message(role="system", content=self.instructions)] if self.instructions else []
        if isinstance(self.input, str):
            return [*messages, Message(role="user", content=self.input)]
        loose: list[Any] = []
        for item in [*self.input, None]:
            if isinstance(item, TextPart | ImagePart):
                loose.append(item)
                continue
            if loose:
                messages.append(Message(role="user", content=loose))
                loose = []
            if item is not None:
                messages.append(item)
        return messages


class ImageBody(Strict):
    """A request for images."""

    prompt: Words
    model: str | None = None
    n: Annotated[int, Field(ge=1)] | None = 1
    size: Annotated[str, Field(pattern=r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$")] | None = Field(
        None, description='"WIDTHxHEIGHT" in pixels, or "auto": the input image\'s size, else the preset\'s.'
    )
    seed: Seed | None = None
    preset: Annotated[str, Field(max_length=64)] | None = Field(None, description="Settings of a task.")
    steps: Annotated[int, Field(ge=1)] | None = Field(None, description="Denoising steps.")
    guidance: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = Field(
        None, description="Weight of the text; 1 turns all guidance off."
    )
    image_guidance: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = Field(
        None, description="Weight of the input images; 1 turns it off."
    )
    response_format: Literal["b64_json"] | None = "b64_json"
    output_format: Literal["png"] | None = "png"
    background: Ignored = None
    moderation: Ignored = None
    quality: Ignored = None
    style: Ignored = None
    user: Ignored = None

    def settings(self, preset: str) -> dict[str, Any]:
        """Arguments of `generate`.

        Args:
            preset: where none was chosen.
        """
        width, height = (None, None)
        if self.size not in (None, "auto"):
            width, height = map(int, str(self.size).split("x"))
        chosen = {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "image_guidance_scale": self.image_guidance,
            "height": height,
            "width": width,
            "preset": self.preset or preset,
        }
        return {name: value for name, value in chosen.items() if value is not None}


class MadeImage(BaseModel):
    """One image."""

    b64_json: str


class ImagesMade(BaseModel):
    """Images that were made, and how."""

    created: int
    data: list[MadeImage]
    output_format: str = "png"
    model: str
    seed: int
    settings: dict[str, Any]
    synthetic: bool = True
    notice: str


class ErrorFields(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: None = None
    code: str


class ErrorBody(BaseModel):
    """Every error has this form."""

    error: ErrorFields
