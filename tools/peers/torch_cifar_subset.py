#!/usr/bin/env python3
"""The run of tools/cifar10_subset.sh in plain PyTorch and torchvision, to stand beside ours.

    tools/peers/torch_cifar_subset.py runs/cifar10-subset/train runs/cifar10-subset/test --seed 0

Reads the packed shards with Python's tarfile, makes torchvision's two views on one thread, trains
ResNet-18 of width 16 (3 x 3 stem) with projector 256-256-256 on eq. 1 (sum over the 256 dimensions) and
prints loss and kNN (k = 20, t = 0.1, backbone features) after every epoch.
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

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


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


def view(solarize):
    jitter = T.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
    return T.Compose([
        T.RandomResizedCrop(32, scale=(0.2, 1.0), interpolation=T.InterpolationMode.BICUBIC),
        T.RandomHorizontalFlip(),
        T.RandomApply([jitter], p=0.8),
        T.RandomGrayscale(p=0.2),
        T.RandomSolarize(128, p=solarize),
        T.ToTensor(),
        T.Normalize(MEAN, STD),
    ])


class Backbone(ResNet):
    def __init__(self, width, zero_init):
        super().__init__(BasicBlock, [2, 2, 2, 2], zero_init_residual=zero_init)
        if width != 64:
            self._build(width, zero_init)
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool, self.fc = nn.Identity(), nn.Identity()

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
def knn(backbone, train, test, k=20, t=0.1):
    backbone.eval()
    plain = T.Compose([T.ToTensor(), T.Normalize(MEAN, STD)])

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
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    train, test = read(args.train), read(args.test)
    backbone = Backbone(16, not args.no_zero_init)
    layers = []
    for a in (128, 256):
        layers += [nn.Linear(a, 256, bias=False), nn.BatchNorm1d(256), nn.ReLU(inplace=True)]
    projector = nn.Sequential(*layers, nn.Linear(256, 256, bias=False))
    norm = nn.BatchNorm1d(256, affine=False)
    net = nn.Sequential(backbone, projector).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=1e-6)
    steps = len(train[0]) // args.batch
    views = [view(0.0), view(0.2)]
    print(f"untrained: kNN {100 * knn(backbone, train, test):.1f}%", flush=True)
    for epoch in range(args.epochs):
        begun, losses = time.process_time(), []
        order = torch.randperm(len(train[0]))[:steps * args.batch].view(steps, args.batch)
        for step, batch in enumerate(order):
            done = (epoch * steps + step) / (args.epochs * steps)
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * done))
            z = [net(torch.stack([v(train[0][i]) for i in batch])) for v in views]
            c = norm(z[0]).T @ norm(z[1]) / args.batch
            on = (torch.diagonal(c) - 1).square().sum()
            loss = on + 0.0051 * (c.square().sum() - torch.diagonal(c).square().sum())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.1f} (last 10 steps "
              f"{sum(losses[-10:]) / 10:.1f}), kNN {100 * knn(backbone, train, test):.1f}%, "
              f"{time.process_time() - begun:.0f} CPU s", flush=True)


if __name__ == "__main__":
    main()
