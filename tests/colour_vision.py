"""How well two colours are told apart: by their contrast, and for several kinds of colour vision."""

import numpy as np
from matplotlib.colors import to_rgb

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
VISIONS = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def contrast(one: str, other: str) -> float:
    """Of two colours by the Web Content Accessibility Guidelines 2.1, from 1 to 21."""
    low, high = sorted(float(_XYZ[1] @ _linear(each)) for each in (one, other))
    return (high + 0.05) / (low + 0.05)


def difference(one: str, other: str) -> float:
    """CIE 1976 ΔE*ab of two colours to those who tell them apart least."""
    return min(float(np.linalg.norm(_lab(one, vision) - _lab(other, vision))) for vision in VISIONS)


def _linear(ink: str) -> "np.ndarray":
    parts = np.array(to_rgb(ink))
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def _lab(ink: str, vision: str) -> "np.ndarray":
    shares = _XYZ @ np.clip(VISIONS[vision] @ _linear(ink), 0, 1) / _XYZ.sum(1)
    x, y, z = np.where(shares > 216 / 24389, np.cbrt(shares), (24389 / 27 * shares + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
