// Max pool with the winners' taps, and global average pool, over NHWC.
#include "common.cuh"

// A pool's sizes; `size` is what an image has on the other side.
struct Pool {
    unsigned h, w, out_h, out_w, channels, kernel, stride, pad;
};

// Vector `index` of a [.., h, w, channels] tensor: its pixel and channel.
struct Place {
    unsigned image, y, x, channel;

    template <int V>
    static DEVICE Place of(unsigned index, unsigned h, unsigned w, unsigned channels) {
        unsigned vectors = channels / V, pixel = index / vectors, line = pixel / w;
        return {line / h, line % h, pixel % w, (index % vectors) * V};
    }
};

template <int V>
DEVICE void put_bytes(unsigned char* to, const unsigned (&v)[V]) {
    if constexpr (V == 1) {
        *to = (unsigned char)v[0];
    } else {
        *reinterpret_cast<uint2*>(to) = make_uint2(
            v[0] | v[1] << 8 | v[2] << 16 | v[3] << 24, v[4] | v[5] << 8 | v[6] << 16 | v[7] << 24
        );
    }
}

template <int V>
DEVICE void read_bytes(const unsigned char* from, unsigned (&v)[V]) {
    if constexpr (V == 1) {
        v[0] = *from;
    } else {
        uint2 raw = *reinterpret_cast<const uint2*>(from);
        for (int i = 0; i < 4; i++) {
            v[i] = raw.x >> (8 * i) & 255;
            v[4 + i] = raw.y >> (8 * i) & 255;
        }
    }
}

// The maximum of each window and the first tap (ky * kernel + kx) that has it; NaN wins.
template <typename T, int V>
DEVICE void max_pool(
    const T* __restrict__ x, T* __restrict__ y, unsigned char* winner, unsigned count, Pool s
) {
    u64 index = global_thread();
    if (index >= count) return;
    Place p = Place::of<V>((unsigned)index, s.out_h, s.out_w, s.channels);
    float best[V];
    unsigned won[V];
    for (int i = 0; i < V; i++) best[i] = -INFINITY, won[i] = 0;
    for (unsigned ky = 0; ky < s.kernel; ky++) {
        // Wraps below zero to a number beyond any height.
        unsigned at_y = p.y * s.stride + ky - s.pad;
        if (at_y >= s.h) continue;
        for (unsigned kx = 0; kx < s.kernel; kx++) {
            unsigned at_x = p.x * s.stride + kx - s.pad;
            if (at_x >= s.w) continue;
            float v[V];
            read<V>(x + (((u64)p.image * s.h + at_y) * s.w + at_x) * s.channels + p.channel, v);
            for (int i = 0; i < V; i++) {
                bool larger = v[i] > best[i] || v[i] != v[i];
                best[i] = larger ? v[i] : best[i];
                won[i] = larger ? ky * s.kernel + kx : won[i];
            }
        }
    }
    put<V>(y + index * V, best);
    if (winner) put_bytes<V>(winner + index * V, won);
}

// Each input pixel gathers what the windows over it have won there: no atomics, a fixed order.
template <typename T, int V>
DEVICE void max_pool_grad(
    const T* __restrict__ dy, const unsigned char* __restrict__ winner, T* __restrict__ dx,
    unsigned count, Pool s
) {
    u64 index = global_thread();
    if (index >= count) return;
    Place p = Place::of<V>((unsigned)index, s.h, s.w, s.channels);
    float sum[V] = {};
    for (unsigned ky = (p.y + s.pad) % s.stride; ky < s.kernel && ky <= p.y + s.pad; ky += s.stride) {
        unsigned oy = (p.y + s.pad - ky) / s.stride;
        if (oy >= s.out_h) continue;
        for (unsigned kx = (p.x + s.pad) % s.stride; kx < s.kernel && kx <= p.x + s.pad;
             kx += s.stride) {
            unsigned ox = (p.x + s.pad - kx) / s.stride;
            if (ox >= s.out_w) continue;
            u64 at = (((u64)p.image * s.out_h + oy) * s.out_w + ox) * s.channels + p.channel;
            float d[V];
            unsigned won[V];
            read<V>(dy + at, d);
            read_bytes<V>(winner + at, won);
            for (int i = 0; i < V; i++) sum[i] += won[i] == ky * s.kernel + kx ? d[i] : 0.0f;
        }
    }
    put<V>(dx + index * V, sum);
}

