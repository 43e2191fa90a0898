/* The layers of a stack for one instruction set: attention, feed-forwards, experts. A file that
   includes this defines NAME(x), the name of what is x elsewhere, and what native_products.h
   needs. What is computed for a row does not depend on the other rows. */

#include "native_products.h"
#include "native_scores.h"
#include "native_search.h"
#include "native_step.h"

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
    Lanes most = {0};
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
    const float total = exponentials(scores, count, greatest(most));
    mix(values, slots, scores, count, stride, 1.0f / total, width, out);
}

/* A range of sentences: each of `width` hypotheses, or the tokens of their sources. */
typedef struct {
    const State *state;
    const int64_t *places;
    int64_t num_sentences, width, num_rows;
    float *entered, *inner, *attended, *mixing, *scores; /* room for rows, or for one query */
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

/* Rows y of rows x by the maps of a feed-forward. */
static void feed_forward(const Body *body, const Map *up, const Map *down, const float *x,
                         int64_t rows, float *inner, float *y, const Ending *last) {
    const int is_relu = body->activation == RELU && !body->is_gated;
    const Ending first = {is_relu, 0, 0.0f};
    product(up, x, up->inputs, rows, inner, up->outputs, &first);
    if (!is_relu)
        activate(inner, rows, up->outputs, down->inputs, (int)body->is_gated,
                 (int)body->activation);
    product(down, inner, up->outputs, rows, y, down->outputs, last);
}

/* The experts of each row and their weights (N, top_k), given logits (N, E), which are changed. */
static void route(const Body *body, float *logits, int64_t rows, int32_t *chosen, float *weights) {
    const int64_t num_experts = body->first.outputs, top_k = body->top_k;
    for (int64_t n = 0; n < rows; n++, logits += num_experts, chosen += top_k, weights += top_k) {
        const float shift = log_of_sum(logits, num_experts);
        float total = 0.0f;
        for (int64_t k = 0; k < top_k; k++) {
            int32_t best = 0;
            for (int64_t e = 1; e < num_experts; e++)
                if (logits[e] > logits[best]) best = (int32_t)e;
            chosen[k] = best, weights[k] = expf(logits[best] - shift);
            logits[best] = -INFINITY, total += weights[k];
        }
        for (int64_t k = 0; body->is_normalized && k < top_k; k++) weights[k] /= total;
    }
}

/* Add to rows x (N, D) what their experts make of rows `entered`, expert by expert. */
static void visit_experts(const Part *part, const Body *body, const float *entered, float *x) {
    const int64_t rows = part->num_rows, width = body->second.outputs, top_k = body->top_k;
    const int64_t num_experts = body->first.outputs;
    const Ending plain = {0, 0, 0.0f};
    float *gathered = part->mixing, *results = gathered + rows * width;
    float *mixed = results + rows * width, *logits = mixed + rows * width;
    float *weights = logits + rows * num_experts;
    int32_t *chosen = (int32_t *)(weights + rows * top_k), *origins = chosen + rows * top_k;
    product(&body->first, entered, width, rows, logits, num_experts, &plain);
    route(body, logits, rows, chosen, weights);
    memset(mixed, 0, (size_t)(rows * width) * sizeof(float));
    for (int64_t e = 0; e < num_experts; e++) {
        int64_t count = 0;
        for (int64_t i = 0; i < rows * top_k; i++)
            if (chosen[i] == e) {
                memcpy(gathered + count * width, entered + i / top_k * width, (size_t)width * 4);
                origins[count++] = (int32_t)i;
            }
        if (count == 0) continue;
        const Map *expert = body->experts + 2 * e;
        feed_forward(body, expert, expert + 1, gathered, count, part->inner, results, &plain);
        for (int64_t i = 0; i < count; i++) {
            float *to = mixed + origins[i] / top_k * width;
            for (int64_t d = 0; d < width; d += LANES)
                store(to + d, load(to + d) + weights[origins[i]] * load(results + i * width + d));
        }
    }
    for (int64_t i = 0; i < rows * width; i += LANES)
        store(x + i, (float)body->carry * load(x + i) + load(mixed + i));
}

/* What a sub-layer makes of rows x (N, D), in place. */
static void apply(const Part *part, const Body *body, float *memory, float *x) {
    const int64_t rows = part->num_rows, width = body->second.outputs;
    const int64_t wide = body->first.outputs, narrow = body->second.inputs;
    const Ending plain = {0, 0, 0.0f}, last = {0, x, (float)body->carry};
    const float *entered = body->pre_norm ? part->entered : x;
    if (body->pre_norm) normalize(&body->norm, x, part->entered, rows, width);
    if (body->kind == FEED_FORWARD) {
        feed_forward(body, &body->first, &body->second, entered, rows, part->inner, x, &last);
    } else if (body->kind == EXPERTS) {
        visit_experts(part, body, entered, x);
    } else {
        product(&body->first, entered, width, rows, part->inner, wide, &plain);
        if (body->kind == SELF_ATTENTION) remember(part, body, memory, part->inner, wide);
        attend(part, body, memory, part->inner, wide);
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
    part->entered = scratch;
    part->inner = part->entered + most_rows * width;
    part->attended = part->inner + most_rows * decoder->widest;
    part->mixing = part->attended + most_rows * decoder->most_attended;
    part->scores = part->mixing + most_rows * decoder->most_mixing;
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
    Part part = {state, places, num_sentences, width, rows, 0, 0, 0, 0, 0};
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
    Part part = {state, places, num_sentences, 0, (row - x) / width, 0, 0, 0, 0, 0};
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
