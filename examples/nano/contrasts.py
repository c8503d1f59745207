"""Questions that cannot be answered from their wording: is it this, which of these, none of these.

They are made from what the records state of an image (`Facts`). Each text that is answered with "yes" about one image
is answered with "no" about another one, as often: whoever reads the text alone is right in half of the cases. What is
asked of an image that does not have it is asked most often of images that look alike (`ALIKE`) or that the same
source labels otherwise, and of every other kind of image too.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from unimedvl.unimed5m.mini import LABEL_NOUNS
from unimedvl.unimed5m.schema import IMAGE_PLACEHOLDER, Record, Turn
from unimedvl.unimed5m.templates.words import MODALITY_NAMES

from .captions import number_of

NOT_MEDICAL = "not a medical image"
NONE = "none of these"
KINDS = ("modality", "anatomy", "finding")
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
FINDINGS = LABEL_NOUNS | {"polyp": "a polyp"}
# Findings that say that there is none: nobody asks whether they are there.
NEGATIVE = ("no tumor", "no finding", "healthy", "normal", "no apparent retinopathy", "benign lung tissue")
MEDICAL_ASKED = ("Is this a medical image?", "Is this image medical?", "Is this an image from medicine?")
WHICH_ASKED = {
    "modality": ("Which of these is it: {}?", "What kind of image is it: {}?", "Choose the modality: {}."),
    "anatomy": ("Which of these is shown: {}?", "What part of the body is it: {}?", "Choose what is shown: {}."),
    "finding": ("Which of these fits: {}?", "What is it: {}?", "Choose the finding: {}."),
}
# Without "none of these" among the options.
CHOICE_ASKED = {
    "modality": ("Is it {}?", "Which modality is this, {}?"),
    "anatomy": ("Is this the {}?", "What is shown, the {}?"),
    "finding": ("Is it {}?", "What does this show, {}?"),
}
# Names of places of the body of which an image may show both.
SAME_PLACE = (
    {"brain", "hippocampus", "fetal head"},
    {"chest", "lung", "abdomen"},
    {"abdomen", "colon", "bladder"},
    {"blood", "lung", "bladder"},
)
# Modalities that are mistaken for each other, and how many times as often they are asked of each other's images.
ALIKE = tuple(
    frozenset(pair.split())
    for pair in ("CT MRI", "CT CXR", "CT US", "MRI US", "OCT US", "CFP ENDO", "CFP HIS", "ENDO HIS", "CFP OCT")
)
ALIKE_WEIGHT = 3.0
OWN_SOURCE_WEIGHT = 30.0
# What few images have is asked of each of them up to so many times, in other words.
MOST_REPEATS = 4
# One medical image in so many has "none of these" as its answer, and one of the others in so many no such option.
NONE_SHARE = 6
CHOICE_SHARE = 3


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
    return number_of(text) % count


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
    for kind in KINDS:
        holders: dict[str, list[Facts]] = {}
        for fact in images:
            if getattr(fact, kind):
                holders.setdefault(getattr(fact, kind), []).append(fact)
        yield from _yes_or_no(images, holders, kind, salt)
        yield from _which(images, holders, kind, salt)
    strangers = [fact for fact in images if not fact.modality]
    medical = sorted((fact for fact in images if fact.modality), key=_by_draw(f"{salt}/medical"))
    for known, stranger in zip(medical, strangers, strict=False):
        text = MEDICAL_ASKED[draw(f"{salt}/medical/{stranger.record.id}", len(MEDICAL_ASKED))]
        yield _question(known, "medical", text, "yes")
        yield _question(stranger, "medical", text, "no")


def _by_draw(salt: str) -> Callable[[Facts], int]:
    return lambda fact: draw(f"{salt}/{fact.record.id}", 1 << 40)


def _lacks(fact: Facts, kind: str, value: str, owners: Sequence[Facts]) -> bool:
    """Whether an image certainly does not have a value that the owners' images have."""
    if not fact.modality:
        return True
    if kind == "modality":
        return fact.modality != value
    if kind == "anatomy":
        return bool(fact.anatomy) and contradicts(fact.anatomy, value)
    if fact.finding == value:
        return False
    if any(fact.source == owner.source for owner in owners):
        return bool(fact.finding)
    return bool(fact.anatomy) and all(contradicts(fact.anatomy, owner.anatomy) for owner in owners)


