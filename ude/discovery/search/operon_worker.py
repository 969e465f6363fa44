"""Run by `ude.discovery.search.operon` as a program of its own: one Operon search, samples in, formulas out.

Usage: ``python -P operon_worker.py FOLDER``. FOLDER holds ``samples.npz`` (X, y) and ``options.json``; the program
writes ``equations.json`` (rows of length, nmse, equation, in the notation that `ude.discovery.search.notation` reads)
or, on failure, ``error.json``. It imports nothing of `ude`: pyoperon keeps raw pointers, so that a mistake ends the
process.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

#: length -> structure -> (error, text).
Population = dict[int, dict[str, tuple[float, str]]]

#: Our name of each operator -> pyoperon's node type. Reading the tree needs the way back.
OPERATORS = {
    "+": "Add",
    "-": "Sub",
    "*": "Mul",
    "/": "Div",
    "^": "Pow",
    "sin": "Sin",
    "cos": "Cos",
    "tan": "Tan",
    "tanh": "Tanh",
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "abs": "Abs",
    "square": "Square",
}


def main(folder: Path) -> int:
    options = json.loads((folder / "options.json").read_text())
    try:
        import pyoperon
    except Exception as error:  # a wheel for another processor fails to load with whatever comes
        return _fail(folder, "missing", error)
    try:
        import numpy as np

        with np.load(folder / "samples.npz") as samples:
            table = np.asfortranarray(np.column_stack([samples["X"], samples["y"]]))
        populations = [
            evolve(pyoperon, table, operators, {**options, "seed": options["seed"] + number})
            for number, operators in enumerate(options["operators"])
        ]
        _write(folder / "equations.json", closest([best_of_lengths(one, options["keep"]) for one in populations]))
    except Exception as error:
        return _fail(folder, "failed", error)
    return 0


def evolve(op: Any, table: Any, operators: list[str], options: dict[str, Any]) -> Population:
    """NSGA-II on (normalized error, length) with constants fitted by Levenberg and Marquardt: the last population.

    pyoperon does not keep what it is given alive, so every object is held in `held` until the search has ended.
    """
    held: list[Any] = []
    problem, inputs, places = _problem(op, table, operators, held)
    primitives = problem.PrimitiveSet  # a copy at every read
    creator = op.BalancedTreeCreator(primitives, inputs, 0.0)
    start = op.UniformLengthTreeInitializer(creator)
    start.ParameterizeDistribution(1, min(15, options["max_length"]))
    start.MinDepth, start.MaxDepth = 1, options["max_depth"]
    numbers = op.NormalCoefficientInitializer()
    numbers.ParameterizeDistribution(0.0, 1.0)
    evaluator, local = _evaluators(op, problem, options, held)
    mutation = _mutation(op, primitives, inputs, (creator, numbers), options, held)
    crossover = op.SubtreeCrossover(0.9, options["max_depth"], options["max_length"])
    order = op.CrowdedComparison()
    selectors = [op.TournamentSelector(order), op.TournamentSelector(order)]
    for selector in selectors:
        selector.TournamentSize = 5
    offspring = op.BasicOffspringGenerator(evaluator, crossover, mutation, *selectors, local)
    reinserter, sorter = op.KeepBestReinserter(order), op.RankSorter()
    config = op.GeneticAlgorithmConfig(
        generations=options["generations"],
        max_evaluations=options["max_evaluations"],
        local_iterations=options["local_iterations"],
        population_size=options["population"],
        pool_size=options["population"],
        p_crossover=1.0,
        p_mutation=0.25,
        epsilon=1e-6,
        seed=options["seed"],
        max_time=max(1, math.ceil(options["max_seconds"])),
    )
    search = op.NSGA2Algorithm(config, problem, start, numbers, offspring, reinserter, sorter)
    generator = op.RandomGenerator(options["seed"])
    search.Run(generator, None, 1, False)  # one thread: with several the answer would depend on their order
    found = harvest(op, search.Individuals, places)
    held.clear()
    return found


def _problem(op: Any, table: Any, operators: list[str], held: list[Any]) -> tuple[Any, list[int], dict[int, int]]:
    """The regression of the last column on the others; hashes of these, in order, and their places."""
    data = op.Dataset(table)
    target = max(data.Variables, key=lambda variable: variable.Index)
    places = {v.Hash: v.Index for v in data.Variables if v.Hash != target.Hash}
    inputs = sorted(places, key=lambda name: places[name])
    problem = op.Problem(data)
    problem.TrainingRange = op.Range(0, data.Rows)
    problem.TestRange = op.Range(data.Rows - 1, data.Rows)
    problem.Target = target
    problem.InputHashes = inputs
    symbols = int(op.NodeType.Constant) | int(op.NodeType.Variable)
    for operator in operators:
        symbols |= int(getattr(op.NodeType, OPERATORS[operator]))
    problem.ConfigurePrimitiveSet(symbols)
    held += [data, target, problem]
    return problem, inputs, places


def _evaluators(op: Any, problem: Any, options: dict[str, Any], held: list[Any]) -> tuple[Any, Any]:
    """What measures error and length of a formula, and what fits its constants."""
    calls = op.DispatchTable()
    optimizer = op.LMOptimizer(calls, problem, options["local_iterations"], 0)
    local = op.CoefficientOptimizer(optimizer)
    nmse = op.NMSE()
    error, length = op.Evaluator(problem, calls, nmse, False), op.LengthEvaluator(problem)
    both = op.MultiEvaluator(problem)
    for evaluator in (error, length):
        evaluator.Budget = options["max_evaluations"]
        both.Add(evaluator)
    both.Budget = options["max_evaluations"]
    held += [calls, optimizer, local, nmse, error, length, both]
    return both, local


def _mutation(
    op: Any, primitives: Any, inputs: list[int], new: tuple[Any, Any], options: dict[str, Any], held: list[Any]
) -> Any:
    """All kinds of mutation, equally often; `new` makes subtrees and their numbers."""
    mutations = [
        op.NormalOnePointMutation(),
        op.ChangeVariableMutation(inputs),
        op.ChangeFunctionMutation(primitives),
        op.ReplaceSubtreeMutation(*new, options["max_depth"], options["max_length"]),
        op.InsertSubtreeMutation(*new, options["max_depth"], options["max_length"]),
        op.RemoveSubtreeMutation(primitives),
    ]
    mutations[0].ParameterizeDistribution(0.0, 1.0)
    mutation = op.MultiMutation()
    for one in mutations:
        mutation.Add(one, 1.0)
    held += [*mutations, mutation]
    return mutation


def harvest(op: Any, individuals: Any, places: dict[int, int]) -> Population:
    """A population's trees by length and by what they are but for their numbers; of equal ones the closest."""
    by_length: Population = {}
    for individual in individuals:
        tree, nmse = individual.Genotype, float(individual.GetFitness(0))
        if math.isfinite(nmse) and nmse < 1.0:
            text = equation(op, tree, places)
            found = by_length.setdefault(tree.Length, {})
            structure = re.sub(r"\(-?[\d.e+-]+\)", "#", text)
            found[structure] = min(found.get(structure, (math.inf, "")), (nmse, text))
    return by_length


