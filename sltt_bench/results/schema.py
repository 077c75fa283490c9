"""The format on disk, version 1: file names, columns with their units, and statuses.

`results/README.md` describes the same to a reader without this tool; a test keeps the two equal.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal

SCHEMA_VERSION = 1

RECIPE_FILE = "recipe.yaml"
PROVENANCE_FILE = "provenance.json"
CELLS_FILE = "cells.csv"
EPOCHS_FILE = "epochs.csv"
TIMELINE_FILE = "timeline.csv"
RANKS_FILE = "ranks.csv"
GRADIENTS_FILE = "gradients.csv"
DRAWS_FILE = "draws.csv"
METHOD_GRADIENTS_FILE = "method_gradients.csv"
OPERATIONS_FILE = "operations.csv"
ESTIMATES_FILE = "estimates.csv"
TUNING_FILE = "tuning.csv"
BENCH_FILE = "bench.csv"
CELLS_FOLDER = "cells"
LOGS_FOLDER = "logs"
CHECKPOINTS_FOLDER = "checkpoints"
JSON_COLUMNS = ("overrides", "setting")
FURTHER_LOGS = ("tensorboard", "wandb", "mlperf")
"""Folders of a run that --log fills, for other tools."""

Status = Literal["ok", "oom", "error", "timeout", "killed", "skipped"]
Kind = Literal["run", "trial", "estimate", "analysis", "preflight", "check"]


@dataclass(frozen=True)
class Column:
    """One column of a CSV file."""

    name: str
    type: str
    """int, float, str or bool."""
    needed: bool
    """Whether the file is none without it, and no row leaves it empty; any other column may be missing."""
    meaning: str
    """One sentence with the unit; an empty cell always means "not measured", never 0."""


def _columns(table: str) -> tuple[Column, ...]:
    """The columns in a table of name, type (with ! where needed) and meaning, which indented lines go on with."""
    rows = (row.split(maxsplit=2) for row in re.split(r"\n(?! )", table.strip()))
    return tuple(
        Column(name, marked.removesuffix("!"), marked.endswith("!"), " ".join(meaning.split()))
        for name, marked, meaning in rows
    )


CELL_KEY = _columns("""
schema_version  int!  version of this format
cell_id         str!  hash of the resolved cell: equal ids are repetitions of one experiment
attempt         int!  1 for the first try; a resumed run counts on, and a later attempt replaces the same
                      epoch of an earlier one
recipe          str!  name of the recipe
recipe_hash     str!  hash of all of the resolved recipe that is not method, backend or seed
method          str!  training method
backend         str!  what computes the neurons and the gradients
k               int   K of SLTT-K; empty for other methods
timesteps       int!  T, time steps of a sequence
batch_size      int!  samples of a training iteration
precision       str!  fp32 (IEEE), tf32 (on a GPU), fp16 (with loss scaling) or bf16 (mixed precision)
device          str!  cpu or cuda:N
seed            int!  seed of weights, data order, augmentation and dropout
""")
"""The columns with which every row of cells.csv and epochs.csv starts."""

CIRCUMSTANCES = _columns("""
kind         str!   run (measured), trial (of `tune`, judged on validation data), estimate or analysis
device_name  str    name of the GPU, or of the CPU with the number of threads
overrides    str    the --set overrides of the cell, as JSON
synthetic    bool!  whether the data were random, so that accuracy means nothing
smoke        bool!  whether this was a smoke run on a tiny subset
""")
"""What tells rows of equal recipe, method and seed apart. In epochs.csv empty in files of earlier versions."""

EPOCH_COLUMNS = (
    CELL_KEY
    + _columns("""
epoch                     int!   1 for the first
cold                      bool!  true for the first epoch of a process, which includes warm-up, and for an
                                 epoch in which CUDA graphs were recorded or let go
train_loss                float  mean of L over the training samples
train_top1                float  share of training samples predicted right, 0 to 1; empty with synthetic data
validation_loss           float  mean of L over the validation samples; empty where none are held back, and
                                 with synthetic data
validation_top1           float  share of validation samples predicted right, 0 to 1; empty as validation_loss
validation_top5           float  share of validation samples with the label among the five best, 0 to 1; empty
                                 as validation_loss
