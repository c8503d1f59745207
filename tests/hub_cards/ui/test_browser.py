"""The page in headless Chromium, as a person uses it, at two widths and in both color schemes.

`python -m pytest tests/hub_cards/ui/test_browser.py -m "" --screenshots FOLDER` keeps what the pages looked like.
"""

import importlib.util
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
from PIL import Image

from tests.hub_cards.ui import uploads
from unimedvl.evaluation.metrics.masks import read_mask
from unimedvl.hub_cards.ui.sources import WINDOWS

CHROMIUM = shutil.which("chromium")
FADE_MILLISECONDS = 800
PACKAGES = ("playwright", "axe_playwright_python")
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None] + ([] if CHROMIUM else ["chromium"])
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} missing: pip install 'unimedvl[dev]' and "
                                "apt-get install chromium")  # fmt: skip

# A busy machine takes its time; what waits longer has failed.
PATIENCE = 40_000
WIDE, NARROW = 1440, 390


@pytest.fixture(scope="module")
def browser(server: str) -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Containers run tests as root, which Chromium's sandbox refuses.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Person:
    """Someone at the page, who notes what goes wrong.

    Attributes:
        errors: what the console called an error, and requests that left this machine.
    """

    def __init__(self, browser, server: str, width: int, scheme: str, screenshots: Path | None):
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page.set_default_timeout(PATIENCE)
        self.name, self.screenshots = f"{width}-{scheme}", screenshots
        self.errors: list[str] = []
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self._note(request.url, server))
        self.page.goto(server)
        self.page.get_by_role("button", name="CT slice").wait_for()

    def _note(self, url: str, server: str) -> None:
        if not url.startswith((server, "data:", "blob:")):
            self.errors.append(f"a request to {url}")

    def looks(self, what: str) -> None:
        """Nothing is cut off, nothing hinders people who use other means than eyes and a mouse."""
        from axe_playwright_python.sync_playwright import Axe

        self.page.evaluate("window.scrollTo(0, 0)")
        # Messages fade in, and are hard to read for a moment.
        self.page.wait_for_timeout(FADE_MILLISECONDS)
        if self.screenshots is not None:
            self.page.screenshot(path=self.screenshots / f"{self.name}-{what}.png", full_page=True)
        found = [
            rule for rule in Axe().run(self.page).response["violations"] if rule["impact"] in ("serious", "critical")
        ]
        assert not found, [(rule["id"], [node["html"][:200] for node in rule["nodes"]]) for rule in found]
        overflow = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0, f"{what} is {overflow} pixels wider than the window"
        self.page.mouse.wheel(0, 500)
        assert self.page.get_by_role("note").is_visible()
        box = self.page.get_by_role("note").bounding_box()
        assert box is not None and box["y"] >= 0, "the notice scrolled away"
        self.page.mouse.wheel(0, -5000)

    def open(self, tab: str) -> None:
        shown = self.page.get_by_role("tab", name=tab, exact=True)
        if not shown.is_visible():
            # Tabs that a narrow window has no room for.
            self.page.get_by_role("button", name="More tabs").click()
            shown = self.page.locator(".overflow-dropdown").get_by_text(tab, exact=True)
        shown.click()

    def click(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).locator("visible=true").click()

    def write(self, field: str, text: str) -> None:
        self.page.get_by_role("textbox", name=field, exact=True).locator("visible=true").fill(text)

    def sees(self, words: str | re.Pattern) -> None:
        self.page.get_by_text(words).locator("visible=true").first.wait_for()

    def upload(self, *files: Path, field: str = "upload") -> None:
        self.page.locator(f"#{field} input[type=file]").set_input_files(list(files))

    def done(self) -> None:
        """The answer is finished: its message has a button to copy it, and the question's field takes words again."""
        self.page.locator(".generating, .pending, [data-testid=status-tracker] .progress-text").first.wait_for(
            state="detached"
        )
        self.page.wait_for_timeout(300)

    def choose(self, menu: str, entry: str) -> None:
        self.page.get_by_label(menu, exact=True).locator("visible=true").click()
        self.page.get_by_role("option", name=entry, exact=True).click()

    def settings(self, name: str) -> None:
        # The name of a section ends in its arrow.
        self.page.get_by_role("button", name=f"{name} ▼").locator("visible=true").click()


