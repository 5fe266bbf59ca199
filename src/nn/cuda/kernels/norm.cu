// Batch normalisation over [rows, channels], with residual addition and ReLU in the same pass.
//
// The formulas stand in `nn/batch_norm.rs`. Training reads x twice (moments, then the affine pass)
// and the backward pass reads x and dout twice. Reductions are cut into parts whose borders depend
// on the shape alone; parts are joined in order in f64, so that a result is the same on every device.
#include "common.cuh"

// y = x * scale + shift: the same two numbers, rounded alike, wherever a pass needs them. The
// backward pass finds the ReLU's mask from x by them, bit for bit the forward pass's.
template <int V>
DEVICE void affine_of(
    const float* gamma, const float* beta, const float* mean, const float* inv_std, float (&scale)[V],
    float (&shift)[V]
) {
    float g[V], b[V], m[V], s[V];
    read<V>(gamma, g), read<V>(beta, b), read<V>(mean, m), read<V>(inv_std, s);
    for (int i = 0; i < V; i++) {
        scale[i] = __fmul_rn(g[i], s[i]);
        shift[i] = __fmaf_rn(-m[i], scale[i], b[i]);
    }
}

// partial[group][part][2][channels]: mean of the part's rows and their squared deviations from it.
// Sums are taken of x less the part's first row, so that a mean far from zero costs no digits.
template <typename T, int V>
DEVICE void moments(
    const T* __restrict__ x, float* partial, unsigned rows, unsigned channels, unsigned rows_per_part
) {
    Tile t = Tile::of<V>(rows, channels, rows_per_part);
    unsigned start = blockIdx.y * rows_per_part;
    float sum[V] = {}, square[V] = {}, origin[V];
    if (t.active) {
        read<V>(x + t.at(start, channels), origin);
        constexpr int U = 4;
        unsigned r = t.row;
        for (; r + (U - 1) * t.step < t.end; r += U * t.step) {
            Pack<T, V> packs[U];
            for (int u = 0; u < U; u++) packs[u] = fetch<V>(x + t.at(r + u * t.step, channels));
            for (int u = 0; u < U; u++) {
                float v[V];
                unpack(packs[u], v);
                for (int i = 0; i < V; i++) {
                    float d = v[i] - origin[i];
                    sum[i] += d;
                    square[i] += d * d;
                }
            }
        }
        for (; r < t.end; r += t.step) {
            float v[V];
            read<V>(x + t.at(r, channels), v);
            for (int i = 0; i < V; i++) {
                float d = v[i] - origin[i];
                sum[i] += d;
                square[i] += d * d;
            }
        }
    }
    unsigned first = blockIdx.x * blockDim.x * V;
    float count = (float)(t.end - start);
    float* out = partial + ((u64)blockIdx.z * gridDim.y + blockIdx.y) * 2 * channels;
    // The first sum waits in memory for the second: both come to the same thread.
    sum_rows<V>(sum, [&](unsigned j, float total) {
        if (first + j < channels) out[first + j] = total;
    });
    sum_rows<V>(square, [&](unsigned j, float total) {
        if (first + j >= channels) return;
        float offset = out[first + j] / count;
        float squares = total - offset * out[first + j];
        Pack<T, 1> one = fetch<1>(x + ((u64)blockIdx.z * rows + start) * channels + first + j);
        float from[1];
        unpack(one, from);
        out[first + j] = from[0] + offset;
        // Not below zero by rounding; NaN stays.
        out[channels + first + j] = relu(squares);
    });
}

// Channels, and most lanes, of a block that joins parts: a lane takes every blockDim.y-th part.
constexpr int FINISH = 32;

