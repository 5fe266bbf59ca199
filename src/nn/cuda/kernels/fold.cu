// A 7 x 7 convolution of stride 2 over three channels as a 4 x 4 one of stride 1 over sixteen: blocks of
// 2 x 2 pixels become channels. Tensor cores take their factors by many channels at a time, and of three
// they use little.
//
// Output y takes the pixels 2 y - 3 .. 2 y + 3: tap k lies in block y - 2 + (k + 1) / 2, there in row
// (k + 1) % 2. What the kernel has no tap for is zero. Channel 4 (2 row + column) + c of a block is channel
// c of that pixel; every fourth is zero.
#include "common.cuh"

// Blocks of zeros in front of an image's own, and behind them.
constexpr unsigned FOLD_BEFORE = 2, FOLD_AFTER = 1;
// Sides of the convolution's kernel and of the folded one, and channels of a pixel there.
constexpr unsigned STEM = 7, FOLDED = 4, OF_PIXEL = 4;

// From [images, h, w, 8], zeros behind three channels; a thread a pixel.
extern "C" __global__ void __launch_bounds__(256) fold_images(
    const bf16* __restrict__ from, bf16* __restrict__ to, unsigned h, unsigned w, unsigned pixels
) {
    unsigned i = global_thread();
    if (i >= pixels) return;
    unsigned fh = h / 2 + FOLD_BEFORE + FOLD_AFTER, fw = w / 2 + FOLD_BEFORE + FOLD_AFTER;
    unsigned place = i % 4, x = i / 4 % fw, line = i / 4 / fw;
    unsigned y = line % fh, image = line / fh;
    // Wraps below zero to a number beyond any side.
    unsigned px = 2 * (x - FOLD_BEFORE) + place % 2, py = 2 * (y - FOLD_BEFORE) + place / 2;
    Pack<bf16, 4> pixel = {};
    if (px < w && py < h) pixel = fetch<4>(from + (((u64)image * h + py) * w + px) * 8);
    *reinterpret_cast<Pack<bf16, 4>*>(to + (u64)i * OF_PIXEL) = pixel;
}

// From [outputs, 7, 7, 3] to [outputs, 4, 4, 16].
extern "C" __global__ void __launch_bounds__(256) fold_weight(
    const float* __restrict__ from, bf16* __restrict__ to, unsigned len
) {
    unsigned i = global_thread();
    if (i >= len) return;
    unsigned c = i % OF_PIXEL, place = i / OF_PIXEL % 4, tap = i / (4 * OF_PIXEL);
    unsigned tx = tap % FOLDED, ty = tap / FOLDED % FOLDED, o = tap / (FOLDED * FOLDED);
    // One more than the tap's row and column.
    unsigned kx = 2 * tx + place % 2, ky = 2 * ty + place / 2;
    bool is_tap = c < 3 && kx > 0 && ky > 0;
    float v[1] = {is_tap ? from[((o * STEM + ky - 1) * STEM + kx - 1) * 3 + c] : 0.0f};
    put<1>(to + i, v);
}

// The other way, for the gradient: what stood in the place of no tap is left out.
extern "C" __global__ void __launch_bounds__(256) unfold_weight(
    const bf16* __restrict__ from, float* __restrict__ to, unsigned len
) {
    unsigned i = global_thread();
    if (i >= len) return;
    unsigned c = i % 3, kx = i / 3 % STEM + 1, ky = i / 3 / STEM % STEM + 1, o = i / 3 / STEM / STEM;
    unsigned place = ky % 2 * 2 + kx % 2, tap = (o * FOLDED + ky / 2) * FOLDED + kx / 2;
    float v[1];
    read<1>(from + (tap * 4 + place) * OF_PIXEL + c, v);
    to[i] = v[0];
}
