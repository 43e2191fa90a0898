/* The arithmetic of a decoder's step for one instruction set. A file that includes this defines
   NAME(x), the name of what is x elsewhere; GROUPS and TILE, the vectors and the rows of a product
   that stay in registers.

   A row's sums are added in the order of the inputs, whatever the number of rows: what is computed
   for a hypothesis does not depend on the others. */

#include "native_scores.h"
#include "native_search.h"
#include "native_step.h"

INLINE Lanes positive(Lanes x) { /* NaN stays */
    const Words negative = x < 0.0f;
    return (Lanes)(~negative & (Words)x);
}

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

/* Two vectors become one with the sums of `width` neighbours of each: the first of a, of b, ... */
#define PAIRED(a, b, i0, i1, i2, i3, i4, i5, i6, i7, n)                                            \
    (__builtin_shufflevector(a, b, i0, i1, i2, i3, i4, i5, i6, i7, 16 + i0, 16 + i1, 16 + i2,      \
                             16 + i3, 16 + i4, 16 + i5, 16 + i6, 16 + i7) +                        \
     __builtin_shufflevector(a, b, i0 + n, i1 + n, i2 + n, i3 + n, i4 + n, i5 + n, i6 + n, i7 + n, \
                             16 + i0 + n, 16 + i1 + n, 16 + i2 + n, 16 + i3 + n, 16 + i4 + n,      \
                             16 + i5 + n, 16 + i6 + n, 16 + i7 + n))
#define HALVES(a, b) PAIRED(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 8)
#define QUARTERS(a, b) PAIRED(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 4)
#define EIGHTHS(a, b) PAIRED(a, b, 0, 1, 4, 5, 8, 9, 12, 13, 2)
#define SINGLES(a, b) PAIRED(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 1)

/* Products of a query with four keys; each a quarter of the result, to be summed. */
INLINE Lanes four_scores(const float *query, const float *keys, const int32_t *slots, int64_t count,
                         int64_t stride, int64_t width) {
    Lanes dots[4];
    for (int j = 0; j < 4; j++) { /* beyond the last key, that key again */
        const float *key = keys + slots[j < count ? j : count - 1] * stride;
        dots[j] = load(query) * load(key);
        for (int64_t d = LANES; d < width; d += LANES) dots[j] += load(query + d) * load(key + d);
    }
    return QUARTERS(HALVES(dots[0], dots[1]), HALVES(dots[2], dots[3]));
}

/* One query of one head, which attends to the keys in `count` slots. */
INLINE void attend_to(const float *query, const float *keys, const float *values,
                      const int32_t *slots, int64_t count, int64_t stride, const int64_t width,
                      float factor, float *scores, float *out) {
    Lanes most = {0}, total = {0};
    most += -INFINITY;
    for (int64_t i = 0; i < count; i += LANES) {
        Lanes fours[4] = {{0}, {0}, {0}, {0}};
        for (int j = 0; j < 4 && i + 4 * j < count; j++)
            fours[j] = four_scores(query, keys, slots + i + 4 * j, count - i - 4 * j, stride, width);
        Lanes sums = SINGLES(EIGHTHS(fours[0], fours[1]), EIGHTHS(fours[2], fours[3])) * factor;
        for (int64_t j = count - i; j < LANES; j++) sums[j] = -INFINITY;
        store(scores + i, sums);
        most = larger(sums, most);
    }
    const float shift = greatest(most);
    for (int64_t i = 0; i < count; i += LANES) {
        Lanes weights = exponential(load(scores + i) - shift);
        for (int64_t j = count - i; j < LANES; j++) weights[j] = 0.0f;
        store(scores + i, weights);
        total += weights;
    }
    const float inverse = 1.0f / sum(total);
    for (int64_t d = 0; d < width; d += 4 * LANES) { /* four sums stay in registers */
        Lanes sums[4] = {{0}, {0}, {0}, {0}};
        for (int64_t i = 0; i < count; i++) {
            const float *row = values + slots[i] * stride + d;
            for (int j = 0; j < 4 && d + j * LANES < width; j++)
                sums[j] += scores[i] * load(row + j * LANES);
        }
        for (int j = 0; j < 4 && d + j * LANES < width; j++)
            store(out + d + j * LANES, sums[j] * inverse);
    }
}

