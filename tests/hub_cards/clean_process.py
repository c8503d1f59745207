"""Runs as a program of its own: uses a checkpoint with the public libraries only, and prints what came out as JSON.

    python -I clean_process.py LOCATION [--revision R] [--adapter A] [--adapter-revision R] [--network]

`unimedvl` cannot be imported here. Without `--network` no socket can be opened and no process started, and every
attempt is counted in the report, as is every file that is opened outside of the checkpoint, the caches and Python.
"""

import argparse
import hashlib
import json
import os
import sys


class RefusePackage:
    """A finder that stands before all others and refuses `unimedvl`, installed or not."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "unimedvl":
            raise ImportError("unimedvl is not importable in this process")


def refuse_network() -> list[str]:
    """Refuse connections, name look-ups and new processes from now on; returns the list of attempts."""
    attempts: list[str] = []
    events = {"socket.connect", "socket.getaddrinfo", "socket.sendto", "subprocess.Popen", "os.system", "os.exec"}

    def audit(event: str, arguments: tuple) -> None:
        if event in events:
            attempts.append(f"{event} {arguments[:2]}")
            raise OSError(f"{event} is refused in this process")

    sys.addaudithook(audit)
    return attempts


def watch_files(*allowed: str) -> set[str]:
    """Names of the files, outside of these folders, Python and the system, that are opened from now on."""
    roots = [os.path.realpath(folder) for folder in (*allowed, sys.prefix, sys.base_prefix, os.environ["HF_HOME"])]
    roots += ["/dev", "/etc", "/lib", "/proc", "/sys", "/usr"]
    opened: set[str] = set()

    def audit(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str):
            path = os.path.realpath(arguments[0])
            if not any(path == root or path.startswith(root + os.sep) for root in roots):
                opened.add(path)

    sys.addaudithook(audit)
    return opened


def use(model, processor) -> dict:
    """Ask about an image, make one from text and one from an image."""
    import torch
    from PIL import Image

    image = Image.linear_gradient("L").resize((40, 28)).convert("RGB")
    question = [{"type": "image", "image": image}, {"type": "text", "text": "What is this?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    answer = ids[:, inputs["input_ids"].shape[1] :]
    report = {"ids": answer.tolist(), "text": processor.batch_decode(answer, skip_special_tokens=True)}
    for name, content in (("image", question[1:]), ("edit", question)):
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            generation_mode="image",
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        size = {"height": 32, "width": 32} if name == "image" else {}
        pixels = model.generate(
            **inputs,
            generation_mode="image",
            preset="t2i" if name == "image" else "edit",
            num_inference_steps=3,
            generator=torch.Generator().manual_seed(0),
            show_progress=False,
            **size,
        )
        made = processor.post_process_multimodal_output(pixels, generation_mode="image")[0]
        report[name] = {"size": made.size, "sha256": hashlib.sha256(made.tobytes()).hexdigest()}
    return report


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("location")
    parser.add_argument("--revision")
    parser.add_argument("--adapter")
    parser.add_argument("--adapter-revision")
    parser.add_argument("--network", action="store_true")
    arguments = parser.parse_args()
    sys.meta_path.insert(0, RefusePackage())
    attempts = [] if arguments.network else refuse_network()
    opened = watch_files(arguments.location, __file__)

    import torch
    import transformers

    torch.set_num_threads(1)
    options = {"revision": arguments.revision} if arguments.revision else {}
    options["trust_remote_code"] = True
    report: dict = {"config": type(transformers.AutoConfig.from_pretrained(arguments.location, **options)).__name__}
    processor = transformers.AutoProcessor.from_pretrained(arguments.location, **options)
    base = transformers.AutoModel.from_pretrained(arguments.location, **options)
    with torch.no_grad():
        states = base(input_ids=torch.tensor([[3, 4, 5]]))[0]
    report["AutoModel"] = {"class": type(base).__name__, "width": states.shape[-1]}
    for name in ("AutoModelForMultimodalLM", "AutoModelForImageTextToText", "AutoModelForCausalLM"):
        model = getattr(transformers, name).from_pretrained(arguments.location, **options)
        report[name] = {"class": type(model).__name__, **use(model, processor)}
    report["presets"] = sorted(getattr(model.generation_config, "task_presets", None) or [])
    if arguments.adapter:
        model.load_adapter(arguments.adapter, adapter_kwargs={"revision": arguments.adapter_revision})
        report["adapter"] = use(model, processor)
        report["adapter_base"] = model.peft_config["default"].base_model_name_or_path
    report["attempts"], report["opened"] = attempts, sorted(opened)
    report["imported"] = sorted(name for name in sys.modules if name.partition(".")[0] == "unimedvl")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
