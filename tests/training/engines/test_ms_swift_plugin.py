"""ms-swift's template renders conversations as the checkpoint's own does, and refuses what it cannot render."""

import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.engines.environments import python_of, run, variable_of
from benchmarks.engines.ms_swift import PLUGIN
from tests.tiny_checkpoint import tiny_checkpoint

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("ms_swift_process.py")


def user(text: str, **more) -> dict:
    return {"role": "user", "content": text, **more}


def assistant(text: str, **more) -> dict:
    return {"role": "assistant", "content": text, **more}


# Name -> (messages of ms-swift, messages of transformers); IMAGE is replaced by an image.
RENDERED: dict[str, tuple[list[dict], list[dict]]] = {
    "an image": (
        [user("<image>What is shown?"), assistant("A cyst.")],
        [user(["IMAGE", "What is shown?"]), assistant(["A cyst."])],
    ),
    "spaces": (
        [{"role": "system", "content": " Be brief. "}, user("<image>\n What? "), assistant(" A cyst.\n")],
        [{"role": "system", "content": [" Be brief. "]}, user(["IMAGE", "\n What? "]), assistant([" A cyst.\n"])],
    ),
    "a turn of spaces": (
        [user("<image> "), assistant("One."), user("  "), assistant("Two.")],
        [user(["IMAGE", " "]), assistant(["One."]), user(["  "]), assistant(["Two."])],
    ),
    "no tags": (
        [user("What is shown?"), assistant("A cyst.")],
        [user(["IMAGE", "What is shown?"]), assistant(["A cyst."])],
    ),
}
REFUSED = {
    "more tags": ({"messages": [user("<image><image>Which?"), assistant("A.")]}, "2 <image> tags and 1 images"),
    "more images": (
        {"messages": [user("<image>Which?"), assistant("A.")], "images": ["IMAGE"] * 2},
        "1 <image> tags and 2 images",
    ),
    "tags alone": (
        {"messages": [user("<image>Which?"), assistant("A.")], "images": []},
        "1 <image> tags and 0 images",
    ),
    "objects": (
        {"messages": [user("<image>Where?"), assistant("There.")], "objects": {"bbox": [[1, 2, 3, 4]]}},
        "leave videos, audios, tools and objects out",
    ),
    "a turn's loss scale": (
        {"messages": [user("<image>What?"), assistant("A.", loss_scale=0.5)]},
        "loss_scale=0.5: this template knows the default only",
    ),
    "another loss scale": (
        {"messages": [user("<image>What?"), assistant("A.")], "template": {"loss_scale": "all"}},
        "loss_scale='all': this template knows the default only",
    ),
    "token ids": ({"messages": [user([1, 2, 3]), assistant("A.")], "images": []}, "must be text"),
}
# Which of the assistant's turns are trained on -> its marks.
MARKS: dict[tuple[bool, bool], tuple[dict, dict]] = {
    (True, True): ({}, {"loss": True}),
    (False, True): ({"loss": False}, {}),
    (True, False): ({"loss": True}, {"loss": False}),
}


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    return folder, tiny_checkpoint(folder)[1]


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "1.png"
    Image.linear_gradient("L").resize((40, 28)).convert("RGB").save(path)
    return str(path)


@pytest.fixture(scope="module")
def encoded(processor, image, tmp_path_factory):
    """What ms-swift's template makes of every conversation, by name."""
    python = python_of("ms-swift")
    if python is None:
        pytest.skip(f"ms-swift has an environment of its own: name its Python in {variable_of('ms-swift')}")
    jobs = {name: {"messages": messages} for name, (messages, _) in RENDERED.items()}
    jobs |= {name: dict(job) for name, (job, _) in REFUSED.items()}
    for trained, (first, second) in MARKS.items():
        turns = [user("<image>One?"), assistant("Red.", **first), user("Two?"), assistant("Green.", **second)]
        jobs[str(trained)] = {"messages": turns}
    written = []
    for job in jobs.values():
        images = [image for _ in job.get("images", ["IMAGE"])]
        about = {name: value for name, value in job.items() if name != "template"}
        written.append({"conversation": about | {"images": images}, "template": job.get("template", {})})
    folder = tmp_path_factory.mktemp("ms-swift").resolve()
    (folder / "jobs.json").write_text(json.dumps(written))
    words = [str(PROGRAM), str(PLUGIN), str(processor[0]), str(folder / "jobs.json")]
    found = json.loads(run(python, words, folder / "work", path=()).output.splitlines()[-1])
    return dict(zip(jobs, found, strict=True))


def expected(processor, image: str, messages: list[dict]) -> tuple[list[int], list[int]]:
    """Token ids of the checkpoint's own template, and which of them the assistant says."""
    conversation = [
        {
            "role": message["role"],
            "content": [
                {"type": "image", "path": image} if part == "IMAGE" else {"type": "text", "text": part}
                for part in message["content"]
            ],
        }
        for message in messages
    ]
    inputs = processor.apply_chat_template(
        conversation, tokenize=True, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True
    )
    return inputs["input_ids"][0].tolist(), inputs["assistant_masks"][0].tolist()


@pytest.mark.parametrize("name", RENDERED)
def test_conversations_are_those_of_the_checkpoints_template(name, encoded, processor, image):
    ids, said = expected(processor[1], image, RENDERED[name][1])
    assert encoded[name]["ids"] == ids
    assert encoded[name]["labels"] == [token if own else -100 for token, own in zip(ids, said, strict=True)]


@pytest.mark.parametrize("trained", MARKS)
def test_turns_marked_without_loss_are_not_trained_on(trained, encoded, processor):
    labels = [label for label in encoded[str(trained)]["labels"] if label != -100]
    texts = [f"{text}<|im_end|>" for text, kept in zip(("Red.", "Green."), trained, strict=True) if kept]
    assert processor[1].tokenizer.decode(labels) == "".join(texts)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_rendered_gets_one_sentence(name, encoded):
    assert REFUSED[name][1] in encoded[name]["error"] and "\n" not in encoded[name]["error"]
