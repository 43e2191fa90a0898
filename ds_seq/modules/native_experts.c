/* Matrix products of experts that have few rows each, on a CPU with AVX-512; called by moe/few_rows.py.

   Libraries copy a weight into their own layout before they multiply. With thousands of rows that
   costs nothing; with 32 rows it costs as much as a third of the product. These kernels read and
   write every weight once, where it lies.

   Plain C with GCC's vectors. All tensors are float32 without gaps.

   Shapes: E experts, R rows sorted by expert, R_e rows of one expert, I inputs, O outputs; both are
   multiples of LANES. */

#include "native_lanes.h"

#if defined(__x86_64__)
#define AVX512 __attribute__((target("arch=x86-64-v4")))
#else
#define AVX512
#endif

enum { ROWS = 8, VECTORS = 3, SIDE = 4 };

/* `rows` x `vectors` LANES results of a sum over `length` products of a number of `left` and a
   vector of `right`. Results beyond `valid` rows, which repeat the last one, are not stored. */
INLINE void outer_tile(const int rows, const int vectors, const float *left, int64_t left_row,
                       int64_t left_step, const float *right, int64_t right_step, int64_t length,
                       const float *bias, int64_t relu, float *out, int64_t out_row, int64_t valid,
                       int64_t ahead) {
    Lanes sums[ROWS][VECTORS];
    const float *starts[ROWS];
    for (int i = 0; i < rows; i++) {
        starts[i] = left + (i < valid ? i : valid - 1) * left_row;
        for (int j = 0; j < vectors; j++)
            sums[i][j] = bias != 0 ? load(bias + j * LANES) : (Lanes){0};
    }
    for (int64_t k = 0; k < length; k++) {
        Lanes b[VECTORS];
        for (int j = 0; j < vectors; j++) b[j] = load(right + j * LANES);
        if (ahead)
            for (int j = 0; j < vectors; j++) __builtin_prefetch(right + ahead + j * LANES, 0, 2);
        right += right_step;
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < vectors; j++) sums[i][j] += starts[i][k * left_step] * b[j];
    }
    for (int i = 0; i < rows && i < valid; i++)
        for (int j = 0; j < vectors; j++) {
            Lanes y = sums[i][j];
            if (relu) y = positive(y);
            store(out + i * out_row + j * LANES, y);
        }
}

/* Columns of `outer_tile`, in groups of at most VECTORS LANES, for all rows in groups of 8 and 4. */
INLINE void outer_columns(const int vectors, const float *left, int64_t left_row, int64_t left_step,
                          const float *right, int64_t right_step, int64_t length, const float *bias,
                          int64_t relu, float *out, int64_t out_row, int64_t num_rows) {
    for (int64_t r = 0; r < num_rows; r += ROWS) {
        const int64_t valid = num_rows - r, ahead = r == 0 ? vectors * LANES : 0;
        const float *x = left + r * left_row;
        float *y = out + r * out_row;
        if (valid > ROWS / 2)
            outer_tile(ROWS, vectors, x, left_row, left_step, right, right_step, length, bias, relu,
                       y, out_row, valid, ahead);
        else
            outer_tile(ROWS / 2, vectors, x, left_row, left_step, right, right_step, length, bias,
                       relu, y, out_row, valid, ahead);
    }
}

INLINE void outer(const float *left, int64_t left_row, int64_t left_step, const float *right,
                  int64_t length, int64_t columns, const float *bias, int64_t relu, float *out,
                  int64_t num_rows) {
    int64_t c = 0;
#define GROUP(count)                                                                               \
    outer_columns(count, left, left_row, left_step, right + c, columns, length,                    \
                  bias == 0 ? 0 : bias + c, relu, out + c, columns, num_rows)
    for (; c + VECTORS * LANES <= columns; c += VECTORS * LANES) GROUP(VECTORS);
    if (columns - c == 2 * LANES) GROUP(2);
    if (columns - c == LANES) GROUP(1);
#undef GROUP
}

/* y[r] = x[r] w[e] + bias[e]: x (R, I), w (E, I, O), bias (E, O) or null, y (R, O); `relu` sets
   negative results to zero. */
AVX512 void ds_seq_rows_by_weights(const float *x, const float *w, const float *bias,
                                      const int64_t *counts, int64_t num_experts, int64_t inputs,
                                      int64_t outputs, int64_t relu, float *y) {
    for (int64_t e = 0; e < num_experts; e++) {
        outer(x, inputs, 1, w, inputs, outputs, bias, relu, y, counts[e]);
        x += counts[e] * inputs, y += counts[e] * outputs, w += inputs * outputs;
        if (bias != 0) bias += outputs;
    }
}

