#!/usr/bin/env python3
"""Times the loader of other libraries over the same files, alternating with ours, and writes the ratio.

One thread, CPU seconds, median of --rounds alternating rounds. Each peer reads a file, decodes it,
makes the preset's two views and puts them, normalised, into a float32 NCHW batch. Peers:

  albumentations  albumentations + OpenCV, cubic without antialiasing (OpenCV has no other), or
  area            the same with INTER_AREA, which does antialias
  torchvision     torchvision + Pillow, the code of the paper's authors

    tools/peers/loader.py --images ../shared/data/imagenet-sample --venv /tmp/peers \\
        --ours 'indexed=/tmp/jpeg' --ours 'plain=--no-side-index /tmp/jpeg' --ours 'raw=/tmp/raw'

Every --ours is a name and the arguments of one `bt-stream bench loader`; its ratio is given against
every peer; with --readme the table of FILE's section `<!-- loader:TITLE -->` .. `<!-- end -->` is
written anew, ours and the peers'. --images is a folder of folders of images, or shards (.tar, .tar.zst): their images go
into a temporary folder first. With --venv, what is missing (albumentations, opencv-python-headless,
torchvision) is installed into that virtual environment, made if need be, and the script runs there.
"""
import argparse
import glob
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tarfile
import tempfile

NEEDED = {
    "albumentations": {"albumentations": "albumentations==2.0.8", "cv2": "opencv-python-headless"},
    "area": {"albumentations": "albumentations==2.0.8", "cv2": "opencv-python-headless"},
    "torchvision": {"torchvision": "torchvision", "PIL": "pillow"},
}
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
# Preset: side, blur and solarize of each view, normalisation.
PRESETS = {
    "barlow-imagenet": (224, (1.0, 0.1), (0.0, 0.2), IMAGENET),
    "barlow-cifar": (32, (0.0, 0.0), (0.0, 0.2), CIFAR),
}


def enter(venv, peers):
    """Goes on in the virtual environment, which sees the packages of this Python, too."""
    python = os.path.join(venv, "bin", "python")
    if not os.path.exists(python):
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        site = glob.glob(os.path.join(venv, "lib", "python3*", "site-packages"))[0]
        with open(os.path.join(site, "outer.pth"), "w") as file:
            file.writelines(path + "\n" for path in sys.path if path.endswith("site-packages"))
    find = "import importlib.util, sys; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)"
    wanted = {name: pip for peer in peers for name, pip in NEEDED[peer].items()}
    missing = [p for n, p in wanted.items() if subprocess.run([python, "-c", find, n]).returncode]
    if missing:
        subprocess.run([python, "-m", "pip", "install", "-q", *missing], check=True)
    os.environ["BT_PEERS_INSIDE"] = "1"
    os.execv(python, [python, *sys.argv])


def albumentations(preset, interpolation):
    """One image's bytes into `out`, float32 [2, 3, side, side]."""
    import albumentations as A
    import cv2
    import numpy as np

    cv2.setNumThreads(0)
    side, blurs, solarizes, (mean, std) = PRESETS[preset]

    def view(blur, solarize):
        ops = [
            A.RandomResizedCrop((side, side), scale=(0.08, 1.0), interpolation=interpolation(cv2)),
            A.HorizontalFlip(p=0.5),
            A.ColorJitter((0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1), p=0.8),
            A.ToGray(p=0.2),
        ]
        ops += [A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2.0), p=blur)] if blur else []
        ops += [A.Solarize(p=solarize)] if solarize else []
        return A.Compose([*ops, A.Normalize(mean, std)], seed=0)

    views = [view(b, s) for b, s in zip(blurs, solarizes)]

    def run(path, out):
        image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR_RGB)
        for view, to in zip(views, out):
            to[...] = view(image=image)["image"].transpose(2, 0, 1)

    return run, f"albumentations {A.__version__}, OpenCV {cv2.__version__}"