test_loss                 float  mean of L over the test samples; empty with synthetic data and in trials
test_top1                 float  share of test samples predicted right, 0 to 1; empty with synthetic data and
                                 in trials
test_top5                 float  share of test samples with the label among the five best, 0 to 1; empty with
                                 synthetic data
lr                        float  learning rate of the epoch
train_s                   float  seconds of training, with the wait for data; the device is synchronised at
                                 both ends. Empty, like all that is taken over this time, if the process stood
                                 still meanwhile (it was stopped, or the machine was suspended)
eval_s                    float  seconds of evaluation; the device is synchronised at both ends. Empty like train_s
data_wait_s               float  seconds of train_s in which the process waited for the next batch; a GPU may
                                 have gone on with earlier work meanwhile
samples                   int    training samples of the epoch
samples_per_s             float  samples / train_s
backward_passes           float  backward passes of a training iteration, mean over the epoch
allocated_at_reset_bytes  int    CUDA allocator: bytes given out when its peaks were reset, before the
                                 epoch's training: weights, optimiser state, the last iteration's gradients,
                                 and workspaces of libraries, which are no part of live tensors
peak_allocated_bytes      int    CUDA allocator: peak of memory allocated to tensors while training
peak_reserved_bytes       int    CUDA allocator: peak of memory reserved from the device while training, with
                                 what an earlier evaluation left in the allocator's cache
peak_nvml_bytes           int    NVML: peak of memory used, by sampling, while training
peak_nvml_scope           str    whose memory that is: process or device
peak_rss_bytes            int    operating system: peak resident set of the worker process (VmHWM) while
                                 training, without that of the processes that load data (data.workers)
peak_tensor_bytes         int    peak of live tensor bytes in one instrumented training iteration of the cell,
                                 counted exactly over storages
energy_j                  float  joules of the whole device while training, from NVML's energy counter
gpu_util_mean             float  mean utilisation of the device while training, 0 to 1, by sampling
cpu_util_mean             float  share of processor time (of the processors that the cell may use) that was
                                 busy while training, 0 to 1, with any program
cpu_others_mean           float  share of the same processor time used by programs outside this command, 0 to
                                 1, with what a virtual machine's host took away; empty, like cpu_util_mean,
                                 for less than 0.2 s and in files of earlier versions
firing_rate               float  spikes per neuron and time step over the evaluation, mean over all neurons;
                                 empty with synthetic data
finished_utc              str    when the epoch ended, ISO 8601
neighbours                int    largest number of cells of the same command (--jobs, --devices) that ran
                                 beside this one until the epoch ended; empty where only one could run, and
                                 in files of earlier versions
ranks                     int    processes that shared every batch (--nproc-per-cell): times and memory are
                                 the largest of them, energy is the sum, and ranks.csv has each; empty where
                                 there was one, and in files of earlier versions
""")
    + tuple(replace(column, needed=False) for column in CIRCUMSTANCES)
)

INFERENCE_COLUMNS = _columns("""
footprint_bytes           int    NeuroBench's footprint: bytes of parameters and buffers
connection_sparsity       float  NeuroBench: share of synaptic weights that are exactly 0
activation_sparsity       float  NeuroBench: share of spiking outputs that are 0, over T and the test set
dense_synops              float  NeuroBench: synaptic operations of one test sample over T, zeros included
effective_macs            float  NeuroBench: multiply-accumulates of one test sample, zeros left out
effective_acs             float  NeuroBench: accumulates of one test sample, in layers whose whole input in a
                                 step of a batch is spikes
estimated_energy_45nm_pj  float  4.6 pJ × effective_macs + 0.9 pJ × effective_acs (45 nm, 32 bits): an
                                 estimate, never compared with energy_j
""")
"""What the trained network costs at inference, counted over the test set; empty with synthetic data."""

CELL_COLUMNS = (
    CELL_KEY
    + CIRCUMSTANCES
    + _columns("""
validation                   str    name of the split held back from training (its share, its seed); empty:
                                    none
trials                       int    number of trials from which `tune` chose the cell's settings, the same
                                    for each method; empty: the settings are the recipe's, or those of
                                    overrides