// Joins the parts' moments of 32 channels, in f64; all groups one after another, for the running
// statistics move once a group. saved: [2][groups][channels], mean and 1 / sqrt(var + eps).
// With `zero_if_infinite` an infinite factor becomes 0: a constant column without eps has no
// direction.
extern "C" __global__ void __launch_bounds__(1024) norm_finish(
    const float* partial, float* running_mean, float* running_var, float* saved, unsigned rows,
    unsigned channels, unsigned rows_per_part, unsigned parts, unsigned groups, float eps,
    float momentum, unsigned zero_if_infinite
) {
    __shared__ double sums[3][FINISH][FINISH];
    unsigned c = blockIdx.x * FINISH + threadIdx.x;
    bool active = c < channels;
    for (unsigned g = 0; g < groups; g++) {
        const float* of = partial + (u64)g * parts * 2 * channels + c;
        // Means are taken less that of part 0.
        double origin = active ? (double)of[0] : 0.0, sum = 0.0, square = 0.0, inner = 0.0;
        if (active) {
#pragma unroll 4
            for (unsigned p = threadIdx.y; p < parts; p += blockDim.y) {
                unsigned start = p * rows_per_part;
                double n = rows - start < rows_per_part ? rows - start : rows_per_part;
                double d = (double)of[(u64)p * 2 * channels] - origin;
                sum += n * d;
                square += n * d * d;
                inner += (double)of[(u64)p * 2 * channels + channels];
            }
        }
        __syncthreads();
        sums[0][threadIdx.y][threadIdx.x] = sum;
        sums[1][threadIdx.y][threadIdx.x] = square;
        sums[2][threadIdx.y][threadIdx.x] = inner;
        __syncthreads();
        if (threadIdx.y == 0 && active) {
            for (unsigned i = 1; i < blockDim.y; i++) {
                sum += sums[0][i][threadIdx.x];
                square += sums[1][i][threadIdx.x];
                inner += sums[2][i][threadIdx.x];
            }
            double n = rows, offset = sum / n;
            double mean = origin + offset;
            double squares = inner + (square - offset * sum);
            double inv = 1.0 / sqrt(squares / n + (double)eps);
            if (zero_if_infinite && !isfinite(inv)) inv = 0.0;
            saved[(u64)g * channels + c] = (float)mean;
            saved[(u64)(groups + g) * channels + c] = (float)inv;
            if (running_mean) {
                double take = (double)momentum, keep = 1.0 - take;
                running_mean[c] = (float)(keep * running_mean[c] + take * mean);
                running_var[c] = (float)(keep * running_var[c] + take * squares / (n - 1.0));
            }
        }
    }
}

// saved, as norm_finish leaves it for one group, from running statistics.
extern "C" __global__ void __launch_bounds__(256) norm_running(
    const float* running_mean, const float* running_var, float* saved, unsigned channels, float eps
) {
    u64 c = global_thread();
    if (c >= channels) return;
    saved[c] = running_mean[c];
    saved[channels + c] = (float)(1.0 / sqrt((double)running_var[c] + (double)eps));
}

// One layer's vectors, as a pass reads them: `saved` holds means, then 1 / sqrt(var + eps), of all groups.
struct Vectors {
    const float *gamma, *beta, *saved;

    // Of group blockIdx.z's channels from t.channel on.
    template <int V>
    DEVICE void affine(const Tile& t, unsigned channels, float (&scale)[V], float (&shift)[V]) const {
        u64 of = (u64)blockIdx.z * channels + t.channel;
        const float* inv_std = saved + (u64)gridDim.z * channels + of;
        affine_of<V>(gamma + t.channel, beta + t.channel, saved + of, inv_std, scale, shift);
    }
};

// What is added in front of the ReLU: nothing, a tensor, or one that a layer of its own normalises here.
constexpr unsigned NOTHING = 0, TENSOR = 1, NORMALISED = 2;

