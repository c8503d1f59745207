"""Instruction sets: VL-Health, GMAI-VL, InternVL's medical data and BigBio's question answering."""

from collections.abc import Iterator
from pathlib import Path

from .. import tasks
from ..schema import Record
from .base import UNVERIFIED, Card, LeftOut, Source
from .publisher_texts import llava_rows
from .readers import TableRow, TableSource


def _pubmed_qa(source: TableSource, folder: Path, unit: TableRow) -> Iterator[Record]:
    row = unit.row
    # The unlabelled table has no decision, only the abstract's conclusion.
    if not row.get("final_decision"):
        raise LeftOut(f"{unit.table.name}: {row['_key']} has no decision.")
    question = f"{' '.join(row['CONTEXTS'])}\n{row['QUESTION']} Answer yes, no or maybe."
    origin = source.origin(
        f"{unit.table.stem}#{row['_key']}", str(row["_key"]), unit.split, "TEXT", extra={"pmid": str(row["_key"])}
    )
    yield tasks.reasoning(origin, [], question, row["LONG_ANSWER"], row["final_decision"])


SOURCES: tuple[Source, ...] = (
    TableSource(
        name="vl-health",
        card=Card(
            title="VL-Health (HealthGPT)",
            url="https://huggingface.co/datasets/lintw/VL-Health",
            license="MIT as stated by the card; images per upstream set",
            license_tier="C",
            redistributable="unclear",
            layout="*/comprehension/*.json (image, conversations) and the images below the same folder",
            layout_source=f"{UNVERIFIED}: Alignment/comprehension/train_data.json is shown by https://huggingface.co/"
            "datasets/lintw/VL-Health/commits/main/Alignment/comprehension/train_data.json (818a6ed), its columns not",
            paper="Table 15: 638K, clinical reasoning and caption",
            notes="Read as LLaVA rows. The generation tables hold image tokens of HealthGPT and are not read; build "
            "super-resolution and translation from ixi, synthrad2023-brain and synthrad2023-pelvis instead.",
        ),
        tasks=("vqa",),
        tables={"*/comprehension/*.json": "train", "comprehension/*.json": "train"},
        needs=("conversations",),
        images=("images", "."),
        read=llava_rows,
    ),
    TableSource(
        name="gmai-vl",
        card=Card(
            title="GMAI-VL-5.5M",
            url="https://huggingface.co/datasets/General-Medical-AI/GMAI-VL-5.5M",
            license="Other; gated, images per upstream set",
            license_tier="C",
            redistributable="no",
            layout="GMAI-VL-5.5M-OpenSource/annotations/*.jsonl (image, conversations) and .../images/, into which "
            "the archives of zips/ are unpacked",
            layout_source=f"{UNVERIFIED}: rows as in https://github.com/uni-medical/GMAI-VL/blob/"
            "4ea5abfa248e8974d80f8b19b89f3e88b876812b/examples/example_data.json; folders as quoted from the gated "
            "data card, which could not be seen",
            paper="Table 15: 288K, enhanced text-to-image",
            notes="Rows name their images images/...; the archives' members lack that folder. Rows of the part that "
            "is not open have no images here and are set aside. First answers to a single image of a stated modality "
            "also become captions to generate from.",
        ),
        tasks=("vqa", "text_to_image"),
        tables={"**/annotations/*.jsonl": "train"},
        needs=("conversations",),
        images=("GMAI-VL-5.5M-OpenSource", "."),
        read=llava_rows,
    ),
    TableSource(
        name="internvl-medical",
        card=Card(
            title="InternVL domain adaptation, medical SFT",
            url="https://huggingface.co/datasets/OpenGVLab/InternVL-Domain-Adaptation-Data",
            license="Apache-2.0 as stated by the card; images per upstream set",
            license_tier="C",
            redistributable="unclear",
            layout="train_data/medical_sft_sample500k.jsonl (image, conversations) and images/medical_images/",
            layout_source="https://huggingface.co/datasets/OpenGVLab/InternVL-Domain-Adaptation-Data/tree/"
            "0e440a3521ea0f8f6a970a4075504e54383f681f and its fine-tuning guide (domain adaptation, directory tree)",
            paper="Table 15: 188K, classification and reasoning",
            notes="Rows are InternVL's chat format, that is LLaVA's.",
        ),
        tasks=("vqa",),
        tables={"train_data/medical_sft_sample500k.jsonl": "train"},
        needs=("conversations",),
        images=("images/medical_images", "images"),
        read=llava_rows,
    ),
    TableSource(
        name="bigbio-pubmed-qa",
        card=Card(
            title="BigBio: PubMedQA",
            url="https://huggingface.co/datasets/bigbio/pubmed_qa",
            license="MIT",
            license_tier="A",
            redistributable="yes",
            layout="pqaa_train_set.json, pqaa_dev_set.json, pqal_fold0/ and pqal_test_set.json, whichever are there",
            layout_source="https://github.com/bigscience-workshop/biomedical/blob/"
            "60d9e22629a83232ad9c9def273bd4b7d884a9ed/bigbio/hub/hub_repos/pubmed_qa/pubmed_qa.py",
            paper="Table 15: BigBio 262K, clinical reasoning with chain of thought",
            notes="The abstract's conclusion stands as the thought, the decision as the answer; the authors' "
            "distilled chains of thought are not public. Of the ten folds of the labeled part the first is read. The "
            "unlabelled part has no decisions and gives no record. Other BigBio sets are not read.",
        ),
        tasks=("reasoning",),
        tables={
            "**/pqaa_train_set.json": "train",
            "**/pqaa_dev_set.json": "validation",
            "**/pqal_fold0/train_set.json": "train",
            "**/pqal_fold0/dev_set.json": "validation",
            "**/pqal_test_set.json": "test",
            "**/ori_pqau.json": "train",
        },
        needs=("QUESTION", "CONTEXTS", "LONG_ANSWER"),
        images=(),
        read=_pubmed_qa,
    ),
)
