"""The official OpenAI client against a server of its own process: the same answers and images as the commands give."""

import base64
import io
import json
from pathlib import Path

import httpx
import pytest
from openai import OpenAI
from PIL import Image

from tests.adapters import write_adapter
from tests.hub_cards.server.running import MODEL, QUESTION, Running, conversation, data_uri, png_bytes, serving
from unimedvl.checkpoint.folder import NANO_DIRECTORY
from unimedvl.checkpoint.provenance import DIGITAL_SOURCE_TYPE, read_provenance
from unimedvl.commands.main import main
from unimedvl.utils.digests import hash_file

pytestmark = pytest.mark.medium

NEW_TOKENS = 12
PROMPT = "axial T1 MRI of the brain"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("clients")) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> OpenAI:
    return server.openai()


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "scan.png"
    path.write_bytes(png_bytes())
    return path


def command_output(capsys, *words: str) -> dict:
    capsys.readouterr()
    assert main([*words, "--device", "cpu", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def decoded(images) -> list[bytes]:
    return [base64.b64decode(entry.b64_json) for entry in images.data]


@pytest.mark.parametrize("kind", ["text", "image"])
def test_chat_and_responses_give_what_ask_gives(client, scan, capsys, kind):
    addresses = [data_uri(scan.read_bytes())] if kind == "image" else []
    images = ["--image", str(scan)] if kind == "image" else []
    expected = command_output(capsys, "ask", *images, QUESTION, "--max-new-tokens", str(NEW_TOKENS))["answer"]

    messages = conversation(QUESTION, *addresses)
    found = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=NEW_TOKENS)
    assert found.choices[0].message.content.strip() == expected
    assert 0 < found.usage.completion_tokens <= NEW_TOKENS < found.usage.prompt_tokens + NEW_TOKENS
    chunks = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=NEW_TOKENS, stream=True)
    streamed = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(streamed) == found.choices[0].message.content

    parts = [{"type": "input_image", "image_url": address} for address in addresses]
    given = [{"role": "user", "content": [*parts, {"type": "input_text", "text": QUESTION}]}]
    request = {"model": MODEL, "input": given, "max_output_tokens": NEW_TOKENS}
    assert client.responses.create(**request).output_text == found.choices[0].message.content
    events = list(client.responses.create(**request, stream=True))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == found.choices[0].message.content and events[-1].type == "response.completed"


def test_a_sampled_answer_is_that_of_ask_with_its_seed(client, capsys):
    def asked(seed: int) -> str:
        words = ["--temperature", "1.8", "--seed", str(seed), "--max-new-tokens", str(NEW_TOKENS)]
        return command_output(capsys, "ask", QUESTION, *words)["answer"]

    def served(seed: int) -> str:
        found = client.chat.completions.create(
            model=MODEL, messages=conversation(), max_tokens=NEW_TOKENS, temperature=1.8, seed=seed
        )
        return found.choices[0].message.content.strip()

    answers = [asked(seed) for seed in range(3)]
    assert len(set(answers)) > 1
    assert [served(seed) for seed in range(3)] == answers


def test_generations_give_the_files_of_generate(client, tmp_path, capsys):
    words = ["--seed", "3", "--steps", "2", "--num-images", "2", "--height", "64", "--width", "48"]
    command_output(capsys, "generate", PROMPT, "--out", str(tmp_path / "made.png"), *words)
    extra = {"seed": 3, "steps": 2}
    made = client.images.generate(model=MODEL, prompt=PROMPT, n=2, size="48x64", extra_body=extra)
    assert decoded(made) == [(tmp_path / f"made-{number}.png").read_bytes() for number in (1, 2)]
    assert made.seed == 3 and made.synthetic and "research" in made.notice


@pytest.mark.parametrize("count", [1, 2])
def test_edits_give_the_files_of_generate(client, scan, tmp_path, capsys, count):
    images = [word for _ in range(count) for word in ("--image", str(scan))]
    words = ["--seed", "4", "--steps", "2", "--preset", "virtual_staining"]
    command_output(capsys, "generate", PROMPT, *images, "--out", str(tmp_path / "made.png"), *words)
    upload = (scan.name, scan.read_bytes())
    made = client.images.edit(
        model=MODEL,
        prompt=PROMPT,
        image=upload if count == 1 else [upload] * count,
        extra_body={"seed": 4, "steps": 2, "preset": "virtual_staining"},
    )
    assert decoded(made) == [(tmp_path / "made.png").read_bytes()]


def test_images_carry_provenance_without_the_prompt(client, scan, tmp_path):
    made = client.images.edit(
        model=MODEL, prompt=PROMPT, image=(scan.name, scan.read_bytes()), extra_body={"steps": 1}
    )
    path = tmp_path / "made.png"
    path.write_bytes(decoded(made)[0])
    record = read_provenance(path)
    assert record["digital_source_type"] == DIGITAL_SOURCE_TYPE and record["seed"] == made.seed
    assert record["input_sha256"] == [hash_file(scan)] and "prompt_sha256" in record
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        assert image.text["AI-generated"] == "true" and PROMPT not in str(image.text)
    assert b"scan" not in path.read_bytes()


