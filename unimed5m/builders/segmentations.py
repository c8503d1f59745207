"""The eight segmentation sets of the paper's section 5.4."""

from pathlib import Path

import numpy as np

from ..templates.words import KIDNEY_LESION
from .base import Card, Source
from .readers import Channel, MaskPart, MaskSource, VolumeSource, any_value, bright

TORCH_EM = "https://github.com/constantinpape/torch-em/blob"
ABDOMEN_WINDOW = (40.0, 400.0)
# First frames of CVC-ClinicDB's sequences (29 are distinguished); a sequence is one patient's polyp.
CVC_STARTS = (
    1, 26, 51, 68, 79, 104, 127, 152, 178, 200, 206, 228, 253, 278, 298, 318, 343, 364, 384, 409, 429, 448, 467,
    479, 504, 529, 547, 572, 592,
)  # fmt: skip


def _cvc_sequence(path: Path) -> str:
    frame = int(path.stem)
    return f"sequence{sum(start <= frame for start in CVC_STARTS):02d}"


def _disc(levels: np.ndarray) -> np.ndarray:
    """REFUGE draws the disc with 128, the cup within it with 0, the rest with 255."""
    return levels <= 150


def _cup(levels: np.ndarray) -> np.ndarray:
    return levels <= 100


def _refuge_class(path: Path) -> dict[str, str]:
    return {"class": path.parent.name} if path.parent.name in ("Glaucoma", "Non-Glaucoma") else {}


