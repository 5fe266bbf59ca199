"""Reads what `--metrics` answered with the parser of Prometheus' own client, and prints what is there.

    prometheus_text.py FILE

FILE is the body of an answer. Exits with 1 where a family has no type or no help, is empty, or holds a
sample twice; where a counter is not named so; where a figure that the README promises is absent.
"""

import importlib.metadata
import pathlib
import sys

from prometheus_client.parser import text_string_to_metric_families

PROMISED = [
    "images_per_second", "loss", "step", "queue_depth", "stage_seconds", "stall_seconds", "bad_samples", "images",
    "step_seconds",
]

text = pathlib.Path(sys.argv[1]).read_text()
# The parser leaves out what it does not understand only as an exception: none may come.
families = {family.name: family for family in text_string_to_metric_families(text)}
for name, family in families.items():
    assert family.documentation, f"{name} has no help"
    assert family.type in ("counter", "gauge"), f"{name} is {family.type}"
    assert family.samples, f"{name} has no samples"
    kinds = [(sample.name, tuple(sorted(sample.labels.items()))) for sample in family.samples]
    assert len(kinds) == len(set(kinds)), f"{name} holds a sample twice"
    total = {sample.name for sample in family.samples} == {name + "_total"}
    assert total == (family.type == "counter"), f"{name}, a {family.type}, has {kinds}"
for name in PROMISED:
    assert f"bt_stream_{name}" in families, f"bt_stream_{name} is absent"
# Blank lines and comments aside, every line was a sample.
lines = [line for line in text.splitlines() if line and not line.startswith("#")]
assert len(lines) == sum(len(family.samples) for family in families.values()), "lines that are no samples"
version = importlib.metadata.version("prometheus_client")
print(f"prometheus_client {version}: {len(families)} families, {len(lines)} samples read")
