"""The layout of a run's W&B dashboard, in dashboard.json beside it; a run sends it along as a file and no more.

`python -m timelapse.callback.dashboard RUN_DIR ENTITY` puts it on the server as a workspace, e.g. after `wandb sync`.
It needs the package wandb-workspaces (extra dashboard) and a key.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

# Section -> panels. `lines`: one line plot of all names that match; `media`: videos by name; `bars`: final numbers.
LAYOUT: dict[str, list[dict[str, Any]]] = {
    "Samples": [{"title": "samples", "media": ["samples"], "width": 24, "height": 12}],
    "Losses": [
        {"title": "training, by term", "lines": "^train/.*", "width": 12, "height": 8},
        {"title": "held out, at fixed timesteps and noise", "lines": "^val/.*", "width": 12, "height": 8},
        {"title": "metrics of the samples while training", "lines": "^sample/.*", "width": 12, "height": 8},
    ],
    "Metrics": [
        {"title": "subject consistency (read with morphing degree)", "bars": "metric/subject_consistency"},
        {"title": "morphing degree", "bars": "metric/morphing_degree"},
    ],
    "Optimiser": [{"title": "learning rate", "lines": "^lr-.*"}],
}


def save_dashboard(run_dir: Path, project: str) -> Path:
    """Write dashboard.json: project, name, sections."""
    path = Path(run_dir) / "dashboard.json"
    spec = {"project": project, "name": "timelapse", "sections": LAYOUT}
    path.write_text(json.dumps(spec, indent=2) + "\n")
    return path


def workspace(spec: dict[str, Any], entity: str) -> Any:
    """dashboard.json as a `wandb_workspaces` Workspace, not yet saved."""
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
    except ImportError:
        raise ValueError(
            "the dashboard needs wandb-workspaces; pip install wandb-workspaces, in a checkout "
            "pip install -c .constraints.txt -e '.[dashboard]'"
        ) from None

    def panel(p: dict[str, Any]) -> Any:
        layout = panels.Layout(w=p.get("width", 8), h=p.get("height", 6))
        if "media" in p:
            return panels.MediaBrowser(title=p["title"], media_keys=p["media"], layout=layout)
        if "bars" in p:
            return panels.BarPlot(title=p["title"], metrics=[p["bars"]], layout=layout)
        return panels.LinePlot(title=p["title"], x="trainer/global_step", metric_regex=p["lines"], layout=layout)

    sections = [
        workspaces.Section(name=name, panels=[panel(p) for p in listed], is_open=True)
        for name, listed in spec["sections"].items()
    ]
    return workspaces.Workspace(entity=entity, project=spec["project"], name=spec["name"], sections=sections)


def main() -> None:
    parser = argparse.ArgumentParser(description="Put a run's dashboard.json on W&B.")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("entity", help="your W&B user or team")
    args = parser.parse_args()
    path = args.run_dir / "dashboard.json"
    if not path.exists():
        parser.error(f"{path} does not exist; it is written by a run with logger=wandb")
    try:
        print(workspace(json.loads(path.read_text()), args.entity).save().url)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
