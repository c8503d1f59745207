"""Folders in the publishers' layouts: captions, questions, reports and conversations. Each function writes one folder
and returns how many records of each task it holds."""

import base64
import pickle
from pathlib import Path

from .fixtures_files import write_image, write_json, write_lines, write_table

Counts = dict[str, int]
CAPTION = "Axial CT of the abdomen shows a hypodense lesion in the liver."
LLAVA = [
    {"from": "human", "value": "<image>\nWhat does this chest X-ray show?"},
    {"from": "gpt", "value": "A chest radiograph with clear lungs."},
]


def pmc_oa(root: Path) -> Counts:
    names = ["PMC212319_Fig3_4.jpg", "PMC212319_Fig3_5.jpg", "PMC300000_Fig1_0.jpg"]
    for seed, name in enumerate(names):
        write_image(root / "images" / name, seed)
    write_lines(root / "pmc_oa.jsonl", [{"image": name, "caption": f"{CAPTION} {name}"} for name in names])
    return {"caption": 3}


def pmc_vqa(root: Path) -> Counts:
    row = {
        "Question": "What is the uptake pattern in the breast?",
        "Answer": "Focal uptake pattern",
        "Choice A": " A:Diffuse uptake pattern",
        "Choice B": " B:Focal uptake pattern",
        "Choice C": " C:No uptake pattern",
        "Choice D": " D:Cannot determine from the information given",
        "Answer_label": "B",
    }
    names = {"train": ["PMC1064097_F1.jpg", "PMC2000000_F1.jpg"], "test": ["PMC2000000_F2.jpg"]}
    for split, figures in names.items():
        write_table(root / f"{split}.csv", [{"Figure_path": name, **row} for name in figures])
        for name in figures:
            write_image(root / "images" / name, len(split))
    # The second training row is about a paper of the test.
    return {"vqa": 2}


def pmc_inline(root: Path) -> Counts:
    text = "\nTitle of the paper\nCT in Figure 1 and MRI in Figure 2 differ.\nFigure 3 is lost.\nNothing here."
    mentions = []
    for figure, words in (("g001", "Figure 1"), ("g002", "Figure 2"), ("g003", "Figure 3")):
        start = text.index(words)
        mentions.append({"id": figure, "start": start, "end": start + len(words)})
    paper = {"info": {"pmc": "PMC1999654"}, "text": text, "img_ref": mentions}
    write_json(root / "PMC-Inline_0" / "PMC1999654.json", paper)
    for figure in ("g001", "g002"):
        write_image(root / "figures" / f"PMC1999654_{figure}.jpg")
    return {"caption": 1}


def pubmedvision(root: Path) -> Counts:
    for name in ("pmc_1_0.jpg", "pmc_2_0.jpg", "pmc_2_1.jpg"):
        write_image(root / "images" / name, len(name))
    about = {"modality": "Computed Tomography", "body_part": "Chest"}
    turns = [{"from": "human", "value": "Please describe the image."}, {"from": "gpt", "value": CAPTION}]
    rows = [
        {"id": "0", "image": ["images/pmc_1_0.jpg"], "conversations": turns, **about},
        {"id": "1", "image": ["images/pmc_2_0.jpg", "images/pmc_2_1.jpg"], "conversations": turns, **about},
    ]
    for part in ("Alignment", "InstructionTuning"):
        write_json(root / f"PubMedVision_{part}_VQA.json", rows)
    return {"vqa": 4, "text_to_image": 1}


def medicat(root: Path) -> Counts:
    rows = [
        {
            "pdf_hash": "57c9ad0f",
            "fig_uri": "2-Figure1-1.png",
            "s2_caption": f"Figure 1. {CAPTION}",
            "radiology": True,
        },
        {"pdf_hash": "57c9ad0f", "fig_uri": "2-Figure2-1.png", "s2_caption": ""},
    ]
    write_lines(root / "s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl", rows)
    write_image(root / "figures" / "57c9ad0f_2-Figure1-1.png")
    return {"caption": 1, "text_to_image": 1}


def rocov2(root: Path) -> Counts:
    for split, place in (("train", "train_images/train"), ("valid", "valid_images"), ("test", "test")):
        name = f"ROCOv2_2023_{split}_000001"
        write_table(root / f"{split}_captions.csv", [{"ID": name, "Caption": CAPTION}])
        write_image(root / place / f"{name}.jpg", len(split))
    return {"caption": 3}


def quilt_1m(root: Path) -> Counts:
    names = ["-8XKl1HfkQw_image_0a.jpg", "-8XKl1HfkQw_image_0b.jpg", "123456.jpg"]
    for seed, name in enumerate(names):
        write_image(root / "quilt_1m" / name, seed)
    rows = [
        {"": str(i), "caption": f"Dermatitis {i}.", "image_path": n, "subset": "quilt", "split": "train"}
        for i, n in enumerate(names)
    ]
    # One image with a second caption, as in the published table.
    write_table(root / "quilt_1M_lookup.csv", [*rows, {**rows[0], "": "3", "caption": "Spongiosis."}])
    return {"caption": 4}


