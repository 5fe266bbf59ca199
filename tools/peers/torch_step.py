#!/usr/bin/env python3
"""Times the training step of `bench step` in PyTorch, alternating with ours, and prints the ratio.

The step: both views through ResNet and projector one after the other (as the authors write it),
Barlow Twins loss, backward, optimizer. Synthetic images of unit variance. On the CPU times are CPU
seconds of the whole process (all threads), medians over all steps of all rounds; PyTorch is timed
in its default layout (NCHW) and in channels_last, and the ratio is given against either.

    tools/peers/torch_step.py --ours "cargo bench -q --bench step --" \
        --arch resnet18 --width 64 --stem cifar --size 32 --batch 64 --projector 512-512

On a GPU (--device cuda) it times wall seconds under autocast to bfloat16 with channels_last and
cudnn.benchmark, eager and, with --compile, torch.compile.
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
    out = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
    timings = json.loads(out.strip().splitlines()[-1])
    parts = timings["cpu" if args.device == "cpu" else "wall"]
    return [sum(step.values()) for step in parts], parts, timings["peak_mb"]


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
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="bf16", choices=["f32", "bf16"], help="of ours, on a GPU")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--profile", action="store_true", help="where the time of PyTorch's step goes, on a GPU")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    # Times cuDNN's algorithms and takes the fastest, as our engine and the authors' main.py do.
    torch.backends.cudnn.benchmark = args.device != "cpu"
    peers = {"channels_last": Torch(args, True)}
    if args.device == "cpu":
        peers["nchw"] = Torch(args, False)
    if args.compile:
        peers["compiled"] = Torch(args, True, compiled=True)
    # On a GPU the first steps choose algorithms; our fourth is captured.
    warmup = 1 if args.device == "cpu" else 6
    for peer in peers.values():
        for _ in range(warmup):
            peer.step()
    if args.device != "cpu":
        # What cuDNN took to time its algorithms is not what a step takes.
        torch.cuda.reset_peak_memory_stats()
    times = {name: [] for name in [*peers, "ours"]}
    for _ in range(args.rounds):
        for name, peer in peers.items():
            times[name] += [peer.step() for _ in range(args.steps)]
        if args.ours:
            seconds, parts, peak = ours(args, args.steps, warmup)
            times["ours"] += seconds

    unit = "CPU s" if args.device == "cpu" else "s"
    print(f"{args.arch} width {args.width} {args.size}x{args.size} batch {args.batch} x 2, "
          f"projector {args.projector}, {args.threads} thread(s), torch {torch.__version__}")
    medians = {name: statistics.median(t) for name, t in times.items() if t}
    for name, median in medians.items():
        spread = f"{min(times[name]):.3f}..{max(times[name]):.3f}"
        ratio = f"  ours/{name} = {medians['ours'] / median:.2f}" if args.ours and name != "ours" else ""
        print(f"{name:14} {median:8.3f} {unit} a step ({spread}){ratio}")
    if args.ours:
        print("ours, last step:", " ".join(f"{k} {v:.3f}" for k, v in parts[-1].items()))
        print(f"ours: {args.batch / medians['ours']:.1f} source images/s, {peak:.0f} MB at most")
    if args.device != "cpu":
        peak = torch.cuda.max_memory_allocated() / 1e6
        print(f"torch: {args.batch / medians['channels_last']:.1f} source images/s, {peak:.0f} MB at most")
    if args.profile:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
            peers["channels_last"].step()
        print(found.key_averages().table(sort_by="self_cuda_time_total", row_limit=40, max_name_column_width=110))


if __name__ == "__main__":
    sys.exit(main())
