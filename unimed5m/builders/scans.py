"""Paired and volumetric sources: IXI, BraTS 2023, SynthRAD 2023, BCI."""

import re
from collections.abc import Iterator
from pathlib import Path

from .. import tasks
from ..schema import Record, RecordImage
from ..task_images import view_entry
from ..tasks import Origin
from .base import Card, Source, visible
from .readers import SUPER_RESOLUTION, Channel, PairSource, VolumeSource
from .record_images import read_volume

# Bone and air stay apart in planning CT: water at the middle, -1000 and 1000 HU at the ends.
PLANNING_WINDOW = (0.0, 2000.0)


class Ixi(Source):
    """Volumes of one sequence in one folder, named by subject."""

    def units(self, root: Path) -> Iterator[tuple[str, Path]]:
        found = False
        for sequence in ("T1", "T2"):
            for folder in (root / f"IXI-{sequence}", root / sequence, root):
                paths = visible(folder, f"IXI*-{sequence}.nii*")
                for path in paths:
                    found = True
                    yield sequence, path
                if paths:
                    break
        if not found:
            raise self.wrong_folder(root, "IXI-T1/IXI*-T1.nii.gz or IXI-T2/IXI*-T2.nii.gz")

    def records_of(self, root: Path, unit: tuple[str, Path]) -> Iterator[Record]:
        sequence, path = unit
        subject = path.name.split("-")[0]
        volume = read_volume(path)
        for index in volume.content_slices():
            name = f"{path.name.split('.')[0]}#{index}"
            extra = {"views": {name: view_entry(path.relative_to(root).as_posix(), volume.view(index))}}
            description = f"{sequence}-weighted brain MRI slice"
            origin = self.origin(name, subject, "", "MRI", description=description, extra=extra)
            image = volume.image(index, name)
            for scale, method in SUPER_RESOLUTION:
                yield tasks.super_resolution(origin, image, scale, method)


def _brats_patient(case: str) -> str:
    """BraTS-GLI-00005-100 is the second scan of patient BraTS-GLI-00005."""
    return re.sub(r"-\d{3}$", "", case)


def _her2(path: Path) -> str:
    """The HER2 level at the end of BCI's names: 00000_train_1+.png."""
    return path.stem.rsplit("_", 1)[-1]


def _stained(origin: Origin, image: RecordImage, other: RecordImage, path: Path) -> Iterator[Record]:
    yield tasks.virtual_staining(origin, image, other, f"HER2 IHC, expression level {_her2(path)}")


def _synthrad(region: str, entries: str) -> VolumeSource:
    return VolumeSource(
        name=f"synthrad2023-{region}",
        dataset="synthrad2023",
        card=Card(
            title=f"SynthRAD 2023, task 1, {region}",
            url="https://doi.org/10.5281/zenodo.7260705",
            license="CC BY-NC 4.0",
            license_read=False,
            license_tier="B",
            redistributable="non-commercial",
            layout=f"Task1/{region}/PATIENT/mr.nii.gz and ct.nii.gz",
            layout_source="https://github.com/lucianoAvinas/SynthRad23_CycleCUT/blob/"
            "1d1b6d27122b6a2ef081b05e81fd1ef6bf3b22f5/process_nifti.py",
            paper=f"Table 15: {entries}, cross-modal synthesis",
            notes="CT is shown from -1000 to 1000 HU, MR from its own 0.5th to 99.5th percentile; axial slices with "
            "content, both directions. Splits by patient.",
        ),
        tasks=("cross_modal",),
        cases=(f"Task1/{region}/*", f"{region}/*", "*"),
        channels={
            "mr": Channel("mr.nii.gz", f"{region} MRI", "MRI"),
            "ct": Channel("ct.nii.gz", f"{region} CT", "CT", PLANNING_WINDOW),
        },
        pairs=(("mr", "ct"), ("ct", "mr")),
    )


SOURCES: tuple[Source, ...] = (
    Ixi(
        name="ixi",
        card=Card(
            title="IXI",
            url="https://brain-development.org/ixi-dataset/",
            license="CC BY-SA 3.0",
            license_tier="A",
            redistributable="yes",
            layout="IXI-T1/IXI002-Guys-0828-T1.nii.gz and IXI-T2/ (either is enough; T1/ and T2/ are read too)",
            layout_source="https://github.com/TorchIO-project/torchio/blob/3775110d6d5dc63adc8bd37e8ce8e9017c6e4fc7/"
            "src/torchio/datasets/ixi.py",
            paper="Table 15: T2/T1 super-resolution 4x, 161K",
            notes="Axial slices with content, gray levels of the volume's 0.5th to 99.5th percentile; 4x by bicubic "
            "sampling and by k-space truncation. Splits by subject.",
        ),
        tasks=("super_resolution",),
    ),
    VolumeSource(
        name="brats2023",
        card=Card(
            title="BraTS 2023, adult glioma",
            url="https://www.synapse.org/#!Synapse:syn51156910",
            license="Terms of the challenge; access after registration",
            license_read=False,
            license_tier="C",
            redistributable="no",
            layout="ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData/BraTS-GLI-00000-000/BraTS-GLI-00000-000-t2w.nii.gz",
            layout_source="https://github.com/function2-llx/MMMM/blob/86bdaa9f149c22b596f6015f368bf5d12fe2400f/"
            "scripts/data/local/processors/BraTS2023.py",
            paper="Table 15: modality transfer, 52K",
            notes="T2 to FLAIR and back, axial slices with content. Splits by patient, both scans of one on one side.",
        ),
        tasks=("cross_modal",),
        cases=("BraTS-*", "*/BraTS-*"),
        channels={
            "t2w": Channel("{case}-t2w.nii.gz", "T2-weighted MRI", "MRI"),
            "t2f": Channel("{case}-t2f.nii.gz", "T2-FLAIR MRI", "MRI"),
        },
        pairs=(("t2w", "t2f"), ("t2f", "t2w")),
        patient=_brats_patient,
    ),
    _synthrad("brain", "66K"),
    _synthrad("pelvis", "42K"),
    PairSource(
        name="bci",
        card=Card(
            title="BCI",
            url="https://bupt-ai-cz.github.io/BCI/",
            license="Non-commercial academic use",
            license_tier="B",
            redistributable="non-commercial",
            layout="HE/train, HE/test, IHC/train and IHC/test with files of the same name (00000_train_1+.png)",
            layout_source="https://github.com/openmedlab/Awesome-Medical-Dataset/blob/"
            "fa9364ccdb02fd1ba5a1a870f0c91da4043df1c3/resources/BCI.md",
            paper="Table 15: virtual IHC staining, 5K",
            notes="The level in a name is that of the whole slide. Slides are not stated: a pair is its own group.",
        ),
        tasks=("virtual_staining",),
        splits={"train": ("HE/train/*", "IHC/train"), "test": ("HE/test/*", "IHC/test")},
        make=_stained,
        modality="HIS",
        description="H&E image",
    ),
)
