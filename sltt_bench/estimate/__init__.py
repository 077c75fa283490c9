"""Memory and compute of a training run before the first GPU hour: one iteration on fake tensors.

    operations    multiplications by dispatch: layer, step, forward and backward
    remembered    fake tensors made quickly
    trace         one iteration of a cell's real network at its real size
    estimates     spatial and temporal work, an epoch, a lower bound on time
    search        the largest batch and T that fit
    gpus          data sheets and the roofline
    saved         on disk, as each cell is done
    table, shown  on the terminal
    command       the work of `sltt-bench estimate`
    preflight     before a run: does every cell fit?

`docs/estimate.md` defines every quantity.
"""
