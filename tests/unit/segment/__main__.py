"""`python -m unit.segment [--seeds N] [--nodes 2,3,5] [NAME…]`: the scenario table, as markdown."""

from __future__ import annotations

import argparse
import statistics

from unit.segment.scenarios import SCENARIOS, Run, Scenario, run


def row(scenario: Scenario, nodes: int, runs: list[Run]) -> str:
    """One line of the table."""
    doubles = [one.verdict.double for one in runs]
    unserved = [one.verdict.unserved for one in runs]
    failed = sum(bool(one.faults(scenario)) for one in runs)
    twice = f"{max(doubles):.3f} s in {sum(d > 0 for d in doubles)}" if max(doubles) > 0 else "**0**"
    waits = f"{statistics.median(unserved):.2f} / {max(unserved):.2f} s"
    return f"| {scenario.name} | {nodes} | {len(runs)} | {twice} | {waits} | {failed or ''} |"


HEAD = (
    "| fault | nodes | runs | double ownership | unserved, median / worst | out of bounds |\n"
    "|---|---|---|---|---|---|"
)


def main() -> None:
    """Print the table, and the time line of the first run of each line that broke its bounds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--nodes", default="")
    parser.add_argument("--clusterips", type=int, default=1)
    parser.add_argument("--timeline", action="store_true")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    print(HEAD)
    for scenario in SCENARIOS:
        if options.names and scenario.name not in options.names:
            continue
        for nodes in [int(n) for n in options.nodes.split(",")] if options.nodes else scenario.nodes:
            seeds = range(options.first, options.first + options.seeds)
            runs = [run(scenario, nodes, seed, clusterips=options.clusterips) for seed in seeds]
            print(row(scenario, nodes, runs), flush=True)
            bad = [one for one in runs if one.faults(scenario)]
            if bad and options.timeline:
                print("seed", bad[0].world.seed, *bad[0].faults(scenario))
                print(*bad[0].verdict.details, sep="\n")
                print(bad[0].world.record.timeline(2.2))


if __name__ == "__main__":
    main()
