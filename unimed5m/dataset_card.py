"""The texts and plots of a published folder: card, licenses, acknowledgments, relinking recipe."""

import hashlib
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData

from unimedvl.utils.whole_files import replacing, write_text

from .schema import SPLITS

GATING = (
    "This data set gathers medical images and texts under the terms of their sources. By asking for access you agree "
    "to use it for research only, not to try to identify any person, not to pass it on, and to keep to the license of "
    "every source you use (folder LICENSES)."
)
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
PLOTTED = ("modality", "sub_task_type")


def write_card(output: Path, name: str, statistics: Mapping[str, Any]) -> None:
    """Write README.md, LICENSES/, ACKNOWLEDGMENTS.md, RELINKING.md and plots/ of a published folder."""
    plots = write_plots(output, statistics["counts"])
    shutil.rmtree(output / "LICENSES", ignore_errors=True)
    for source, name_of_file in file_names(statistics["sources"]).items():
        write_text(output / "LICENSES" / name_of_file, _license(source, statistics["sources"][source]))
    write_text(output / "LICENSE.md", LICENSE)
    write_text(output / "ACKNOWLEDGMENTS.md", _acknowledgments(statistics["sources"]))
    write_text(output / "RELINKING.md", RELINKING)
    write_text(
        output / "README.md", f"---\n{_card_data(name, statistics).to_yaml()}\n---\n{_body(name, statistics, plots)}"
    )


def file_names(sources: Iterable[str]) -> dict[str, str]:
    """Source -> file name. Names that differ only in letters that no path takes, or in case, get a digest added."""
    plain = {source: re.sub(r"[^\w.-]+", "_", source) for source in sources}
    alike = Counter(name.lower() for name in plain.values())
    return {
        source: f"{name}-{hashlib.sha256(source.encode()).hexdigest()[:8]}.txt"
        if alike[name.lower()] > 1
        else f"{name}.txt"
        for source, name in plain.items()
    }


def _card_data(name: str, statistics: Mapping[str, Any]) -> DatasetCardData:
    configs = statistics["configs"]
    whole: dict[str, list[str]] = defaultdict(list)
    for config, splits in configs.get("data", {}).items():
        for split in splits:
            whole[split].append(f"data/{config}/{split}-*.parquet")
    loaded: list[dict[str, Any]] = []
    if whole:
        files = [{"split": split, "path": whole[split]} for split in SPLITS if split in whole]
        loaded.append({"config_name": "all", "default": True, "data_files": files})
    for kind, prefix in (("data", ""), ("metadata", "metadata_")):
        for config, splits in configs.get(kind, {}).items():
            files = [{"split": split, "path": f"{kind}/{config}/{split}-*.parquet"} for split in splits]
            loaded.append({"config_name": prefix + config, "data_files": files})
    return DatasetCardData(
        pretty_name=name,
        license="other",
        license_name="per-source",
        license_link="LICENSE.md",
        language=["en"],
        tags=["medical", "multimodal", "unimedvl"],
        task_categories=["visual-question-answering", "image-to-text", "text-to-image", "image-to-image"],
        size_categories=[next((label for limit, label in SIZES if statistics["records"] < limit), "1M<n<10M")],
        extra_gated_prompt=GATING,
        extra_gated_fields={
            "Name": "text",
            "Institution": "text",
            "Intended use": "text",
            "I agree to the terms above": "checkbox",
        },
        configs=loaded,
    )


