"""`python -m vatt.records`: every key of metrics.jsonl as a table."""

from .training.metrics_log import metrics_table


def main() -> None:
    print(metrics_table())


if __name__ == "__main__":
    main()