// With `relu_mask` also which elements are positive, for the backward pass: a bit each, V of them a
// byte.
template <typename T, int V, unsigned ADDED>
DEVICE void apply(
    const T* __restrict__ x, const T* __restrict__ added, T* __restrict__ y, unsigned char* relu_mask,
    Vectors own, Vectors others, unsigned rows, unsigned channels, unsigned rows_per_part,
    unsigned apply_relu
) {
    constexpr bool ADD = ADDED != NOTHING;
    Tile t = Tile::of<V>(rows, channels, rows_per_part);
    if (!t.active) return;
    float scale[V], shift[V], added_scale[V], added_shift[V];
    own.affine<V>(t, channels, scale, shift);
    if (ADDED == NORMALISED) others.affine<V>(t, channels, added_scale, added_shift);
    auto one = [&](u64 at, const Pack<T, V>& px, const Pack<T, V>& pr) {
        float v[V], r[V];
        unpack(px, v);
        if (ADD) unpack(pr, r);
        unsigned positive = 0;
        for (int i = 0; i < V; i++) {
            v[i] = __fmaf_rn(v[i], scale[i], shift[i]);
            if (ADDED == NORMALISED) r[i] = __fmaf_rn(r[i], added_scale[i], added_shift[i]);
            if (ADD) v[i] += r[i];
            if (v[i] > 0.0f) positive |= 1u << i;
            if (apply_relu) v[i] = relu(v[i]);
        }
        put<V>(y + at, v);
        if (relu_mask) relu_mask[at / V] = (unsigned char)positive;
    };
    unsigned r = t.row;
    for (; r + t.step < t.end; r += 2 * t.step) {
        u64 first = t.at(r, channels), second = t.at(r + t.step, channels);
        Pack<T, V> x0 = fetch<V>(x + first), x1 = fetch<V>(x + second);
        Pack<T, V> r0 = ADD ? fetch<V>(added + first) : x0;
        Pack<T, V> r1 = ADD ? fetch<V>(added + second) : x1;
        one(first, x0, r0);
        one(second, x1, r1);
    }
    if (r < t.end) {
        u64 at = t.at(r, channels);
        Pack<T, V> x0 = fetch<V>(x + at);
        one(at, x0, ADD ? fetch<V>(added + at) : x0);
    }
}

// Where the ReLU's mask comes from.
constexpr unsigned NO_MASK = 0, FROM_BITS = 1, FROM_INPUT = 2;

template <int V, unsigned MODE>
DEVICE void mask(
    float (&d)[V], const float (&x)[V], unsigned bits, const float (&scale)[V], const float (&shift)[V]
) {
    for (int i = 0; i < V; i++) {
        if (MODE == FROM_BITS) d[i] = bits >> i & 1 ? d[i] : 0.0f;
        if (MODE == FROM_INPUT) d[i] = __fmaf_rn(x[i], scale[i], shift[i]) > 0.0f ? d[i] : 0.0f;
    }
}

// Stores a block's sums: partial[group][part][2][channels]. All threads must come here.
template <int V>
DEVICE void put_sums(
    const float (&sum)[V], const float (&sum_dz_centred)[V], float* partial, unsigned channels
) {
    unsigned first = blockIdx.x * blockDim.x * V;
    float* to = partial + ((u64)blockIdx.z * gridDim.y + blockIdx.y) * 2 * channels;
    sum_rows<V>(sum, [&](unsigned j, float total) {
        if (first + j < channels) to[first + j] = total;
    });
    sum_rows<V>(sum_dz_centred, [&](unsigned j, float total) {
        if (first + j < channels) to[channels + first + j] = total;
    });
}

// What the backward pass of a layer, whose output was added to another's, does of that one beside its
// own: input, its gradient, statistics, and partial sums or constants.
template <typename T>
struct Beside {
    const T* x;
    T* dx;
    const float* saved;
    float* scratch;
};

