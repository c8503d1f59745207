"""HTML pages for people, one Jinja template each: random records, the expert audit, the reader study,
the demonstration."""

import base64
from pathlib import Path
from typing import Any

import jinja2

# Texts of records are data: whatever markup they hold is shown as text.
_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
)


def render_page(name: str, **values: Any) -> str:
    """The HTML of `NAME.html.jinja`, filled with `values`."""
    return _ENVIRONMENT.get_template(f"{name}.html.jinja").render(values)


def data_address(data: bytes) -> str:
    """The `data:` URL of a PNG or JPEG file."""
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
