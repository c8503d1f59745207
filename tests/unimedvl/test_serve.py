"""`transformers serve` and `transformers chat` with the shipped checkpoint (D4): the real server, the real client."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from tests.hub_cards.server.running import QUESTION, data_uri, free_port, shades, wait_until_ready
from unimedvl.checkpoint.folder import NANO_DIRECTORY
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration
from unimedvl.processing.processing_unimedvl import UniMedVLProcessor

pytestmark = pytest.mark.medium

NANO = str(NANO_DIRECTORY.resolve())
TRANSFORMERS = str(Path(sys.executable).with_name("transformers"))
NEW_TOKENS = 8


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the checkpoint's folder, as remote code."""
    port = free_port()
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    command = [TRANSFORMERS, "serve", NANO, "--trust-remote-code", "--device", "cpu", "--host", "127.0.0.1"]
    with open(log, "w") as stream:
        server = subprocess.Popen([*command, "--port", str(port)], stdout=stream, stderr=subprocess.STDOUT)
        try:
            wait_until_ready(server, port, log, route="health")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait(60)


@pytest.fixture(scope="module")
def client(address: str) -> OpenAI:
    key = "none"  # pragma: allowlist secret
    return OpenAI(base_url=address, api_key=key, timeout=120, max_retries=0)


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    """The greedy answers to the question without and with an image, by the installed classes."""
    processor = UniMedVLProcessor.from_pretrained(NANO)
    model = UniMedVLForConditionalGeneration.from_pretrained(NANO)
    found = {}
    for name, images in {"text": [], "image": [shades()]}.items():
        content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": QUESTION}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
        )
        output = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        found[name] = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert found["text"] != found["image"]
    return found


def messages(kind: str) -> list[dict]:
    image = {"type": "image_url", "image_url": {"url": data_uri()}}
    return [{"role": "user", "content": [*([image] if kind == "image" else []), {"type": "text", "text": QUESTION}]}]


@pytest.mark.parametrize("kind", ["text", "image"])
def test_d4_chat_completions_answer_and_stream(client, answers, kind):
    request = {"model": NANO, "messages": messages(kind), "max_tokens": NEW_TOKENS, "temperature": 0}
    assert client.chat.completions.create(**request).choices[0].message.content == answers[kind]
    chunks = list(client.chat.completions.create(**request, stream=True))
    streamed = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(streamed) == answers[kind]


@pytest.mark.parametrize("kind", ["text", "image"])
def test_d4_responses_answer_and_stream(client, answers, kind):
    image = {"type": "input_image", "image_url": data_uri()}
    content = [*([image] if kind == "image" else []), {"type": "input_text", "text": QUESTION}]
    request = {"model": NANO, "input": [{"role": "user", "content": content}], "max_output_tokens": NEW_TOKENS}
    assert client.responses.create(**request, temperature=0, stream=False).output_text == answers[kind]
    events = client.responses.create(**request, temperature=0, stream=True)
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == answers[kind]


def test_d4_tools_and_unknown_template_words_do_not_stop_a_chat(client, answers):
    tool = {"type": "function", "function": {"name": "measure", "parameters": {"type": "object", "properties": {}}}}
    found = client.chat.completions.create(
        model=NANO, messages=messages("image"), max_tokens=NEW_TOKENS, temperature=0, tools=[tool]
    )
    assert found.choices[0].message.content == answers["image"]


def test_transformers_chat_prints_the_answer(address, answers):
    command = [TRANSFORMERS, "chat", NANO, address, f"max_new_tokens={NEW_TOKENS}", "do_sample=False"]
    # The command's client is that of huggingface_hub, which takes this server for a network, too.
    online = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        command, input=f"{QUESTION}\n!exit\n", capture_output=True, text=True, timeout=240, env=online
    )
    assert done.returncode == 0, done.stderr
    assert answers["text"] in done.stdout
