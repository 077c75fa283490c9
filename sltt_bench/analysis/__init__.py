"""Splits BPTT's gradient into the part that flows through space and the part that flows through time.

`gradients` splits one batch's gradient, `draws` relates SLTT-K's random gradient to SLTT's, and
`operations` counts multiplications; none of the three knows about files. `plan` turns a grid of
settings into cells; `watch` observes the training in the process of such a cell.
"""
