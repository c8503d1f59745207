"""Requests that run together give what each gives alone, end on their own, and do not spoil one another."""

import asyncio
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.hub_cards.server.running import QUESTION, shades
from unimedvl.checkpoint.loading import load
from unimedvl.hub_cards.server.errors import ApiError
from unimedvl.hub_cards.server.images import ImageJob, ImageRequest, ImageWorker
from unimedvl.hub_cards.server.lanes import Job, Lane
from unimedvl.hub_cards.server.metrics import Metrics
from unimedvl.hub_cards.server.rows import joined
from unimedvl.hub_cards.server.texts import TextJob, TextWorker, cut
from unimedvl.hub_cards.server.turns import Turns

pytestmark = pytest.mark.medium

QUESTIONS = [QUESTION, "hi", "Describe the findings in this image, if there are any.", "Is the heart enlarged?"]


@pytest.fixture(scope="module")
def loaded():
    return load(None, device="cpu")


def prompt(loaded, text: str, with_image: bool, mode: str = "text"):
    images = [{"type": "image", "image": shades()}] if with_image else []
    return loaded.processor.apply_chat_template(
        [{"role": "user", "content": [*images, {"type": "text", "text": text}]}],
        generation_mode=mode,
        add_generation_prompt=mode == "text",
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


def text_job(loaded, number: int, seconds: float = 60.0, tokens: int | None = None, **options) -> TextJob:
    config = loaded.model.generation_config
    config = type(config).from_dict({**config.to_dict(), "max_new_tokens": tokens or 5 + 3 * number, **options})
    inputs = prompt(loaded, QUESTIONS[number % 4], number % 2 == 0)
    return TextJob(inputs, config, stops=[], seed=1, seconds=seconds, processor=loaded.processor)


def settled(make, worker) -> list:
    """Jobs, made on a loop of their own, after a worker has settled them."""

    async def run():
        jobs = make()
        await asyncio.to_thread(worker, jobs)
        await asyncio.sleep(0)
        return jobs

    return asyncio.run(run())


def test_joined_prompts_are_the_processors_own_batch(loaded):
    for mode, images in (("text", (True, False, True)), ("image", (True, True)), ("image", (False, False))):
        content = [
            [{"type": "image", "image": shades((40 + 30 * n, 60))}] if image else [] for n, image in enumerate(images)
        ]
        talks = [
            [{"role": "user", "content": [*parts, {"type": "text", "text": QUESTIONS[number]}]}]
            for number, parts in enumerate(content)
        ]
        options = {"generation_mode": mode, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        rows = [loaded.processor.apply_chat_template(talk, **options) for talk in talks]
        expected = loaded.processor.apply_chat_template(talks, **options)
        found = joined(rows, loaded.processor.tokenizer.pad_token_id)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)


def test_texts_decoded_together_are_those_decoded_alone(loaded):
    worker = TextWorker(loaded.model, loaded.processor.tokenizer.pad_token_id, Turns(), Metrics())
    alone = [settled(lambda n=n: [text_job(loaded, n)], worker)[0].future.result() for n in range(4)]
    together = settled(lambda: [text_job(loaded, number) for number in range(4)], worker)
    assert [job.future.result() for job in together] == alone
    assert all(len(tokens) <= 5 + 3 * number for number, (_, tokens) in enumerate(alone))


def test_a_job_that_nobody_waits_for_ends_without_the_others(loaded):
    worker = TextWorker(loaded.model, loaded.processor.tokenizer.pad_token_id, Turns(), Metrics())

    def jobs():
        made = [text_job(loaded, number, tokens=30) for number in range(3)]
        made[1].cancelled.set()
        return made

    first, second, third = settled(jobs, worker)
    assert first.future.done() and third.future.done() and not second.future.done() and not second.tokens


def test_images_denoised_together_are_those_denoised_alone(loaded):
    worker = ImageWorker(loaded.model, loaded.processor, Turns(), Metrics())
    settings = {"preset": "edit", "num_inference_steps": 3}
    requests = [ImageRequest(text, 2, seed, settings) for seed, text in enumerate(QUESTIONS[:3])]

    def job(request: ImageRequest) -> ImageJob:
        return ImageJob(request, prompt(loaded, request.prompt, True, "image"), 60)

    together = settled(lambda: [job(request) for request in requests], worker)
    assert len({entry.key for entry in together}) == 1
    for entry, request in zip(together, requests, strict=True):
        alone = settled(lambda request=request: [job(request)], worker)[0].future.result()
        for found, expected in zip(entry.future.result(), alone, strict=True):
            # Sums over another batch round differently, by a level at most.
            assert np.abs(np.asarray(found, int) - np.asarray(expected, int)).max() <= 1


def test_only_equal_requests_go_together(loaded):
    request = ImageRequest(QUESTION, 1, 0, {"preset": "t2i", "num_inference_steps": 3})
    changed = [replace(request, n=2), replace(request, settings={**request.settings, "height": 64, "width": 64})]

    def key(request: ImageRequest, with_image: bool = False):
        return ImageJob(request, prompt(loaded, request.prompt, with_image, "image"), 60).key

    async def keys():
        texts = [text_job(loaded, 0).key, text_job(loaded, 1).key, text_job(loaded, 0, repetition_penalty=1.2).key]
        sampled = text_job(loaded, 0, do_sample=True).key
        return (
            key(request),
            key(replace(request, seed=1)),
            [key(entry) for entry in changed],
            key(request, True),
            texts,
            sampled,
        )

    first, same, others, with_image, texts, sampled = asyncio.run(keys())
    assert first == same and first not in others and first != with_image
    assert texts[0] == texts[1] != texts[2] and sampled is None


class Recorder:
    """A worker that notes its batches; it fails for the batches that hold a job of this number."""

    def __init__(self, fails: int | None = None):
        self.batches: list[list[int]] = []
        self.fails, self.open = fails, threading.Event()

    def __call__(self, jobs):
        self.open.wait(10)
        self.batches.append([job.number for job in jobs])
        if self.fails in self.batches[-1]:
            raise ValueError("this one is wrong")
        for job in jobs:
            job.finish(job.number)


def numbered(number: int, key="same", size: int = 1, seconds: float = 10.0) -> Job:
    job = Job(key, size, seconds)
    job.number = number  # type: ignore[attr-defined]
    return job


def run_lane(worker: Recorder, make, max_rows: int = 4) -> list:
    async def run():
        lane = Lane("text", worker, max_rows, Metrics())
        jobs = make()
        for job in jobs:
            lane.submit(job)
            await asyncio.sleep(0.02)
        worker.open.set()
        try:
            return await asyncio.gather(*(job.result() for job in jobs), return_exceptions=True)
        finally:
            lane.stop()

    return asyncio.run(run())


def test_a_lane_batches_what_waits_in_order():
    worker = Recorder()
    made = run_lane(worker, lambda: [numbered(n, "other" if n in (2, 5) else "same") for n in range(8)])
    assert made == list(range(8))
    assert worker.batches == [[0], [1, 3, 4, 6], [2, 5], [7]]


def test_a_lane_counts_rows_and_runs_what_has_no_key_alone():
    worker = Recorder()
    run_lane(worker, lambda: [numbered(n, None if n < 3 else "same", size=3 if n > 3 else 1) for n in range(6)])
    assert worker.batches == [[0], [1], [2], [3, 4], [5]]


def test_one_bad_request_does_not_spoil_its_batch():
    worker = Recorder(fails=2)
    made = run_lane(worker, lambda: [numbered(n) for n in range(5)])
    assert made[:2] + made[3:] == [0, 1, 3, 4]
    assert isinstance(made[2], ApiError) and made[2].status == 400


def test_what_is_late_is_answered_while_the_lane_is_busy():
    async def run():
        worker = Recorder()
        lane = Lane("text", worker, 4, Metrics())
        jobs = [numbered(0), numbered(1, seconds=0.1)]
        for job in jobs:
            lane.submit(job)
            await asyncio.sleep(0.02)
        with pytest.raises(ApiError, match="time limit"):
            await jobs[1].result()
        worker.open.set()
        assert await jobs[0].result() == 0
        lane.stop()
        with pytest.raises(ApiError, match="stops"):
            lane.submit(numbered(2))
        return worker.batches

    assert asyncio.run(run()) == [[0]]


@pytest.mark.parametrize("stops", [["never comes"], ["ab", "a longer stop"], ["acadab"], []])
def test_a_stream_shows_what_comes_before_a_stop_and_nothing_of_it(loaded, stops):
    pieces = list("cdacadabra")

    async def shown():
        job = text_job(loaded, 0)
        job.stops = stops
        queue, stream = job.stream(None)
        for number, piece in enumerate(pieces):
            stream._enqueue(piece)
            if cut("".join(pieces[: number + 1]), stops) != "".join(pieces[: number + 1]):
                break
        stream._enqueue(None)
        await asyncio.sleep(0.05)
        job.future.set_result(None)
        return [queue.get_nowait() for _ in range(queue.qsize())]

    *found, last = asyncio.run(shown())
    assert last is None and "".join(found) == cut("cdacadabra", stops)


def test_texts_are_cut_at_the_first_stop():
    assert cut("one two three", ["three", "two"]) == "one "
    assert cut("one", ["two"]) == "one" and cut("one", []) == "one"
