"""Real images that come inside Python packages, with what is known of them: what the demonstration shows a model.

No nano checkpoint was trained on any of them. What is stated here comes from the packages (for DICOM files from the
tag Modality), but for the outline of the optic disc, which was drawn by eye.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from ..processing.medical_formats_unimedvl import open_image
from ..processing.view_unimedvl import View
from ..unimed5m.templates.words import MODALITY_NAMES

MODALITY_QUESTION = "What imaging modality is this?"
NOT_MEDICAL = "not a medical image"
# Center and half axes of the optic disc in the fundus photograph, as shares of its width and height.
DISC_CENTER, DISC_AXES = (0.152, 0.4635), (0.0666, 0.0702)
# Gray levels (of 255) above which a pixel of the brain scan is brain, and the brightest share of those: fluid.
BRAIN_LEVEL, FLUID_SHARE = 25, 0.03


@dataclass(frozen=True)
class Question:
    """A question about an image and its right answer."""

    text: str
    truth: str


@dataclass(frozen=True)
class PackageImage:
    """An image of a package.

    Attributes:
        name: what it shows, in words that read after "the".
        package: name on the package index.
        path: where its file lies.
        questions: what is asked about it.
        view: what is shown of the file, as fields of `View`.
    """

    name: str
    package: str
    path: Callable[[], Path]
    questions: tuple[Question, ...] = ()
    view: dict[str, Any] = field(default_factory=dict)

    def open(self) -> Image.Image:
        """The image as a model is shown it, RGB.

        Raises:
            ValueError: if the installed package has it no longer, or it cannot be read.
        """
        path = self.path()
        if not path.is_file():
            raise ValueError(
                f"the installed {self.package} has no {path.name}: install the version of constraints.txt."
            )
        return open_image(path, View(**self.view)).convert("RGB")


def _inside(module: str, name: str) -> Callable[[], Path]:
    """A function that returns the path of a package's file without importing what is in the package."""

    def path() -> Path:
        found = find_spec(module)
        assert found is not None and found.origin is not None, f"{module} is required before any image is opened"
        return Path(found.origin).parent / name

    return path


def _asked(modality: str, closed: str, truth: str) -> tuple[Question, ...]:
    return Question(MODALITY_QUESTION, MODALITY_NAMES.get(modality, modality)), Question(closed, truth)


FUNDUS = PackageImage(
    "fundus photograph",
    "scikit-image",
    _inside("skimage", "data/retina.jpg"),
    _asked("CFP", "Is this a fundus photograph?", "yes"),
)
SECTION = PackageImage(
    "immunohistochemistry section",
    "scikit-image",
    _inside("skimage", "data/ihc.png"),
    _asked("HIS", "Is this a chest X-ray?", "no"),
)
CT = PackageImage(
    "CT of the spine",
    "pydicom",
    _inside("pydicom", "data/test_files/CT_small.dcm"),
    _asked("CT", "Is this an MRI image?", "no"),
)
MRI = PackageImage(
    "MRI of the abdomen",
    "pydicom",
    _inside("pydicom", "data/test_files/examples_overlay.dcm"),
    _asked("MRI", "Is this an MRI image?", "yes"),
)
ULTRASOUND = PackageImage(
    "ultrasound of the heart",
    "pydicom",
    _inside("pydicom", "data/test_files/examples_ybr_color.dcm"),
    _asked("US", "Is this an ultrasound image?", "yes"),
    {"frame": 0},
)
CAT = PackageImage(
    "photograph of a cat",
    "scikit-image",
    _inside("skimage", "data/chelsea.png"),
    _asked(NOT_MEDICAL, "Is this a medical image?", "no"),
)
# An echo-planar series in which fluid is bright, as in T2 images; no other sequence of this brain is there.
BRAIN = PackageImage(
    "echo-planar MRI of the brain, fluid bright as in T2",
    "nibabel",
    _inside("nibabel", "tests/data/example4d.nii.gz"),
    view={"frame": 0, "plane": "axial", "slice_index": 12},
)
MEDICAL = (FUNDUS, SECTION, CT, MRI, ULTRASOUND)
ASKED = (*MEDICAL, CAT)


def disc_mask(size: tuple[int, int]) -> numpy.ndarray:
    """The optic disc of the fundus photograph at a size of (width, height), bool (height, width)."""
    width, height = size
    rows, columns = numpy.mgrid[:height, :width]
    across = ((columns + 0.5) / width - DISC_CENTER[0]) / DISC_AXES[0]
    down = ((rows + 0.5) / height - DISC_CENTER[1]) / DISC_AXES[1]
    return across**2 + down**2 <= 1


def fluid_levels(before: Image.Image, after: Image.Image) -> tuple[float, float]:
    """What a translation to FLAIR, in which fluid is dark, made of the fluid of a T2 image.

    Args:
        before: the T2 image; the brightest `FLUID_SHARE` of its brain counts as fluid.
        after: its translation, of any size.

    Returns:
        The mean gray level of `after` in the fluid and in the rest of the brain, each in [0, 255].
    """
    given = numpy.asarray(before.convert("L"))
    made = numpy.asarray(after.convert("L").resize(before.size, Image.Resampling.BICUBIC), dtype=numpy.float64)
    brain = given > BRAIN_LEVEL
    fluid = brain & (given >= numpy.quantile(given[brain], 1 - FLUID_SHARE))
    return float(made[fluid].mean()), float(made[brain & ~fluid].mean())
