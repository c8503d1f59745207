"""How many bytes all requests hold together."""

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import ApiError

RETRY_SECONDS = 2


def busy() -> ApiError:
    """The refusal of a request that would fit at another time."""
    return ApiError(
        429,
        "The server has as many requests as it takes: try again in a moment.",
        headers={"retry-after": str(RETRY_SECONDS)},
    )


class Budget:
    """Bytes of requests' bodies and of what they let fetch; used on the event loop alone.

    Args:
        total: how many there may be.
    """

    def __init__(self, total: int):
        self.total, self.used = total, 0

    @contextmanager
    def share(self) -> Iterator["Share"]:
        """What one request holds while the block runs."""
        share = Share(self)
        try:
            yield share
        finally:
            share.release()


class Share:
    """One request's part of a budget.

    Attributes:
        held: bytes.
    """

    def __init__(self, budget: Budget):
        self._budget, self.held = budget, 0

    def grow_to(self, size: int) -> None:
        """Hold at least so many bytes.

        Raises:
            ApiError: 429 if that is more than the others leave.
        """
        more = size - self.held
        if more <= 0:
            return
        if self._budget.used + more > self._budget.total:
            raise busy()
        self._budget.used += more
        self.held = size

    def release(self) -> None:
        """Hold nothing any more."""
        self._budget.used -= self.held
        self.held = 0
