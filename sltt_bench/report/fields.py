"""How recipe fields, and what stands beside them in a study, are called on an axis."""

_WORDS = {
    "timesteps": "T, time steps",
    "test_timesteps": "T in use, time steps",
    "train.batch_size": "batch size",
    "train.lr": "learning rate",
    "train.weight_decay": "weight decay",
    "neuron.tau": "τ, time steps",
    "neuron.surrogate": "surrogate",
    "neuron.surrogate_width": "width of the surrogate",
    "neuron.reset": "reset",
    "model.hidden": "layers × neurons",
    "model.normalisation": "normalisation",
    "model.recurrent": "recurrent weights",
    "loss.average": "mean over time of",
    "data.delay": "delay, time steps",
    "data.noise": "noise",
    "epoch": "epoch",
    "number": "N in the method's name",
    "extends": "",
    "layer": "",
    "method": "",
}


def axis_words(field: str) -> str:
    """A dotted recipe field, `epoch` or `number` in words, with the unit of what has one; '' for what names itself."""
    return _WORDS.get(field, field)
