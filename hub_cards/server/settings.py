"""What a server is started with: the model, who may ask, and how much."""

from dataclasses import dataclass, field

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Limits:
    """How much one request may ask, and how much the server holds at once.

    Args:
        body_mb: MiB of a request's body.
        total_mb: MiB of all bodies, and of what they let fetch, together; more are refused with 429.
        images: input images of a request.
        pixels: of an input image, before it is decoded; the image processor's own limit holds as well.
        total_pixels: of all input images of a request together; also the voxels of one volume.
        n: images that one request makes.
        prompt_characters: of all texts of a request together.
        new_tokens: of one answer.
        steps: denoising steps of an image.
        requests: requests that are read, wait or run; more are refused with 429.
        seconds: from a request's arrival to its answer, waiting included.
        body_seconds: for a request's body to arrive.
        download_mb: MiB of one fetched address.
        text_batch: answers that are decoded together.
        image_batch: images that are denoised together.
        gather_ms: how long a text batch waits for others, once requests come together.

    Raises:
        ValueError: for a limit below its least value, and for limits that contradict each other.
    """

    body_mb: int = 64
    total_mb: int = 256
    images: int = 8
    pixels: int = 20_000_000
    total_pixels: int = 80_000_000
    n: int = 4
    prompt_characters: int = 32_768
    new_tokens: int = 2_048
    steps: int = 100
    requests: int = 64
    seconds: float = 300.0
    body_seconds: float = 30.0
    download_mb: int = 64
    text_batch: int = 8
    image_batch: int = 4
    gather_ms: float = 10.0

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if value < 0 or (value == 0 and name not in ("images", "gather_ms")):
                raise ValueError(f"the limit {name.replace('_', '-')} must be positive, not {value}.")
        if self.total_mb < self.body_mb:
            raise ValueError(f"the limit total-mb of {self.total_mb} must be at least body-mb, {self.body_mb}.")

    @property
    def body_bytes(self) -> int:
        return self.body_mb * MEBIBYTE

    @property
    def total_bytes(self) -> int:
        return self.total_mb * MEBIBYTE

    @property
    def download_bytes(self) -> int:
        return self.download_mb * MEBIBYTE


@dataclass(frozen=True)
class Settings:
    """Everything that decides how a server answers; plain values, so that it can travel to another process.

    Args:
        notice: the sentence about research use that goes with every generated image.
        model, revision, base, dtype, device, quantize: as for `unimedvl.checkpoint.loading.load`.
        api_key: what clients must send; None to let everyone in.
        allow_url: whether images may be given as http(s) addresses.
        hosts: what the `Host` header may name; None for anything. A server on the loopback interface names itself, so
            that no web page reaches it through a name of its own.
        limits: see `Limits`.
    """

    notice: str
    model: str | None = None
    revision: str | None = None
    base: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    quantize: str | None = None
    api_key: str | None = field(default=None, repr=False)
    allow_url: bool = False
    hosts: tuple[str, ...] | None = None
    limits: Limits = Limits()
