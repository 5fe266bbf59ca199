// Passes over every element, and sums of columns.
#include "common.cuh"

// Runs f on the V elements from global_thread() * V on; the last thread of a grid that covers
// `len` elements takes what is left, one by one.
template <int V, typename F1, typename FV>
DEVICE void each(u64 len, FV wide, F1 single) {
    u64 at = global_thread() * V;
    if (at + V <= len) {
        wide(at);
    } else {
        for (; at < len; at++) single(at);
    }
}

// to[i] = f(to[i], from[i]) for V elements.
template <int V, typename TO, typename FROM, typename F>
DEVICE void merge(TO* to, const FROM* from, u64 at, F f) {
    float a[V], b[V];
    read<V>(to + at, a), read<V>(from + at, b);
    for (int i = 0; i < V; i++) a[i] = f(a[i], b[i]);
    put<V>(to + at, a);
}

template <int V, typename TO, typename FROM, typename F>
DEVICE void map(TO* to, const FROM* from, u64 at, F f) {
    float a[V];
    read<V>(from + at, a);
    for (int i = 0; i < V; i++) a[i] = f(a[i]);
    put<V>(to + at, a);
}

template <int V, typename TO, typename FROM, typename F>
DEVICE void merge_all(TO* to, const FROM* from, u64 len, F f) {
    each<V>(
        len, [&](u64 at) { merge<V>(to, from, at, f); }, [&](u64 at) { merge<1>(to, from, at, f); }
    );
}

template <int V, typename TO, typename FROM, typename F>
DEVICE void map_all(TO* to, const FROM* from, u64 len, F f) {
    each<V>(
        len, [&](u64 at) { map<V>(to, from, at, f); }, [&](u64 at) { map<1>(to, from, at, f); }
    );
}

// y = y + bias, by column.
template <typename T, int V>
DEVICE void bias_add(T* y, const float* __restrict__ bias, unsigned columns, u64 len) {
    u64 at = global_thread() * V;
    if (at >= len) return;
    float v[V], b[V];
    read<V>(y + at, v), read<V>(bias + at % columns, b);
    for (int i = 0; i < V; i++) v[i] += b[i];
    put<V>(y + at, v);
}

// partial[part][columns].
template <typename T, int V>
DEVICE void sum_columns(
    const T* __restrict__ d, float* partial, unsigned rows, unsigned columns, unsigned rows_per_part
) {
    Tile t = Tile::of<V>(rows, columns, rows_per_part);
    float sum[V] = {};
    if (t.active) {
#pragma unroll 4
        for (unsigned r = t.row; r < t.end; r += t.step) {
            float v[V];
            read<V>(d + t.at(r, columns), v);
            for (int i = 0; i < V; i++) sum[i] += v[i];
        }
    }
    unsigned first = blockIdx.x * blockDim.x * V;
    sum_rows<V>(sum, [&](unsigned j, float total) {
        if (first + j < columns) partial[(u64)blockIdx.y * columns + first + j] = total;
    });
}

extern "C" __global__ void __launch_bounds__(256) column_sums_finish(
    const float* partial, float* out, unsigned columns, unsigned parts
) {
    u64 c = global_thread();
    if (c >= columns) return;
    double sum = 0.0;
    for (unsigned p = 0; p < parts; p++) sum += (double)partial[(u64)p * columns + c];
    out[c] = (float)sum;
}

#define ELEMENTWISE(T, V, S)                                                                          \
    extern "C" __global__ void __launch_bounds__(256) relu_##S(const T* x, T* y, u64 len) {           \
        map_all<V>(y, x, len, [](float x) { return relu(x); });                                       \
    }                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256) relu_grad_##S(const T* y, T* d, u64 len) {      \
        merge_all<V>(d, y, len, [](float d, float y) { return y > 0.0f ? d : 0.0f; });                \
    }                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256) add_bias_##S(                                   \
        T* y, const float* bias, unsigned columns, u64 len                                            \
    ) {                                                                                               \
        bias_add<T, V>(y, bias, columns, len);                                                        \
    }                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256) column_sums_##S(                                \
        const T* d, float* partial, unsigned rows, unsigned columns, unsigned rows_per_part           \
    ) {                                                                                               \
        sum_columns<T, V>(d, partial, rows, columns, rows_per_part);                                  \
    }
