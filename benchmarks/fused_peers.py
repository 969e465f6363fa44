"""The peers of benchmarks/fused_speed.py on its cases: functions of nothing that give a flat gradient, or values."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import fused_cases as cases
from benchmarks.fused_cases import Case

Run = Callable[[], Tensor]
# jax reads them when it is imported
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")


def torchdiffeq_gradients(case: Case) -> dict[str, Run]:
    import torchdiffeq

    class System(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.field = case.prob.f

        def forward(self, t: Tensor, u: Tensor) -> Tensor:
            return self.field(u, None, t)

    system = System()

    def of(integrate: Callable[..., Tensor]) -> Run:
        def run() -> Tensor:
            u = integrate(system, case.prob.u0, case.saveat, rtol=case.reltol, atol=case.abstol, method="dopri5")
            return case.gradient_of(u.movedim(0, -2))

        return run

    return {
        "torchdiffeq, backprop": of(torchdiffeq.odeint),
        "torchdiffeq, adjoint": of(torchdiffeq.odeint_adjoint),
    }


def torchode_gradients(case: Case) -> dict[str, Run]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchode
    u0 = case.prob.u0.reshape(-1, case.prob.u0.shape[-1])
    term = torchode.ODETerm(lambda t, u: case.prob.f(u, None, t))
    controller = torchode.IntegralController(atol=case.abstol, rtol=case.reltol, term=term)
    adjoint = torchode.AutoDiffAdjoint(torchode.Tsit5(term=term), controller)

    def run() -> Tensor:
        problem = torchode.InitialValueProblem(y0=u0, t_eval=case.saveat.expand(len(u0), -1))
        return case.gradient_of(adjoint.solve(problem).ys.reshape(*case.prob.u0.shape[:-1], len(case.saveat), -1))

    return {"torchode, backprop": run}


def _jax() -> Any:
    import jax

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_platforms", "cpu")
    return jax


def _vector_field(case: Case) -> Callable[..., Any]:
    """f of one trajectory in jax: ``(t, u, args)``, where args are layers, or the parameters of the trajectory."""
    jnp = _jax().numpy

    def mlp(layers: Any, x: Any) -> Any:
        for weight, bias in layers[:-1]:
            x = jnp.tanh(x @ weight.T + bias)
        weight, bias = layers[-1]
        return x @ weight.T + bias

    rates = jnp.array([1.3, -1.8])

    def fisher(t: Any, u: Any, layers: Any) -> Any:
        diffusion = (jnp.roll(u, 1) - 2 * u + jnp.roll(u, -1)) * (0.01 / 0.04**2)
        return diffusion + mlp(layers, u[:, None])[:, 0]

    def lorenz(t: Any, u: Any, rho: Any) -> Any:
        x, y, z = u
        return jnp.stack([10.0 * (y - x), x * (rho - z) - y, x * y - (8.0 / 3.0) * z])

    def robertson(t: Any, u: Any, k: Any) -> Any:
        slow, fast, back = k[0] * u[0], k[1] * u[1] * u[1], k[2] * u[1] * u[2]
        return jnp.stack([back - slow, slow - back - fast, fast])

    f = case.prob.f
    if isinstance(f, cases.LotkaVolterra):
        return lambda t, u, layers: rates * u + 0.3 * mlp(layers, u)
    if isinstance(f, cases.Spiral):
        return lambda t, u, layers: mlp(layers, u**3)
    if isinstance(f, cases.FisherKPP):
        return fisher
    return lorenz if f is cases.lorenz else robertson


def _layers(net: nn.Module) -> list[tuple[Any, Any]]:
    jnp = _jax().numpy
    linear = [one for one in net.modules() if isinstance(one, nn.Linear)]
    return [(jnp.array(one.weight.detach().numpy()), jnp.array(one.bias.detach().numpy())) for one in linear]


def diffrax_gradients(case: Case, *, max_steps: int = 4096, name: str = "diffrax") -> dict[str, Run]:
    """Jitted; the default adjoint, RecursiveCheckpointAdjoint. The first call compiles."""
    jax = _jax()
    import diffrax

    jnp = jax.numpy
    term, layers = diffrax.ODETerm(_vector_field(case)), _layers(case.net or nn.Identity())
    u0, saves = jnp.array(case.prob.u0.numpy()), jnp.array(case.saveat.numpy())
    target = jnp.array(torch.as_tensor(case.target, dtype=cases.DOUBLE).numpy())
    controller = diffrax.PIDController(rtol=case.reltol, atol=case.abstol)
    end = float(case.saveat[-1])

    def one(layers: Any, start: Any) -> Any:
        return diffrax.diffeqsolve(
            term,
            diffrax.Tsit5(),
            t0=0.0,
            t1=end,
            dt0=None,
            y0=start,
            args=layers,
            saveat=diffrax.SaveAt(ts=saves),
            stepsize_controller=controller,
            max_steps=max_steps,
        ).ys

    def loss(layers: Any) -> Any:
        u = one(layers, u0) if u0.ndim == 1 else jax.vmap(one, (None, 0))(layers, u0)
        return ((u - target) ** 2).mean()

    both = jax.jit(jax.value_and_grad(loss))

    def run() -> Tensor:
        _, parts = jax.block_until_ready(both(layers))
        return torch.cat(
            [torch.from_numpy(jax.numpy.asarray(x).__array__().copy()).reshape(-1) for x in sum(parts, ())]
        )

    return {name: run}


def diffrax_ensemble(case: Case) -> dict[str, Run]:
    """Values at the end, vmapped over trajectories and their parameters. Robertson: Kvaerno5, its method for that."""
    jax = _jax()
    import diffrax

    jnp = jax.numpy
    term, u0, end = diffrax.ODETerm(_vector_field(case)), jnp.array(case.prob.u0.numpy()), float(case.saveat[-1])
    given = [jnp.array(torch.as_tensor(x).numpy()) for x in dict(case.prob.p).values()]
    parameters = given[0] if len(given) == 1 else jnp.stack(given, -1)
    stiff = case.prob.f is cases.robertson
    adaptive = diffrax.PIDController(rtol=case.reltol, atol=case.abstol)

    def one(start: Any, own: Any) -> Any:
        return diffrax.diffeqsolve(
            term,
            diffrax.Kvaerno5() if stiff else diffrax.Tsit5(),
            t0=0.0,
            t1=end,
            dt0=case.dt,
            y0=start,
            args=own,
            stepsize_controller=diffrax.ConstantStepSize() if case.dt else adaptive,
            max_steps=100_000,
        ).ys

    batched = jax.jit(jax.vmap(one))

    def run() -> Tensor:
        return torch.from_numpy(jax.block_until_ready(batched(u0, parameters)).__array__().copy())

    return {"diffrax, Kvaerno5" if stiff else "diffrax": run}
