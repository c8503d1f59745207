"""Generated PNG files carry a record that ordinary tools read, and never a prompt that nobody asked to keep."""

import json
import stat
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from unimedvl.checkpoint.provenance import (
    COMPOSITE_SOURCE_TYPE,
    DIGITAL_SOURCE_TYPE,
    read_provenance,
    save_generated_image,
)

FIELDS = {
    "model": "owner/name",
    "revision": "0123abc",
    "seed": 7,
    "settings": {"preset": "t2i", "num_inference_steps": 4},
    "prompt": "chest X-ray of Jane Doe, 中文",
    "input_hashes": ["ab" * 32],
}


@pytest.fixture
def image() -> Image.Image:
    return Image.radial_gradient("L").convert("RGB")


@pytest.mark.parametrize("composite", [False, True])
def test_round_trip(composite, tmp_path, image):
    path = tmp_path / "out.png"
    record = save_generated_image(image, path, composite=composite, **FIELDS)
    assert read_provenance(path) == record
    assert record["ai_generated"] is True
    assert record["seed"] == 7 and record["settings"]["preset"] == "t2i" and record["revision"] == "0123abc"
    with Image.open(path) as reopened:
        assert reopened.convert("RGB").tobytes() == image.tobytes()
        assert reopened.text["AI-generated"] == "true"
        description = ElementTree.fromstring(reopened.info["XML:com.adobe.xmp"]).find(".//{*}Description")
    term = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
    source_type = COMPOSITE_SOURCE_TYPE if composite else DIGITAL_SOURCE_TYPE
    assert description.attrib[term] == record["digital_source_type"] == source_type


def test_prompt_is_hashed_unless_kept(tmp_path, image):
    save_generated_image(image, tmp_path / "a.png", **FIELDS)
    assert b"Jane" not in (tmp_path / "a.png").read_bytes()
    assert len(read_provenance(tmp_path / "a.png")["prompt_sha256"]) == 64
    save_generated_image(image, tmp_path / "b.png", keep_prompt=True, **FIELDS)
    assert read_provenance(tmp_path / "b.png")["prompt"] == FIELDS["prompt"]


def test_plain_readers_see_the_mark(tmp_path, image):
    """A reader that knows nothing of this package finds the record with Pillow alone."""
    save_generated_image(image, tmp_path / "a.png", **FIELDS)
    code = (
        "import json, sys; from PIL import Image; image = Image.open(sys.argv[1]); image.load();"
        "print(json.loads(image.text['unimedvl'])['ai_generated'], image.text['AI-generated'])"
    )
    command = [sys.executable, "-I", "-c", code, str(tmp_path / "a.png")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["True", "true"]


def test_overwriting_needs_consent(tmp_path, image):
    path = tmp_path / "a.png"
    path.write_bytes(b"mine")
    with pytest.raises(ValueError, match="already exists"):
        save_generated_image(image, path, **FIELDS)
    assert path.read_bytes() == b"mine"
    save_generated_image(image, path, overwrite=True, **FIELDS)
    assert read_provenance(path)["synthetic"] is True


def test_failed_write_leaves_nothing(tmp_path, image, monkeypatch):
    def full_disk(self, *arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(ValueError, match="No space left"):
        save_generated_image(image, tmp_path / "a.png", **FIELDS)
    assert list(tmp_path.iterdir()) == []


def test_ordinary_permissions(tmp_path, image):
    save_generated_image(image, tmp_path / "a.png", **FIELDS)
    (tmp_path / "plain").write_text("")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.png", "plain")]
    assert modes[0] == modes[1]


def test_unknown_files_are_refused(tmp_path, image):
    image.save(tmp_path / "plain.png")
    with pytest.raises(ValueError, match="carries no unimedvl record"):
        read_provenance(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match="not a readable PNG"):
        read_provenance(tmp_path / "text.png")
    with pytest.raises(ValueError, match="not a readable PNG"):
        read_provenance(tmp_path / "missing.png")
    image.save(tmp_path / "image.jpg")
    with pytest.raises(ValueError, match="does not end in .png"):
        save_generated_image(image, tmp_path / "b.jpg", **FIELDS)


def test_record_is_json(tmp_path, image):
    record = save_generated_image(image, tmp_path / "a.png", **FIELDS)
    assert json.loads(json.dumps(record)) == record
