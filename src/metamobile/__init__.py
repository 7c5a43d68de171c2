"""metamobile: EMO, light vision models built from a single block.

Importing it registers EMO with timm. The verbs of the command line are functions here: check, train,
evaluate, predict, explain, export, pull; and load, create_model, and for the Hub from_pretrained,
save_pretrained, push_to_hub.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metamobile.deploy.bench import bench
    from metamobile.deploy.export import export
    from metamobile.inference.evaluate import evaluate
    from metamobile.inference.model import from_pretrained, load
    from metamobile.inference.predict import predict
    from metamobile.models.create import create_model
    from metamobile.study.ablate import ablate as study_ablate
    from metamobile.study.criteria import study_criteria
    from metamobile.study.diagonal import study_diagonal
    from metamobile.study.explain.explain import explain
    from metamobile.study.heads import study_heads
    from metamobile.study.operators import study_complexity
    from metamobile.study.reproduce import reproduce as study_reproduce
    from metamobile.tasks.look import check
    from metamobile.training.train import train
    from metamobile.weights.hub import push_to_hub, save_pretrained
    from metamobile.weights.pull import pull

__version__ = "0.1.0"

_WHERE = {
    "bench": "metamobile.deploy.bench:bench",
    "check": "metamobile.tasks.look:check",
    "create_model": "metamobile.models.create:create_model",
    "eval": "metamobile.inference.evaluate:evaluate",  # the verb's name
    "evaluate": "metamobile.inference.evaluate:evaluate",
    "explain": "metamobile.study.explain.explain:explain",
    "export": "metamobile.deploy.export:export",
    "from_pretrained": "metamobile.inference.model:from_pretrained",
    "load": "metamobile.inference.model:load",
    "predict": "metamobile.inference.predict:predict",
    "pull": "metamobile.weights.pull:pull",
    "push_to_hub": "metamobile.weights.hub:push_to_hub",
    "save_pretrained": "metamobile.weights.hub:save_pretrained",
    "study_ablate": "metamobile.study.ablate:ablate",
    "study_complexity": "metamobile.study.operators:study_complexity",
    "study_criteria": "metamobile.study.criteria:study_criteria",
    "study_diagonal": "metamobile.study.diagonal:study_diagonal",
    "study_heads": "metamobile.study.heads:study_heads",
    "study_reproduce": "metamobile.study.reproduce:reproduce",
    "train": "metamobile.training.train:train",
}

__all__ = [
    "bench",
    "check",
    "create_model",
    "deploy",
    "evaluate",
    "explain",
    "export",
    "from_pretrained",
    "load",
    "predict",
    "pull",
    "push_to_hub",
    "save_pretrained",
    "study_ablate",
    "study_complexity",
    "study_criteria",
    "study_diagonal",
    "study_heads",
    "study_reproduce",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'metamobile' has no attribute {name!r}")
    module, attribute = _WHERE[name].split(":")
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])


from metamobile import deploy as deploy  # noqa: E402  # a package that can be called: it imports nothing heavy

# The command answers --help, and runs ONNX files, without torch; there, networks register when needed.
if "metamobile_cli" not in sys.modules:
    from metamobile.models import emo as _emo  # noqa: F401
    from metamobile.models import transplants as _transplants  # noqa: F401
