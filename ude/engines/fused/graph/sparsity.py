"""Which results of a program depend on which of its inputs: the pattern of a Jacobian, by structure alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ude.engines.fused.graph.program import Addresses, Buffer, Contract, Copy, Gather, Map, Operation, Program, Reduce

Pattern = NDArray[np.bool_]


def dependence(program: Program, outputs: Addresses, inputs: Addresses) -> Pattern:
    """Return (outputs, inputs): whether an output reads an input, directly or through other numbers.

    Numbers count by their place and not by their value, so the pattern holds for every state and every parameter.
    """
    count = inputs.size
    known: dict[Buffer, Pattern] = {}
    (buffer,) = program.buffers_of(inputs)
    known[buffer] = np.zeros((buffer.numel, count), dtype=bool)
    known[buffer][inputs - buffer.start, np.arange(count)] = True

    def of(addresses: Addresses) -> Pattern:
        flat = addresses.reshape(-1)
        found = np.zeros((flat.size, count), dtype=bool)
        for one in program.buffers_of(flat):
            if one in known:
                here = (flat >= one.start) & (flat < one.start + one.numel)
                found[here] = known[one][flat[here] - one.start]
        return found.reshape(*addresses.shape, count)

    def made(operation: Operation) -> Pattern:
        pattern: Pattern
        match operation:
            case Map(arguments=arguments):
                pattern = np.logical_or.reduce([of(part) for part in arguments])
                return pattern
            case Copy(source=source):
                return of(source)
            case Reduce(source=source):
                pattern = np.any(of(source), axis=1)
                return pattern
            case Contract(left=left, right=right):
                pattern = np.any(of(left), axis=2)[:, :, None] | np.any(of(right), axis=1)[:, None, :]
                return pattern
            case Gather(table=table, index=index):
                pattern = of(index) | np.any(of(table), axis=0)
                return pattern

    for operation in program.needed([outputs]):
        pattern = made(operation).reshape(operation.out.numel, count)
        if pattern.any():
            known[operation.out] = pattern
    return of(outputs.reshape(-1))
