"""Recipes: the schema, finding them by name or path, `extends:`, overrides, and every fault at once."""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    SerializeAsAny,
    ValidationError,
    model_validator,
)

from sltt_bench import data, methods, models
from sltt_bench.data.source import DataSource
from sltt_bench.data.validation import ValidationSplit
from sltt_bench.errors import UserError, nearest
from sltt_bench.identity import short_hash
from sltt_bench.models.options import ModelOptions
from sltt_bench.plugins import PluginFailed
from sltt_bench.recipe_origins import Fault, Layer, blamed_on_files, blamed_on_layer, blamed_on_settings
from sltt_bench.results.schema import RECIPE_FILE
from sltt_bench.strict import ADDED_LATER, Count, NotNegative, Share, Strict, held_by_another
from sltt_bench.studies import FOLDER as STUDIES
from sltt_bench.studies import TASK, Study
from sltt_bench.yaml_text import YAMLFault, parse_yaml, read_yaml

TimeSteps = Annotated[int, Field(ge=1, le=16_384)]
"""A second of sound at 16 kHz, sample by sample, is the longest sequence that fits."""
Epochs = Annotated[int, Field(ge=1, le=100_000)]
"""More is beyond what anybody waits for."""
MAX_SEED = 2**53 - 1
"""Beyond it readers of CSV and JSON take two seeds for one."""
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]

MAX_GRID_POINTS = 2_000
"""A larger grid is taken for a slip of the keyboard."""
_MAX_FAULTS = 25
_MAX_EXTENDS = 16


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
    rounds what convolutions and matrix products multiply on a GPU to 10 bits, and is fp32 on a CPU."""
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
            if name.partition(".")[0] not in _SEARCHABLE or name in _NOT_SEARCHABLE:
                raise ValueError(
                    f"grid: {name} cannot be searched; it must be a field of {', '.join(_SEARCHABLE)}, "
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


class RecipeError(UserError, ValueError):
    """A recipe or an override is faulty; `faults` has one line for each fault."""

    def __init__(self, where: str, faults: list[str], lines: Sequence[str] = ()) -> None:
        """`lines`: each fault behind the place of its own that it comes from; without them, `where` is that of all."""
        where = shortened_text(where, 300)
        shown = [*(lines or (f"{where}: {fault}" for fault in faults))][:_MAX_FAULTS]
        if len(faults) > len(shown):
            shown.append(f"{where}: and {len(faults) - len(shown)} more faults")
        super().__init__("\n".join(shown))
        self.faults = faults


# Finding ----------------------------------------------------------------------------------------


def recipe_folder() -> Path:
    """Where the shipped recipes are: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "recipes"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "recipes"


