"""The images of a session without a browser: what is taken, what is shown of it, what is refused, and what is kept."""

import os
import time
from pathlib import Path

import gradio as gr
import numpy
import psutil
import pytest
from PIL import Image

from tests.hub_cards.ui import uploads
from unimedvl.hub_cards.ui import room
from unimedvl.hub_cards.ui.sessions import MAX_SESSIONS, OPEN_SESSIONS, Sessions
from unimedvl.hub_cards.ui.sources import CUSTOM, STORED, WINDOWS
from unimedvl.hub_cards.ui.tray import TRAY, Tray
from unimedvl.hub_cards.ui.uploads import MAX_FILES, MAX_SOURCES, examples
from unimedvl.processing.medical_formats_unimedvl import load_medical_image

ME, OTHER = gr.Request(session_hash="me"), gr.Request(session_hash="other")


@pytest.fixture
def sessions(tmp_path: Path) -> Sessions:
    return Sessions(tmp_path / "root")


@pytest.fixture
def tray(sessions: Sessions) -> Tray:
    return Tray(sessions)


def shown(updates: list) -> dict:
    return dict(zip(TRAY, updates, strict=True))


def pixels(updates: list) -> numpy.ndarray:
    return numpy.asarray(Image.open(shown(updates)["viewer"]["value"]).convert("L"))


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_an_upload_leaves_the_common_cache(tray, sessions, tmp_path):
    file = uploads.cached(tmp_path, uploads.dicom(tmp_path / "scan.dcm"))
    state = shown(tray.add([file], ME))
    assert not Path(file).exists() and not Path(file).parent.exists()
    assert state["picker"]["choices"] == [("1. scan.dcm", 0)] and state["controls"]["visible"]
    assert state["window"]["visible"] and not state["plane"]["visible"] and not state["slice"]["visible"]
    source = sessions.of("me").sources[0]
    assert source.path.is_relative_to(sessions.of("me").folder)


def test_windows_are_those_of_the_image_door(tray, tmp_path):
    file = uploads.dicom(tmp_path / "scan.dcm")
    tray.add([uploads.cached(tmp_path, file)], ME)
    for name, window in WINDOWS.items():
        made = pixels(tray.look(None, None, None, name, None, None, ME))
        expected = numpy.asarray(load_medical_image(file, window=window).convert("L"))
        assert (made == expected).all(), name
    custom = tray.look(None, None, None, CUSTOM, 100, 50, ME)
    assert shown(custom)["custom"]["visible"] and shown(custom)["center"]["value"] == 100
    assert (pixels(custom) == numpy.asarray(load_medical_image(file, window=(100, 50)).convert("L"))).all()
    back = tray.look(None, None, None, STORED, None, None, ME)
    assert (pixels(back) == numpy.asarray(load_medical_image(file).convert("L"))).all()


def test_planes_slices_and_frames_of_a_volume(tray, tmp_path):
    file = uploads.nifti(tmp_path / "brain.nii.gz", (10, 12, 14, 3))
    state = shown(tray.add([uploads.cached(tmp_path, file)], ME))
    assert [value for _, value in state["plane"]["choices"]] == ["sagittal", "coronal", "axial"]
    assert state["slice"]["maximum"] == 13 and state["slice"]["value"] == 7 and state["frame"]["maximum"] == 2
    moved = tray.look("axial", 3, 2, STORED, None, None, ME)
    expected = load_medical_image(file, plane="axial", slice_index=3, frame=2)
    assert (pixels(moved) == numpy.asarray(expected)).all()
    # Another plane has other slices, of which the middle one comes first.
    turned = shown(tray.look("sagittal", 13, 2, STORED, None, None, ME))
    assert turned["slice"]["maximum"] == 9 and turned["slice"]["value"] == 5
    beyond = shown(tray.look("sagittal", 1000, 99, STORED, None, None, ME))
    assert beyond["slice"]["value"] == 9 and beyond["frame"]["value"] == 2


def test_files_of_a_series_are_one_image_in_the_order_of_the_body(tray, tmp_path):
    levels = {30.0: 300, 10.0: 100, 20.0: 200}
    files = [
        uploads.cached(tmp_path, uploads.dicom(tmp_path / f"{number}.dcm", place, level))
        for number, (place, level) in enumerate(levels.items())
    ]
    state = shown(tray.add(files, ME))
    assert len(state["picker"]["choices"]) == 1 and state["slice"]["maximum"] == 2
    window = (200 - 1024, 400)
    found = [pixels(tray.look(None, index, None, CUSTOM, *window, ME)).mean() for index in range(3)]
    assert found == sorted(found) and len(set(found)) == 3


