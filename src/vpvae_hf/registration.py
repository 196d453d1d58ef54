"""Lets transformers' Auto classes and diffusers' pipelines find our classes, without importing either library.

Every entry is made when the library's module that looks it up is imported, before or after this package. Until one of
our classes is used, a stand-in takes its place: transformers and diffusers import their tables in the middle of their
own imports, when our modules cannot be imported yet, and images need no audio model.
"""

import sys
from types import ModuleType
from typing import Any

from wrapt import when_imported

_MODEL_TYPE = "vp_codec"
_DIFFUSERS_CLASSES = ("AutoencoderVP", "VPAutoregressivePipeline", "VPMaskedPipeline")


class _StandIn(type):
    """A class with the name of one of ours, which imports ours at the first call or access to an attribute."""

    def __getattr__(cls, attribute: str) -> Any:
        return getattr(getattr(sys.modules["vpvae_hf"], cls.__name__), attribute)

    def __call__(cls, *arguments: Any, **settings: Any) -> Any:
        return getattr(sys.modules["vpvae_hf"], cls.__name__)(*arguments, **settings)


_CONFIG = _StandIn("VPCodecConfig", (), {})


@when_imported("transformers.models.auto.configuration_auto")
def _register_config(auto: ModuleType) -> None:
    auto.AutoConfig.register(_MODEL_TYPE, _CONFIG)


@when_imported("transformers.models.auto.feature_extraction_auto")
def _register_feature_extractor(auto: ModuleType) -> None:
    # The file of a feature extractor names its class, which is looked for among all that are registered.
    auto.AutoFeatureExtractor.register(_CONFIG, _StandIn("VPCodecFeatureExtractor", (), {}))


@when_imported("transformers.models.auto.image_processing_auto")
def _register_image_processor(auto: ModuleType) -> None:
    # The file of an image processor names its class, too. `AutoImageProcessor.register` accepts no stand-in. The key is
    # a stand-in, too, because a diffusers model has no transformers config.
    processor = _StandIn("VPImageProcessor", (), {})
    backends = dict.fromkeys(("pil", "torchvision"), processor)
    auto.IMAGE_PROCESSOR_MAPPING.register(_StandIn("AutoencoderVP", (), {}), backends)


@when_imported("vpvae_hf.models.configuration_vp_codec")
def _register_models(ours: ModuleType) -> None:
    """The Auto classes find a model by its config's class, so this is early enough."""
    import transformers

    config = ours.VPCodecConfig
    transformers.AutoConfig.register(_MODEL_TYPE, config, exist_ok=True)
    transformers.AutoFeatureExtractor.register(config, _StandIn("VPCodecFeatureExtractor", (), {}))
    for auto in (transformers.AutoModel, transformers.AutoModelForAudioTokenization):
        auto.register(config, _StandIn("VPCodecModel", (), {"config_class": config}))


@when_imported("vpvae_hf.models.modeling_vp_codec")
def _replace_stand_ins(ours: ModuleType) -> None:
    import transformers

    for auto in (transformers.AutoModel, transformers.AutoModelForAudioTokenization):
        auto.register(ours.VPCodecConfig, ours.VPCodecModel, exist_ok=True)


@when_imported("diffusers.pipelines.pipeline_loading_utils")
def _make_components_loadable(utils: ModuleType) -> None:
    """diffusers loads a pipeline's component only from libraries that are listed here, by base classes found there."""
    ways = ["save_pretrained", "from_pretrained"]
    utils.LOADABLE_CLASSES["vpvae_hf"] = {"ModelMixin": ways, "PreTrainedModel": ways}


@when_imported("diffusers")
def _name_classes(_: ModuleType) -> None:
    """diffusers loads pipelines, and what its AutoModel loads, only from its own names."""
    diffusers = sys.modules["diffusers"]  # it has replaced itself by a lazy module

    class WithOurClasses(type(diffusers)):
        def __getattr__(self, name: str) -> Any:
            if name in _DIFFUSERS_CLASSES:
                return getattr(sys.modules["vpvae_hf"], name)
            return super().__getattr__(name)

    diffusers.__class__ = WithOurClasses
