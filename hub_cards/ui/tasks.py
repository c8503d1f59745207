"""Handlers of the tabs: questions, reports, images from words, edits, masks, and interleaved conversations."""

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from unimedvl.utils.errors import expected_errors

from .engine import Drawn, Engine, Piece, Progress
from .readable import problem, readable
from .results import before_after, keep, keep_text, open_truth, overlay, record_fields, verdict
from .sessions import Conversation, Segmentation, Session, Sessions
from .sources import Source, named
from .uploads import take_file

MAX_PROMPT = 4000
MAX_IMAGES = 4
MAX_TOKENS = 1024
# What an interleaved answer consists of, by what the page calls it; None: the model decides.
PLANS: dict[str, list[str] | None] = {
    "Text, then image": ["text", "image"],
    "Image, then text": ["image", "text"],
    "In turn until the model ends": None,
}
STOPPED = "Stopped."


class Tasks:
    """Handlers of the tabs of one model.

    Args:
        engine: answers and draws.
        sessions: where a page's images and conversations are.
    """

    def __init__(self, engine: Engine, sessions: Sessions):
        self._engine, self._sessions = engine, sessions

    def stop(self, request: gr.Request) -> None:
        """End what the page has asked for, at its next step."""
        self._sessions.of(request.session_hash).stop.set()

    # ---------------------------------------------------------------------------------------------------- text

    @readable
    def ask(
        self, question: str, max_new_tokens: float, temperature: float, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """A turn of the conversation; images that the model has not seen yet go with it.

        Yields:
            Messages of the chat, and the emptied field of the question.
        """
        session = self._sessions.of(request.session_hash)
        question = _checked(question, "question")
        talk = session.asked
        turn = _begin_turn(session, talk, question)
        yield turn.shown, ""
        shown_answer = {"role": "assistant", "content": ""}
        text = ""
        for text in self._engine.answer(
            turn.messages,
            session.begin(),
            max_new_tokens=_limited(max_new_tokens, MAX_TOKENS),
            temperature=float(temperature) or None,
            seed=secrets.randbelow(1 << 31),
        ):
            shown_answer["content"] = text
            yield [*turn.shown, shown_answer], ""
        shown_answer["content"] = text or "(no answer)"
        turn.messages.append({"role": "assistant", "content": [{"type": "text", "text": text}]})
        turn.shown.append(shown_answer)
        session.asked = turn
        yield turn.shown, ""

    def forget_asked(self, request: gr.Request) -> list[Any]:
        """Begin a new conversation."""
        self._sessions.of(request.session_hash).asked = Conversation()
        return []

    @readable
    def report(self, prompt: str, max_new_tokens: float, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """A report about all images.

        Yields:
            The text so far, and a file of it at the end.
        """
        session = self._sessions.of(request.session_hash)
        prompt = _checked(prompt, "instruction")
        sources = _sources(session)
        content = [*({"type": "image", "image": session.image(source)} for source in sources)]
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}]
        text = ""
        yield text, None
        for text in self._engine.answer(
            messages, session.begin(), max_new_tokens=_limited(max_new_tokens, MAX_TOKENS)
        ):
            yield text, None
        path = keep_text(session, self._engine, text, prompt=prompt, sources=sources)
        yield text or "(no answer)", [str(path)]

    # --------------------------------------------------------------------------------------------------- images

    @readable
    def generate(
        self,
        prompt: str,
        preset: str,
        count: float,
        seed: float | None,
        steps: float | None,
        guidance: float | None,
        image_guidance: float | None,
        previews: bool,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # how Gradio passes it
    ) -> Iterator[tuple[Any, ...]]:
        """Images from words.

        Yields:
            Images of the gallery, files, and a line about the state.
        """
        session = self._sessions.of(request.session_hash)
        prompt = _checked(prompt, "prompt")
        chosen_seed = _seed(seed)
        drawing = self._engine.draw(
            prompt,
            [],
            session.begin(),
            preset=preset,
            seed=chosen_seed,
            count=_limited(count, MAX_IMAGES),
            previews=previews,
            **_sampler(steps, guidance, image_guidance),
        )
        for event in drawing:
            if isinstance(event, Progress):
                line = _step(progress, event)
                if not event.previews:
                    yield gr.skip(), None, line
                    continue
                paths = self._previews(session, event, prompt, chosen_seed, preset)
                yield [(str(path), f"Preview {number}") for number, path in enumerate(paths, 1)], None, line
                continue
            kept = keep(session, self._engine, event, task="image", prompt=prompt, seed=chosen_seed, sources=[])
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
        seed: float | None,
        steps: float | None,
        guidance: float | None,
        image_guidance: float | None,
        previews: bool,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # how Gradio passes it
    ) -> Iterator[tuple[Any, ...]]:
        """The selected image, changed.

        Yields:
            The pair of images of the slider, files, and a line about the state.
        """
        session = self._sessions.of(request.session_hash)
        prompt = _checked(prompt, "instruction")
        source = _selected(session)
        image, chosen_seed = session.image(source), _seed(seed)
        drawing = self._engine.draw(
            prompt,
            [image],
            session.begin(),
            preset=preset,
            seed=chosen_seed,
            previews=previews,
            **_sampler(steps, guidance, image_guidance),
        )
        for event in drawing:
            if isinstance(event, Progress):
                line = _step(progress, event)
                paths = self._previews(session, event, prompt, chosen_seed, preset)
                yield (before_after(session, image, paths[0]) if paths else gr.skip()), None, line
                continue
            (kept,) = keep(
                session, self._engine, event, task="edit", prompt=prompt, seed=chosen_seed, sources=[source]
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
        seed: float | None,
        steps: float | None,
        guidance: float | None,
        image_guidance: float | None,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # how Gradio passes it
    ) -> Iterator[tuple[Any, ...]]:
        """A mask of the selected image, compared with a true one where there is one.

        Yields:
            The image under its mask, what is known of the mask, files, the emptied field of the true mask, and a line
            about the state.
        """
        session = self._sessions.of(request.session_hash)
        prompt = _checked(prompt, "instruction")
        source = _selected(session)
        image, chosen_seed = session.image(source), _seed(seed)
        given = None if truth is None else _truth(session, truth, source)
        for event in self._engine.draw(
            prompt,
            [image],
            session.begin(),
            preset=preset,
            seed=chosen_seed,
            previews=False,
            **_sampler(steps, guidance, image_guidance),
        ):
            if isinstance(event, Progress):
                yield gr.skip(), gr.skip(), None, gr.skip(), _step(progress, event)
                continue
            (kept,) = keep(
                session, self._engine, event, task="mask", prompt=prompt, seed=chosen_seed, sources=[source]
            )
            session.segmentation = Segmentation(image, event.images[0], given)
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
        if session.segmentation is None or truth is None or not session.sources:
            return gr.skip(), gr.skip(), gr.skip()
        made = session.segmentation
        session.segmentation = Segmentation(made.image, made.mask, _truth(session, truth, _selected(session)))
        return self._overlaid(session, float(opacity)), verdict(session.segmentation), None

    # ---------------------------------------------------------------------------------------------- interleaved

    @readable
    def converse(
        self,
        prompt: str,
        plan: str,
        seed: float | None,
        max_new_tokens: float,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # how Gradio passes it
    ) -> Iterator[tuple[Any, ...]]:
        """A turn that is answered in texts and images.

        Yields:
            Messages of the chat, the emptied field of the prompt, files, and a line about the state.
        """
        session = self._sessions.of(request.session_hash)
        prompt = _checked(prompt, "message")
        chosen_seed = _seed(seed)
        turn = _begin_turn(session, session.interleaved, prompt)
        yield turn.shown, "", None, ""
        stop = session.begin()
        answer: list[dict[str, Any]] = []
        files: list[str] = []
        for event in self._engine.converse(
            turn.messages,
            stop,
            segments=PLANS[plan],
            seed=chosen_seed,
            max_new_tokens=_limited(max_new_tokens, MAX_TOKENS),
        ):
            if isinstance(event, Progress):
                yield turn.shown, "", files or None, _step(progress, event)
                continue
            answer.append(self._shown_piece(session, event, turn, files, prompt, chosen_seed))
            yield turn.shown, "", files or None, "Writing"
        if answer:
            turn.messages.append({"role": "assistant", "content": answer})
            session.interleaved = turn
        line = STOPPED if stop.is_set() else f"Done with seed {chosen_seed}."
        yield turn.shown, "", files or None, line

    def forget_interleaved(self, request: gr.Request) -> list[Any]:
        """Begin a new interleaved conversation."""
        self._sessions.of(request.session_hash).interleaved = Conversation()
        return []

    def _shown_piece(
        self, session: Session, piece: Piece, turn: Conversation, files: list[str], prompt: str, seed: int
    ) -> dict[str, Any]:
        """Add a text or an image to the page, and return it as an item for the model."""
        if isinstance(piece.content, str):
            if piece.content:
                turn.shown.append({"role": "assistant", "content": piece.content})
            return {"type": "text", "text": piece.content}
        drawn = Drawn([piece.content], {"generation_mode": "interleaved"})
        (kept,) = keep(
            session, self._engine, drawn, task="interleaved", prompt=prompt, seed=seed, sources=session.sources
        )
        files += [str(kept.png), str(kept.dicom)]
        turn.shown.append({"role": "assistant", "content": {"path": str(kept.png), "alt_text": "synthetic image"}})
        return {"type": "image", "image": piece.content}

    def _previews(self, session: Session, event: Progress, prompt: str, seed: int, preset: str) -> list[Path]:
        fields = record_fields(self._engine, prompt=prompt, seed=seed, sources=[])
        settings = {"preset": preset, "preview_after_steps": event.done}
        return [
            session.write_generated(image, "synthetic-preview.png", settings=settings, **fields)
            for image in event.previews
        ]

    def _overlaid(self, session: Session, opacity: float) -> str:
        assert session.segmentation is not None
        fields = record_fields(self._engine, prompt="", seed=0, sources=[]) | {"composite": True}
        image: Image.Image = overlay(session.segmentation, opacity)
        return str(session.write_generated(image, "synthetic-overlay.png", settings={"opacity": opacity}, **fields))


