/* A batch of beam searches: what native_search.c keeps besides the State of the decoder.

   Shapes: K beam width, M most steps, F results of a sentence, V vocabulary. */

#ifndef DS_SEQ_NATIVE_SEARCH_H
#define DS_SEQ_NATIVE_SEARCH_H

#include "native_scores.h"
#include "native_step.h"

/* The functions of an instruction set, see native_step_kernels.h. */
typedef struct {
    void (*step)(const Decoder *, const State *, const int64_t *, const int64_t *, int64_t, int64_t,
                 float *);
    void (*encode)(const Decoder *, const State *, const int64_t *, const int64_t *, int64_t,
                   int64_t, float *);
    void (*map_rows)(const Map *, const float *, int64_t, float *);
    float (*log_sum)(const float *, int64_t);
    void (*offer_row)(const float *, int64_t, float, float, int64_t, const Found *);
} Kernels;

const Kernels *ds_seq_kernels(void);

typedef struct {
    int64_t num_best, end, unknown, num_never, min_length, is_normalized;
    double unknown_penalty, temperature;
    const int64_t *never;    /* tokens that are not generated */
    const int64_t *limits;   /* of each place: tokens before the end symbol */
    const float *divisors;   /* (M + 2,), of sums of so many tokens */
    int64_t *newest;         /* (A K,) tokens to be decoded next, or (A,) at first */
    int32_t *tokens;         /* (places K, M) */
    float *totals;           /* (places K, M + 1), running sums that start with 0 or -inf */
    int64_t *num_ended;      /* (places,) hypotheses that have ended, at most K */
    float *best_scores;      /* (places, F), the best first */
    int32_t *best_lengths;   /* (places, F): tokens before the end symbol */
    int32_t *best_tokens;    /* (places, F, M) */
    float *best_totals;      /* (places, F, M + 1) */
    float *sums;             /* (2 K,), and rows and columns (2 K,) each: candidates */
    int64_t *rows, *columns;
    float *states, *logits;  /* (A K, D), (A K, V) */
} Search;

#endif