def test_files_that_are_no_series_are_images_of_their_own(tray, tmp_path):
    files = [uploads.png(tmp_path / "one.png"), uploads.nifti(tmp_path / "two.nii")]
    state = shown(tray.add([uploads.cached(tmp_path, file) for file in files], ME))
    assert [name for name, _ in state["picker"]["choices"]] == ["1. one.png", "2. two.nii"]
    # A plain image has nothing to choose from.
    assert not shown(tray.select(0, ME))["controls"]["visible"]


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\nnothing", b"\x80\x04pickle", b"\0" * 128 + b"DICMbroken"])
def test_what_can_not_be_shown_is_one_sentence_and_leaves_nothing(content, tray, sessions, tmp_path):
    broken = tmp_path / "<b>Jane.png"
    broken.write_bytes(content)
    kept = uploads.cached(tmp_path, uploads.png(tmp_path / "good.png"))
    tray.add([kept], ME)
    before = files_below(tmp_path / "root")
    with pytest.raises(gr.Error) as caught:
        tray.add([uploads.cached(tmp_path, broken)], ME)
    message = caught.value.message
    assert "&lt;b&gt;Jane.png" in message and str(tmp_path) not in message and "\n" not in message
    assert len(message.split()) > 4 and "Traceback" not in message
    assert not caught.value.print_exception
    assert files_below(tmp_path / "root") == before and len(sessions.of("me").sources) == 1


def test_a_file_that_another_page_took_is_asked_for_again(tray, sessions, tmp_path):
    file = uploads.cached(tmp_path, uploads.png(tmp_path / "same.png"))
    tray.add([file], ME)
    with pytest.raises(gr.Error) as caught:
        tray.add([file], OTHER)
    assert "same.png" in caught.value.message and "upload it again" in caught.value.message
    assert str(tmp_path) not in caught.value.message
    assert not list(sessions.of("other").folder.iterdir()) and len(sessions.of("me").sources) == 1


def test_the_same_file_twice_in_one_upload_is_one_image(tray, sessions, tmp_path):
    file = uploads.cached(tmp_path, uploads.png(tmp_path / "same.png"))
    state = shown(tray.add([file, file], ME))
    assert state["picker"]["choices"] == [("1. same.png", 0)]
    assert len([path for path in files_below(tmp_path / "root") if path.name == "same.png"]) == 1


def test_a_missing_file_among_others_leaves_none_of_them(tray, sessions, tmp_path):
    good = uploads.cached(tmp_path, uploads.png(tmp_path / "good.png"))
    later = uploads.cached(tmp_path, uploads.png(tmp_path / "later.png"))
    with pytest.raises(gr.Error, match="gone.png"):
        tray.add([good, str(tmp_path / "gone.png"), later], ME)
    assert not files_below(tmp_path / "root") and not Path(good).exists() and not Path(later).exists()
    many = [uploads.cached(tmp_path / str(number), tmp_path / "good.png") for number in range(MAX_FILES + 1)]
    with pytest.raises(gr.Error, match=f"at most {MAX_FILES}"):
        tray.add(many, ME)
    assert not files_below(tmp_path / "root") and not any(Path(file).exists() for file in many)


def test_a_page_that_closes_at_work_shows_no_folder(tray, sessions, tmp_path):
    tray.add([uploads.cached(tmp_path, uploads.nifti(tmp_path / "a.nii"))], ME)
    session = sessions.of("me")
    source = session.sources[0]
    sessions.close("me")
    for work in (lambda: session.view(source), lambda: session.write(Image.new("L", (8, 8)), "a.png")):
        with pytest.raises(ValueError, match="closed or reloaded") as caught:
            work()
        assert str(tmp_path) not in str(caught.value)
    assert not files_below(tmp_path / "root")


def test_visitors_and_their_files_are_limited(tray, sessions, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "MEASURE_SECONDS", 0.0)
    for number in range(MAX_SESSIONS):
        sessions.of(str(number))
    with pytest.raises(gr.Error, match="as many visitors"):
        tray.add_example(examples()[0], ME)
    sessions.close("0")
    monkeypatch.setattr(room, "PAGE_BYTES", 1000)
    with pytest.raises(gr.Error, match="reload it"):
        tray.add([uploads.cached(tmp_path, uploads.png(tmp_path / "a.png"))], ME)
    sessions.close_all()
    monkeypatch.undo()
    monkeypatch.setattr(room, "TOTAL_BYTES", 20_000)
    sessions = Sessions(tmp_path / "other")
    uploads.nifti(tmp_path / "a.nii", (10, 10, 10))
    file = uploads.cached(tmp_path / "one", tmp_path / "a.nii")
    Tray(sessions).add([file], ME)
    with pytest.raises(gr.Error, match="when others have left"):
        for number in range(12):
            page = gr.Request(session_hash=f"page-{number}")
            Tray(sessions).add([uploads.cached(tmp_path / str(number), tmp_path / "a.nii")], page)
    assert 0 < room.bytes_below(tmp_path / "other") < 30_000


