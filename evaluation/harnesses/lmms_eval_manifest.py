"""What lmms-eval loads at its start through the entry point group `lmms_eval.models`."""

from lmms_eval.models.registry_v2 import ModelManifest

MANIFEST = ModelManifest(
    model_id="unimedvl", chat_class_path="unimedvl.evaluation.harnesses.lmms_eval_model.UniMedVLForLmmsEval"
)
