"""Handlers of what is answered in words: questions, reports, and conversations with images in the answers."""

import secrets
from collections.abc import Iterator
from typing import Any

import gradio as gr

from unimedvl.checkpoint.conversations import person_turn

from .door import arrival
from .engine import Drawn, Engine, Piece, Progress
from .given import MAX_TOKENS, STOPPED, Given, all_sources, checked_text, limited, seed_or_new, step_line
from .readable import readable
from .results import keep, keep_text
from .sessions import Conversation, Session, Sessions

# What an interleaved answer consists of, by what the page calls it; None: the model decides.
PLANS: dict[str, list[str] | None] = {
    "Text, then image": ["text", "image"],
    "Image, then text": ["image", "text"],
    "In turn until the model ends": None,
}
# Of one conversation; every image of it is read again in each turn.
MAX_TURNS, MAX_ATTACHED = 32, 16
NO_ANSWER = "(no answer)"


class Talking:
    """Handlers of the tabs for questions, reports and interleaved conversations.

    Args:
        engine: answers and draws.
        sessions: where a page's images and conversations are.
    """

    def __init__(self, engine: Engine, sessions: Sessions):
        self._engine, self._sessions = engine, sessions

    @readable
    def stop(self, request: gr.Request) -> None:
        """End what the page has asked for: at its next step what runs, at once what waits for its turn."""
        self._sessions.of(request.session_hash).end(arrival(request))

    @readable
    def ask(
        self, question: str, max_new_tokens: float, temperature: float, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """A turn of the conversation; images that the model has not seen yet go with it.

        Yields:
            Messages of the chat, and the emptied field of the question.
        """
        session = self._sessions.of(request.session_hash)
        question, arrived = checked_text(question, "question"), arrival(request)
        stop, talk = session.begin(arrived), session.asked
        if stop.is_set() or arrived <= talk.began:
            yield talk.shown, question
            return
        turn = _begin_turn(session, talk, question)
        yield turn.shown, ""
        shown_answer = {"role": "assistant", "content": ""}
        text = ""
        for text in self._engine.answer(
            turn.messages,
            stop,
            max_new_tokens=limited(max_new_tokens, MAX_TOKENS),
            temperature=float(temperature) or None,
            seed=secrets.randbelow(1 << 31),
        ):
            if session.asked is not talk:
                stop.set()
                continue
            shown_answer["content"] = text
            yield [*turn.shown, shown_answer], ""
        # A new conversation may have begun meanwhile, of which this answer is no part.
        if session.asked is talk:
            shown_answer["content"] = text or (STOPPED if stop.is_set() else NO_ANSWER)
            turn.messages.append({"role": "assistant", "content": [{"type": "text", "text": text}]})
            turn.shown.append(shown_answer)
            session.asked = turn
        yield session.asked.shown, ""

    @readable
    def forget_asked(self, request: gr.Request) -> list[Any]:
        """Begin a new conversation; what is still being answered is dropped."""
        self._sessions.of(request.session_hash).asked = Conversation(arrival(request))
        return []

    @readable
    def report(self, prompt: str, max_new_tokens: float, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """A report about all images.

        Yields:
            The text so far, and a file of it at the end.
        """
        session = self._sessions.of(request.session_hash)
        prompt = checked_text(prompt, "instruction")
        sources = all_sources(session)
        stop = session.begin(arrival(request))
        messages = [person_turn(prompt, [session.image(source) for source in sources])]
        text = ""
        yield text, None
        for text in self._engine.answer(messages, stop, max_new_tokens=limited(max_new_tokens, MAX_TOKENS)):
            yield text, None
        if stop.is_set() and not text:
            yield STOPPED, None
            return
        digests = [source.digest for source in sources]
        path = keep_text(session, self._engine, text, prompt=prompt, digests=digests)
        yield text or NO_ANSWER, [str(path)]

    @readable
    def converse(
        self,
        prompt: str,
        plan: str,
        seed: Given,
        max_new_tokens: float,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # how Gradio passes it
    ) -> Iterator[tuple[Any, ...]]:
        """A turn that is answered in texts and images.

        Yields:
            Messages of the chat, the emptied field of the prompt, files, and a line about the state.
        """
        session = self._sessions.of(request.session_hash)
        prompt, arrived = checked_text(prompt, "message"), arrival(request)
        chosen_seed = seed_or_new(seed)
        stop, talk = session.begin(arrived), session.interleaved
        if stop.is_set() or arrived <= talk.began:
            yield talk.shown, prompt, None, STOPPED
            return
        turn = _begin_turn(session, talk, prompt)
        yield turn.shown, "", None, ""
        answer: list[dict[str, Any]] = []
        files: list[str] = []
        for event in self._engine.converse(
            turn.messages,
            stop,
            segments=PLANS[plan],
            seed=chosen_seed,
            max_new_tokens=limited(max_new_tokens, MAX_TOKENS),
        ):
            if session.interleaved is not talk:
                stop.set()
                continue
            if isinstance(event, Progress):
                yield turn.shown, "", files or None, step_line(progress, event)
                continue
            answer.append(self._shown_piece(session, event, turn, files, prompt, chosen_seed))
            yield turn.shown, "", files or None, "Writing"
        line = STOPPED if stop.is_set() else f"Done with seed {chosen_seed}."
        if session.interleaved is not talk:
            yield session.interleaved.shown, "", None, line
            return
        if answer:
            turn.messages.append({"role": "assistant", "content": answer})
            session.interleaved = turn
        yield turn.shown, "", files or None, line

    @readable
    def forget_interleaved(self, request: gr.Request) -> list[Any]:
        """Begin a new interleaved conversation; what is still being answered is dropped."""
        self._sessions.of(request.session_hash).interleaved = Conversation(arrival(request))
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
            session, self._engine, drawn, task="interleaved", prompt=prompt, seed=seed, digests=turn.digests
        )
        files += [str(kept.png), str(kept.dicom)]
        turn.shown.append({"role": "assistant", "content": {"path": str(kept.png), "alt_text": "synthetic image"}})
        return {"type": "image", "image": str(kept.png)}


def _begin_turn(session: Session, talk: Conversation, text: str) -> Conversation:
    """The conversation with a person's turn at its end; the session keeps the old one until there is an answer.

    Raises:
        ValueError: if the conversation is as long as it may become.
    """
    if sum(message["role"] == "user" for message in talk.messages) >= MAX_TURNS:
        raise ValueError(f"The conversation has {MAX_TURNS} turns: begin a new one.")
    new = [source for source in session.sources if (source.key, source.view) not in talk.attached]
    if len(talk.attached) + len(new) > MAX_ATTACHED:
        raise ValueError(
            f"The conversation would show the model {len(talk.attached) + len(new)} images, each view being one, and "
            f"{MAX_ATTACHED} are the most: begin a new one."
        )
    images = [session.image(source) for source in new]
    shown = [
        {
            "role": "user",
            "content": {"path": str(session.write(image, "shown.png")), "alt_text": source.name},
        }
        for image, source in zip(images, new, strict=True)
    ]
    return Conversation(
        began=talk.began,
        messages=[*talk.messages, person_turn(text, [str(session.attach(image)) for image in images])],
        shown=[*talk.shown, *shown, {"role": "user", "content": text}],
        attached=talk.attached | {(source.key, source.view): source.digest for source in new},
    )
