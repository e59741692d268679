"""What lmms-eval loads by the entry point `lmms_eval.models`: where the model is, without importing it."""

from lmms_eval.models.registry_v2 import ModelManifest

MANIFEST = ModelManifest("vlm_entropy", chat_class_path="vlm_entropy.eval.lmms_eval.model.VlmEntropy")
