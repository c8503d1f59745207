"""Write a checkpoint as a diffusers pipeline, which tools that open one can run.

  unimedvl export-diffusers hub_cards/unimedvl-nano pipeline

DiffusionPipeline.from_pretrained("pipeline", trust_remote_code=True) then makes images; see docs/diffusers.md.
"""

from typing import Annotated

from typer import Argument

from ..utils.command_line import Result
from .shared import Dtype, Revision, silence_loading


def export_diffusers(
    model: Annotated[str, Argument(metavar="MODEL", help="Folder or Hub id of a checkpoint.")],
    output: Annotated[str, Argument(metavar="OUT", help="Folder to write; must not exist, or be empty.")],
    revision: Revision = None,
    dtype: Dtype = "auto",
) -> Result:
    from ..hub_cards.diffusers_export import export_pipeline

    silence_loading()
    report = export_pipeline(model, output, revision=revision, dtype=dtype)
    record = {
        "output": str(report.output),
        "bytes": report.num_bytes,
        "model": report.model,
        "revision": report.revision,
    }
    return record, f"{report.output}: {report.model} as a diffusers pipeline, {report.num_bytes:,} bytes of weights"
