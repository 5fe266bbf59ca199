"""Makes pipeline/tests/fixtures/jpeg: small JPEGs and what Pillow decodes them to.

Run from anywhere with Pillow (made with 13.0.0, libjpeg-turbo 3.2.0):

    python tools/golden/jpeg.py

Each NAME.jpg has a NAME.png with the RGB pixels of `Image.open().convert("RGB")`.
Sampling factors that Pillow does not write are made by changing the factors (and
swapping width and height) in the header of a file with as many blocks in an MCU:
the picture is scrambled, but it is a valid JPEG of that kind. Sequential JPEGs with a
scan for each component, and progressive ones with scans of all kinds, are made by
jpegtran of libjpeg-turbo.
"""

import io
import math
import random
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

OUT = Path(__file__).resolve().parents[2] / "pipeline/tests/fixtures/jpeg"


def picture(width, height, seed):
    """Waves, an edge and some noise: every frequency, saturated colours too."""
    rng = random.Random(seed)
    phases = [rng.uniform(0, 6.28) for _ in range(6)]
    image = Image.new("RGB", (width, height))
    for y in range(height):
        for x in range(width):
            levels = []
            for c in range(3):
                wave = math.sin(x * (0.2 + 0.15 * c) + phases[c])
                wave += math.cos(y * (0.3 - 0.08 * c) + phases[c + 3])
                level = 128 + 70 * wave + rng.gauss(0, 12)
                if (x // 5 + y // 7) % 4 == 0:
                    level = 255 if c == seed % 3 else 0
                levels.append(max(0, min(255, int(level))))
            image.putpixel((x, y), tuple(levels))
    return image


def encode(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return bytearray(buffer.getvalue())


def frame_at(data):
    """Where the frame header's marker is."""
    at = 2
    while data[at + 1] not in (0xC0, 0xC1):
        at += 2 + data[at + 2] * 256 + data[at + 3]
    return at


def resample(data, factors, swap=False):
    """Writes other sampling factors for the first component."""
    at = frame_at(data)
    data[at + 11] = factors
    if swap:
        data[at + 5 : at + 9] = data[at + 7 : at + 9] + data[at + 5 : at + 7]
    return data


def drop_segment(data, marker):
    at = 2
    while data[at + 1] != marker:
        at += 2 + data[at + 2] * 256 + data[at + 3]
    del data[at : at + 2 + data[at + 2] * 256 + data[at + 3]]
    return data


def drop_tables(data):
    """Without Huffman tables, as Motion JPEG has its frames."""
    at = 2
    while at + 2 < len(data):
        if data[at] == 0xFF and data[at + 1] == 0xC4:
            del data[at : at + 2 + data[at + 2] * 256 + data[at + 3]]
        else:
            at += 1
    return data


def fill(data):
    """Fill bytes before every marker (T.81, B.1.1.2). Not before stuffed bytes: libjpeg passes over them there,
    but libjpeg-turbo 3.2's fast path then leaves coefficients in the block that it begins anew."""
    at, out = 2, data[:2]
    while data[at + 1] != 0xDA:
        end = at + 2 + data[at + 2] * 256 + data[at + 3]
        out += b"\xff\xff" + data[at:end]
        at = end
    for place in range(at, len(data)):
        marker = data[place] == 0xFF and data[place + 1] != 0
        out += b"\xff" * (place % 4) * marker + data[place : place + 1]
    return out


def rescan(data, script, *options):
    """The same coefficients in the scans of jpegtran's `script`."""
    with tempfile.NamedTemporaryFile("w", suffix=".scans") as file:
        file.write(script)
        file.flush()
        command = ["jpegtran", "-scans", file.name, *options]
        return subprocess.run(command, input=bytes(data), check=True, capture_output=True).stdout


# DC bit by bit, bands of AC bit by bit, in an order of its own for each component.
BIT_BY_BIT = """0,1,2: 0-0, 0, 2; 1: 1-63, 0, 3; 0: 1-5, 0, 3; 0: 6-63, 0, 3; 2: 1-63, 0, 0;
0,1,2: 0-0, 2, 1; 0: 1-63, 3, 2; 0: 1-63, 2, 1; 1: 1-63, 3, 2; 1: 1-63, 2, 1;
0: 1-63, 1, 0; 1: 1-63, 1, 0; 0: 0-0, 1, 0; 1,2: 0-0, 1, 0;"""


def cases():
    for sampling, sizes in (("4:2:0", ((1, 1), (5, 4), (17, 33), (75, 49))), ("4:4:4", ((17, 33),))):
        name = sampling.replace(":", "")
        for width, height in sizes:
            image = picture(width, height, width + height)
            data = encode(image, quality=85, subsampling=sampling, progressive=True)
            yield f"progressive_{name}_{width}x{height}", data
    data = encode(picture(64, 50, 21), quality=90, subsampling="4:2:2")
    yield "progressive_422_bit_by_bit", rescan(data, BIT_BY_BIT)
    data = encode(picture(50, 41, 22), quality=92, subsampling="4:2:0")
    data = rescan(data, BIT_BY_BIT, "-restart", "3B")
    yield "progressive_restarts", data
    yield "fill_bytes_progressive", fill(bytearray(data))
    noise = Image.frombytes("RGB", (40, 32), random.Random(23).randbytes(40 * 32 * 3))
    yield "progressive_noise_q100", encode(noise, quality=100, subsampling=0, progressive=True)
    gray = picture(33, 17, 24).convert("L")
    yield "progressive_gray_33x17", encode(gray, quality=85, progressive=True)
    data = encode(picture(43, 39, 25), quality=85, subsampling="4:2:0")
    data_by_component = rescan(data, "0; 1; 2;")
    yield "by_component_420", data_by_component
    yield "no_tables_by_component", drop_tables(bytearray(data_by_component))
    yield "by_component_restarts", rescan(data, "1,2; 0;", "-restart", "2B")
    for sampling in ("4:4:4", "4:2:0", "4:2:2"):
        name = sampling.replace(":", "")
        for width, height in ((1, 1), (2, 3), (3, 2), (5, 4), (8, 8), (9, 16), (16, 17), (17, 33)):
            image = picture(width, height, width + height)
            yield f"{name}_{width}x{height}", encode(image, quality=90, subsampling=sampling)
        yield f"{name}_75x49", encode(picture(75, 49, 3), quality=75, subsampling=sampling)
    for width, height in ((1, 1), (17, 33), (40, 24)):
        gray = picture(width, height, 5).convert("L")
        yield f"gray_{width}x{height}", encode(gray, quality=85)
    gray = picture(40, 24, 5).convert("L")
    yield "gray_factors_22", resample(encode(gray, quality=85), 0x22)
    for width, height in ((2, 5), (33, 17), (40, 70)):
        # 16 x 8 pixels an MCU turned into 8 x 16.
        data = encode(picture(height, width, 7), quality=88, subsampling="4:2:2")
        yield f"440_{width}x{height}", resample(data, 0x12, swap=True)
    # 16 x 16 pixels an MCU turned into 32 x 8 and 8 x 32: as many MCUs in 64 x 32.
    data = encode(picture(64, 32, 8), quality=88, subsampling="4:2:0")
    yield "411_64x32", resample(data, 0x41)
    data = encode(picture(32, 64, 9), quality=88, subsampling="4:2:0")
    yield "factors_14_32x64", resample(data, 0x14)
    yield "rgb_adobe_31x19", encode(picture(31, 19, 10), quality=90, keep_rgb=True)
    data = encode(picture(31, 19, 10), quality=90, keep_rgb=True)
    yield "rgb_ids_31x19", drop_segment(data, 0xEE)
    for blocks in (1, 3, 7):
        data = encode(picture(50, 41, 11), subsampling="4:2:0", restart_marker_blocks=blocks)
        yield f"restart_{blocks}", data
    data = encode(picture(50, 41, 12), subsampling="4:4:4", restart_marker_rows=2)
    yield "restart_rows_2", data
    yield "optimized_q100", encode(picture(48, 40, 13), quality=100, subsampling=0, optimize=True)
    yield "q5", encode(picture(48, 40, 14), quality=5, optimize=True)
    noise = Image.frombytes("RGB", (40, 32), random.Random(15).randbytes(40 * 32 * 3))
    yield "noise_q100", encode(noise, quality=100, subsampling=0)
    data = encode(picture(50, 41, 16), quality=95, subsampling="4:2:0", restart_marker_blocks=2)
    yield "fill_bytes_restarts", fill(data)
    yield "no_tables_420", drop_tables(encode(picture(50, 41, 18), quality=85, subsampling="4:2:0"))
    gray = picture(40, 24, 19).convert("L")
    yield "no_tables_gray", drop_tables(encode(gray, quality=85))


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for name, data in cases():
        (OUT / f"{name}.jpg").write_bytes(data)
        Image.open(io.BytesIO(data)).convert("RGB").save(OUT / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
