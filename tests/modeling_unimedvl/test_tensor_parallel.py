"""Tensor parallelism by transformers' `tp_plan`: two processes over gloo equal one, for text and for images."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny_checkpoint import tiny_checkpoint
from tests.tiny_inputs import conversation, initial_latents, noises
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration

pytestmark = pytest.mark.slow


def outputs(model) -> dict[str, torch.Tensor]:
    """Logits and tokens after an image, the image of an edit, and the velocity of a pass with noised latents."""
    question = conversation(model.config, [("vit", 2, 3), [3, 4, 5]], seed=1, answer=True)
    edit = conversation(model.config, [("latent", 3, 2), ("vit", 3, 3), [3, 4, 5]], seed=2)
    sampler = {"generation_mode": "image", "num_inference_steps": 3, "show_progress": False}
    with torch.no_grad():
        return {
            "logits": model(**question).logits,
            "tokens": model.generate(**question, max_new_tokens=6, do_sample=False),
            "image": model.generate(
                **edit,
                **sampler,
                vae_noise=noises(model.config, edit),
                latents=initial_latents(model.config, [(3, 2)]),
            ),
        }


def work(checkpoint: str, result: str) -> None:
    model = UniMedVLForConditionalGeneration.from_pretrained(checkpoint, tp_plan="auto").eval()
    layer = model.model.language_model.layers[0]
    made = outputs(model)
    for projection in (layer.self_attn.q_proj, layer.self_attn.q_proj_moe_gen, layer.mlp_moe_gen.gate_proj):
        weight = projection.weight
        local = weight.to_local() if hasattr(weight, "to_local") else weight
        made[f"rows of {len(made)}"] = torch.tensor(local.shape[0])
    if torch.distributed.get_rank() == 0:
        torch.save(made, result)
    torch.distributed.destroy_process_group()


def test_d7_two_processes_equal_one(tmp_path):
    model, _ = tiny_checkpoint(tmp_path / "checkpoint")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, __file__, str(tmp_path / "checkpoint"), str(tmp_path / "result")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stderr[-3000:]
    parallel, alone = torch.load(tmp_path / "result"), outputs(model)
    attention = model.model.language_model.layers[0].self_attn
    halves = [int(value) for name, value in parallel.items() if name.startswith("rows")]
    mlp = model.config.text_config.intermediate_size
    assert halves == [attention.q_proj.out_features // 2, attention.q_proj.out_features // 2, mlp // 2]
    assert torch.equal(parallel["tokens"], alone["tokens"])
    assert (parallel["logits"] - alone["logits"]).abs().max() < 1e-5
    assert (parallel["image"] - alone["image"]).abs().max() < 1e-5


if __name__ == "__main__":
    work(*sys.argv[1:])
