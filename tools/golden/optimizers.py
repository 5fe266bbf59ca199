"""Reference vectors for SGD and AdamW: a few PyTorch steps in float64.

    python tools/golden/optimizers.py tests/golden_extra

Writes CASE.safetensors (init.NAME, stepN.grad.NAME, stepN.param.NAME) for each case of
optimizers.json, whose `optim` holds the options as this project names them.
"""

import json
import pathlib
import sys

import torch
from safetensors.torch import save_file

SHAPES = {"conv.weight": (3, 2, 3, 3), "bn.weight": (5,), "bn.bias": (5,), "fc.weight": (4, 6)}
LEARNING_RATES = [0.1, 0.05, 0.2, 0.01]


def optimizer(options, params):
    if options["optimizer"] == "sgd":
        return torch.optim.SGD(
            params, lr=1.0, momentum=options["momentum"],
            weight_decay=options["weight_decay"], nesterov=options["nesterov"])
    return torch.optim.AdamW(
        params, lr=1.0, betas=tuple(options["betas"]), eps=options["eps"],
        weight_decay=options["weight_decay"])


CASES = {
    "sgd": {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.01, "nesterov": False},
    "sgd_nesterov": {"optimizer": "sgd", "momentum": 0.8, "weight_decay": 0.1, "nesterov": True},
    "adamw": {"optimizer": "adamw", "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.05},
}


def main(out):
    torch.manual_seed(0)
    for name, options in CASES.items():
        params = {k: torch.randn(s, dtype=torch.float64).requires_grad_() for k, s in SHAPES.items()}
        tensors = {f"init.{k}": p.detach().clone() for k, p in params.items()}
        step = optimizer(options, params.values())
        for i, lr in enumerate(LEARNING_RATES):
            for key, param in params.items():
                param.grad = torch.randn_like(param)
                tensors[f"step{i}.grad.{key}"] = param.grad.clone()
            for group in step.param_groups:
                group["lr"] = lr
            step.step()
            tensors |= {f"step{i}.param.{k}": p.detach().clone() for k, p in params.items()}
        save_file(tensors, out / f"{name}.safetensors")
    cases = [{"name": n, "optim": o, "lr": LEARNING_RATES} for n, o in CASES.items()]
    document = {"versions": {"torch": torch.__version__}, "cases": cases}
    (out / "optimizers.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