// y[image][channel]: the mean over `pixels`; group blockIdx.z is the image.
template <typename T, typename O, int V>
DEVICE void average(const T* __restrict__ x, O* y, unsigned pixels, unsigned channels) {
    Tile t = Tile::of<V>(pixels, channels, pixels);
    float sum[V] = {};
    if (t.active) {
#pragma unroll 4
        for (unsigned r = t.row; r < t.end; r += t.step) {
            float v[V];
            read<V>(x + t.at(r, channels), v);
            for (int i = 0; i < V; i++) sum[i] += v[i];
        }
    }
    unsigned first = blockIdx.x * blockDim.x * V;
    sum_rows<V>(sum, [&](unsigned j, float total) {
        float mean[1] = {total / (float)pixels};
        if (first + j < channels) put<1>(y + (u64)blockIdx.z * channels + first + j, mean);
    });
}

// dx[image][pixel][channel] = dy[image][channel] / pixels.
template <typename T, typename O, int V>
DEVICE void average_grad(
    const O* __restrict__ dy, T* __restrict__ dx, unsigned pixels, unsigned channels, u64 count
) {
    u64 index = global_thread();
    if (index >= count) return;
    unsigned vectors = channels / V;
    u64 pixel = index / vectors;
    float v[V];
    read<V>(dy + pixel / pixels * channels + index % vectors * V, v);
    for (int i = 0; i < V; i++) v[i] /= (float)pixels;
    put<V>(dx + index * V, v);
}

#define MAX_POOL(T, V, S)                                                                             \
    extern "C" __global__ void __launch_bounds__(256) max_pool_##S(                                   \
        const T* x, T* y, unsigned char* winner, unsigned count, unsigned h, unsigned w,              \
        unsigned out_h, unsigned out_w, unsigned channels, unsigned kernel, unsigned stride,          \
        unsigned pad                                                                                  \
    ) {                                                                                               \
        max_pool<T, V>(                                                                               \
            x, y, winner, count, Pool{h, w, out_h, out_w, channels, kernel, stride, pad}              \
        );                                                                                            \
    }                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256) max_pool_grad_##S(                              \
        const T* dy, const unsigned char* winner, T* dx, unsigned count, unsigned h, unsigned w,      \
        unsigned out_h, unsigned out_w, unsigned channels, unsigned kernel, unsigned stride,          \
        unsigned pad                                                                                  \
    ) {                                                                                               \
        max_pool_grad<T, V>(                                                                          \
            dy, winner, dx, count, Pool{h, w, out_h, out_w, channels, kernel, stride, pad}            \
        );                                                                                            \
    }
MAX_POOL(float, 1, v1_f32)
MAX_POOL(float, 8, v8_f32)
MAX_POOL(bf16, 1, v1_bf16)
MAX_POOL(bf16, 8, v8_bf16)

#define AVERAGE(T, O, V, S)                                                                           \
    extern "C" __global__ void __launch_bounds__(256) average_##S(                                    \
        const T* x, O* y, unsigned pixels, unsigned channels                                          \
    ) {                                                                                               \
        average<T, O, V>(x, y, pixels, channels);                                                     \
    }                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256) average_grad_##S(                               \
        const O* dy, T* dx, unsigned pixels, unsigned channels, u64 count                             \
    ) {                                                                                               \
        average_grad<T, O, V>(dy, dx, pixels, channels, count);                                       \
    }
AVERAGE(float, float, 1, v1_f32_f32)
AVERAGE(float, float, 8, v8_f32_f32)
AVERAGE(bf16, bf16, 1, v1_bf16_bf16)
AVERAGE(bf16, bf16, 8, v8_bf16_bf16)
AVERAGE(bf16, float, 1, v1_bf16_f32)
AVERAGE(bf16, float, 8, v8_bf16_f32)
