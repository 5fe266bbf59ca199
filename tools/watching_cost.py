#!/usr/bin/env python3
"""What it costs to watch a run: throughput with a trace, figures for Prometheus and event files, and without.

    cargo build --release --workspace
    tools/watching_cost.py [--rounds 9] [--bin target/release] [--shards SHARDS --preset barlow-imagenet]

Loader: `bench loader` with `--trace` and without. Training: `train` with `--trace`, `--metrics`, asked once a
second, and `train.tensorboard`, and without all three. The default shards are drawn images of 32 x 32, where an image
takes the least time and so watching the largest share of it. Runs alternate, their order changes from round to round,
and a round's ratio is of neighbours: what else the machine does then touches both. Throughput is the
program's own figure, CPU time that of the whole process over its images: it holds the start and the writing of the
trace's file at the end. Of the loader it is what is spent while images are loaded.
"""

import argparse
import collections
import json
import os
import pathlib
import re
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.request

TRAINING = [
    "model.arch='resnet18'", "model.width=4", "model.stem='cifar'", "model.projector='128-128'", "optim.optimizer='adamw'",
    "train.batch_size=128", "train.threads=1", "data.threads=1", "checkpoint.every_epochs=1000",
]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("target/release"))
    parser.add_argument("--shards", help="default: drawn images of 32 x 32")
    parser.add_argument("--preset", default="barlow-cifar")
    parser.add_argument("--images", type=int, default=60000, help="that the loader loads in a run")
    parser.add_argument("--epochs", type=int, default=2, help="of the training")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--what", default="loader,train", help="comma-separated")
    return parser.parse_args()


def scraped(lines, stop, last):
    """Reads the run's log and keeps its last lines; asks for its figures as soon as it tells where they are."""
    for line in lines:
        last.append(line)
        if address := re.match(r"metrics on (\S+)", line):
            threading.Thread(target=ask, args=(address[1], stop), daemon=True).start()


def ask(address, stop):
    """Once a second, until the run has ended."""
    while not stop.wait(1.0):
        try:
            urllib.request.urlopen(address, timeout=2).read()
        except OSError:
            return


def finished(command):
    """What the command printed, as JSON, and the CPU seconds of its process."""
    stop, last = threading.Event(), collections.deque(maxlen=10)
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    reader = threading.Thread(target=scraped, args=(process.stderr, stop, last))
    reader.start()
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    stop.set()
    reader.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: exit code {process.returncode}\n{''.join(last)}")
    return json.loads(text), usage.ru_utime + usage.ru_stime


def loader(args, folder, watched):
    command = [args.bin / "bt-stream", "bench", "loader", args.shards, "--threads", 1, "--images", args.images, "--json",
               "--set", f"views.preset={args.preset}", *(["--trace", folder / "trace.json"] if watched else [])]
    found, _ = finished(command)
    return found["images_per_s"], found["cpu_us"]


def train(args, folder, watched):
    run = folder / f"run-{time.monotonic_ns()}"
    command = [args.bin / "bt-stream", "train", "--data", args.shards, "--dir", run, "--epochs", args.epochs, "--json"]
    for setting in [*TRAINING, f"views.preset={args.preset}", f"train.tensorboard={str(watched).lower()}"]:
        command += ["--set", setting]
    if watched:
        command += ["--trace", folder / "trace.json", "--metrics", "127.0.0.1:0"]
    found, cpu = finished(command)
    return found["images"] / found["seconds"], 1e6 * cpu / found["images"]


def main():
    args = arguments()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if args.shards is None:
            args.shards = folder / "shards"
            subprocess.run([args.bin / "shard", "synth", args.shards, "--images", "2000", "--side", "32"],
                           check=True, stdout=subprocess.DEVNULL)
        for what in ({"loader": loader, "train": train}[name] for name in args.what.split(",")):
            rounds = []
            for nth in range(args.rounds):
                order = [nth % 2 == 1, nth % 2 == 0]
                found = {watched: what(args, folder, watched) for watched in order}
                rounds.append((*found[False], *found[True]))
            plain, plain_cpu, rate, cpu = zip(*rounds)
            throughput = [1 - w / p for p, _, w, _ in rounds]
            spent = [w / p - 1 for _, p, _, w in rounds]
            middle = statistics.median
            print(f"{what.__name__}: {middle(plain):.0f} images/s, watched {middle(rate):.0f}: "
                  f"{-middle(throughput):+.2%} ({-max(throughput):+.2%}..{-min(throughput):+.2%}); "
                  f"CPU us an image {middle(plain_cpu):.1f}, {middle(cpu):.1f}: {middle(spent):+.2%} ({min(spent):+.2%}..{max(spent):+.2%}); "
                  f"medians of {args.rounds} rounds", flush=True)


if __name__ == "__main__":
    main()
