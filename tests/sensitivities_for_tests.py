"""Every sensitivity algorithm, as tests of all of them take them."""

from __future__ import annotations

import ude

SENSITIVITIES = [
    ude.DiscreteAdjoint(),
    ude.BacksolveAdjoint(),
    ude.InterpolatingAdjoint(),
    ude.QuadratureAdjoint(),
    ude.GaussAdjoint(),
    ude.ForwardSensitivity(),
    ude.sensitivity.Autograd(),
]
