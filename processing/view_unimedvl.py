"""What to show of an image file: the one description that commands, conversations and records share."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .pixel_windows_unimedvl import MAX_IMAGE_PIXELS, checked_percentiles, checked_window, value_range

PLANES = ("sagittal", "coronal", "axial")
# Slices across an axis of the array as they lie in the file, for volumes whose orientation cannot be trusted.
ARRAY_PLANES = ("axis-0", "axis-1", "axis-2")
SCOPES = ("volume", "slice")
# Who opens a file decides about limits and the network; a stored view never does.
LIMITS = ("max_pixels", "allow_url", "max_values")


@dataclass(frozen=True)
class View:
    """Which slice of which file is shown, and how its numbers become gray levels.

    Args:
        window: (center, width) in the image's own units, for example (40, 400) HU for soft tissue in a CT.
        frame: of a multi-frame DICOM file (the middle one by default), a 4-D NIfTI volume (required), a TIFF or GIF
            (the first by default), from 0.
        plane: of a NIfTI volume: "axial", "coronal" or "sagittal" in the patient, or "axis-0" to "axis-2" for the
            array as it lies in the file.
        slice_index: slice of a NIfTI volume or of a DICOM series, from 0; the middle one by default.
        percentiles: (low, high) in 0..100: what becomes black and white where neither a window nor 8-bit levels are
            given.
        percentiles_of: "volume" counts all slices, frames or pages of the source, so that the slices of a volume
            compare with each other; "slice" counts the shown one only.
        max_pixels: larger images are refused.
        allow_url: whether http(s) URLs may be fetched.
        max_values: larger volumes, and larger sums of frames or pages whose percentiles count, are refused; by default
            each kind of file has a bound of its own.

    Raises:
        ValueError: one sentence, for a value that no image can have.
    """

    window: tuple[float, float] | None = None
    frame: int | None = None
    plane: str | None = None
    slice_index: int | None = None
    percentiles: tuple[float, float] = (0.5, 99.5)
    percentiles_of: str = "volume"
    max_pixels: int = MAX_IMAGE_PIXELS
    allow_url: bool = False
    max_values: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", checked_window(self.window))
        object.__setattr__(self, "percentiles", checked_percentiles(self.percentiles))
        for name in ("frame", "slice_index"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _checked_whole(getattr(self, name), name, 0))
        object.__setattr__(self, "max_pixels", _checked_whole(self.max_pixels, "max_pixels", 1))
        if self.max_values is not None:
            object.__setattr__(self, "max_values", _checked_whole(self.max_values, "max_values", 1))
        if self.plane is not None and self.plane not in (*PLANES, *ARRAY_PLANES):
            raise ValueError(
                f"plane={self.plane!r}: choose 'axial', 'coronal' or 'sagittal', or 'axis-0' to 'axis-2' for the "
                "array as it lies in the file."
            )
        if self.percentiles_of not in SCOPES:
            raise ValueError(f"percentiles_of={self.percentiles_of!r}: choose 'volume' or 'slice'.")
        if not isinstance(self.allow_url, bool):
            raise ValueError(f"allow_url={self.allow_url!r}: pass True or False.")

    def black_white(self, chunks: Iterable[np.ndarray]) -> tuple[float, float]:
        """The values that become black and white: those of the window, else the percentiles of all `chunks` together.

        Args:
            chunks: what counts, arrays of real numbers; they are not read where there is a window.

        Raises:
            ValueError: one sentence, if the percentiles are needed and no value is finite.
        """
        if self.window is not None:
            return self.window[0] - self.window[1] / 2, self.window[0] + self.window[1] / 2
        return value_range(chunks, self.percentiles)

    def refuse_slice(self) -> None:
        """Raise ValueError if a slice is chosen: for sources that have none."""
        if self.plane is not None or self.slice_index is not None:
            raise ValueError(
                "plane and slice_index choose a slice of a NIfTI volume, slice_index also of a DICOM series: leave "
                "them out for an image."
            )

    def to_dict(self) -> dict[str, Any]:
        """The view as plain JSON values, without its limits.

        Defaults are written out, so that a record keeps its pixels where a default changes.

        Returns:
            Every field but `max_pixels`, `allow_url` and `max_values`.
        """
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in LIMITS}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **limits: Any) -> "View":
        """Read what `to_dict` wrote; fields that are missing have their defaults.

        Args:
            values: fields by name, without limits: data must not raise them or turn on the network.
            limits: `max_pixels`, `allow_url` and `max_values` of whoever opens the image.

        Raises:
            ValueError: one sentence, for an unknown field or a value that no image can have.
        """
        unknown = sorted(set(values) - (cls.__dataclass_fields__.keys() - set(LIMITS)))
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: not a field of a stored view.")
        return cls(**values, **limits)


def _checked_whole(value: Any, name: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name}={value!r}: choose a whole number from {least}.")
    return int(value)
