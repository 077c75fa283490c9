"""What a recipe may say: its fields, their meaning, and what of them fits together."""

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SerializeAsAny, model_validator

from sltt_bench.common.errors import shortened
from sltt_bench.common.format import counted
from sltt_bench.common.identity import short_hash
from sltt_bench.common.strict import ADDED_LATER, Count, NotNegative, Share, Strict
from sltt_bench.data.source import DataSource
from sltt_bench.data.validation import ValidationSplit
from sltt_bench.models.options import ModelOptions
from sltt_bench.planning.studies import FOLDER as STUDIES
from sltt_bench.planning.studies import Study

TimeSteps = Annotated[int, Field(ge=1, le=16_384)]
"""A second of sound at 16 kHz, sample by sample, is the longest sequence that fits."""
Epochs = Annotated[int, Field(ge=1, le=100_000)]
"""More is beyond what anybody waits for."""
MAX_SEED = 2**32 - 1
"""torch's generator of a CPU looks at no more bits: from a larger one initial weights would be those of a smaller one."""
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]

MAX_GRID_POINTS = 2_000
"""A larger grid is taken for a slip of the keyboard."""


def section_of(key: str) -> str:
    """The section of a recipe that a dotted field is in, or is."""
    return key.partition(".")[0]


def _one_path_component(name: str) -> str:
    """A recipe's name is also that of its folder of results; a study's is in a folder of studies."""
    own = name.removeprefix(f"{STUDIES}/")
    if not re.fullmatch(r"\w[\w.-]*", own) or len(own.encode()) > 100:
        raise ValueError(
            f"{shortened(name)} is no recipe's name: letters, digits, '.', '_' and '-', at most 100 bytes, "
            "first a letter or digit; it is the file's name without its ending"
        )
    return name


class NeuronRecipe(Strict):
    """The neuron; every field that its kind has must be spelled out, since libraries' defaults differ."""

    kind: Annotated[Literal["lif", "plif", "diet-lif", "cuba-lif", "alif"], ADDED_LATER] = "lif"
    """lif: leaky integrate-and-fire. plif: tau is where a learned one starts, one a layer. diet-lif: so is
    v_threshold. cuba-lif: with a synaptic
    current that leaks (tau_synapse). alif: with a threshold that rises with every spike (tau_adaptation, adaptation)."""
    tau: Annotated[float, Field(ge=1, le=1e6)]
    """Membrane time constant in time steps; λ = 1 − 1/τ."""
    v_threshold: Annotated[float, Field(ge=1e-6, le=1e6)]
    """Firing threshold."""
    reset: Literal["soft", "hard"]
    """soft subtracts the threshold, hard returns to v_reset."""
    v_reset: Annotated[float, Field(ge=-1e6, le=1e6)]
    """Potential after a hard reset, and then also the resting potential."""
    detach_reset: bool
    """Whether BPTT's gradient ignores the reset."""
    surrogate: Literal["triangle", "rectangle", "sigmoid", "arctan"]
    """Stand-in for the derivative of the spike."""
    surrogate_width: Annotated[float, Field(gt=0, le=1e3), ADDED_LATER] = 1.0
    """How many times as wide it is, its area kept: g(x / w) / w."""
    tau_synapse: Annotated[float | None, Field(ge=1, le=1e6), ADDED_LATER] = None
    """Time constant of the synaptic current in time steps (cuba-lif); 1 is a current without memory."""
    tau_adaptation: Annotated[float | None, Field(ge=1, le=1e6), ADDED_LATER] = None
    """Time constant in time steps with which the threshold relaxes (alif)."""
    adaptation: Annotated[float | None, Field(ge=0, le=1e6), ADDED_LATER] = None
    """What every spike adds to the threshold (alif); 0 is no adaptation."""

    @model_validator(mode="after")
    def _fields_are_those_of_the_kind(self) -> "NeuronRecipe":
        wanted = {"cuba-lif": ("tau_synapse",), "alif": ("tau_adaptation", "adaptation")}.get(self.kind, ())
        for field in ("tau_synapse", "tau_adaptation", "adaptation"):
            given = getattr(self, field) is not None
            if given and field not in wanted:
                raise ValueError(
                    f"{field} is not a field of kind {self.kind}; set it to null or choose another kind"
                )
            if field in wanted and not given:
                raise ValueError(f"kind {self.kind} needs {field}, which has no default")
        if self.kind in ("plif", "diet-lif") and self.tau <= 1:
            raise ValueError("a learned tau starts above 1 (tau = 1 + exp(-w)); set tau, e.g. 2.0")
        return self

    @model_validator(mode="after")
    def _v_reset_belongs_to_hard_reset(self) -> "NeuronRecipe":
        if self.reset == "soft" and self.v_reset != 0:
            raise ValueError("v_reset is used by a hard reset only; set reset: hard or v_reset: 0.0")
        if self.reset == "hard" and self.v_reset >= self.v_threshold:
            raise ValueError("v_reset must lie below v_threshold")
        return self


