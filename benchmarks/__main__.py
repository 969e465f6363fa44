"""All benchmarks by one command: ``python -m benchmarks`` runs them, ``--list`` says what exists."""

from __future__ import annotations

import argparse
import importlib

#: Module, and how long it takes on one core.
BENCHMARKS = {
    "fused_speed": "15 minutes, its sections up to 3",
    "fused_overhead": "1 minute",
    "gradient_speed": "1 minute",
    "compaction": "2 minutes",
    "work_precision": "2 minutes",
    "stiff_work_precision": "5 minutes",
    "reference_accuracy": "20 minutes",
    "parameter_estimation": "1 minute",
    "formula_speed": "1 minute",
    "single_terms": "10 minutes",
    "universal_fits": "20 minutes",
    "attainable": "2 minutes",
    "recipe_speed": "3 minutes",
    "known_discoveries": "5 minutes",
    "recovery": "3 hours on two cores; it goes on where it was stopped",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which to run, of {', '.join(BENCHMARKS)}; all when left out")
    parser.add_argument("--section", help="of a benchmark that has sections: run this one alone")
    parser.add_argument("--list", action="store_true", help="say what exists and run nothing")
    chosen = parser.parse_args()
    unknown = set(chosen.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}. Choose of {', '.join(BENCHMARKS)}.")
    for name in chosen.names or BENCHMARKS:
        module = importlib.import_module(f"benchmarks.{name}")
        first = (module.__doc__ or "").partition("\n")[0]
        print(f"{name} ({BENCHMARKS[name]}): {first}", flush=True)
        if not chosen.list:
            module.main(only=[chosen.section]) if chosen.section else module.main()


if __name__ == "__main__":
    main()
