"""The page: what a person sees, and which handler every control calls."""

import html
from collections.abc import Callable
from typing import Any

import gradio as gr

from unimedvl.checkpoint.provenance import NOTICE

from .drawing import Drawing
from .engine import Engine
from .given import MAX_IMAGES, MAX_PROMPT
from .sessions import Sessions
from .sources import CUSTOM, STORED, WINDOWS
from .talking import PLANS, Talking
from .tray import NO_IMAGE, TRAY, Tray
from .uploads import examples

TITLE = "UniMedVL"
# One of the phrasings that records of UniMed-5M ask for reports with.
REPORT_REQUEST = "Generate a radiology report for the image."
# Requests of one kind that wait for the model; a later one is refused.
QUEUE_SIZE = 32
# People whose images are read at the same time.
LOOKERS = 4
# Handlers that use the model take turns.
ON_DEVICE: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "device"}
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
PRESET_NAMES = {"t2i": "text to image", "cross_modal": "translation to another modality"}
UPLOADS = (
    "PNG, JPEG, TIFF, DICOM (all files of a series at once), NIfTI. Upload nothing that identifies a patient. "
    "Files are deleted when you close the page."
)
SYNTHETIC = (
    "Generated files say that they are synthetic: PNG with a record in its text chunks, DICOM with Synthetic Data."
)


def build(engine: Engine, sessions: Sessions) -> gr.Blocks:
    """The application of one model, ready to be launched.

    Args:
        engine: answers and draws.
        sessions: where a page's files and conversations are.
    """
    tray, talking, drawing = Tray(sessions), Talking(engine, sessions), Drawing(engine, sessions)
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as page:
        gr.HTML(_title(engine), elem_id="title", padding=False)
        gr.HTML(f'<p role="note">{html.escape(NOTICE)}</p>', elem_id="notice", padding=False)
        with gr.Row(elem_id="workspace"):
            with gr.Column(scale=4, min_width=300, elem_id="images"):
                parts = _images(tray)
            with gr.Column(scale=7, min_width=300, elem_id="tasks"), gr.Tabs():
                with gr.Tab("Ask"):
                    _ask(talking)
                with gr.Tab("Report"):
                    _report(talking)
                if engine.draws:
                    with gr.Tab("Generate"):
                        _generate(engine, drawing, talking, tray, parts)
                    with gr.Tab("Edit and translate"):
                        _edit(engine, drawing, talking, tray, parts)
                    with gr.Tab("Segment"):
                        _segment(engine, drawing, talking)
                    with gr.Tab("Interleaved"):
                        _interleaved(talking)
        page.unload(_closing(sessions))
        page.queue(max_size=QUEUE_SIZE, default_concurrency_limit=LOOKERS)
    return page


def _closing(sessions: Sessions) -> Callable[[gr.Request], None]:
    def close(request: gr.Request) -> None:
        sessions.close(request.session_hash)

    return close


def _title(engine: Engine) -> str:
    name, revision = html.escape(engine.checkpoint.name), html.escape(str(engine.checkpoint.revision)[:24])
    return f"<h1>{TITLE}</h1><p>Model <b>{name}</b> <code>{revision}</code></p>"


# ------------------------------------------------------------------------------------------------------- images