class TrainRecipe(Strict):
    """How long and with what the network is trained."""

    epochs: Epochs
    """Passes over the training split."""
    batch_size: Annotated[int, Field(ge=1, le=10_000_000)]
    """Samples of a training iteration."""
    lr: NotNegative
    """Learning rate of the first epoch."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum is the paper's."""
    momentum: Share = 0.9
    """Momentum of SGD; AdamW ignores it."""
    weight_decay: NotNegative = 0.0
    """L2 penalty (SGD) or decoupled decay (AdamW)."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Cosine annealing to 0 over the epochs, stepped once an epoch."""
    precision: Literal["fp32", "tf32", "amp", "fp16", "bf16"] = "amp"
    """amp is fp16 with loss scaling on a GPU and bf16 on a CPU. fp32 is IEEE single precision throughout; tf32
    rounds what convolutions and matrix products multiply on a GPU to 10 bits, and is fp32 on a CPU. Evaluation
    has the same precision (the paper's code evaluates in fp32)."""
    drop_last: bool = False
    """Whether a last, smaller batch of an epoch is left out."""
    deterministic: bool = True
    """cuDNN's deterministic algorithms, as in the paper's code; false lets cuDNN choose by timing."""
    devices: Annotated[int, Field(ge=1, le=4096), ADDED_LATER] = 1
    """Processes, each with a device of its own, that share every batch of a cell (--nproc-per-cell). It says where a
    cell runs and not what it is: an interrupted cell goes on with another number."""
    synchronise_batch_norm: Annotated[bool, ADDED_LATER] = False
    """Batch statistics over all processes that share a batch; false: over each one's own samples."""
    checkpoint_every: Annotated[int, Field(ge=0)] = 1
    """Epochs between checkpoints for --resume; 0 writes none but the last, where that is kept."""
    keep_checkpoint: bool = False
    """Whether the last checkpoint stays when the cell has finished (a later stage starts from it)."""

    def precision_on(self, device_type: str) -> str:
        """Returns the precision, resolved for a device: amp is fp16 on CUDA and bf16 on a CPU, which has no TF32."""
        on_device = {"amp": "fp16"} if device_type == "cuda" else {"amp": "bf16", "tf32": "fp32"}
        return on_device.get(self.precision, self.precision)

    def smallest_share(self, samples: int) -> int:
        """The fewest samples that a process has of a batch in an epoch of so many: 0 where the last batch leaves one without."""
        return (self._last_batch(samples) or self.batch_size) // self.devices

    def _last_batch(self, samples: int) -> int:
        """Samples of an epoch's last batch where it is a smaller one, else 0."""
        return 0 if self.drop_last else samples % self.batch_size

    def division_fault(self, samples: int) -> str | None:
        """Why the last batch of an epoch of so many samples leaves a process without one, or None."""
        if self.smallest_share(samples):
            return None
        return (
            f"the last batch of an epoch has {counted(self._last_batch(samples), 'sample')} for {self.devices} processes "
            f"({samples} samples, train.batch_size {self.batch_size}); set train.drop_last=true or another batch size"
        )

    def has_single_samples(self, samples: int) -> bool:
        """Whether a process's batch norm has one sample of some batch in an epoch of so many."""
        shared = self.devices > 1 and self.synchronise_batch_norm
        return not shared and self.smallest_share(samples) == 1

    def single_sample_fault(self, samples: int) -> str:
        """Why batch norm refuses an epoch of so many samples whose smallest share is one."""
        size = f"train.batch_size {self.batch_size}" + f", {self.devices} processes" * (self.devices > 1)
        remedy = "set train.drop_last=true or " if self._last_batch(samples) else "set "
        return (
            f"a batch of an epoch has one sample{' for some process' * (self.devices > 1)} ({samples} samples, {size}), and "
            f"batch norm needs more than one value per channel: {remedy}another train.batch_size"
        )