def torchvision(preset):
    """As `albumentations`; the transforms of the authors' main.py."""
    import random

    import PIL
    import torch
    import torchvision
    from PIL import Image, ImageFilter, ImageOps
    from torchvision import transforms as T

    torch.set_num_threads(1)
    side, blurs, solarizes, (mean, std) = PRESETS[preset]

    def blur(p):
        def run(image):
            if random.random() >= p:
                return image
            return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))
        return run

    def view(p_blur, p_solarize):
        return T.Compose([
            T.RandomResizedCrop(side, interpolation=T.InterpolationMode.BICUBIC),
            T.RandomHorizontalFlip(),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            T.RandomGrayscale(p=0.2),
            blur(p_blur),
            lambda i: ImageOps.solarize(i) if random.random() < p_solarize else i,
            T.ToTensor(),
            T.Normalize(mean, std),
        ])

    views = [view(b, s) for b, s in zip(blurs, solarizes)]

    def run(path, out):
        with open(path, "rb") as file:
            image = Image.open(file).convert("RGB")
        for view, to in zip(views, out):
            to[...] = view(image).numpy()

    return run, f"torchvision {torchvision.__version__}, Pillow {PIL.__version__}"


def peer(name, preset):
    if name == "torchvision":
        return torchvision(preset)
    cubic = name == "albumentations"
    return albumentations(preset, lambda cv2: cv2.INTER_CUBIC if cubic else cv2.INTER_AREA)


def cpu(who):
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def time_peer(run, paths, count, side, batch=64):
    """CPU microseconds an image."""
    import numpy as np

    # One batch for all: no peer pays for fresh memory, as ours does not.
    out = np.ones((2, batch, 3, side, side), np.float32)
    start = cpu(resource.RUSAGE_SELF)
    for nth in range(count):
        run(paths[nth % len(paths)], out[:, nth % batch])
    return (cpu(resource.RUSAGE_SELF) - start) / count * 1e6


def time_ours(args, extra):
    command = [args.bt_stream, "bench", "loader", "--json", "--threads", "1", "--layout", "nchw",
               "--set", "train.batch_size=64"]
    command += ["--images", str(args.images_of_ours), "--set", f"views.preset={args.preset}"]
    out = subprocess.run(command + shlex.split(extra), check=True, capture_output=True, text=True)
    return json.loads(out.stdout.strip().splitlines()[-1])


def files(source, folder):
    """Paths of the images: of a folder of folders, or unpacked from shards into `folder`."""
    shards = sorted(glob.glob(os.path.join(source, "*.tar*") if os.path.isdir(source) else source))
    shards = [path for path in shards if path.endswith((".tar", ".tar.zst"))]
    for path in shards:
        command = ["zstd", "-dcq", path] if path.endswith(".zst") else ["cat", path]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
                for member in tar:
                    if member.name.lower().endswith((".jpg", ".jpeg", ".png")):
                        flat = os.path.basename(path) + "-" + member.name.replace("/", "-")
                        with open(os.path.join(folder, flat), "wb") as file:
                            file.write(tar.extractfile(member).read())
    found = glob.glob(os.path.join(folder if shards else source, "**", "*.*"), recursive=True)
    return sorted(p for p in found if p.lower().endswith((".jpg", ".jpeg", ".png")))


def report(rows, details, versions, title):
    print(f"\n{title}; CPU us an image, median (least..most); {'; '.join(versions)}")
    peers = [name for name, (kind, _) in rows.items() if kind == "peer"]
    median = {name: statistics.median(times) for name, (_, times) in rows.items()}
    for name, (kind, times) in rows.items():
        spread = f"{median[name]:8.1f} ({min(times):.1f}..{max(times):.1f})"
        rate = f"{1e6 / median[name]:7.0f} images/s"
        ratios = [f"{median[p] / median[name]:.2f} x {p}" for p in peers] if kind == "ours" else []
        print(f"  {name:22} {spread:32} {rate}  {'  '.join(ratios)}")
    for name, lines in details.items():
        parts = {key: statistics.median(line[key] for line in lines)
                 for key in ("read_us", "decode_us", "augment_us")}
        print(f"  {name}: " + ", ".join(f"{k[:-3]} {v:.1f} us" for k, v in parts.items()))
    return {"title": title, "versions": versions, "median_us": median,
            "times_us": {name: times for name, (_, times) in rows.items()}}