ELEMENTWISE(float, 1, v1_f32)
ELEMENTWISE(float, 8, v8_f32)
ELEMENTWISE(bf16, 1, v1_bf16)
ELEMENTWISE(bf16, 8, v8_bf16)

#define CAST(FROM, TO, V, S)                                                                          \
    extern "C" __global__ void __launch_bounds__(256) cast_##S(const FROM* from, TO* to, u64 len) {   \
        map_all<V>(to, from, len, [](float x) { return x; });                                         \
    }
CAST(float, bf16, 1, v1_f32_bf16)
CAST(float, bf16, 8, v8_f32_bf16)
CAST(bf16, float, 1, v1_bf16_f32)
CAST(bf16, float, 8, v8_bf16_f32)

// One pixel's channels, those from 3 on zero, by as wide a store as there is.
template <typename T>
DEVICE void put_pixel(T* to, const float (&v)[3], unsigned channels, bool aligned) {
    if (aligned && channels == 8) {
        float wide[8] = {v[0], v[1], v[2], 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
        put<8>(to, wide);
    } else if (aligned && channels == 4) {
        float wide[4] = {v[0], v[1], v[2], 0.0f};
        put<4>(to, wide);
    } else {
        for (unsigned c = 0; c < channels; c++) {
            float one[1] = {c < 3 ? v[c] : 0.0f};
            put<1>(to + c, one);
        }
    }
}

// (value / 255 - mean) / std as value * scale + offset, the product and the sum rounded one by one as
// in the pipeline (`kernel/store`).
template <typename T>
DEVICE void normalize(
    const unsigned char* __restrict__ pixels, T* __restrict__ out, unsigned channels, u64 count,
    unsigned aligned, float (&scale)[3], float (&offset)[3]
) {
    u64 p = global_thread();
    if (p >= count) return;
    float v[3];
    for (int c = 0; c < 3; c++) {
        v[c] = __fadd_rn(__fmul_rn((float)pixels[p * 3 + c], scale[c]), offset[c]);
    }
    put_pixel(out + p * channels, v, channels, aligned != 0);
}

// Rows of `from` channels to rows of `to` channels: what is there, then zeros.
template <typename TO, typename FROM>
DEVICE void repeat_rows(const FROM* __restrict__ x, TO* __restrict__ y, unsigned from, unsigned to, u64 len) {
    u64 at = global_thread();
    if (at >= len) return;
    unsigned c = (unsigned)(at % to);
    float v[1] = {0.0f};
    if (c < from) read<1>(x + at / to * from + c, v);
    put<1>(y + at, v);
}

#define IMAGES(T, S)                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) normalize_images_##S(                           \
        const unsigned char* pixels, T* out, unsigned channels, u64 count, unsigned aligned,          \
        float scale_r, float scale_g, float scale_b, float offset_r, float offset_g, float offset_b   \
    ) {                                                                                               \
        float scale[3] = {scale_r, scale_g, scale_b}, offset[3] = {offset_r, offset_g, offset_b};     \
        normalize<T>(pixels, out, channels, count, aligned, scale, offset);                           \
    }                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256) pad_channels_##S(                               \
        const float* x, T* y, unsigned from, unsigned to, u64 len                                     \
    ) {                                                                                               \
        repeat_rows(x, y, from, to, len);                                                             \
    }                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256) cut_channels_##S(                               \
        const T* x, float* y, unsigned from, unsigned to, u64 len                                     \
    ) {                                                                                               \
        repeat_rows(x, y, from, to, len);                                                             \
    }
IMAGES(float, f32)
IMAGES(bf16, bf16)
