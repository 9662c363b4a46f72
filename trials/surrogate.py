"""A Gaussian process over knobs, for samplers that need a guess of a trial with its uncertainty.

The covariance of two points is `a exp(-sum_d w_d distance_d)`, plus a linear part in features that are known of a
point, such as its exact log cost (Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, sections
4.2 and 2.7). A distance is 0 or 1 for a choice, so that it is an exponential Hamming kernel over choices: small `w`
make it nearly additive, large ones keep only close neighbours. For a number it is the squared difference.

Values are modelled on the scale `log(value - offset)` (`ShiftedLog`), where the gap between good values is wide and
that between bad ones narrow, so that bad ones do not rule the fit. The offset is the one with the largest likelihood:
far below all values the scale is linear.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.linalg.lapack import dpotri
from scipy.optimize import minimize
from scipy.special import ndtr
from threadpoolctl import ThreadpoolController

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_NUMBER_SCALE = 6.0  # two random numbers of [0, 1] are 1/6 apart, squared; choices are about 1 apart
_MAX_FIT = 100  # points that hyper-parameters are fitted on; predictions use all
_MAX_ITERATIONS = 12
_NOISE = (1e-6, 1.0)  # variance of the noise, as a share of the variance of the values
_SHIFTS = (0.03, 0.1, 0.3, 1.0, 3.0, 30.0)  # offsets tried, in units of the range of the better half
_FENCE_SHIFT, _FENCE = 0.3, 2.0  # `far_worse`: inter-quartile ranges beyond the third quartile
_NUM_FITS = 2  # of the hyper-parameters; the second where they say that another scale is more likely


@lru_cache(maxsize=1)
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def one_thread() -> Iterator[None]:
    """Have linear algebra run in this thread alone.

    Matrices of some hundred rows gain nothing from further threads, which wait by spinning: where other work has the
    cores, a proposal took up to eight times the CPU time.
    """
    with _libraries().limit(limits=1, user_api="blas"):
        yield


@dataclass(frozen=True)
class Points:
    """Points of a space as arrays.

    Attributes:
        choices: `n x c`, indices of unordered choices.
        numbers: `n x m`, numbers scaled to [0, 1].
        known: `n x k`, features with a linear effect, of any scale.
    """

    choices: npt.NDArray[np.int64]
    numbers: Floats
    known: Floats

    def __len__(self) -> int:
        return len(self.choices)

    def take(self, rows: npt.NDArray[np.int64]) -> Points:
        """Some of the points."""
        return Points(self.choices[rows], self.numbers[rows], self.known[rows])


@dataclass(frozen=True)
class ShiftedLog:
    """The scale `log(value - offset)`."""

    offset: float

    def to_scale(self, values: Floats) -> Floats:
        """Values on the scale; those at the offset or below become minus infinity."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(np.maximum(values - self.offset, 0.0)))

    def from_scale(self, scaled: Floats) -> Floats:
        """The inverse of `to_scale`."""
        return np.asarray(self.offset + np.exp(scaled))

    def expected_shortfall(self, thresholds: Floats, mean: Floats, std: Floats) -> Floats:
        """`E[max(threshold - value, 0)]` of values that are normal on this scale: the price of a put option.

        Args:
            thresholds: `k`.
            mean: `n`, on the scale.
            std: `n`, on the scale; 0 means that the value is known.

        Returns:
            `n x k`.
        """
        mean, std = mean[:, None], np.maximum(std, 1e-12)[:, None]
        above = np.maximum(thresholds - self.offset, 0.0)[None, :]
        with np.errstate(divide="ignore"):
            distance = (np.log(above) - mean) / std
        return np.asarray(np.maximum(above * ndtr(distance) - np.exp(mean + std**2 / 2) * ndtr(distance - std), 0.0))


@dataclass(frozen=True)
class _Hyper:
    amplitude: float
    linear: float
    noise: float
    weights: Floats  # of all features, choices first


