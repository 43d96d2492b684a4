"""Raters, a judge run and a training run on PostgreSQL and Redis, while their parts are killed.

    python -m tests.bench.soak [--minutes 10] [--raters 32] [--faults-per-minute 4] [--seed 1]

The scenario of tests/faults/scenario.py at length, with the heartbeat of an installation: 32 raters
who think for a third of a second; tiny models, each run followed by the next one. Printed: the
counts, what was lost and doubled (must be 0), how long a lost worker went unnoticed, and the memory
of each program: of the process that lived longest, without its first minute, the proportional set
size at the beginning and at the end and the slope of a straight line through all of it. A run's own
process is left out: it ends with the run.
"""

import argparse
import statistics
import sys
from typing import Any

from tests.faults import rig, scenario

WARM_SECONDS = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--raters", type=int, default=32)
    parser.add_argument("--faults-per-minute", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--logs", default="", help="folder to keep what the programs said in")
    options = parser.parse_args()
    if why := rig.missing():
        sys.exit(why)
    facts = scenario.play(
        [
            *("--seconds", str(60 * options.minutes), "--raters", str(options.raters)),
            *("--thinking", "0.33", "--comparisons", str(int(6000 * options.minutes))),
            *("--faults", str(int(options.minutes * options.faults_per_minute))),
            *("--steps", "400", "--judged", "200", "--heartbeat", "10", "--disk", "2000"),
            *("--seed", str(options.seed), "--logs", options.logs, "--again"),
        ]
    )
    show(facts)


def show(facts: dict[str, Any]) -> None:
    faults = ", ".join(f"{kind} {n}" for kind, n in facts["faults"].items())
    lost_after = [one["seconds"] for one in facts["lost_after"]]
    ended = [status for _kind, _pk, status, *_rest in facts["jobs"]]
    rows = [
        ("seconds", facts["seconds"]),
        ("faults", f"{sum(facts['faults'].values())}: {faults}"),
        ("disk", facts["disk"] or f"{facts['disk_filled'] / 2**20:.0f} MB filled in all"),
        ("answers acknowledged", facts["acknowledged"]),
        ("of them lost / doubled / changed", "{} / {} / {}".format(
            *(len(facts[kind]) for kind in ("lost", "doubled", "wrong")))),
        ("kept though nobody sent them", len(facts["never_sent"])),
        ("comparisons with too many labels", facts["over"]),
        ("comparisons whose places are miscounted", len(facts["wrong_places"])),
        ("answers sent again / refused", f"{facts['sent_again']} / {facts['refused']}"),
        ("longest until acknowledged", f"{facts['slowest']} s"),
        ("raters stuck", facts["stuck_raters"]),
        ("jobs", f"{len(ended)}, succeeded {ended.count('succeeded')}"),
        ("verdicts, of them doubled", f"{facts['verdicts']}, {facts['verdicts_doubled']}"),
        ("verdicts wanted", facts["n_judged"]),
        ("labels of judges doubled", facts["judge_labels_doubled"]),
        ("training runs, models", f"{facts['runs']}, {facts['models']}"),
        ("steps doubled", facts["steps_doubled"]),
        ("resumed from its page", len(facts["offers"])),
        ("lost workers noticed after", f"{', '.join(f'{s:.0f} s' for s in lost_after) or 'none'}"),
    ]  # fmt: skip
    print("| | |\n| --- | --- |")
    for name, value in rows:
        print(f"| {name} | {value} |")
    print("\n| program | kills | lived, s | MB at first | MB at last | MB a minute |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, measured in facts["memory"].items():
        lived = longest(measured)
        if len(lived) < 10:
            print(f"| {name} | {facts['kills'][name]} | under {WARM_SECONDS:.0f} | – | – | – |")
            continue
        times, sizes = zip(*lived, strict=True)
        slope = 60 * statistics.linear_regression(times, sizes).slope
        begin, end = statistics.median(sizes[:5]), statistics.median(sizes[-5:])
        print(
            f"| {name} | {facts['kills'][name]} | {times[-1] - times[0]:.0f} | {begin:.0f} "
            f"| {end:.0f} | {slope:+.2f} |"
        )


def longest(measured: list[tuple[int, float, float]]) -> list[tuple[float, float]]:
    """(time, MB) of the process that lived longest, without its first minute."""
    lives: dict[int, list[tuple[float, float]]] = {}
    for pid, at, size in measured:
        lives.setdefault(pid, []).append((at, size))
    life = max(lives.values(), key=lambda rows: rows[-1][0] - rows[0][0])
    return [row for row in life if row[0] >= life[0][0] + WARM_SECONDS]


if __name__ == "__main__":
    main()