def _images(tray: Tray) -> list[Any]:
    """The left column; returns its components in the order of `TRAY`."""
    gr.Markdown("## Images")
    upload = gr.File(
        label="Upload",
        file_count="multiple",
        height=150,
        elem_id="upload",
    )
    uploads_only(upload)
    gr.Markdown(UPLOADS, elem_classes="hint")
    parts: dict[str, Any] = {}
    with gr.Accordion("Examples", open=True), gr.Row(elem_id="examples"):
        buttons = {name: gr.Button(name, size="sm", min_width=90) for name in examples()}
    parts["picker"] = gr.Radio(label="Shown and edited", visible=False, interactive=True)
    parts["viewer"] = gr.Image(
        label="Image",
        interactive=False,
        type="filepath",
        format="png",
        height=360,
        visible=False,
        elem_id="viewer",
        buttons=["fullscreen"],
    )
    parts["details"] = gr.Markdown(NO_IMAGE, elem_id="details")
    with gr.Group(visible=False) as parts["controls"]:
        parts["plane"] = gr.Radio(label="Plane", visible=False, interactive=True)
        parts["slice"] = gr.Slider(0, 1, step=1, label="Slice (from 0)", visible=False, interactive=True, buttons=[])
        parts["frame"] = gr.Slider(0, 1, step=1, label="Frame (from 0)", visible=False, interactive=True, buttons=[])
        parts["window"] = gr.Dropdown(
            [STORED, *WINDOWS, CUSTOM], value=STORED, label="Window", interactive=True, filterable=False
        )
        with gr.Row(visible=False) as parts["custom"]:
            parts["center"] = gr.Number(label="Center", interactive=True, min_width=100)
            parts["width"] = gr.Number(label="Width", interactive=True, min_width=100)
    parts["removal"] = gr.Button("Remove this image", size="sm", visible=False)

    ordered = [parts[name] for name in TRAY]
    added = upload.upload(tray.add, upload, ordered, api_name="add_images", show_progress_on=parts["details"])
    for finished in (added.then, added.failure):
        finished(lambda: None, None, upload, **PRIVATE)
    for name, button in buttons.items():
        button.click(_example(tray, name), None, ordered, show_progress_on=parts["details"], **PRIVATE)
    parts["picker"].input(
        tray.select, parts["picker"], ordered, api_name="select_image", show_progress_on=parts["details"]
    )
    parts["removal"].click(tray.remove, None, ordered, api_name="remove_image", show_progress_on=parts["details"])
    looks = [parts[name] for name in ("plane", "slice", "frame", "window", "center", "width")]
    for number, control in enumerate(looks):
        control.input(
            tray.look,
            looks,
            ordered,
            trigger_mode="always_last",
            show_progress="hidden",
            **({"api_name": "look"} if number == 0 else PRIVATE),
        )
    return ordered


def _example(tray: Tray, name: str) -> Callable[..., list[Any]]:
    def add(request: gr.Request) -> list[Any]:
        return tray.add_example(name, request)

    return add


def uploads_only(component: Any) -> None:
    """Let a component take what was uploaded, and no address: Gradio would fetch it for whoever sends a request."""
    take = component.async_move_resource_to_block_cache

    async def local(path: str | None) -> str | None:
        if path is not None and "://" in str(path):
            raise gr.Error("An address is not fetched: upload the file.", print_exception=False)
        return await take(path)

    component.async_move_resource_to_block_cache = local


# -------------------------------------------------------------------------------------------------------- text


def _ask(talking: Talking) -> None:
    gr.Markdown("Questions about your images, or about none. New images go with your next question.")
    chat = gr.Chatbot(label="Conversation", height=420, render_markdown=False, buttons=["copy"], layout="bubble")
    question = _words("Question", "What kind of image is this?", lines=1)
    with gr.Row():
        send = gr.Button("Ask", variant="primary", min_width=90)
        stop = gr.Button("Stop", min_width=90)
        new = gr.Button("New conversation", min_width=150)
    with gr.Accordion("Settings", open=False):
        length = gr.Slider(8, 1024, value=128, step=8, label="Longest answer, in tokens", buttons=[])
        temperature = gr.Slider(0, 2, value=0, step=0.1, label="Temperature; 0 takes the likeliest word", buttons=[])
    inputs, outputs = [question, length, temperature], [chat, question]
    send.click(talking.ask, inputs, outputs, api_name="ask", **ON_DEVICE)
    question.submit(talking.ask, inputs, outputs, **PRIVATE, **ON_DEVICE)
    stop.click(talking.stop, None, None, queue=False, api_name="stop")
    new.click(talking.forget_asked, None, chat, queue=False, api_name="new_conversation")
    chat.clear(talking.forget_asked, None, chat, queue=False, **PRIVATE)


def _report(talking: Talking) -> None:
    gr.Markdown("One text about all of your images.")
    prompt = _words("Instruction", REPORT_REQUEST, value=REPORT_REQUEST)
    with gr.Row():
        write = gr.Button("Write a report", variant="primary", min_width=160)
        stop = gr.Button("Stop", min_width=90)
    text = gr.Textbox(label="Report (AI-generated)", lines=10, max_lines=24, interactive=False, buttons=["copy"])
    files = _files("Text file with its record")
    with gr.Accordion("Settings", open=False):
        length = gr.Slider(8, 1024, value=256, step=8, label="Longest report, in tokens", buttons=[])
    write.click(talking.report, [prompt, length], [text, files], api_name="report", **ON_DEVICE)
    stop.click(talking.stop, None, None, queue=False, **PRIVATE)