class LossRecipe(Strict):
    """The loss of a step: (1 − α) CE + α MSE."""

    alpha: Share
    """Weight of the MSE term."""
    mse_target: Literal["ones", "one-hot"] = "ones"
    """Target of the MSE term; unused where alpha is 0."""
    window: Count | None = None
    """Only the last so many steps count for loss and prediction; null: all T."""
    average: Annotated[Literal["losses", "outputs"], ADDED_LATER] = "losses"
    """losses: the mean of the steps' losses (Deng et al. 2022, TET). outputs: the loss of the mean output,
    for methods with one backward pass, since no step knows the mean before the last."""


class NativeRecipe(Strict):
    """Options of the native backend; the other backends ignore them."""

    recompute: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    channels_last: bool = True
    """Channels-last memory format on a GPU."""
    compile: bool = False
    """torch.compile for the network's step (its warm-up stays out of the measured epochs)."""
    cuda_graph: bool = False
    """true is graphs: always, in the words of recipes that are older than that field."""
    graphs: Annotated[Literal["auto", "always", "never"], ADDED_LATER] = "auto"
    """Replay whole iterations as CUDA graphs. auto: on a GPU, where method and settings allow it; the provenance
    says what does not. always: a cell that cannot be replayed is refused."""
    fused_norm: Annotated[Literal["auto", "always", "never"], ADDED_LATER] = "auto"
    """Compute batch norm within the kernel of the neurons behind it. auto: on a GPU; on a CPU torch's own batch norm
    gives the currents of the reference to the last bit."""

    @model_validator(mode="after")
    def _graphs_are_spelled_one_way(self) -> "NativeRecipe":
        if self.cuda_graph and self.graphs == "never":
            raise ValueError("cuda_graph is true and graphs is never; leave cuda_graph out")
        return self

    def backend_options(self) -> dict[str, Any]:
        """As the backend takes them."""
        options = self.model_dump()
        return {**options, "graphs": "always"} if options.pop("cuda_graph") else options


class TuningRecipe(Strict):
    """How `sltt-bench tune` chooses settings: for every method alike, on validation data alone."""

    grid: Annotated[dict[str, list[int | float | str | bool]], Field(min_length=1)]
    """The fields searched (dotted) and the values of each, the learning rate first; every combination is tried."""
    seeds: Annotated[list[Seed], Field(min_length=1)]
    """Each combination is tried with each; none of the recipe's own `seeds`, which the final training uses."""
    epochs: Epochs | None = None
    """Of a trial, if fewer than train.epochs; null: as many."""
    validation: ValidationSplit
    """What trials hold back of the training data; the final training uses all but what the recipe's own `validation` does."""

    @model_validator(mode="after")
    def _every_value_is_tried_with_every_seed_once(self) -> "TuningRecipe":
        for name, values in self.grid.items():
            if len(values) < 2 or len(set(values)) < len(values):  # 1 and 1.0 are one setting
                raise ValueError(f"grid: {name} needs two values or more, each once")
            if section_of(name) not in _SEARCHABLE or name in _NOT_SEARCHABLE:
                raise ValueError(
                    f"grid: {name} cannot be searched; it must be a field of {', '.join(_SEARCHABLE)}, such as train.lr, "
                    f"but for {', '.join(_NOT_SEARCHABLE)}"
                )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: each once")
        if math.prod(map(len, self.grid.values())) * len(self.seeds) > MAX_GRID_POINTS:
            raise ValueError(f"grid: at most {MAX_GRID_POINTS} trials of a method are taken")
        return self

    def settings(self) -> list[dict[str, Any]]:
        """The points of the grid in order: the last field changes fastest."""
        return [
            dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())
        ]

    @property
    def trials(self) -> int:
        """The budget: how many trainings each method is given."""
        return len(self.settings()) * len(self.seeds)


_SEARCHABLE = ("train", "neuron", "loss", "model")
_NOT_SEARCHABLE = (
    "train.epochs", "train.batch_size", "train.precision", "train.devices", "train.checkpoint_every",
    "train.keep_checkpoint", "model.name",
)  # fmt: skip
"""What budgets, or reports' groups, are told apart by, and what decides nothing that is trained."""


