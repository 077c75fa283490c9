"""Memory and compute of a training run before the first GPU hour: one iteration on fake tensors.

    plan        the cells of `sltt-bench estimate`
    estimates   spatial and temporal work, an epoch, a lower bound on time
    search      the largest batch and T that fit
    gpus        data sheets and the roofline

The iteration itself is traced by `measure`, rows are made by the kinds of cell in `kinds.estimates`.
`docs/estimate.md` defines every quantity.
"""
