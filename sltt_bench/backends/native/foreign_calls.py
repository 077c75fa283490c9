"""What a network's step calls of which nobody knows that it does the same when it is called again.

Native computes steps a second time and replays them; networks that are shipped allow both. What somebody else has
written is tried first (`recomputation.py`).
"""

import operator
from typing import Any

from torch import fx, nn

THE_SAME_AGAIN = (
    nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.Flatten, nn.Identity, nn.ReLU,
    nn.modules.pooling._AvgPoolNd, nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd,
)  # fmt: skip
"""Layers of torch's that networks here have."""


def foreign_call(graph: fx.Graph, network: nn.Module) -> str | None:
    """One such call of a step, in words; None if there is none. `graph`: the calls of the step."""
    for node in graph.nodes:
        if node.op == "call_module":
            layer = network.get_submodule(str(node.target))
            is_norm = isinstance(layer, nn.modules.batchnorm._BatchNorm)
            learns = bool(layer._buffers) and not is_norm
            counts = is_norm and layer.momentum is None  # a mean over all calls, whose number it reads
            if learns or counts or not (isinstance(layer, THE_SAME_AGAIN) or _is_this_projects(type(layer))):
                return f"layer {node.target} is a {type(layer).__name__}"
        elif node.op == "call_function":
            module = getattr(node.target, "__module__", None)
            if module != operator.add.__module__ and not _is_this_projects(node.target):
                return f"it calls {getattr(node.target, '__name__', node.target)}"
        elif node.op == "call_method":
            return f"it calls {node.target}"
    return None


def _is_this_projects(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).startswith("sltt_bench.")