def test_few_volumes_are_open_at_a_time(tray, sessions, tmp_path):
    keys = [f"page-{number}" for number in range(OPEN_SESSIONS + 3)]
    for key in keys:
        file = uploads.nifti(tmp_path / f"{key}.nii")
        tray.add([uploads.cached(tmp_path, file)], gr.Request(session_hash=key))
    opened = [file for file in psutil.Process().open_files() if str(tmp_path / "root") in file.path]
    assert 0 < len(opened) <= OPEN_SESSIONS + 1
    # A volume that was put away is shown again.
    state = tray.look("axial", 2, None, STORED, None, None, gr.Request(session_hash=keys[0]))
    expected = load_medical_image(tmp_path / f"{keys[0]}.nii", plane="axial", slice_index=2)
    assert (pixels(state) == numpy.asarray(expected)).all()


def test_examples_and_the_limit_of_images(tray, sessions):
    for name in examples():
        assert shown(tray.add_example(name, ME))["viewer"]["visible"], name
    for _ in range(MAX_SOURCES - len(examples())):
        tray.add_example(examples()[0], ME)
    with pytest.raises(gr.Error, match="room"):
        tray.add_example(examples()[0], ME)
    with pytest.raises(gr.Error, match="no example"):
        tray.add_example("../../etc/passwd", ME)
    # Removing one deletes no file of a package.
    path = sessions.of("me").sources[0].path
    tray.select(0, ME)
    tray.remove(ME)
    assert path.exists() and len(sessions.of("me").sources) == MAX_SOURCES - 1


def test_removing_the_last_image_hides_the_controls(tray, tmp_path):
    tray.add([uploads.cached(tmp_path, uploads.nifti(tmp_path / "a.nii"))], ME)
    state = shown(tray.remove(ME))
    assert not any(state[name]["visible"] for name in TRAY if name != "details")
    assert not [path for path in files_below(tmp_path / "root") if path.name == "a.nii"]


def test_sessions_see_only_their_own_and_leave_nothing(tray, sessions, tmp_path):
    tray.add([uploads.cached(tmp_path, uploads.png(tmp_path / "mine.png"))], ME)
    assert not shown(tray.look(None, None, None, STORED, None, None, OTHER))["picker"]["visible"]
    assert files_below(tmp_path / "root")
    folder = sessions.of("me").folder
    sessions.close("other")
    assert folder.exists()
    sessions.close("me")
    assert not folder.exists() and not files_below(tmp_path / "root")
    # The page that comes back finds nothing.
    assert sessions.of("me").sources == []


def test_a_session_that_nobody_uses_is_closed(tmp_path):
    sessions = Sessions(tmp_path / "root", idle_seconds=0.05)
    folder = sessions.of("me").folder
    time.sleep(0.1)
    used = sessions.of("other").folder
    sessions.close_idle()
    assert not folder.exists() and used.exists()


def test_old_uploads_are_deleted_and_files_of_a_live_page_are_not(tray, sessions, tmp_path):
    tray.add([uploads.cached(tmp_path, uploads.png(tmp_path / "mine.png"))], ME)
    for path in files_below(tmp_path / "root"):
        os.utime(path, (1, 1))
    kept = files_below(tmp_path / "root")
    left = Path(uploads.cached(tmp_path / "root", uploads.png(tmp_path / "left.png")))
    fresh = Path(uploads.cached(tmp_path / "root", uploads.png(tmp_path / "fresh.png")))
    os.utime(left, (1, 1))
    os.utime(left.parent, (1, 1))
    sessions.close_idle()
    assert not left.exists() and fresh.exists() and files_below(tmp_path / "root" / "sessions") == kept
    sessions.close_idle()
    assert tray.look(None, None, None, STORED, None, None, ME)[0]["visible"]


def test_many_views_keep_few_files(tray, sessions, tmp_path):
    tray.add([uploads.cached(tmp_path, uploads.nifti(tmp_path / "a.nii"))], ME)
    for index in range(14):
        tray.look("axial", index, None, STORED, None, None, ME)
    assert len(files_below(sessions.of("me").folder)) < 8
