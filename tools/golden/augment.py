#!/usr/bin/env python3
"""Makes tests/golden_extra/augment: what tests/golden has no case of, in its form.

    python tools/golden/augment.py tests/golden_extra/augment

Crops that Pillow 13 resizes vertically first, whole jitters with every order of hue and contrast, and
factors beyond torchvision's usual ones, on a drawn image of saturated colours and noise.
"""
import json
import pathlib
import sys

import numpy as np
import PIL
import torchvision
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F


def drawn(height, width, seed):
    """Waves of colour, edges and noise over the whole range."""
    rng = np.random.default_rng(seed)
    y, x, c = np.mgrid[0:height, 0:width, 0:3]
    waves = 128 + 110 * np.sin(x * (c + 1) * 0.11 + seed) * np.cos(y * 0.07 * (3 - c))
    edges = np.where((x // 9 + y // 7) % 2 == 0, 50, -50)
    return Image.fromarray(np.clip(waves + edges + rng.normal(0, 25, (height, width, 3)), 0, 255).astype(np.uint8))


ADJUST = {
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
    "hue": F.adjust_hue,
}


def result(op, image, p):
    if op == "resized_crop":
        size = [p["size"]] * 2
        box = (p["top"], p["left"], p["height"], p["width"])
        return F.resized_crop(image, *box, size, InterpolationMode(p["interpolation"]), antialias=True)
    if op == "color_jitter":
        for name in p["order"]:
            image = ADJUST[name](image, p[name])
        return image
    return ADJUST[op](image, p["factor"])


def cases(rng):
    for top, left, height, width, size, interpolation in [
        (3, 5, 150, 40, 48, "bicubic"),
        (0, 0, 160, 120, 96, "bicubic"),
        (10, 20, 99, 60, 64, "bilinear"),
        (1, 0, 159, 90, 224, "bicubic"),
    ]:
        yield "resized_crop", dict(
            top=top, left=left, height=height, width=width, size=size, interpolation=interpolation
        )
    for op, factors in {"brightness": [0.0, 5.5], "contrast": [0.0, 3.3], "saturation": [0.01, 1.99, 6.5]}.items():
        for factor in factors:
            yield op, dict(factor=factor)
    for number in range(6):
        order = list(rng.permutation(list(ADJUST)))
        low, high, turn = (0.2, 1.8, 0.5) if number % 2 else (0.6, 1.4, 0.1)
        drawn = {name: float(rng.uniform(low, high)) for name in ADJUST if name != "hue"}
        yield "color_jitter", dict(order=[str(name) for name in order], hue=float(rng.uniform(-turn, turn)), **drawn)


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    images = {"drawn0.png": drawn(160, 120, 1), "drawn1.png": drawn(64, 48, 2)}
    for name, image in images.items():
        image.save(folder / name)
    rows = []
    for number, (op, p) in enumerate(cases(np.random.default_rng(3))):
        name = "drawn0.png" if op == "resized_crop" else "drawn1.png"
        output = f"{number:03}_{op}.png"
        result(op, images[name], p).save(folder / output)
        rows.append({"op": op, "input": name, "output": output, "params": p})
    (folder / "cases.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(f"{len(rows)} cases, Pillow {PIL.__version__}, torchvision {torchvision.__version__}")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
