#!/usr/bin/env python3
"""Walks a newcomer's path: every command of README.md's first sections, as it stands there, in a fresh clone.

    tools/newcomer.py                          # clones into a temporary folder, builds, runs all
    tools/newcomer.py --images FOLDER          # path/to/images is this, not drawn ones; what is shown is of drawn
                                               # ones, so that only success is checked
    tools/newcomer.py --quick                  # the same, trained on less for a shorter time
    tools/newcomer.py --skip quickstart        # passes over commands that hold this word; may be repeated
    tools/newcomer.py --python PYTHON          # with torch, torchvision, timm, onnxruntime, safetensors

A block of `sh` is run as it is pasted, all blocks in one shell. Where a block of `text` follows, that is what the
README says the block prints on standard output: it must be, but for numbers, names of units behind them, and lines
that the README leaves out with `...`. A block of `python` is run by --python. `CARGO_TARGET_DIR` is used where it
is set, so that what is built already is not built again. Exit code 1 where a command fails or prints
something else.
"""

import argparse
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
SECTIONS = ["Quickstart", "Your own images"]
NUMBER = re.compile(r"[-+]?\d[\d.,]*(e[-+]?\d+)?")
UNIT = re.compile(r"# ?(B|KiB|MiB|GiB|kB|KB|MB|GB|us|ms|s|min|h)\b")


def blocks(readme):
    """(language, text) of each fenced block of SECTIONS."""
    for section in re.split(r"^## ", readme, flags=re.M)[1:]:
        if section.splitlines()[0] in SECTIONS:
            yield from re.findall(r"^```(\w+)\n(.*?)^```$", section, flags=re.M | re.S)


def form(line):
    """A line without what may differ between two machines."""
    line = re.sub(r"\S*/runs/", "/runs/", line.rstrip())
    line = UNIT.sub("#u", NUMBER.sub("#", line))
    return re.sub(r"#u( #u)+", "#u", re.sub(r"\s+", " ", line))


def differs(shown, printed):
    """The first line of what is shown that is not printed in its place, or None."""
    lines, free = [form(line) for line in printed.splitlines()], False
    for line in shown.splitlines():
        if line.strip() == "...":
            free = True
            continue
        if free and form(line) in lines:
            lines = lines[lines.index(form(line)):]
        if not lines or lines.pop(0) != form(line):
            return line
        free = False
    return f"(the end, but there is more: {lines[0]})" if lines and not free else None


def shorter(text):
    text = text.replace("-- quickstart", "-- quickstart --images 640 --test-images 120 --epochs 1")
    return text.replace("--epochs 10", "--epochs 1")


def without_skipped(text, skip):
    kept = [line for line in text.replace("\\\n", "").splitlines() if not any(word in line for word in skip)]
    return "\n".join(kept) + "\n"


class Path:
    """The shell, and what went wrong."""

    def __init__(self, folder, args):
        self.folder, self.args, self.failures, self.environment = folder, args, 0, dict(os.environ)

    def run(self, text):
        """What the commands print; the shell's variables stay for the next."""
        state = self.folder / ".environment"
        # `set -e` passes over what fails left of `&&`.
        lines = text.replace(" && ", "\n")
        script = f"set -e\n{lines}\nenv -0 > {shlex.quote(str(state))}\n"
        done = subprocess.run(["bash", "-c", script], cwd=self.folder, env=self.environment, text=True, stdout=subprocess.PIPE)
        if done.returncode == 0:
            self.environment = dict(pair.split("=", 1) for pair in state.read_text().split("\0") if "=" in pair)
        return done.returncode, done.stdout

    def check(self, what, problem, output=""):
        print(f"{'FAILED ' if problem else 'ok     '} {what}", flush=True)
        if problem:
            self.failures += 1
            print(f"        {problem}\n" + "".join(f"        | {line}\n" for line in output.splitlines()))

    def walk(self, found):
        for number, (language, text) in enumerate(found):
            follows = found[number + 1] if number + 1 < len(found) else ("", "")
            if language == "sh":
                text = without_skipped(shorter(text) if self.args.quick else text, self.args.skip)
                if not text.strip():
                    continue
                code, output = self.run(text)
                problem = f"exit code {code}" if code else None
                if not problem and follows[0] == "text" and not self.args.images:
                    line = differs(follows[1], output)
                    problem = line and f"the README shows, but it does not print: {line}"
                self.check(" && ".join(line.split("  #")[0].strip() for line in text.splitlines()), problem, output)
            elif language == "python":
                if not self.args.python:
                    print("skipped the block of Python: --python PYTHON")
                    continue
                done = subprocess.run([self.args.python, "-c", text], cwd=self.folder, env=self.environment, text=True,
                                      stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
                self.check("the block of Python", done.returncode and f"exit code {done.returncode}", done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=pathlib.Path, help="a folder with train/ and val/, each an ImageFolder tree")
    parser.add_argument("--quick", action="store_true", help="train on less, for a shorter time")
    # CI runs it by itself.
    parser.add_argument("--skip", action="append", default=["cargo test"], metavar="WORD")
    parser.add_argument("--python", type=lambda path: os.path.abspath(path))
    args = parser.parse_args()
    if args.images:
        args.skip += ["shard synth"]
    with tempfile.TemporaryDirectory() as folder:
        clone = pathlib.Path(folder) / "bt-stream"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        path = Path(clone, args)
        target = pathlib.Path(path.environment.get("CARGO_TARGET_DIR", clone / "target")).resolve()
        if "CARGO_TARGET_DIR" in path.environment:
            # The README's commands name the folder.
            path.environment["CARGO_TARGET_DIR"] = str(target)
            (clone / "target").symlink_to(target)
        if args.images:
            (clone / "path/to").mkdir(parents=True)
            (clone / "path/to/images").symlink_to(args.images.resolve())
        path.walk(list(blocks((clone / "README.md").read_text())))
    sys.exit(path.failures > 0)


if __name__ == "__main__":
    main()
