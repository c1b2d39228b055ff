"""The page of a run made again, or a film strip of its samples; of several runs, on the clips they have in common.

python -m timelapse.report RUN_DIR
python -m timelapse.report RUN_DIR... --sheet sheet.png [--clips 0 4 5 8] [--height 64] [--labels ours TRF]
"""

import argparse
import sys
from pathlib import Path

from timelapse.report import write_report
from timelapse.report.sheet import run_sheet

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folders", type=Path, nargs="+", metavar="RUN_DIR")
parser.add_argument("--sheet", type=Path, help="PNG to write instead of report.html")
parser.add_argument("--clips", type=int, nargs="+", default=(), help="samples by their place, from 0; all by default")
parser.add_argument("--height", type=int, default=112, help="of a picture, in pixels")
parser.add_argument("--labels", nargs="+", default=(), help="one a run, in the sheet")
args = parser.parse_args()
if not args.sheet and len(args.folders) > 1:
    parser.error("one run has one page; of several: python -m timelapse.study --out DIR RUN_DIR..., or --sheet here")
try:
    if args.sheet:
        print(run_sheet(args.folders, args.sheet, args.clips, args.height, args.labels))
    else:
        print(write_report(args.folders[0]))
except (ValueError, FileNotFoundError) as error:
    sys.exit(f"error: {error}")