def recipe_names() -> list[str]:
    """The names of all shipped recipes; files that start with an underscore are bases to extend."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml") if not path.stem.startswith("_"))


def study_names() -> list[str]:
    """The names of all shipped studies, as `run` takes them."""
    return sorted(f"{STUDIES}/{path.stem}" for path in (recipe_folder() / STUDIES).glob("[!_]*.yaml"))


def find_recipe(name_or_path: str) -> Path:
    """The file of a shipped recipe's or study's name, or the given path. Raises RecipeError."""
    of_study = name_or_path.startswith(f"{STUDIES}/")
    if name_or_path.endswith((".yaml", ".yml")) or ("/" in name_or_path and not of_study):
        path = Path(name_or_path)
        if _is_file(path):
            return path
        if _is_folder(path):
            raise RecipeError(name_or_path, ["no such file: it is a folder; give a recipe's file"])
        hint = ""
        with suppress(OSError, ValueError):  # where it cannot even be a path
            hint = nearest(path.name, [file.name for file in path.parent.glob("*.y*ml")])
        fault = f"no such file{hint}; `sltt-bench list recipes` shows the names"
        raise RecipeError(name_or_path, [fault])
    path = recipe_folder() / f"{name_or_path}.yaml"
    names = study_names() if of_study else recipe_names()
    if name_or_path in names or (not of_study and _is_file(path)):
        return path
    with suppress(methods.UnknownMethod):
        methods.promises(name_or_path)
        raise RecipeError(name_or_path, [f"is a method: `sltt-bench run RECIPE --method {name_or_path}`"])
    what, all_of_them = ("study", "studies") if of_study else ("recipe", "recipes")
    ending = ", and a recipe's file ends with .yaml" if _is_file(Path(name_or_path)) else ""
    hint = nearest(name_or_path, names)
    if _is_file(Path(f"{name_or_path}.yaml")):
        hint, ending = "", f", but a file has: give it with its ending, {name_or_path}.yaml"
    fault = f"no {what} has this name{hint}{ending}; `sltt-bench list {all_of_them}` shows all"
    raise RecipeError(name_or_path, [fault])


def namesake(name_or_path: str) -> str | None:
    """That a shipped recipe is meant where a file at hand is called like it, in words; None where none is."""
    file = Path(f"{name_or_path}.yaml")
    if not _is_file(file) or file.resolve() == find_recipe(name_or_path).resolve():
        return None
    return f"{name_or_path} is the shipped recipe; the file {file} is given with its ending"


def beside(folder: Path, name: str) -> str:
    """The recipe of this name in the folder of the one that names it; if there is none, the shipped one."""
    file = folder / f"{name}.yaml"
    return str(file) if _is_file(file) else name


def _is_file(path: Path) -> bool:
    """Also for a path that no file system takes: too long, or with a NUL."""
    try:
        return path.is_file()
    except OSError:
        return False


def _is_folder(path: Path) -> bool:
    """As `_is_file`."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def shortened(value: Any) -> str:
    """What a user wrote, as a fault quotes it."""
    return shortened_text(repr(value), 80)


def shortened_text(text: str, length: int) -> str:
    """At most so many characters, the cut shown."""
    return text if len(text) <= length else text[: length - 1] + "…"


# Reading ----------------------------------------------------------------------------------------


def load_recipe(
    name_or_path: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    smoke: bool = False,
    chosen_methods: list[str] | None = None,
    any_k: bool = False,
    origins: Mapping[str, str] | None = None,
) -> Recipe:
    """The recipe with its smoke overrides (if asked) and then `overrides` (dotted key → value).

    `chosen_methods` takes the place of the recipe's own `methods`; with `any_k` one of them may have
    a K that exceeds T. `origins`: dotted key of what is overridden → how errors name the place where it is, if not
    --set and the key, or --method. Raises RecipeError with every fault at once, each with the file or option that it comes
    from.
    """
    path = find_recipe(name_or_path)
    files: list[tuple[Path, dict[str, Any]]] = []
    raw = _read_extended(path, (), files)
    raw.setdefault("name", f"{STUDIES}/{path.stem}" if path.resolve().parent.name == STUDIES else path.stem)
    kinds = {
        section: raw[section]["name"]
        for section in ("data", "model")
        if isinstance(raw.get(section), dict) and isinstance(raw[section].get("name"), str)
    }
    further = partial(_further_faults, any_k=any_k, folder=path.parent, kinds=kinds)
    chosen = {**(overrides or {}), **({"methods": chosen_methods} if chosen_methods else {})}
    named = {key: f"--set {shortened_text(key, 80)}" for key in overrides or ()}
    if chosen_methods:
        named["methods"] = "--method"
    layers = [Layer(chosen, {**named, **(origins or {})})]
    place = None
    if "smoke" in chosen:  # it takes the place of the file's before that is applied
        raw, place = {**raw, "smoke": chosen["smoke"]}, layers[0].origins["smoke"]
    if smoke and isinstance(raw.get("smoke"), dict):  # anything else is a fault that validation names
        layers.insert(0, _smoke_layer(raw, files, place))
    values, known = _laid_over(raw, layers)
    if "target" not in chosen and _are_other_data(values.get("data"), raw.get("data")):
        values.pop("target", None)
    recipe, faults = _validated(values, known, further)
    if recipe is None:
        before = [set(_validated(*_laid_over(raw, layers[:n]), further)[1]) for n in range(len(layers))]
        lines = [_blamed(fault, files, layers, before) for fault in faults]
        raise RecipeError(str(path), [str(fault) for fault in faults], lines)
    return recipe