@pytest.fixture
def person(browser, server, request):
    width, scheme = request.param
    screenshots = request.config.getoption("--screenshots")
    if screenshots is not None:
        screenshots.mkdir(parents=True, exist_ok=True)
    person = Person(browser, server, width, scheme, screenshots)
    yield person
    person.page.close()


def images(person: Person, tmp_path: Path) -> None:
    """DICOM, NIfTI and a corrupt file."""
    person.looks("start")
    person.upload(uploads.dicom(tmp_path / "scan.dcm"))
    person.sees("1. scan.dcm")
    viewer, seen = person.page.locator("#viewer img"), set()
    for name, (center, width) in WINDOWS.items():
        person.choose("Window", name)
        person.sees(f"DICOM · 128 x 128 pixels · window {center:g} / {width:g}")
        person.page.wait_for_function("document.querySelector('#viewer img').complete")
        seen.add(viewer.get_attribute("src"))
    assert len(seen) == len(WINDOWS)
    person.looks("window")
    person.upload(uploads.nifti(tmp_path / "brain.nii.gz"))
    person.sees("NIfTI · axial slice 8 of 14")
    slices = person.page.get_by_role("slider", name=re.compile("Slice"))
    slices.focus()
    person.page.keyboard.press("ArrowRight")
    person.sees("NIfTI · axial slice 9 of 14")
    person.page.get_by_label("Coronal").check()
    person.sees("NIfTI · coronal slice 7 of 12")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    person.upload(tmp_path / "broken.png")
    person.sees(re.compile("broken.png.* is not an image"))
    # The field is empty again, for another file.
    person.page.locator("#upload").get_by_text("Click to Upload").wait_for()
    person.looks("corrupt")
    person.page.get_by_role("button", name="Close").first.click()
    person.click("Fundus photograph")
    person.sees("3. Fundus photograph")


def words(person: Person) -> None:
    """Two turns, answered in a stream, and a third that is stopped."""
    pieces = person.page.evaluate_handle(
        """() => {
            const seen = new Set();
            new MutationObserver(() => {
                const bot = [...document.querySelectorAll('[data-testid=bot]')].pop();
                if (bot) seen.add(bot.innerText.trim());
            }).observe(document.body, {childList: true, subtree: true, characterData: true});
            return seen;
        }"""
    )
    answers = person.page.locator("[data-testid=bot]")
    person.write("Question", "Describe this image in detail.")
    person.page.keyboard.press("Enter")
    answers.first.wait_for()
    person.done()
    assert pieces.evaluate("seen => [...seen].filter(text => text).length") >= 2, "the answer came in one piece"
    person.write("Question", "What else is there?")
    person.click("Ask")
    answers.nth(1).wait_for()
    person.done()
    assert answers.count() == 2 and person.page.locator("[data-testid=user]").get_by_text("in detail").count() == 1
    person.looks("ask")
    # Hot enough that the model hardly ends by itself.
    person.settings("Settings")
    for name, value in (("Longest answer, in tokens", "1024"), ("Temperature", "2")):
        person.page.get_by_role("spinbutton", name=re.compile(f"number input for {name}")).fill(value)
    person.write("Question", "Describe everything at length.")
    person.click("Ask")
    answers.nth(2).wait_for()
    person.click("Stop")
    person.done()
    assert len(answers.nth(2).inner_text().split()) < 400
    person.click("New conversation")
    answers.first.wait_for(state="detached")


