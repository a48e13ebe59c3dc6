"""lmms-eval's entry point (`lmms_eval.models`), which it asks for what it needs to know of a model."""


def manifest():
    """What lmms-eval learns from the entry point."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("ming", chat_class_path="ming.evaluation.lmms_model.Ming")