def best_of_lengths(population: Population, keep: int) -> list[dict[str, Any]]:
    """Of every length the closest ``keep`` trees."""
    return [
        {"length": length, "nmse": nmse, "equation": text}
        for length in sorted(population)
        for nmse, text in sorted(population[length].values())[:keep]
    ]


def closest(tables: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of all runs, by length, without those far worse than something shorter, and each text once.

    Such a tree is one that evolution has not cleared away yet.
    """
    rows: dict[str, dict[str, Any]] = {}
    best = math.inf
    for length in sorted({row["length"] for table in tables for row in table}):
        found = [row for table in tables for row in table if row["length"] == length]
        best = min([best, *(row["nmse"] for row in found)])
        for row in found:
            if row["nmse"] <= 3.0 * best + 1e-12:
                rows.setdefault(row["equation"], row)
    return list(rows.values())


def equation(op: Any, tree: Any, places: dict[int, int]) -> str:
    """A tree, stored in postfix order with the last argument first, as text in x0, x1, ..."""
    names = {getattr(op.NodeType, kind): name for name, kind in OPERATORS.items()}
    stack: list[str] = []
    for node in tree.Nodes:
        if node.IsConstant:
            stack.append(f"({node.Value!r})")
        elif node.IsVariable:
            stack.append(f"(({node.Value!r}) * x{places[node.HashValue]})")
        else:
            arguments = [stack.pop() for _ in range(node.Arity)]
            name = names[node.Type]
            if name.isalpha():
                stack.append(f"{name}({arguments[0]})")
            elif len(arguments) == 1:
                stack.append({"-": f"(-{arguments[0]})", "/": f"(1/{arguments[0]})"}.get(name, arguments[0]))
            else:
                joined = f" {name} ".join(arguments)
                stack.append(f"({joined})")
    return stack[0]


def _write(path: Path, content: Any) -> None:
    """Whole or not at all, so that a killed worker leaves no half of a table."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content))
    os.replace(part, path)


def _fail(folder: Path, kind: str, error: Exception) -> int:
    text = (f"{type(error).__name__}: {error}".strip().splitlines() or ["no message"])[0]
    _write(folder / "error.json", {"kind": kind, "text": text})
    return 3


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
