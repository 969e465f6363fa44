"""A report of two states and two runs with everything in it, made up from known functions."""

from __future__ import annotations

import numpy as np

from ude.reporting.contents import Contents, FrontPoint, Function, Run, Sheet


def example() -> Contents:
    t, line = np.linspace(0, 6, 13), np.linspace(0, 6, 121)

    def states(time: np.ndarray, size: float) -> list[list[float]]:
        return np.stack([2 + size * np.sin(time), 2 + size * np.cos(time)], -1).tolist()

    runs = [
        Run(name, t.tolist(), states(t, size), line.tolist(), states(line, size), [0.2, 0.3], 4.5)
        for name, size in (("a", 1.0), ("b", 0.5))
    ]
    x, y = (np.array(column) for column in zip(*states(line, 1.0), strict=True))
    grid = np.linspace(0.6, 3.4, 21)
    surface = np.multiply.outer(grid, grid)
    functions = [
        Function(
            "U1",
            {"x": x.tolist(), "y": y.tolist()},
            (x * y).tolist(),
            (x * y).tolist(),
            "x*y",
            "<math><mi>U</mi></math>",
            line.tolist(),
            {"x": grid.tolist(), "y": grid.tolist()},
            (surface + 0.1).tolist(),
            surface.tolist(),
        ),
        Function(
            "U2",
            {"x": x.tolist()},
            (x**2).tolist(),
            (x**2).tolist(),
            "x**2",
            "<math><mi>x</mi></math>",
            line.tolist(),
            {"x": grid.tolist()},
            (grid**2).tolist(),
            (grid**2).tolist(),
        ),
        Function("U3", {"x": x.tolist(), "y": y.tolist(), "z": x.tolist()}, x.tolist(), x.tolist(), "x"),
    ]
    front = [
        FrontPoint(
            f"U1 = f{i} </script>",
            f"<math><mi>formula{i}</mi></math>",
            3.0 + 2 * i,
            10.0 / (i + 1),
            i == 1,
            {"score": float(-i)},
        )
        for i in range(4)
    ]
    front.append(FrontPoint("blew up", "<math><mi>z</mi></math>", 5.0, float("inf"), False, {"score": float("inf")}))
    return Contents(
        title="Lynx & hare <both>",
        equations='<math display="block"><mfrac><mi>dx</mi><mi>dt</mi></mfrac><mo>=</mo><mi>x</mi></math>',
        text="dx/dt = x*y",
        columns=["x", "y"],
        time="day",
        verdict="several forms equally good",
        sentences=["Two forms are equally good."],
        runs=runs,
        functions=functions,
        front=front,
        errors=Sheet("Errors", "Root mean square.", ["", "x", "y"], [["on training data", 0.1234567, 0.2]]),
        sheets=[Sheet("Which terms are sure", "", ["summand", "probability"], [["x*y", 0.9876543]])],
        programs={"Python": "x < y"},
        facts={"seed": "0"},
        notes=["time is the column 'day'"],
        reproduce="ude discover run/model.toml",
    )