def _weights(absent: Sequence[Facts], kind: str, value: str, owners: Sequence[Facts]) -> list[float]:
    """How likely each image is asked for what it lacks: classes of any size alike, those that look alike more."""
    classes = [getattr(fact, "source" if kind == "finding" else kind) for fact in absent]
    sizes = Counter(classes)
    sources, modalities = {owner.source for owner in owners}, {owner.modality for owner in owners}
    weights = []
    for fact, name in zip(absent, classes, strict=True):
        factor = 1.0
        if kind == "finding" and fact.source in sources:
            factor = OWN_SOURCE_WEIGHT
        elif kind == "anatomy" and fact.modality in modalities:
            factor = ALIKE_WEIGHT
        elif kind == "modality" and frozenset((fact.modality, value)) in ALIKE:
            factor = ALIKE_WEIGHT
        weights.append(factor / sizes[name])
    return weights


def _yes_or_no(images: Sequence[Facts], holders: dict[str, list[Facts]], kind: str, salt: str) -> Iterator[Record]:
    mean = sum(map(len, holders.values())) // max(1, len(holders))
    for value in sorted(set(holders) - set(NEGATIVE)):
        key = f"{salt}/{kind}/{value}"
        present = sorted(holders[value], key=_by_draw(f"{key}/yes"))
        absent = [fact for fact in images if _lacks(fact, kind, value, present)]
        # A weighted draw without replacement (Efraimidis and Spirakis 2006): the largest u ** (1 / weight).
        chances = [(draw(f"{key}/no/{fact.record.id}", 1 << 40) + 1) / (1 << 40) for fact in absent]
        ranks = [u ** (1 / weight) for u, weight in zip(chances, _weights(absent, kind, value, present), strict=True)]
        absent = [absent[place] for place in sorted(range(len(absent)), key=ranks.__getitem__, reverse=True)]
        count = min(max(len(present), min(MOST_REPEATS * len(present), mean)), len(absent))
        names = CALLED[value] if kind == "modality" else (FINDINGS.get(value, value),)
        # Wordings first: a second question about one image is put in another way.
        texts = [wording.format(name) for name in names for wording in ASKED[kind]]
        for number in range(count):
            fact, repeat = present[number % len(present)], number // len(present)
            text = texts[(draw(f"{key}/text/{fact.record.id}", len(texts)) + repeat) % len(texts)]
            slug = value.replace(" ", "-")
            yield _question(fact, f"{kind}-{slug}-yes-{repeat}", text, "yes")
            yield _question(absent[number], f"{kind}-{slug}-no", text, "no")


def _which(images: Sequence[Facts], holders: dict[str, list[Facts]], kind: str, salt: str) -> Iterator[Record]:
    """One of two or three options, or "none of these".

    Wrong options are drawn as often as images have them, so that of two options each is right as often.
    """
    pools: dict[str, set[str]] = {}
    for value, owners in holders.items():
        for owner in owners:
            pools.setdefault(owner.source if kind == "finding" else "", set()).add(value)
    for fact in images:
        value, key = getattr(fact, kind), f"{salt}/which/{kind}/{fact.record.id}"
        if not value and (fact.modality or (kind != "modality" and draw(f"{key}/asked", 2))):
            continue
        pool = pools[fact.source if kind == "finding" else ""] if value else set(holders) - set(NEGATIVE)
        wrong = sorted(name for name in pool if name != value and _lacks(fact, kind, name, holders[name]))
        chances = {name: (draw(f"{key}/{name}", 1 << 40) + 1) / (1 << 40) for name in wrong}
        wrong.sort(key=lambda name: chances[name] ** (1 / len(holders[name])), reverse=True)
        none = not value or draw(f"{key}/none", NONE_SHARE) == 0
        size = min(2 + draw(f"{key}/size", 2), len(wrong) + (not none))
        if size < 2:
            continue
        options = wrong[: size if none else size - 1]
        if not none:
            options.insert(draw(f"{key}/place", size), value)
        shown = [MODALITY_NAMES[name] if kind == "modality" else name for name in options]
        wordings: tuple[str, ...]
        if none or draw(f"{key}/choice", CHOICE_SHARE):
            wordings, listed = WHICH_ASKED[kind], ", ".join([*shown, f"or {NONE}"])
        else:
            wordings, listed = CHOICE_ASKED[kind], f"{', '.join(shown[:-1])} or {shown[-1]}"
        text = wordings[draw(f"{key}/wording", len(wordings))].format(listed)
        yield _question(fact, f"which-{kind}", text, NONE if none else shown[options.index(value)])


def _question(fact: Facts, name: str, text: str, answer: str) -> Record:
    message = (Turn("human", f"{IMAGE_PLACEHOLDER}\n{text}"), Turn("gpt", answer))
    return fact.record.replace(id=f"{fact.record.id}-{name}", sub_task_type="contrast", message=message)