def _body(name: str, statistics: Mapping[str, Any], plots: list[str]) -> str:
    counts = statistics["counts"]
    synthetic = counts["synthetic"].get("true", 0)
    config, split = _first_config(statistics["configs"])
    text = [
        "",
        f"# {name}",
        "",
        f"{statistics['records']:,} records: {statistics['with_images']:,} with images, "
        f"{statistics['metadata_only']:,} as metadata, whose images and texts their license keeps with the source "
        f"(`RELINKING.md`). {synthetic:,} records are marked `synthetic`: an image or a text in them was made up.",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        f'records = load_dataset("REPO_OR_FOLDER", "{config}", split="{split}", streaming=True)',
        "```",
        "",
        "One record holds a conversation (`message`) with `<image>` placeholders for `input_img` and `output_img`, "
        "the task (`main_task_type`, `sub_task_type`), the modality, source, license, provenance, split, `group_id` "
        "(patient, slide: what must not be on two sides of a split), content hash and alignment scores (`quality`).",
        "",
        "## Balance",
        "",
        *(f"![records by {plot.split('/')[-1].removesuffix('.png')}]({plot})" for plot in plots),
        "",
    ]
    for column in ("modality", "sub_task_type", "split", "license_tier"):
        text += [f"| {column} | records |", "|---|---|"]
        text += [f"| {key or 'unknown'} | {count:,} |" for key, count in counts[column].items()]
        text.append("")
    text += ["## Sources and licenses", "", "| source | records | terms as the source states them |", "|---|---|---|"]
    for source, facts in statistics["sources"].items():
        terms = "; ".join(sorted(facts["licenses"])).replace("|", "/")
        text.append(f"| {source} | {facts['records']:,} | {terms} |")
    text += [
        "",
        "The terms are our reading of the sources' pages and no legal advice.",
        "",
        "## Intended use",
        "",
        "Research on medical vision-language models. Not for diagnosis, treatment or any decision about a person. "
        "Labels and texts carry the errors of their sources; modalities and populations are not balanced (tables "
        "above).",
        "",
        "## Access",
        "",
        GATING,
        "",
    ]
    return "\n".join(text)


def _first_config(configs: Mapping[str, Any]) -> tuple[str, str]:
    """Config and split of the card's example: all records with images where there are any."""
    kind = "data" if "data" in configs else "metadata"
    config, splits = next(iter(configs[kind].items()))
    return "all" if kind == "data" else f"metadata_{config}", next(iter(splits))


def _license(source: str, facts: Mapping[str, Any]) -> str:
    lines = [f"Source: {source}", f"From: {facts['provenance']}", "", "Terms as recorded (records):"]
    lines += [f"- {terms} ({count})" for terms, count in sorted(facts["licenses"].items())]
    return "\n".join([*lines, ""])


def _acknowledgments(sources: Mapping[str, Any]) -> str:
    lines = ["# Acknowledgments", "", "The records come from these data sets; please cite the ones you use.", ""]
    lines += [
        f"- **{name}**: {facts['records']:,} records, from {facts['provenance']}" for name, facts in sources.items()
    ]
    return "\n".join([*lines, ""])


LICENSE = """# Licenses

Every record keeps the license of its source: the columns `license`, `license_tier` and `redistributable` say which,
and `LICENSES/` has one file per source. There is no license for the collection as a whole.
"""

RELINKING = """# Relinking

Records under `metadata/` carry no images and no texts: id, content hash, scores, and path, size and SHA-256 of each
image remain. To get the whole records,

1. download the source from its publisher, under its terms (`LICENSES/`, `ACKNOWLEDGMENTS.md`);
2. build records from it: `unimedvl data build --source NAME DOWNLOAD BUILT`;
3. join them by id and content hash:

```python
from unimedvl.unimed5m.relink import relink

print(relink("THIS_FOLDER", "BUILT", "RELINKED"))
```

A record whose images or texts are not byte for byte those that were checked is counted as missing, not linked.
"""


def write_plots(output: Path, counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Bar charts of the balance; returns their paths inside the folder."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = []
    for column in PLOTTED:
        values = dict(sorted(counts[column].items(), key=lambda item: (item[1], item[0])))
        figure, axes = pyplot.subplots(figsize=(7, 1 + 0.3 * len(values)), layout="constrained")
        bars = axes.barh([key or "unknown" for key in values], list(values.values()), color="#31688e")
        axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
        axes.set_xlabel("records")
        axes.set_title(f"Records by {column.replace('_', ' ')}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.12)
        name = f"plots/{column}.png"
        with replacing(output / name) as partial:
            # Without the program's name and version, equal numbers give equal files.
            figure.savefig(partial, format="png", dpi=120, metadata={"Software": None})
        pyplot.close(figure)
        names.append(name)
    return names