def llava_row(image: str) -> dict:
    return {"id": image, "image": image, "conversations": LLAVA}


def vl_health(root: Path) -> Counts:
    write_json(root / "Alignment" / "comprehension" / "train_data.json", [llava_row("a/1.png"), llava_row("a/2.png")])
    for name in ("a/1.png", "a/2.png"):
        write_image(root / "images" / name)
    return {"vqa": 2}


def gmai_vl(root: Path) -> Counts:
    text = {
        "id": "t",
        "conversations": [{"from": "human", "value": "What is sepsis?"}, {"from": "gpt", "value": "A syndrome."}],
    }
    folder = root / "GMAI-VL-5.5M-OpenSource"
    write_lines(folder / "annotations" / "GMAI-MM-Caption-1.7M.jsonl", [llava_row("images/set/1.png"), text])
    write_image(folder / "images" / "set" / "1.png")
    return {"vqa": 1, "dialogue": 1, "text_to_image": 1}


def internvl_medical(root: Path) -> Counts:
    write_lines(root / "train_data" / "medical_sft_sample500k.jsonl", [llava_row("set/1.png")])
    write_image(root / "images" / "medical_images" / "set" / "1.png")
    return {"vqa": 1}


def bigbio_pubmed_qa(root: Path) -> Counts:
    row = {
        "QUESTION": "Do statins help?",
        "CONTEXTS": ["Some did."],
        "LONG_ANSWER": "They may.",
        "final_decision": "yes",
    }
    write_json(root / "pqaa_train_set.json", {"25429730": row, "25433161": row})
    write_json(root / "pqal_test_set.json", {"12377809": row})
    write_json(root / "ori_pqau.json", {"14499029": {k: v for k, v in row.items() if k != "final_decision"}})
    return {"reasoning": 3}


