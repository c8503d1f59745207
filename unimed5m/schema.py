"""The record of UniMed-5M: one sample of any task, with its images, its conversation and where it came from.

The first seven fields are the paper's (UniMedVL, section 3.1 and Figure 3); the others say what may be done with the
record and which records belong together. `Record` is the validated Python object; a row is a dict that `datasets` and
pyarrow read and write with `FEATURES`; the foreign layouts are in `unimedvl.unimed5m.formats`.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow

if TYPE_CHECKING:
    import datasets

IMAGE_PLACEHOLDER = "<image>"

MAIN_TASK_TYPES = (
    "image_generation",
    "image_understanding",
    "multimodal_input_output",
    "counterfactual_generation",
    "text_only",
)
# The tasks that this package builds. Imported records may carry other names.
SUB_TASK_TYPES = (
    "vqa",
    "diagnosis",
    "caption",
    "report",
    "text_to_image",
    "planned_text_to_image",
    "segmentation",
    "super_resolution",
    "counterfactual",
    "virtual_staining",
    "cross_modal",
    "restoration",
    "dialogue",
    "reasoning",
)
# The paper's eight, dermoscopy (in its segmentation benchmark only), and RAD: radiology of no stated kind.
MODALITIES = ("CFP", "CXR", "CT", "HIS", "MRI", "OCT", "US", "ENDO", "DERM", "RAD", "TEXT")
SPLITS = ("train", "validation", "test")
ROLES = ("system", "human", "gpt")
UNKNOWN = "unknown"


def features(*, decode: bool = True) -> "datasets.Features":
    """The columns of a record for `datasets`.

    Args:
        decode: True gives images as PIL images; False gives the stored bytes, which `Record.from_row` needs.
    """
    import datasets  # slow to import, and a machine that only trains on a drawn batch does without it

    text = datasets.Value("string")
    image = {
        "image": datasets.Image(decode=decode),
        "path": text,
        "height": datasets.Value("int32"),
        "width": datasets.Value("int32"),
        "sha256": text,
    }
    return datasets.Features(
        {
            "id": text,
            "main_task_type": text,
            "sub_task_type": text,
            "modality": text,
            "dataset": text,
            "input_img": datasets.List(image),
            "output_img": datasets.List(image),
            "message": datasets.List({"from": text, "value": text}),
            "license": text,
            "license_tier": text,
            "redistributable": text,
            "provenance": text,
            "split": text,
            "group_id": text,
            "content_hash": text,
            "synthetic": datasets.Value("bool"),
            "quality": {
                "s": datasets.Value("float64"),
                "m": datasets.Value("float64"),
                "s_final": datasets.Value("float64"),
                "scope": text,
            },
            "extra": text,
        }
    )


FEATURES: "datasets.Features"
ARROW_SCHEMA: pyarrow.Schema


def __getattr__(name: str) -> Any:
    """`FEATURES` and `ARROW_SCHEMA`, made at their first use for the sake of `features`' import."""
    if name == "FEATURES":
        value: Any = features()
    elif name == "ARROW_SCHEMA":
        value = features().arrow_schema
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault(name, value)