// partial[group][part][2][channels]: the sums of dz and of dz (x - mean), dz being dout masked by the
// ReLU; with `store` dout becomes dz. With PAIR the same for the layer beside, whose dz it is, too.
template <typename T, int V, unsigned MODE, bool PAIR>
DEVICE void grad_sums(
    const T* __restrict__ x, const unsigned char* __restrict__ relu_mask, T* dout, unsigned store,
    Vectors own, float* partial, Beside<T> beside, unsigned rows, unsigned channels,
    unsigned rows_per_part
) {
    Tile t = Tile::of<V>(rows, channels, rows_per_part);
    float sum[V] = {}, sum_dz_centred[V] = {}, sum_dz_centred_other[V] = {};
    if (t.active) {
        u64 of = (u64)blockIdx.z * channels + t.channel;
        float mean[V], mean_other[V] = {}, scale[V] = {}, shift[V] = {};
        read<V>(own.saved + of, mean);
        if (PAIR) read<V>(beside.saved + of, mean_other);
        if (MODE == FROM_INPUT) own.affine<V>(t, channels, scale, shift);
        auto one = [&](u64 at, const Pack<T, V>& px, const Pack<T, V>& po, const Pack<T, V>& pd,
                       unsigned bits) {
            float v[V], o[V], d[V];
            unpack(px, v), unpack(pd, d);
            if (PAIR) unpack(po, o);
            mask<V, MODE>(d, v, bits, scale, shift);
            for (int i = 0; i < V; i++) {
                sum[i] += d[i];
                sum_dz_centred[i] += d[i] * (v[i] - mean[i]);
                if (PAIR) sum_dz_centred_other[i] += d[i] * (o[i] - mean_other[i]);
            }
            if (MODE != NO_MASK && !PAIR && store) put<V>(dout + at, d);
        };
        constexpr int U = 2;
        unsigned r = t.row;
        for (; r + (U - 1) * t.step < t.end; r += U * t.step) {
            Pack<T, V> px[U], po[U], pd[U];
            unsigned bits[U];
            for (int u = 0; u < U; u++) {
                u64 at = t.at(r + u * t.step, channels);
                px[u] = fetch<V>(x + at), pd[u] = fetch<V>(dout + at);
                po[u] = PAIR ? fetch<V>(beside.x + at) : px[u];
                bits[u] = MODE == FROM_BITS ? relu_mask[at / V] : 0;
            }
            for (int u = 0; u < U; u++) {
                one(t.at(r + u * t.step, channels), px[u], po[u], pd[u], bits[u]);
            }
        }
        for (; r < t.end; r += t.step) {
            u64 at = t.at(r, channels);
            Pack<T, V> px = fetch<V>(x + at), pd = fetch<V>(dout + at);
            Pack<T, V> po = PAIR ? fetch<V>(beside.x + at) : px;
            one(at, px, po, pd, MODE == FROM_BITS ? relu_mask[at / V] : 0);
        }
    }
    put_sums<V>(sum, sum_dz_centred, partial, channels);
    if (PAIR) put_sums<V>(sum, sum_dz_centred_other, beside.scratch, channels);
}

// Parameters' gradients, summed over groups, and the constants a, b, k of dx = a dz + b x + k:
// constants[3][groups][channels].
extern "C" __global__ void __launch_bounds__(1024) norm_grad_finish(
    const float* partial, const float* gamma, const float* saved, float* dgamma, float* dbeta,
    float* constants, unsigned rows, unsigned channels, unsigned parts, unsigned groups
) {
    __shared__ double sums[2][FINISH][FINISH];
    unsigned c = blockIdx.x * FINISH + threadIdx.x;
    bool active = c < channels;
    float to_gamma = 0.0f, to_beta = 0.0f;
    for (unsigned g = 0; g < groups; g++) {
        const float* of = partial + (u64)g * parts * 2 * channels + c;
        double sum = 0.0, sum_dz_centred = 0.0;
        if (active) {
#pragma unroll 4
            for (unsigned p = threadIdx.y; p < parts; p += blockDim.y) {
                sum += (double)of[(u64)p * 2 * channels];
                sum_dz_centred += (double)of[(u64)p * 2 * channels + channels];
            }
        }
        __syncthreads();
        sums[0][threadIdx.y][threadIdx.x] = sum;
        sums[1][threadIdx.y][threadIdx.x] = sum_dz_centred;
        __syncthreads();
        if (threadIdx.y == 0 && active) {
            for (unsigned i = 1; i < blockDim.y; i++) {
                sum += sums[0][i][threadIdx.x];
                sum_dz_centred += sums[1][i][threadIdx.x];
            }
            u64 at = (u64)g * channels + c, all = (u64)groups * channels;
            double n = rows, mean = saved[at], inv = saved[all + at];
            double a = (double)gamma[c] * inv;
            double b = -a * inv * inv * sum_dz_centred / n;
            constants[at] = (float)a;
            constants[all + at] = (float)b;
            constants[2 * all + at] = (float)(-a * sum / n - b * mean);
            to_gamma += (float)(sum_dz_centred * inv);
            to_beta += (float)sum;
        }
    }
    if (threadIdx.y == 0 && active) {
        dgamma[c] = to_gamma;
        dbeta[c] = to_beta;
    }
}

// Group blockIdx.z's constants of dx = a dz + b x + k, for the channels from t.channel on.
template <int V>
struct InputGradCoefficients {
    float a[V], b[V], k[V];

