"""Draws random cells: network, data, neuron, loss, optimiser, method and options of native."""

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sltt_bench.planning.plan import Cell
from sltt_bench.planning.recipe import load_recipe

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
NETWORKS = ("mlp", "mlp", "cnn", "cnn") if INTERPRETED else (
    "mlp", "mlp", "mlp", "cnn", "cnn", "preact-resnet18", "nf-resnet34", "vgg11", "sew-resnet18", "ms-resnet18", "spikformer",
)  # fmt: skip
"""Triton's interpreter would take a minute for one of the large networks."""
METHODS = (
    "bptt", "bptt-d0.5", "bptt-d0", "bptt-ckpt2", "tbptt-w1", "tbptt-w2", "sltt", "sltt-k1", "sltt-k2", "sltt-k3", "sltt-a2",
)  # fmt: skip
"""Methods of every kind that native serves."""
EVERY_METHOD = (
    *METHODS, "bptt-l1", "sltt-k2-unbiased", "sltt-a", "sltt-a2-unbiased", "ottt", "ottt-o", "e-prop", "s-tllr", "pp-prop",
    "rate", "conversion",
)  # fmt: skip
"""Also one method of each kind that native does not serve."""


@dataclass(frozen=True)
class Drawn:
    """A cell for two backends, and how it is trained."""

    recipe: str
    method: str
    overrides: dict[str, Any]
    native: dict[str, Any]
    replayed: bool

    def cell(self, backend: str, **overrides: Any) -> Cell:
        """Returns the cell for a backend on the CPU. Raises what a command raises if it refuses the cell."""
        overrides = {**self.overrides, **(self.native if backend == "native" else {}), **overrides}
        recipe = load_recipe(self.recipe, overrides, chosen_methods=[self.method])
        return Cell(recipe, self.method, backend, seed=0, device="cpu")

    @staticmethod
    def by(draws: random.Random, known: Sequence[str] = METHODS) -> "Drawn":
        """Draw one; `known`: the methods to draw from."""
        chance = draws.random
        name = draws.choice(NETWORKS)
        model: dict[str, Any] = {"name": name}
        if name != "nf-resnet34":
            model["normalisation"] = draws.choice(["batch", "batch", "none", "group", "bntt", "tdbn"])
        timesteps = draws.choice([1, 2, 3, 4, 5, 6])
        recipe = draws.choice(["digits", "digits", "digits-saccade"])  # one image T times, or a moving one
        match name:
            case "mlp":
                model |= {"hidden": draws.choice([[8], [8, 6], [6, 8, 5]]), "recurrent": chance() < 0.5}
                model["normalisation"] = draws.choice(["none", "none", "batch", "group", "weight", "bntt"])
            case "cnn":
                model["channels"] = draws.choice([[4], [4, 6], [3, 4, 4]])
            case "spikformer":
                model |= {"dim": 8, "heads": 2, "depth": 1, "mlp_ratio": 2, "halvings": 1}
            case _:
                model["width"] = 2
        if name in ("mlp", "cnn"):
            timesteps = draws.choice([timesteps, timesteps, 8, 13, 17])  # from 13 on, units run in chunks
            model["readout_tau"] = draws.choice([None, 2.0])
        if name in ("mlp", "cnn", "preact-resnet18", "vgg11") and not INTERPRETED:
            model["dropout"] = draws.choice(
                [0, 0.3]
            )  # in another memory format, its random numbers come in another order
        if name == "sew-resnet18":
            model["connection"] = draws.choice(["add", "and", "iand"])
        if name in ("sew-resnet18", "ms-resnet18"):
            model["stem"] = "3x3"
        if name == "vgg11":
            recipe = draws.choice(["cifar10-resnet18", "dvs-cifar10-vgg11"])  # for their larger images
            timesteps = min(timesteps, 3)
        hard = chance() < 0.5
        overrides = {
            "model": model,
            "timesteps": timesteps,
            "neuron.tau": draws.choice([1.0, 1.1, 2.0, 3.7]),
            "neuron.v_threshold": draws.choice([0.5, 1.0]),
            "neuron.reset": "hard" if hard else "soft",
            "neuron.v_reset": draws.choice([0.0, -0.2, 0.1]) if hard else 0.0,
            "neuron.detach_reset": chance() < 0.5,
            "neuron.surrogate": draws.choice(["triangle", "rectangle", "sigmoid", "arctan"]),
            "neuron.surrogate_width": draws.choice([1.0, 2.0]),
            "train.precision": "fp32",
            "train.lr": draws.choice([0.001, 0.01]),
            "train.momentum": draws.choice([0, 0.9]),
            "train.weight_decay": draws.choice([0, 0.1]),
            # AdamW divides gradients by their size, and those of biases before batch norm are rounding
            # errors.
            "train.optimizer": draws.choice(["sgd", "adamw"]) if _has_no_batch_norm(model) else "sgd",
            "loss.alpha": draws.choice([0, 0.05, 1]),
            "loss.mse_target": draws.choice(["ones", "one-hot"]),
            "loss.window": draws.randint(1, timesteps) if chance() < 0.2 else None,
            "loss.average": "outputs" if chance() < 0.2 else "losses",
        }
        native = {
            "native.recompute": chance() < 0.5,
            "native.fused_norm": draws.choice(["always", "never"]),
            "native.graphs": "never",
        }
        of_these = random.Random(repr(overrides))  # further draws that leave those of `draws` as they were
        if recipe == "digits" and of_these.random() < 0.2:
            overrides["test_timesteps"] = of_these.choice([1, 2, 3, 5, 7])
        return Drawn(recipe, draws.choice(known), overrides, native, replayed=chance() < 0.4)


def another_kind_of_neuron(draws: random.Random) -> dict[str, Any]:
    """Returns overrides for a kind of neuron that only the reference serves."""
    kind = draws.choice(["plif", "diet-lif", "cuba-lif", "alif"])
    own: dict[str, dict[str, float]] = {
        "cuba-lif": {"neuron.tau_synapse": 2.0},
        "alif": {"neuron.tau_adaptation": 9.0, "neuron.adaptation": 0.1},
    }
    return {"neuron.kind": kind, "neuron.tau": 2.0, **own.get(kind, {})}


def _has_no_batch_norm(model: dict[str, Any]) -> bool:
    return model.get("normalisation", "none") in ("none", "group", "weight")
