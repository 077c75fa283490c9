"""How SLTT-K's random gradient relates to SLTT's: exactly, from the inner products of the steps.

SLTT-K adds the g_t of K of the T steps, drawn uniformly without replacement: a sample of a finite
population. With ḡ = g_s / T and S² = Σ_t ‖g_t − ḡ‖² / (T − 1), sampling theory (Cochran 1977,
theorem 2.2, coordinate by coordinate) gives for G_K = Σ_{t drawn} g_t

    E G_K = (K/T) g_s        E ‖G_K − (K/T) g_s‖² = K (1 − K/T) S²

so that the scaled gradient (T/K) G_K, unbiased for g_s, has the relative variance

    E ‖(T/K) G_K − g_s‖² / ‖g_s‖² = (T²/K) (1 − K/T) S² / ‖g_s‖²

It does not depend on whether the method itself scales. The cosine's expectation has no closed form:
it is the mean over all subsets, or over many drawn ones where there are too many.
"""

import math
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

MOST_SUBSETS = 20_000
"""Up to so many subsets are enumerated; of more, so many are drawn."""


@dataclass(frozen=True)
class DrawnGradient:
    """SLTT-K's gradient at one K; None where a norm that divides is 0."""

    k: int
    subsets: int
    """Subsets of K steps that the cosines are means over."""
    exact: bool
    """Whether those are all there are."""
    silent_share: float
    """Share of the subsets without any gradient (no step within the loss's window was drawn)."""
    cosine_to_sltt: float | None
    """Mean cosine(G_K, g_s) over the subsets that have a gradient."""
    cosine_to_sltt_std: float | None
    """Standard deviation of that cosine over those subsets."""
    cosine_to_bptt: float | None
    """Mean cosine(G_K, g)."""
    relative_variance: float | None
    """E ‖(T/K) G_K − g_s‖² / ‖g_s‖²."""


def relate(gram: Tensor, k: int) -> DrawnGradient:
    """SLTT-K's gradient from the Gram matrix [T + 1, T + 1] of (g_1, …, g_T, r), r the temporal part.

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
    """E ‖(T/K) G_K − g_s‖² / ‖g_s‖² from the Gram matrix [T, T] of the g_t; None if g_s is 0."""
    timesteps = len(steps)
    spatial = float(steps.sum())
    if spatial <= 0:
        return None
    if k == timesteps:
        return 0.0
    spread = max(0.0, float(steps.diagonal().sum()) - spatial / timesteps)
    return timesteps**2 / k * (1 - k / timesteps) * spread / (timesteps - 1) / spatial


def subsets(timesteps: int, k: int) -> tuple[Tensor, bool]:
    """(indicators [n, T] in float64 of subsets of K steps, whether they are all): drawn with seed 0 if not."""
    if math.comb(timesteps, k) <= MOST_SUBSETS:
        members = torch.tensor(list(combinations(range(timesteps), k)))
        exact = True
    else:
        order = torch.rand(MOST_SUBSETS, timesteps, generator=torch.Generator().manual_seed(0))
        members = order.argsort(1)[:, :k]
        exact = False
    return torch.zeros(len(members), timesteps, dtype=torch.float64).scatter_(1, members, 1.0), exact


def _cosines(products: Tensor, norms: Tensor, squared_norm: Tensor) -> Tensor | None:
    """Cosine of each subset's gradient with one of that squared norm; None if there is none."""
    if squared_norm <= 0 or len(norms) == 0:
        return None
    return (products / (norms * squared_norm.sqrt())).clamp(-1, 1)
