"""Generated images say so: PNG files that carry machine-readable proof that a model made them.

Every PNG written here holds, besides its pixels, text chunks that survive copying and that common tools read:

* `AI-generated`: `true`, and `Software`: this package and its version;
* `unimedvl`: a JSON object, see `provenance_record`;
* an XMP packet whose `Iptc4xmpExt:DigitalSourceType` is the IPTC term `trainedAlgorithmicMedia`, or
  `compositeWithTrainedAlgorithmicMedia` for a sheet that holds other images as well.

Prompts may hold patient data, so a file keeps only the prompt's SHA-256 unless the caller asks for the text.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from PIL import Image, PngImagePlugin

from ..utils.whole_files import replacing
from ..version import __version__

# What everybody reads who sees a result.
NOTICE = "For research use only: not a medical device, not for diagnosis or treatment."
DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
COMPOSITE_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
RECORD_KEY = "unimedvl"
SOFTWARE_KEY, MARK_KEY, XMP_KEY = "Software", "AI-generated", "XML:com.adobe.xmp"
# The text chunks that files written here hold.
PROVENANCE_KEYS = (SOFTWARE_KEY, MARK_KEY, RECORD_KEY, XMP_KEY)

_XMP_TEMPLATE = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmp:CreatorTool={creator}
    Iptc4xmpExt:DigitalSourceType={source_type}/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""


def provenance_record(
    *,
    model: str,
    revision: str | None,
    seed: int | None,
    settings: dict[str, Any],
    prompt: str | None = None,
    keep_prompt: bool = False,
    input_hashes: list[str] | None = None,
    composite: bool = False,
) -> dict[str, Any]:
    """What a file says about its making.

    Args:
        model: Hub id, or the last part of a local folder's path (a whole path may name a person).
        revision: commit hash, or for a local folder the fingerprint of its weights.
        seed: seed of the noise.
        settings: sampler settings, values that JSON can hold.
        prompt: the text that was given; only its SHA-256 is kept unless `keep_prompt`.
        input_hashes: SHA-256 of every conditioning image's file, or of the files of its series.
        composite: whether the image is a sheet of generated images and others.
    """
    record = {
        "ai_generated": True,
        "synthetic": True,
        "not_for_diagnosis": True,
        "digital_source_type": COMPOSITE_SOURCE_TYPE if composite else DIGITAL_SOURCE_TYPE,
        "software": f"unimedvl {__version__}",
        "model": model,
        "revision": revision,
        "seed": seed,
        "settings": settings,
        "input_sha256": list(input_hashes or []),
    }
    if prompt is not None:
        record["prompt_sha256"] = hashlib.sha256(prompt.encode("utf-8")).hexdigest()
        if keep_prompt:
            record["prompt"] = prompt
    return record


def save_generated_image(
    image: Image.Image, path: str | os.PathLike, *, overwrite: bool = False, **record_fields: Any
) -> dict[str, Any]:
    """Write `image` as a PNG with its provenance, all or nothing.

    Args:
        image: the generated image.
        path: a file name ending in `.png`; its folder must exist.
        overwrite: replace a file that is already there.
        record_fields: the arguments of `provenance_record`.

    Returns:
        The record that was written.

    Raises:
        ValueError: if the name does not end in `.png`, the folder does not exist or cannot be written, or the file
            exists and `overwrite` is false.
    """
    target = check_output_path(path, overwrite=overwrite)
    content, record = generated_png(image, **record_fields)
    with writing(target) as partial:
        partial.write_bytes(content)
    return record


@contextmanager
def writing(target: Path) -> Iterator[Path]:
    """A place to write a generated image that appears under `target` whole or not at all.

    Raises:
        ValueError: if the disk refuses.
    """
    try:
        with replacing(target) as partial:
            yield partial
    except OSError as error:
        raise ValueError(f"cannot write {target}: {error.strerror or error}; choose another folder.") from error


def generated_png(image: Image.Image, **record_fields: Any) -> tuple[bytes, dict[str, Any]]:
    """`image` as the bytes of a PNG file with its provenance, and the record in it.

    Args:
        image: the generated image.
        record_fields: the arguments of `provenance_record`.
    """
    record = provenance_record(**record_fields)
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text(SOFTWARE_KEY, record["software"])
    chunks.add_text(MARK_KEY, "true")
    chunks.add_itxt(RECORD_KEY, json.dumps(record, ensure_ascii=False, sort_keys=True))
    xmp = _XMP_TEMPLATE.format(
        creator=quoteattr(record["software"]), source_type=quoteattr(record["digital_source_type"])
    )
    chunks.add_itxt(XMP_KEY, xmp)
    content = io.BytesIO()
    image.save(content, format="PNG", pnginfo=chunks)
    return content.getvalue(), record


def check_output_path(
    path: str | os.PathLike, *, overwrite: bool = False, suffixes: tuple[str, ...] = (".png",)
) -> Path:
    """The path as a `Path`, after the checks that need no image: call it before minutes of sampling.

    Args:
        path: a file name.
        overwrite: whether it may be there already.
        suffixes: what the name may end in, of the kinds of files that carry the record.

    Raises:
        ValueError: see `save_generated_image`.
    """
    target = Path(path)
    if target.suffix.lower() not in suffixes:
        kinds = " or ".join(f"{suffix} ({suffix[1:].upper()})" for suffix in suffixes)
        raise ValueError(f"{target.name!r} does not end in {kinds}: only these carry the synthetic-image record.")
    if not target.parent.is_dir():
        raise ValueError(f"the folder {str(target.parent)!r} does not exist: create it first.")
    if target.is_dir():
        raise ValueError(f"{str(target)!r} is a folder: give a file name.")
    if not os.access(target.parent, os.W_OK):
        raise ValueError(f"the folder {str(target.parent)!r} is not writable: choose another one.")
    if target.exists() and not overwrite:
        raise ValueError(
            f"{str(target)!r} already exists: choose another name, or overwrite it (--force, or overwrite=True)."
        )
    return target


def read_provenance(path: str | os.PathLike) -> dict[str, Any]:
    """The record of a PNG written by `save_generated_image`.

    Raises:
        ValueError: if the file is not a PNG, or carries no record.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
            assert isinstance(image, PngImagePlugin.PngImageFile)
            text = image.text.get(RECORD_KEY)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{str(path)!r} is not a readable PNG: give one that `unimedvl generate` wrote.") from error
    if text is None:
        raise ValueError(f"{str(path)!r} carries no unimedvl record: it was not written by `unimedvl generate`.")
    return json.loads(text)