status                       str!   ok, oom, error, timeout, killed or skipped
reason                       str    one line that explains any status but ok
started_utc                  str    when the cell's process started, ISO 8601
wall_s                       float  seconds from the start of the cell's process to its end
neighbours                   int    largest number of cells of the same command that ran beside this one, in
                                    any of its epochs: above 0, its times are never compared with times
                                    measured alone; empty as in epochs.csv, and for a cell that never started
ranks                        int    processes that were to share every batch in this attempt; empty as in
                                    epochs.csv
epochs_planned               int    epochs that the recipe asks for
epochs_done                  int    epochs with a row in epochs.csv, those of earlier attempts included
parameters                   int    trainable parameters of the network
estimated_peak_tensor_bytes  int    peak of live tensor bytes as estimated before the run; empty without an
                                    estimate
best_epoch                   int    epoch with the highest validation_top1; without a validation split the
                                    highest test_top1: chosen by looking at test data
best_test_top1               float  test_top1 of best_epoch
last_validation_top1         float  validation_top1 of the last epoch
last_test_top1               float  test_top1 of the last epoch: no choice made on test data
""")
    + INFERENCE_COLUMNS
    + _columns("""
doubts     str  why the figures may mean nothing: silent, untrained, at chance; empty: no sign of it
exit_code  int  exit code of the cell's process; negative: the signal that ended it
""")
)

RANK_FIGURES = (
    "train_s", "eval_s", "data_wait_s", "allocated_at_reset_bytes", "peak_allocated_bytes", "peak_reserved_bytes",
    "peak_nvml_bytes", "peak_nvml_scope", "peak_rss_bytes", "energy_j", "gpu_util_mean", "cpu_util_mean",
    "cpu_others_mean",
)  # fmt: skip
"""The columns of epochs.csv that each process of a cell has figures of its own for."""

RANK_COLUMNS = (
    CELL_KEY
    + _columns("""
epoch  int!  1 for the first
rank   int!  the process among those that share the cell's batches, 0 for the first
""")
    + tuple(column for column in EPOCH_COLUMNS if column.name in RANK_FIGURES)
)

TIMELINE_COLUMNS = _columns("""
cell_id          str!   the cell
attempt          int!   the attempt
elapsed_s        float  seconds since the profiler of the cell started
phase            str    what ran: warmup, train, eval
epoch            int    the epoch, empty outside one
nvml_used_bytes  int    NVML memory used
nvml_scope       str    process or device
gpu_util         float  utilisation of the device, 0 to 1
power_w          float  power draw in watts
sm_clock_mhz     int    clock of the streaming multiprocessors
temperature_c    int    temperature of the GPU
""")

ANALYSIS_KEY = CELL_KEY + _columns("""
epoch         int!    epochs trained with `method` before this was computed; 0: initial weights
tau           float!  membrane time constant τ in time steps
surrogate     str!    stand-in for the derivative of the spike
reset         str!    soft or hard
detach_reset  bool    whether BPTT's gradient ignores the reset
loss_window   int     only the last so many steps count in the loss; empty: all T
batches       int     batches over which means and standard deviations were taken
""")
"""The columns with which the rows of an analysis start; gradients are computed in fp32, whatever `precision`."""

GRADIENT_COLUMNS = ANALYSIS_KEY + _columns("""
level                str!   network, layer (the module that owns parameters) or parameter (one tensor)
name                 str    name of the layer or parameter; empty for the network
depth                int!   place in the network's order within its level, 1 for the first
elements             int    numbers in this part's gradient
zero_batches         int    batches whose gradient of this part was exactly 0: they are in no mean
cosine_mean          float  cosine(g, g_s), g the full gradient (BPTT), g_s its spatial part (SLTT)
cosine_std           float  standard deviation over batches
spatial_share_mean   float  ‖g_s‖ / ‖g‖
spatial_share_std    float  standard deviation over batches
temporal_share_mean  float  ‖g − g_s‖ / ‖g‖, the temporal part
temporal_share_std   float  standard deviation over batches
full_norm_mean       float  ‖g‖
spatial_norm_mean    float  ‖g_s‖
""")

DRAW_COLUMNS = ANALYSIS_KEY + _columns("""
drawn                   int!   K: G_K is the sum of the gradients of K of the T steps, drawn without
                               replacement
