"""`python -m vatt.records`: every key of metrics.jsonl as a table."""

from __future__ import annotations

import argparse
import sys

from .runtime.cli import exit_code
from .training.metrics_log import metrics_table


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    argparse.ArgumentParser(
        prog="python -m vatt.records", description="Print what each key of metrics.jsonl means."
    ).parse_args(argv)
    return exit_code(lambda: print(metrics_table()))


if __name__ == "__main__":
    sys.exit(main())
