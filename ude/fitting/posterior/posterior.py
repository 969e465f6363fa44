"""What a fit with networks minimizes in Gauss-Newton steps: -log posterior, whose scales the data themselves choose.

``E = ½ Σ ((y - data)/σ)² + ½ fᵀ K⁻¹ f + ½ Σ α_g |w_g|²``, σ the noise of each column, f what networks compute at points
that the data visit and K its covariance (`function_prior`), α_g the inverse variance of each tensor of network weights:
small where the functions have a prior. All are set to what makes the data most probable, what is unknown being
integrated out (MacKay, Neural Computation 4 (1992) 415 and 448): ``α_g = γ_g / |w_g|²`` and ``σ² = Σ r² / (N - γ)``,
where γ counts the parameters that the data determine. So a network is as flexible as the noise allows, with nothing to
choose by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from scipy.linalg import cho_solve, cholesky, solve_triangular
from torch import Tensor

from ude.fitting.posterior.function_prior import FunctionPriors, covered, gain_of
from ude.fitting.posterior.variational import Grid, Variational
from ude.fitting.simulation.initial_states import InitialStates
from ude.fitting.simulation.jacobians import rows_batched
from ude.fitting.simulation.shooting import Shooting
from ude.models import Model, Neural

Array = npt.NDArray[np.float64]

# Numbers that the noise level of a column is believed to rest on before there are data: few data cannot make it zero.
_PSEUDO_DATA = 2.0
# Smallest and largest noise, of that of the smoothed data: a misfit beyond it is the model's, and a column called all
# noise would never be fitted again. The smallest of the scale of a column.
_LEAST_NOISE, _MOST_NOISE, _LEAST_RELATIVE = 0.2, 3.0, 1e-4
_ALPHAS = (1e-3, 1e5)
# Of the usual strength: what holds weights that the prior of their function leaves open.
_WEAK = 0.1
# Of the numbers of function priors at once: far from the best point, the evidence of a linear model says too much.
_MOST_CHANGE = 1.0
# Added to the diagonal of H, scaled to ones, before it is inverted.
_JITTER = 1e-10
LARGEST_JACOBIAN = 30_000_000


@dataclass(eq=False)
class Scales:
    """alphas (group,): inverse variances of weights; sigma (column,): noise, units of the data; functions: the numbers
    of `FunctionPriors`. Changed in place.

    held: (group,): whether an alpha stays as it is
    """

    alphas: Array
    sigma: Array
    expected: Array
    most: Array
    functions: Array
    held: npt.NDArray[np.bool_]
    fixed: bool = False

    @classmethod
    def of(
        cls, groups: Sequence[Tensor], noise: Array, scale: Array, strength: float, functions: FunctionPriors
    ) -> Scales:
        """Before any training: weights as large as Glorot & Bengio (2010) draw them, the noise of the smoothed data.

        strength: what the first is multiplied with; 0: no prior, and nothing is adapted
        """
        alphas = [strength * ((w.shape[0] + w[0].numel()) / 2.0 if w.ndim >= 2 else 1.0) for w in groups]
        relative = float(np.sqrt(np.mean((noise / scale) ** 2)))
        expected = np.maximum(relative, _LEAST_RELATIVE) * scale
        sigma = np.maximum(noise, _LEAST_RELATIVE * scale)
        sigma = np.maximum(sigma, _LEAST_NOISE * expected)
        most = _MOST_NOISE * np.maximum(sigma, expected)
        whose = covered(functions.parts)
        held = np.array([id(w) in whose for w in groups], dtype=bool)
        alphas = np.where(held, _WEAK, 1.0) * np.array(alphas)
        return cls(alphas, sigma, expected, most, functions.start(), held, strength == 0)

    def numbers(self) -> Array:
        return np.concatenate([self.alphas, self.sigma, self.functions])

    def assign(self, numbers: Array) -> None:
        ends = np.cumsum([len(self.alphas), len(self.sigma)])
        self.alphas, self.sigma, self.functions = (part.copy() for part in np.split(numbers, ends))


def network_tensors(model: Model) -> list[Tensor]:
    """Weights and biases of all networks: each is a group with a variance of its own."""
    return [
        p
        for term in model.terms.values()
        if isinstance(term, Neural)
        for p in term.parameters()
        if p.requires_grad and p.numel()
    ]


@dataclass(frozen=True, eq=False)
class WindowStarts:
    """Where windows begin, as a function of offsets (window, state) in units of the spread."""

    starts: Float[Tensor, "window state"]
    heads: Int[Tensor, " trajectory"]
    initial: InitialStates
    spread: Float[Tensor, " state"]

    def __call__(self, offset: Float[Tensor, "window state"]) -> Float[Tensor, "window state"]:
        moved = self.starts + offset * self.spread
        placed = self.initial.place(self.starts[self.heads], offset[self.heads], self.spread)
        return moved.index_copy(0, self.heads, placed)

    def derivative(
        self, offset: Float[Tensor, "window state"]
    ) -> tuple[Int[Tensor, "window state"], Float[Tensor, "window state"]]:
        """Which offset (index into the flattened ones) moves each start, and how fast."""
        windows, states = offset.shape
        index = torch.arange(windows * states).reshape(windows, states)
        index = index.index_copy(0, self.heads, index[self.heads].gather(0, self.initial.rows))
        alone = replace(self.initial, rows=torch.arange(len(self.heads)).unsqueeze(-1).expand(-1, states))
        leaf = offset.reshape(-1)[index].detach().requires_grad_()
        with torch.enable_grad():
            moved = replace(self, initial=alone)(leaf)
            (slope,) = torch.autograd.grad(moved.sum(), leaf)
        return index, slope


@dataclass(frozen=True, eq=False)
class Residuals:
    """``data`` in units of the data, column of each; ``other`` as they enter E; ``values`` of networks, f."""

    data: Array
    column: npt.NDArray[np.int64]
    other: Array
    values: Array

    def whitened(self, scales: Scales, whitener: Array) -> Array:
        """r of ``E = ½ |r|² + ½ Σ α w²``."""
        return np.concatenate([self.data / scales.sigma[self.column], self.other, whitener @ self.values])


@dataclass(frozen=True, eq=False)
class Linearized:
    """Residuals and the Jacobian of each of their parts."""

    residuals: Residuals
    data_jacobian: Array
    other_jacobian: Array
    values_jacobian: Array


@dataclass(frozen=True, eq=False)
class Posterior:
    """E of one shooting stage.

    parameters: the leaves that are fitted, and the offsets of the starts last where these are free
    known:      residuals of what is known beside the data and the networks' prior, in units of the loss
    unit:       what a nat is worth in the loss
    functions:  the priors of what networks compute; slack: see `whitener`
    """

    shooting: Shooting
    starts: WindowStarts
    offset: Float[Tensor, "window state"]
    free_starts: bool
    parameters: Sequence[Tensor]
    groups: Sequence[Tensor]
    known: Callable[[], Tensor]
    continuity: float
    unit: float
    scales: Scales
    functions: FunctionPriors
    slack: float = 1.0

    def group_of(self) -> npt.NDArray[np.int64]:
        """(parameter,): the group of each number, -1 where it has no prior."""
        number = {id(w): k for k, w in enumerate(self.groups)}
        parts = [np.full(p.numel(), number.get(id(p), -1)) for p in self.parameters]
        if self.free_starts:
            parts.append(np.full(self.offset.numel(), -1))
        return np.concatenate(parts)

    def whitener(self) -> Array:
        """What makes independent ones of the values of networks, by the scales as they are."""
        return self.functions.whitener(self.scales.functions, self.slack)

    def why_not(self) -> str | None:
        """Why Gauss-Newton steps cannot be taken, or None."""
        if self._too_large():
            return "the Jacobian of all data would have too many numbers"
        starts = self.starts(self.offset).detach().unsqueeze(1)
        try:
            Variational(self.shooting.field, self.parameters).linear(starts, self.shooting.windows.t[:, :1])
        except Exception as error:  # what a user's function raises under vmap is anything
            return f"the model cannot be differentiated at many points at once ({type(error).__name__})"
        return None

    def _too_large(self) -> bool:
        """Whether its Jacobian has more numbers than are worth it."""
        numbers = int(self.shooting.windows.mask.sum()) + len(self.shooting.windows.linked) * self.offset.shape[1]
        grid = 3 * self.shooting.windows.t.numel() * self.offset.shape[1]
        unknowns = sum(p.numel() for p in self.parameters) + (self.offset.numel() if self.free_starts else 0)
        return max(numbers, grid, unknowns) * unknowns > LARGEST_JACOBIAN

    # -- residuals ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def residuals(self) -> Residuals | None:
        """At the tensors as they are; None where a simulation broke down."""
        found = self.shooting.simulated(self.starts(self.offset))
        if found is None:
            return None
        z, u = found
        mask = self.shooting.windows.mask
        wrong = (self.shooting.observed(u) - self.shooting.windows.u)[mask].numpy()
        gaps = self.shooting.gaps(z, self.starts(self.offset), self.continuity)
        other = torch.cat([gaps, self.known()]) * (2.0 / self.unit) ** 0.5
        values = self.functions.values()
        if not all(bool(torch.isfinite(part).all()) for part in (torch.as_tensor(wrong), other, values)):
            return None
        return Residuals(wrong, self._columns(), other.numpy(), values.numpy())

    def _columns(self) -> npt.NDArray[np.int64]:
        mask = self.shooting.windows.mask
        return torch.arange(mask.shape[-1]).expand(mask.shape)[mask].numpy()

    def linearized(self, residuals: Residuals) -> Linearized | None:
        """The residuals at the tensors as they are, with their Jacobian; None where a simulation broke down."""
        with torch.no_grad():
            starts = self.starts(self.offset)
            accepted = self.shooting.accepted_times(starts)
            grid = Grid.of(self.shooting.windows.t, accepted)
            z = self.shooting.at(starts, grid.nodes)
        if z is None:
            return None
        sensitivities = Variational(self.shooting.field, self.parameters)(grid, z)
        z = torch.cat([z[:, :1], z[:, 3::3]], 1)[torch.arange(len(z)).unsqueeze(-1), grid.place]
        index, slope = self.starts.derivative(self.offset)
        data = self._data_jacobian(z, sensitivities, index, slope)
        gaps = self._gap_jacobian(sensitivities, index, slope)
        with torch.enable_grad():
            known = rows_batched(self.known(), self.parameters)
        values = self.functions.jacobian(self.parameters)
        pad = (0, data.shape[1] - known.shape[1])  # the starts, of which neither says anything
        other = torch.cat([gaps, torch.nn.functional.pad(known, pad)]) * (2.0 / self.unit) ** 0.5
        values = torch.nn.functional.pad(values, pad)
        if not all(bool(torch.isfinite(part).all()) for part in (data, other, values)):
            return None
        return Linearized(residuals, data.numpy(), other.numpy(), values.numpy())

    def _spread(self, s: Tensor, window: Tensor, index: Tensor, slope: Tensor) -> Float[Tensor, "row unknown"]:
        """Derivatives (row, θ and own start) of rows of given windows as derivatives to all unknowns."""
        states = slope.shape[1]
        theta, own = s[:, : s.shape[1] - states], s[:, s.shape[1] - states :]
        if not self.free_starts:
            return theta
        starts = torch.zeros(len(s), self.offset.numel(), dtype=s.dtype)
        starts.scatter_add_(1, index[window], own * slope[window])
        return torch.cat([theta, starts], 1)

    def _data_jacobian(self, z: Tensor, s: Tensor, index: Tensor, slope: Tensor) -> Float[Tensor, "datum unknown"]:
        shooting = self.shooting
        mask = shooting.windows.mask
        u = shooting.coordinates.natural(z)
        du = s * torch.where(shooting.coordinates.positive, u, shooting.coordinates.scale).unsqueeze(-1)
        to_u, to_theta = shooting.observation_derivatives(u, self.parameters)
        dy = torch.einsum("wtcs,wtsp->wtcp", to_u, du)
        dy[..., : to_theta.shape[-1]] += to_theta
        window = torch.arange(len(z)).reshape(-1, 1, 1).expand(mask.shape)[mask]
        return self._spread(dy[mask], window, index, slope)

    def _gap_jacobian(self, s: Tensor, index: Tensor, slope: Tensor) -> Float[Tensor, "gap unknown"]:
        shooting, windows = self.shooting, self.shooting.windows
        linked = windows.linked if self.continuity else windows.linked[:0]
        states = slope.shape[1]
        ends = s[linked, windows.last[linked]]
        window = linked.unsqueeze(-1).expand(-1, states).reshape(-1)
        end = self._spread(ends.reshape(len(window), s.shape[-1]), window, index, slope)
        own = torch.eye(states, dtype=s.dtype).expand(len(linked), -1, -1).reshape(len(window), states)
        begin = torch.cat([torch.zeros(len(window), s.shape[-1] - states, dtype=s.dtype), own], 1)
        gap = end - self._spread(begin, window + 1, index, slope)
        weight = (self.continuity / max(len(window), 1)) ** 0.5
        result: Tensor = gap / shooting.spread.repeat(len(linked)).unsqueeze(-1) * weight
        return result


@dataclass(eq=False)
class Quadratic:
    """E around a point: ``½ |r|² + ½ Σ λ x²`` with the Jacobian of r."""

    r: Array
    jacobian: Array
    precision: Array

    @classmethod
    def of(cls, lin: Linearized, posterior: Posterior, whitener: Array) -> Quadratic:
        scales = posterior.scales
        sigma = scales.sigma[lin.residuals.column]
        parts = [lin.data_jacobian / sigma[:, None], lin.other_jacobian, whitener @ lin.values_jacobian]
        return cls(
            lin.residuals.whitened(scales, whitener),
            np.concatenate(parts),
            precision(scales, posterior.group_of()),
        )

    @cached_property
    def _scaled_hessian(self) -> tuple[Array, Array]:
        """With a diagonal of ones; and what each axis was divided by."""
        hessian = self.jacobian.T @ self.jacobian
        hessian[np.diag_indices_from(hessian)] += self.precision
        scale = np.sqrt(np.maximum(np.diag(hessian), 1e-30))
        return hessian / scale / scale[:, None], scale

    def _factor(self, damping: float) -> Array:
        """Cholesky's, lower, of the scaled H with the damping on its diagonal."""
        scaled = self._scaled_hessian[0].copy()
        scaled[np.diag_indices_from(scaled)] += damping + _JITTER
        return np.asarray(cholesky(scaled, lower=True, overwrite_a=True, check_finite=False))

    def solver(self, damping: float) -> Callable[[Array], Array]:
        """``gradient -> -H⁻¹ gradient``, damped as Levenberg and Marquardt do."""
        factor, scale = self._factor(damping), self._scaled_hessian[1]
        return lambda gradient: np.asarray(-cho_solve((factor, True), gradient / scale) / scale)

    def length(self, step: Array) -> float:
        """Of a step, in units of what each axis is worth."""
        return float(np.linalg.norm(self._scaled_hessian[1] * step))

    def variances(self, directions: Array) -> Array:
        """``d H⁻¹ dᵀ`` of each direction d (row, parameter), which should be few: nothing is inverted."""
        factor, scale = self._factor(0.0), self._scaled_hessian[1]
        solved = solve_triangular(factor, (directions / scale).T, lower=True, overwrite_b=True, check_finite=False)
        return np.asarray(np.einsum("ij,ij->j", solved, solved))