subsets                 int    subsets of steps over which the cosines are means
exact                   bool   whether those are all subsets (else a random sample of them)
silent_share            float  share of subsets without any gradient: no step of the loss's window drawn
cosine_to_sltt_mean     float  cosine(G_K, g_s) of the whole network, mean over subsets and batches
cosine_to_sltt_std      float  its standard deviation over subsets, mean over batches
cosine_to_bptt_mean     float  cosine(G_K, g), mean over subsets and batches
relative_variance_mean  float  E ‖(T/K) G_K − g_s‖² / ‖g_s‖², closed form, mean over batches
relative_variance_std   float  standard deviation over batches
""")

METHOD_GRADIENT_COLUMNS = ANALYSIS_KEY + _columns("""
compared_method  str!   method whose gradient g_m is compared with BPTT's gradient g
level            str!   network, layer (the module that owns parameters) or parameter (one tensor)
name             str    name of the layer or parameter; empty for the network
depth            int    place in the network's order within its level, 1 for the first
elements         int    numbers in this part's gradient
zero_batches     int    batches in which g or g_m of this part was exactly 0: no cosine
cosine_mean      float  cosine(g, g_m), mean over batches
cosine_std       float  standard deviation over batches
norm_ratio_mean  float  ‖g_m‖ / ‖g‖, mean over batches
norm_ratio_std   float  standard deviation over batches
""")

OPERATION_COLUMNS = CELL_KEY + _columns("""
counted_method            str!  method whose training iteration (one batch, all T steps) was counted
drawn                     int   K of that method; empty if it is not SLTT-K
samples                   int!  samples of the batch
forward_multiplications   int   multiplications of the forward pass
spatial_multiplications   int   multiplications of the backward pass in space: all of SLTT's
temporal_multiplications  int   what the backward pass multiplies beyond SLTT's; in BPTT all of it is
                                temporal, in other rules it includes traces and what is computed again
                                (bptt-ckptN)
""")

ESTIMATE_COLUMNS = CELL_KEY + _columns("""
run_cell_id                        str!   cell_id of the same cell when it is run, with the recipe's first
                                          seed, and measured
parameters                         int    trainable parameters of the network
peak_tensor_bytes                  int!   peak of live tensor bytes of one training iteration, on fake tensors
parameter_bytes                    int    of that peak: parameters and buffers
optimizer_state_bytes              int    of that peak: what the optimiser carries, and what a method carries to the next iteration
input_bytes                        int    of that peak: the batch
gradient_bytes                     int    of that peak: what becomes a parameter's gradient
neuron_state_bytes                 int    of that peak: what stateful layers carry to the next time step
activation_bytes                   int    of that peak: what forward passes keep alive for the next backward
                                          pass
temporary_bytes                    int    of that peak: everything else
forward_spatial_multiplications    int    forward pass of one iteration, without the recurrence
forward_temporal_multiplications   int    forward pass of one iteration: what the past costs
backward_spatial_multiplications   int    backward pass of one iteration, through space, with what is computed
                                          again there (bptt-ckptN, native.recompute)
backward_temporal_multiplications  int    backward pass of one iteration, through time, with what layers that carry
                                          state compute again
forward_multiply_adds              int    of the forward multiplications: convolutions, linear layers and
                                          matrix products
backward_multiply_adds             int    of the backward multiplications: the same
iterations_per_epoch               float  training iterations of an epoch; a last, smaller batch counts by its
                                          share of samples
epoch_multiplications              int    all multiplications of an epoch's training
ranks                              int    processes that share every batch (--nproc-per-cell): memory and
                                          multiplications are those of the one with the largest share; empty
                                          in files of earlier versions, where it was one
exchanged_bytes                    int    bytes that each process sends (and receives) by a ring in an
                                          iteration: of gradients, of the statistics of synchronised batch
                                          norm, and of what a method asks of the whole batch
gpu                                str    GPU of the lower bound on time, by its data sheet
epoch_lower_bound_s                float  seconds that this GPU needs at least for an epoch's training
memory_bytes                       int    memory into which batch and T were fitted, after the margin was
                                          taken off
