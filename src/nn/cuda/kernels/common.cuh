// What all kernels share: element types, wide loads and stores, sums over the rows of a block.
//
// Plain CUDA C++ and nothing else, so that the tests can compile the same text for the CPU
// (`emulate.h`). Entry points take pointers, `unsigned`, `u64` and `float` alone.
#pragma once

#ifdef BT_EMULATE
#include "emulate.h"
#else
#include <cuda_bf16.h>
#endif

typedef __nv_bfloat16 bf16;
typedef unsigned long long u64;

#define DEVICE __device__ __forceinline__

// V elements as they lie in memory, read and written by accesses of up to 16 bytes. Fetching many of
// them before the first is used keeps enough of a memory's latency in flight.
template <typename T, int V>
struct Pack;

template <>
struct Pack<float, 1> {
    float raw;
};
template <>
struct Pack<float, 4> {
    float4 raw;
};
template <>
struct Pack<float, 8> {
    float4 low, high;
};
template <>
struct Pack<bf16, 1> {
    bf16 raw;
};
template <>
struct Pack<bf16, 4> {
    uint2 raw;
};
template <>
struct Pack<bf16, 8> {
    uint4 raw;
};

// A bf16 is the upper half of a float.
DEVICE float low_float(unsigned pair) { return __uint_as_float(pair << 16); }
DEVICE float high_float(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }

// Two floats rounded to nearest even, the first in the lower half.
DEVICE unsigned pair_of(float low, float high) {
    union {
        __nv_bfloat162 halves;
        unsigned bits;
    } both = {__floats2bfloat162_rn(low, high)};
    return both.bits;
}

template <int V, typename T>
DEVICE Pack<T, V> fetch(const T* from) {
    Pack<T, V> pack;
    if constexpr (V == 1) {
        pack.raw = *from;
    } else if constexpr (sizeof(T) == 4 && V == 4) {
        pack.raw = *reinterpret_cast<const float4*>(from);
    } else if constexpr (sizeof(T) == 4) {
        pack.low = reinterpret_cast<const float4*>(from)[0];
        pack.high = reinterpret_cast<const float4*>(from)[1];
    } else if constexpr (V == 4) {
        pack.raw = *reinterpret_cast<const uint2*>(from);
    } else {
        pack.raw = *reinterpret_cast<const uint4*>(from);
    }
    return pack;
}

template <typename T, int V>
DEVICE void unpack(const Pack<T, V>& pack, float (&to)[V]) {
    if constexpr (V == 1 && sizeof(T) == 4) {
        to[0] = pack.raw;
    } else if constexpr (V == 1) {
        to[0] = __bfloat162float(pack.raw);
    } else if constexpr (sizeof(T) == 4 && V == 4) {
        to[0] = pack.raw.x, to[1] = pack.raw.y, to[2] = pack.raw.z, to[3] = pack.raw.w;
    } else if constexpr (sizeof(T) == 4) {
        to[0] = pack.low.x, to[1] = pack.low.y, to[2] = pack.low.z, to[3] = pack.low.w;
        to[4] = pack.high.x, to[5] = pack.high.y, to[6] = pack.high.z, to[7] = pack.high.w;
    } else {
        to[0] = low_float(pack.raw.x), to[1] = high_float(pack.raw.x);
        to[2] = low_float(pack.raw.y), to[3] = high_float(pack.raw.y);
        if constexpr (V == 8) {
            to[4] = low_float(pack.raw.z), to[5] = high_float(pack.raw.z);
            to[6] = low_float(pack.raw.w), to[7] = high_float(pack.raw.w);
        }
    }
}

template <int V, typename T>
DEVICE void read(const T* from, float (&to)[V]) {
    unpack(fetch<V>(from), to);
}

template <int V>
DEVICE void put(float* to, const float (&v)[V]) {
    if constexpr (V == 1) {
        *to = v[0];
    } else {
        reinterpret_cast<float4*>(to)[0] = make_float4(v[0], v[1], v[2], v[3]);
        if constexpr (V == 8) {
            reinterpret_cast<float4*>(to)[1] = make_float4(v[4], v[5], v[6], v[7]);
        }
    }
}

template <int V>
DEVICE void put(bf16* to, const float (&v)[V]) {
    if constexpr (V == 1) {
        *to = __float2bfloat16_rn(v[0]);
    } else if constexpr (V == 4) {
        *reinterpret_cast<uint2*>(to) = make_uint2(pair_of(v[0], v[1]), pair_of(v[2], v[3]));
    } else {
        *reinterpret_cast<uint4*>(to) = make_uint4(
            pair_of(v[0], v[1]), pair_of(v[2], v[3]), pair_of(v[4], v[5]), pair_of(v[6], v[7])
        );
    }
}

// max(x, 0), but NaN stays NaN (fmaxf would drop it): what went wrong must reach the loss.
DEVICE float relu(float x) { return x < 0.0f ? 0.0f : x; }

// Threads of a block that reads a [rows, channels] matrix: x counts V channels each, y rows. The
// host picks x so that a row of the block is at least 16 contiguous bytes and at most 32 threads.
constexpr unsigned TILE_THREADS = 256;

// Where a thread of such a block stands: its first channel, and its first row and the end of its
// block's rows within group blockIdx.z of `rows` rows each. Blocks along y share the rows out.
struct Tile {
    unsigned channel, row, end, step;
    u64 base;
    bool active;

    template <int V>
    static DEVICE Tile of(unsigned rows, unsigned channels, unsigned rows_per_part) {
        Tile t;
        t.channel = (blockIdx.x * blockDim.x + threadIdx.x) * V;
        t.active = t.channel < channels;
        unsigned start = blockIdx.y * rows_per_part;
        t.row = start + threadIdx.y;
        t.end = rows - start < rows_per_part ? rows : start + rows_per_part;
        t.step = blockDim.y;
        t.base = (u64)blockIdx.z * rows * channels + t.channel;
        return t;
    }

    DEVICE u64 at(unsigned r, unsigned channels) const { return base + (u64)r * channels; }
};

// Sums over a block's rows: adds each thread's `mine` along y, in order, and gives the total of
// column j (of blockDim.x * V) to `use(j, total)` on one thread. All threads must come here.
template <int V, typename F>
DEVICE void sum_rows(const float (&mine)[V], F use) {
    __shared__ float wide[TILE_THREADS * V];
    unsigned columns = blockDim.x * V;
    unsigned thread = threadIdx.y * blockDim.x + threadIdx.x;
    __syncthreads();
    for (int i = 0; i < V; i++) wide[threadIdx.y * columns + threadIdx.x * V + i] = mine[i];
    __syncthreads();
    for (unsigned j = thread; j < columns; j += TILE_THREADS) {
        float total = 0.0f;
        for (unsigned y = 0; y < blockDim.y; y++) total += wide[y * columns + j];
        use(j, total);
    }
}

// The sum of `mine` over a block of N threads (x alone), in a fixed order; thread 0 gets it.
template <int N>
DEVICE double sum_block(double mine) {
    __shared__ double lanes[N];
    __syncthreads();
    lanes[threadIdx.x] = mine;
    __syncthreads();
    for (unsigned half = N / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) lanes[threadIdx.x] += lanes[threadIdx.x + half];
        __syncthreads();
    }
    return lanes[0];
}

// A thread's number among all.
DEVICE u64 global_thread() { return (u64)blockIdx.x * blockDim.x + threadIdx.x; }
