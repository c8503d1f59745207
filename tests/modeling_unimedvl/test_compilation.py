"""What a compiler sees: one graph for texts and for images, and graphs to export."""

import pytest
import torch

from tests.tiny_inputs import collate, conversation
from tests.tiny_model import tiny_model

pytestmark = pytest.mark.medium
SLOW = pytest.mark.slow
NAMES = ["text", "image", "equal images", *(pytest.param(name, marks=SLOW) for name in ("several sizes", "batch"))]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def prompts(model) -> dict[str, dict]:
    """Processor outputs: a text, one image, images of equal and of several sizes, and a padded batch."""
    one = conversation(model.config, [("vit", 2, 3), [3, 4, 5]], seed=1, answer=True)
    several = conversation(model.config, [("vit", 2, 3), [6], ("vit", 3, 4), [3]], seed=3, answer=True)
    return {
        "text": conversation(model.config, [[3, 4, 5]], answer=True),
        "image": one,
        "equal images": conversation(model.config, [("vit", 2, 3), ("vit", 2, 3), [3]], seed=2, answer=True),
        "several sizes": several,
        "batch": collate([one, several], model.config.pad_token_id),
    }


@pytest.mark.parametrize("name", NAMES)
def test_d13_forward_is_one_graph(model, name):
    row = prompts(model)[name]
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(**row)
        expected = model(**row)
    assert (compiled.logits - expected.logits).abs().max() < 1e-5
    # The cache of a compiled prompt is continued as any other.
    with torch.no_grad():
        following = torch.tensor([[7]] * len(row["input_ids"]))
        mask = torch.nn.functional.pad(row["attention_mask"], (0, 1), value=1)
        steps = [
            model(input_ids=following, attention_mask=mask, past_key_values=output.past_key_values).logits
            for output in (compiled, expected)
        ]
    assert (steps[0] - steps[1]).abs().max() < 1e-5


def test_d13_a_packed_text_is_one_graph(model):
    row = {
        "input_ids": torch.tensor([[121, 3, 4, 121, 5, 6, 7]]),
        "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 3]]),
    }
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(**row).logits
        assert (compiled - model(**row).logits).abs().max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text", "image"])
def test_d13_training_is_one_graph(model, name):
    row = prompts(model)[name]
    torch.compiler.reset()
    grown = []
    for call in (torch.compile(model, fullgraph=True, backend="aot_eager"), model):
        model.train()
        model.zero_grad()
        call(**row).logits.pow(2).sum().backward()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # A graph returns zeros for weights that have no part in it.
        grown.append([torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in trained])
        model.eval()
    model.zero_grad()
    scale = max(float(gradient.abs().max()) for gradient in grown[1])
    assert max(float((a - b).abs().max()) for a, b in zip(*grown, strict=True)) < 1e-5 * scale


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=SLOW)])
@pytest.mark.parametrize("name", ["text", "image", "several sizes"])
def test_d13_export(model, name, strict):
    row = prompts(model)[name]
    with torch.no_grad():
        program = torch.export.export(model, (), row, strict=strict)
        assert (program.module()(**row).logits - model(**row).logits).abs().max() < 1e-5


def test_d13_an_exported_graph_reads_other_images(model):
    first, second = (conversation(model.config, [("vit", *grid), [3]], seed=4) for grid in ((2, 3), (3, 2)))
    with torch.no_grad():
        program = torch.export.export(model, (), first)
        assert (program.module()(**second).logits - model(**second).logits).abs().max() < 1e-5