largest_batch_size                 int    largest batch at this T that fits into memory_bytes and leaves a last
                                          batch of the epoch that a run takes; 0: none does
largest_timesteps                  int    largest T at this batch that fits into memory_bytes; 0: none does;
                                          empty: no limit was met
""")

TUNING_COLUMNS = CELL_KEY + _columns("""
protocol         str!   hash of grid, seeds, epochs and validation split, which all methods of a study share
setting          str!   the values of the searched fields, as JSON
trial            int!   number of the method's trial, 1 for the first
trials           int!   the budget: trials of each method
status           str!   how the trial ended, as in cells.csv
validation_top1  float  share of validation samples predicted right after the last epoch, 0 to 1; empty: the
                        loss diverged, or memory ran out
setting_top1     float  mean of validation_top1 over the seeds of this setting, by which the choice is made;
                        empty if one of them is empty
chosen           bool!  whether the method is trained with this setting: the one with the largest
                        setting_top1; of equal ones the nearest to the middle of the grid, then the first
as_recipe        bool   whether the setting is the recipe's own, which is trained without tuning
at_edge          str    fields of the chosen setting with the first or last value of the grid: a better one
                        may lie beyond
reason           str    one line that explains any status but ok
""")

BENCH_COLUMNS = _columns("""
schema_version  int!    version of this format
row             str!    name of the row of the benchmark's table
quantity        str!    peak_tensor_bytes, wall_s or process_s (CPU time of all threads) of one training
                        iteration
subject         str!    what is measured
baseline        str!    against what: the best of the baselines that were measured in the same run
problem         str!    network, image, batch, T and precision
device_name     str!    name of the GPU, or of the CPU with the number of threads
subject_value   float!  bytes, or median seconds of the alternated iterations
baseline_value  float!  the same of the baseline
ratio           float!  subject over baseline; for times the median of the rounds' ratios
ratio_low       float   lower quartile of the rounds' ratios; empty for bytes
ratio_high      float   upper quartile of the rounds' ratios; empty for bytes
rounds          int     rounds of alternated iterations; empty for bytes
target          float   the largest ratio that is wanted; empty: only reported
met             bool    whether ratio ≤ target; empty without a target
remark          str     baselines that were left out, and why
finished_utc    str!    when the row was measured, ISO 8601
""")

_ATTEMPT = ("cell_id", "attempt")
_POINT = (*_ATTEMPT, "epoch", "tau", "surrogate", "reset", "detach_reset", "loss_window")
ROW_KEYS: dict[str, tuple[str, ...]] = {
    CELLS_FILE: _ATTEMPT,
    EPOCHS_FILE: (*_ATTEMPT, "epoch"),
    RANKS_FILE: (*_ATTEMPT, "epoch", "rank"),
    GRADIENTS_FILE: (*_POINT, "level", "name"),
    DRAWS_FILE: (*_POINT, "drawn"),
    METHOD_GRADIENTS_FILE: (*_POINT, "compared_method", "level", "name"),
    OPERATIONS_FILE: (*_ATTEMPT, "counted_method", "drawn"),
    ESTIMATES_FILE: _ATTEMPT,
}
"""The columns that no two rows of a run's file share. (A trial is judged, and a benchmark's row measured, as often as
somebody asks.)"""

FILES: dict[str, tuple[Column, ...]] = {
    CELLS_FILE: CELL_COLUMNS,
    EPOCHS_FILE: EPOCH_COLUMNS,
    TIMELINE_FILE: TIMELINE_COLUMNS,
    RANKS_FILE: RANK_COLUMNS,
    GRADIENTS_FILE: GRADIENT_COLUMNS,
    DRAWS_FILE: DRAW_COLUMNS,
    METHOD_GRADIENTS_FILE: METHOD_GRADIENT_COLUMNS,
    OPERATIONS_FILE: OPERATION_COLUMNS,
    ESTIMATES_FILE: ESTIMATE_COLUMNS,
    TUNING_FILE: TUNING_COLUMNS,
    BENCH_FILE: BENCH_COLUMNS,
}
