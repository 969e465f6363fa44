"""The covariance of the prior on functions (`function_prior`), and its derivatives to the numbers that shape it.

Written out in NumPy: the evidence is looked at hundreds of times in a fit, and of autograd's time on matrices of this
size most is overhead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
# d of what the covariance goes into, by the covariance -> the same by the numbers
Pullback = Callable[[Array], Array]


@dataclass(frozen=True, eq=False)
class FunctionKernel:
    """``cov(f_o(z), f_o'(z')) = B_oo' k(z, z')`` of points z (point, input), all points of the first output first.

    numbers: log a (input), log b, log c, log l, w (output; where there are several), log s (output); see
        `function_prior` for what they do
    """

    t: Array  # (input, point, point): products z_i z_i'
    distance: Array  # (point, point): sqrt(5) |z - z'|
    outputs: int

    @classmethod
    def of(cls, z: Array, outputs: int) -> FunctionKernel:
        apart = np.square(z[:, None] - z[None]).sum(-1)
        return cls(np.ascontiguousarray((z[:, None] * z[None]).transpose(2, 0, 1)), np.sqrt(5.0 * apart), outputs)

    def __call__(self, numbers: Array) -> tuple[Array, Pullback]:
        """The covariance (value, value), without the nugget, and what pulls a gradient of it back to the numbers."""
        inputs, outputs = len(self.t), self.outputs
        a, (b, c, length) = np.exp(numbers[:inputs]), np.exp(numbers[inputs : inputs + 3])
        rest = numbers[inputs + 3 :]
        grown = np.expm1(b * self.t)
        powers = grown / b  # t (e^{bt} - 1)/(bt)
        factors = 1.0 + a[:, None, None] * powers
        r = self.distance / length
        fall = np.exp(-r)
        local = (1.0 + r + r * r / 3.0) * fall
        kernel = factors.prod(0) + c * local
        variances = np.exp(2.0 * rest[-outputs:])
        alike = rest[:outputs] if outputs > 1 else np.zeros(outputs)
        between = np.outer(alike, alike) + np.diag(variances)

        def pullback(gradient: Array) -> Array:
            blocks = gradient.reshape(outputs, len(kernel), outputs, len(kernel))
            to_kernel = np.tensordot(between, blocks, ((0, 1), (0, 2)))
            to_between = np.einsum("ipjq,pq->ij", blocks, kernel)
            # a product of the others, and no quotient: a factor may be zero
            others = [np.delete(factors, i, axis=0).prod(0) * to_kernel * a[i] for i in range(inputs)]
            slopes = [float(np.vdot(own, power)) for own, power in zip(others, powers, strict=True)]
            bend = self.t * (grown + 1.0) - powers  # b d/db of the powers
            slopes.append(float(sum(np.vdot(own, one) for own, one in zip(others, bend, strict=True))))
            slopes.append(float(c * np.vdot(to_kernel, local)))
            slopes.append(float(c * np.vdot(to_kernel, fall * r * r * (1.0 + r))) / 3.0)
            if outputs > 1:
                slopes += ((to_between + to_between.T) @ alike).tolist()
            return np.array([*slopes, *(2.0 * variances * np.diag(to_between))])

        return np.kron(between, kernel), pullback
