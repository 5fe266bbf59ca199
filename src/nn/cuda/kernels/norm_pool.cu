// BatchNorm and ReLU in front of a 3 x 3 max pool of stride 2 with a border of 1, as in an ImageNet stem.
//
// The tensor between them is the network's largest, and it and its gradient are read once each: here
// neither is written. Values are what `norm_apply` and `max_pool` make of them one after the other.
#include "common.cuh"

// A value as the tensor that is not written would hold it: its ties are the pool's.
template <typename T>
DEVICE float stored(float v) {
    if constexpr (sizeof(T) == 2) return __bfloat162float(__float2bfloat16_rn(v));
    return v;
}

// Images in front of the pool; behind it a side is half as long, rounded up.
struct Stem {
    unsigned h, w;

    DEVICE unsigned out_h() const { return (h + 1) / 2; }
    DEVICE unsigned out_w() const { return (w + 1) / 2; }
};

// Window `row` of a batch, counted over all images, by its image and place.
struct Window {
    unsigned image, y, x;

    static DEVICE Window of(unsigned row, Stem s) {
        unsigned line = row / s.out_w();
        return {line / s.out_h(), line % s.out_h(), row % s.out_w()};
    }

    // The first element of an image's pixel.
    DEVICE u64 pixel(Stem s, unsigned py, unsigned px, unsigned channels) const {
        return (((u64)image * s.h + py) * s.w + px) * channels;
    }
};

// The maximum of each window, and the first tap that has it; NaN wins. Rows are windows.
template <typename T, int V>
DEVICE void apply_pool(
    const T* __restrict__ x, T* __restrict__ y, unsigned char* winner, Vectors own, Stem s, unsigned rows,
    unsigned channels, unsigned rows_per_part
) {
    Tile t = Tile::of<V>(rows, channels, rows_per_part);
    if (!t.active) return;
    float scale[V], shift[V];
    own.affine<V>(t, channels, scale, shift);
    for (unsigned r = t.row; r < t.end; r += t.step) {
        Window at = Window::of(blockIdx.z * rows + r, s);
        // A pixel beyond the border is read as one within, so that no load waits for a branch.
        Pack<T, V> packs[9];
        bool inside[9];
#pragma unroll
        for (int tap = 0; tap < 9; tap++) {
            // Wraps below zero to a number beyond any height.
            unsigned py = 2 * at.y + tap / 3 - 1, px = 2 * at.x + tap % 3 - 1;
            inside[tap] = py < s.h && px < s.w;
            py = inside[tap] ? py : 2 * at.y, px = inside[tap] ? px : 2 * at.x;
            packs[tap] = fetch<V>(x + at.pixel(s, py, px, channels) + t.channel);
        }
        float best[V];
        unsigned won[V];
        for (int i = 0; i < V; i++) best[i] = -INFINITY, won[i] = 0;
#pragma unroll
        for (int tap = 0; tap < 9; tap++) {
            float v[V];
            unpack(packs[tap], v);
            for (int i = 0; i < V; i++) {
                v[i] = stored<T>(relu(__fmaf_rn(v[i], scale[i], shift[i])));
                // Of && and || the compiler makes branches, in a loop that waits for nothing else.
                bool larger = inside[tap] & ((v[i] > best[i]) | (v[i] != v[i]));
                best[i] = larger ? v[i] : best[i];
                won[i] = larger ? tap : won[i];
            }
        }
        put<V>(y + t.at(r, channels), best);
        if (winner) put_bytes<V>(winner + t.at(r, channels), won);
    }
}

// A window's middle pixel and those to its right, below, and both: the four that no other quad has. They
// gather from this window and the three on those sides; pixel and window 2 b + r lie b below and r to the
// right.
template <typename T, int V>
struct Quad {
    Pack<T, V> x[4], dy[4];
    unsigned won[4][V];
    u64 at[4];
    bool inside[4];

    DEVICE void load(
        const T* from, const T* __restrict__ grad, const unsigned char* __restrict__ winner, const Tile& t,
        unsigned r, Stem s, unsigned rows, unsigned channels
    ) {
        Window middle = Window::of(blockIdx.z * rows + r, s);
        u64 own = t.at(r, channels);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            unsigned below = k / 2, right = k % 2;
            unsigned py = 2 * middle.y + below, px = 2 * middle.x + right;
            inside[k] = py < s.h && px < s.w;
            at[k] = middle.pixel(s, inside[k] ? py : 2 * middle.y, inside[k] ? px : 2 * middle.x, channels);
            at[k] += t.channel;
            x[k] = fetch<V>(from + at[k]);
            // A window that there is not is the own one with a gradient of zero.
            bool exists = middle.y + below < s.out_h() && middle.x + right < s.out_w();
            u64 window = exists ? own + ((u64)below * s.out_w() + right) * channels : own;
            dy[k] = exists ? fetch<V>(grad + window) : Pack<T, V>{};
            read_bytes<V>(winner + window, won[k]);
        }
    }

    // The pool's gradient of pixel k, in `max_pool_grad`'s order.
    DEVICE void gather(int k, float (&d)[V]) const {
        for (int i = 0; i < V; i++) d[i] = 0.0f;
#pragma unroll
        for (int from = 3; from >= 0; from--) {
            int below = k / 2, right = k % 2, wy = from / 2, wx = from % 2;
            if (wy > below || wx > right) continue;
            unsigned tap = (below + 1 - 2 * wy) * 3 + right + 1 - 2 * wx;
            float v[V];
            unpack(dy[from], v);
            for (int i = 0; i < V; i++) d[i] += won[from][i] == tap ? v[i] : 0.0f;
        }
        // One window's alone is of the type already.
        for (int i = 0; i < V; i++) d[i] = k == 0 ? d[i] : stored<T>(d[i]);
    }
};