    DEVICE void take(const float* constants, const Tile& t, unsigned channels) {
        u64 of = (u64)blockIdx.z * channels + t.channel, all = (u64)gridDim.z * channels;
        read<V>(constants + of, a), read<V>(constants + all + of, b), read<V>(constants + 2 * all + of, k);
    }

    DEVICE float at(int i, float d, float x) const {
        return __fmaf_rn(d, a[i], __fmaf_rn(x, b[i], k[i]));
    }
};

// dx = a dz + b x + k; dx may be dout itself, or x. With PAIR the same for the layer beside.
template <typename T, int V, unsigned MODE, bool PAIR>
DEVICE void grad_apply(
    const T* x, const unsigned char* __restrict__ relu_mask, const T* dout, T* dx, Vectors own,
    const float* constants, Beside<T> beside, unsigned rows, unsigned channels, unsigned rows_per_part
) {
    Tile t = Tile::of<V>(rows, channels, rows_per_part);
    if (!t.active) return;
    float scale[V] = {}, shift[V] = {};
    InputGradCoefficients<V> coefficients, other;
    coefficients.take(constants, t, channels);
    if (PAIR) other.take(beside.scratch, t, channels);
    if (MODE == FROM_INPUT) own.affine<V>(t, channels, scale, shift);
    auto one = [&](u64 at, const Pack<T, V>& px, const Pack<T, V>& po, const Pack<T, V>& pd,
                   unsigned bits) {
        float v[V], o[V], d[V];
        unpack(px, v), unpack(pd, d);
        if (PAIR) unpack(po, o);
        mask<V, MODE>(d, v, bits, scale, shift);
        for (int i = 0; i < V; i++) v[i] = coefficients.at(i, d[i], v[i]);
        put<V>(dx + at, v);
        if (PAIR) {
            for (int i = 0; i < V; i++) o[i] = other.at(i, d[i], o[i]);
            put<V>(beside.dx + at, o);
        }
    };
    unsigned r = t.row;
    for (; r + t.step < t.end; r += 2 * t.step) {
        u64 first = t.at(r, channels), second = t.at(r + t.step, channels);
        Pack<T, V> x0 = fetch<V>(x + first), x1 = fetch<V>(x + second);
        Pack<T, V> o0 = PAIR ? fetch<V>(beside.x + first) : x0;
        Pack<T, V> o1 = PAIR ? fetch<V>(beside.x + second) : x1;
        Pack<T, V> d0 = fetch<V>(dout + first), d1 = fetch<V>(dout + second);
        unsigned bits0 = MODE == FROM_BITS ? relu_mask[first / V] : 0;
        unsigned bits1 = MODE == FROM_BITS ? relu_mask[second / V] : 0;
        one(first, x0, o0, d0, bits0);
        one(second, x1, o1, d1, bits1);
    }
    if (r < t.end) {
        u64 at = t.at(r, channels);
        Pack<T, V> x0 = fetch<V>(x + at), d0 = fetch<V>(dout + at);
        Pack<T, V> o0 = PAIR ? fetch<V>(beside.x + at) : x0;
        one(at, x0, o0, d0, MODE == FROM_BITS ? relu_mask[at / V] : 0);
    }
}

#define NORM(T, V, S)                                                                                 \
    extern "C" __global__ void __launch_bounds__(256) norm_moments_##S(                               \
        const T* x, float* partial, unsigned rows, unsigned channels, unsigned rows_per_part          \
    ) {                                                                                               \
        moments<T, V>(x, partial, rows, channels, rows_per_part);                                     \
    }                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256) norm_apply_##S(                                 \
        const T* x, const T* residual, T* y, unsigned char* relu_mask, const float* gamma,            \
        const float* beta, const float* saved, unsigned rows, unsigned channels,                      \
        unsigned rows_per_part, unsigned apply_relu                                                   \
    ) {                                                                                               \
        Vectors own = {gamma, beta, saved};                                                           \
        if (residual) {                                                                               \
            apply<T, V, TENSOR>(                                                                      \
                x, residual, y, relu_mask, own, own, rows, channels, rows_per_part, apply_relu        \
            );                                                                                        \
        } else {                                                                                      \
            apply<T, V, NOTHING>(                                                                     \
                x, residual, y, relu_mask, own, own, rows, channels, rows_per_part, apply_relu        \
            );                                                                                        \
        }                                                                                             \
    }                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256) norm_apply_pair_##S(                            \
        const T* x, const T* other, T* y, unsigned char* relu_mask, const float* gamma,               \
        const float* beta, const float* saved, const float* other_gamma, const float* other_beta,     \
        const float* other_saved, unsigned rows, unsigned channels, unsigned rows_per_part            \
    ) {                                                                                               \
        Vectors own = {gamma, beta, saved}, others = {other_gamma, other_beta, other_saved};          \
        apply<T, V, NORMALISED>(                                                                      \
            x, other, y, relu_mask, own, others, rows, channels, rows_per_part, 1                     \
        );                                                                                            \
    }
