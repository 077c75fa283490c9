"""Finds calls in a network's step that may give a different result when they run again.

Native recomputes and replays steps. The networks of this package allow both; user-written ones are tried
first (`recomputation.py`).
"""

import operator
from typing import Any

from torch import fx, nn

THE_SAME_AGAIN = (
    nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.Flatten, nn.Identity, nn.ReLU,
    nn.modules.pooling._AvgPoolNd, nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd,
)  # fmt: skip
"""Layers of torch that the networks of this package use; they give the same result again, as torch defines them."""


def foreign_call(graph: fx.Graph, network: nn.Module) -> str | None:
    """Returns one such call of a step, in words, or None. `graph`: the calls of the step."""
    for node in graph.nodes:
        if node.op == "call_module":
            layer = network.get_submodule(str(node.target))
            is_norm = isinstance(layer, nn.modules.batchnorm._BatchNorm)
            learns = bool(layer._buffers) and not is_norm
            counts = is_norm and layer.momentum is None  # its mean over all calls depends on their number
            if learns or counts or not (_is_torchs(layer) or _is_this_projects(type(layer))):
                return f"layer {node.target} is a {type(layer).__name__}"
        elif node.op == "call_function":
            module = getattr(node.target, "__module__", None)
            if module != operator.add.__module__ and not _is_this_projects(node.target):
                return f"it calls {getattr(node.target, '__name__', node.target)}"
        elif node.op == "call_method":
            return f"it calls {node.target}"
    return None


def _is_torchs(layer: nn.Module) -> bool:
    """Whether it is one of THE_SAME_AGAIN, and neither derived from one nor parametrised."""
    return isinstance(layer, THE_SAME_AGAIN) and type(layer).__module__.startswith("torch.nn.modules.")


def _is_this_projects(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).startswith("sltt_bench.")
