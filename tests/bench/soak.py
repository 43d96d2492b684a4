"""Raters, a judge run and a training run on PostgreSQL and Redis, while their parts are killed.

    python -m tests.bench.soak [--minutes 10] [--raters 32] [--faults-per-minute 2.5] [--seed 1]

The scenario of tests/faults/scenario.py at length, with the heartbeat of an installation: 32 raters
who think for a third of a second; tiny models, each run followed by the next one. Printed: the
counts, what was lost and doubled, how long a lost worker went unnoticed, and the memory of each
process with a verdict (tests/faults/weighing.py says what flat means). It ends with 1 where
anything was lost or doubled, is unfinished, or is not shown to be flat. With 0 faults a minute all
processes live to the end, and the memory of each can be told.

Nothing here ends a process because of its age: gunicorn runs without --max-requests, Celery without
--max-tasks-per-child. One setting does end processes, --max-memory-per-child of the GPU's workers:
a judge's process lives for one job, so its growth is measured within jobs alone.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tests.faults import rig, scenario, weighing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--raters", type=int, default=32)
    parser.add_argument("--faults-per-minute", type=float, default=2.5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--logs", default="", help="folder to keep what the programs said in")
    options = parser.parse_args()
    if why := rig.missing():
        sys.exit(why)
    facts = scenario.play(
        [
            *("--seconds", str(60 * options.minutes), "--raters", str(options.raters)),
            *("--thinking", "0.33", "--comparisons", str(int(4000 * options.minutes))),
            *("--faults", str(int(options.minutes * options.faults_per_minute))),
            *("--steps", "11000", "--judged", "6000", "--rationale", "64"),
            *("--heartbeat", "10", "--disk", "2000", "--finish", "60"),
            *("--seed", str(options.seed), "--logs", options.logs, "--again"),
        ]
    )
    if options.logs:
        (Path(options.logs) / "facts.json").write_text(json.dumps(facts))
    show_counts(facts)
    is_flat = show_memory(facts)
    sys.exit(0 if is_sound(facts) and is_flat else 1)


def is_sound(facts: dict[str, Any]) -> bool:
    bad = ("lost", "doubled", "wrong", "never_sent", "over", "wrong_places", "stuck_raters")
    bad += ("verdicts_doubled", "judge_labels_doubled", "steps_doubled")
    return (
        not any(facts[name] for name in bad)
        and facts["verdicts"] == facts["n_judged"]
        and all(status == "succeeded" for _kind, _pk, status, *_rest in facts["jobs"])
    )


def show_counts(facts: dict[str, Any]) -> None:
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


def show_memory(facts: dict[str, Any]) -> bool:
    """Whether all that lived long enough is flat."""
    told = weighing.trends(facts["memory"])
    print("\n| process | lives | longest, s | MB from minute 3 | at last | in ten minutes | |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | --- |")
    for one in told:
        rise = "–"
        if one.rise is not None:
            rise = f"{one.rise:+.1f} [{one.low:+.1f}, {one.high:+.1f}]"
        print(
            f"| {one.kind} | {one.n_lives} | {one.longest:.0f} | {one.first:.1f} | {one.last:.1f} "
            f"| {rise} | {one.verdict} |"
        )
    return all(one.verdict in ("flat", "too short") for one in told)


if __name__ == "__main__":
    main()
