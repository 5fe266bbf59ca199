"""Reads RUN/tensorboard with TensorBoard's own reader and prints what is there, as JSON.

    tensorboard_events.py RUN

{"scalars": {tag: [[step, value], ..]}, "histograms": {tag: [[step, values, sum], ..]},
"images": {tag: [[step, width, height], ..]}}; pictures are decoded.
"""

import json
import struct
import sys

import tensorboard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def size(png):
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return list(struct.unpack(">II", png[16:24]))


events = EventAccumulator(sys.argv[1] + "/tensorboard", size_guidance={"scalars": 0, "histograms": 0, "images": 0})
events.Reload()
tags = events.Tags()
print(json.dumps({
    "version": tensorboard.__version__,
    "scalars": {tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in tags["scalars"]},
    "histograms": {
        tag: [[e.step, e.histogram_value.num, e.histogram_value.sum] for e in events.Histograms(tag)]
        for tag in tags["histograms"]},
    "images": {
        tag: [[e.step, *size(e.encoded_image_string)] for e in events.Images(tag)] for tag in tags["images"]},
}))