def precision(scales: Scales, group: npt.NDArray[np.int64]) -> Array:
    alphas = np.append(scales.alphas, 0.0)
    return alphas[group]


def energy(r: Array, x: Array, precision: Array) -> float:
    return 0.5 * float(r @ r) + 0.5 * float(precision @ x**2)


def renewed(posterior: Posterior, lin: Linearized, x: Array) -> float:
    """Set the scales to those that make the data most probable; returns γ."""
    scales, group, found = posterior.scales, posterior.group_of(), lin.residuals
    if len(posterior.functions):
        change = _functions(posterior, lin) - scales.functions
        scales.functions = scales.functions + np.clip(change, -_MOST_CHANGE, _MOST_CHANGE)
    quadratic = Quadratic.of(lin, posterior, posterior.whitener())
    alphas = scales.alphas.copy()
    free = np.flatnonzero(np.isin(group, np.flatnonzero(~scales.held)))  # numbers, of the weights without a prior else
    data = quadratic.jacobian[: len(found.data)]
    variances = quadratic.variances(np.concatenate([data, np.eye(len(x))[free]]))
    leverage, own_variances = variances[: len(data)], variances[len(data) :]
    for k in np.flatnonzero(~scales.held):
        own = group == k
        determined = max(own.sum() - alphas[k] * own_variances[group[free] == k].sum(), 1e-3)
        alphas[k] = np.clip(determined / max(float(x[own] @ x[own]), 1e-12), *_ALPHAS)
    sigma = scales.sigma.copy()
    for c in range(len(sigma)):
        own = found.column == c
        squares = float(found.data[own] @ found.data[own]) + _PSEUDO_DATA * scales.expected[c] ** 2
        freedom = max(own.sum() - leverage[own].sum(), 0.0) + _PSEUDO_DATA
        sigma[c] = np.clip(np.sqrt(squares / freedom), _LEAST_NOISE * scales.expected[c], scales.most[c])
    scales.alphas, scales.sigma = alphas, sigma
    return float(leverage.sum())


