/* Kernels of a search on a CPU, for which PyTorch has no operators; called by native.py.

   Plain C with GCC's vectors, compiled for several instruction sets of which the loader takes the
   best. All tensors are float32; strides count numbers, not bytes; the last stride is 1.

   Shapes: B sentences, T queries of a sentence, H heads, G query heads that share keys and values,
   S keys, D width of a head, K rows of a sentence, V columns, C results. */

#include "native_scores.h"

#ifndef DS_SEQ_SOURCES
#define DS_SEQ_SOURCES ""
#endif
const char ds_seq_sources[17] = DS_SEQ_SOURCES; /* native_sources.py */

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define EVERY_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EVERY_CPU
#endif

/* One query: weights of its keys, then the weighted sum of the values. A masked key costs nothing,
   so of the keys of all hypotheses a query reads those on its own path. */
INLINE void attend_one(const float *query, const float *key, int64_t key_stride, const float *value,
                       int64_t value_stride, const float *mask, float *out, int64_t num_keys,
                       float scale, const int width) {
    float scores[MOST_KEYS];
    int32_t places[MOST_KEYS];
    int count = 0;
    for (int64_t s = 0; s < num_keys; s++) {
        if (mask != 0 && mask[s] == -INFINITY) continue;
        Lanes dot = {0};
        for (int d = 0; d < width; d += LANES) dot += load(query + d) * load(key + s * key_stride + d);
        scores[count] = sum(dot) * scale + (mask == 0 ? 0.0f : mask[s]);
        places[count++] = (int32_t)s;
    }
    float most = -INFINITY;
    for (int i = 0; i < count; i++) most = scores[i] > most ? scores[i] : most;
    for (int i = count; i % LANES; i++) scores[i] = -INFINITY;
    const float total = exponentials(scores, count, most);
    mix(value, places, scores, count, value_stride, 1.0f / total, width, out);
}

/* strides: those of sentence, query and head of the queries; of sentence, head and key of the keys
   and of the values; of sentence and query of the mask. sizes: B, T, H, G, S, D. out is (B, T, H D). */
EVERY_CPU void ds_seq_attend(const float *query, const float *key, const float *value,
                             const float *mask, float *out, const int64_t *strides,
                             const int64_t *sizes, float scale) {
    const int64_t num_queries = sizes[1], num_heads = sizes[2], keys = sizes[4], width = sizes[5];
    for (int64_t b = 0; b < sizes[0]; b++)
        for (int64_t h = 0; h < num_heads; h++) {
            const int64_t shared = h / sizes[3];
            const float *k = key + b * strides[3] + shared * strides[4];
            const float *v = value + b * strides[6] + shared * strides[7];
            for (int64_t t = 0; t < num_queries; t++) {
                const float *q = query + b * strides[0] + t * strides[1] + h * strides[2];
                const float *m = mask ? mask + b * strides[9] + t * strides[10] : 0;
                float *o = out + ((b * num_queries + t) * num_heads + h) * width;
                if (width == 64)
                    attend_one(q, k, strides[5], v, strides[8], m, o, keys, scale, 64);
                else
                    attend_one(q, k, strides[5], v, strides[8], m, o, keys, scale, (int)width);
            }
        }
}

/* The C largest of values + offset among the K rows of each sentence, the largest first; of equal
   ones the first; what is impossible comes last. NaN counts as -inf. */
EVERY_CPU void ds_seq_best(const float *values, const float *offsets, float *best, int64_t *rows,
                           int64_t *columns, int64_t num_sentences, int64_t num_rows,
                           int64_t num_columns, int64_t count) {
    for (int64_t a = 0; a < num_sentences; a++) {
        const Found found = {best + a * count, rows + a * count, columns + a * count, count};
        for (int64_t i = 0; i < count; i++) found.sums[i] = -INFINITY;
        for (int64_t k = 0; k < num_rows; k++)
            find_best(values + (a * num_rows + k) * num_columns, num_columns, 0.0f,
                      offsets[a * num_rows + k], k, &found);
        int64_t next = 0; /* too few are possible: others, each once */
        for (int64_t i = 0; i < count; i++) {
            if (found.sums[i] > -INFINITY) continue;
            const float *x = values + a * num_rows * num_columns;
            while (x[next] + offsets[a * num_rows + next / num_columns] > -INFINITY) next++;
            found.rows[i] = next / num_columns, found.columns[i] = next % num_columns, next++;
        }
    }
}

/* Log-softmax of rows of V columns, in place, while a row is in the nearest cache. */
EVERY_CPU void ds_seq_log_softmax(float *values, int64_t num_rows, int64_t num_columns) {
    for (int64_t n = 0; n < num_rows; n++) {
        float *x = values + n * num_columns;
        const float shift = log_of_sum(x, num_columns);
        for (int64_t v = 0; v < num_columns; v++) x[v] -= shift;
    }
}
