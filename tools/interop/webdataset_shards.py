#!/usr/bin/env python3
"""Shows the interchange with Python's webdataset, GNU tar and zstd by hand.

    python3 tools/interop/webdataset_shards.py path/to/shard

`path/to/shard` is the built binary (target/release/shard). Needs webdataset and
Pillow; tar and zstd where they are. Prints one line per check and
exits with 1 when one fails.
"""

import io
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import webdataset
from PIL import Image

failures = 0


def check(name, good):
    global failures
    failures += not good
    print(("ok     " if good else "FAILED ") + name)


def picture(i):
    out = io.BytesIO()
    Image.new("RGB", (40 + i, 30), (i * 9 % 256, 80, 200)).save(out, "JPEG", quality=90)
    return out.getvalue()


def listing(shard, pattern):
    out = subprocess.run([shard, "ls", "--json", pattern], check=True, capture_output=True, text=True).stdout
    return [json.loads(line) for line in out.splitlines()]


def main():
    shard = str(pathlib.Path(sys.argv[1]).resolve())
    root = pathlib.Path(tempfile.mkdtemp())
    samples = [(f"class{i % 3}/{'long' * (i % 2) * 40}{i:03}", i % 3, picture(i)) for i in range(30)]
    tree = root / "tree"
    for key, label, image in samples:
        path = tree / (key + ".jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
        path.with_suffix(".cls").write_text(str(label))
    expected = {(key, label, image) for key, label, image in samples}

    for kind, flags in [("tar", []), ("tar.zst", ["--zstd"])]:
        out = root / f"packed-{kind}"
        subprocess.run([shard, "pack", str(tree), str(out), "--samples-per-shard", "10", *flags], check=True)
        pattern = f"{out}/shard-{{000000..000002}}.{kind}"
        if kind == "tar.zst":
            pattern = f"pipe:zstd -dcq {pattern}"
        data = webdataset.WebDataset(pattern, shardshuffle=False)
        read = {(s["__key__"], int(s["cls"]), s["jpg"]) for s in data}
        check(f"webdataset {webdataset.__version__} reads packed .{kind}", read == expected)

    with webdataset.ShardWriter(str(root / "wds-%06d.tar"), maxcount=10, verbose=0) as writer:
        for key, label, image in samples:
            writer.write({"__key__": key, "jpg": image, "cls": label, "json": {"a": 1}})
    read = listing(shard, f"{root}/wds-{{000000..000002}}.tar")
    check("shards of webdataset.ShardWriter are listed", [(s["key"], s["label"], s["length"]) for s in read]
          == [(key, label, len(image)) for key, label, image in samples])
    subprocess.run([shard, "index", f"{root}/wds-*.tar"], check=True, capture_output=True)
    verified = subprocess.run([shard, "verify", f"{root}/wds-*.tar"], capture_output=True, text=True)
    check("... indexed and verified: " + verified.stdout.strip(), verified.returncode == 0)

    for form in ["gnu", "pax", "ustar"] if shutil.which("tar") else []:
        tar = root / f"{form}.tar"
        made = subprocess.run(["tar", f"--format={form}", "--sort=name", "-cf", str(tar), "-C", str(tree), "."],
                              capture_output=True)
        if made.returncode:
            print(f"skip   tar --format={form}: {made.stderr.decode().splitlines()[0]}")
            continue
        good = {(s["key"].removeprefix("./"), s["label"]) for s in listing(shard, str(tar))}
        check(f"tar --format={form} is read", good == {(key, label) for key, label, _ in samples})
        if shutil.which("zstd"):
            subprocess.run(["zstd", "-q", str(tar)], check=True)
            check("... and compressed by zstd", len(listing(shard, str(tar) + ".zst")) == len(samples))
    shutil.rmtree(root)
    sys.exit(failures > 0)


main()