# ------------------------------------------------------------------------------------------------------ images


def _generate(engine: Engine, drawing: Drawing, talking: Talking, tray: Tray, parts: list[Any]) -> None:
    gr.Markdown("A synthetic image from words alone, without your images.")
    prompt = _words("Prompt", "a chest X-ray", lines=1)
    preset, sampler = _sampler(engine, "t2i", list(engine.presets))
    with gr.Row():
        count = gr.Slider(1, MAX_IMAGES, value=1, step=1, label="Variants", buttons=[])
        previews = gr.Checkbox(True, label="Live preview", min_width=90)
    make, stop, state = _buttons("Generate")
    gallery = gr.Gallery(
        label="Synthetic images",
        columns=2,
        height="auto",
        object_fit="contain",
        elem_id="made",
        format="png",
        interactive=False,
        buttons=["download", "fullscreen"],
    )
    use = gr.Button("Use the first as input", size="sm")
    files = _files("Files: PNG and DICOM")
    inputs, outputs = [prompt, preset, count, *sampler, previews], [gallery, files, state]
    make.click(drawing.generate, inputs, outputs, api_name="generate", **ON_DEVICE)
    prompt.submit(drawing.generate, inputs, outputs, **PRIVATE, **ON_DEVICE)
    stop.click(talking.stop, None, None, queue=False, **PRIVATE)
    use.click(_made(tray, "image"), None, parts, **PRIVATE)


def _edit(engine: Engine, drawing: Drawing, talking: Talking, tray: Tray, parts: list[Any]) -> None:
    gr.Markdown("The image that is shown, changed: translated, stained, sharpened, edited.")
    prompt = _words("Instruction", "Translate this T2 image into FLAIR.", lines=1)
    names = [name for name in engine.presets if name not in ("t2i", "segmentation")]
    preset, sampler = _sampler(engine, "edit", names)
    previews = gr.Checkbox(True, label="Live preview")
    make, stop, state = _buttons("Edit")
    slider = gr.ImageSlider(
        label="Before and after",
        interactive=False,
        type="filepath",
        format="png",
        height=400,
        max_height=400,
        elem_id="before-after",
        buttons=["fullscreen"],
    )
    # The handle in the image follows a pointer only; this one follows the keyboard, too.
    divider = gr.Slider(0, 100, value=50, step=1, label="Divider between before and after, in percent", buttons=[])
    divider.input(
        lambda position: gr.update(slider_position=position),
        divider,
        slider,
        queue=False,
        show_progress="hidden",
        **PRIVATE,
    )
    use = gr.Button("Use the result as input", size="sm")
    files = _files("Files: PNG and DICOM")
    inputs, outputs = [prompt, preset, *sampler, previews], [slider, files, state]
    make.click(drawing.edit, inputs, outputs, api_name="edit", **ON_DEVICE)
    prompt.submit(drawing.edit, inputs, outputs, **PRIVATE, **ON_DEVICE)
    stop.click(talking.stop, None, None, queue=False, **PRIVATE)
    use.click(_made(tray, "edit"), None, parts, **PRIVATE)


def _segment(engine: Engine, drawing: Drawing, talking: Talking) -> None:
    gr.Markdown("A mask of a structure in the image that is shown.")
    prompt = _words("Instruction", "Mark the optic disc in the image.", lines=1)
    preset, sampler = _sampler(engine, "segmentation", list(engine.presets))
    truth = gr.File(label="True mask (optional)", height=150, elem_id="truth")
    uploads_only(truth)
    make, stop, state = _buttons("Segment")
    shown = gr.Image(
        label="Mask (orange), true outline (blue)",
        elem_id="overlay",
        interactive=False,
        type="filepath",
        format="png",
        height=400,
        buttons=["download", "fullscreen"],
    )
    opacity = gr.Slider(0, 1, value=0.5, step=0.05, label="Opacity of the mask", buttons=[])
    found = gr.Markdown(elem_id="verdict")
    files = _files("Files of the mask: PNG and DICOM")
    inputs = [prompt, preset, truth, opacity, *sampler]
    outputs = [shown, found, files, truth, state]
    make.click(drawing.segment, inputs, outputs, api_name="segment", **ON_DEVICE)
    prompt.submit(drawing.segment, inputs, outputs, **PRIVATE, **ON_DEVICE)
    stop.click(talking.stop, None, None, queue=False, **PRIVATE)
    opacity.input(
        drawing.overlay, opacity, shown, trigger_mode="always_last", show_progress="hidden", api_name="opacity"
    )
    truth.upload(drawing.compare, [truth, opacity], [shown, found, truth], api_name="compare")


