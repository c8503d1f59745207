"""Wrong inputs: each gives one ValueError of one line that says what to do."""

import gzip
import io
import pickle
import socket
import struct
import threading
import zipfile
import zlib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGLossless

from tests.processing.conftest import random_image
from tests.processing.medical_files import make_dicom, make_nifti, read_dicom_file, write_dicom
from tests.processing.test_medical_formats import RAMP, VOLUME, file_of
from unimedvl.processing.image_processing_unimedvl import UniMedVLImageProcessor
from unimedvl.processing.medical_formats_unimedvl import load_medical_image
from unimedvl.processing.processing_unimedvl import UniMedVLProcessor

PNG = file_of(random_image(60, 50), "PNG")


def png_of_declared_size(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return content


def zip_of(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("image.png", content)
    return file.getvalue()


def npy_of(array: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def npy_of_declared_shape(shape: tuple) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return file.getvalue()


def nifti_of_declared_shape(*shape: int, offset: int = 352) -> bytes:
    header = nibabel.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.float64)
    header["vox_offset"] = offset
    header["magic"] = b"n+1"
    return header.binaryblock + b"\0" * 100


def dicom_of_syntax(syntax) -> bytes:
    data = read_dicom_file(make_dicom(RAMP))
    data.file_meta.TransferSyntaxUID = syntax
    if syntax == JPEGLossless:
        data.PixelData = encapsulate([b"\xff\xd8junk\xff\xd9"])
        data["PixelData"].VR = "OB"
    return write_dicom(data)


def dicom_without(*names: str) -> bytes:
    data = read_dicom_file(make_dicom(RAMP))
    for name in names:
        delattr(data, name)
    return write_dicom(data)


FILES = {
    "empty": b"",
    "text": b"Findings: none.",
    "html": b"<!doctype html><html>",
    "random bytes": bytes(np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8)),
    "truncated PNG": PNG[: len(PNG) // 2],
    "PNG header only": PNG[:40],
    "truncated JPEG": file_of(random_image(60, 50), "JPEG")[:400],
    "truncated TIFF": file_of(random_image(60, 50), "TIFF")[:400],
    "damaged PNG": PNG[:200] + b"\0" * 50 + PNG[250:],
    "decompression bomb of 2.5 gigapixels": png_of_declared_size(50000, 50000),
    "more pixels than the reference takes": png_of_declared_size(5000, 5000),
    "absurd aspect ratio": file_of(Image.new("L", (2000, 2)), "PNG"),
    "zip": zip_of(PNG),
    "gzip of something else": gzip.compress(PNG),
    "gzip bomb": gzip.compress(b"\0" * 10_000_000),
    "damaged gzip": b"\x1f\x8b" + b"\xff" * 1000,
    "pickle": pickle.dumps({"weights": [1, 2, 3]}),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "npy with objects": npy_of(np.array([{}], dtype=object), allow_pickle=True),
    "npy cut short": npy_of(np.zeros((30, 30)))[:500],
    "npy that promises terabytes": npy_of_declared_shape((2**20, 2**20)),
    "npy of a volume": npy_of(np.zeros((30, 30, 30))),
    "npy with one axis": npy_of(np.zeros(30)),
    "npy of NaN": npy_of(np.full((30, 30), np.nan)),
    "npy of text": npy_of(np.array([["a", "b"]])),
    "NIfTI that promises terabytes": nifti_of_declared_shape(32767, 32767, 32767),
    "packed NIfTI that promises terabytes": gzip.compress(nifti_of_declared_shape(32767, 32767, 32767)),
    "NIfTI with a giant header": gzip.compress(nifti_of_declared_shape(4, 4, 4, offset=2**30)),
    "NIfTI without voxels": nifti_of_declared_shape(20, 20, 20),
    "truncated packed NIfTI": gzip.compress(make_nifti(VOLUME), compresslevel=0)[:700],
    "NIfTI of NaN": make_nifti(np.full((4, 4, 4), np.nan, dtype=np.float32)),
    "complex NIfTI": make_nifti(np.zeros((4, 4, 4), dtype=np.complex64)),
    "4-D NIfTI without a choice": make_nifti(np.zeros((4, 4, 4, 3), dtype=np.float32)),
    "NIfTI with one axis": make_nifti(np.zeros(4, dtype=np.float32)),
    "DICOM cut in the header": make_dicom(RAMP)[:400],
    "DICOM cut in the pixels": make_dicom(RAMP)[:-1000],
    "DICOM without pixels": dicom_without("PixelData"),
    "DICOM without a size": dicom_without("Rows"),
    "DICOM that promises gigapixels": make_dicom(RAMP, Rows=60000, Columns=60000),
    "DICOM with too few pixels": make_dicom(RAMP, Rows=600),
    "DICOM without a decoder": dicom_of_syntax(JPEGLossless),
    "DICOM with an unknown syntax": make_dicom(RAMP).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0"),
    "deflated DICOM": dicom_of_syntax(DeflatedExplicitVRLittleEndian),
}


def one_line(error) -> str:
    message = str(error.value)
    assert message and "\n" not in message and len(message) < 400, message
    assert message.endswith((".", ".)")), message
    return message


@pytest.mark.parametrize("name", FILES)
def test_files(name, tmp_path):
    with pytest.raises(ValueError) as in_memory:
        load_medical_image(FILES[name])
    one_line(in_memory)
    path = tmp_path / "file.bin"
    path.write_bytes(FILES[name])
    with pytest.raises(ValueError) as from_path:
        load_medical_image(path)
    one_line(from_path)


SOURCES = {
    "missing file": "/nowhere/at/all.png",
    "directory": "/",
    "empty path": "",
    "http URL": "http://127.0.0.1:9/x.png",
    "https URL": "https://127.0.0.1:9/x.png",
    "file URL": "file:///etc/hostname",
    "wrong base64": "data:image/png;base64,%%%",
    "number": 7,
    "dict": {"path": "x.png"},
    "text file object": io.StringIO("x"),
    "object array": np.array([[None, {}]]),
    "complex array": np.zeros((4, 4), dtype=np.complex64),
    "empty array": np.zeros((0, 5), dtype=np.uint8),
    "empty image": Image.new("RGB", (0, 0)),
    "five channels": np.zeros((9, 9, 5), dtype=np.uint8),
    "all NaN": torch.full((5, 5), float("nan")),
    "five axes": torch.zeros(1, 1, 3, 5, 5),
    "long strip": np.zeros((3, 1000), dtype=np.uint8),
}


@pytest.mark.parametrize("name", SOURCES)
def test_sources(name, image_processor):
    with pytest.raises(ValueError) as error:
        load_medical_image(SOURCES[name])
    one_line(error)
    if name != "text file object":
        with pytest.raises(ValueError):
            image_processor(SOURCES[name])


def test_a_url_is_never_fetched_unasked(monkeypatch, processor):
    def refuse(*arguments, **keywords):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    url = "http://127.0.0.1:9/x.png"
    for item in ({"url": url}, {"image": url}, {"path": url}):
        with pytest.raises(ValueError, match="allow_url"):
            message = {"role": "user", "content": [{"type": "image", **item}]}
            processor.apply_chat_template([message], tokenize=True, return_dict=True)
    with pytest.raises(ValueError, match="allow_url"):
        openai = {"type": "image_url", "image_url": {"url": url}}
        processor.apply_chat_template([{"role": "user", "content": [openai]}], tokenize=True, return_dict=True)
    # Nor does a saved setting allow it.
    with pytest.raises(ValueError, match="allow_url"):
        UniMedVLImageProcessor(allow_url=True)(url)


@pytest.fixture
def served(tmp_path):
    handler = partial(QuietHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments) -> None:
        """Nothing, as the default writes to stderr."""


def test_a_fetched_file_is_read_like_a_local_one(monkeypatch, served):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    folder, address = served
    ramp = np.arange(60 * 50, dtype=np.uint16).reshape(50, 60) * 20
    Image.fromarray(ramp).save(folder / "deep.png")
    (folder / "scan.dcm").write_bytes(make_dicom(RAMP))
    for name in ("deep.png", "scan.dcm"):
        fetched = load_medical_image(f"{address}/{name}", allow_url=True)
        assert fetched.tobytes() == load_medical_image(folder / name).tobytes()
    with pytest.raises(ValueError, match="download"):
        load_medical_image(f"{address}/missing.png", allow_url=True)
    monkeypatch.setattr("unimedvl.processing.medical_formats_unimedvl.MAX_DOWNLOAD_BYTES", 100)
    with pytest.raises(ValueError, match="larger"):
        load_medical_image(f"{address}/deep.png", allow_url=True)


def test_a_url_that_can_not_be_fetched():
    with pytest.raises(ValueError, match="download"):
        load_medical_image("http://127.0.0.1:9/x.png", allow_url=True)


@pytest.mark.parametrize(
    "options",
    [
        {"window": 40},
        {"window": (40, 0)},
        {"window": (40, float("inf"))},
        {"window": ("wide", "narrow")},
        {"percentiles": (90, 10)},
        {"percentiles": (-1, 50)},
        {"percentiles": 5},
        {"frame": 1},
        {"frame": -1},
        {"frame": "first"},
        {"plane": "axial"},
        {"slice_index": 0},
        {"max_pixels": 100},
    ],
)
def test_options_of_images(options):
    for source in (PNG, random_image(60, 50), np.asarray(random_image(60, 50))):
        with pytest.raises(ValueError) as error:
            load_medical_image(source, **options)
        one_line(error)


@pytest.mark.parametrize("options", [{"plane": "oblique"}, {"slice_index": 7}, {"slice_index": -1}, {"frame": 1}])
def test_options_of_volumes(options):
    with pytest.raises(ValueError) as error:
        load_medical_image(make_nifti(VOLUME), **options)
    one_line(error)


def test_frames_of_dicom():
    with pytest.raises(ValueError, match="0 to 0"):
        load_medical_image(make_dicom(RAMP), frame=1)


def item(**fields):
    return [{"role": "user", "content": [fields]}]


CONVERSATIONS = {
    "None": None,
    "text": "hello",
    "empty": [],
    "empty batch entry": [[]],
    "message as text": [["hello"]],
    "unknown role": [{"role": "tool", "content": "hello"}],
    "no role": [{"content": "hello"}],
    "no content": [{"role": "user"}],
    "content None": [{"role": "user", "content": None}],
    "content number": [{"role": "user", "content": 3}],
    "content empty": [{"role": "user", "content": []}],
    "empty text": [{"role": "user", "content": ""}],
    "empty text item": item(type="text", text=""),
    "text item without text": item(type="text"),
    "text item number": item(type="text", text=3),
    "item without type": item(text="hello"),
    "item as text": [{"role": "user", "content": ["hello"]}],
    "video": item(type="video", video="x.mp4"),
    "audio": item(type="audio", audio="x.wav"),
    "image without image": item(type="image"),
    "two images in one item": item(type="image", image=random_image(9, 9), path="x.png"),
    "missing image file": item(type="image", path="/nowhere/x.png"),
    "image number": item(type="image", image=3),
    "wrong window": item(type="image", image=random_image(40, 40), window=(1, -1)),
    "literal placeholder": item(type="text", text="show <|image_pad|>"),
    "literal latent placeholder": item(type="text", text="show <|vision_pad|>"),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations(name, processor):
    with pytest.raises(ValueError) as error:
        processor.apply_chat_template(CONVERSATIONS[name], tokenize=True, return_dict=True, return_tensors="pt")
    one_line(error)


HELLO = [{"role": "user", "content": "hello"}]
CHAT_OPTIONS = [
    {"generation_mode": "video"},
    {"continue_final_message": True, "add_generation_prompt": True},
    {"return_assistant_tokens_mask": True, "return_dict": False},
    {"processor_kwargs": {"images": [random_image(30, 30)]}},
    {"processor_kwargs": {"no_such_setting": 1}},
    {"generation_mod": "image"},
    {"padding": "sometimes"},
    {"padding_side": "top"},
    {"pipeline": "sideways"},
    {"vit_transform": {"max_image_size": 10}},
    {"processor_kwargs": {"return_tensors": "tf"}},
]


@pytest.mark.parametrize("options", CHAT_OPTIONS)
def test_chat_options(options, processor):
    with pytest.raises(ValueError) as error:
        processor.apply_chat_template(HELLO, **{"tokenize": True, "return_dict": True, **options})
    one_line(error)


VIT = "<|vision_start|><|image_pad|><|vision_end|>"
IMAGE = random_image(40, 50)
CALLS = [
    {"text": None},
    {"text": ""},
    {"text": []},
    {"text": ["fine", ""]},
    {"text": ["fine", 3]},
    {"text": VIT},
    {"text": "no placeholder", "images": IMAGE},
    {"text": VIT, "images": [IMAGE, IMAGE]},
    {"text": [VIT, "none"], "images": [[], [IMAGE]]},
    {"text": VIT, "images": IMAGE, "generation_mode": "image"},
    {"text": VIT, "images": IMAGE, "generation_mode": "sound"},
    {"text": "<|vision_pad|>" + VIT, "images": IMAGE, "generation_mode": "text"},
    {"text": VIT + "<|vision_pad|>", "images": IMAGE},
    {"text": "fine", "videos": ["x.mp4"]},
    {"text": "fine", "audio": ["x.wav"]},
    {"text": ["one", "two three four"], "padding": False, "return_tensors": "pt"},
]


@pytest.mark.parametrize("arguments", CALLS)
def test_calls(arguments, processor):
    with pytest.raises(ValueError) as error:
        processor(**arguments)
    one_line(error)


@pytest.mark.parametrize(
    "settings",
    [
        {"vae_transform": {"max_image_size": 64, "min_image_size": 32}},
        {"vae_transform": {"max_image_size": 64, "min_image_size": 32, "image_stride": 0}},
        {"vae_transform": {"max_image_size": 64, "min_image_size": 32, "image_stride": 16, "color": 1}},
        {"vit_transform": {"max_image_size": 64, "min_image_size": 32, "image_stride": 16}},
        {"understanding_transform": "large"},
        {"pipeline": "both"},
        {"patch_size": 5},
    ],
)
def test_settings(settings):
    with pytest.raises(ValueError) as error:
        UniMedVLImageProcessor(**settings)
    one_line(error)


def test_a_processor_needs_a_tokenizer(image_processor):
    with pytest.raises(ValueError, match="tokenizer"):
        UniMedVLProcessor(image_processor)


def test_f14_case_40_lone_surrogates_are_refused(processor):
    """Undecodable bytes reach Python as such: no tokenizer takes them."""
    for text in ("caf\udce9?", "\ud800"):
        with pytest.raises(ValueError, match="UTF-8"):
            processor(text=["a scan", text])
        for content in (text, [{"type": "text", "text": text}]):
            with pytest.raises(ValueError, match="UTF-8"):
                processor.apply_chat_template([{"role": "user", "content": content}], tokenize=True)
