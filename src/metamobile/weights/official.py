"""The one key map from the official EMO and EMOv2 state dicts to ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

# In order; each rule works on what the ones before it left.
_RULES = [
    (r"^module\.", ""),  # saved from a wrapped network
    (r"^stage0\.0\.convs\.0\.0\.", "stages.0.0.conv."),
    (r"^stage0\.0\.convs\.0\.1\.", "stages.0.0.norm."),
    (r"^stage0\.1\.(conv|norm)\.", r"stages.0.1.operator.conv.\1."),  # EMOv2's stem
    (r"^stage0\.2\.conv\.", "stages.0.1.shrink.conv."),
    (r"^stage(\d)\.", r"stages.\1."),
    (r"\.eops\.0\.net\.conv\.", ".expand.conv."),
    (r"\.eops\.0\.", "."),  # EMOv2's list of operators holds one
    (r"\.ls\.gamma$", ".layer_scale.gamma"),
    (r"\.norm\.norm\.", ".norm."),  # their layer norm is wrapped once more
    (r"^norm\.norm\.", "norm."),
    (r"\.qk\.conv\.", ".operator.attention.qk."),
    (r"\.v\.conv\.", ".expand.conv."),
    (r"\.conv_local\.", ".operator.conv."),
    (r"\.se\.conv_reduce\.", ".operator.conv.se.fc1."),
    (r"\.se\.conv_expand\.", ".operator.conv.se.fc2."),
    (r"\.proj\.conv\.", ".shrink.conv."),
    (r"^head\.", "head.fc."),
]


def from_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of an official EMO or EMOv2 state dict; layer scales go from (1, C, 1, 1) to (C,).

    Errors: ValueError when the names are not those of an official network.
    """
    ours = {}
    for name, tensor in state_dict.items():
        new = name
        for pattern, replacement in _RULES:
            new = re.sub(pattern, replacement, new)
        ours[new] = tensor.flatten() if new.endswith(".gamma") else tensor
    if "stages.0.0.conv.weight" not in ours:
        first = next(iter(state_dict), "nothing")
        raise ValueError(
            f"not an official EMO state dict: it starts with {first!r}, expected the tensors of its stage0"
        )
    return ours
