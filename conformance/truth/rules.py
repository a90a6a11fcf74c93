"""The rules of the scale that are in use."""

from collections.abc import Callable

SCALES: dict[str, Callable[[float, float], float]] = {
    "alpha / rank": lambda alpha, rank: alpha / rank,
    "alpha / √rank": lambda alpha, rank: alpha / rank**0.5,
    "alpha": lambda alpha, rank: alpha,
    "1 / rank": lambda alpha, rank: 1.0 / rank,
    "always 1": lambda alpha, rank: 1.0,
}