@dataclasses.dataclass(frozen=True)
class RecordImage:
    """One image of a record.

    Attributes:
        data: the encoded file (PNG, JPEG, ...) as stored, or None where only the path is known.
        path: name of the file in the source, relative to its folder. It identifies the image when `data` is None.
        height: pixels, 0 if unknown.
        width: pixels, 0 if unknown.
        sha256: hex digest of `data`, kept without `data` so that a relinked file can be checked; "" if unknown.
        view: where a builder saw it, if its bytes are not the file's own: the entry that `Source.records` puts into
            `extra.views` of the record. No column holds it.
    """

    data: bytes | None
    path: str
    height: int
    width: int
    sha256: str = ""
    view: Mapping[str, Any] | None = dataclasses.field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.data is not None and not self.sha256:
            object.__setattr__(self, "sha256", hashlib.sha256(self.data).hexdigest())

    def to_row(self) -> dict[str, Any]:
        """The image as an entry of the columns `input_img` and `output_img`."""
        return {
            "image": None if self.data is None else {"bytes": self.data, "path": None},
            "path": self.path,
            "height": self.height,
            "width": self.width,
            "sha256": self.sha256,
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "RecordImage":
        """Read an entry of `input_img` or `output_img` whose image is undecoded.

        Raises:
            ValueError: if the image is decoded: its original bytes are lost.
        """
        image = row["image"]
        if image is not None and not isinstance(image, Mapping):
            raise ValueError(
                "image: expected undecoded bytes, found a decoded image: cast the data set with "
                "features(decode=False)."
            )
        data = None if image is None else image["bytes"]
        return cls(data, row["path"] or "", row["height"] or 0, row["width"] or 0, row["sha256"] or "")


@dataclasses.dataclass(frozen=True)
class Turn:
    """One turn: `role` is one of `ROLES`, `value` the text with `<image>` placeholders, which "system" has none of."""

    role: str
    value: str


@dataclasses.dataclass(frozen=True)
class Quality:
    """Alignment scores of image and text (paper, section 3.1, equation 2), None where not computed.

    Attributes:
        s: similarity of the text to captions of the image, scaled to [0, 1].
        m: similarity of text and image, scaled to [0, 1].
        s_final: 0.5 * s + m.
        scope: within what the scores were scaled and ranked: "global", "modality" or "source".
    """

    s: float | None = None
    m: float | None = None
    s_final: float | None = None
    scope: str = ""


@dataclasses.dataclass(frozen=True)
class Record:
    """One sample.

    The k-th `<image>` of the human turns is `input_img[k]`, the k-th of the gpt turns is `output_img[k]`: the
    placeholder's place says whether an output image comes before or after its text. Turns without any placeholder
    mean "input images first" (before the first human turn) and "output image last", as in the authors' files.

    Attributes:
        id: unique name (`record_id`).
        main_task_type: one of `MAIN_TASK_TYPES`.
        sub_task_type: the task; those built here are `SUB_TASK_TYPES`.
        modality: one of `MODALITIES` for records built here.
        dataset: name of the source data set.
        input_img: images that the model sees.
        output_img: images that the model makes.
        message: the conversation; humans ask, gpt answers, last of all.
        license: license of the source, in words.
        license_tier: the reader's class of that license ("A" permissive, "B" with conditions, "C" unclear), or "".
        redistributable: what may be passed on, in words ("yes", "no", "non-commercial", "unclear", ...).
        provenance: where exactly the sample was taken from (repository@commit:path, package, file).
        split: "train", "validation" or "test".
        group_id: patient, slide or whatever must not be on two sides of a split.
        content_hash: digest of what the model sees and makes; computed if left empty.
        synthetic: whether an image or text was made up (a drawn lesion) rather than acquired or written by people.
        quality: alignment scores, or None before they are computed.
        extra: JSON object of the columns that the record has no field for.
    """

    id: str
    main_task_type: str
    sub_task_type: str
    modality: str
    dataset: str
    input_img: tuple[RecordImage, ...]
    output_img: tuple[RecordImage, ...]
    message: tuple[Turn, ...]
    license: str
    license_tier: str
    redistributable: str
    provenance: str
    split: str
    group_id: str
    content_hash: str = ""
    synthetic: bool = False
    quality: Quality | None = None
    extra: str = "{}"

    def __post_init__(self) -> None:
        for name in ("input_img", "output_img", "message"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.content_hash:
            object.__setattr__(self, "content_hash", content_hash(self))

    def validate(self) -> None:
        """Check every field.

        Raises:
            ValueError: with one line that names the field, what was expected and what was found.
        """
        for name in _REQUIRED_TEXTS:
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise self._wrong(name, "a text", value)
            self._check_encodable(name, value)
        self._check_encodable("license_tier", self.license_tier)
        if self.main_task_type not in MAIN_TASK_TYPES:
            raise self._wrong("main_task_type", f"one of {', '.join(MAIN_TASK_TYPES)}", self.main_task_type)
        if self.split not in SPLITS:
            raise self._wrong("split", f"one of {', '.join(SPLITS)}", self.split)
        for name in ("input_img", "output_img"):
            for index, image in enumerate(getattr(self, name)):
                self._check_image(f"{name}[{index}]", image)
        self._check_message()
        if self.content_hash != content_hash(self):
            raise self._wrong("content_hash", content_hash(self), self.content_hash)
        self._check_extra()

    def _check_encodable(self, name: str, text: str) -> None:
        """Half a surrogate pair, as JSON can spell and file names can hold, has no place in a UTF-8 column."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            around = text[max(0, error.start - 20) : error.end + 20]
            raise self._wrong(name, "text that UTF-8 can hold", around) from error

    def _check_image(self, name: str, image: RecordImage) -> None:
        self._check_encodable(f"{name}.path", image.path)
        if image.data is None and not image.path:
            raise self._wrong(name, "image bytes or a path", "neither")
        if image.data is not None and image.sha256 != hashlib.sha256(image.data).hexdigest():
            raise self._wrong(f"{name}.sha256", "the digest of the bytes", image.sha256)
        if image.data is not None and (image.height < 1 or image.width < 1):
            raise self._wrong(name, "a size of at least 1x1", f"{image.height}x{image.width}")

    def _check_message(self) -> None:
        if not self.message:
            raise self._wrong("message", "at least one turn", "none")
        for index, turn in enumerate(self.message):
            if turn.role not in ROLES:
                raise self._wrong(f"message[{index}].from", f"one of {', '.join(ROLES)}", turn.role)
            if not isinstance(turn.value, str):
                raise self._wrong(f"message[{index}].value", "a text", turn.value)
            self._check_encodable(f"message[{index}].value", turn.value)
            if turn.role == "system" and IMAGE_PLACEHOLDER in turn.value:
                raise self._wrong(f"message[{index}].value", "no image in a system turn", IMAGE_PLACEHOLDER)
        if not any(turn.role == "human" for turn in self.message):
            raise self._wrong("message", "a turn from human", "none")
        if self.message[-1].role != "gpt":
            raise self._wrong("message", "a last turn from gpt", self.message[-1].role)
        if self.main_task_type == "text_only" and (self.input_img or self.output_img):
            raise self._wrong("input_img", "no image in a text_only record", "images")
        for role, name in (("human", "input_img"), ("gpt", "output_img")):
            images = len(getattr(self, name))
            places = sum(turn.value.count(IMAGE_PLACEHOLDER) for turn in self.message if turn.role == role)
            if places not in (0, images):
                raise self._wrong(
                    "message", f"no or {images} {IMAGE_PLACEHOLDER} in {role} turns, as in {name}", places
                )

    def _check_extra(self) -> None:
        self._check_encodable("extra", self.extra)
        try:
            extra = json.loads(self.extra)
        except ValueError as error:
            raise self._wrong("extra", "a JSON object", repr(self.extra[:40])) from error
        if not isinstance(extra, dict):
            raise self._wrong("extra", "a JSON object", repr(self.extra[:40]))

    def _wrong(self, field: str, expected: str, found: object) -> ValueError:
        return ValueError(f"record {self.id!r}: {field}: expected {expected}, found {found!r}.")

    def to_row(self) -> dict[str, Any]:
        """The record as a dict with the columns of `FEATURES`."""
        row: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        row["input_img"] = [image.to_row() for image in self.input_img]
        row["output_img"] = [image.to_row() for image in self.output_img]
        row["message"] = [{"from": turn.role, "value": turn.value} for turn in self.message]
        row["quality"] = None if self.quality is None else dataclasses.asdict(self.quality)
        return row

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Record":
        """Read a dict with the columns of `FEATURES`, images undecoded.

        Raises:
            ValueError: naming a column that is missing or unknown.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if set(row) != names:
            missing, unknown = sorted(names - set(row)), sorted(set(row) - names)
            raise ValueError(f"row: expected the columns of a record, found missing {missing} and unknown {unknown}.")
        values = dict(row)
        values["input_img"] = tuple(RecordImage.from_row(entry) for entry in row["input_img"])
        values["output_img"] = tuple(RecordImage.from_row(entry) for entry in row["output_img"])
        values["message"] = tuple(Turn(entry["from"], entry["value"]) for entry in row["message"])
        values["quality"] = None if row["quality"] is None else Quality(**row["quality"])
        return cls(**values)

    def text(self) -> str:
        """The whole text of the record, one line per turn, without placeholders."""
        return "\n".join(turn.value.replace(IMAGE_PLACEHOLDER, "").strip() for turn in self.message)

    def replace(self, **changes: Any) -> "Record":
        """A copy with other values; the content hash is computed anew."""
        return dataclasses.replace(self, **{"content_hash": "", **changes})


_REQUIRED_TEXTS = (
    "id", "main_task_type", "sub_task_type", "modality", "dataset", "license", "redistributable", "provenance",
    "split", "group_id",
)  # fmt: skip


def record_id(dataset: str, original_id: str, task: str, variant: str = "") -> str:
    """A name that is the same on every machine and in every run: 24 hex digits.

    Args:
        dataset: name of the source.
        original_id: the sample's name in the source.
        task: sub-task type of the record.
        variant: distinguishes several records of one sample and task (question number, class, scale).
    """
    return _digest([dataset, original_id, task, variant])[:24]


def content_hash(record: Record) -> str:
    """Digest of what the model sees and makes: task, images in order, conversation. 64 hex digits.

    Where a record comes from, its split, scores and license do not enter: two sources with the same sample agree.
    Images count by their bytes' digest, or by their path where that is unknown.
    """
    inputs, outputs = (
        [image.sha256 or image.path for image in images] for images in (record.input_img, record.output_img)
    )
    turns = [[turn.role, turn.value] for turn in record.message]
    return _digest([record.main_task_type, record.sub_task_type, inputs, outputs, turns])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode("ascii")).hexdigest()


def to_table(records: Iterable[Record]) -> pyarrow.Table:
    """The records as an Arrow table with `ARROW_SCHEMA`."""
    return pyarrow.Table.from_pylist([record.to_row() for record in records], schema=features().arrow_schema)


def from_table(table: pyarrow.Table) -> list[Record]:
    """The records of an Arrow table with the columns of `ARROW_SCHEMA`."""
    return [Record.from_row(row) for row in table.to_pylist()]
