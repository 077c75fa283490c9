"""Relates SLTT-K's random gradient to SLTT's, exactly, from the inner products of the steps' gradients.

SLTT-K adds the g_t of K of the T steps, drawn uniformly without replacement: a sample of a finite
population. With ḡ = g_s / T and S² = Σ_t ‖g_t − ḡ‖² / (T − 1), sampling theory (Cochran 1977,
theorem 2.2, coordinate by coordinate) gives for G_K = Σ_{t drawn} g_t

    E G_K = (K/T) g_s        E ‖G_K − (K/T) g_s‖² = K (1 − K/T) S²

so that the scaled gradient (T/K) G_K, unbiased for g_s, has the relative variance

    E ‖(T/K) G_K − g_s‖² / ‖g_s‖² = (T²/K) (1 − K/T) S² / ‖g_s‖²

It does not depend on whether the method itself scales. The cosine's expectation has no closed form; it is
computed as the mean over all subsets, or over a random sample if there are too many.
"""

import math
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

MOST_SUBSETS = 20_000
"""Up to this number, all subsets are enumerated; of more, this many are drawn."""


@dataclass(frozen=True)
class DrawnGradient:
    """SLTT-K's gradient at one K; a figure is None if a norm that it is divided by is 0."""

    k: int
    subsets: int
    """Number of subsets of K steps over which the cosines are averaged."""
    exact: bool
    """Whether these are all subsets."""
    silent_share: float
    """Share of the subsets without a gradient (no step within the loss's window was drawn)."""
    cosine_to_sltt: float | None
    """Mean cosine(G_K, g_s) over the subsets that have a gradient."""
    cosine_to_sltt_std: float | None
    """Standard deviation of that cosine over those subsets."""
    cosine_to_bptt: float | None
    """Mean cosine(G_K, g)."""
    relative_variance: float | None
    """E ‖(T/K) G_K − g_s‖² / ‖g_s‖²."""


def relate(gram: Tensor, k: int) -> DrawnGradient:
    """Returns SLTT-K's figures from the Gram matrix [T + 1, T + 1] of (g_1, …, g_T, r); r: temporal part.

    Raises ValueError unless 1 ≤ k ≤ T.
    """
    timesteps = len(gram) - 1
    if not 1 <= k <= timesteps:
        raise ValueError(f"K must be from 1 to T = {timesteps}, but it is {k}")
    steps = gram[:-1, :-1]
    chosen, exact = subsets(timesteps, k)
    norms = ((chosen @ steps) * chosen).sum(1).clamp(min=0).sqrt()
    heard = norms > 0
    to_sltt = _cosines(chosen[heard] @ steps.sum(1), norms[heard], steps.sum())
    to_bptt = _cosines(chosen[heard] @ gram[:-1].sum(1), norms[heard], gram.sum())
    return DrawnGradient(
        k=k,
        subsets=len(chosen),
        exact=exact,
        silent_share=float((~heard).double().mean()),
        cosine_to_sltt=None if to_sltt is None else float(to_sltt.mean()),
        cosine_to_sltt_std=None if to_sltt is None else float(to_sltt.std(correction=0)),
        cosine_to_bptt=None if to_bptt is None else float(to_bptt.mean()),
        relative_variance=relative_variance(steps, k),
    )


def relative_variance(steps: Tensor, k: int) -> float | None:
    """Returns E ‖(T/K) G_K − g_s‖² / ‖g_s‖² from the Gram matrix [T, T] of the g_t; None if g_s is 0."""
    timesteps = len(steps)
    spatial = float(steps.sum())
    if spatial <= 0:
        return None
    if k == timesteps:
        return 0.0
    spread = max(0.0, float(steps.diagonal().sum()) - spatial / timesteps)
    return timesteps**2 / k * (1 - k / timesteps) * spread / (timesteps - 1) / spatial


def subsets(timesteps: int, k: int) -> tuple[Tensor, bool]:
    """Returns (indicators [n, T] in float64 of subsets of K steps, whether these are all subsets).

    Drawn with seed 0 if there are too many.
    """
    if math.comb(timesteps, k) <= MOST_SUBSETS:
        members = torch.tensor(list(combinations(range(timesteps), k)))
        exact = True
    else:
        order = torch.rand(MOST_SUBSETS, timesteps, generator=torch.Generator().manual_seed(0))
        members = order.argsort(1)[:, :k]
        exact = False
    return torch.zeros(len(members), timesteps, dtype=torch.float64).scatter_(1, members, 1.0), exact


def _cosines(products: Tensor, norms: Tensor, squared_norm: Tensor) -> Tensor | None:
    """Returns each subset's cosine with a gradient of `squared_norm`; None if that is 0 or `norms` empty."""
    if squared_norm <= 0 or len(norms) == 0:
        return None
    return (products / (norms * squared_norm.sqrt())).clamp(-1, 1)
