"""The results as Markdown: scores with intervals, baselines, flags, and the paper's rows beside them."""

from collections.abc import Iterable
from typing import Any

from .samples import TASKS

# Scores that a table shows, with a name for people, by family.
SHOWN: dict[str, tuple[tuple[str, str], ...]] = {
    "answer": (
        ("accuracy", "accuracy"),
        ("accuracy_yes_no", "yes/no"),
        ("accuracy_closed", "closed"),
        ("accuracy_multiple_choice", "multiple choice"),
        ("open_exact", "open, exact"),
        ("open_recall", "open, recall"),
    ),
    "text": (
        ("rouge_l", "ROUGE-L"),
        ("rouge_1", "ROUGE-1"),
        ("bleu_1", "BLEU-1"),
        ("bleu_4", "BLEU-4"),
        ("meteor", "METEOR"),
        ("cider", "CIDEr-D"),
        ("ratescore", "RaTEScore"),
        ("radgraph", "RadGraph F1"),
        ("chexbert", "CheXbert F1"),
        ("green", "GREEN"),
    ),
    "generation": (
        ("fid", "FID"),
        ("kid", "KID"),
        ("image_text", "image-text cosine"),
        ("diversity_vendi_ratio", "diversity (Vendi, of real)"),
        ("diversity_mean_distance_ratio", "diversity (distance, of real)"),
    ),
    "translation": (
        ("psnr", "PSNR, dB"),
        ("ssim", "SSIM"),
        ("ms_ssim", "MS-SSIM"),
        ("lpips", "LPIPS"),
        ("mae", "mean difference"),
        ("input_copied", "input returned"),
    ),
    "segmentation": (("dice", "Dice"), ("iou", "IoU"), ("hd95", "HD95, pixels")),
    "counterfactual": (
        ("change", "asked change made"),
        ("psnr", "PSNR, dB"),
        ("ssim", "SSIM"),
        ("fid", "FID"),
        ("auroc", "AUROC"),
        ("f1", "F1"),
        ("bleu_3", "BLEU-3"),
        ("meteor", "METEOR"),
        ("rouge_l", "ROUGE-L"),
        ("input_copied", "input returned"),
    ),
}


def markdown(results: dict[str, Any]) -> str:
    """The whole report of a run."""
    lines = [
        "# Evaluation",
        "",
        "Research use only: no figure here says that a model is fit for clinical use.",
        "",
        f"Model: `{results['model']}`. Scoring: "
        + ", ".join(f"{name} {value}" for name, value in results["scoring"].items())
        + ". Intervals: 95 %, bootstrap over patients (or whatever groups the source states).",
    ]
    for name, found in results["benchmarks"].items():
        lines += ["", f"## {name}", ""]
        lines.append(f"Split: {', '.join(found['split'])}. {found['note']}".strip())
        if found["left_out_units"]:
            lines += ["", f"{found['left_out_units']} units of the folder were left out: damaged, or no sample."]
        if found["unsupported_tasks"]:
            lines += ["", f"The model does not do: {', '.join(found['unsupported_tasks'])}."]
        for task, entry in found["tasks"].items():
            lines += ["", f"### {task} ({entry['count']} samples)", ""]
            lines += task_table(task, entry)
        if found["paper"]:
            lines += ["", *_paper_table(found["paper"])]
    return "\n".join(lines) + "\n"


def task_table(task: str, entry: dict[str, Any]) -> list[str]:
    """The table of one task: a row per score, a column per baseline."""
    baselines = entry.get("baselines", {})
    shown = [pair for pair in SHOWN[TASKS[task].family] if entry["metrics"].get(pair[0], {}).get("value") is not None]
    lines = table_rows(
        ["score", "model", *baselines],
        (
            [
                label + (" (judged by)" if metric == TASKS[task].primary else ""),
                _interval(entry["metrics"][metric]),
                *(number(baseline.get(metric)) for baseline in baselines.values()),
            ]
            for metric, label in shown
        ),
    )
    if others := entry.get("unicode_words"):
        lines += ["", f"Words found by Unicode's rules, without METEOR: {others} texts that do not read as English."]
    if rules := entry.get("rules"):
        lines += ["", f"Rules of answers: {', '.join(f'{rule} {count}' for rule, count in rules.items())}."]
    for name, baseline in baselines.items():
        paired = baseline["paired"]
        if paired["difference"] is not None:
            lines += [
                "",
                f"Model minus {name}, {TASKS[task].primary}: {number(paired['difference'])} "
                f"({number(paired['low'])} to {number(paired['high'])}), p = {number(paired['p'])}.",
            ]
        if flags := baseline["flags"]:
            lines += ["", f"Flags of {name} itself: {'; '.join(flags)}."]
    memory = entry.get("memorization")
    if memory:
        lines += [
            "",
            f"Copies of training images: {memory['copies']} of {memory['count']} (searched {memory['searched']} of "
            f"{memory['training_images']}; held-out real images: {number(memory['held_out_copy_share'])} of all).",
        ]
    if "extractor" in entry:
        reliable = "" if entry.get("fid_reliable") else "; fewer images than features: read KID, not FID"
        lines += ["", f"Features: {entry['extractor']}{reliable}."]
    if entry["flags"]:
        lines += ["", f"**Flags: {'; '.join(entry['flags'])}.**"]
    return lines


def _paper_table(paper: dict[str, Any]) -> list[str]:
    lines = [f"The paper's {paper['table']}:", ""]
    lines += table_rows(
        ["model", *paper["columns"]],
        ([model, *(number(value) for value in values)] for model, values in paper["rows"].items()),
    )
    return lines + [""] + [f"* {note}" for note in paper["notes"]]


def table_rows(titles: list[str], rows: Iterable[list[str]]) -> list[str]:
    """The lines of a Markdown table; bars within cells become spaces."""
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    return lines + [f"| {' | '.join(cell.replace('|', ' ') for cell in row)} |" for row in rows]


def _interval(metric: dict[str, Any]) -> str:
    if metric.get("low") is None:
        return number(metric["value"])
    return f"{number(metric['value'])} ({number(metric['low'])} to {number(metric['high'])})"


def number(value: float | None) -> str:
    """Four significant digits, a dash for none."""
    if value is None:
        return "-"
    return f"{value:.4g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.1e}"
