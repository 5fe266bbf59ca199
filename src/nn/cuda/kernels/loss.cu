// Barlow Twins between the matrix products: embeddings normalised, C's diagonal and squares, the
// gradient back through the normalisation. The formulas stand in `loss/barlow.rs`.
//
// z, hat and grad are [2 * batch, dim], view a's rows first. Means and factors come from
// norm_moments and norm_finish with two groups.
#include "common.cuh"

// hat = (z - mean) * factor for both views; partial[part][dim]: sums of a_bi b_bi over the part's rows.
template <int V>
DEVICE void twins(
    const float* __restrict__ z, const float* stats, float* __restrict__ hat, float* partial,
    unsigned batch, unsigned dim, unsigned rows_per_part
) {
    Tile t = Tile::of<V>(batch, dim, rows_per_part);
    float sum[V] = {};
    if (t.active) {
        float mean_a[V], mean_b[V], factor_a[V], factor_b[V];
        read<V>(stats + t.channel, mean_a), read<V>(stats + dim + t.channel, mean_b);
        read<V>(stats + 2 * (u64)dim + t.channel, factor_a);
        read<V>(stats + 3 * (u64)dim + t.channel, factor_b);
        u64 other = (u64)batch * dim;
        for (unsigned r = t.row; r < t.end; r += t.step) {
            u64 at = t.at(r, dim);
            float a[V], b[V];
            read<V>(z + at, a), read<V>(z + other + at, b);
            for (int i = 0; i < V; i++) {
                a[i] = (a[i] - mean_a[i]) * factor_a[i];
                b[i] = (b[i] - mean_b[i]) * factor_b[i];
                sum[i] += a[i] * b[i];
            }
            put<V>(hat + at, a), put<V>(hat + other + at, b);
        }
    }
    unsigned first = blockIdx.x * blockDim.x * V;
    sum_rows<V>(sum, [&](unsigned j, float total) {
        if (first + j < dim) partial[(u64)blockIdx.y * dim + first + j] = total;
    });
}

// diagonal[i] = C_ii and on_diagonal[i] = dloss/dC_ii / batch, less what the products with all of C hold.
extern "C" __global__ void __launch_bounds__(256) barlow_diagonal(
    const float* partial, double* diagonal, float* on_diagonal, unsigned batch, unsigned dim,
    unsigned parts, float invariance, float redundancy
) {
    u64 i = global_thread();
    if (i >= dim) return;
    double sum = 0.0;
    for (unsigned p = 0; p < parts; p++) sum += (double)partial[(u64)p * dim + i];
    double c = sum / (double)batch;
    diagonal[i] = c;
    on_diagonal[i] =
        (float)((2.0 * (double)invariance * (c - 1.0) - 2.0 * (double)redundancy * c) / (double)batch);
}