/* A range of sentences: each of `width` hypotheses, or the tokens of their sources. */
typedef struct {
    const State *state;
    const int64_t *places;
    int64_t num_sentences, width, num_rows;
    float *entered, *inner, *attended, *scores; /* room for rows; for the weights of one query */
} Part;

/* Attention of rows (N, stride), which begin with the queries, to `memory`, or in a source to the
   keys and values that follow the queries. */
static void attend(const Part *part, const Body *body, const float *memory, const float *rows,
                   int64_t stride) {
    const State *state = part->state;
    const int64_t of_keys = body->num_shared * body->head_width;
    const int64_t of_queries = body->num_heads * body->head_width;
    const int64_t group = body->num_heads / body->num_shared, width = body->head_width;
    const float factor = 1.0f / sqrtf((float)width);
    const int is_self = body->kind == SELF_ATTENTION, is_within = body->kind == SOURCE_ATTENTION;
    const int64_t room = is_self ? state->room : state->source_room;
    const int64_t step = is_within ? stride : 2 * of_keys;
    float *out = part->attended;
    for (int64_t a = 0; a < part->num_sentences; a++) {
        const int64_t place = part->places[a];
        const float *keys = is_within ? rows + of_queries : memory + place * room * step;
        const int64_t count = is_self ? state->length + 1 : state->lengths[place];
        const int64_t queries = is_within ? count : part->width;
        for (int64_t k = 0; k < queries; k++, rows += stride, out += of_queries) {
            const int32_t *slots = state->counting;
            if (is_self) slots = state->paths + (place * state->beam + k) * state->most_steps;
            for (int64_t h = 0; h < body->num_heads; h++) {
                const float *key = keys + h / group * width, *query = rows + h * width;
                float *head = out + h * width;
                if (width == 64)
                    attend_to(query, key, key + of_keys, slots, count, step, 64, factor,
                              part->scores, head);
                else if (width == 32)
                    attend_to(query, key, key + of_keys, slots, count, step, 32, factor,
                              part->scores, head);
                else
                    attend_to(query, key, key + of_keys, slots, count, step, width, factor,
                              part->scores, head);
            }
        }
    }
}

/* Write the newest keys and values, which follow the queries in `rows`, into their slots. */
static void remember(const Part *part, const Body *body, float *memory, const float *rows,
                     int64_t stride) {
    const State *state = part->state;
    const int64_t size = 2 * body->num_shared * body->head_width;
    rows += body->num_heads * body->head_width;
    for (int64_t a = 0; a < part->num_sentences; a++)
        for (int64_t k = 0; k < part->width; k++, rows += stride) {
            const int64_t row = part->places[a] * state->beam + k;
            const int32_t slot = state->paths[row * state->most_steps + state->length];
            memcpy(memory + (part->places[a] * state->room + slot) * size, rows,
                   (size_t)size * sizeof(float));
        }
}

/* What a sub-layer makes of rows x (N, D), in place. */
static void apply(const Part *part, const Body *body, float *memory, float *x) {
    float *entered = part->entered, *inner = part->inner;
    const int64_t rows = part->num_rows, width = body->second.outputs;
    const int64_t wide = body->first.outputs, narrow = body->second.inputs;
    const int is_relu = body->kind == FEED_FORWARD && body->activation == RELU && !body->is_gated;
    const Ending first = {is_relu, 0, 0.0f}, last = {0, x, (float)body->carry};
    if (body->pre_norm) normalize(&body->norm, x, entered, rows, width);
    product(&body->first, body->pre_norm ? entered : x, width, rows, inner, wide, &first);
    if (body->kind == FEED_FORWARD) {
        if (!is_relu) activate(inner, rows, wide, narrow, (int)body->is_gated, (int)body->activation);
        product(&body->second, inner, wide, rows, x, width, &last);
    } else {
        if (body->kind == SELF_ATTENTION) remember(part, body, memory, inner, wide);
        attend(part, body, memory, inner, wide);
        product(&body->second, part->attended, narrow, rows, x, width, &last);
    }
    if (!body->pre_norm) normalize(&body->norm, x, x, rows, width);
}

