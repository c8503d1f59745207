"""Hook of the site: the notebooks as pages, with their outputs and a link to the file."""

from pathlib import Path
from typing import Any

import nbformat
from bs4 import BeautifulSoup
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"


def on_files(files: Files, config: Any) -> Files:
    """Add a page for every notebook, and the images of its outputs."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        text, images = page(path)
        made = File.generated(config, f"notebooks/{path.stem}.md", content=text)
        # Relative links of the page count from the notebook, also for the hook that leads them out of docs/.
        made.abs_src_path = str(path)
        files.append(made)
        for name, content in images.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def page(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and the files of its images by name."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            # Other notebooks are pages as well.
            cell.source = cell.source.replace(".ipynb)", ".md)")
        for output in cell.get("outputs", []):
            html = output.get("data", {}).get("text/html")
            if html is not None:
                # Markdown takes indented lines for code, and an element without an end for the rest of the page.
                closed = str(BeautifulSoup(html, "html.parser"))
                lines = (line.strip() for line in closed.splitlines())
                output["data"]["text/html"] = "\n".join(line for line in lines if line)
    text, resources = MarkdownExporter().from_notebook_node(
        notebook, {"unique_key": path.stem, "output_files_dir": "."}
    )
    images = {name.removeprefix("./"): content for name, content in resources.get("outputs", {}).items()}
    head, _, rest = text.lstrip().partition("\n")
    return f"{head}\n\n[Download this notebook]({path.name})\n{rest}", images
