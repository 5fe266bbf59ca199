"""The loop of the Barlow Twins authors' main.py on the CPU or one GPU, with bt_stream's loader.

    python tools/python/examples/main.py shards/train --epochs 100 --batch-size 256

One line differs from a loop over torchvision's ImageFolder: the one that makes `loader`. AdamW stands
for the authors' LARS, to keep this short.
"""

import argparse
import pathlib
import time

import torch
import torchvision

import bt_stream
import bt_stream.torch


class BarlowTwins(torch.nn.Module):
    def __init__(self, arch, projector, lambd):
        super().__init__()
        self.lambd = lambd
        self.backbone = getattr(torchvision.models, arch)(zero_init_residual=True)
        sizes = [self.backbone.fc.in_features, *map(int, projector.split("-"))]
        self.backbone.fc = torch.nn.Identity()
        layers = []
        for before, after in zip(sizes[:-2], sizes[1:-1]):
            layers += [torch.nn.Linear(before, after, bias=False), torch.nn.BatchNorm1d(after), torch.nn.ReLU()]
        self.projector = torch.nn.Sequential(*layers, torch.nn.Linear(sizes[-2], sizes[-1], bias=False))
        self.bn = torch.nn.BatchNorm1d(sizes[-1], affine=False)

    def forward(self, y1, y2):
        z1, z2 = self.projector(self.backbone(y1)), self.projector(self.backbone(y2))
        c = self.bn(z1).T @ self.bn(z2) / len(z1)
        on_diag = torch.diagonal(c).add(-1).pow(2).sum()
        off_diag = c.pow(2).sum() - torch.diagonal(c).pow(2).sum()
        return on_diag + self.lambd * off_diag


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards")
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--projector", default="2048-2048-2048")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--lambd", type=float, default=0.0051)
    parser.add_argument("--preset", default="barlow-imagenet")
    parser.add_argument("--views", default="", help="what differs from the preset, TOML")
    parser.add_argument("--checkpoint", type=pathlib.Path, default=pathlib.Path("checkpoint.pth"))
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = BarlowTwins(args.arch, args.projector, args.lambd).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), args.lr)
    source = bt_stream.Loader(args.shards, args.preset, args.batch_size, args.threads, labels=True, views=args.views)
    loader = torch.utils.data.DataLoader(
        bt_stream.torch.PairDataset(source), batch_size=None, pin_memory=device == "cuda")
    if args.checkpoint.exists():
        state = torch.load(args.checkpoint, map_location="cpu")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        source.load_state_dict(state["loader"])

    start = time.time()
    for epoch in range(source.epoch, args.epochs):
        source.set_epoch(epoch)
        for step, ((y1, y2), _) in enumerate(loader, start=epoch * len(loader)):
            loss = model(y1.to(device, non_blocking=True), y2.to(device, non_blocking=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 10 == 0:
                print({"epoch": epoch, "step": step, "loss": loss.item(), "time": int(time.time() - start)}, flush=True)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "loader": source.state_dict()}
        torch.save(state, args.checkpoint)


if __name__ == "__main__":
    main()
