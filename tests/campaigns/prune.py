"""The prune campaign: the state machine for long, and then without each of the four rules.

    python -m tests.campaigns.prune [--rules 120000] [--disk RAW] [--report docs/reports/prune]

Writes its report as Markdown and JSON. Ends with 1 when an image was lost with all rules, or when none was
lost without one of them.
"""

import argparse
import json
import logging
import os
import platform
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from tests.campaigns import prune_machine, prune_speed
from tests.campaigns.prune_world import MUTANTS, Lost

from calotype.store.ledger import MemoryLedger

STEPS = 60  # rules of a run
RULES = {
    "NoReprieve": "1, reprieve",
    "NoWaiting": "2, wait for the older",
    "NoDeleting": "3, deleting is for ever",
    "NoFence": "4, fence",
}


def run(ledger: type[MemoryLedger], rules: int) -> dict[str, Any]:
    """Drive the machine for at least so many rules, or until an image is lost."""
    prune_machine.TOTAL.clear()
    machine = type("Campaign", (prune_machine.Prune,), {"ledger": ledger})
    began = time.monotonic()
    lost = ""
    total: Counter[str] = prune_machine.TOTAL
    try:
        while total["rules"] < rules and not lost:
            some = settings(
                max_examples=200,
                stateful_step_count=STEPS,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            run_state_machine_as_test(machine, settings=some)
    except Lost as error:
        lost = str(error)
    return {
        "rules": total.pop("rules"),
        "runs": total.pop("runs"),
        "calls": total.pop("gates"),
        "seconds": round(time.monotonic() - began, 1),
        "lost": lost,
        "events": dict(sorted(total.items())),
    }


def main() -> int:
    """Run the campaign; 0 when the rules hold and each is needed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rules", type=int, default=120_000)
    parser.add_argument("--disk", type=Path, help="a raw disk to measure on, too")
    parser.add_argument("--report", type=Path, default=Path("docs/reports/prune"))
    chosen = parser.parse_args()
    logging.getLogger("calotype").setLevel(logging.ERROR)
    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} CPUs, Python {platform.python_version()}",
        "all rules": run(MemoryLedger, chosen.rules),
    }
    for mutant in MUTANTS:
        result[mutant.__name__] = run(mutant, 5 * chosen.rules)
    if chosen.disk:
        result["speed"] = prune_speed.measure(chosen.disk)
    chosen.report.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    chosen.report.with_suffix(".md").write_text(text(result))
    held = not result["all rules"]["lost"]
    needed = all(result[m.__name__]["lost"] for m in MUTANTS)
    return 0 if held and needed else 1


def text(result: dict[str, Any]) -> str:
    """The report for people."""
    full = result["all rules"]
    happened = Counter(full["events"])
    begun = happened["ingest begun"] + happened["capture begun"]
    done = happened["ingest done"] + happened["capture done"]
    rows = [
        f"| {rule} | {result[name]['rules']:,} | {result[name]['lost'] or '**nothing**'} |"
        for name, rule in RULES.items()
    ]
    return f"""# Prune under fire

A Hypothesis state machine ([tests/campaigns/prune_machine.py](../../tests/campaigns/prune_machine.py)) over
the real code: up to {prune_machine.MOST} processes ingest, capture, delete and prune one store at once, each
stopped before every call that it makes to the store or the ledger. They are killed anywhere, stand still
until their leases have run out and then go on; listings are stale or empty; the clock jumps in both
directions. After each step, each commit and each deletion, everything that a committed root needs must be in
the store; at the end of each run everything is read back, and two prunes must leave nothing that nobody
needs.

`make campaign-prune`, {result["date"]}, {result["machine"]}:

| | |
|---|---|
| steps of the machine | **{full["rules"]:,}** in {full["runs"]:,} runs, {full["seconds"]:,.0f} s |
| calls to store and ledger, each a place to interrupt | {full["calls"]:,} |
| ingests and captures | {begun:,} begun, {done:,} done |
| prunes | {happened["prune begun"]:,} begun in the runs, {happened["prune refused"]:,} of them refused |
| roots committed, removed | {happened["roots committed"]:,}, {happened["roots removed"]:,} |
| packs deleted | {happened["packs deleted"]:,} |
| images lost | {full["lost"] or "**none**"} |

A prune is refused when its listing is stale or empty, when another one is at work (or was killed and still
has its lease), and when there is no image and nobody said that this is right.

With one rule left out, the same machine finds a lost image:

| without rule | after steps | what was lost |
|---|---|---|
{chr(10).join(rows)}

The schedules that lose an image are kept as tests, one for each rule:
[tests/unit/test_store_prune_rules.py](../../tests/unit/test_store_prune_rules.py). There, too, a prune and an
ingest are killed before every one of their calls, and pairs of commands run in every order in which one
interrupts the other once. A model of the steps with one chunk is explored completely, also without each rule:
[tests/unit/test_store_prune_model.py](../../tests/unit/test_store_prune_model.py).
{speed(result["speed"]) if "speed" in result else ""}"""


def speed(measured: dict[str, Any]) -> str:
    """The measurements for people."""
    rows = [f"| {name} | {seconds:.3f} |" for name, seconds in measured["seconds"].items()]
    mib = 1 << 20
    return f"""
## How long it takes

The Debian recipe's disk ({measured["disk"] / mib:,.0f} MiB) and a copy of it that was overwritten with noise
in one of ten places, in a directory ({measured["packs"]} packs, {measured["stored"] / mib:,.0f} MiB), with a
catalogue in SQLite; the load of the machine was {measured["load"]} meanwhile. Deleting the copy freed
{measured["freed"] / mib:,.0f} MiB; repacking moved {measured["moved"] / mib:,.0f} MiB.

| step | seconds |
|---|---|
{chr(10).join(rows)}
"""


if __name__ == "__main__":
    sys.exit(main())