// As `grad_sums`, whose dout is the pool's gradient; rows are quads.
template <typename T, int V>
DEVICE void pool_grad_sums(
    const T* __restrict__ x, const T* __restrict__ dy, const unsigned char* __restrict__ winner,
    Vectors own, float* partial, Stem s, unsigned rows, unsigned channels, unsigned rows_per_part
) {
    Tile t = Tile::of<V>(rows, channels, rows_per_part);
    float sum[V] = {}, sum_dz_centred[V] = {};
    if (t.active) {
        float mean[V], scale[V], shift[V];
        read<V>(own.saved + (u64)blockIdx.z * channels + t.channel, mean);
        own.affine<V>(t, channels, scale, shift);
        for (unsigned r = t.row; r < t.end; r += t.step) {
            Quad<T, V> quad;
            quad.load(x, dy, winner, t, r, s, rows, channels);
#pragma unroll
            for (int k = 0; k < 4; k++) {
                if (!quad.inside[k]) continue;
                float v[V], d[V];
                unpack(quad.x[k], v), quad.gather(k, d);
                mask<V, FROM_INPUT>(d, v, 0, scale, shift);
                for (int i = 0; i < V; i++) {
                    sum[i] += d[i];
                    sum_dz_centred[i] += d[i] * (v[i] - mean[i]);
                }
            }
        }
    }
    put_sums<V>(sum, sum_dz_centred, partial, channels);
}

// As `grad_apply`; dx may be x.
template <typename T, int V>
DEVICE void pool_grad_apply(
    const T* x, const T* __restrict__ dy, const unsigned char* __restrict__ winner, T* dx, Vectors own,
    const float* constants, Stem s, unsigned rows, unsigned channels, unsigned rows_per_part
) {
    Tile t = Tile::of<V>(rows, channels, rows_per_part);
    if (!t.active) return;
    float scale[V], shift[V];
    InputGradCoefficients<V> coefficients;
    coefficients.take(constants, t, channels);
    own.affine<V>(t, channels, scale, shift);
    for (unsigned r = t.row; r < t.end; r += t.step) {
        Quad<T, V> quad;
        quad.load(x, dy, winner, t, r, s, rows, channels);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            if (!quad.inside[k]) continue;
            float v[V], d[V];
            unpack(quad.x[k], v), quad.gather(k, d);
            mask<V, FROM_INPUT>(d, v, 0, scale, shift);
            for (int i = 0; i < V; i++) d[i] = coefficients.at(i, d[i], v[i]);
            put<V>(dx + quad.at[k], d);
        }
    }
}

#define NORM_POOL(T, V, S)                                                                            \
    extern "C" __global__ void __launch_bounds__(256) norm_pool_##S(                                  \
        const T* x, T* y, unsigned char* winner, const float* gamma, const float* beta,               \
        const float* saved, unsigned h, unsigned w, unsigned rows, unsigned channels,                 \
        unsigned rows_per_part                                                                        \
    ) {                                                                                               \
        apply_pool<T, V>(                                                                             \
            x, y, winner, {gamma, beta, saved}, {h, w}, rows, channels, rows_per_part                 \
        );                                                                                            \
    }                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256) norm_pool_grad_sums_##S(                        \
        const T* x, const T* dy, const unsigned char* winner, const float* gamma, const float* beta,  \
        const float* saved, float* partial, unsigned h, unsigned w, unsigned rows, unsigned channels, \
        unsigned rows_per_part                                                                        \
    ) {                                                                                               \
        pool_grad_sums<T, V>(                                                                         \
            x, dy, winner, {gamma, beta, saved}, partial, {h, w}, rows, channels, rows_per_part       \
        );                                                                                            \
    }                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256) norm_pool_grad_apply_##S(                       \
        const T* x, const T* dy, const unsigned char* winner, T* dx, const float* gamma,              \
        const float* beta, const float* saved, const float* constants, unsigned h, unsigned w,        \
        unsigned rows, unsigned channels, unsigned rows_per_part                                      \
    ) {                                                                                               \
        pool_grad_apply<T, V>(                                                                        \
            x, dy, winner, dx, {gamma, beta, saved}, constants, {h, w}, rows, channels, rows_per_part \
        );                                                                                            \
    }
NORM_POOL(float, 1, v1_f32)
NORM_POOL(float, 8, v8_f32)
NORM_POOL(bf16, 1, v1_bf16)
NORM_POOL(bf16, 8, v8_bf16)
