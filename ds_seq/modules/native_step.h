/* A decoder's step: what native_step.c offers and native_step_kernels.h computes.

   All tensors are float32 and contiguous; all sizes count numbers, not bytes. The structures are
   filled by native_step.py, which declares them a second time.

   Shapes: A sentences of K hypotheses, N = A K or A rows, L steps so far, R slots of a sentence,
   S source tokens, I inputs, O outputs, D width of the model. */

#ifndef DS_SEQ_NATIVE_STEP_H
#define DS_SEQ_NATIVE_STEP_H

#include <stdint.h>

enum { PANEL = 64, MOST_ROWS = 192 };
enum { SELF_ATTENTION, CROSS_ATTENTION, FEED_FORWARD, SOURCE_ATTENTION, EXPERTS };
enum { NO_NORM, LAYER_NORM, RMS_NORM };
enum { IDENTITY, RELU, RELU_SQUARED, GELU, GELU_TANH, SILU, SIGMOID };

/* y = x weight' + bias. The weight is packed in panels of PANEL outputs: (O / PANEL, I, PANEL),
   filled up with zeros; the bias is filled up, too, and zero where there is none. */
typedef struct {
    const float *weight, *bias;
    int64_t inputs, outputs;
} Map;

typedef struct {
    const float *scale, *shift; /* shift may be missing */
    int64_t kind;
    double epsilon;
} Norm;

/* A sub-layer with its residual: x + f(norm(x)), or norm(x + f(x)); x times `carry`. */
typedef struct {
    int64_t kind, pre_norm, activation, is_gated;
    int64_t num_heads, num_shared, head_width; /* heads; heads of keys and values */
    double carry;
    Norm norm;
    Map first, second; /* queries (and keys and values), output; up, down; router, a down */
    const Map *experts; /* up and down of each */
    int64_t top_k, is_normalized;
} Body;

typedef struct {
    const float *table; /* (V, D), embeddings of tokens */
    double scale;       /* their factor */
    int64_t width, vocab_size, num_bodies;
    int64_t widest, most_attended, most_mixing; /* numbers per row of what bodies work in */
    Norm embedding_norm, final_norm;
    const Body *bodies;
} Decoder;

/* A batch of searches. A sentence keeps its place in all tensors as long as it is searched. Its
   keys stay in the slots into which they were written; a hypothesis is a path of slots. */
typedef struct {
    float **memory;          /* of each body: (places, R or S, keys and values), or nothing */
    const float *positions;  /* (most steps, D), or nothing */
    int64_t *places;         /* (A,) */
    const int32_t *lengths;  /* source tokens of each place */
    int32_t *paths;          /* (places K, most steps) */
    int32_t *unused;         /* (places, R): slots on no path */
    int32_t *num_unused;     /* (places,) */
    int32_t *counting;       /* 0, 1, 2 ... : the slots of source tokens */
    float *scratch;
    int64_t beam, most_steps, room, source_room, length;
} State;

#endif