def drawings(person: Person, tmp_path: Path) -> None:
    """Variants from words with their previews, an image that is stopped, an edit, and a mask beside a true one."""
    person.open("Generate")
    person.write("Prompt", "a chest X-ray")
    person.page.get_by_role("spinbutton", name=re.compile("Variants")).fill("3")
    person.settings("Seed and sampler")
    person.write("Seed", "3")
    person.write("Steps", "24")
    person.click("Generate")
    person.page.get_by_role("img", name="Preview 3").wait_for()
    person.sees("3 synthetic images with seed 3")
    for number in (1, 2, 3):
        person.page.get_by_role("img", name=f"Synthetic {number}").wait_for()
    person.sees(re.compile(r"synth.*\.dcm"))
    person.looks("generate")
    person.write("Steps", "200")
    person.click("Generate")
    person.sees(re.compile(r"Step \d+ of 200"))
    person.click("Stop")
    person.sees("Stopped.")
    person.open("Edit and translate")
    person.write("Instruction", "Sharpen the image.")
    person.click("Edit")
    person.sees("Synthetic image with seed")
    divider = person.page.get_by_role("slider", name=re.compile("Divider"))
    divider.focus()
    person.page.keyboard.press("ArrowRight")
    person.looks("edit")
    person.open("Segment")
    person.write("Instruction", "Mark the optic disc in the image.")
    person.click("Segment")
    person.sees("The mask covers")
    assert "Dice" not in person.page.locator("#verdict").inner_text()
    with person.page.expect_download() as saved:
        person.page.locator("a[download$='.png'][download*='mask']").locator("visible=true").click()
    saved.value.save_as(tmp_path / "made.png")
    made = read_mask(Image.open(tmp_path / "made.png"))
    Image.fromarray(made.astype(numpy.uint8) * 255).save(tmp_path / "truth.png")
    person.upload(tmp_path / "truth.png", field="truth")
    person.sees(re.compile("Dice 1.000"))
    person.looks("segment")
    # Half of the image as the true mask, which the mask is not.
    half = numpy.zeros(made.shape, dtype=numpy.uint8)
    half[: made.shape[0] // 2] = 255
    Image.fromarray(half).save(tmp_path / "half.png")
    person.page.locator("#truth").get_by_text("Click to Upload").wait_for()
    person.upload(tmp_path / "half.png", field="truth")
    overlap = 2 * (made & (half > 0)).sum() / (made.sum() + (half > 0).sum())
    person.sees(re.compile(f"Dice {overlap:.3f}"))


def used(person: Person, tmp_path: Path) -> None:
    images(person, tmp_path)
    words(person)
    drawings(person, tmp_path)
    person.open("Interleaved")
    person.write("Your message", "Describe the image.")
    person.click("Send")
    person.sees("Done with seed")
    person.looks("interleaved")
    person.open("Report")
    person.click("Write a report")
    person.sees(re.compile(r"synthetic-report\s*\.txt"))
    person.looks("report")
    assert person.errors == []


@pytest.mark.medium
@pytest.mark.parametrize("person", [(WIDE, "light")], indirect=True, ids=str)
def test_a_person_uses_every_tab(person, tmp_path):
    used(person, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("person", [(WIDE, "dark"), (NARROW, "light"), (NARROW, "dark")], indirect=True, ids=str)
def test_a_person_uses_every_tab_elsewhere(person, tmp_path):
    used(person, tmp_path)


@pytest.mark.medium
@pytest.mark.parametrize("person", [(NARROW, "dark")], indirect=True, ids=str)
def test_a_keyboard_reaches_the_answer_and_a_closed_page_leaves_nothing(person, place, tmp_path):
    person.upload(uploads.png(tmp_path / "mine.png"))
    person.sees("1. mine.png")
    (kept,) = place.rglob("mine.png")
    reached: list[str] = []
    for _ in range(80):
        person.page.keyboard.press("Tab")
        reached.append(
            person.page.evaluate("(e => e.getAttribute('aria-label') || e.innerText)(document.activeElement)")
        )
        if person.page.evaluate("document.activeElement.tagName") == "TEXTAREA":
            break
    assert {"Fundus photograph", "Remove this image"} <= {name.strip() for name in reached if name}, reached
    person.page.keyboard.type("What is this?")
    person.page.keyboard.press("Enter")
    person.page.locator("[data-testid=bot]").first.wait_for()
    assert person.errors == []
    person.page.close()
    deadline = time.monotonic() + 30
    while kept.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not kept.exists()
