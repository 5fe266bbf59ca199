#!/usr/bin/env python3
"""Times the training step of `bench step` in PyTorch, alternating with ours, and prints the ratio.

The step: both views through ResNet and projector one after the other (as the authors write it),
Barlow Twins loss, backward, optimizer. Synthetic images. On the CPU times are CPU
seconds of the whole process (all threads), medians over all steps of all rounds; PyTorch is timed
in its default layout (NCHW) and in channels_last, and the ratio is given against either.

    tools/peers/torch_step.py --ours "cargo bench -q --bench step --" \
        --arch resnet18 --width 64 --stem cifar --size 32 --batch 64 --projector 512-512

On a GPU (--device cuda) it times wall time under autocast to bfloat16 with channels_last and
cudnn.benchmark, eager and, with --compile, torch.compile.

What was measured is printed as it comes, so that it is there whatever fails or takes too long
after it: a run of ours (--limit), torch.compile, or the end of the whole. The last line has all
times as JSON.
"""
import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

BLOCKS = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
}


class Backbone(ResNet):
    """torchvision's ResNet of any base width, with either stem, without the classifier."""

    def __init__(self, arch, width, stem):
        nn.Module.__init__(self)
        block, layers = BLOCKS[arch]
        self._norm_layer, self.dilation, self.groups, self.base_width = nn.BatchNorm2d, 1, 1, 64
        self.inplanes = width
        kernel, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = nn.Conv2d(3, width, kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()
        for i, count in enumerate(layers):
            layer = self._make_layer(block, width << i, count, stride=1 if i == 0 else 2)
            setattr(self, f"layer{i + 1}", layer)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Identity()
        self.features = 8 * width * block.expansion


def network(args):
    backbone = Backbone(args.arch, args.width, args.stem)
    widths = [backbone.features] + [int(w) for w in args.projector.split("-")]
    layers = []
    for a, b in zip(widths[:-2], widths[1:-1]):
        layers += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU(inplace=True)]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=False))
    return nn.Sequential(backbone, nn.Sequential(*layers))


class Torch:
    """One network and its optimizer; `step` returns the seconds of one training step."""

    def __init__(self, args, channels_last, compiled=False):
        self.device = torch.device(args.device)
        self.net = network(args).to(self.device)
        shape = (args.batch, 3, args.size, args.size)
        self.views = [torch.randn(shape, device=self.device) for _ in range(2)]
        if channels_last:
            self.net = self.net.to(memory_format=torch.channels_last)
            self.views = [v.to(memory_format=torch.channels_last) for v in self.views]
        self.norm = nn.BatchNorm1d(int(args.projector.split("-")[-1]), affine=False).to(self.device)
        kinds = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
        options = {"momentum": 0.9} if args.optimizer == "sgd" else {}
        self.optimizer = kinds[args.optimizer](self.net.parameters(), lr=1e-3, **options)
        self.run = torch.compile(self.net) if compiled else self.net
        self.clock = time.process_time if args.device == "cpu" else time.perf_counter

    def loss(self):
        z_a, z_b = (self.run(v) for v in self.views)
        c = self.norm(z_a).T @ self.norm(z_b) / len(z_a)
        on = (torch.diagonal(c) - 1).square().sum()
        return on + 0.0051 * (c.square().sum() - torch.diagonal(c).square().sum())

    def step(self):
        start = self.clock()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type != "cpu"):
            loss = self.loss()
        loss.backward()
        self.optimizer.step()
        if self.device.type != "cpu":
            torch.cuda.synchronize()
        return self.clock() - start


def ours(args, steps, warmup):
    command = shlex.split(args.ours)
    for key in ("arch", "width", "stem", "size", "batch", "projector", "optimizer", "threads"):
        command += [f"--{key}", str(getattr(args, key))]
    command += ["--steps", str(steps), "--warmup", str(warmup), "--json"]
    if args.device != "cpu":
        name = args.device if ":" in args.device else f"{args.device}:0"
        command += ["--device", name, "--precision", args.precision]
    env = {**os.environ, "RAYON_NUM_THREADS": str(args.threads)}
    # What went wrong there is said on standard error, which goes where ours does.
    done = subprocess.run(
        command, env=env, check=True, stdout=subprocess.PIPE, text=True, timeout=args.limit
    )
    timings = json.loads(done.stdout.strip().splitlines()[-1])
    parts = timings["cpu" if args.device == "cpu" else "wall"]
    return [sum(step.values()) for step in parts], parts, timings["peak_mb"]


