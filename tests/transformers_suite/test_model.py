"""The common tests of transformers for models and for training, on the tiny model."""

import unittest

import pytest
import torch

from tests.tiny_inputs import collate, conversation
from tests.tiny_model import tiny_config
from tests.transformers_suite.distribution import common_tests, leave_out
from tests.transformers_suite.not_applicable import BASE_MODEL, MODEL
from unimedvl.modeling_unimedvl.configuration_unimedvl import UniMedVLConfig
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration, UniMedVLModel

pytestmark = pytest.mark.medium

modeling = common_tests("test_modeling_common")
training = common_tests("test_training_mixin")


class SmallModel:
    """What the common tests ask of a model's tester: sizes, a configuration and inputs of text with images."""

    batch_size = 2
    seq_length = 14
    is_training = True
    image_size = 24
    patch_size = 6

    def __init__(self, parent: unittest.TestCase):
        self.parent = parent
        config = self.get_config()
        text = config.text_config
        self.hidden_size, self.num_hidden_layers = text.hidden_size, text.num_hidden_layers
        self.num_attention_heads, self.vocab_size = text.num_attention_heads, text.vocab_size
        self.text_config, self.vision_config = text.to_dict(), config.vision_config.to_dict()
        self.causal_lm_class, self.base_model_class = UniMedVLForConditionalGeneration, UniMedVLModel

    def get_config(self) -> UniMedVLConfig:
        return tiny_config()

    def prepare_config_and_inputs_for_common(self) -> tuple[UniMedVLConfig, dict[str, torch.Tensor]]:
        config = self.get_config()
        parts = [[[5 + row, 6, 7], ("vit", 2, 2), [8 + row]] for row in range(self.batch_size)]
        rows = [conversation(config, row, seed=seed) for seed, row in enumerate(parts)]
        inputs = collate(rows, config.pad_token_id)
        assert inputs["input_ids"].shape == (self.batch_size, self.seq_length)
        return config, inputs


class Cases(modeling.ModelTesterMixin):
    model_tester = None
    _is_composite = True

    def setUp(self):
        self.model_tester = SmallModel(self)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        # The common tests look up in tables of transformers which classes take labels.
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels and model_class is UniMedVLForConditionalGeneration:
            inputs["labels"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        return inputs


@leave_out(BASE_MODEL)
class TestBaseModel(Cases, unittest.TestCase):
    all_model_classes = (UniMedVLModel,)


@leave_out(MODEL)
class TestModel(Cases, training.TrainingTesterMixin, unittest.TestCase):
    all_model_classes = (UniMedVLForConditionalGeneration,)

    def test_training_overfit(self):
        config = self.model_tester.get_config()
        # Read at the top of the configuration, where composite ones have none.
        config.vocab_size = config.text_config.vocab_size
        self.model_tester.get_config = lambda: config
        super().test_training_overfit()