class Claim(Strict):
    """What a source claims; the report gives it a verdict."""

    metric: Literal["peak_memory", "warm_epoch_time", "compute", "test_top1"]
    """What is compared; test_top1 is the last epoch's."""
    method: str
    """The method that the claim is about."""
    baseline: str | None = None
    """The method it is compared with; null for an absolute claim."""
    relation: Literal["at_most_ratio", "at_least", "at_most", "within_points", "exceeds_by_points"]
    """at_most_ratio: value ÷ baseline ≤ threshold. at_least, at_most: the value itself. within_points:
    not worse than the baseline by more. exceeds_by_points: better than the baseline by at least."""
    threshold: float
    """A ratio, a share (0 to 1), or percentage points, as the relation says."""
    when: dict[str, int | float | str | bool | list[int]] = {}
    """Recipe fields (dotted) that must have these values for the claim to apply, e.g. data.delay: 8; in a study also
    `extends`, the recipe of a grid."""
    says: str
    """The claim in words."""
    source: str
    """Where it is made."""

    def fault(self) -> str | None:
        """Why nobody could judge it, or None."""
        if self.relation.endswith("_points") and self.metric != "test_top1":
            return f"{self.relation} is for accuracies (metric: test_top1), not for {self.metric}"
        if self.relation.endswith("_points") and not 0 <= self.threshold <= 100:
            return f"percentage points are from 0 to 100, but threshold is {self.threshold:g}"
        if self.relation in ("at_least", "at_most"):
            if self.baseline is not None:
                return f"{self.relation} is about the value itself; leave baseline out"
            if self.metric == "test_top1" and not 0 <= self.threshold <= 1:
                return f"an accuracy is a share, 0 to 1, but threshold is {self.threshold:g}"
            if self.threshold < 0:
                return f"{self.metric} is never below 0, but threshold is {self.threshold:g}"
        elif self.baseline in (None, self.method):
            return f"{self.relation} compares; name another method as baseline"
        if self.relation == "at_most_ratio" and self.threshold <= 0:
            return f"a ratio is above 0, but threshold is {self.threshold:g}"
        return None


