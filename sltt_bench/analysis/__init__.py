"""The gradient of BPTT taken apart: how much of it travels through space, how much through time.

`gradients` takes one batch's gradient apart, `draws` says how SLTT-K's random gradient relates to
SLTT's, `operations` counts multiplications; the three know nothing of files. `plan` turns a grid of
settings into cells, `watch` is what looks on in the process of such a cell.
"""
