"""Run one benchmark by name, or list them all."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import pkgutil
import sys

import bench


def names() -> list[str]:
    """Every benchmark there is."""
    return sorted(module.name for module in pkgutil.iter_modules(bench.__path__) if not module.name.startswith("_"))


def main(argv: list[str] | None = None) -> int:
    """Run or list; 0 when the benchmark ran, whatever it found, 1 when it could not, 2 for a name there is not."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=bench.__doc__)
    parser.add_argument("name", nargs="?", help="; ".join(names()))
    parser.add_argument("only", nargs="?", help="memory: the framework whose rows to run, by how it begins")
    parser.add_argument("--json", action="store_true", help="data on stdout instead of a table")
    parser.add_argument("--runs", type=int, help="how often, for a benchmark that counts runs")
    options = parser.parse_args(argv)
    if options.name is None:
        for name in names():
            text = importlib.import_module(f"bench.{name}").__doc__ or ""
            print(f"{name:<12}{text.splitlines()[0]}")
        return 0
    if options.name not in names():
        print(f"bench: no benchmark {options.name!r}; there is: {', '.join(names())}", file=sys.stderr)
        return 2
    run = importlib.import_module(f"bench.{options.name}").run
    given = {name: value for name in ("runs", "only") if (value := getattr(options, name)) is not None}
    for name, value in given.items():
        if name not in inspect.signature(run).parameters or value in {0, ""} or (name == "runs" and value < 1):
            print(f"bench: {options.name} takes no {'--runs ' if name == 'runs' else ''}{value}", file=sys.stderr)
            return 2
    try:
        outcome = run(**given)
    except bench.CannotRunError as error:
        print(f"bench: {options.name} cannot run: {error}", file=sys.stderr)
        return 1
    print(json.dumps(outcome.as_dict(), indent=2) if options.json else outcome.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