class Recipe(Strict):
    """One experiment, but for method, backend and seed."""

    name: Annotated[str, AfterValidator(_one_path_component)]
    """The file's name without its ending."""
    description: str
    """One line for `sltt-bench list`."""
    data: SerializeAsAny[DataSource]
    """The data set and its options."""
    model: SerializeAsAny[ModelOptions]
    """The network and its options."""
    neuron: NeuronRecipe
    """The neuron."""
    timesteps: TimeSteps
    """T."""
    test_timesteps: Annotated[TimeSteps | None, ADDED_LATER] = None
    """T at test, where it is not that of training; for static images only. null: as trained."""
    loss: LossRecipe
    """The loss of a step."""
    train: TrainRecipe
    """Training."""
    methods: Annotated[list[str], Field(min_length=1)]
    """What is run where --method says nothing."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = [2022]
    """What is run where --seed says nothing; 2022 is the seed of the paper's code."""
    init_from: str | None = None
    """A recipe whose finished checkpoint this one starts from (stage 1 before stage 2)."""
    native: NativeRecipe = NativeRecipe()
    """Options of the native backend."""
    validation: Annotated[ValidationSplit | None, ADDED_LATER] = None
    """Training samples that every run holds back; the best epoch is then chosen on them. null: none, and all train."""
    tuning: Annotated[TuningRecipe | None, ADDED_LATER] = None
    """What `sltt-bench tune` searches; other commands ignore it."""
    target: Annotated[Share | None, ADDED_LATER] = None
    """Test accuracy (0 to 1) that counts as reached: the report compares time and energy until then. null: none."""
    smoke: dict[str, Any] = {}
    """Overrides (dotted) that --smoke applies: a tiny subset, network and input."""
    claims: list[Claim] = []
    """What the source claims about this experiment."""
    study: Annotated[Study | None, ADDED_LATER] = None
    """A question that the recipe asks by grids over its fields; null: it is a single experiment."""
    cpu_minutes: Annotated[float | None, Field(gt=0), ADDED_LATER] = None
    """About how many minutes BPTT takes on one thread of a CPU; null where nobody has measured."""

    @model_validator(mode="after")
    def _fits_together(self) -> "Recipe":
        if self.loss.window is not None and self.loss.window > self.timesteps:
            raise ValueError(f"loss.window is {self.loss.window}, more than timesteps ({self.timesteps})")
        if self.test_timesteps not in (None, self.timesteps):
            if self.data.temporal:
                raise ValueError(
                    "test_timesteps is for static images: these data come with their own time steps"
                )
            if self.loss.window is not None and self.loss.window > self.test_timesteps:
                raise ValueError(
                    f"loss.window is {self.loss.window}, more than test_timesteps ({self.test_timesteps})"
                )
            if "timestep" in self.model.needs and self.test_timesteps > self.timesteps:
                raise ValueError(
                    f"test_timesteps is {self.test_timesteps}, but the network has parameters for each of {self.timesteps} "
                    "steps (timesteps) alone, as model.normalisation bntt gives it; set it to that number or less"
                )
        normalisation = getattr(self.model, "normalisation", "batch")
        if self.train.synchronise_batch_norm and (
            normalisation == "tdbn" or self.model.name in ("mlp", "spikformer")
        ):
            raise ValueError(
                f"train.synchronise_batch_norm is for the batch norm of images, but model {self.model.name} has "
                f"normalisation {normalisation}; set it to false, or choose a convolutional network with batch"
            )
        if self.train.devices > self.train.batch_size:
            raise ValueError(
                f"train.batch_size is {self.train.batch_size}, fewer than the {self.train.devices} processes of "
                "train.devices (--nproc-per-cell) that share a batch; raise it or use fewer processes"
            )
        if (check_timesteps := self.data.check_timesteps(self.timesteps)) is not None:
            raise ValueError(check_timesteps)
        if (fault := self.validation_fault()) is not None:
            raise ValueError(fault)
        return self

    def validation_fault(self) -> str | None:
        """Why the training split does not have the validation samples that are expected, or None; None too where its
        size is not known yet."""
        samples = self.data.train_samples if self.data.limit is None else 0
        return None if self.validation is None else self.validation.fault(samples)

    def epoch_samples(self, *, synthetic: bool) -> int:
        """Training samples of an epoch, without those that are held back for validation."""
        samples = self.data.epoch_samples(synthetic=synthetic)
        return samples - (0 if self.validation is None else self.validation.held_back(samples))

    def batch_fault(self, *, synthetic: bool) -> str | None:
        """Why no epoch can fill a batch, or its last one leaves a process without a sample, or None; None too where the
        size of an epoch is not known yet."""
        samples, batch_size = self.epoch_samples(synthetic=synthetic), self.train.batch_size
        if not self.data.train_samples:
            return None
        if batch_size <= samples:
            return self.train.division_fault(samples)
        limits = {"data.limit": self.data.limit}
        if synthetic:
            limits["data.synthetic_samples"] = self.data.synthetic_samples
        too_low = [
            key for key, limit in limits.items() if limit == self.data.epoch_samples(synthetic=synthetic)
        ]
        more = f", or raise {' and '.join(too_low)}" if too_low else ""
        epoch = counted(f"{samples:,}", "training sample")
        return f"train.batch_size is {batch_size:,}, but an epoch has {epoch}; lower it{more}"

    def fingerprint(self, apart_from: Iterable[str] = ()) -> str:
        """Hash of everything that decides what one method's run computes: 12 hexadecimal digits.

        `apart_from`: dotted fields that are left out, such as those that were tuned.
        """
        decisive = self.significant()
        for key in NOT_DECISIVE:
            decisive.pop(key, None)
        for section, _, key in (dotted.partition(".") for dotted in (*NOT_DECISIVE_OF_TRAIN, *apart_from)):
            decisive[section].pop(key, None)
        return short_hash(decisive)


NOT_DECISIVE = (
    "description", "methods", "seeds", "smoke", "claims", "init_from", "tuning", "target", "cpu_minutes", "study",
)  # fmt: skip
"""What of a recipe decides nothing about one method's run, beside its name."""
NOT_DECISIVE_OF_TRAIN = ("train.checkpoint_every", "train.keep_checkpoint", "train.devices")
"""The same, of the section `train`."""


OF_ONE_EXPERIMENT: Mapping[str, Any] = {"claims": [], "cpu_minutes": None}
"""What is true of a recipe and of none that is made from it → what that one has."""
