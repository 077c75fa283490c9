"""Estimates memory and compute of a training run in advance, from one iteration on fake tensors.

    plan        the cells of `sltt-bench estimate`
    estimates   spatial and temporal work, an epoch, a lower bound on time
    search      the largest batch and T that fit
    gpus        data sheets and the roofline

`measure` traces the iteration; the kinds of cell in `kinds.estimates` make the rows.
`docs/estimate.md` defines every quantity.
"""