def _begin_turn(session: Session, talk: Conversation, text: str) -> Conversation:
    """The conversation with a person's turn at its end; the session keeps the old one until there is an answer."""
    new = [source for source in session.sources if (source.key, source.view) not in talk.attached]
    content: list[dict[str, Any]] = [{"type": "image", "image": session.image(source)} for source in new]
    shown = [
        {
            "role": "user",
            "content": {"path": str(session.write(item["image"], "attached.png")), "alt_text": source.name},
        }
        for item, source in zip(content, new, strict=True)
    ]
    return Conversation(
        messages=[*talk.messages, {"role": "user", "content": [*content, {"type": "text", "text": text}]}],
        shown=[*talk.shown, *shown, {"role": "user", "content": text}],
        attached=talk.attached | {(source.key, source.view) for source in new},
    )


def _checked(text: str | None, what: str) -> str:
    text = (text or "").strip()
    if not text:
        raise ValueError(f"The {what} is empty: write what you want.")
    if len(text) > MAX_PROMPT:
        raise ValueError(f"The {what} has {len(text)} characters: use at most {MAX_PROMPT}.")
    return text


def _limited(value: float | None, most: int) -> int:
    return max(1, min(int(value or 1), most))


def _seed(value: float | None) -> int:
    """The seed that was asked for, or a new one."""
    if value is None:
        return secrets.randbelow(1 << 31)
    if value != int(value) or not 0 <= value < 1 << 53:
        raise ValueError("The seed must be a whole number of at least 0.")
    return int(value)


def _sampler(steps: float | None, guidance: float | None, image_guidance: float | None) -> dict[str, Any]:
    """Settings that replace those of the preset; an empty field leaves the preset's."""
    return {
        "num_inference_steps": None if steps is None else int(steps),
        "guidance_scale": guidance,
        "image_guidance_scale": image_guidance,
    }


def _sources(session: Session) -> list[Source]:
    if not session.sources:
        raise ValueError("There is no image: upload one, or take an example.")
    return session.sources


def _selected(session: Session) -> Source:
    return _sources(session)[session.selected]


def _truth(session: Session, file: str, source: Source) -> Image.Image:
    path = take_file(session, file)
    try:
        return open_truth(path, source)
    except expected_errors() as error:
        raise problem(named(error, path, path.name)) from None


def _step(progress: gr.Progress, event: Progress) -> str:
    progress((event.done, event.total), desc="Denoising", unit="steps")
    return f"Step {event.done} of {event.total}"


def _made(seed: int, drawn: Drawn) -> str:
    count = f"{len(drawn.images)} synthetic images" if len(drawn.images) > 1 else "Synthetic image"
    return f"{count} with seed {seed}, preset {drawn.settings['preset']}."
