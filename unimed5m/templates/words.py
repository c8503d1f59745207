"""Words of records: the names of modalities, places and structures that questions and answers contain.

Models were trained on these spellings, so they stay as they are.
"""

MODALITY_NAMES = {
    "CFP": "colour fundus photography",
    "CXR": "chest X-ray",
    "CT": "computed tomography",
    "HIS": "microscopy",
    "MRI": "magnetic resonance imaging",
    "OCT": "optical coherence tomography",
    "US": "ultrasound",
    "ENDO": "endoscopy",
    "DERM": "dermoscopy",
}
SHORT_NAMES = MODALITY_NAMES | {
    "CFP": "colour fundus",
    "CT": "CT",
    "MRI": "MRI",
    "OCT": "OCT",
    "RAD": "radiology",
}
# Thirds of an image from top to bottom and from left to right, and the third that is in the middle of both.
VERTICAL_PLACES = ("upper", "middle", "lower")
HORIZONTAL_PLACES = ("left", "centre", "right")
CENTRAL_PLACE = "centre"
# KiTS, label 2.
KIDNEY_LESION = "kidney tumour"