class Surrogate:
    """A Gaussian process of positive-skewed values over points, fitted by marginal likelihood.

    Args:
        points: Where values are known; two or more.
        values: `n`, less is better, finite.
        rng: Draws the points that hyper-parameters are fitted on, where there are many.
    """

    def __init__(self, points: Points, values: Floats, rng: np.random.Generator) -> None:
        rows = np.arange(len(values))
        if len(rows) > _MAX_FIT:
            rows = np.sort(rng.choice(rows, size=_MAX_FIT, replace=False))
        fitted = points.take(rows)
        distances = _distances(fitted)
        self._known_mean = points.known.mean(axis=0)
        self._known_std = np.maximum(points.known.std(axis=0), 1e-9)
        known = self._known(fitted)
        scales = [_shifted_log(values, shift) for shift in _SHIFTS]
        hyper, fitted_scale = _start(points), None
        for _ in range(_NUM_FITS):
            self.scale = _most_likely(scales, values, rows, _covariance(distances, known, hyper))
            if self.scale == fitted_scale:
                break
            fitted_scale = self.scale
            hyper = _fit(distances, known, self._standardized(values)[rows], hyper)
        self._hyper = hyper
        self._condition(points, self._standardized(values))

    def _known(self, points: Points) -> Floats:
        """Features of the linear part: a constant, each known feature, and half its square."""
        scaled = (points.known - self._known_mean) / self._known_std
        return np.hstack([scaled, 0.5 * (scaled**2 - 1.0)])

    def _standardized(self, values: Floats) -> Floats:
        scaled = self.scale.to_scale(values)
        self._mean, self._std = float(scaled.mean()), max(float(scaled.std()), 1e-9)
        return np.asarray((scaled - self._mean) / self._std)

    def _condition(self, points: Points, targets: Floats) -> None:
        covariance = self._cross(points, points)
        covariance[np.diag_indices_from(covariance)] += self._hyper.noise
        self._factor = cholesky(covariance, lower=True, overwrite_a=True, check_finite=False)
        self._solved = cho_solve((self._factor, True), targets, check_finite=False)
        self._points, self._targets = points, targets

    def _cross(self, left: Points, right: Points) -> Floats:
        # In place: the matrices are large, and this is where a proposal spends its time.
        total = _weighted_distance(left, right, self._hyper.weights)
        np.exp(np.negative(total, out=total), out=total)
        total *= self._hyper.amplitude
        total += 1.0 + self._hyper.linear * (self._known(left) @ self._known(right).T)
        return total

    def predict(self, points: Points) -> tuple[Floats, Floats]:
        """Mean and standard deviation of a new trial at each point, its noise included, on `scale`."""
        cross = self._cross(points, self._points)
        mean = cross @ self._solved
        reduced = solve_triangular(self._factor, cross.T, lower=True, overwrite_b=True, check_finite=False)
        known = self._known(points)
        prior = self._hyper.amplitude + 1.0 + self._hyper.linear * (known**2).sum(axis=1)
        variance = np.maximum(prior - (reduced**2).sum(axis=0), 1e-12) + self._hyper.noise
        return self._mean + self._std * mean, self._std * np.sqrt(variance)

    def mean(self, points: Points) -> Floats:
        """The mean alone, on `scale`; the standard deviation takes most of the time of `predict`."""
        return np.asarray(self._mean + self._std * (self._cross(points, self._points) @ self._solved))

    def probability_below(self, threshold: float, points: Points) -> Floats:
        """How probable it is that a new trial at each point comes out at the threshold or below: `n`."""
        mean, std = self.predict(points)
        return np.asarray(ndtr((self.scale.to_scale(np.array([threshold])) - mean) / np.maximum(std, 1e-12)))

    def believe(self, points: Points) -> Floats:
        """Count points whose trials still run as if they had come out at the mean ("kriging believer").

        Returns:
            The believed values.
        """
        mean = self.mean(points)
        joined = Points(
            np.vstack([self._points.choices, points.choices]),
            np.vstack([self._points.numbers, points.numbers]),
            np.vstack([self._points.known, points.known]),
        )
        self._condition(joined, np.concatenate([self._targets, (mean - self._mean) / self._std]))
        return self.scale.from_scale(mean)

    def similarity(self, left: Points, right: Points) -> Floats:
        """Between 0 and 1, `n x m`: the kernel without its amplitude."""
        return np.asarray(np.exp(-_weighted_distance(left, right, self._hyper.weights)))


def _shifted_log(values: Floats, shift: float) -> ShiftedLog:
    best = float(values.min())
    spread = float(np.median(values)) - best
    spread = spread or float(values.max()) - best or abs(best) or 1.0
    return ShiftedLog(best - shift * spread)


def far_worse(values: Floats) -> Bools:
    """Which values are beyond Tukey's fence on a logarithmic scale: nets that failed to train, at chance.

    They would bend the surrogate near their neighbours, without a word on how those do when they train.

    Args:
        values: `n`, less is better.
    """
    scaled = _shifted_log(values, _FENCE_SHIFT).to_scale(values)
    low, high = np.percentile(scaled, [25, 75])
    return np.asarray(scaled > high + _FENCE * (high - low) + 1e-9)


def _most_likely(
    scales: Sequence[ShiftedLog], values: Floats, rows: npt.NDArray[np.int64], covariance: Floats
) -> ShiftedLog:
    """The scale with the largest likelihood of the values, the density of the change of scale included."""
    factor = cholesky(covariance, lower=True)
    likelihoods = []
    for scale in scales:
        scaled = scale.to_scale(values)
        mean, std = scaled.mean(), max(float(scaled.std()), 1e-9)
        whitened = solve_triangular(factor, (scaled[rows] - mean) / std, lower=True)
        likelihoods.append(-0.5 * float(whitened @ whitened) - float(scaled[rows].sum()) - len(rows) * np.log(std))
    return scales[int(np.argmax(likelihoods))]


def _distances(points: Points) -> Floats:
    """`f x n x n`: distances of all pairs, feature by feature."""
    choices = (points.choices.T[:, :, None] != points.choices.T[:, None, :]).astype(np.float64)
    numbers = _NUMBER_SCALE * (points.numbers.T[:, :, None] - points.numbers.T[:, None, :]) ** 2
    return np.concatenate([choices, numbers])


