/* What stacks do to single rows: products with packed weights, activations, norms. A file that
   includes this defines GROUPS and TILE, the vectors and the rows of a product that stay in
   registers. A row's sums are added in the order of the inputs, whatever the number of rows. */

#ifndef DS_SEQ_NATIVE_PRODUCTS_H
#define DS_SEQ_NATIVE_PRODUCTS_H

#include "native_lanes.h"
#include "native_step.h"

INLINE Lanes negative_magnitude(Lanes x) { return (Lanes)((Words)x | INT32_MIN); }

INLINE Lanes sigmoid(Lanes x) {
    const Lanes e = exponential(negative_magnitude(x)), p = 1.0f / (1.0f + e);
    const Words negative = x < 0.0f;
    return (Lanes)((negative & (Words)(e * p)) | (~negative & (Words)p));
}

/* Abramowitz and Stegun, 7.1.26: an error below 2e-7. */
INLINE Lanes normal_distribution(Lanes x) {
    const Lanes z = x * 0.70710678f, minus = negative_magnitude(z);
    const Lanes t = 1.0f / (1.0f - 0.3275911f * minus);
    Lanes p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const Lanes tail = 0.5f * p * t * exponential(-z * z);
    const Words negative = x < 0.0f;
    return (Lanes)((negative & (Words)tail) | (~negative & (Words)(1.0f - tail)));
}

INLINE Lanes activated(Lanes x, const int kind) {
    switch (kind) {
    case RELU: return positive(x);
    case RELU_SQUARED: return positive(x) * positive(x);
    case GELU: return x * normal_distribution(x);
    case GELU_TANH: return x * sigmoid(1.5957691216f * (x + 0.044715f * x * x * x));
    case SILU: return x * sigmoid(x);
    case SIGMOID: return sigmoid(x);
    default: return x;
    }
}

/* Activate rows in place: x, or with a gate the first half of x times the second. */
INLINE void activate_as(float *x, int64_t rows, int64_t stride, int64_t width, int is_gated,
                        const int kind) {
    for (int64_t n = 0; n < rows; n++, x += stride)
        for (int64_t i = 0; i < width; i += LANES) {
            const Lanes y = activated(load(x + i), kind);
            store(x + i, is_gated ? y * load(x + width + i) : y);
        }
}

static void activate(float *x, int64_t rows, int64_t stride, int64_t width, int is_gated, int kind) {
    switch (kind) {
    case RELU: activate_as(x, rows, stride, width, is_gated, RELU); break;
    case RELU_SQUARED: activate_as(x, rows, stride, width, is_gated, RELU_SQUARED); break;
    case GELU: activate_as(x, rows, stride, width, is_gated, GELU); break;
    case GELU_TANH: activate_as(x, rows, stride, width, is_gated, GELU_TANH); break;
    case SILU: activate_as(x, rows, stride, width, is_gated, SILU); break;
    case SIGMOID: activate_as(x, rows, stride, width, is_gated, SIGMOID); break;
    }
}

static void normalize(const Norm *norm, const float *x, float *y, int64_t rows, int64_t width) {
    for (int64_t n = 0; n < rows; n++, x += width, y += width) {
        Lanes total = {0}, squares = {0};
        float mean = 0.0f;
        if (norm->kind == LAYER_NORM) {
            for (int64_t i = 0; i < width; i += LANES) total += load(x + i);
            mean = sum(total) / (float)width;
        }
        for (int64_t i = 0; i < width; i += LANES) {
            const Lanes centred = load(x + i) - mean;
            squares += centred * centred;
        }
        const float factor = 1.0f / sqrtf(sum(squares) / (float)width + (float)norm->epsilon);
        for (int64_t i = 0; i < width; i += LANES) {
            Lanes z = (load(x + i) - mean) * factor * load(norm->scale + i);
            store(y + i, norm->shift ? z + load(norm->shift + i) : z);
        }
    }
}

/* What happens to a product: y = x weight' + bias, then relu, or plus `carry` times `residual`. */
typedef struct {
    int relu;
    const float *residual; /* strides of y; may be y */
    float carry;
} Ending;

INLINE void end_row(const Lanes *sums, const float *bias, const Ending *ending, float *y,
                    const float *residual, int64_t columns) {
    for (int g = 0; g < GROUPS && g * LANES < columns; g++) {
        Lanes z = sums[g] + load(bias + g * LANES);
        if (ending->relu) z = positive(z);
        if (g * LANES + LANES <= columns) {
            if (residual) z += ending->carry * load(residual + g * LANES);
            store(y + g * LANES, z);
        } else { /* residuals have whole vectors: only scores of a vocabulary end here */
            memcpy(y + g * LANES, &z, (size_t)(columns - g * LANES) * sizeof(float));
        }
    }
}

INLINE void tile(const int rows, const float *x, int64_t x_stride, const float *panel,
                 const float *bias, int64_t inputs, const Ending *ending, float *y,
                 int64_t y_stride, int64_t columns) {
    Lanes sums[TILE][GROUPS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int g = 0; g < GROUPS; g++) sums[r][g] = (Lanes){0};
    for (int64_t i = 0; i < inputs; i++) {
        Lanes weights[GROUPS];
#pragma GCC unroll 4
        for (int g = 0; g < GROUPS; g++) weights[g] = load(panel + i * PANEL + g * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int g = 0; g < GROUPS; g++) sums[r][g] += x[r * x_stride + i] * weights[g];
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
        end_row(sums[r], bias, ending, y + r * y_stride,
                ending->residual ? ending->residual + r * y_stride : 0, columns);
}

static void product(const Map *map, const float *x, int64_t x_stride, int64_t rows, float *y,
                    int64_t y_stride, const Ending *ending) {
    const int64_t inputs = map->inputs;
    for (int64_t column = 0; column < map->outputs; column += GROUPS * LANES) {
        const float *panel = map->weight + column / PANEL * PANEL * inputs + column % PANEL;
        const float *bias = map->bias + column;
        const int64_t columns = map->outputs - column;
        Ending moved = *ending;
        for (int64_t n = 0; n < rows; n += TILE) {
            const float *from = x + n * x_stride;
            float *to = y + n * y_stride + column;
            if (ending->residual) moved.residual = ending->residual + n * y_stride + column;
#define OF_ROWS(count)                                                                             \
    case count:                                                                                    \
        tile(count, from, x_stride, panel, bias, inputs, &moved, to, y_stride, columns);           \
        break;
            switch (rows - n < TILE ? rows - n : TILE) {
                OF_ROWS(1)
                OF_ROWS(2)
#if TILE > 2
                OF_ROWS(3)
                OF_ROWS(4)
                OF_ROWS(5)
                OF_ROWS(6)
#endif
            }
        }
    }
}

#endif
