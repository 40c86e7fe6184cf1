"""Predict measured training iterations: one JSON line per row of a CSV file.

    python tools/predict_iterations.py ROWS.csv --calibration MEASURED.csv

Calibrates the A100 preset (or another) on the rows of MEASURED.csv, all of them or with
``--half`` every second one, and predicts every row of ROWS.csv. The format is described in
`realloc.cost.iteration_rows`. A summary of the errors goes to standard error.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from realloc.core.errors import ReallocError
from realloc.cost.calibration import Fit, calibrate, compare, split_halves
from realloc.cost.hardware import hardware_of
from realloc.cost.iteration_rows import IterationRow, predict_seconds, read_rows


def main() -> int:
    arguments = _parser().parse_args()
    try:
        _predict(arguments)
    except ReallocError as error:
        print(f"predict_iterations: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=Path, help="CSV of iterations; milliseconds may be missing")
    parser.add_argument("--calibration", type=Path, help="CSV of measured iterations")
    parser.add_argument("--half", action="store_true", help="calibrate on every second row only")
    parser.add_argument("--device", default="A100-80", help="preset to start from")
    parser.add_argument("--devices-per-node", type=int, default=8)
    parser.add_argument(
        "--network-gbps",
        type=float,
        default=800.0,
        help="InfiniBand of one node in Gb/s (default: 800, four HDR ports)",
    )
    return parser


def _predict(arguments: argparse.Namespace) -> None:
    hardware = hardware_of(arguments.device).with_network(arguments.network_gbps)
    hardware = hardware.with_node_size(arguments.devices_per_node)
    rows = read_rows(arguments.rows)
    if arguments.calibration:
        known = read_rows(arguments.calibration)
        calibration = calibrate(split_halves(known)[0] if arguments.half else known, hardware)
        hardware = calibration.hardware
        _say("calibrated on", calibration.fit)
        print(f"efficiencies: {asdict(hardware.efficiency)}", file=sys.stderr)
    for row in rows:
        predicted_ms = 1e3 * predict_seconds(row, hardware)
        print(json.dumps(_line(row, predicted_ms)))
    if any(row.measured_ms for row in rows):
        _say("predicted", compare(rows, hardware))


def _line(row: IterationRow, predicted_ms: float) -> dict[str, float | str]:
    line: dict[str, float | str] = {
        name: value for name, value in asdict(row).items() if value is not None
    }
    line["predicted_ms"] = round(predicted_ms, 6)
    if row.measured_ms:
        line["error"] = round(predicted_ms / row.measured_ms - 1.0, 6)
    if contradictions := row.contradictions():
        line["problem"] = "; ".join(contradictions)
    return line


def _say(what: str, fit: Fit) -> None:
    print(
        f"{what} {fit.num_rows} rows: mean absolute error "
        f"{fit.mean_absolute_percentage_error:.2f} %, largest "
        f"{fit.largest_percentage_error:.1f} %, bias {fit.bias_percentage:+.2f} %, "
        f"rank correlation {fit.rank_correlation:.4f}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    sys.exit(main())
