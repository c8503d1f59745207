"""Folders in the publishers' layouts: volumes, pairs and masks. Each function writes one and returns what it holds."""

from pathlib import Path

import numpy as np
from PIL import Image

from .fixtures_files import save_volume, write_image, write_mask, write_volume

Counts = dict[str, int]


def ixi(root: Path) -> Counts:
    write_volume(root / "IXI-T1" / "IXI002-Guys-0828-T1.nii.gz", 1)
    write_volume(root / "IXI-T2" / "IXI002-Guys-0828-T2.nii.gz", 2)
    write_volume(root / "IXI-T2" / "IXI012-HH-1211-T2.nii.gz", 3)
    # Three slices with content in each volume, by two ways of losing resolution.
    return {"super_resolution": 18}


def brats2023(root: Path) -> Counts:
    for number in ("00000-000", "00005-100"):
        case = f"BraTS-GLI-{number}"
        folder = root / "ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData" / case
        for seed, sequence in enumerate(("t1n", "t1c", "t2w", "t2f")):
            write_volume(folder / f"{case}-{sequence}.nii.gz", seed)
        save_volume(folder / f"{case}-seg.nii.gz", np.zeros((24, 20, 4), np.uint8))
    return {"cross_modal": 12}


def synthrad2023(root: Path, region: str, patient: str) -> Counts:
    folder = root / "Task1" / region / patient
    write_volume(folder / "mr.nii.gz", 1)
    # Air everywhere but in the slices that show the patient.
    ct = np.full((24, 20, 4), -1000, np.int16)
    ct[4:20, 4:16, 1:] = 40
    save_volume(folder / "ct.nii.gz", ct)
    save_volume(folder / "mask.nii.gz", np.ones((24, 20, 4), np.uint8))
    (root / "Task1" / region / "overview").mkdir()
    return {"cross_modal": 6}


def synthrad2023_brain(root: Path) -> Counts:
    return synthrad2023(root, "brain", "1BA001")


def synthrad2023_pelvis(root: Path) -> Counts:
    return synthrad2023(root, "pelvis", "1PA001")


def bci(root: Path) -> Counts:
    for seed, (split, name) in enumerate(
        (("train", "00000_train_1+"), ("train", "00001_train_3+"), ("test", "00000_test_0"))
    ):
        for stain in ("HE", "IHC"):
            write_image(root / stain / split / f"{name}.png", seed)
    return {"virtual_staining": 3}


def kits(root: Path) -> Counts:
    for number in range(2):
        folder = root / "data" / f"case_{number:05d}"
        save_volume(
            folder / "imaging.nii.gz", np.random.default_rng(number).integers(-200, 300, (3, 24, 20)).astype(np.int16)
        )
        labels = np.zeros((3, 24, 20), np.uint8)
        labels[1, 4:12, 4:12] = 1
        labels[2, 4:12, 4:12], labels[2, 5:8, 5:8] = 1, 2
        save_volume(folder / "segmentation.nii.gz", labels)
    # Kidney in two slices of each case, tumor in one.
    return {"segmentation": 6}


def qata_cov19(root: Path) -> Counts:
    for folder, name in (("Train Set", "covid_1"), ("Train Set", "covid_2"), ("Test Set", "covid_1")):
        place = root / "QaTa-COV19" / "QaTa-COV19-v2" / folder
        write_image(place / "Images" / f"{name}.png", len(name), mode="L")
        write_mask(place / "Ground-truths" / f"mask_{name}.png")
    return {"segmentation": 3}


def busi(root: Path) -> Counts:
    place = root / "Dataset_BUSI_with_GT"
    for seed, (label, number) in enumerate((("benign", 1), ("benign", 4), ("malignant", 1), ("normal", 1))):
        write_image(place / label / f"{label} ({number}).png", seed)
        write_mask(place / label / f"{label} ({number})_mask.png", inside=0 if label == "normal" else 255)
    write_mask(place / "benign" / "benign (4)_mask_1.png")
    return {"segmentation": 3, "diagnosis": 4}


def cvc_clinicdb(root: Path) -> Counts:
    for number in (1, 25, 26):
        write_image(root / "Original" / f"{number}.tif", number)
        write_mask(root / "Ground Truth" / f"{number}.tif")
    return {"segmentation": 3}


def glas(root: Path) -> Counts:
    for name in ("train_1", "train_2", "testA_1", "testB_1"):
        write_image(root / "Warwick_QU_Dataset" / f"{name}.bmp")
        write_mask(root / "Warwick_QU_Dataset" / f"{name}_anno.bmp", inside=3)
    return {"segmentation": 4}


def isic2018(root: Path) -> Counts:
    for part, number in (("Training", 0), ("Training", 1), ("Validation", 12255), ("Test", 12169)):
        write_image(root / f"ISIC2018_Task1-2_{part}_Input" / f"ISIC_{number:07d}.jpg", number)
        write_mask(root / f"ISIC2018_Task1_{part}_GroundTruth" / f"ISIC_{number:07d}_segmentation.png")
    return {"segmentation": 4}


def kvasir_seg(root: Path) -> Counts:
    for name in ("cju0qkwl35piu0993l0dewei2", "cju0qoxqj9q6s0835b43399p4"):
        write_image(root / "Kvasir-SEG" / "images" / f"{name}.jpg")
        write_mask(root / "Kvasir-SEG" / "masks" / f"{name}.jpg")
    return {"segmentation": 2}


def refuge(root: Path) -> Counts:
    masks = "Annotation-Training400/Annotation-Training400/Disc_Cup_Masks"
    places = {
        "Training400/Glaucoma/g0001": f"{masks}/Glaucoma/g0001",
        "Training400/Non-Glaucoma/n0001": f"{masks}/Non-Glaucoma/n0001",
        "REFUGE-Validation400/V0001": "REFUGE-Validation400-GT/Disc_Cup_Masks/V0001",  # pragma: allowlist secret
        "Test400/T0001": "REFUGE-Test-GT/Disc_Cup_Masks/G/T0001",
    }
    for image, mask in places.items():
        write_image(root / f"{image}.jpg")
        levels = np.full((36, 40), 255, np.uint8)
        levels[8:28, 8:28], levels[14:20, 14:20] = 128, 0
        path = root / f"{mask}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(levels).save(path)
    return {"segmentation": 8}


LAYOUTS = {
    "ixi": ixi,
    "brats2023": brats2023,
    "synthrad2023-brain": synthrad2023_brain,
    "synthrad2023-pelvis": synthrad2023_pelvis,
    "bci": bci,
    "kits": kits,
    "qata-cov19": qata_cov19,
    "busi": busi,
    "cvc-clinicdb": cvc_clinicdb,
    "glas": glas,
    "isic2018": isic2018,
    "kvasir-seg": kvasir_seg,
    "refuge": refuge,
}