def mimic_files(root: Path) -> list[dict]:
    """Images and the split table of MIMIC-CXR-JPG: two patients, three studies."""
    rows = []
    for seed, (subject, study, split) in enumerate(
        (("10000032", "50414267", "train"), ("10000032", "53189527", "train"), ("11000011", "51029426", "test"))
    ):
        image = f"02aa804e-{seed}"
        write_image(root / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{study}" / f"{image}.jpg", seed, mode="L")
        rows.append({"dicom_id": image, "study_id": study, "subject_id": subject, "split": split})
    write_table(root / "mimic-cxr-2.0.0-split.csv", rows)
    return rows


def mimic_cxr(root: Path) -> Counts:
    texts = (
        " FINAL REPORT\n EXAMINATION:  CHEST\n\n FINDINGS: \n \n Lungs are\n clear.\n \n IMPRESSION: \n No change.\n",
        " FINAL REPORT\n IMPRESSION:  Small effusion.\n\n NOTIFICATION:  None.\n",
        " WET READ: nothing.\n",
    )
    for row, text in zip(mimic_files(root), texts, strict=True):
        subject = row["subject_id"]
        path = root / "mimic-cxr-reports" / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{row['study_id']}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return {"report": 2}


def chexpert_plus(root: Path) -> Counts:
    rows = []
    for seed, (split, patient) in enumerate(
        (("train", "patient00001"), ("train", "patient00002"), ("valid", "patient64541"))
    ):
        name = f"{split}/{patient}/study1/view1_frontal.jpg"
        write_image((root / "PNG" / "PNG" / name).with_suffix(".png"), seed, mode="L")
        rows.append(
            {
                "path_to_image": name,
                "frontal_lateral": "Frontal",
                "ap_pa": "AP",
                "deid_patient_id": patient,
                "section_findings": "Clear lungs." if seed else "",
                "section_impression": "1. Normal." if seed != 0 else "",
                "split": split,
            }
        )
    write_table(root / "df_chexpert_plus_240401.csv", rows)
    return {"report": 2}


def medical_diff_vqa(root: Path) -> Counts:
    studies = mimic_files(root)
    write_table(
        root / "mimic_all.csv", [{k: row[k] for k in ("subject_id", "study_id", "dicom_id")} for row in studies]
    )
    rows = [
        ("difference", "what has changed compared to the reference image?", "the main image has an effusion."),
        ("presence", "is there evidence of edema in this image?", "no"),
    ]
    write_table(
        root / "mimic_pair_questions.csv",
        [
            {
                "study_id": "53189527",
                "subject_id": "10000032",
                "ref_id": "50414267.0",
                "question_type": kind,
                "question": question,
                "answer": answer,
                "split": "test",
            }
            for kind, question, answer in rows
        ],
    )
    return {"vqa": 2}


def icg_cxr(root: Path) -> Counts:
    pairs = (
        root / "chexpertplus" / "pa" / "1" / "train" / "p00023" / "i01s0001-i04s0002",
        root / "mimic_cxr" / "pa" / "1" / "p10" / "p10000032" / "i01s50414267-i02s53189527",
    )
    for seed, folder in enumerate(pairs):
        about = {"progression-description": "The effusion grows.", "changes-of-findings": "A larger effusion."}
        write_json(folder / f"{folder.name}.json", about)
        for number, side in enumerate(("ref", "flu")):
            write_image(folder / f"{folder.name}-{side}-reg.png", 2 * seed + number, mode="L")
    return {"counterfactual": 2}


def vqa_rad(root: Path) -> Counts:
    rows = [
        (0, "synpic1.jpg", "freeform"),
        (1, "synpic1.jpg", "para"),
        (2, "synpic2.jpg", "freeform"),
        (3, "synpic2.jpg", "test_freeform"),
    ]
    write_json(
        root / "VQA_RAD Dataset Public.json",
        [
            {
                "qid": str(number),
                "image_name": name,
                "phrase_type": kind,
                "image_organ": "CHEST",
                "answer_type": "CLOSED",
                "question": f"Is there an effusion {number}?",
                "answer": "No",
            }
            for number, name, kind in rows
        ],
    )
    for name in ("synpic1.jpg", "synpic2.jpg"):
        write_image(root / "VQA_RAD Image Folder" / name, len(name))
    # The third question is about an image of the test.
    return {"vqa": 3}


def slake(root: Path) -> Counts:
    for number, split in enumerate(("train", "validate", "test")):
        name = f"xmlab{number}/source.jpg"
        write_image(root / "imgs" / name, number)
        row = {"img_id": number, "img_name": name, "q_lang": "en", "modality": "MRI", "location": "Abdomen"}
        asked = {"question": "What modality is used to take this image?", "answer": "MRI", "answer_type": "OPEN"}
        write_json(root / f"{split}.json", [{**row, **asked, "qid": 0}, {**row, **asked, "qid": 1, "q_lang": "zh"}])
    return {"vqa": 6}


def path_vqa(root: Path) -> Counts:
    for part in ("train", "val", "test"):
        row = {
            "answer_type": "other",
            "img_id": f"{part}_0422",
            "label": {"in the canals of hering": 1},
            "question_id": 100422000,
            "question_type": "where",
            "sent": "Where are liver stem cells located?",
        }
        path = root / "split" / "qas" / f"{part}_vqa.pkl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps([row]))
        write_image(root / "split" / "images" / part / f"{part}_0422.jpg")
    return {"vqa": 3}


def omnimedvqa(root: Path) -> Counts:
    row = {
        "dataset": "ACRIMA",
        "question_type": "Modality Recognition",
        "question": "What imaging technique was employed to obtain this image?",
        "gt_answer": "Fundus imaging",
        "option_A": "PET scan",
        "option_B": "CT scan",
        "option_C": "Blood test",
        "option_D": "Fundus imaging",
        "modality_type": "Fundus Photography",
    }
    names = ["Images/ACRIMA/Im002_ACRIMA.png", "Images/ACRIMA/Im003_ACRIMA.png"]
    rows = [{**row, "question_id": f"ACRIMA_{number:04d}", "image_path": name} for number, name in enumerate(names)]
    write_json(root / "QA_information" / "Open-access" / "ACRIMA.json", rows)
    for name in names:
        write_image(root / name)
    return {"vqa": 2}


def gmai_mmbench(root: Path) -> Counts:
    image = base64.b64encode(write_image(root / "spare.jpg").read_bytes()).decode()
    row = {"image": image, "question": "What is shown?", "A": "Polyp", "B": "Ulcer", "C": "", "D": "", "E": ""}
    write_table(
        root / "GMAI-MMBench_VAL.tsv",
        [{"index": str(i), **row, "answer": "B", "category": "endoscopy"} for i in range(2)],
    )
    write_table(root / "GMAI_mm_bench_TEST_part_1.tsv", [{"index": "0", **row, "answer": ""}])
    return {"vqa": 2}


LAYOUTS = {
    "pmc-oa": pmc_oa,
    "pmc-vqa": pmc_vqa,
    "pmc-inline": pmc_inline,
    "pubmedvision": pubmedvision,
    "medicat": medicat,
    "rocov2": rocov2,
    "quilt-1m": quilt_1m,
    "vl-health": vl_health,
    "gmai-vl": gmai_vl,
    "internvl-medical": internvl_medical,
    "bigbio-pubmed-qa": bigbio_pubmed_qa,
    "mimic-cxr": mimic_cxr,
    "chexpert-plus": chexpert_plus,
    "medical-diff-vqa": medical_diff_vqa,
    "icg-cxr": icg_cxr,
    "vqa-rad": vqa_rad,
    "slake": slake,
    "path-vqa": path_vqa,
    "omnimedvqa": omnimedvqa,
    "gmai-mmbench": gmai_mmbench,
}
