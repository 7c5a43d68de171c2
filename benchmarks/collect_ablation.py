"""Keep a grid as evidence: its tables and plot, and each finished run's recipe, log and figures.

    metamobile study ablate components --data imagenette2-160
    python benchmarks/collect_ablation.py runs/ablate-components results/ablate-components --commit HASH

What it keeps is enough for the first command, with --dry-run and --out, to write the tables again.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from collect_run import KEPT

from metamobile.files import write_text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--commit", required=True, help="of the code that trained")
    given = parser.parse_args()
    summary = json.loads((given.runs / "ablation.json").read_text("utf-8"))
    for evaluation in sorted(given.runs.glob("*-seed*/evaluation.json")):  # finished
        kept = given.out / evaluation.parent.name
        kept.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            shutil.copyfile(evaluation.with_name(name), kept / name)
    for name in ("ablation.md", "ablation.png"):
        shutil.copyfile(given.runs / name, given.out / name)
    summary["commit"] = given.commit
    write_text(given.out / "ablation.json", json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