def test_a_seed_is_drawn_and_named_where_none_is_given(client):
    first, second = (client.images.generate(model=MODEL, prompt=PROMPT, extra_body={"steps": 1}) for _ in range(2))
    assert first.seed != second.seed
    again = client.images.generate(model=MODEL, prompt=PROMPT, extra_body={"steps": 1, "seed": first.seed})
    assert decoded(again) == decoded(first)


def test_stop_texts_end_an_answer_and_its_stream(client):
    # Sampled, as an answer of one word has no place to stop.
    request = {"model": MODEL, "messages": conversation(), "max_tokens": 40, "temperature": 2, "seed": 0}
    text = client.chat.completions.create(**request).choices[0].message.content
    stop = text[len(text) // 2 :][:3]
    assert len(stop) == 3
    request["stop"] = [stop, "a text that never comes"]
    found = client.chat.completions.create(**request).choices[0].message.content
    assert found == text[: text.index(stop)]
    chunks = client.chat.completions.create(**request, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == found


def test_control_tokens_in_a_question_are_characters(server, client):
    used = [
        client.chat.completions.create(model=MODEL, messages=conversation(text), max_tokens=1).usage.prompt_tokens
        for text in ("a", "a<|im_end|>", "a<|vision_start|><|image_pad|><|vision_end|>")
    ]
    # Parsed, the second would be one token longer than the first, and the third would need an image.
    assert used[1] > used[0] + 1 and used[2] > used[0] + 3


def test_a_view_chooses_what_is_shown_of_a_volume(server, client, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    import numpy as np

    values = np.zeros((24, 24, 6), np.float32)
    values[..., 4] = np.arange(24)[:, None]
    path = tmp_path / "volume.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    upload = ("volume.nii.gz", path.read_bytes())
    made = [
        decoded(
            client.images.edit(
                model=MODEL,
                prompt=PROMPT,
                image=upload,
                size="64x64",
                extra_body={"steps": 1, "seed": 1, "view": json.dumps({"slice_index": number})},
            )
        )
        for number in (4, 4, 1)
    ]
    assert made[0] == made[1] != made[2]
    with server.http() as plain:
        image = {"type": "image_url", "image_url": data_uri(path.read_bytes(), "application/octet-stream")}
        for view, status in (({"slice_index": 4}, 200), ({"slice_index": 60}, 400), ({"allow_url": True}, 400)):
            content = [{**image, "view": view}, {"type": "text", "text": QUESTION}]
            body = {"messages": [{"role": "user", "content": content}], "max_tokens": 1}
            assert plain.post("/v1/chat/completions", json=body).status_code == status


def test_an_adapter_is_served_on_its_base(tmp_path, capsys):
    adapter = write_adapter(NANO_DIRECTORY, tmp_path / "lora", experts="both")
    words = ["--model", str(adapter), "--seed", "5"]
    expected = command_output(capsys, "ask", QUESTION, *words, "--max-new-tokens", str(NEW_TOKENS))
    command_output(capsys, "generate", PROMPT, "--out", str(tmp_path / "made.png"), "--steps", "2", *words)
    with serving(tmp_path, ["--model", str(adapter)]) as server:
        client = server.openai()
        model = client.models.list().data[0].id
        found = client.chat.completions.create(model=model, messages=conversation(), max_tokens=NEW_TOKENS)
        made = client.images.generate(model=model, prompt=PROMPT, extra_body={"seed": 5, "steps": 2})
    assert model == expected["model"] != MODEL
    assert found.choices[0].message.content.strip() == expected["answer"]
    assert decoded(made) == [(tmp_path / "made.png").read_bytes()]


def test_models_health_and_metrics(server, client):
    assert [model.id for model in client.models.list().data] == [MODEL]
    with httpx.Client(base_url=server.address, trust_env=False) as plain:
        assert plain.get("/health").json() == plain.get("/ready").json() == {"status": "ok"}
        before = server.metric("unimedvl_images_made_total"), server.metric('unimedvl_tokens_total{kind="completion"}')
        client.images.generate(model=MODEL, prompt=PROMPT, n=3, extra_body={"steps": 1})
        used = client.chat.completions.create(model=MODEL, messages=conversation(), max_tokens=4).usage
        after = server.metric("unimedvl_images_made_total"), server.metric('unimedvl_tokens_total{kind="completion"}')
        assert (after[0] - before[0], after[1] - before[1]) == (3, used.completion_tokens)
        assert server.metric('unimedvl_requests_total{route="/v1/chat/completions",status="200"}') >= 1
        description = plain.get("/openapi.json").json()
        assert {"/v1/chat/completions", "/v1/images/edits"} <= description["paths"].keys()
