"""Uploaded images: what kind each file is, which of its slices and frames there are, and which part is shown."""

import secrets
from dataclasses import dataclass, field, replace
from pathlib import Path

from unimedvl.processing.array_images_unimedvl import ArrayImage
from unimedvl.processing.dicom_series_unimedvl import DicomSeries
from unimedvl.processing.dicom_unimedvl import DicomFile
from unimedvl.processing.medical_formats_unimedvl import Opened, opened
from unimedvl.processing.nifti_unimedvl import NiftiVolume
from unimedvl.processing.stored_values_unimedvl import DeepTiff
from unimedvl.processing.view_unimedvl import ARRAY_PLANES, PLANES, View
from unimedvl.utils.digests import hash_file, hash_files
from unimedvl.utils.errors import describe_error, expected_errors

# Center and width in Hounsfield units, as radiology sets them.
WINDOWS: dict[str, tuple[float, float]] = {
    "Lung": (-600.0, 1500.0),
    "Bone": (400.0, 1800.0),
    "Brain": (40.0, 80.0),
    "Soft tissue": (40.0, 400.0),
}
STORED, CUSTOM = "As stored", "Custom"


@dataclass(frozen=True)
class Source:
    """An image, volume or series, and what is shown of it.

    Attributes:
        name: what the person called it; it is never logged.
        path: the file, or the folder of a series.
        kind: "image", "DICOM", "DICOM series", "NIfTI", "TIFF" or "array".
        planes: slices by plane; one entry named "" for a series, none for what has no slices.
        frames: number of frames or pages, at least 1.
        size: width and height of the view that came first, in pixels.
        has_levels: whether a window chooses from more gray levels than a screen shows.
        view: what is shown.
        digest: SHA-256 of the file, or of a series' names and contents.
        key: distinguishes two uploads of the same file.
    """

    name: str
    path: Path
    kind: str
    planes: dict[str, int]
    frames: int
    size: tuple[int, int]
    has_levels: bool
    view: View
    digest: str
    key: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def num_slices(self) -> int:
        """Slices of the plane that is shown, 0 for what has none."""
        return self.planes.get(self.view.plane or "", 0)

    def show(
        self,
        plane: str | None = None,
        slice_index: int | None = None,
        frame: int | None = None,
        window: tuple[float, float] | None = None,
    ) -> "Source":
        """The source with another view, of which only what it has is used; indices are held inside their ranges."""
        plane = plane if plane in self.planes and plane else (self.view.plane if self.planes else None)
        count = self.planes.get(plane or "", 0)
        middle = count // 2 if plane != self.view.plane else self.view.slice_index
        index = middle if slice_index is None or plane != self.view.plane else slice_index
        return replace(
            self,
            view=View(
                plane=plane or None,
                slice_index=None if not count else max(0, min(int(index or 0), count - 1)),
                frame=None if self.frames < 2 else max(0, min(int(frame or 0), self.frames - 1)),
                window=window if self.has_levels else None,
            ),
        )


def window_name(window: tuple[float, float] | None) -> str:
    """What the menu of windows calls one."""
    if window is None:
        return STORED
    return next((name for name, value in WINDOWS.items() if value == tuple(window)), CUSTOM)


def open_source(path: Path, name: str, view: View | None = None) -> Source:
    """Look at a file, or at the folder of a series, and choose a view of it.

    Args:
        path: where it is.
        name: what the person called it.
        view: what to show first; the middle of what there is by default.

    Raises:
        ValueError: one sentence with `name` in it, for what can not be shown.
    """
    try:
        with opened(path) as volume:
            source = _described(volume, path, name)
            chosen = source.show(plane=_first_plane(source.planes)) if view is None else replace(source, view=view)
            chosen = replace(chosen, size=volume.image(chosen.view).size)
    except expected_errors() as error:
        raise ValueError(named(error, path, name)) from None
    return chosen


def named(error: BaseException, path: Path, name: str) -> str:
    """An error's sentence with the person's name of a file in the place of its path."""
    text = describe_error(error).replace(str(path), name)
    return text if name in text else f"{name!r}: {text}"


def _first_plane(planes: dict[str, int]) -> str | None:
    return "axial" if "axial" in planes else next(iter(planes), None)


def _described(volume: Opened, path: Path, name: str) -> Source:
    kinds = {
        DicomFile: "DICOM",
        DicomSeries: "DICOM series",
        NiftiVolume: "NIfTI",
        DeepTiff: "TIFF",
        ArrayImage: "array",
    }
    kind = kinds.get(type(volume), "image")
    planes: dict[str, int] = {}
    if isinstance(volume, NiftiVolume):
        try:
            planes = {plane: volume.num_slices(plane) for plane in PLANES}
        except ValueError:
            planes = {plane: volume.num_slices(plane) for plane in ARRAY_PLANES}
    elif isinstance(volume, DicomSeries):
        planes = {"": len(volume.paths)}
    deep = getattr(volume, "is_deep", kind != "image")
    frames = int(getattr(volume, "frames", 1))
    if path.is_dir():
        digest = hash_files((file.name, file) for file in sorted(path.iterdir()) if file.is_file())
    else:
        digest = hash_file(path)
    return Source(name, path, kind, planes, frames, (0, 0), bool(deep), View(frame=0 if frames > 1 else None), digest)
