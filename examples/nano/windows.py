"""One image in the windows in which others show such images.

A slice that the data hold in one window is met in another one by whoever opens a volume; what a nano says of it must
not hang on that. Slices whose Hounsfield units are known are shown in every standard window that their levels can
give; where they are not known, levels are stretched, raised or lowered.
"""

from collections.abc import Iterator, Sequence

import numpy

# Hounsfield units of black and white.
CT_WINDOWS = {
    "soft tissue": (-160, 240),
    "lung": (-1350, 150),
    "liver": (-20, 140),
}
AIR = -1000  # nothing in a body has less
# A window of fewer of the 256 stored levels would show steps.
FEWEST_LEVELS = 60
# Exponents on a scale from 0 to 1, and percentiles that become black and white.
GAMMAS = {"bright": 0.6, "dim": 1.7}
PERCENTILES = (1, 97)
GRAY_MODALITIES = ("CXR", "CT", "MRI", "US", "OCT")
# Modalities of few images, which are shown in every window; one in `SHARE` of the others is shown in one of them.
FEW = ("CT", "OCT")
SHARE = 3


def windowed(pixels: numpy.ndarray, stored: Sequence[int], window: Sequence[int]) -> numpy.ndarray:
    """The slice in another window.

    Args:
        pixels: uint8, any shape, black and white at the units `stored`.
        stored: (low, high) in Hounsfield units.
        window: (low, high) in Hounsfield units, with `can_show`.
    """
    units = stored[0] + pixels / 255.0 * (stored[1] - stored[0])
    return _levels((units - window[0]) / (window[1] - window[0]))


def can_show(stored: Sequence[int], window: Sequence[int]) -> bool:
    """Whether the levels of a stored slice hold all that another window shows, finely enough."""
    covered = min(stored[1], window[1]) - max(stored[0], window[0])
    whole = window[1] <= stored[1] and (window[0] >= stored[0] or stored[0] <= AIR)
    return whole and list(window) != list(stored) and 255 * covered / (stored[1] - stored[0]) >= FEWEST_LEVELS


def views_of(
    pixels: numpy.ndarray, modality: str, stored: Sequence[int] | None, number: int
) -> Iterator[tuple[str, numpy.ndarray]]:
    """Names and pixels of the other windows in which an image is shown; none for images of color.

    Args:
        pixels: uint8 (H, W) or (H, W, 3), gray.
        stored: (low, high) in Hounsfield units of black and white, if they are known.
        number: decides which of the views an image of a modality of many images gets, if any.
    """
    if modality not in GRAY_MODALITIES:
        return
    if stored is not None:
        for name, window in CT_WINDOWS.items():
            if can_show(stored, window):
                yield f"{name} window", windowed(pixels, stored, window)
        return
    names = [*GAMMAS, "stretched"]
    if modality not in FEW:
        names = [names[number // SHARE % len(names)]] if number % SHARE == 0 else []
    for name in names:
        if name == "stretched":
            low, high = numpy.percentile(pixels, PERCENTILES)
            share = (pixels - low) / max(high - low, 1.0)
        else:
            share = (pixels / 255.0) ** GAMMAS[name]
        yield name, _levels(share)


def _levels(share: numpy.ndarray) -> numpy.ndarray:
    return numpy.round(255 * numpy.clip(share, 0.0, 1.0)).astype(numpy.uint8)
