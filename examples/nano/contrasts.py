"""Questions that cannot be answered from their wording: is it this, which of these, none of these.

They are made from what the records state of an image (`Facts`). Who asks "is this a chest X-ray?" has to be told "no"
as often as "yes": what is asked of an image that does not have it is what some other image has, one for one
(`partners`), so that the wording alone tells no more than chance.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from unimedvl.unimed5m.schema import IMAGE_PLACEHOLDER, Record, Turn
from unimedvl.unimed5m.templates.words import MODALITY_NAMES

NOT_MEDICAL = "not a medical image"
NONE = "none of these"
# What people call an image of a modality.
CALLED = {
    "CFP": ("a fundus photograph", "a photograph of the retina", "a color fundus photograph"),
    "OCT": ("an OCT scan", "an OCT image", "an optical coherence tomography scan"),
    "CXR": ("a chest X-ray", "a chest radiograph", "a chest film"),
    "CT": ("a CT scan", "a CT image", "a CT slice"),
    "MRI": ("an MRI", "an MRI scan", "a magnetic resonance image"),
    "US": ("an ultrasound", "an ultrasound image", "a sonogram"),
    "HIS": ("a microscopy image", "an image from a microscope", "a microscopic image"),
    "ENDO": ("an endoscopy image", "an endoscopic image", "a colonoscopy image"),
}
ASKED = {
    "modality": ("Is this {}?", "Is the image {}?", "Does this look like {}?", "Am I looking at {}?"),
    "anatomy": ("Does this image show the {}?", "Is this the {}?", "Is the {} shown here?", "Do we see the {}?"),
    "finding": ("Is {} shown?", "Does the image show {}?", "Is there {}?", "Would you call this {}?"),
}
# Findings that say that there is none: nobody asks whether they are there.
NEGATIVE = ("no tumor", "no finding", "healthy", "normal", "no apparent retinopathy", "benign lung tissue")
MEDICAL_ASKED = ("Is this a medical image?", "Is this image medical?", "Is this a picture from medicine?")
WHICH_ASKED = {
    "modality": ("Which of these is it: {}?", "What kind of image is it: {}?", "Choose the modality: {}."),
    "anatomy": ("Which of these is shown: {}?", "What part of the body is it: {}?", "Choose what is shown: {}."),
    "finding": ("Which of these fits: {}?", "What is it: {}?", "Choose the finding: {}."),
}
# Names of one place of the body, or of one inside of the other.
SAME_PLACE = ({"brain", "hippocampus"}, {"chest", "lung"})


@dataclass(frozen=True)
class Facts:
    """What is known of one image.

    Attributes:
        record: a question about it, whose wording is replaced.
        modality: one of `CALLED`, or "" for an image that is not medical.
        anatomy, finding: as the source states them, or "".
        source: whose findings exclude each other.
    """

    record: Record
    modality: str
    anatomy: str = ""
    finding: str = ""
    source: str = ""


def draw(text: str, count: int) -> int:
    """A number below `count`, the same for a text everywhere."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") % count


