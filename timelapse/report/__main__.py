"""The page of a run made again, or a film strip of its samples.

python -m timelapse.report RUN_DIR
python -m timelapse.report RUN_DIR --sheet sheet.png [--clips 0 4 5 8] [--height 64]
"""

import argparse
import sys
from pathlib import Path

from timelapse.report import write_report
from timelapse.report.sheet import run_sheet

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=Path)
parser.add_argument("--sheet", type=Path, help="PNG to write instead of report.html")
parser.add_argument("--clips", type=int, nargs="+", default=(), help="samples by their place, from 0; all by default")
parser.add_argument("--height", type=int, default=112, help="of a picture, in pixels")
args = parser.parse_args()
try:
    print(run_sheet(args.folder, args.sheet, args.clips, args.height) if args.sheet else write_report(args.folder))
except (ValueError, FileNotFoundError) as error:
    sys.exit(f"error: {error}")
