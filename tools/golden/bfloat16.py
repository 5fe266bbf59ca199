"""How far rounding to bfloat16 moves the loss of the reference networks, in PyTorch, whatever the engine.

    python tools/golden/bfloat16.py [tests/golden]          # with torch and safetensors, no GPU

Everything is computed in f32 but what is named: `products` rounds what a matrix product on tensor cores must have in
bfloat16, weights and the activations that go into it, and nothing else; `storage` rounds, besides, each result that a
bfloat16 engine keeps (convolutions, BatchNorm with ReLU, blocks). Where there is a GPU, `autocast` is PyTorch's own
mixed precision on it, channels_last. Printed are the loss's relative errors against float64: of the vectors' own
images, and the root mean square over ten other seeds' images.
"""

import json
import pathlib
import sys

import numpy as np
import torch
import torch.nn.functional as F

SEEDS = range(11, 21)
WAYS = {"products": {"operands"}, "storage": {"operands", "results"}}
if torch.cuda.is_available():
    WAYS["autocast"] = {"autocast"}


def draw(index, count):
    """The values of parameter or input `index` as tests/golden/README.md says, in [-1, 1)."""
    with np.errstate(over="ignore"):
        x = (np.uint64(index) << np.uint64(40)) + np.arange(count, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return 2 * ((x >> np.uint64(11)).astype(np.float64) / 2**53) - 1


def parameters(recipe):
    made = {}
    for p in recipe["params"]:
        shape = p["shape"]
        values = draw(p["index"], int(np.prod(shape)))
        if len(shape) > 1:
            values = values * np.sqrt(3) * np.sqrt(2 / np.prod(shape[1:]))
        else:
            values = 0.1 * values + (0 if p["name"].endswith("bias") else 1)
        made[p["name"]] = torch.tensor(values.reshape(shape))
    return made


def loss(recipe, weights, seed, dtype, rounded):
    """Barlow Twins' loss, `rounded` naming what is kept in bfloat16."""
    bf16 = lambda tensor: tensor.to(torch.bfloat16).to(dtype)
    operand = bf16 if "operands" in rounded else lambda tensor: tensor
    result = bf16 if "results" in rounded else lambda tensor: tensor
    device = "cuda" if "autocast" in rounded else "cpu"
    layout = {"memory_format": torch.channels_last} if "autocast" in rounded else {}
    place = lambda tensor: tensor.to(device, dtype, **(layout if tensor.dim() == 4 else {}))
    weights = {name: place(value) for name, value in weights.items()}

    def conv(x, name, stride=1, padding=0):
        return result(F.conv2d(operand(x), operand(weights[name + ".weight"]), stride=stride, padding=padding))

    def norm(x, name):
        return F.batch_norm(x, None, None, weights[name + ".weight"], weights[name + ".bias"], training=True)

    def backbone(x):
        x = result(F.relu(norm(conv(x, "backbone.conv1", 2, 3), "backbone.bn1")))
        x = F.max_pool2d(x, 3, 2, 1)
        bottleneck = "backbone.layer1.0.conv3.weight" in weights
        for layer in range(1, 5):
            block = 0
            while (name := f"backbone.layer{layer}.{block}") + ".conv1.weight" in weights:
                stride = 2 if layer > 1 and block == 0 else 1
                shortcut = x
                if name + ".downsample.0.weight" in weights:
                    shortcut = result(norm(conv(x, name + ".downsample.0", stride), name + ".downsample.1"))
                form = [(1, 0), (stride, 1), (1, 0)] if bottleneck else [(stride, 1), (1, 1)]
                for nth, (step, padding) in enumerate(form, 1):
                    x = norm(conv(x, f"{name}.conv{nth}", step, padding), f"{name}.bn{nth}")
                    x = result(F.relu(x)) if nth < len(form) else result(F.relu(x + shortcut))
                block += 1
        return x.mean((2, 3))

    def projector(x):
        layers = sorted({int(name.split(".")[1]) for name in weights if name.startswith("projector")})
        for layer in layers:
            weight = weights[f"projector.{layer}.weight"]
            if weight.dim() == 2:
                x = F.linear(operand(x), operand(weight), weights.get(f"projector.{layer}.bias"))
                x = x if layer == layers[-1] else result(x)
            else:
                x = result(F.relu(norm(x, f"projector.{layer}")))
        return x

    shape, base = recipe["input"], seed * 1000
    first, second = (draw(base + 900 + nth, int(np.prod(shape))) for nth in range(2))
    views = [place(torch.tensor(view.reshape(shape))) for view in (first, 0.7 * first + 0.3 * second)]
    with torch.autocast(device, torch.bfloat16, enabled="autocast" in rounded):
        embeddings = [projector(backbone(view)) for view in views]
    embeddings = [embedding.to(dtype) for embedding in embeddings]
    one, other = ((z - z.mean(0)) / torch.sqrt(z.var(0, unbiased=False) + 1e-5) for z in embeddings)
    c = one.T @ other / len(one)
    diagonal = torch.diagonal(c)
    return float(((diagonal - 1) ** 2).sum() + recipe.get("lambda", 0.0051) * ((c**2).sum() - (diagonal**2).sum()))


def main(folder="tests/golden"):
    for path in sorted(pathlib.Path(folder).glob("resnet*.json")):
        recipe = json.loads(path.read_text())
        weights = parameters(recipe)
        seeds = [recipe["seed"], *SEEDS]
        exact = [loss(recipe, weights, seed, torch.float64, ()) for seed in seeds]
        assert abs(exact[0] / recipe["loss"] - 1) < 1e-3, f"{path}: {exact[0]} is not {recipe['loss']}"
        for way, rounded in WAYS.items():
            off = np.array([loss(recipe, weights, s, torch.float32, rounded) for s in seeds]) / exact - 1
            spread = np.sqrt(np.mean(off[1:] ** 2))
            print(f"{path.stem}, {way:8}: own images {off[0]:+.1%}, others {spread:.1%}, at most {abs(off[1:]).max():.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