def partners(values: Sequence[str], salt: str) -> list[int | None]:
    """For each place another one with another value, every place once; None where there is none.

    In an order that keeps equal values together each place takes the one half the way around; only where more than
    half of the places have one value, some of them have no partner.
    """
    order = sorted(range(len(values)), key=lambda place: (values[place], draw(f"{salt}/{place}", 1 << 40)))
    found: list[int | None] = [None] * len(order)
    for number, place in enumerate(order):
        other = order[(number + len(order) // 2) % len(order)]
        found[place] = other if values[other] != values[place] else None
    return found


def contradicts(anatomy: str, other: str) -> bool:
    """Whether an image of one place of the body does not show the other."""
    return anatomy != other and not any({anatomy, other} <= same for same in SAME_PLACE)


def contrast_records(facts: Iterable[Facts], salt: str = "contrast") -> Iterator[Record]:
    """All such questions about images, one record each; `sub_task_type` is "contrast".

    Args:
        facts: of the images of one split; what is asked of one image depends on the others.
        salt: of all draws.
    """
    images = sorted(facts, key=lambda fact: fact.record.id)
    for kind in ("modality", "anatomy", "finding"):
        values = [getattr(fact, kind) for fact in images]
        holders = [(fact, value) for fact, value in zip(images, values, strict=True) if value]
        yield from _yes_or_no(holders, kind, kind, salt)
        if kind == "finding":
            # Findings of the same source are told apart, and those of other parts of the body are not there.
            for source in sorted({fact.source for fact, _ in holders}):
                own = [(fact, value) for fact, value in holders if fact.source == source]
                yield from _yes_or_no(own, kind, "finding-inside", salt)
        pool = [value for value in values if value and value not in NEGATIVE]
        for fact in [fact for fact in images if not fact.modality] if pool else []:
            value = pool[draw(f"{salt}/{kind}/stranger/{fact.record.id}", len(pool))]
            yield _asked(fact, kind, kind, value, "no", salt)
        yield from _which(images, values, kind, salt)
    # As many medical images as others.
    medical, others = ([fact for fact in images if bool(fact.modality) == known] for known in (True, False))
    chosen = sorted(medical, key=lambda fact: draw(f"{salt}/medical/{fact.record.id}", 1 << 40))[: len(others)]
    for fact in (*chosen, *others):
        wording = MEDICAL_ASKED[draw(f"{salt}/medical/wording/{fact.record.id}", len(MEDICAL_ASKED))]
        yield _question(fact, "medical", wording, "yes" if fact.modality else "no")


def _excludes(fact: Facts, kind: str, value: str, source: str) -> bool:
    """Whether an image certainly does not have a value that images of a source have."""
    if not fact.modality:
        return True
    if kind == "modality":
        return fact.modality != value
    if kind == "anatomy":
        return bool(fact.anatomy) and contradicts(fact.anatomy, value)
    return fact.finding != value and bool(fact.finding) and fact.source == source


def _yes_or_no(holders: Sequence[tuple[Facts, str]], kind: str, name: str, salt: str) -> Iterator[Record]:
    others = partners([value for _, value in holders], f"{salt}/{name}")
    for (fact, value), place in zip(holders, others, strict=True):
        if place is None:
            continue
        stranger, other = holders[place]
        apart = bool(fact.anatomy) and bool(stranger.anatomy) and contradicts(fact.anatomy, stranger.anatomy)
        if not (_excludes(fact, kind, other, stranger.source) or (kind == "finding" and apart)):
            continue
        # The same words for the two, so that neither wording nor name tells which it is.
        if value not in NEGATIVE:
            yield _asked(fact, kind, name, value, "yes", salt)
        if other not in NEGATIVE:
            yield _asked(fact, kind, name, other, "no", salt)


def _asked(fact: Facts, kind: str, name: str, value: str, answer: str, salt: str) -> Record:
    key = f"{salt}/{name}/{value}/{fact.record.id}"
    called = CALLED[value][draw(f"{key}/name", len(CALLED[value]))] if kind == "modality" else value
    wordings = ASKED[kind]
    return _question(fact, f"{name}-{answer}", wordings[draw(f"{key}/wording", len(wordings))].format(called), answer)


def _which(images: Sequence[Facts], values: Sequence[str], kind: str, salt: str) -> Iterator[Record]:
    """Two to four options with "none of these" as the last; it is right in a third of the questions."""
    pools: dict[str, set[str]] = {}
    for fact, value in zip(images, values, strict=True):
        if value:
            pools.setdefault(fact.source if kind == "finding" else "", set()).add(value)
    everything = sorted(set().union(*pools.values()) - set(NEGATIVE))
    for fact, value in zip(images, values, strict=True):
        if not value and fact.modality:
            continue
        names = sorted(pools[fact.source if kind == "finding" else ""]) if value else everything
        wrong = [name for name in names if name != value and _excludes(fact, kind, name, fact.source)]
        key = f"{salt}/which/{kind}/{fact.record.id}"
        wrong.sort(key=lambda name: draw(f"{key}/{name}", 1 << 40))
        none = not value or draw(f"{key}/none", 3) == 0
        size = min(2 + draw(f"{key}/size", 2), len(wrong) + (not none))
        if size < 2:
            continue
        options = wrong[: size if none else size - 1]
        if not none:
            options.insert(draw(f"{key}/place", size), value)
        shown = [MODALITY_NAMES[name] if kind == "modality" else name for name in options]
        answer = NONE if none else shown[options.index(value)]
        wording = WHICH_ASKED[kind][draw(f"{key}/wording", len(WHICH_ASKED[kind]))]
        yield _question(fact, f"which-{kind}", wording.format(", ".join([*shown, f"or {NONE}"])), answer)


def _question(fact: Facts, name: str, text: str, answer: str) -> Record:
    message = (Turn("human", f"{IMAGE_PLACEHOLDER}\n{text}"), Turn("gpt", answer))
    return fact.record.replace(id=f"{fact.record.id}-{name}", sub_task_type="contrast", message=message)
