// Optimizers over all parameters at once: one block a chunk of one tensor, found through tables that the
// host has made (`optim.rs`). Rates lie in memory, so that a captured step runs with new ones.
#include "common.cuh"

// Elements of a chunk; `optim.rs` has the same number.
constexpr unsigned CHUNK = 16384;

// One parameter, as `optim.rs` writes it.
struct Parameter {
    float* value;
    void* grad;
    float* moment[2];
    // The value as the products read it, or null.
    bf16* half;
    u64 len;
    unsigned flags, first_chunk;
};

// It has weights' rates, decay and adaptation; its addresses allow vectors of four; its gradient is bf16.
constexpr unsigned WEIGHT = 1, ALIGNED = 2, HALF_GRAD = 4;

// A block's part of its parameter.
struct Piece {
    const Parameter* of;
    u64 start, end;

    static DEVICE Piece mine(const Parameter* parameters, const unsigned* owner) {
        const Parameter* p = parameters + owner[blockIdx.x];
        u64 start = (u64)(blockIdx.x - p->first_chunk) * CHUNK, end = start + CHUNK;
        return {p, start, end < p->len ? end : p->len};
    }

    DEVICE bool has(unsigned flag) const { return (of->flags & flag) != 0; }

    template <int V>
    DEVICE void grad(u64 at, float (&g)[V]) const {
        if (has(HALF_GRAD)) {
            read<V>((const bf16*)of->grad + at, g);
        } else {
            read<V>((const float*)of->grad + at, g);
        }
    }

    // Calls f.at<V>(piece, index) for every V elements: by fours where the addresses allow it (chunks
    // start at multiples of four), what is left one by one.
    template <typename F>
    DEVICE void each(F&& f) const {
        u64 whole = has(ALIGNED) ? start + (end - start) / 4 * 4 : start;
#pragma unroll 2
        for (u64 at = start + threadIdx.x * 4; at < whole; at += TILE_THREADS * 4) {
            f.template at<4>(*this, at);
        }
        for (u64 at = whole + threadIdx.x; at < end; at += TILE_THREADS) f.template at<1>(*this, at);
    }
};

// Stores a new value, and its bf16 copy.
template <int V>
DEVICE void put_value(const Parameter* p, u64 at, const float (&w)[V]) {
    put<V>(p->value + at, w);
    if (p->half) put<V>(p->half + at, w);
}

// Sums of w^2 and (g + decay w)^2.
struct Norms {
    float decay;
    double weight, update;

    template <int V>
    DEVICE void at(const Piece& piece, u64 at) {
        float w[V], g[V];
        read<V>(piece.of->value + at, w), piece.grad<V>(at, g);
        for (int i = 0; i < V; i++) {
            double d = (double)(g[i] + decay * w[i]);
            weight += (double)w[i] * (double)w[i];
            update += d * d;
        }
    }
};

// norms[chunk][2]; chunks of weights alone.
extern "C" __global__ void __launch_bounds__(256) lars_norms(
    const Parameter* parameters, const unsigned* owner, double* norms, float decay
) {
    Piece piece = Piece::mine(parameters, owner);
    if (!piece.has(WEIGHT)) return;
    Norms sums = {decay, 0.0, 0.0};
    piece.each(sums);
    double weight = sum_block<TILE_THREADS>(sums.weight);
    double update = sum_block<TILE_THREADS>(sums.update);
    if (threadIdx.x == 0) {
        norms[2 * (u64)blockIdx.x] = weight;
        norms[2 * (u64)blockIdx.x + 1] = update;
    }
}

// trust[parameter] = eta |w| / |d|; rates: [weights, biases].
extern "C" __global__ void __launch_bounds__(256) lars_trust(
    const Parameter* parameters, const double* norms, float* trust, const float* rates, float eta,
    unsigned clip
) {
    const Parameter* p = parameters + blockIdx.x;
    if (!(p->flags & WEIGHT)) return;
    u64 chunks = (p->len + CHUNK - 1) / CHUNK;
    double weight = 0.0, update = 0.0;
    for (u64 c = threadIdx.x; c < chunks; c += TILE_THREADS) {
        weight += norms[2 * (p->first_chunk + c)];
        update += norms[2 * (p->first_chunk + c) + 1];
    }
    weight = sqrt(sum_block<TILE_THREADS>(weight));
    update = sqrt(sum_block<TILE_THREADS>(update));
    if (threadIdx.x != 0) return;
    double ratio = 1.0;
    if (!(weight <= 0.0 || update <= 0.0)) {
        ratio = (double)eta * weight / update;
        if (clip) {
            ratio /= (double)rates[0];
            if (ratio > 1.0) ratio = 1.0;
        }
    }
    trust[blockIdx.x] = (float)ratio;
}

struct Lars {
    float trust, decay, momentum, lr;

    template <int V>
    DEVICE void at(const Piece& piece, u64 at) const {
        float w[V], g[V], m[V];
        read<V>(piece.of->value + at, w), piece.grad<V>(at, g), read<V>(piece.of->moment[0] + at, m);
        for (int i = 0; i < V; i++) {
            m[i] = momentum * m[i] + trust * (g[i] + decay * w[i]);
            w[i] -= lr * m[i];
        }
        put<V>(piece.of->moment[0] + at, m);
        put_value<V>(piece.of, at, w);
    }
};

extern "C" __global__ void __launch_bounds__(256) lars_update(
    const Parameter* parameters, const unsigned* owner, const float* trust, const float* rates,
    float decay, float momentum
) {
    Piece piece = Piece::mine(parameters, owner);
    if (piece.has(WEIGHT)) {
        piece.each(Lars{trust[owner[blockIdx.x]], decay, momentum, rates[0]});
    } else {
        piece.each(Lars{1.0f, 0.0f, momentum, rates[1]});
    }
}

