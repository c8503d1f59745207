"""Handlers of what is answered in images: images from words, edits, and masks."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from unimedvl.utils.errors import expected_errors

from .door import arrival
from .engine import Drawn, Engine, Progress
from .given import (
    MAX_IMAGES,
    STOPPED,
    Given,
    checked_text,
    limited,
    sampler_changes,
    seed_or_new,
    selected_source,
    step_line,
)
from .readable import readable
from .results import before_after, keep, open_truth, overlay, record_fields, verdict
from .sessions import Segmentation, Session, Sessions
from .sources import Source, named
from .uploads import take_file


class Drawing:
    """Handlers of the tabs that make images.

    Args:
        engine: draws.
        sessions: where a page's images are.
    """

    def __init__(self, engine: Engine, sessions: Sessions):
        self._engine, self._sessions = engine, sessions

    @readable
    def generate(
        self,
        prompt: str,
        preset: str,
        count: float,
        seed: Given,
        steps: Given,
        guidance: Given,
        image_guidance: Given,
        previews: bool,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # how Gradio passes it
    ) -> Iterator[tuple[Any, ...]]:
        """Images from words.

        Yields:
            Images of the gallery, files, and a line about the state.
        """
        session = self._sessions.of(request.session_hash)
        prompt = checked_text(prompt, "prompt")
        chosen_seed = seed_or_new(seed)
        drawing = self._engine.draw(
            prompt,
            [],
            session.begin(arrival(request)),
            preset=preset,
            seed=chosen_seed,
            count=limited(count, MAX_IMAGES),
            previews=previews,
            **sampler_changes(steps, guidance, image_guidance),
        )
        for event in drawing:
            if isinstance(event, Progress):
                line = step_line(progress, event)
                if not event.previews:
                    yield gr.skip(), None, line
                    continue
                paths = self._previews(session, event, prompt, chosen_seed, preset, [])
                yield [(str(path), f"Preview {number}") for number, path in enumerate(paths, 1)], None, line
                continue
            kept = keep(session, self._engine, event, task="image", prompt=prompt, seed=chosen_seed, digests=[])
            captions = [f"Synthetic {number}" for number in range(1, len(kept) + 1)]
            files = [str(path) for each in kept for path in (each.png, each.dicom)]
            gallery = [(str(each.png), caption) for each, caption in zip(kept, captions, strict=True)]
            yield gallery, files, _made(chosen_seed, event)
            return
        yield gr.skip(), None, STOPPED

    @readable
    def edit(
        self,
        prompt: str,
        preset: str,
        seed: Given,
        steps: Given,
        guidance: Given,
        image_guidance: Given,
        previews: bool,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # how Gradio passes it
    ) -> Iterator[tuple[Any, ...]]:
        """The selected image, changed.

        Yields:
            The pair of images of the slider, files, and a line about the state.
        """
        session = self._sessions.of(request.session_hash)
        prompt = checked_text(prompt, "instruction")
        source = selected_source(session)
        image, chosen_seed = session.image(source), seed_or_new(seed)
        drawing = self._engine.draw(
            prompt,
            [image],
            session.begin(arrival(request)),
            preset=preset,
            seed=chosen_seed,
            previews=previews,
            **sampler_changes(steps, guidance, image_guidance),
        )
        for event in drawing:
            if isinstance(event, Progress):
                line = step_line(progress, event)
                paths = self._previews(session, event, prompt, chosen_seed, preset, [source.digest])
                yield (before_after(session, image, paths[0]) if paths else gr.skip()), None, line
                continue
            (kept,) = keep(
                session, self._engine, event, task="edit", prompt=prompt, seed=chosen_seed, digests=[source.digest]
            )
            files = [str(kept.png), str(kept.dicom)]
            yield before_after(session, image, kept.png), files, _made(chosen_seed, event)
            return
        yield gr.skip(), None, STOPPED

    @readable
    def segment(
        self,
        prompt: str,
        preset: str,
        truth: str | None,
        opacity: float,
        seed: Given,
        steps: Given,
        guidance: Given,
        image_guidance: Given,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # how Gradio passes it
    ) -> Iterator[tuple[Any, ...]]:
        """A mask of the selected image, compared with a true one where there is one.

        Yields:
            The image under its mask, what is known of the mask, files, the emptied field of the true mask, and a line
            about the state.
        """
        session = self._sessions.of(request.session_hash)
        prompt = checked_text(prompt, "instruction")
        source = selected_source(session)
        image, chosen_seed = session.image(source), seed_or_new(seed)
        given = None if truth is None else _truth(session, truth, source)
        for event in self._engine.draw(
            prompt,
            [image],
            session.begin(arrival(request)),
            preset=preset,
            seed=chosen_seed,
            previews=False,
            **sampler_changes(steps, guidance, image_guidance),
        ):
            if isinstance(event, Progress):
                yield gr.skip(), gr.skip(), None, gr.skip(), step_line(progress, event)
                continue
            (kept,) = keep(
                session, self._engine, event, task="mask", prompt=prompt, seed=chosen_seed, digests=[source.digest]
            )
            session.segmentation = Segmentation(
                image, event.images[0], given, source, prompt, chosen_seed, event.settings
            )
            yield (
                self._overlaid(session, float(opacity)),
                verdict(session.segmentation),
                [str(kept.png), str(kept.dicom)],
                None,
                _made(chosen_seed, event),
            )
            return
        yield gr.skip(), gr.skip(), None, gr.skip(), STOPPED

    @readable
    def overlay(self, opacity: float, request: gr.Request) -> Any:
        """The last mask over its image, with another opacity."""
        session = self._sessions.of(request.session_hash)
        return gr.skip() if session.segmentation is None else self._overlaid(session, float(opacity))

    @readable
    def compare(self, truth: str | None, opacity: float, request: gr.Request) -> tuple[Any, ...]:
        """The last mask beside a true one that was uploaded after it; before there is one, the upload waits."""
        session = self._sessions.of(request.session_hash)
        if session.segmentation is None or truth is None:
            return gr.skip(), gr.skip(), gr.skip()
        made = session.segmentation
        session.segmentation = replace(made, truth=_truth(session, truth, made.source))
        return self._overlaid(session, float(opacity)), verdict(session.segmentation), None

    def _previews(
        self, session: Session, event: Progress, prompt: str, seed: int, preset: str, digests: list[str]
    ) -> list[Path]:
        fields = record_fields(self._engine, prompt=prompt, seed=seed, digests=digests)
        settings = {"preset": preset, "preview_after_steps": event.done}
        return [
            session.passing(
                f"preview {number}",
                session.write_generated(image, "synthetic-preview.png", settings=settings, **fields),
            )
            for number, image in enumerate(event.previews)
        ]

    def _overlaid(self, session: Session, opacity: float) -> str:
        made = session.segmentation
        assert made is not None
        fields = record_fields(self._engine, prompt=made.prompt, seed=made.seed, digests=[made.source.digest])
        settings = {**made.settings, "opacity": opacity}
        image: Image.Image = overlay(made, opacity)
        written = session.write_generated(image, "synthetic-overlay.png", settings=settings, **fields, composite=True)
        return str(session.passing("overlay", written))


def _truth(session: Session, file: str, source: Source) -> Image.Image:
    path = take_file(session, file)
    try:
        return open_truth(path, source)
    except expected_errors() as error:
        raise ValueError(named(error, path, path.name)) from None


def _made(seed: int, drawn: Drawn) -> str:
    count = f"{len(drawn.images)} synthetic images" if len(drawn.images) > 1 else "Synthetic image"
    return f"{count} with seed {seed}, preset {drawn.settings['preset']}."
