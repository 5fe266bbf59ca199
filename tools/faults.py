#!/usr/bin/env python3
"""Fails the n-th system call of a command, for every n, every kind of call and several errors.

    tools/faults.py [--bin target/release] [--every K] [SCENARIO...]

Wants Linux and strace (5.3 or later), which answers a call with an error in the system's place (`-e inject`). Each
scenario runs a command of `shard` or `bt-stream` on small drawn data in a folder of its own, once undisturbed, then
once for each fault: the n-th call of a kind in each thread fails, for n from 1 until no thread makes as many; or the
process is killed at it. Then

  - an exit code of 0 means that the folder is as without a fault; of a repair, or that it tells of the disk's error;
  - nothing panics, hangs or is ended by a signal that nobody sent, and an error is told;
  - what is only read stays as it is, byte for byte;
  - the command that mends it (the same again, of a repair and of `unpack` into an empty folder, or `train --resume`)
    ends with 0 and the folder as without a fault.

Prints what breaks one of these, with the strace arguments that show it, and how many runs there were; ends with 1 where
something does. `--every K` takes only every K-th n, for a look.
"""

import argparse
import collections
import re
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

# Calls by what they do, and errors that a system may answer with.
CALLS = {
    "open,openat": ["EMFILE", "EIO"],
    "read,pread64": ["EIO", "EINTR"],
    "write,pwrite64": ["ENOSPC", "EIO", "EINTR"],
    "fsync,fdatasync": ["EIO", "ENOSPC"],
    "rename,renameat,renameat2": ["EIO", "ENOSPC", "SIGKILL"],
    "unlink,unlinkat,rmdir": ["EIO", "SIGKILL"],
    "mkdir,mkdirat": ["ENOSPC", "SIGKILL"],
    "ftruncate,fallocate": ["ENOSPC"],
    "mmap": ["ENOMEM"],
    "stat,lstat,statx,newfstatat,fstat": ["EIO", "EMFILE"],
    "getdents64": ["EIO"],
    "flock,fchmod,chmod,fchmodat": ["EPERM"],
}
# The dynamic loader, or the runtime of the language, met the fault before the program began.
BEFORE_IT_BEGINS = ("error while loading shared libraries", "initialization or cleanup bug")
LIMIT_S = 60

SETTINGS = """
data.train = "set"
data.threads = 1
data.val = "set"
views = { preset = "barlow-cifar", both.random_resized_crop.size = 16 }
model = { arch = "resnet18", width = 4, stem = "cifar", projector = "16-16" }
optim = { optimizer = "adamw", warmup_epochs = 0.0 }
train = { dir = "run", epochs = 2, batch_size = 8, threads = 1, device = "cpu", log_every = 1, tensorboard = false }
checkpoint = { keep = 1, every_steps = 2 }
"""

Scenario = collections.namedtuple("Scenario", "prepare command mend reads", defaults=[None, ()])


def scenarios(shard, bt):
    """Name -> how its folder is prepared, what runs under faults, what mends it, and which files it only reads."""
    one = "--threads=1"

    def synth(folder, *more):
        size = ["--images", "12", "--side", "16", "--samples-per-shard", "5"]
        return [shard, "synth", folder, "--prefix", "shard", *size, one, *more]

    images = [synth("set"), [shard, "unpack", "set", "img"]]
    pack = [shard, "pack", "img", "out", "--samples-per-shard", "5", one]
    again = [*pack, "--zstd", "--overwrite"]
    trained = [[bt, "train", "--config", "run.toml"]]
    return {
        "pack": Scenario(images, pack, [*pack, "--overwrite"], ["img", "set"]),
        "recode": Scenario(images, [*pack, "--recode"], [*pack, "--recode", "--overwrite"], ["img"]),
        "overwrite": Scenario([*images, pack], again, again, ["img"]),
        "synth": Scenario([], synth("out"), synth("out", "--overwrite"), []),
        "index": Scenario([synth("set"), ["sh", "-c", "rm set/*.idx"]],
                          [shard, "index", "set", "--manifest", "set/shard.manifest.json", one],
                          [shard, "index", "set", "--manifest", "set/shard.manifest.json", one],
                          [f"set/shard-00000{i}.tar" for i in range(3)]),
        "verify": Scenario([synth("set", "--zstd")], [shard, "verify", "set", one], None, ["set"]),
        "repair": Scenario([synth("set"), ["truncate", "-s", "-9000", "set/shard-000001.tar"]],
                           [shard, "verify", "set", "--repair", "out", one],
                           ["sh", "-c", f"rm -rf out && {shard} verify set --repair out {one}"], ["set"]),
        "unpack": Scenario([synth("set")], [shard, "unpack", "set", "img"],
                           ["sh", "-c", f"rm -rf img && {shard} unpack set img"], ["set"]),
        "train": Scenario([synth("set")], *trained, [*trained[0], "--resume"], ["set"]),
        "embed": Scenario([synth("set"), *trained], [bt, "embed", "run", "set", "features.npy"],
                          [bt, "embed", "run", "set", "features.npy"], ["set", "run/checkpoints"]),
        "export": Scenario([synth("set"), *trained], [bt, "export", "run", "backbone.safetensors"],
                           [bt, "export", "run", "backbone.safetensors"], ["set", "run/checkpoints"]),
    }