/* Embedded tokens (N, D) of one position. */
static void embed(const Decoder *decoder, const float *position, const int64_t *tokens,
                  int64_t rows, float *x) {
    const int64_t width = decoder->width;
    for (int64_t n = 0; n < rows; n++)
        for (int64_t i = 0; i < width; i += LANES) {
            const Lanes y = load(decoder->table + tokens[n] * width + i) * (float)decoder->scale;
            store(x + n * width + i, position ? y + load(position + i) : y);
        }
}

/* All layers, with what stands before and behind them, for embedded tokens x (N, D), in place.
   There is room for most_rows rows in `scratch`. */
static void apply_all(Part *part, const Decoder *decoder, float *x, float *scratch,
                      int64_t most_rows) {
    const int64_t rows = part->num_rows, width = decoder->width;
    int64_t widest = 0, most_attended = 0;
    for (int64_t i = 0; i < decoder->num_bodies; i++) {
        const Body *body = decoder->bodies + i;
        if (body->first.outputs > widest) widest = body->first.outputs;
        if (body->second.inputs > most_attended) most_attended = body->second.inputs;
    }
    part->entered = scratch;
    part->inner = part->entered + most_rows * width;
    part->attended = part->inner + most_rows * widest;
    part->scores = part->attended + most_rows * most_attended;
    if (decoder->embedding_norm.kind) normalize(&decoder->embedding_norm, x, x, rows, width);
    float *const *memory = part->state->memory;
    for (int64_t i = 0; i < decoder->num_bodies; i++)
        apply(part, decoder->bodies + i, memory ? memory[i] : 0, x);
    if (decoder->final_norm.kind) normalize(&decoder->final_norm, x, x, rows, width);
}

/* The step of at most MOST_ROWS rows; states `out` (N, D). */
void NAME(step)(const Decoder *decoder, const State *state, const int64_t *places,
                const int64_t *tokens, int64_t num_sentences, int64_t width, float *out) {
    const int64_t rows = num_sentences * width;
    const float *positions = state->positions;
    Part part = {state, places, num_sentences, width, rows, 0, 0, 0, 0};
    embed(decoder, positions ? positions + state->length * decoder->width : 0, tokens, rows, out);
    apply_all(&part, decoder, out, state->scratch, MOST_ROWS);
}

/* Encode sources with at most `most_rows` tokens together, given tokens (places, S); states `out`
   (places, S, D), zero at padding. */
void NAME(encode)(const Decoder *encoder, const State *state, const int64_t *places,
                  const int64_t *tokens, int64_t num_sentences, int64_t most_rows, float *out) {
    const int64_t width = encoder->width, room = state->source_room;
    float *x = state->scratch, *rest = x + most_rows * width, *row = x;
    for (int64_t a = 0; a < num_sentences; a++)
        for (int64_t t = 0; t < state->lengths[places[a]]; t++, row += width)
            embed(encoder, state->positions ? state->positions + t * width : 0,
                  tokens + places[a] * room + t, 1, row);
    Part part = {state, places, num_sentences, 0, (row - x) / width, 0, 0, 0, 0};
    apply_all(&part, encoder, x, rest, most_rows);
    for (int64_t a = 0; a < num_sentences; a++) {
        const int64_t size = state->lengths[places[a]] * width;
        float *to = out + places[a] * room * width;
        memcpy(to, x, (size_t)size * sizeof(float));
        memset(to + size, 0, (size_t)(room * width - size) * sizeof(float));
        x += size;
    }
}

void NAME(map_rows)(const Map *map, const float *x, int64_t rows, float *y) {
    const Ending ending = {0, 0, 0.0f};
    product(map, x, map->inputs, rows, y, map->outputs, &ending);
}

/* The logarithm of the sum of exponentials of a row, and the best continuations of its
   hypothesis. */
float NAME(log_sum)(const float *logits, int64_t num_columns) {
    return log_of_sum(logits, num_columns);
}

void NAME(offer_row)(const float *logits, int64_t num_columns, float shift, float offset,
                     int64_t row, const Found *found) {
    find_best(logits, num_columns, shift, offset, row, found);
}