def _interleaved(talking: Talking) -> None:
    gr.Markdown("A conversation that is answered in texts and images. New images go with your message.")
    chat = gr.Chatbot(
        label="Interleaved conversation", height=420, render_markdown=False, buttons=["copy"], layout="bubble"
    )
    prompt = _words("Your message", "Describe the image and show what it would look like with less noise.", lines=1)
    with gr.Row():
        plan = gr.Dropdown(list(PLANS), value=next(iter(PLANS)), label="Answer", filterable=False, min_width=220)
        seed = _number("Seed", "random")
    with gr.Row():
        send = gr.Button("Send", variant="primary", min_width=90)
        stop = gr.Button("Stop", min_width=90)
        new = gr.Button("New conversation", min_width=150)
    state = gr.Markdown(elem_classes="state")
    files = _files("Files: PNG and DICOM")
    with gr.Accordion("Settings", open=False):
        length = gr.Slider(8, 1024, value=64, step=8, label="Longest text, in tokens", buttons=[])
    inputs, outputs = [prompt, plan, seed, length], [chat, prompt, files, state]
    send.click(talking.converse, inputs, outputs, api_name="converse", **ON_DEVICE)
    prompt.submit(talking.converse, inputs, outputs, **PRIVATE, **ON_DEVICE)
    stop.click(talking.stop, None, None, queue=False, **PRIVATE)
    for forgetting in (new.click, chat.clear):
        forgetting(talking.forget_interleaved, None, chat, queue=False, **PRIVATE)


# --------------------------------------------------------------------------------------------- parts of several


def _words(label: str, placeholder: str, *, lines: int = 2, value: str | None = None) -> gr.Textbox:
    return gr.Textbox(
        value=value, label=label, placeholder=placeholder, lines=lines, max_lines=6, max_length=MAX_PROMPT
    )


def _number(label: str, default: str) -> gr.Textbox:
    """A number that may be left out, which Gradio's own field for numbers turns into 0."""
    return gr.Textbox(label=label, placeholder=default, max_lines=1, max_length=20, min_width=120)


def _files(label: str) -> gr.File:
    return gr.File(label=label, file_count="multiple", interactive=False)


def _buttons(name: str) -> tuple[gr.Button, gr.Button, gr.Markdown]:
    with gr.Row():
        make = gr.Button(name, variant="primary", min_width=90)
        stop = gr.Button("Stop", min_width=90)
    return make, stop, gr.Markdown(elem_classes="state")


def _sampler(engine: Engine, default: str, names: list[str]) -> tuple[gr.Dropdown, list[gr.Textbox]]:
    """Preset, and the settings that replace its own: seed, steps, and both scales of guidance."""
    value = default if default in names else names[0]
    preset = gr.Dropdown(
        [(PRESET_NAMES.get(name, name.replace("_", " ")), name) for name in names],
        value=value,
        label="Preset",
        info=_described(engine, value),
        filterable=False,
    )
    with gr.Accordion("Seed and sampler", open=False):
        gr.Markdown(SYNTHETIC)
        with gr.Row():
            seed = _number("Seed", "random")
            steps = _number("Steps", "of the preset")
        with gr.Row():
            guidance = _number("Text guidance", "of the preset")
            image_guidance = _number("Image guidance", "of the preset")
    preset.change(lambda name: gr.update(info=_described(engine, name)), preset, preset, queue=False, **PRIVATE)
    return preset, [seed, steps, guidance, image_guidance]


def _described(engine: Engine, preset: str) -> str:
    values = engine.settings_of(preset)
    steps = values["num_inference_steps"]
    return (
        f"{steps} step{'s' if steps != 1 else ''}, guidance {values['guidance_scale']:g} by text and "
        f"{values['image_guidance_scale']:g} by images"
    )


def _made(tray: Tray, task: str) -> Callable[..., list[Any]]:
    def add(request: gr.Request) -> list[Any]:
        return tray.add_made(task, request)

    return add