// partial[block] = the block's share of the sum of x y over [size, size], without the diagonal if asked.
extern "C" __global__ void __launch_bounds__(256) barlow_squares(
    const float* x, const float* y, double* partial, unsigned size, unsigned skip_diagonal
) {
    double sum = 0.0;
    for (unsigned row = blockIdx.x; row < size; row += gridDim.x) {
        const float *of_x = x + (u64)row * size, *of_y = y + (u64)row * size;
#pragma unroll 4
        for (unsigned j = threadIdx.x; j < size; j += TILE_THREADS) {
            double product = (double)of_x[j] * (double)of_y[j];
            sum += skip_diagonal && j == row ? 0.0 : product;
        }
    }
    sum = sum_block<TILE_THREADS>(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// Where the sum of squares came from.
constexpr unsigned NO_SQUARES = 0, OF_GRAMS = 1, OF_C = 2;

// figures: invariance and redundancy as they stand in the loss, C's mean diagonal, the sum of C_ij^2 off it.
extern "C" __global__ void __launch_bounds__(256) barlow_figures(
    const double* diagonal, const double* squares, double* figures, unsigned batch, unsigned dim,
    unsigned parts, unsigned from, float invariance, float redundancy
) {
    double mean = 0.0, away = 0.0, square = 0.0, all = 0.0;
    for (unsigned i = threadIdx.x; i < dim; i += TILE_THREADS) {
        double c = diagonal[i];
        mean += c;
        away += (1.0 - c) * (1.0 - c);
        square += c * c;
    }
    for (unsigned p = threadIdx.x; from != NO_SQUARES && p < parts; p += TILE_THREADS) all += squares[p];
    mean = sum_block<TILE_THREADS>(mean);
    away = sum_block<TILE_THREADS>(away);
    square = sum_block<TILE_THREADS>(square);
    all = sum_block<TILE_THREADS>(all);
    if (threadIdx.x != 0) return;
    double off = all / ((double)batch * (double)batch);
    if (from == OF_GRAMS) {
        off -= square;
        off = off < 0.0 ? 0.0 : off;
    }
    figures[0] = (double)invariance * away;
    figures[1] = (double)redundancy * off;
    figures[2] = mean / (double)dim;
    figures[3] = off;
}

// The gradient with respect to hat: weight * products + other view's hat * on_diagonal.
template <int V>
DEVICE void combined(
    const float* products, float weight, const float* other, u64 at, const float (&columns)[V],
    float (&g)[V]
) {
    float o[V];
    read<V>(other + at, o);
    if (weight != 0.0f) {
        read<V>(products + at, g);
    } else {
        for (int i = 0; i < V; i++) g[i] = 0.0f;
    }
    for (int i = 0; i < V; i++) g[i] = weight * g[i] + o[i] * columns[i];
}

// partial[view][part][2][dim]: sums of g and of g hat.
template <int V>
DEVICE void twins_grad_sums(
    const float* products, const float* __restrict__ hat, const float* on_diagonal, float* partial,
    unsigned batch, unsigned dim, unsigned rows_per_part, float weight
) {
    Tile t = Tile::of<V>(batch, dim, rows_per_part);
    float sum[V] = {}, along[V] = {};
    if (t.active) {
        float columns[V];
        read<V>(on_diagonal + t.channel, columns);
        u64 half = (u64)batch * dim;
        // The other view's element at the same place.
        const float* other = blockIdx.z == 0 ? hat + half : hat - half;
        for (unsigned r = t.row; r < t.end; r += t.step) {
            u64 at = t.at(r, dim);
            float g[V], h[V];
            combined<V>(products, weight, other, at, columns, g);
            read<V>(hat + at, h);
            for (int i = 0; i < V; i++) {
                sum[i] += g[i];
                along[i] += g[i] * h[i];
            }
        }
    }
    unsigned first = blockIdx.x * blockDim.x * V;
    float* to = partial + ((u64)blockIdx.z * gridDim.y + blockIdx.y) * 2 * dim;
    sum_rows<V>(sum, [&](unsigned j, float total) {
        if (first + j < dim) to[first + j] = total;
    });
    sum_rows<V>(along, [&](unsigned j, float total) {
        if (first + j < dim) to[dim + first + j] = total;
    });
}

// means[view][2][dim]: of g and of g hat.
extern "C" __global__ void __launch_bounds__(256) barlow_grad_finish(
    const float* partial, float* means, unsigned batch, unsigned dim, unsigned parts
) {
    u64 i = global_thread();
    if (i >= 2 * (u64)dim) return;
    u64 view = i / dim, column = i % dim;
    double sum = 0.0, along = 0.0;
    for (unsigned p = 0; p < parts; p++) {
        const float* of = partial + (view * parts + p) * 2 * dim + column;
        sum += (double)of[0];
        along += (double)of[dim];
    }
    means[view * 2 * dim + column] = (float)(sum / (double)batch);
    means[view * 2 * dim + dim + column] = (float)(along / (double)batch);
}

// grad, which holds the products, becomes the gradient with respect to z:
// factor (g - mean(g) - hat mean(g hat)).
template <int V>
DEVICE void twins_grad(
    float* grad, const float* __restrict__ hat, const float* on_diagonal, const float* means,
    const float* stats, unsigned batch, unsigned dim, unsigned rows_per_part, float weight
) {
    Tile t = Tile::of<V>(batch, dim, rows_per_part);
    if (!t.active) return;
    float columns[V], mean[V], along[V], factor[V];
    u64 view = blockIdx.z;
    read<V>(on_diagonal + t.channel, columns);
    read<V>(means + view * 2 * dim + t.channel, mean);
    read<V>(means + view * 2 * dim + dim + t.channel, along);
    read<V>(stats + (2 + view) * dim + t.channel, factor);
    u64 half = (u64)batch * dim;
    const float* other = view == 0 ? hat + half : hat - half;
    for (unsigned r = t.row; r < t.end; r += t.step) {
        u64 at = t.at(r, dim);
        float g[V], h[V];
        combined<V>(grad, weight, other, at, columns, g);
        read<V>(hat + at, h);
        for (int i = 0; i < V; i++) g[i] = factor[i] * (g[i] - mean[i] - h[i] * along[i]);
        put<V>(grad + at, g);
    }
}

#define BARLOW(V, S)                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) barlow_twins_##S(                               \
        const float* z, const float* stats, float* hat, float* partial, unsigned batch, unsigned dim, \
        unsigned rows_per_part                                                                        \
    ) {                                                                                               \
        twins<V>(z, stats, hat, partial, batch, dim, rows_per_part);                                  \
    }                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256) barlow_grad_sums_##S(                           \
        const float* products, const float* hat, const float* on_diagonal, float* partial,            \
        unsigned batch, unsigned dim, unsigned rows_per_part, float weight                            \
    ) {                                                                                               \
        twins_grad_sums<V>(                                                                           \
            products, hat, on_diagonal, partial, batch, dim, rows_per_part, weight                    \
        );                                                                                            \
    }                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256) barlow_grad_##S(                                \
        float* grad, const float* hat, const float* on_diagonal, const float* means,                  \
        const float* stats, unsigned batch, unsigned dim, unsigned rows_per_part, float weight        \
    ) {                                                                                               \
        twins_grad<V>(                                                                                \
            grad, hat, on_diagonal, means, stats, batch, dim, rows_per_part, weight                   \
        );                                                                                            \
    }
BARLOW(1, v1_f32)
BARLOW(8, v8_f32)