/* g[e] = a^T b over the rows of e: a (R, I), b (R, O), g (E, I, O). */
AVX512 void ds_seq_gradients(const float *a, const float *b, const int64_t *counts,
                                int64_t num_experts, int64_t inputs, int64_t outputs, float *g) {
    for (int64_t e = 0; e < num_experts; e++) {
        for (int64_t i = 0; i < inputs; i += ROWS)
            for (int64_t c = 0; c < outputs; c += VECTORS * LANES) {
                const int64_t left = (outputs - c) / LANES;
                float *out = g + i * outputs + c;
#define TILE(count)                                                                                \
    outer_tile(ROWS, count, a + i, 1, inputs, b + c, outputs, counts[e], 0, 0, out, outputs, ROWS, 0)
                if (left >= VECTORS) TILE(VECTORS);
                else if (left == 2) TILE(2);
                else TILE(1);
#undef TILE
            }
        a += counts[e] * inputs, b += counts[e] * outputs, g += inputs * outputs;
    }
}

/* One level of a sum over lanes: the halves of groups of 2 * N lanes of two vectors. */
#define PICK(i, n, half) ((i) % (n) + (i) / (n) % (LANES / (n) / 2) * 2 * (n) + \
                          (half) * (n) + (i) / (LANES / 2) * LANES)
#define PICKS(n, h)                                                                                \
    PICK(0, n, h), PICK(1, n, h), PICK(2, n, h), PICK(3, n, h), PICK(4, n, h), PICK(5, n, h),      \
        PICK(6, n, h), PICK(7, n, h), PICK(8, n, h), PICK(9, n, h), PICK(10, n, h),                \
        PICK(11, n, h), PICK(12, n, h), PICK(13, n, h), PICK(14, n, h), PICK(15, n, h)
#define FOLD(x, y, n)                                                                              \
    (__builtin_shufflevector(x, y, PICKS(n, 0)) + __builtin_shufflevector(x, y, PICKS(n, 1)))

/* SIDE x SIDE dot products of rows of x and of w. */
INLINE void dot_tile(const float *x, const float *w, int64_t inputs, int64_t outputs, float *y,
                     int64_t valid) {
    Lanes sums[SIDE * SIDE] = {{0}};
    const float *rows[SIDE];
    for (int i = 0; i < SIDE; i++) rows[i] = x + (i < valid ? i : valid - 1) * inputs;
    for (int64_t k = 0; k < inputs; k += LANES) {
        Lanes b[SIDE];
        for (int j = 0; j < SIDE; j++) b[j] = load(w + j * inputs + k);
        for (int i = 0; i < SIDE; i++) {
            const Lanes a = load(rows[i] + k);
            for (int j = 0; j < SIDE; j++) sums[i * SIDE + j] += a * b[j];
        }
    }
    for (int i = 0; i < 8; i++) sums[i] = FOLD(sums[2 * i], sums[2 * i + 1], 8);
    for (int i = 0; i < 4; i++) sums[i] = FOLD(sums[2 * i], sums[2 * i + 1], 4);
    for (int i = 0; i < 2; i++) sums[i] = FOLD(sums[2 * i], sums[2 * i + 1], 2);
    const Lanes all = FOLD(sums[0], sums[1], 1);
    for (int i = 0; i < SIDE && i < valid; i++)
        for (int j = 0; j < SIDE; j++) y[i * outputs + j] += all[i * SIDE + j];
}

/* y[r] = x[r] w[e]^T + bias[e]: x (R, I), w (E, O, I), bias (E, O) or null, y (R, O). */
AVX512 void ds_seq_rows_by_turned_weights(const float *x, const float *w, const float *bias,
                                             const int64_t *counts, int64_t num_experts,
                                             int64_t inputs, int64_t outputs, float *y) {
    for (int64_t e = 0; e < num_experts; e++) {
        for (int64_t r = 0; r < counts[e]; r++)
            for (int64_t o = 0; o < outputs; o++) y[r * outputs + o] = bias == 0 ? 0.0f : bias[o];
        for (int64_t o = 0; o < outputs; o += SIDE)
            for (int64_t r = 0; r < counts[e]; r += SIDE)
                dot_tile(x + r * inputs, w + o * inputs, inputs, outputs, y + r * outputs + o,
                         counts[e] - r);
        x += counts[e] * inputs, y += counts[e] * outputs, w += inputs * outputs;
        if (bias != 0) bias += outputs;
    }
}

/* y[e] = sum of the rows of e: x (R, O), y (E, O). */
AVX512 void ds_seq_sums_of_rows(const float *x, const int64_t *counts, int64_t num_experts,
                                   int64_t outputs, float *y) {
    for (int64_t e = 0; e < num_experts; e++, y += outputs) {
        for (int64_t o = 0; o < outputs; o++) y[o] = 0.0f;
        for (int64_t r = 0; r < counts[e]; r++, x += outputs)
            for (int64_t o = 0; o < outputs; o++) y[o] += x[o];
    }
}
