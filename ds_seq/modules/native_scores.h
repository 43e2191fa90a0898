/* Scores of a vocabulary: what log-softmax subtracts, and the best continuations.

   Shapes: K rows of a sentence, V columns, C results. */

#ifndef DS_SEQ_NATIVE_SCORES_H
#define DS_SEQ_NATIVE_SCORES_H

#include "native_lanes.h"

/* The logarithm of the sum of exponentials of a row. */
INLINE float log_of_sum(const float *x, int64_t num_columns) {
    const int64_t whole = num_columns - num_columns % LANES;
    float most = -INFINITY;
    Lanes greater = {0}, total = {0};
    greater += -INFINITY;
    for (int64_t v = 0; v < whole; v += LANES) greater = larger(load(x + v), greater);
    for (int64_t v = whole; v < num_columns; v++) most = x[v] > most ? x[v] : most;
    const float within = greatest(greater);
    most = within > most ? within : most;
    Lanes rest; /* the columns that fill no vector */
    for (int i = 0; i < LANES; i++)
        rest[i] = whole + i < num_columns ? x[whole + i] - most : -INFINITY;
    for (int64_t v = 0; v < whole; v += LANES) total += exponential(load(x + v) - most);
    if (whole < num_columns) {
        const Lanes weights = exponential(rest);
        for (int i = 0; whole + i < num_columns; i++) total[i] += weights[i];
    }
    return most + logf(sum(total));
}

/* The best continuations so far, the largest first. */
typedef struct {
    float *sums;
    int64_t *rows, *columns;
    int64_t count;
} Found;

/* Put a continuation among the best if it is larger than the last of them. */
INLINE void offer(const Found *found, float sum, int64_t row, int64_t column) {
    int64_t place = found->count - 1;
    if (!(sum > found->sums[place])) return;
    for (; place > 0 && sum > found->sums[place - 1]; place--) {
        found->sums[place] = found->sums[place - 1];
        found->rows[place] = found->rows[place - 1];
        found->columns[place] = found->columns[place - 1];
    }
    found->sums[place] = sum, found->rows[place] = row, found->columns[place] = column;
}

/* Offer x - shift + offset of all columns of a row. */
INLINE void find_best(const float *x, int64_t num_columns, float shift, float offset, int64_t row,
                      const Found *found) {
    for (int64_t v = 0; v < num_columns; v += 4 * LANES) {
        const int64_t end = v + 4 * LANES < num_columns ? v + 4 * LANES : num_columns;
        if (end - v == 4 * LANES) { /* most groups have nothing to offer */
            Lanes low = larger(load(x + v), load(x + v + LANES));
            Lanes high = larger(load(x + v + 2 * LANES), load(x + v + 3 * LANES));
            const float most = greatest(larger(low, high)) - shift + offset;
            if (most <= found->sums[found->count - 1]) continue;
        }
        for (int64_t w = v; w < end; w++) offer(found, x[w] - shift + offset, row, w);
    }
}

#endif
