/* Vectors of 16 floats, and what the kernels compute with them. */

#ifndef DS_SEQ_NATIVE_LANES_H
#define DS_SEQ_NATIVE_LANES_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

enum { LANES = 16, MOST_KEYS = 2048 };
typedef float Lanes __attribute__((vector_size(64)));
typedef float Unaligned __attribute__((vector_size(64), aligned(4)));
typedef int32_t Words __attribute__((vector_size(64)));

INLINE Lanes load(const float *x) { return *(const Unaligned *)x; }
INLINE void store(float *x, Lanes y) { *(Unaligned *)x = y; }
INLINE Lanes larger(Lanes x, Lanes y) { /* y where x is NaN */
    const Words choice = x > y;
    return (Lanes)((choice & (Words)x) | (~choice & (Words)y));
}

INLINE Lanes positive(Lanes x) { /* NaN stays */
    const Words negative = x < 0.0f;
    return (Lanes)(~negative & (Words)x);
}

/* Lane i of the result is lane i + distance, counted around. */
#define FROM(i, distance) (((i) + (distance)) % LANES)
#define TURNED(x, n)                                                                               \
    __builtin_shufflevector(x, x, FROM(0, n), FROM(1, n), FROM(2, n), FROM(3, n), FROM(4, n),      \
                            FROM(5, n), FROM(6, n), FROM(7, n), FROM(8, n), FROM(9, n),            \
                            FROM(10, n), FROM(11, n), FROM(12, n), FROM(13, n), FROM(14, n),       \
                            FROM(15, n))

INLINE float sum(Lanes x) {
    x += TURNED(x, 8);
    x += TURNED(x, 4);
    x += TURNED(x, 2);
    return x[0] + x[1];
}

INLINE float greatest(Lanes x) {
    x = larger(x, TURNED(x, 8));
    x = larger(x, TURNED(x, 4));
    x = larger(x, TURNED(x, 2));
    return x[0] > x[1] ? x[0] : x[1];
}

/* exp(x) for x <= 0, to 2 units in the last place: 2^n times a polynomial (Cephes). NaN stays. */
INLINE Lanes exponential(Lanes x) {
    const Lanes least = (Lanes){0} - 87.0f;
    x = larger(least, x);
    Lanes shifted = x * 1.44269504f + 12582912.0f; /* rounds to the nearest integer */
    Lanes n = shifted - 12582912.0f;
    Lanes r = x - n * 0.693359375f - n * -2.12194440e-4f;
    Lanes p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (Lanes)((__builtin_convertvector(n, Words) + 127) << 23);
}

/* exp(score - most) in place of `count` scores, and zero behind them up to a multiple of LANES;
   returns the sum. */
INLINE float exponentials(float *scores, int64_t count, float most) {
    Lanes total = {0};
    for (int64_t i = 0; i < count; i += LANES) {
        Lanes weights = exponential(load(scores + i) - most);
        for (int64_t j = count - i; j < LANES; j++) weights[j] = 0.0f;
        store(scores + i, weights);
        total += weights;
    }
    return sum(total);
}

/* The sum of the values in `count` slots by their weights, times a factor: `width` numbers. */
INLINE void mix(const float *values, const int32_t *slots, const float *weights, int64_t count,
                int64_t stride, float factor, const int64_t width, float *out) {
    for (int64_t d = 0; d < width; d += 4 * LANES) { /* four sums stay in registers */
        Lanes sums[4] = {{0}, {0}, {0}, {0}};
        for (int64_t i = 0; i < count; i++) {
            const float *row = values + slots[i] * stride + d;
            for (int j = 0; j < 4 && d + j * LANES < width; j++)
                sums[j] += weights[i] * load(row + j * LANES);
        }
        for (int j = 0; j < 4 && d + j * LANES < width; j++)
            store(out + d + j * LANES, sums[j] * factor);
    }
}

#endif
