#!/usr/bin/env python3
"""bt_stream.Loader against a PyTorch DataLoader with albumentations + OpenCV, over the same files.

    python tools/python/bench.py IMAGES SHARDS [--json]

IMAGES is a folder of images or of folders of them, SHARDS the same packed by `shard pack IMAGES SHARDS`.
Both give float32 batches [n, 3, 224, 224] of the preset's two views as tensors. Rounds alternate; the
figure is source images per second of CPU time (all threads and processes, user and system), which is what a
core gives; wall time is shown beside it. Needs torch, albumentations and opencv-python-headless.
"""

import argparse
import importlib.util
import json
import pathlib
import resource
import statistics
import sys
import tempfile
import time

import numpy as np
import torch

import bt_stream
import bt_stream.torch

# What the peers do with an image is written once, there.
spec = importlib.util.spec_from_file_location("peers", pathlib.Path(__file__).parents[1] / "peers" / "loader.py")
peers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(peers)


class Images(torch.utils.data.Dataset):
    """Paths as pairs of views."""

    def __init__(self, paths, preset, length):
        self.paths, self.preset, self.length, self.run = paths, preset, length, None

    def __len__(self):
        return self.length

    def __getitem__(self, nth):
        if self.run is None:  # in the worker's process
            self.run, _ = peers.albumentations(self.preset, lambda cv2: cv2.INTER_CUBIC)
        side = peers.PRESETS[self.preset][0]
        out = np.empty((2, 3, side, side), np.float32)
        self.run(self.paths[nth % len(self.paths)], out)
        return torch.from_numpy(out[0]), torch.from_numpy(out[1])


def cpu():
    return peers.cpu(resource.RUSAGE_SELF) + peers.cpu(resource.RUSAGE_CHILDREN)


def timed(batches):
    """Images, CPU seconds and wall seconds of a loop over pairs of tensors."""
    images, before, start = 0, cpu(), time.perf_counter()
    for a, b in batches:
        images += len(a)
    # Workers' time counts when they have ended.
    del batches
    return images, cpu() - before, time.perf_counter() - start


def theirs(args, paths):
    data = Images(paths, args.preset, args.batch * args.batches)
    loader = torch.utils.data.DataLoader(data, args.batch, num_workers=args.threads)
    iterator = iter(loader)
    result = timed(iterator)
    del iterator
    return result


def ours(args):
    loader = bt_stream.Loader(args.shards, args.preset, args.batch, args.threads, seed=0)
    data = bt_stream.torch.PairDataset(loader)

    def batches():
        left = args.batches
        while left > 0:
            for pair in torch.utils.data.DataLoader(data, batch_size=None):
                yield pair
                left -= 1
                if left == 0:
                    return

    return timed(batches())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("shards")
    parser.add_argument("--preset", default="barlow-imagenet", choices=sorted(peers.PRESETS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=8, help="of a round")
    parser.add_argument("--threads", type=int, default=1, help="our threads, their workers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = peers.files(args.images, folder)
        if not paths:
            sys.exit(f"{args.images} holds no images")
        _, version = peers.albumentations(args.preset, lambda cv2: cv2.INTER_CUBIC)
        rounds = [(ours(args), theirs(args, paths)) for _ in range(args.rounds)]
    rate = [[images / seconds for images, seconds, _ in kind] for kind in zip(*rounds)]
    wall = [[images / seconds for images, _, seconds in kind] for kind in zip(*rounds)]
    median = [statistics.median(values) for values in rate]
    if args.json:
        print(json.dumps({"ours": rate[0], "theirs": rate[1], "ratio": median[0] / median[1]}))
        return
    print(f"{len(paths)} images, {args.preset}, batches of {args.batch}, {args.threads} threads or workers; "
          f"source images per CPU second, median of {args.rounds} (least..most)")
    names = "bt_stream", f"DataLoader, {version}, torch {torch.__version__}"
    for name, values, middle, walls in zip(names, rate, median, wall):
        print(f"  {middle:7.1f} ({min(values):.1f}..{max(values):.1f})  {statistics.median(walls):7.1f} a wall second  {name}")
    print(f"  ratio {median[0] / median[1]:.2f}")


if __name__ == "__main__":
    main()