def _further_faults(
    recipe: Recipe, *, any_k: bool, folder: Path, kinds: Mapping[str, str]
) -> Iterator[Fault]:
    """Of a recipe whose fields are valid. `any_k`: see `load_recipe`; `folder`, `kinds`: see `_claim_faults`."""
    yield from _method_faults(recipe, any_k)
    yield from _claim_faults(recipe, folder, kinds)
    yield from _smoke_faults(recipe)


def _blamed(
    fault: Fault,
    files: Iterable[tuple[Path, Mapping[str, Any]]],
    layers: Sequence[Layer],
    before: Sequence[set[Fault]],
) -> str:
    """The fault behind where it comes from. `before`: of each layer, what is wrong without it and those above."""
    if (line := blamed_on_settings(fault, layers)) is not None:
        return line
    if fault in before[0]:
        return blamed_on_files(fault, files)
    return blamed_on_layer(
        fault,
        next(
            layer for layer, without in reversed([*zip(layers, before, strict=True)]) if fault not in without
        ),
    )


def smoke_left_out(name_or_path: str) -> str | None:
    """What --smoke leaves out, since the recipe that another one extends says it of its own data or network; None: nothing.

    Raises RecipeError.
    """
    files: list[tuple[Path, dict[str, Any]]] = []
    raw = _read_extended(find_recipe(name_or_path), (), files)
    if not isinstance(raw.get("smoke"), dict) or not (foreign := _smoke_of_others(raw, files)):
        return None
    base = next(file.stem for file, own in files if "smoke" in own)
    what = ", ".join(f"{key}={raw['smoke'][key]}" for key in foreign)
    others = dict.fromkeys("another network" if key.startswith("model.") else "other data" for key in foreign)
    return (
        f"--smoke leaves out {what}, which {base} says of {' and '.join(others)}; "
        "what makes this recipe small is for a `smoke` of its own"
    )


def recipe_from_dict(values: Mapping[str, Any]) -> Recipe:
    """A resolved recipe read back from JSON. Raises RecipeError.

    What its methods and claims may be was asked when it was resolved, by the version that did, where all its plug-ins were.
    """
    recipe, faults = _validated(values, [])
    if recipe is None:
        raise RecipeError(str(values.get("name", "recipe")), [str(fault) for fault in faults])
    return recipe


def _read_extended(
    path: Path, below: tuple[Path, ...], files: list[tuple[Path, dict[str, Any]]]
) -> dict[str, Any]:
    """A file's mapping merged into that of the recipe it extends; `below` are the files that extend it.

    Each file is added to `files` with its own mapping, one that extends another before it.
    """
    where = path.resolve()
    if where in below:
        names = " → ".join(file.name for file in (*below, where))
        raise RecipeError(str(path), [f"extends itself: {shortened_text(names, 300)}"])
    if len(below) == _MAX_EXTENDS:
        raise RecipeError(str(path), [f"the {_MAX_EXTENDS}th recipe in a chain of extends: too many"])
    try:
        raw = read_yaml(path)
    except OSError as error:
        raise RecipeError(str(path), [f"cannot be read: {error.strerror or error}"]) from None
    except YAMLFault as error:
        raise RecipeError(str(path), error.faults) from None
    if not isinstance(raw, dict):
        raise RecipeError(str(path), ["must be a mapping of keys to values at the top level"])
    name = raw.pop("name", path.stem)
    if path.name == RECIPE_FILE and not below:
        raw["name"] = name  # as the run was called that wrote it
    elif name not in (path.stem, f"{STUDIES}/{path.stem}"):
        fault = f"name: a recipe's name is that of its file; leave {shortened(name)} out, or save the file as {shortened(name)}.yaml"
        raise RecipeError(str(path), [fault])
    base = raw.pop("extends", None)
    files.append((path, dict(raw)))
    if base is None:
        return raw
    if not isinstance(base, str):
        raise RecipeError(str(path), [f"extends: must be one recipe's name, but it is {shortened(base)}"])
    base_path = path.parent / f"{base}.yaml"
    if not _is_file(base_path):
        base_path = recipe_folder() / f"{base}.yaml"
    if not _is_file(base_path):
        fault = f"extends: no recipe {shortened(base)} beside this file or among the shipped"
        raise RecipeError(str(path), [fault])
    extended = _read_extended(base_path, (*below, where), files)
    for of_another_experiment in OF_ONE_EXPERIMENT:
        extended.pop(of_another_experiment, None)
    if _are_other_data(raw.get("data"), extended.get("data")):
        extended = _without_facts_of_data(extended)
    return _merged(extended, raw)


