"""Takes backbones to torchvision, timm and onnxruntime and back, and compares the features.

    backbone.py check torchvision|timm|onnx MODEL SAMPLE --arch resnet18
        loads MODEL (`bt-stream export`; a file, or timm's folder) into the library's own network
        and compares the features of SAMPLE's images with SAMPLE's; exits with 1 where they differ.
        A torchvision file with a classifier (`bt-stream linear --out`) is compared by its answers

    backbone.py make torchvision|timm MODEL SAMPLE --arch resnet18
        writes the library's state dict, for `bt-stream` to load (.safetensors, or .pth by
        `torch.save`), and a sample to compare with

A sample is a safetensors file with `images` [n, height, width, 3] and `features` [n, dim], both
float32, the features being those of the backbone in evaluation mode before the classifier.
"""

import argparse
import sys

import torch
from safetensors.torch import load_file, save_file

TOLERANCE = 1e-4  # of the largest feature: float32 sums in another order


def nchw(images_nhwc):
    return images_nhwc.permute(0, 3, 1, 2).contiguous()


def torchvision_net(args, classes):
    """`classes` 0: without the classifier."""
    import torchvision
    net = getattr(torchvision.models, args.arch)(weights=None, num_classes=classes or 1)
    if not classes:
        net.fc = torch.nn.Identity()
    return net.eval(), f"torchvision {torchvision.__version__}"


def loaded(args):
    """images [n, h, w, 3] -> features [n, dim], and the name of who computes them."""
    if args.library == "onnx":
        import onnx
        import onnxruntime
        onnx.checker.check_model(args.model, full_check=True)
        session = onnxruntime.InferenceSession(args.model, providers=["CPUExecutionProvider"])
        name = f"onnxruntime {onnxruntime.__version__} (checked by onnx {onnx.__version__})"
        run = lambda images: torch.from_numpy(session.run(["features"], {"images": nchw(images).numpy()})[0])
        return run, name
    if args.library == "timm":
        import timm
        net, name = timm.create_model(f"local-dir:{args.model}", pretrained=True).eval(), f"timm {timm.__version__}"
        assert net.default_cfg["architecture"] == args.arch
    else:
        tensors = load_file(args.model)
        net, name = torchvision_net(args, classes=len(tensors.get("fc.bias", ())))
        net.load_state_dict(tensors, strict=True)
    return lambda images: net(nchw(images)), name


@torch.no_grad()
def check(args):
    run, name = loaded(args)
    sample = load_file(args.sample)
    images, ours = sample["images"], sample["features"]
    theirs = run(images)
    if theirs.shape != ours.shape:
        sys.exit(f"features have shape {tuple(ours.shape)}, {name}'s {tuple(theirs.shape)}")
    # Another batch and another size, for dimensions that are open.
    run(images[:1, : images.shape[1] // 2])
    error = ((theirs - ours).abs().max() / theirs.abs().max()).item()
    print(f"{args.arch} in {name}: features differ by {error:.1e} of the largest, at most {TOLERANCE:.0e}")
    sys.exit(not error <= TOLERANCE)


@torch.no_grad()
def make(args):
    torch.manual_seed(args.seed)
    if args.library == "timm":
        import timm
        net = timm.create_model(args.arch, pretrained=False).eval()
    else:
        net, _ = torchvision_net(args, classes=1000)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # As after training: what is left at its default would hide an exchange.
            module.weight.uniform_(0.5, 1.0)
            module.bias.normal_(0, 0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2.0)
    if args.model.endswith(".pth"):
        torch.save(net.state_dict(), args.model)
    else:
        save_file({k: v.contiguous() for k, v in net.state_dict().items()}, args.model)
    net.fc = torch.nn.Identity()
    images = torch.randn(3, args.size, args.size, 3)
    save_file({"images": images, "features": net(nchw(images))}, args.sample)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["check", "make"])
    parser.add_argument("library", choices=["torchvision", "timm", "onnx"])
    parser.add_argument("model")
    parser.add_argument("sample")
    parser.add_argument("--arch", default="resnet50", help="resnet18, resnet34 or resnet50")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=64, help="pixels of a side (make)")
    args = parser.parse_args()
    {"check": check, "make": make}[args.command](args)


if __name__ == "__main__":
    main()