def _functions(posterior: Posterior, lin: Linearized) -> Array:
    """The numbers of the function priors that make the data most probable, where the model is as linear as here."""
    scales, group, found = posterior.scales, posterior.group_of(), lin.residuals
    sigma = scales.sigma[found.column]
    jacobian = np.concatenate([lin.data_jacobian / sigma[:, None], lin.other_jacobian])
    own = np.isin(group, np.flatnonzero(scales.held))
    gain = gain_of(jacobian[:, own], lin.values_jacobian[:, own], 1.0 / scales.alphas[group[own]])
    data = gain @ found.values - np.concatenate([found.data / sigma, found.other])
    # what is open beside the functions: integrated out, which projects on what it cannot explain
    rest, weight = jacobian[:, ~own], precision(scales, group)[~own]
    size = np.sqrt(np.maximum((rest**2).sum(0) + weight, 1e-30))
    open_ = np.concatenate([rest / size, np.diag(np.sqrt(weight) / size)])
    left, singular, _ = np.linalg.svd(open_, full_matrices=False)
    left = left[: len(rest), singular > 1e-8]
    inside = left.T @ gain
    return posterior.functions.likeliest(
        scales.functions, gain.T @ gain - inside.T @ inside, gain.T @ data - inside.T @ (left.T @ data)
    )
