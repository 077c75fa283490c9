"""What is private in torch still is what `torch_internals` takes it for."""

import subprocess
import sys

import pytest

WITHOUT_COMPILER = """
import sys
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from sltt_bench.torch_internals import leave_compiler_unloaded

class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))

def trained(make):
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    optimizer = make(layer.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        layer(torch.ones(4, 3)).square().sum().backward()
        with Watching():
            optimizer.step()
        schedule.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert layer.weight.requires_grad and layer.weight.is_leaf
    return layer.weight.tolist()

makers = [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    lambda p: torch.optim.AdamW(p, lr=0.1),
]
leave_compiler_unloaded()
without = [trained(make) for make in makers]
assert "torch._dynamo" not in sys.modules
import torch._dynamo
assert without == [trained(make) for make in makers]
"""


@pytest.mark.spawned
def test_training_does_not_load_the_compiler() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_COMPILER], check=True)