NORM(float, 1, v1_f32)
NORM(float, 8, v8_f32)
NORM(bf16, 1, v1_bf16)
NORM(bf16, 8, v8_bf16)

// One entry a mask: each needs its own number of registers.
#define NORM_GRAD(T, V, MODE, NAME, S)                                                                \
    extern "C" __global__ void __launch_bounds__(256) norm_grad_sums_##NAME##_##S(                    \
        const T* x, const unsigned char* relu_mask, T* dout, unsigned store, const float* gamma,      \
        const float* beta, const float* saved, float* partial, unsigned rows, unsigned channels,      \
        unsigned rows_per_part                                                                        \
    ) {                                                                                               \
        Vectors own = {gamma, beta, saved};                                                           \
        grad_sums<T, V, MODE, false>(                                                                 \
            x, relu_mask, dout, store, own, partial, {}, rows, channels, rows_per_part                \
        );                                                                                            \
    }                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256) norm_grad_apply_##NAME##_##S(                   \
        const T* x, const unsigned char* relu_mask, const T* dout, T* dx, const float* gamma,         \
        const float* beta, const float* saved, const float* constants, unsigned rows,                 \
        unsigned channels, unsigned rows_per_part                                                     \
    ) {                                                                                               \
        Vectors own = {gamma, beta, saved};                                                           \
        grad_apply<T, V, MODE, false>(                                                                \
            x, relu_mask, dout, dx, own, constants, {}, rows, channels, rows_per_part                 \
        );                                                                                            \
    }
#define NORM_GRADS(T, V, S)                                                                           \
    NORM_GRAD(T, V, NO_MASK, plain, S)                                                                \
    NORM_GRAD(T, V, FROM_BITS, by_bits, S)                                                            \
    NORM_GRAD(T, V, FROM_INPUT, by_input, S)                                                          \
    extern "C" __global__ void __launch_bounds__(256) norm_grad_sums_pair_##S(                        \
        const T* x, const T* other, const unsigned char* relu_mask, const T* dout,                    \
        const float* saved, const float* other_saved, float* partial, float* other_partial,           \
        unsigned rows, unsigned channels, unsigned rows_per_part                                      \
    ) {                                                                                               \
        grad_sums<T, V, FROM_BITS, true>(                                                             \
            x, relu_mask, const_cast<T*>(dout), 0, {nullptr, nullptr, saved}, partial,                \
            {other, nullptr, other_saved, other_partial}, rows, channels, rows_per_part               \
        );                                                                                            \
    }                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256) norm_grad_apply_pair_##S(                       \
        const T* x, const T* other, const unsigned char* relu_mask, const T* dout, T* dx,             \
        T* other_dx, float* constants, float* other_constants, unsigned rows, unsigned channels,      \
        unsigned rows_per_part                                                                        \
    ) {                                                                                               \
        grad_apply<T, V, FROM_BITS, true>(                                                            \
            x, relu_mask, dout, dx, {}, constants, {other, other_dx, nullptr, other_constants}, rows, \
            channels, rows_per_part                                                                   \
        );                                                                                            \
    }
NORM_GRADS(float, 1, v1_f32)
NORM_GRADS(float, 8, v8_f32)
NORM_GRADS(bf16, 1, v1_bf16)
NORM_GRADS(bf16, 8, v8_bf16)