def machine():
    with open("/proc/cpuinfo") as info:
        models = [line.split(": ", 1)[1].strip() for line in info if line.startswith("model name")]
    return f"{models[0] if models else 'unknown CPU'}, {len(models)} cores"


def write_table(path, section, rows, figures):
    """Replaces the table of one section of a Markdown file, between its comments."""
    peers = [name for name, (kind, _) in rows.items() if kind == "peer"]
    median = figures["median_us"]
    lines = [f"{figures['title']}; {machine()}; {'; '.join(figures['versions'])}.", ""]
    lines += ["| loader | CPU us an image | images/s a core | " + " | ".join(f"x {p}" for p in peers) + " |",
              "|---|--:|--:|" + "--:|" * len(peers)]
    for name, (kind, _) in sorted(rows.items(), key=lambda row: row[1][0] == "peer"):
        ratios = " | ".join(f"{median[p] / median[name]:.2f}" for p in peers)
        lines.append(f"| {name} | {median[name]:.0f} | {1e6 / median[name]:.0f} | {ratios} |")
    with open(path) as file:
        text = file.read()
    begin, end = f"<!-- loader:{section} -->", "<!-- end -->"
    before, rest = text.split(begin, 1)
    after = rest.split(end, 1)[1]
    with open(path, "w") as file:
        file.write(before + begin + "\n" + "\n".join(lines) + "\n" + end + after)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", required=True, help="folder of folders of images, or shards")
    parser.add_argument("--ours", action="append", default=[], metavar="NAME=ARGS")
    parser.add_argument("--bt-stream", default="target/release/bt-stream")
    parser.add_argument("--preset", default="barlow-imagenet", choices=PRESETS)
    parser.add_argument("--peers", default="albumentations,torchvision", help="of: " + ", ".join(NEEDED))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images-of-ours", type=int, default=1500, help="images of one of our rounds")
    parser.add_argument("--images-of-peers", type=int, default=300, help="images of a peer's round")
    parser.add_argument("--venv", help="virtual environment to install into and run in")
    parser.add_argument("--out", help="file to write the figures to, JSON")
    parser.add_argument("--readme", metavar="FILE:SECTION", help="file and section to write the table to")
    args = parser.parse_args()
    names = [name for name in args.peers.split(",") if name]
    if args.venv and not os.environ.get("BT_PEERS_INSIDE"):
        enter(args.venv, names)

    os.environ["OMP_NUM_THREADS"] = "1"
    side = PRESETS[args.preset][0]
    with tempfile.TemporaryDirectory() as folder:
        paths = files(args.images, folder)
        mean = sum(os.path.getsize(path) for path in paths) / max(len(paths), 1) / 1e3
        runs = {name: peer(name, args.preset) for name in names}
        ours = dict(spec.split("=", 1) for spec in args.ours)
        rows = {name: ("peer", []) for name in names} | {name: ("ours", []) for name in ours}
        details = {name: [] for name in ours}
        for run, _ in runs.values():
            time_peer(run, paths, min(50, args.images_of_peers), side)
        for _ in range(args.rounds):
            for name, (run, _) in runs.items():
                rows[name][1].append(time_peer(run, paths, args.images_of_peers, side))
            for name, extra in ours.items():
                details[name].append(time_ours(args, extra))
                rows[name][1].append(details[name][-1]["cpu_us"])
    versions = list(dict.fromkeys(version for _, version in runs.values()))
    title = (f"{len(paths)} images of {mean:.1f} KB, two views of {side} x {side} (`{args.preset}`), f32 NCHW, "
             f"one thread, medians of {args.rounds} alternating rounds")
    figures = report(rows, details, versions, title)
    if args.readme:
        write_table(*args.readme.split(":", 1), rows, figures)
    if args.out:
        with open(args.out, "w") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