SOURCES: tuple[Source, ...] = (
    VolumeSource(
        name="kits",
        card=Card(
            title="KiTS (2019 layout; 2021 and 2023 keep it under another folder)",
            url="https://github.com/neheller/kits19",
            license="CC BY-NC-SA 4.0",
            license_tier="B",
            redistributable="non-commercial",
            layout="data/case_00000/imaging.nii.gz and segmentation.nii.gz",
            layout_source="https://github.com/neheller/kits19/blob/02ff2f9a1a30ed6dfa007a862e7a2e0c0c50c1ac/README.md",
            paper="Table 18",
            notes="Slices lie along the first axis, whatever the header says; window 40/400 HU. Label 2 is tumor; "
            "kidney is labels 1 to 3.",
        ),
        tasks=("segmentation",),
        cases=("data/case_*", "dataset/case_*", "case_*"),
        channels={"ct": Channel("imaging.nii.gz", "abdominal CT slice", "CT", ABDOMEN_WINDOW)},
        labels="segmentation.nii.gz",
        structures={"kidneys": (1, 2, 3), KIDNEY_LESION: (2,)},
        on="ct",
        slice_axis=0,
    ),
    MaskSource(
        name="qata-cov19",
        card=Card(
            title="QaTa-COV19 version 2",
            url="https://www.kaggle.com/datasets/aysendegerli/qatacov19-dataset",
            license="Not stated on the pages read here",
            license_tier="C",
            redistributable="unclear",
            layout="QaTa-COV19-v2/Train Set/Images, .../Ground-truths/mask_NAME.png and the same in Test Set",
            layout_source="https://github.com/bio-mlhui/MyFramework/blob/6480ce18a16fb4ad0022f6aff8a85b4b0777148e/"
            "data_schedule/rios/qata.py",
            paper="Table 18",
        ),
        tasks=("segmentation",),
        parts=tuple(
            tuple(
                MaskPart(f"{place}{folder}/Images/*", f"{place}{folder}/Ground-truths/mask_{{stem}}.*", split)
                for folder, split in (("Train Set", "train"), ("Test Set", "test"))
            )
            for place in ("QaTa-COV19/QaTa-COV19-v2/", "QaTa-COV19-v2/", "")
        ),
        structures={"COVID-19 infection": bright},
        modality="CXR",
        description="chest radiograph",
    ),
    MaskSource(
        name="busi",
        card=Card(
            title="BUSI",
            url="https://scholar.cu.edu.eg/?q=afahmy/pages/dataset",
            license="Article CC BY 4.0; a Kaggle copy says CC0; the publisher's page states none",
            license_read=False,
            license_tier="C",
            redistributable="unclear",
            layout="Dataset_BUSI_with_GT/benign/benign (1).png and benign (1)_mask.png, also malignant and normal",
            layout_source=f"{TORCH_EM}/387a3e9701fe7e2ce2af3a3bd9216e2384d7f97a/torch_em/data/datasets/medical/busi.py",
            paper="Table 18",
            notes="Several masks of an image (_mask_1) are united. Normal images have empty masks and only the label. "
            "Patients are not stated: 780 images of 600 women, so splits may share some.",
        ),
        tasks=("segmentation", "diagnosis"),
        parts=tuple(
            (MaskPart(f"{place}*/* (*).png", f"{place}{{parent}}/{{stem}}_mask*.png", skip="_mask"),)
            for place in ("Dataset_BUSI_with_GT/", "")
        ),
        structures={"breast lesion": any_value},
        modality="US",
        description="breast ultrasound image",
    ),
    MaskSource(
        name="cvc-clinicdb",
        card=Card(
            title="CVC-ClinicDB",
            url="https://polyp.grand-challenge.org/CVCClinicDB/",
            license="Research and education; images of Hospital Clinic and masks of the Computer Vision Center, Spain",
            license_read=False,
            license_tier="C",
            redistributable="no",
            layout="Original/1.tif and Ground Truth/1.tif (a PNG copy in PNG/ is read as well)",
            layout_source="https://github.com/openmedlab/Awesome-Medical-Dataset/blob/"
            "8d9533156bc719af7fcedbf5256a039e8a139e50/resources/CVC-ClinicDB.md",
            paper="Table 18",
            notes="Splits by sequence, as divided in https://github.com/dataset-ninja/cvc-612/blob/"
            "e641d7c5a7205358539bded385463db0ebb09ec4/src/convert.py.",
        ),
        tasks=("segmentation",),
        parts=tuple(
            (MaskPart(f"{place}Original/*", f"{place}Ground Truth/{{stem}}.*"),)
            for place in ("", "PNG/", "CVC-ClinicDB/", "TIF/")
        ),
        structures={"polyp": bright},
        modality="ENDO",
        description="colonoscopy frame",
        group=_cvc_sequence,
    ),
    MaskSource(
        name="glas",
        card=Card(
            title="GlaS (Warwick-QU)",
            url="https://warwick.ac.uk/fac/cross_fac/tia/data/glascontest/",
            license="Research use, as stated by the challenge",
            license_read=False,
            license_tier="C",
            redistributable="no",
            layout="Warwick_QU_Dataset/train_1.bmp and train_1_anno.bmp, also testA_ and testB_",
            layout_source=f"{TORCH_EM}/4aa672f0a0a354ba4fc24b4f88f2ab9efa09cc01/"
            "torch_em/data/datasets/histopathology/glas.py",
            paper="Table 18",
            notes="Every gland has its own number in the mask; all of them are the structure.",
        ),
        tasks=("segmentation",),
        parts=tuple(
            tuple(
                MaskPart(f"{place}{part}_*.bmp", f"{place}{{stem}}_anno.bmp", split, "_anno")
                for part, split in (("train", "train"), ("testA", "test"), ("testB", "test"))
            )
            for place in ("Warwick_QU_Dataset/", "Warwick QU Dataset (Released 2016_07_08)/", "")
        ),
        structures={"glands": any_value},
        modality="HIS",
        description="H&E image of the colon",
    ),
    MaskSource(
        name="isic2018",
        card=Card(
            title="ISIC 2018, task 1",
            url="https://challenge.isic-archive.com/data/#2018",
            license="CC BY-NC 4.0, as listed by https://datasetninja.com/isic-challenge-2018",
            license_tier="B",
            redistributable="non-commercial",
            layout="ISIC2018_Task1-2_Training_Input/ISIC_0000000.jpg and "
            "ISIC2018_Task1_Training_GroundTruth/ISIC_0000000_segmentation.png, also Validation and Test",
            layout_source=f"{TORCH_EM}/30a7b56cf5ddaa1346ac1cc2253b3ad25c8a1ecc/torch_em/data/datasets/medical/isic.py",
            paper="Table 18",
            notes="Dermoscopy is none of the paper's eight modalities; records say DERM. Single images may have other "
            "terms.",
        ),
        tasks=("segmentation",),
        parts=(
            tuple(
                MaskPart(
                    f"ISIC2018_Task1-2_{part}_Input/*.jpg",
                    f"ISIC2018_Task1_{part}_GroundTruth/{{stem}}_segmentation.png",
                    split,
                )
                for part, split in (("Training", "train"), ("Validation", "validation"), ("Test", "test"))
            ),
        ),
        structures={"skin lesion": bright},
        modality="DERM",
        description="dermoscopy image",
    ),
    MaskSource(
        name="kvasir-seg",
        card=Card(
            title="Kvasir-SEG",
            url="https://datasets.simula.no/kvasir-seg/",
            license="Research and education; commercial use by permission",
            license_tier="B",
            redistributable="non-commercial",
            layout="images/NAME.jpg and masks/NAME.jpg",
            layout_source="https://github.com/openmedlab/Awesome-Medical-Dataset/blob/"
            "8d9533156bc719af7fcedbf5256a039e8a139e50/resources/Kvasir-SEG.md",
            paper="Table 18",
            notes="Masks are JPEG: brighter than half is polyp.",
        ),
        tasks=("segmentation",),
        parts=tuple((MaskPart(f"{place}images/*", f"{place}masks/{{stem}}.*"),) for place in ("Kvasir-SEG/", "")),
        structures={"polyp": bright},
        modality="ENDO",
        description="colonoscopy frame",
    ),
    MaskSource(
        name="refuge",
        card=Card(
            title="REFUGE",
            url="https://refuge.grand-challenge.org/",
            license="Terms of the challenge; access after registration",
            license_read=False,
            license_tier="C",
            redistributable="no",
            layout="Training400/Glaucoma/g0001.jpg and Annotation-Training400/.../Disc_Cup_Masks/Glaucoma/g0001.bmp, "
            "REFUGE-Validation400 and Test400 with their -GT folders",
            layout_source="https://github.com/bioidiap/bob.ip.binseg/tree/13d18254fd52b850f18b75917ef37ba8b5a54ace/"
            "bob/ip/binseg/data/refuge",
            paper="Table 18",
            notes="Image folders and mask values (0 cup, 128 rim, 255 outside) follow the cited loader; the masks' "
            "folders are those that other public loaders read.",
        ),
        tasks=("segmentation",),
        parts=(
            (
                MaskPart(
                    "Training400/*/*.jpg", "Annotation-Training400/**/Disc_Cup_Masks/{parent}/{stem}.bmp", "train"
                ),
                MaskPart("REFUGE-Validation400/**/*.jpg", "REFUGE-Validation400-GT/**/{stem}.bmp", "validation"),
                MaskPart("Test400/**/*.jpg", "REFUGE-Test-GT/**/{stem}.bmp", "test"),
            ),
        ),
        structures={"optic disc": _disc, "optic cup": _cup},
        modality="CFP",
        description="fundus photograph",
        extra=_refuge_class,
    ),
)
