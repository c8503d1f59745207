"""Figures of published papers and lectures: PMC-OA, PMC-VQA, PMC-Inline, PubMedVision, MedICaT, ROCOv2, Quilt-1M."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

from .. import tasks
from ..schema import Record
from .base import Card, LeftOut, Source, split_of
from .publisher_texts import captioned, choice, conversation, kept, turns_in
from .readers import TableRow, TableSource
from .record_images import file_image, named_image
from .source_texts import modality_of, options_in, paper_of
from .tables import Row

# Papers are the groups, under one name for all sets: PMC-OA and PMC-VQA show the same figures.
PAPERS = "pmc"
FROM_PMC = "Per article (PubMed Central open-access subset); modalities are guessed from the words of the text."


def _pmc_oa(source: TableSource, folder: Path, unit: TableRow) -> Iterator[Record]:
    name, text = unit.row["image"], unit.row["caption"]
    origin = source.origin(f"{unit.position}/{name}", paper_of(name), "", modality_of(text), name)
    yield from captioned(source, origin, [named_image(folder, name)], text)


def _vqa_paper(row: Row) -> str:
    return paper_of(row["Figure_path"])


def _pmc_vqa(source: TableSource, folder: Path, unit: TableRow) -> Iterator[Record]:
    row = unit.row
    name = row["Figure_path"]
    if unit.table.stem.endswith("_2"):
        folder = folder.parent / "images_2"
    options = options_in(row, "Choice A", "Choice B", "Choice C", "Choice D")
    answer = row.get("Answer_label") or row.get("Answer") or row.get("Anwser") or ""
    origin = source.origin(
        f"{unit.table.stem}#{unit.position}", paper_of(name), unit.split, modality_of(row["Question"]), name
    )
    yield choice(origin, [named_image(folder, name)], row["Question"], options, answer)


def _pubmedvision(source: TableSource, folder: Path, unit: TableRow) -> Iterator[Record]:
    row = unit.row
    # The archives are unpacked without their folders (`unzip -j`), so only the last part of a path counts.
    names = [Path(name).name for name in row["image"]]
    turns = turns_in(unit, len(names))
    modality = modality_of(str(row.get("modality", "")))
    extra = kept(row, "id", "modality", "body_part")
    place = f"{unit.table.stem}#{unit.position}"
    origin = source.origin(place, _figure_group(names[0]), unit.split, modality, names[0], extra=extra)
    images = [named_image(folder, name) for name in names]
    yield conversation(origin, images, turns)
    if "Alignment" in unit.table.stem:
        yield from captioned(source, origin, images, turns[-1].value)


def _figure_group(name: str) -> str:
    """PubMedVision numbers its figures itself (`pmc_9_0.jpg`); the panels of one figure share the number."""
    return "pubmedvision-" + re.sub(r"_\d+$", "", Path(name).stem)


def _medicat(source: TableSource, folder: Path, unit: TableRow) -> Iterator[Record]:
    row = unit.row
    text = row.get("s2_caption") or row.get("s2orc_caption") or ""
    if not text:
        raise LeftOut(f"{unit.table.name}: row {unit.position + 1} has no caption.")
    name = f"{row['pdf_hash']}_{row['fig_uri']}"
    extra = kept(row, "fig_key", "radiology", "scope", "predicted_type", "s2orc_references", "oa_info")
    origin = source.origin(
        f"{unit.position}/{name}", f"pdf-{row['pdf_hash']}", "", modality_of(text), name, extra=extra
    )
    yield from captioned(source, origin, [named_image(folder, name)], text)


def _rocov2(source: TableSource, folder: Path, unit: TableRow) -> Iterator[Record]:
    name, text = unit.row["ID"], unit.row["Caption"]
    split = unit.table.stem.split("_")[0]
    places = [folder / f"{split}_images" / split, folder / f"{split}_images", folder / split]
    path = next((place / f"{name}.jpg" for place in places if (place / f"{name}.jpg").is_file()), None)
    if path is None:
        raise ValueError(f"{source.name}: expected {split}_images/{split}/{name}.jpg in {folder}, found no such file.")
    origin = source.origin(name, f"rocov2-{name}", split_of(split), modality_of(text))
    yield from captioned(source, origin, [file_image(path, folder)], text)


def _quilt(source: TableSource, folder: Path, unit: TableRow) -> Iterator[Record]:
    row = unit.row
    name = row["image_path"]
    # Names begin with the video's id, which contains no "_image_"; other subsets have one image per source page.
    group = name.split("_image_")[0] if "_image_" in name else name
    origin = source.origin(
        f"{unit.position}/{name}",
        group,
        "",
        "HIS",
        name,
        description="histopathology image",
        extra=kept(row, "subset", "pathology", "magnification"),
    )
    yield from captioned(source, origin, [named_image(folder, name)], row["caption"])


@dataclasses.dataclass
class PmcInline(Source):
    """Papers as text with the places where figures are mentioned; a paragraph goes with the figures it mentions."""

    def units(self, root: Path) -> Iterator[Path]:
        self.need(root, "figures", "images")
        yield from self.files(root, "**/PMC*.json")

    def records_of(self, root: Path, unit: Path) -> Iterator[Record]:
        folder = self.need(root, "figures", "images")
        try:
            paper = json.loads(unit.read_text(encoding="utf-8"))
            text, mentions = paper["text"], paper["img_ref"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{unit}: expected a paper with text and img_ref, found a problem: {error!r}.") from error
        paragraphs: dict[tuple[int, int], list[str]] = {}
        for mention in mentions:
            start = text.rfind("\n", 0, mention["start"]) + 1
            end = text.find("\n", mention["end"])
            figures = paragraphs.setdefault((start, len(text) if end < 0 else end), [])
            if mention["id"] not in figures:
                figures.append(mention["id"])
        for (start, end), figures in sorted(paragraphs.items()):
            paths = [folder / f"{unit.stem}_{figure}.jpg" for figure in figures]
            # The publisher says that some figures are missing from the figure base.
            present = [path for path in paths if path.is_file()]
            if not present:
                continue
            origin = self.origin(
                f"{unit.stem}@{start}", unit.stem, "", modality_of(text[start:end]), extra={"figures": figures}
            )
            yield tasks.caption(origin, [file_image(path, root) for path in present], text[start:end])


SOURCES: tuple[Source, ...] = (
    TableSource(
        name="pmc-oa",
        card=Card(
            title="PMC-OA",
            url="https://huggingface.co/datasets/axiong/pmc_oa",
            license="Per article (PubMed Central open-access subset); the card states none for the set",
            license_tier="C",
            redistributable="unclear",
            layout="pmc_oa.jsonl (image, caption) and images/ (images.zip unpacked)",
            layout_source="https://huggingface.co/datasets/axiong/pmc_oa/tree/d42b8f9160fb558b7dd82ee44718afcf73277adc",
            paper="Table 15: 1.0M, captioning",
            notes=f"pmc_oa_beta.jsonl, the undivided captions, is not read. {FROM_PMC}",
        ),
        tasks=("caption",),
        family=PAPERS,
        tables={"pmc_oa.jsonl": ""},
        needs=("image", "caption"),
        images=("images/caption_T060_filtered_top4_sep_v0_subfigures", "images"),
        read=_pmc_oa,
    ),
    TableSource(
        name="pmc-vqa",
        card=Card(
            title="PMC-VQA",
            url="https://huggingface.co/datasets/xmcmic/PMC-VQA",
            license="CC BY-SA as stated by the authors; images per article (PubMed Central open-access subset)",
            license_read=False,
            license_tier="C",
            redistributable="unclear",
            layout="train.csv and test.csv (Figure_path, Question, Choice A to D, Answer_label) and images/",
            layout_source="https://huggingface.co/datasets/xmcmic/PMC-VQA/blob/"
            "245d3a2e6c34b4ddef1c73c5bbba4da6dfdd3c2e/README.md",
            paper="Table 15: 204K, caption",
            notes="train_2.csv and test_2.csv are read with images_2/ where they are there; test_clean.csv repeats "
            "rows of test.csv and is not read. Training rows about papers of the test tables are left out. "
            + FROM_PMC,
        ),
        tasks=("vqa",),
        family=PAPERS,
        tables={"train.csv": "train", "test.csv": "test", "train_2.csv": "train", "test_2.csv": "test"},
        needs=("Figure_path", "Question", "Choice A", "Choice B", "Choice C", "Choice D"),
        images=("images", "figures"),
        read=_pmc_vqa,
        row_group=_vqa_paper,
    ),
    PmcInline(
        name="pmc-inline",
        card=Card(
            title="PMC-Inline",
            url="https://huggingface.co/datasets/chaoyi-wu/PMC-Inline",
            license="Apache-2.0 as stated by the card; texts and images per article (Creative Commons)",
            license_tier="C",
            redistributable="unclear",
            layout="PMC*.json (text, img_ref) in any folder and figures/PMCxxxxxxx_figid.jpg",
            layout_source="https://huggingface.co/datasets/chaoyi-wu/PMC-Inline/blob/"
            "9dca20b727d7c8b85de4584ee5506da19f0d272f/README.md",
            paper="Table 15: 121K, multi-image understanding",
            notes="The card shows the text files and the figures' names; the name of the figures' folder is ours. A "
            f"paragraph whose figures are all missing is left out. {FROM_PMC}",
        ),
        tasks=("caption",),
        family=PAPERS,
    ),
    TableSource(
        name="pubmedvision",
        card=Card(
            title="PubMedVision",
            url="https://huggingface.co/datasets/FreedomIntelligence/PubMedVision",
            license="Apache-2.0 as stated by the card; images per article",
            license_tier="C",
            redistributable="unclear",
            layout="PubMedVision_*_VQA.json (image, conversations, modality, body_part) and images/ (unzip -j)",
            layout_source="https://huggingface.co/datasets/ChuGyouk/PubMedVision-EnKo/commit/"
            "de41aee501d9946578caae84bdca980fadabf72f and .../FreedomIntelligence/PubMedVision/blob/main/README.md",
            paper="Table 15: 385K, controllable text-to-image",
            notes="The answers of the alignment table also become captions to generate from. Nine of its images are "
            "said to be missing upstream.",
        ),
        tasks=("vqa", "text_to_image"),
        family=PAPERS,
        tables={"PubMedVision_Alignment_VQA.json": "train", "PubMedVision_InstructionTuning_VQA.json": "train"},
        needs=("image", "conversations"),
        images=("images",),
        read=_pubmedvision,
    ),
    TableSource(
        name="medicat",
        card=Card(
            title="MedICaT",
            url="https://github.com/allenai/medicat",
            license="Per article, stated in each entry (oa_info); access by request",
            license_tier="C",
            redistributable="no",
            layout="*.jsonl (pdf_hash, fig_uri, s2_caption) and figures/HASH_URI",
            layout_source="https://github.com/allenai/medicat/tree/ef7a11a2fe42ab42e1dcf055838f4ed42c4deba3/sample",
            paper="Table 15: 132K, controllable text-to-image",
            notes=FROM_PMC,
        ),
        tasks=("caption", "text_to_image"),
        family=PAPERS,
        tables={"*.jsonl": ""},
        needs=("pdf_hash", "fig_uri"),
        images=("figures",),
        read=_medicat,
    ),
    TableSource(
        name="rocov2",
        card=Card(
            title="ROCOv2",
            url="https://zenodo.org/records/8333645",
            license="Per image (license_information.csv), Creative Commons, some non-commercial",
            license_tier="B",
            redistributable="non-commercial",
            layout="train_captions.csv, valid_captions.csv, test_captions.csv (ID, Caption) and *_images/",
            layout_source="https://github.com/openmedlab/Awesome-Medical-Dataset/blob/"
            "53ed534647507d2f4df8cb08e6b1352ea908362b/resources/ROCOV2.md",
            paper="registered for stage 1 understanding; size not stated",
            notes=FROM_PMC,
        ),
        tasks=("caption",),
        family=PAPERS,
        tables={"*_captions.csv": ""},
        needs=("ID", "Caption"),
        images=(".",),
        read=_rocov2,
    ),
    TableSource(
        name="quilt-1m",
        card=Card(
            title="Quilt-1M",
            url="https://zenodo.org/records/8239942",
            license="Restricted access, research only, no further distribution",
            license_tier="C",
            redistributable="no",
            layout="quilt_1M_lookup.csv (caption, image_path, subset, split) and quilt_1m/ with the images",
            layout_source="https://github.com/VectorInstitute/pmc-data-extraction/blob/"
            "44b4901eead7ce56962888733bfa513b465b5e37/openpmcvl/experiment/datasets/quilt1m.py",
            paper="Table 15: 644K, histopathology understanding",
            notes="That loader reads the same columns from the table divided by split (quilt_1m_train.csv), which is "
            "read where the whole one is missing. Splits are by video, not the publisher's: his share videos.",
        ),
        tasks=("caption",),
        tables={"quilt_1M_lookup.csv": "", "quilt_1m_*.csv": ""},
        first_only=True,
        needs=("caption", "image_path"),
        images=("quilt_1m", "images"),
        read=_quilt,
    ),
)
