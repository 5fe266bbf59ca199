#!/usr/bin/env python3
"""Makes tests/golden_extra/torch_save: one state dict in the forms that `torch.save` has and had.

    python tools/golden/torch_save.py tests/golden_extra/torch_save

`values.safetensors` has its tensors packed; `zip.pth` the state dict by itself, and so has the file
whose name has 21 letters, with which a ZIP64 directory may be taken for another; `legacy.pth.tar`, in
the form before PyTorch 1.6, the state dict beside an epoch and an optimizer's state; `wrapped.ckpt`,
by pickle's protocol 4, two of them behind names of their own, with objects of classes that only
their program knows.
"""
import collections
import os
import sys

import torch
from safetensors.torch import save_file


class Settings(dict):
    """What training programs put beside the weights."""

    def __init__(self):
        super().__init__(rate=0.1, sizes=[1, 2, (3, None)], path="x" * 300)
        self.note = b"bytes"


def main(folder):
    os.makedirs(folder, exist_ok=True)
    torch.manual_seed(0)
    flat = torch.randn(20)
    state = collections.OrderedDict()
    state["module.conv1.weight"] = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
    state["module.bn1.weight"] = torch.nn.Parameter(torch.randn(4).double())
    state["module.bn1.num_batches_tracked"] = torch.tensor(7)
    state["module.half"] = torch.randn(5).half()
    state["module.brain"] = torch.randn(5).bfloat16()
    state["module.int"] = torch.tensor([[1, -2, 3]], dtype=torch.int32)
    state["module.row"] = flat[2:8]
    state["module.turned"] = flat[8:].view(3, 4).t()
    state["module.empty"] = torch.zeros(0, 3)
    save_file({name: tensor.detach().clone(memory_format=torch.contiguous_format)
               for name, tensor in state.items()}, os.path.join(folder, "values.safetensors"))
    for name in ("zip.pth", "a_name_of_21_letters_.pth"):
        torch.save(state, os.path.join(folder, name))
    momentum = {0: {"momentum_buffer": torch.randn(4, 3), "mask": torch.tensor([True, False])}}
    whole = {"epoch": 3, "arch": "resnet18", "state_dict": state, "loss": 0.5,
             "optimizer": {"state": momentum, "param_groups": [{"lr": 0.1, "params": [0]}]}}
    torch.save(whole, os.path.join(folder, "legacy.pth.tar"), _use_new_zipfile_serialization=False)
    twins = {"settings": Settings(), "student": state, "teacher": state, "step": 2**40}
    torch.save(twins, os.path.join(folder, "wrapped.ckpt"), pickle_protocol=4)


main(sys.argv[1])
