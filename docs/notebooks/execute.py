"""Run the notebooks of this folder and keep their outputs: `make notebooks`.

python docs/notebooks/execute.py [--clear] [NAME ...]

Each runs in an empty folder, by this interpreter and without a network, and afterwards
holds outputs and counts of execution, nothing of the machine.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import matplotlib.font_manager  # noqa: F401  builds the cache of fonts, which a notebook else reports
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
SECONDS = 1200  # of one cell at most
# What libraries say to each other; each line names a file of the machine.
WARNINGS_OF_OTHERS = (
    "IProgress not found",  # tqdm, without ipywidgets
    "`gradient_checkpointing` is deprecated",  # transformers to TRL
    "`is_gradient_checkpointing` is deprecated",  # transformers to PEFT
)


def notebooks() -> list[Path]:
    """The notebooks of this folder, by name."""
    return sorted(HERE.glob("*.ipynb"))


def executed(path: Path, folder: Path) -> nbformat.NotebookNode:
    """A notebook with the outputs of a run.

    Args:
        path: the notebook.
        folder: an empty folder to run in.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    notebook = cleared(nbformat.read(path, as_version=4))
    # What libraries and kernel keep between runs; sockets need a short path.
    with tempfile.TemporaryDirectory() as state:
        client = NotebookClient(
            notebook,
            timeout=SECONDS,
            resources={"metadata": {"path": str(folder)}},
            record_timing=False,
            coalesce_streams=True,
        )
        manager = client.create_kernel_manager()
        # No port that others on the machine could reach.
        manager.transport, manager.connection_file = (
            "ipc",
            str(Path(state, "kernel.json")),
        )
        client.execute(env=environment(Path(state)))
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def environment(state: Path) -> dict[str, str]:
    """Of the kernel: this interpreter's commands, this checkout, no network."""
    return {
        **os.environ,
        "PATH": os.pathsep.join(
            [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
        ),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HOME": str(state / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "IPYTHONDIR": str(state / "ipython"),
        "PYTHONWARNINGS": ",".join(f"ignore:{start}" for start in WARNINGS_OF_OTHERS),
    }


def cleared(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A notebook without outputs, counts and metadata of a run."""
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="file names without .ipynb (default: all)",
    )
    parser.add_argument(
        "--clear", action="store_true", help="remove the outputs instead"
    )
    chosen = parser.parse_args()
    known = {path.stem: path for path in notebooks()}
    if unknown := sorted(set(chosen.names) - set(known)):
        parser.error(f"no notebook {unknown[0]}: choose some of {', '.join(known)}")
    for name in chosen.names or known:
        path = known[name]
        if chosen.clear:
            notebook = cleared(nbformat.read(path, as_version=4))
        else:
            with tempfile.TemporaryDirectory() as folder:
                notebook = executed(path, Path(folder))
        path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
