#!/usr/bin/env python3
"""The run of tools/cifar10_subset.sh in plain PyTorch and torchvision, to stand beside ours.

    tools/peers/torch_cifar_subset.py runs/cifar10-subset/train runs/cifar10-subset/test --seed 0

Reads the packed shards with Python's tarfile, makes torchvision's two views on one thread, trains
ResNet-18 of width 16 (3 x 3 stem) with projector 256-256-256 on eq. 1 (sum over the 256 dimensions) and
prints loss and kNN (k = 20, t = 0.1, backbone features) after every epoch. With --lightly: the settings of
lightly's benchmark, as in configs/cifar10-lightly.toml (--default-init: with PyTorch's weights, too).
"""
import argparse
import glob
import io
import math
import os
import tarfile
import time

import torch
from PIL import Image
from torch import nn
from torchvision import transforms as T
from torchvision.models.resnet import BasicBlock, ResNet

CIFAR = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def read(folder):
    images, labels = [], []
    for path in sorted(glob.glob(os.path.join(folder, "*.tar"))):
        with tarfile.open(path) as tar:
            for member in tar:
                data = tar.extractfile(member).read()
                if member.name.endswith(".cls"):
                    labels.append(int(data))
                else:
                    images.append(Image.open(io.BytesIO(data)).convert("RGB"))
    return images, torch.tensor(labels)


def view(solarize, lightly):
    jitter = T.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4 if lightly else 0.2, hue=0.1)
    scale = (0.08 if lightly else 0.2, 1.0)
    filter = T.InterpolationMode.BILINEAR if lightly else T.InterpolationMode.BICUBIC
    return T.Compose([
        T.RandomResizedCrop(32, scale=scale, interpolation=filter),
        T.RandomHorizontalFlip(),
        T.RandomApply([jitter], p=0.8),
        T.RandomGrayscale(p=0.2),
        T.RandomSolarize(128, p=solarize),
        T.ToTensor(),
        T.Normalize(*(IMAGENET if lightly else CIFAR)),
    ])


class Backbone(ResNet):
    def __init__(self, width, zero_init, default_init=False):
        super().__init__(BasicBlock, [2, 2, 2, 2], zero_init_residual=zero_init)
        if width != 64:
            self._build(width, zero_init)
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool, self.fc = nn.Identity(), nn.Identity()
        if default_init:
            for m in self.modules():
                if isinstance(m, nn.Conv2d):
                    m.reset_parameters()

    def _build(self, width, zero_init):
        self.inplanes, self.bn1 = width, nn.BatchNorm2d(width)
        for i in range(4):
            layer = self._make_layer(BasicBlock, width << i, 2, stride=1 if i == 0 else 2)
            setattr(self, f"layer{i + 1}", layer)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(m, BasicBlock) and zero_init:
                nn.init.zeros_(m.bn2.weight)


@torch.no_grad()
def knn(backbone, train, test, norm, k=20, t=0.1):
    backbone.eval()
    plain = T.Compose([T.ToTensor(), T.Normalize(*norm)])

    def features(images):
        parts = [torch.stack([plain(i) for i in images[n:n + 500]]) for n in range(0, len(images), 500)]
        return nn.functional.normalize(torch.cat([backbone(p) for p in parts]), dim=1)

    bank, queries = features(train[0]), features(test[0])
    similarity, nearest = (queries @ bank.T).topk(k, dim=1)
    votes = nn.functional.one_hot(train[1][nearest], 10) * (similarity / t).exp().unsqueeze(2)
    backbone.train()
    return (votes.sum(1).argmax(1) == test[1]).float().mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--no-zero-init", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lightly", action="store_true")
    parser.add_argument("--default-init", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    train, test = read(args.train), read(args.test)
    backbone = Backbone(16, not args.no_zero_init and not args.lightly, args.default_init)
    layers, hidden, width = [], [128, 2048] if args.lightly else [128, 256, 256], 2048 if args.lightly else 256
    for a, b in zip(hidden, hidden[1:]):
        layers += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU(inplace=True)]
    projector = nn.Sequential(*layers, nn.Linear(width, width, bias=args.lightly))
    norm = nn.BatchNorm1d(width, affine=False)
    net = nn.Sequential(backbone, projector).to(memory_format=torch.channels_last)
    if args.lightly:
        rate, weight = 0.06, 5e-3
        optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
    else:
        rate, weight = 1e-3, 0.0051
        optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=1e-6)
    steps = len(train[0]) // args.batch
    views = [view(0.0, args.lightly), view(0.0 if args.lightly else 0.2, args.lightly)]
    plain = IMAGENET if args.lightly else CIFAR
    print(f"untrained: kNN {100 * knn(backbone, train, test, plain):.1f}%", flush=True)
    for epoch in range(args.epochs):
        begun, losses = time.process_time(), []
        order = torch.randperm(len(train[0]))[:steps * args.batch].view(steps, args.batch)
        for step, batch in enumerate(order):
            done = (epoch * steps + step) / (args.epochs * steps)
            for group in optimizer.param_groups:
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * done))
            z = [net(torch.stack([v(train[0][i]) for i in batch])) for v in views]
            c = norm(z[0]).T @ norm(z[1]) / args.batch
            on = (torch.diagonal(c) - 1).square().sum()
            loss = on + weight * (c.square().sum() - torch.diagonal(c).square().sum())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.1f} (last 10 steps "
              f"{sum(losses[-10:]) / 10:.1f}), kNN {100 * knn(backbone, train, test, plain):.1f}%, "
              f"{time.process_time() - begun:.0f} CPU s", flush=True)


if __name__ == "__main__":
    main()
