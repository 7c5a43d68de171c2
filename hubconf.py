"""For torch.hub, as in `torch.hub.load("path/to/metamobile", "emo_1m", source="local", num_classes=10)`.

The package need not be installed, only what `dependencies` names: it is taken from src/ beside this file.
"""

import sys as _sys
from pathlib import Path as _Path

dependencies = ["torch", "torchvision", "timm", "safetensors", "huggingface_hub", "numpy", "PIL"]

_sys.path.insert(0, str(_Path(__file__).parent / "src"))
try:
    import metamobile as _metamobile
    from metamobile.models.variants import VARIANTS as _VARIANTS
finally:
    _sys.path.pop(0)


def load(weights, **kwargs):
    """The network of any weights, in evaluation mode: a run folder, a .safetensors file, the name of shipped
    or pulled weights, or a repository of the Hugging Face Hub, "user/name" (`metamobile.from_pretrained`)."""
    return _metamobile.from_pretrained(weights, **kwargs).network


def _entrypoint(name):
    def create(pretrained=False, **kwargs):
        return _metamobile.create_model(name, pretrained=pretrained, **kwargs)

    create.__name__ = create.__qualname__ = name
    create.__doc__ = (
        f"{name}, {_VARIANTS[name].parameters:,} parameters at 1,000 classes. `pretrained` loads what "
        f"`metamobile pull {name}` fetched; other arguments are those of `metamobile.create_model`."
    )
    return create


globals().update({_name: _entrypoint(_name) for _name in _VARIANTS})