def _are_other_data(own: Any, base: Any) -> bool:
    """Whether a section `data` says of which data it is, and not what a base's does."""
    if not isinstance(own, dict) or not isinstance(base, dict):
        return False
    return any(key in own and own[key] != base.get(key) for key in ("name", "file", "folder"))


def _without_facts_of_data(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Without the accuracy that counts as reached, and the counts of validation samples: other data have others."""
    result = {key: value for key, value in raw.items() if key != "target"}
    for path in (("validation",), ("tuning", "validation")):
        place: Any = result
        for part in path:
            if not isinstance(place.get(part), dict):
                break
            place[part] = dict(place[part])
            place = place[part]
        else:
            if "samples" in place:
                place["samples"] = 0
    return result


def _merged(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """Mappings are merged key by key; anything else is replaced, and so are `smoke` and a grid, which are values. A new
    `name` replaces a section."""
    result = dict(base)
    for key, value in top.items():
        below = result.get(key)
        if (
            isinstance(below, dict)
            and isinstance(value, dict)
            and key not in ("smoke", "grid")
            and below.get("name") == value.get("name", below.get("name"))
        ):
            result[key] = _merged(below, value)
        else:
            result[key] = value
    return result


def _smoke_layer(
    raw: Mapping[str, Any], files: Sequence[tuple[Path, Mapping[str, Any]]], place: str | None
) -> Layer:
    """What `smoke` sets, but for what is of other data or another network. `place`: the option that says it, if one does."""
    foreign = _smoke_of_others(raw, files) if place is None else []
    place = place or f"{next(str(file) for file, own in files if 'smoke' in own)}: smoke"
    values = {key: value for key, value in raw["smoke"].items() if key not in foreign}
    return Layer(values, {key: f"{place}.{shortened_text(key, 80)}" for key in values}, place)


def _smoke_of_others(raw: Mapping[str, Any], files: Sequence[tuple[Path, Mapping[str, Any]]]) -> list[str]:
    """What `smoke` sets and those data or that network cannot have that a file chose above the one that has the section.

    `raw`: of all `files`, one that extends another before it.
    """
    below = next(number for number, (_, own) in enumerate(files) if "smoke" in own)
    left_out = []
    for section, options_type in _NAMED.items():
        before, name = (_name_in(section, [own for _, own in files[start:]]) for start in (below, 0))
        if None in (before, name) or before == name:
            continue
        options, faults = _validate_options(section, raw[section], options_type)
        if faults:  # which are named without it
            continue
        known = type(options).model_fields
        keys = {key: key.split(".")[1] for key in raw["smoke"] if key.startswith(f"{section}.")}
        left_out += [key for key, field in keys.items() if field not in known]
        is_shaped = any(field in known and field not in DataSource.model_fields for field in keys.values())
        if section == "data" and options.temporal and not is_shaped:
            left_out += [key for key in raw["smoke"] if key in ("timesteps", "loss.window")]
    return left_out


def _name_in(section: str, files: Iterable[Mapping[str, Any]]) -> str | None:
    """The name that the first file has that gives one in a section."""
    sections = (own.get(section) for own in files)
    return next((own["name"] for own in sections if isinstance(own, dict) and "name" in own), None)


def _laid_over(raw: Mapping[str, Any], layers: Iterable[Layer]) -> tuple[dict[str, Any], list[Fault]]:
    """The mapping with what the layers set, and why some of that has no place; `raw` stays as it is."""
    result = dict(raw)
    fault_texts = [
        (key, _apply(result, key, value)) for layer in layers for key, value in layer.values.items()
    ]
    return result, [Fault(key, text) for key, text in fault_texts if text is not None]


def _apply(raw: dict[str, Any], dotted: str, value: Any) -> str | None:
    """Set a dotted key in place; returns why it cannot be. Unknown last keys are left to the validation."""
    if dotted == "name":
        return "a recipe's name is that of its file; `sltt-bench init NAME` makes one"
    *parents, last = dotted.split(".")
    if parents[:2] == ["tuning", "grid"]:  # its keys are dotted names themselves
        parents, last = parents[:2], dotted.removeprefix("tuning.grid.")
    place: Any = raw
    for depth, parent in enumerate(parents):
        if parent not in place and (
            parent in Recipe.model_fields if depth == 0 else parents == ["tuning", "grid"]
        ):
            place[parent] = {}
        if not isinstance(place, dict) or not isinstance(place.get(parent), dict):
            known = [key for key, below in place.items() if isinstance(below, dict)]
            return f"there is no section {parent!r}{nearest(parent, known)}"
        place[parent] = dict(place[parent])
        place = place[parent]
    place[last] = value
    return None


# Validating -------------------------------------------------------------------------------------


def _validated(
    raw: Mapping[str, Any],
    known: Iterable[Fault],
    further: Callable[[Recipe], Iterable[Fault]] = lambda recipe: (),
) -> tuple[Recipe | None, list[Fault]]:
    """The recipe, or None and all that is wrong with it, beside the faults that are `known`; `further` are those of one
    whose fields are valid.
    """
    values, faults = dict(raw), [*known]
    for section, options_type in _NAMED.items():
        if section in values:
            values[section], more = _validate_options(section, values[section], options_type)
            faults += more
    broken = [section for section in ("data", "model") if values.get(section, 0) is None]
    recipe = None
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        faults += _faults(error, Recipe, apart_from=broken)
    else:
        faults += further(recipe)
    return None if faults else recipe, list(dict.fromkeys(faults))


def _method_faults(recipe: Recipe, any_k: bool) -> Iterator[Fault]:
    """Why methods of the recipe cannot train it; with `any_k` one may have a K that exceeds T."""
    for method in recipe.methods:
        try:
            if not (any_k and not methods.fits(method, recipe.timesteps)):
                methods.check(method, recipe.timesteps)
            if recipe.loss.average == "outputs" and not methods.promises(method).one_backward_pass:
                yield Fault(
                    "loss.average",
                    f"{method} goes backward before the last step, when the mean output is not "
                    "known; set loss.average: losses, or choose bptt, bptt-ckptN, bptt-dX or rate",
                )
            if (reason := methods.unsuited(method, recipe.neuron.kind, recipe.model)) is not None:
                yield Fault("methods", reason)
        except methods.UnknownMethod as error:
            yield Fault("methods", str(error))


def _claim_faults(recipe: Recipe, folder: Path, kinds: Mapping[str, str]) -> Iterator[Fault]:
    """What a claim names that there is not, or compares that cannot be, so that nobody could ever judge it.

    `kinds`: the names of data set and network in the recipe's file; claims are about these, and not about others that
    overrides chose.
    """
    for number, claim in enumerate(recipe.claims):
        if (fault := claim.fault()) is not None:
            yield Fault(f"claims.{number}", fault)
        for method in filter(None, (claim.method, claim.baseline)):
            try:
                methods.promises(method)
            except methods.UnknownMethod as error:
                yield Fault(f"claims.{number}", str(error))
        for key, fault in _when_faults(claim.when, recipe, folder, kinds):
            yield Fault(f"claims.{number}.when.{shortened_text(key, 80)}", fault)


def _when_faults(
    when: Mapping[str, Any], recipe: Recipe, folder: Path, kinds: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """(key, why no cell of the recipe can have its value). Parameters: see `_claim_faults`."""
    if (task := when.get(TASK)) is not None:
        tasks = [grid.recipe for grid in recipe.study.grids if grid.recipe] if recipe.study else []
        if task not in tasks:
            yield TASK, f"no grid of `study` has the recipe {shortened(task)}{nearest(str(task), tasks)}"
            return
        try:
            recipe, kinds = load_recipe(beside(folder, str(task)), any_k=True), {}
        except RecipeError:  # the plan, which cannot do without that recipe, names its faults
            return
    for key in [key for key in when if key != TASK]:
        section = key.partition(".")[0]
        own = getattr(getattr(recipe, section, None), "name", None)
        named = when.get(f"{section}.name", kinds.get(section, own))
        if section not in _NAMED or named == own:
            fault = _when_fault(recipe, key, when[key])
        else:  # of another data set or network than the recipe has here
            fault = None if key != f"{section}.name" else _name_fault(section, str(named))
        if fault is not None:
            yield key, fault


_NAMED: dict[str, Callable[[str], type[BaseModel]]] = {
    "data": data.source_type,
    "model": models.options_type,
}
"""The sections whose fields depend on what they name."""


def _name_fault(section: str, name: str) -> str | None:
    try:
        _NAMED[section](name)
    except (PluginFailed, ValueError) as error:
        return str(error)
    return None


def _when_fault(recipe: Recipe, key: str, value: Any) -> str | None:
    """Why no cell of the recipe can have this value of a dotted field, or None."""
    *sections, field = key.split(".")
    place: Any = recipe
    for section in sections:
        if section not in _fields(place):
            return f"no field of recipes{nearest(section, _fields(place))}"
        place = getattr(place, section)
    known = _fields(place)
    if place is recipe and field not in known and field in Recipe.model_fields:
        return f"decides nothing that is measured; fields that do: {', '.join(known)}"
    if field not in known:
        choice = f"; known here: {', '.join(known)}" if known else ", since nothing is below that"
        return f"unknown key{nearest(field, known)}{choice}"
    if below := _fields(getattr(place, field)):
        return f"is a section; name one of its fields: {', '.join(f'{key}.{name}' for name in below)}"
    try:
        type(place).model_validate(dict(place) | {field: value})
    except ValidationError as error:
        return next((fault.text for fault in _faults(error, type(place)) if fault.key == field), None)
    return None


def _fields(place: Any) -> list[str]:
    """What may stand below a place in a recipe, and decides what is measured."""
    if not isinstance(place, BaseModel):
        return []
    nothing = {"name", *NOT_DECISIVE} - {"init_from"} if isinstance(place, Recipe) else set()
    return [name for name in type(place).model_fields if name not in nothing]


def _smoke_faults(recipe: Recipe) -> Iterator[Fault]:
    for section, field in held_by_another(recipe.smoke):
        yield Fault("smoke", f"{section} replaces all of what {field} sets a part of; write one of the two")


def _validate_options(section: str, value: Any, options_type: Any) -> tuple[Any, list[Fault]]:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None, [Fault(section, "must be a mapping with a `name`")]
    try:
        kind = options_type(value["name"])
    except (PluginFailed, ValueError) as error:
        return None, [Fault(f"{section}.name", str(error))]
    try:
        return kind.model_validate(value), []
    except ValidationError as error:
        return None, list(_faults(error, kind, prefix=f"{section}."))


def _faults(
    error: ValidationError, kind: type[BaseModel], prefix: str = "", apart_from: Sequence[str] = ()
) -> Iterator[Fault]:
    """Each fault: the dotted key, what is wrong, and the nearest known key or the choices."""
    for detail in error.errors():
        location = detail["loc"]
        if location and location[0] in apart_from:
            continue
        key = shortened_text(prefix + ".".join(str(part) for part in location), 80)
        if detail["type"] == "extra_forbidden":
            known = _fields_at(kind, location[:-1])
            text = f"unknown key{nearest(str(location[-1]), known)}; known here: {', '.join(known)}"
        elif detail["type"] == "missing":
            text = "is missing and has no default"
        elif detail["type"] == "value_error":
            text = str(detail["ctx"]["error"])
        else:
            text = f"{detail['msg']}, but it is {shortened(detail['input'])}{_remedy(detail['input'])}"
        yield Fault(key, text)


def _remedy(value: Any) -> str:
    """What to write instead of text that other versions of YAML take for something else."""
    if isinstance(value, str) and value.lower() in ("on", "off", "yes", "no", "y", "n"):
        return "; YAML 1.2 writes true and false"
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d[\d_]*(\.[\d_]*)?", value) and "_" in value:
        return f"; YAML 1.2 has no underscores in numbers: write {value.replace('_', '')}"
    return ""


def _fields_at(kind: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    for part in location:
        if isinstance(part, int):
            continue
        annotation = kind.model_fields[part].annotation
        candidates = (annotation, *get_args(annotation))
        kind = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), kind)
    return list(kind.model_fields)


# Overrides --------------------------------------------------------------------------------------


def parse_overrides(
    assignments: Iterable[str], origins: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """`key=value` texts → the grid of override mappings; `key=1,2,4` opens one axis of the grid.

    Values are YAML; a list as a value is written in brackets: `model.channels=[16,32]`, text with a comma in quotes.
    `origins`: key → the option, as typed, of what is not a --set of that key.
    Raises RecipeError, also for a key that is given two values, or once by itself and once with all of its section.
    """

    def named(key: str) -> str:
        return (origins or {}).get(key, f"--set {shortened_text(key, 80)}")

    axes: dict[str, list[Any]] = {}
    texts: dict[str, str] = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        key = key.strip()
        if not separator or not key:
            example = "must have the form key=value, e.g. train.epochs=2"
            raise RecipeError("--set", [f"{shortened(assignment)} {example}"])
        try:
            values = [parse_yaml(part) for part in _split_at_commas(text)]
        except YAMLFault as fault:
            raise RecipeError(named(key), fault.faults) from None
        if repr(axes.get(key, values)) != repr(values):  # 1 and true are equal
            twice = f"is given twice, as {shortened(texts[key])} and as {shortened(text)}; give it once"
            raise RecipeError(named(key), [f"{twice} ({_SETTING_OPTIONS} set fields too)"])
        axes[key], texts[key] = values, text
    for section, field in held_by_another(axes):
        clash = f"replaces all of what {shortened_text(field, 80)} sets a part of; give one of the two"
        raise RecipeError(named(section), [clash])
    points = math.prod(len(values) for values in axes.values())
    if points > MAX_GRID_POINTS:
        raise RecipeError("--set", [f"a grid of {points} points; at most {MAX_GRID_POINTS} are taken"])
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


_SETTING_OPTIONS = "--over, --timesteps, --batch-size and --nproc-per-cell"


_QUOTED_OR_CHARACTER = re.compile(r"""(?<![^\s,:\[{])(?:"(?:\\.|[^"\\])*"|'(?:''|[^'])*')|.""", re.DOTALL)


def _split_at_commas(text: str) -> list[str]:
    """What stands between commas, those in brackets and in quotes left as they are."""
    parts, depth = [""], 0
    for piece in _QUOTED_OR_CHARACTER.findall(text):
        depth += piece in "[{"
        depth -= piece in "]}"
        if piece == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += piece
    return parts