// w -= lr (of_update d + of_moment m)
struct Sgd {
    float decay, momentum, lr, of_update, of_moment;

    template <int V>
    DEVICE void at(const Piece& piece, u64 at) const {
        float w[V], g[V], m[V];
        read<V>(piece.of->value + at, w), piece.grad<V>(at, g), read<V>(piece.of->moment[0] + at, m);
        for (int i = 0; i < V; i++) {
            float d = g[i] + decay * w[i];
            m[i] = momentum * m[i] + d;
            w[i] -= lr * (of_update * d + of_moment * m[i]);
        }
        put<V>(piece.of->moment[0] + at, m);
        put_value<V>(piece.of, at, w);
    }
};

extern "C" __global__ void __launch_bounds__(256) sgd_update(
    const Parameter* parameters, const unsigned* owner, const float* rates, float decay_weights,
    float decay_biases, float momentum, unsigned nesterov
) {
    Piece piece = Piece::mine(parameters, owner);
    bool weight = piece.has(WEIGHT);
    Sgd step = {
        weight ? decay_weights : decay_biases, momentum, rates[weight ? 0 : 1], nesterov ? 1.0f : 0.0f,
        nesterov ? momentum : 1.0f
    };
    piece.each(step);
}

struct AdamW {
    float shrink, rate, root, keep1, take1, keep2, take2, eps;

    template <int V>
    DEVICE void at(const Piece& piece, u64 at) const {
        const Parameter* p = piece.of;
        float w[V], g[V], m[V], v[V];
        read<V>(p->value + at, w), piece.grad<V>(at, g);
        read<V>(p->moment[0] + at, m), read<V>(p->moment[1] + at, v);
        for (int i = 0; i < V; i++) {
            m[i] = keep1 * m[i] + take1 * g[i];
            v[i] = keep2 * v[i] + take2 * g[i] * g[i];
            w[i] = shrink * w[i] - rate * (m[i] / (sqrtf(v[i]) * root + eps));
        }
        put<V>(p->moment[0] + at, m);
        put<V>(p->moment[1] + at, v);
        put_value<V>(p, at, w);
    }
};

// rates: [rate, shrink] of weights, of biases, then 1 / sqrt(1 - b2^t).
extern "C" __global__ void __launch_bounds__(256) adamw_update(
    const Parameter* parameters, const unsigned* owner, const float* rates, float keep1, float take1,
    float keep2, float take2, float eps
) {
    Piece piece = Piece::mine(parameters, owner);
    unsigned of = piece.has(WEIGHT) ? 0 : 2;
    piece.each(AdamW{rates[of + 1], rates[of], rates[4], keep1, take1, keep2, take2, eps});
}

struct Follow {
    const float* other;
    float share;

    template <int V>
    DEVICE void at(const Piece& piece, u64 at) const {
        float t[V], x[V];
        read<V>(piece.of->value + at, t), read<V>(other + at, x);
        for (int i = 0; i < V; i++) t[i] += share * (x[i] - t[i]);
        put_value<V>(piece.of, at, t);
    }
};

// t += share (x - t): a momentum teacher. Both tables list tensors of the same lengths and alignment.
extern "C" __global__ void __launch_bounds__(256) follow(
    const Parameter* own, const Parameter* others, const unsigned* owner, const float* share
) {
    Piece piece = Piece::mine(own, owner);
    piece.each(Follow{others[owner[blockIdx.x]].value, share[0]});
}

// Which of a batch's parts a gradient is of; `optim.rs` has the same numbers.
constexpr unsigned FIRST = 0, BETWEEN = 1, LAST = 2;

// Of FIRST the sum, moment[0], becomes the gradient, to which those BETWEEN are added; of LAST the
// gradient becomes the sum of all.
template <unsigned PART>
struct Sum {
    template <int V>
    DEVICE void at(const Piece& piece, u64 at) const {
        float g[V], sum[V];
        read<V>((const float*)piece.of->grad + at, g);
        if (PART != FIRST) {
            read<V>(piece.of->moment[0] + at, sum);
            for (int i = 0; i < V; i++) g[i] = sum[i] + g[i];
        }
        put<V>((PART == LAST ? (float*)piece.of->grad : piece.of->moment[0]) + at, g);
    }
};

extern "C" __global__ void __launch_bounds__(256) sum_gradients(
    const Parameter* parameters, const unsigned* owner, unsigned part
) {
    Piece piece = Piece::mine(parameters, owner);
    if (part == FIRST) {
        piece.each(Sum<FIRST>{});
    } else if (part == BETWEEN) {
        piece.each(Sum<BETWEEN>{});
    } else {
        piece.each(Sum<LAST>{});
    }
}

struct Finite {
    bool* bad;

    template <int V>
    DEVICE void at(const Piece& piece, u64 at) const {
        float g[V];
        piece.grad<V>(at, g);
        for (int i = 0; i < V; i++) *bad |= !(fabsf(g[i]) <= 3.402823466e38f);
    }
};

extern "C" __global__ void finite_begin(unsigned* first) { *first = 0xffffffffu; }

// The lowest number of a tensor whose gradient has a NaN or an infinity.
extern "C" __global__ void __launch_bounds__(256) finite_check(
    const Parameter* parameters, const unsigned* owner, unsigned* first
) {
    bool bad = false;
    Piece::mine(parameters, owner).each(Finite{&bad});
    if (bad) atomicMin(first, owner[blockIdx.x]);
}
