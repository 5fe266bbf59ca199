"""Takes backbones to torchvision and back, and compares the features on both sides.

    torchvision_backbone.py check MODEL SAMPLE --arch resnet18
        loads MODEL (`bt-stream export`) into torchvision's network, strictly, and compares the
        features of SAMPLE's images with SAMPLE's; exits with 1 where they differ

    torchvision_backbone.py make MODEL SAMPLE --arch resnet18
        writes a torchvision state dict, for `bt-stream` to load, and a sample to compare with

A sample is a safetensors file with `images` [n, height, width, 3] and `features` [n, dim], both
float32, the features being those of the backbone in evaluation mode before the classifier.
"""

import argparse
import sys

import torch
import torchvision
from safetensors.torch import load_file, save_file

TOLERANCE = 1e-4  # of the largest feature: float32 sums in another order


def backbone(arch):
    net = getattr(torchvision.models, arch)(weights=None)
    net.fc = torch.nn.Identity()
    return net.eval()


@torch.no_grad()
def features(net, images_nhwc):
    return net(images_nhwc.permute(0, 3, 1, 2).contiguous())


def check(args):
    net = backbone(args.arch)
    net.load_state_dict(load_file(args.model), strict=True)
    sample = load_file(args.sample)
    theirs, ours = features(net, sample["images"]), sample["features"]
    if theirs.shape != ours.shape:
        sys.exit(f"features have shape {tuple(ours.shape)}, torchvision's {tuple(theirs.shape)}")
    error = ((theirs - ours).abs().max() / theirs.abs().max()).item()
    print(f"{args.arch}: features differ by {error:.1e} of the largest, at most {TOLERANCE:.0e}")
    sys.exit(not error <= TOLERANCE)


@torch.no_grad()
def make(args):
    torch.manual_seed(args.seed)
    net = backbone(args.arch)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # As after training: what is left at its default would hide an exchange.
            module.weight.uniform_(0.5, 1.0)
            module.bias.normal_(0, 0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2.0)
    images = torch.randn(3, args.size, args.size, 3)
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, args.model)
    save_file({"images": images, "features": features(net, images)}, args.sample)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["check", "make"])
    parser.add_argument("model")
    parser.add_argument("sample")
    parser.add_argument("--arch", default="resnet50", help="resnet18, resnet34 or resnet50")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=64, help="pixels of a side (make)")
    args = parser.parse_args()
    {"check": check, "make": make}[args.command](args)


if __name__ == "__main__":
    main()
