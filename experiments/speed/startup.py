"""What starting up costs: `--help`, against importing torch.

    python experiments/speed/startup.py

Commands take turns, so that a busy machine slows down all. Seconds of processor time, medians.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys

COMMANDS = {
    "import torch": ["-c", "import torch"],
    "--help": ["-m", "timelapse.run", "--help"],
    "--cfg job": ["-m", "timelapse.run", "+experiment=drepa_vjepa", "--cfg", "job"],
}


def seconds(command: list[str]) -> float:
    """Processor time of a child and its children."""
    used = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    before = used()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return used() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    took = {name: [] for name in COMMANDS}
    for _ in range(args.repeats):
        for name, command in COMMANDS.items():
            took[name].append(seconds(command))
    base = statistics.median(took["import torch"])
    for name, values in took.items():
        middle = statistics.median(values)
        print(f"{name:14} {middle:6.2f} s   {middle / base:5.2f} of import torch")


if __name__ == "__main__":
    main()
