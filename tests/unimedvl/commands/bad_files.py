"""Builders of bad image files and bad checkpoint folders. Each writes under `folder` and returns a path."""

import gzip
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from safetensors.torch import load_file, save_file


class Trap:
    """Unpickling this creates the file `sprung`: proof that a pickle was opened."""

    def __init__(self, sprung: Path):
        self.sprung = sprung

    def __reduce__(self):
        return os.mkdir, (str(self.sprung),)


# ---------------------------------------- image files


def image(size: int = 32) -> Image.Image:
    return Image.radial_gradient("L").resize((size, size)).convert("RGB")


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def good_png(folder: Path) -> Path:
    return write(folder, "good.png", encoded(image(), "PNG"))


def empty_file(folder: Path) -> Path:
    return write(folder, "empty.png", b"")


def truncated_png(folder: Path) -> Path:
    content = encoded(image(128), "PNG")
    return write(folder, "truncated.png", content[: len(content) // 2])


def truncated_jpeg(folder: Path) -> Path:
    content = encoded(image(256), "JPEG")
    return write(folder, "truncated.jpg", content[: len(content) // 2])


def damaged_png(folder: Path) -> Path:
    content = bytearray(encoded(image(), "PNG"))
    content[20] ^= 0xFF  # inside the header chunk: its checksum no longer fits
    return write(folder, "damaged.png", bytes(content))


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(folder: Path) -> Path:
    """60,000 x 60,000 pixels in a few kilobytes."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(7_501) * 1_000, 9)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")
    return write(folder, "bomb.png", b"\x89PNG\r\n\x1a\n" + chunks)


def large_png(folder: Path) -> Path:
    """25 million pixels: below Pillow's own alarm, above the processor's limit."""
    return write(folder, "large.png", encoded(Image.new("1", (5_000, 5_000)), "PNG"))


def zip_bomb(folder: Path) -> Path:
    path = folder / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.png", bytes(50_000_000))
    return path


def gzip_bomb(folder: Path) -> Path:
    return write(folder, "bomb.nii.gz", gzip.compress(bytes(50_000_000), 9))


def text_as_png(folder: Path) -> Path:
    return write(folder, "notes.png", b"The patient was seen on Tuesday.")


def pdf(folder: Path) -> Path:
    return write(folder, "report.pdf", b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n")


def svg(folder: Path) -> Path:
    return write(folder, "drawing.svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')


def video(folder: Path) -> Path:
    return write(folder, "scan.mp4", b"\x00\x00\x00\x18ftypmp42" + bytes(200))


def postscript(folder: Path) -> Path:
    return write(folder, "plot.eps", encoded(image(), "EPS"))


def pickled_image(folder: Path) -> Path:
    return write(folder, "image.png", pickle.dumps(Trap(folder / "sprung")))


def object_array(folder: Path) -> Path:
    np.save(folder / "array.npy", np.array([Trap(folder / "sprung")], dtype=object), allow_pickle=True)
    return folder / "array.npy"


def nan_array(folder: Path) -> Path:
    np.save(folder / "nan.npy", np.full((8, 8), np.nan, dtype=np.float32))
    return folder / "nan.npy"


def volume_array(folder: Path) -> Path:
    np.save(folder / "volume.npy", np.zeros((8, 8, 8), dtype=np.uint8))
    return folder / "volume.npy"


def empty_array(folder: Path) -> Path:
    np.save(folder / "none.npy", np.zeros((0, 8), dtype=np.uint8))
    return folder / "none.npy"


def nifti(folder: Path, name: str = "volume.nii.gz", shape: tuple[int, ...] = (6, 7, 8)) -> Path:
    volume = np.random.default_rng(0).integers(0, 100, shape).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), folder / name)
    return folder / name


def nifti_4d(folder: Path) -> Path:
    nibabel.save(nibabel.Nifti1Image(np.zeros((6, 7, 8, 3), np.int16), np.eye(4)), folder / "series.nii.gz")
    return folder / "series.nii.gz"


def truncated_nifti(folder: Path) -> Path:
    content = nifti(folder).read_bytes()
    return write(folder, "truncated.nii.gz", content[: len(content) // 2])


def dicom(folder: Path, name: str = "scan.dcm", with_pixels: bool = True, burned_in: bool = False) -> Path:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(str(folder / name), {}, file_meta=meta, preamble=bytes(128))
    dataset.PatientName = "Doe^Jane"
    dataset.PatientID = "SECRET-4711"
    dataset.BurnedInAnnotation = "YES" if burned_in else "NO"
    if with_pixels:
        dataset.Rows, dataset.Columns = 16, 16
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
        dataset.PixelData = np.arange(256, dtype=np.uint16).tobytes()
    dataset.save_as(folder / name, enforce_file_format=True)
    return folder / name


def dicom_report(folder: Path) -> Path:
    return dicom(folder, "report.dcm", with_pixels=False)


def truncated_dicom(folder: Path) -> Path:
    content = dicom(folder).read_bytes()
    return write(folder, "truncated.dcm", content[:-200])


# ---------------------------------------- checkpoint folders


def copy_of(good: Path, folder: Path) -> Path:
    return Path(shutil.copytree(good, folder / "checkpoint"))


def change_json(path: Path, **changes) -> None:
    content = json.loads(path.read_text())
    for key, value in changes.items():
        if isinstance(value, dict):
            content[key].update(value)
        else:
            content[key] = value
    path.write_text(json.dumps(content))


def change_weights(directory: Path, change) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def spring_trap(directory: Path) -> Path:
    """Where a trap of this checkpoint folder leaves its mark."""
    return directory.parent / "sprung"


def without_config(directory: Path) -> None:
    (directory / "config.json").unlink()


def broken_config(directory: Path) -> None:
    (directory / "config.json").write_text('{"model_type": "unimedvl", ')


def list_config(directory: Path) -> None:
    (directory / "config.json").write_text("[]")


def other_model_type(directory: Path) -> None:
    change_json(directory / "config.json", model_type="qwen2")


def truncated_weights(directory: Path) -> None:
    content = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(content[: len(content) // 2])


def empty_weights(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"")


def pickled_weights(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(pickle.dumps(Trap(spring_trap(directory))))


def only_pickles(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(spring_trap(directory))))


def no_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def missing_shard(directory: Path) -> None:
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def index_without_map(directory: Path) -> None:
    (directory / "model.safetensors.index.json").write_text("{}")


def missing_tensor(directory: Path) -> None:
    change_weights(directory, lambda tensors: tensors.pop("model.language_model.norm.weight"))


def misshapen_tensor(directory: Path) -> None:
    change_weights(
        directory, lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"][:-1].clone()})
    )


def unknown_tensor(directory: Path) -> None:
    change_weights(directory, lambda tensors: tensors.update(stranger=tensors["lm_head.weight"].clone()))


def whole_numbers(directory: Path) -> None:
    change_weights(directory, lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"].long()}))


def wrong_field_type(directory: Path) -> None:
    change_json(directory / "config.json", latent_patch_size="two")


def no_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer_config.json").unlink()


def broken_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("{")


def impossible_sizes(directory: Path) -> None:
    change_json(directory / "config.json", text_config={"hidden_size": -32})


def odd_heads(directory: Path) -> None:
    change_json(directory / "config.json", text_config={"num_attention_heads": 5})
