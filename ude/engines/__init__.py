"""How a solve is executed."""

from ude.engines.base import Engine, EngineChoice, ForwardResult, SolveSpec, StepRecord, choose_engine
from ude.engines.fused.engine import FusedEngine
from ude.engines.torch.engine import TorchEngine
from ude.engines.torchdiffeq import TorchDiffEq, TorchDiffEqEngine

#: In the order in which engine="auto" asks them.
FUSED = FusedEngine()
ENGINES: tuple[Engine, ...] = (FUSED, TorchEngine(), TorchDiffEqEngine())

__all__ = [
    "ENGINES",
    "FUSED",
    "Engine",
    "EngineChoice",
    "ForwardResult",
    "FusedEngine",
    "SolveSpec",
    "StepRecord",
    "TorchDiffEq",
    "TorchDiffEqEngine",
    "TorchEngine",
    "choose_engine",
]
