"""Steps of optimizers written down from their papers, in numpy and double precision; nothing here looks at a package's code."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class AdamW:
    """Loshchilov & Hutter 2019, algorithm 2 with decoupled decay."""

    def __init__(self, weights: Sequence[Array], decay: float = 0.01, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        self.weights, self.decay, self.betas, self.eps, self.count = [w.copy() for w in weights], decay, betas, eps, 0
        self.mean = [np.zeros_like(w) for w in weights]
        self.square = [np.zeros_like(w) for w in weights]

    def step(self, gradients: Sequence[Array], rate: float) -> None:
        """One step of all weights."""
        self.count += 1
        first, second = self.betas
        for number, gradient in enumerate(gradients):
            self.mean[number] = first * self.mean[number] + (1 - first) * gradient
            self.square[number] = second * self.square[number] + (1 - second) * gradient**2
            mean = self.mean[number] / (1 - first**self.count)
            square = self.square[number] / (1 - second**self.count)
            weight = self.weights[number]
            self.weights[number] = weight - rate * (mean / (np.sqrt(square) + self.eps) + self.decay * weight)


class Lion:
    """Chen et al. 2023, algorithm 2."""

    def __init__(self, weights: Sequence[Array], decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        self.weights, self.decay, self.betas = [w.copy() for w in weights], decay, betas
        self.mean = [np.zeros_like(w) for w in weights]

    def step(self, gradients: Sequence[Array], rate: float) -> None:
        """One step of all weights."""
        first, second = self.betas
        for number, gradient in enumerate(gradients):
            direction = np.sign(first * self.mean[number] + (1 - first) * gradient)
            self.weights[number] = self.weights[number] * (1 - rate * self.decay) - rate * direction
            self.mean[number] = second * self.mean[number] + (1 - second) * gradient


class Adafactor:
    """Shazeer & Stern 2018, algorithm 4 for matrices, with the rate given from outside."""

    def __init__(self, weights: Sequence[Array], power: float = -0.8, floor: float = 1e-30, threshold: float = 1.0) -> None:
        self.weights, self.power, self.floor, self.threshold, self.count = [w.copy() for w in weights], power, floor, threshold, 0
        self.rows = [np.zeros(w.shape[0]) for w in weights]
        self.columns = [np.zeros(w.shape[1]) for w in weights]

    def step(self, gradients: Sequence[Array], rate: float) -> None:
        """One step of all weights."""
        self.count += 1
        keep = 1.0 - self.count**self.power
        for number, gradient in enumerate(gradients):
            square = gradient**2 + self.floor
            self.rows[number] = keep * self.rows[number] + (1 - keep) * square.mean(axis=1)
            self.columns[number] = keep * self.columns[number] + (1 - keep) * square.mean(axis=0)
            factored = np.outer(self.rows[number], self.columns[number]) / self.rows[number].mean()
            update = gradient / np.sqrt(factored)
            update /= max(1.0, np.sqrt((update**2).mean()) / self.threshold)
            self.weights[number] = self.weights[number] - rate * update


class Prodigy:
    """Mishchenko & Defazio 2023, algorithm 4 (Adam), whose second moments keep the weight sqrt(beta2) in the sums."""

    def __init__(self, weights: Sequence[Array], betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, first: float = 1e-6) -> None:
        self.weights, self.betas, self.eps, self.first, self.size = [w.copy() for w in weights], betas, eps, first, first
        self.start = [w.copy() for w in weights]
        self.mean = [np.zeros_like(w) for w in weights]
        self.square = [np.zeros_like(w) for w in weights]
        self.sums = [np.zeros_like(w) for w in weights]
        self.numerator, self.largest = 0.0, first

    def step(self, gradients: Sequence[Array], rate: float) -> None:
        """One step of all weights; `size` is the estimate of the distance to the solution."""
        beta1, beta2 = self.betas
        keep, size = np.sqrt(beta2), self.size
        self.numerator *= keep
        for number, gradient in enumerate(gradients):
            weight = (size / self.first) * size * rate
            self.numerator += weight * float((gradient * (self.start[number] - self.weights[number])).sum())
            self.mean[number] = beta1 * self.mean[number] + size * (1 - beta1) * gradient
            self.square[number] = beta2 * self.square[number] + size**2 * (1 - beta2) * gradient**2
            self.sums[number] = keep * self.sums[number] + weight * gradient
        found = self.numerator / sum(float(np.abs(total).sum()) for total in self.sums)
        self.size = max(size, found) if size == self.first else size
        self.largest = max(self.largest, found)
        self.size = self.largest
        for number, weight in enumerate(self.weights):
            update = self.mean[number] / (np.sqrt(self.square[number]) + size * self.eps)
            self.weights[number] = weight - size * rate * update
