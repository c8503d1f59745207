"""Jobs and the threads that run them in batches: one lane for texts, one for images."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any

from .errors import ApiError, as_api_error
from .metrics import Metrics

log = logging.getLogger("unimedvl.server")

LATE = "The request ran past its time limit: ask for less, or try again when the server is less busy."


class Job:
    """A request on its way through a lane; made on the event loop that waits for it.

    Args:
        key: jobs of equal keys may run as one batch; None to run alone.
        size: rows that it adds to a batch.
        seconds: until it has to be answered.
    """

    def __init__(self, key: Hashable | None, size: int, seconds: float):
        self.key, self.size, self.seconds = key, size, seconds
        self.deadline = time.monotonic() + seconds
        self.cancelled = threading.Event()
        self.settled = False
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()

    @property
    def ended(self) -> bool:
        """Whether nobody waits for it any more: it was cancelled, or its time is over."""
        return self.cancelled.is_set() or time.monotonic() > self.deadline

    @property
    def untouched(self) -> bool:
        """Whether it can run again after its batch failed."""
        return not self.settled and not self.ended

    def finish(self, result: Any) -> None:
        """Hand over the result, from the lane's thread."""
        self._settle(lambda: self.future.set_result(result))

    def fail(self, error: BaseException) -> None:
        """Hand over an error, from the lane's thread."""
        self._settle(lambda: self.future.set_exception(error))

    def _settle(self, act: Callable[[], None]) -> None:
        self.settled = True

        def once() -> None:
            if not self.future.done():
                act()

        try:
            self.loop.call_soon_threadsafe(once)
        except RuntimeError:
            # The loop is closed: the server stops, and nobody waits.
            log.debug("a job ended after its server")

    async def result(self) -> Any:
        """Wait for the result.

        Raises:
            ApiError: if its time is over.
        """
        try:
            return await asyncio.wait_for(self.future, self.deadline - time.monotonic())
        except TimeoutError:
            raise ApiError(504, LATE) from None
        finally:
            # Also when the waiting task is cancelled, as its client left.
            self.cancelled.set()


class Lane:
    """A queue and the thread that runs what is in it, first come first, in batches.

    Args:
        name: "text" or "image", a label of the metrics.
        run: computes jobs of one key together and settles each; what it raises settles those that are left.
        max_rows: most rows of a batch.
        gather: seconds to wait for more jobs, where the last batch shows that requests come together.
        metrics: counts what waits.
    """

    def __init__(
        self, name: str, run: Callable[[list[Any]], None], max_rows: int, metrics: Metrics, gather: float = 0.0
    ):
        self.name, self._run, self._max_rows, self._gather, self._metrics = name, run, max_rows, gather, metrics
        self._changed = threading.Condition()
        self._queue: list[Job] = []
        self._stopped = False
        self._last_batch = 1
        self._thread = threading.Thread(target=self._work, name=f"unimedvl-{name}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether jobs are still taken."""
        return self._thread.is_alive() and not self._stopped

    def submit(self, job: Job) -> None:
        """Put a job at the end of the queue.

        Raises:
            ApiError: if the server stops.
        """
        with self._changed:
            if not self.alive:
                raise ApiError(503, "The server stops: try again in a moment.")
            self._queue.append(job)
            self._metrics.queued(self.name, len(self._queue))
            self._changed.notify_all()

    def stop(self) -> None:
        """Refuse what waits and what comes; what runs is left to end."""
        with self._changed:
            self._stopped = True
            waiting, self._queue = self._queue, []
            self._changed.notify_all()
        for job in waiting:
            job.fail(ApiError(503, "The server stops: try again in a moment."))

    def _work(self) -> None:
        while (batch := self._next_batch()) is not None:
            if batch:
                self._run_batch(batch)

    def _next_batch(self) -> list[Job] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._stopped)
            if self._stopped:
                return None
            if self._gather and self._last_batch > 1:
                until = time.monotonic() + self._gather
                self._changed.wait_for(lambda: self._rows() >= self._max_rows, timeout=until - time.monotonic())
            first, rows = self._queue[0], 0
            batch: list[Job] = []
            kept: list[Job] = []
            for job in self._queue:
                fits = job is first or (job.key is not None and job.key == first.key)
                if fits and (not batch or rows + job.size <= self._max_rows):
                    batch.append(job)
                    rows += job.size
                else:
                    kept.append(job)
            self._queue = kept
            # Those that stay behind show it as well.
            self._last_batch = len(batch) + len(kept)
            self._metrics.queued(self.name, len(kept))
        return [job for job in batch if not job.ended]

    def _rows(self) -> int:
        return sum(job.size for job in self._queue)

    def _run_batch(self, batch: list[Job]) -> None:
        self._metrics.batched(self.name, sum(job.size for job in batch))
        try:
            self._run(batch)
        # Whatever one job raises, the others and the thread have to live on.
        except Exception as error:
            # One may have spoiled it for the others.
            again = [job for job in batch if job.untouched] if len(batch) > 1 else []
            for job in batch:
                if not job.settled and job not in again:
                    job.fail(as_api_error(error))
            for job in again:
                self._run_batch([job])