def tree(folder, within=None, temporary=True):
    """Relative path -> hash of the content, of what a run leaves; without what has a temporary name, on demand."""
    found = {}
    checkpoints = sorted(path.name for path in folder.glob("run/checkpoints/step-*"))
    roots = [folder / part for part in within] if within is not None else [folder]
    for root in roots:
        for path in [root, *sorted(root.rglob("*"))] if root.exists() else []:
            name = str(path.relative_to(folder))
            hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
            if not path.is_file() or path.name == ".lock" or (hidden and not temporary):
                continue
            # One that could not be removed, or lines that a run which began anew has put aside.
            if path.parent.name in checkpoints[:-1] or path.name == "aside-metrics.jsonl":
                continue
            content = path.read_bytes()
            if path.name in ("metrics.jsonl", "summary.json"):
                content = timeless(content)
            elif path.name == "state.json":
                state = json.loads(content)
                content = json.dumps([state[key] for key in ("step", "position", "files")]).encode()
            found[name] = hashlib.sha256(content).hexdigest()
    return found


def timeless(content):
    """What a run logs, without what depends on the clock; a step that was logged twice counts once."""
    timed = ("seconds", "began", "images_per_s", "wait", "limit")
    lines = []
    for line in content.decode().splitlines():
        try:
            line = {key: value for key, value in json.loads(line).items() if key not in timed}
        except (ValueError, AttributeError):
            continue
        if "step" in line and line not in lines:
            lines.append(line)
    return json.dumps(sorted(lines, key=lambda line: line["step"])).encode()


def run(command, folder):
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=LIMIT_S)
        return done.returncode, (done.stdout + done.stderr).decode(errors="replace")
    except subprocess.TimeoutExpired:
        return "hang", ""


def broken(scenario, fault, folder, before, after):
    """What a command that met a fault did wrong, or None; whether there was such a fault."""
    log = folder.with_suffix(".strace")
    calls, error = fault[0], fault[1]
    how = f"signal={error}" if error.startswith("SIG") else f"error={error}"
    inject = ["-e", f"inject={calls}:{how}:when={fault[2]}"]
    code, said = run(["strace", "-f", "-qq", "--seccomp-bpf", "-o", str(log), "-e", f"trace={calls}", *inject,
                      *scenario.command], folder)
    met = [line for line in log.read_text(errors="replace").splitlines() if "INJECTED" in line or "killed by" in line]
    if not met:
        return None, False
    # Or what it would have said could not be written.
    if any(text in said for text in BEFORE_IT_BEGINS) or any(re.search(r"write\([12],", line) for line in met):
        return None, True
    if code == "hang" or "panicked" in said:
        return f"{code}: {said[-300:]}", True
    if tree(folder, scenario.reads) != before:
        return "what is only read has changed", True
    if code == 0:
        # What cannot be removed once all is in place is a warning; the next command removes it.
        wrong = differs("exit code 0, and the folder is another", tree(folder, temporary=False), after)
        # To a repair, a place that the disk cannot read is damage, which it lists.
        told = "--repair" in scenario.command and error == "EIO" and "Input/output error" in said
        return (None if told else wrong), True
    if not error.startswith("SIG"):
        if not isinstance(code, int) or code < 0 or code > 3:
            return f"exit code {code}: {said[-300:]}", True
        if not said.strip():
            return f"exit code {code} without a word", True
    if scenario.mend is not None:
        code, said = run(scenario.mend, folder)
        if code != 0:
            return f"cannot be mended, exit code {code}: {said[-300:]}", True
        return differs("mended to something else", tree(folder), after), True
    return None, True


def differs(what, found, wanted):
    names = sorted({name for name, _ in found.items() ^ wanted.items()})
    return f"{what}: {', '.join(names[:5])}" if names else None


def begins(program, folder):
    """Maps that a program makes before it begins: without those its loader ends it by a signal."""
    log = folder.with_suffix(".strace")
    run(["strace", "-qq", "-o", str(log), "-e", "trace=mmap", program, "--version"], folder)
    return len(log.read_text().splitlines())


def sweep(name, scenario, work, every):
    start = work / f"{name}.start"
    start.mkdir()
    (start / "run.toml").write_text(SETTINGS)
    for command in scenario.prepare:
        code, said = run(command, start)
        assert code == 0, f"{name}: {command}: {code}: {said}"
    before = tree(start, scenario.reads)
    calm = work / f"{name}.calm"
    shutil.copytree(start, calm)
    code, said = run(scenario.command, calm)
    assert code in (0, 1), f"{name}: {code}: {said}"
    after, runs, wrong = tree(calm), 0, 0
    folder = work / f"{name}.now"
    for calls, errors in CALLS.items():
        for error in errors:
            nth = 1 + (begins(scenario.command[0], start) if calls == "mmap" else 0)
            while True:
                shutil.rmtree(folder, ignore_errors=True)
                shutil.copytree(start, folder)
                what, met = broken(scenario, (calls, error, nth), folder, before, after)
                if not met:
                    break
                runs += 1
                if what is not None:
                    wrong += 1
                    print(f"{name}: -e inject={calls}:{error}:when={nth}: {what}", flush=True)
                nth += every
    print(f"{name}: {runs} runs, {wrong} of them wrong", flush=True)
    return runs, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", default="target/release", type=pathlib.Path)
    parser.add_argument("--every", default=1, type=int)
    parser.add_argument("scenario", nargs="*")
    args = parser.parse_args()
    programs = [str((args.bin / name).resolve()) for name in ("shard", "bt-stream")]
    known = scenarios(*programs)
    with tempfile.TemporaryDirectory() as work:
        totals = [sweep(name, known[name], pathlib.Path(work), args.every) for name in args.scenario or known]
    runs, wrong = (sum(column) for column in zip(*totals))
    print(f"{runs} runs, {wrong} of them wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