def _indicators(points: Points, size: int) -> Floats:
    """`n x (c * size)`: 1 where a choice has an index."""
    equal = points.choices[:, :, None] == np.arange(size)
    return np.asarray(equal.reshape(len(points), -1), dtype=np.float64)


def _weighted_distance(left: Points, right: Points, weights: Floats) -> Floats:
    """`n x m`, as one product of matrices, which takes a third of the time of differences."""
    num_choices = left.choices.shape[1]
    of_choices, of_numbers = weights[:num_choices], _NUMBER_SCALE * weights[num_choices:]
    # The sum of the weights of all choices, less those that are equal: a product of indicators.
    size = 1 + max(int(points.choices.max(initial=0)) for points in (left, right))
    # Numbers by (l - r)^2 = l^2 - 2 l r + r^2, with a rounding error of 1e-16 times the weight.
    left_squares, right_squares = (points.numbers**2 @ of_numbers for points in (left, right))
    left_rows = [_indicators(left, size), left.numbers, left_squares[:, None], np.ones((len(left), 1))]
    right_rows = [
        _indicators(right, size) * -np.repeat(of_choices, size),
        right.numbers * (-2.0 * of_numbers),
        np.ones((len(right), 1)),
        right_squares[:, None] + of_choices.sum(),
    ]
    return np.asarray(np.hstack(left_rows) @ np.hstack(right_rows).T)


def _covariance(distances: Floats, known: Floats, hyper: _Hyper) -> Floats:
    total = np.tensordot(hyper.weights, distances, axes=1)
    covariance = hyper.amplitude * np.exp(-total) + 1.0 + hyper.linear * (known @ known.T)
    covariance[np.diag_indices_from(covariance)] += hyper.noise
    return np.asarray(covariance)


def _start(points: Points) -> _Hyper:
    num_features = points.choices.shape[1] + points.numbers.shape[1]
    return _Hyper(2.0, 0.3, 0.1, np.full(num_features, 0.5 / max(num_features, 1)))


def _fit(distances: Floats, known: Floats, targets: Floats, start: _Hyper) -> _Hyper:
    """Maximum a posteriori of the hyper-parameters, from `start`, by L-BFGS.

    Parameters are logarithms: amplitude, linear, noise, the common weight, and each feature's deviation from it.
    """
    num_features, size = distances.shape[:2]
    below = np.tril_indices(size, -1)  # each pair once: matrices are symmetric, and distances 0 on the diagonal
    of_pairs = np.ascontiguousarray(distances[:, *below])
    gram = known @ known.T
    gram_of_pairs, gram_of_points = gram[below], np.diag(gram)
    diagonal = np.diag_indices(size)
    common = np.log(0.5 / max(num_features, 1))
    center = np.concatenate([[np.log(2.0), np.log(0.3), np.log(0.02), common], np.zeros(num_features)])
    width = np.concatenate([[1.5, 1.5, 1.5, 1.0], np.full(num_features, 0.7)])
    deviations = np.log(start.weights) - np.log(start.weights).mean() if num_features else np.zeros(0)
    level = float(np.log(start.weights).mean()) if num_features else 0.0
    first = np.concatenate([np.log([start.amplitude, start.linear, start.noise]), [level], deviations])
    bounds = [(-6.0, 6.0), (-8.0, 4.0), tuple(np.log(_NOISE)), (-7.0, 3.0)] + [(-3.0, 3.0)] * num_features

    def loss(parameters: Floats) -> tuple[float, Floats]:
        amplitude, linear, noise = np.exp(parameters[:3])
        weights = np.exp(parameters[3] + parameters[4:])
        decay = amplitude * np.exp(-(weights @ of_pairs))
        covariance = np.zeros((size, size), order="F")
        covariance[below] = decay + 1.0 + linear * gram_of_pairs
        covariance[diagonal] = amplitude + 1.0 + linear * gram_of_points + noise
        factor = cholesky(covariance, lower=True, overwrite_a=True, check_finite=False)
        solved = cho_solve((factor, True), targets, check_finite=False)
        prior = (parameters - center) / width
        value = 0.5 * targets @ solved + np.log(np.diag(factor)).sum() + 0.5 * prior @ prior
        inverse, failed = dpotri(factor, lower=1, overwrite_c=1)
        assert failed == 0, "the factor of a positive definite matrix can be inverted"
        slope = inverse[below] - solved[below[0]] * solved[below[1]]  # of a pair, both halves of the matrix together
        of_points = 0.5 * (inverse[diagonal] - solved**2)
        of_decay = slope * decay
        of_weights = -weights * (of_pairs @ of_decay)
        gradient = np.concatenate(
            [
                [
                    of_decay.sum() + amplitude * of_points.sum(),
                    linear * (slope @ gram_of_pairs + of_points @ gram_of_points),
                    noise * of_points.sum(),
                    of_weights.sum(),
                ],
                of_weights,
            ]
        )
        return float(value), gradient + prior / width

    found = minimize(loss, first, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _MAX_ITERATIONS})
    amplitude, linear, noise = np.exp(found.x[:3])
    return _Hyper(float(amplitude), float(linear), float(noise), np.exp(found.x[3] + found.x[4:]))
