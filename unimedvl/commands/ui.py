"""Open an application in the browser: ask, report, generate, edit, segment.

  unimedvl ui
  unimedvl ui --model owner/name --revision COMMIT --device cuda --port 8000
  unimedvl ui --model owner/name --revision COMMIT --space FOLDER

It listens at this machine alone unless --host says otherwise, and keeps no upload longer than the page is open.
"""

from typing import Annotated

from typer import Option

from ..utils.command_line import require
from .shared import NOTICE, Base, Device, Dtype, Model, Quantize, Revision, load_model, say


def ui(
    host: Annotated[str, Option(metavar="H", help="Address to listen at; 0.0.0.0 for every network.")] = "127.0.0.1",
    port: Annotated[int | None, Option(metavar="P", help="Port (default: the first free one from 7860).")] = None,
    space: Annotated[
        str | None, Option(metavar="FOLDER", help="Write it as the folder of a Space, and start nothing.")
    ] = None,
    model: Model = None,
    revision: Revision = None,
    base: Base = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    quantize: Quantize = None,
) -> None:
    if space is not None:
        from ..hub_cards.space import write_space

        if model is None or revision is None:
            raise ValueError("a Space shows one commit of one model: give --model owner/name and --revision COMMIT.")
        print("\n".join(write_space(space, model, revision)))
        return
    require("ui", "gradio", "pydicom", "nibabel", "skimage", "scipy")
    loaded = load_model(model, revision=revision, base=base, dtype=dtype, device=device, quantize=quantize)

    from ..hub_cards.ui.application import serve

    say(NOTICE)
    serve(loaded, host=host, port=port, announce=lambda url: print(f"unimedvl ui: {url} (Ctrl-C ends it)", flush=True))