def warmed_up(args, steps, channels_last, compiled):
    """A network that has done `steps` steps, and the MB of device memory that others hold."""
    others = torch.cuda.memory_allocated() if args.device != "cpu" else 0
    peer = Torch(args, channels_last, compiled)
    for _ in range(steps):
        peer.step()
    return peer, 1e-6 * others


def print_profile(peer):
    """Where the time of a step goes, kernel by kernel, the longest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        peer.step()
    kernels = [(1e-3 * k.self_device_time_total, k.count, k.key) for k in found.key_averages()]
    kernels = sorted((k for k in kernels if k[0] > 0), reverse=True)
    total = sum(ms for ms, _, _ in kernels)
    print(f"PyTorch: {total:.2f} ms in kernels")
    print(f"{'ms':>8} {'share':>6} {'calls':>6}")
    for ms, calls, name in kernels:
        print(f"{ms:8.3f} {100 * ms / total:5.1f}% {calls:6}  {name[:140]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--ours", default="", help="command of ours; the options are appended")
    parser.add_argument("--arch", default="resnet18", choices=BLOCKS)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--stem", default="cifar", choices=["cifar", "imagenet"])
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--projector", default="512-512")
    parser.add_argument("--optimizer", default="adamw", choices=["adamw", "sgd"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="steps of a round that count")
    parser.add_argument("--limit", type=float, help="seconds that a run of ours may take; no limit by default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="bf16", choices=["f32", "bf16"], help="of ours, on a GPU")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--profile", action="store_true", help="where the time of PyTorch's step goes, on a GPU")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    # Times cuDNN's algorithms and takes the fastest, as our engine and the authors' main.py do.
    torch.backends.cudnn.benchmark = args.device != "cpu"
    kinds = {"channels_last": (True, False)}
    if args.device == "cpu":
        kinds["nchw"] = (False, False)
    order = [*kinds, *(["ours"] if args.ours else [])]
    if args.compile:
        # Compiling takes longest, and may fail.
        kinds["compiled"] = (True, True)
        order.append("compiled")
    # On a GPU the first steps choose algorithms; our fourth is captured.
    warmup = 1 if args.device == "cpu" else 6
    unit = "CPU ms" if args.device == "cpu" else "ms"
    print(f"{args.arch} width {args.width} {args.size}x{args.size} batch {args.batch} x 2, "
          f"projector {args.projector}, {args.threads} thread(s), torch {torch.__version__}")

    peers, times, peaks, failed = {}, {name: [] for name in order}, {}, set()

    def measure(name):
        """Takes a round's times of one of them."""
        if name == "ours":
            seconds, parts, peaks[name] = ours(args, args.steps, warmup)
            last.update(parts[-1])
        else:
            if name not in peers:
                peers[name] = warmed_up(args, warmup, *kinds[name])
            peer, others = peers[name]
            if args.device != "cpu":
                # What cuDNN took to time its algorithms is not what a step takes.
                torch.cuda.reset_peak_memory_stats()
            seconds = [peer.step() for _ in range(args.steps)]
            if args.device != "cpu" and name not in peaks:
                peaks[name] = 1e-6 * torch.cuda.max_memory_allocated() - others
        times[name] += [1e3 * s for s in seconds]

    last = {}
    for nth in range(1, args.rounds + 1):
        for name in order:
            if name in failed:
                continue
            try:
                measure(name)
                print(f"round {nth}: {name} {statistics.median(times[name]):.2f} {unit} until now", flush=True)
            except Exception as error:  # whatever it is, the others' figures are worth having
                failed.add(name)
                reason = f"{type(error).__name__}: ...{str(error)[-150:]}"
                print(f"round {nth}: {name} FAILED, left out from here on: {reason}", flush=True)

    medians = {name: statistics.median(t) for name, t in times.items() if t}
    for name, median in medians.items():
        spread = f"{min(times[name]):.2f}..{max(times[name]):.2f}"
        ratio = f"  ours/{name} = {medians['ours'] / median:.2f}" if "ours" in medians and name != "ours" else ""
        memory = f", {peaks[name]:.0f} MB at most" if name in peaks else ""
        print(f"{name:14} {median:8.2f} {unit} a step ({spread}), {1e3 * args.batch / median:.1f} source images/s"
              f"{memory}{ratio}")
    if last:
        print("ours, last step:", " ".join(f"{k} {1e3 * v:.2f}" for k, v in last.items()))
    print(json.dumps({"unit": unit, **{name: [round(t, 3) for t in of] for name, of in times.items()}}))
    if args.profile and "channels_last" in peers:
        print_profile(peers["channels_last"][0])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
