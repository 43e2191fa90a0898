/* A decoder's step as one call: slots of the newest keys, then the kernels of the best instruction
   set of this processor. Called by native_step.py. */

#define NAME(x) ds_seq_any_##x
enum { GROUPS = 1 };
#if defined(__x86_64__)
#define TILE 2 /* 16 registers of 4 numbers */
#else
#define TILE 6
#endif
#include "native_step_kernels.h"

#define DECLARED(x)                                                                                \
    void x##_step(const Decoder *, const State *, const int64_t *, const int64_t *, int64_t,       \
                  int64_t, float *);                                                               \
    void x##_encode(const Decoder *, const State *, const int64_t *, const int64_t *, int64_t,     \
                    int64_t, float *);                                                             \
    void x##_map_rows(const Map *, const float *, int64_t, float *);                               \
    float x##_log_sum(const float *, int64_t);                                                     \
    void x##_offer_row(const float *, int64_t, float, float, int64_t, const Found *);
#define KERNELS(x) {x##_step, x##_encode, x##_map_rows, x##_log_sum, x##_offer_row}

static const Kernels any_processor = KERNELS(ds_seq_any);

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
DECLARED(ds_seq_v3)
DECLARED(ds_seq_v4)
static const Kernels with_avx2 = KERNELS(ds_seq_v3), with_avx512 = KERNELS(ds_seq_v4);
#define HAS(name) __builtin_cpu_supports(name)

const Kernels *ds_seq_kernels(void) {
    if (!(HAS("avx2") && HAS("fma") && HAS("bmi2"))) return &any_processor;
    const int is_wide = HAS("avx512f") && HAS("avx512bw") && HAS("avx512dq") && HAS("avx512vl");
    return is_wide ? &with_avx512 : &with_avx2;
}
#else
const Kernels *ds_seq_kernels(void) { return &any_processor; }
#endif

/* List the slots of a place that lie on no path; the newest in the list is taken first. */
static void find_unused(State *state, int64_t place) {
    const int32_t *paths = state->paths + place * state->beam * state->most_steps;
    int32_t *unused = state->unused + place * state->room, count = 0;
    unsigned char *used = (unsigned char *)state->scratch;
    memset(used, 0, (size_t)state->room);
    for (int64_t k = 0; k < state->beam; k++)
        for (int64_t t = 0; t < state->length; t++) used[paths[k * state->most_steps + t]] = 1;
    for (int64_t slot = state->room - 1; slot >= 0; slot--)
        if (!used[slot]) unused[count++] = (int32_t)slot;
    state->num_unused[place] = count;
}

/* Extend the paths by one slot, one for each hypothesis or one for all (width 1).
   Returns 0, or -1 if there are too few slots; then nothing has changed. */
static int64_t extend_paths(State *state, int64_t num_sentences, int64_t width) {
    for (int64_t a = 0; a < num_sentences; a++) {
        const int64_t place = state->places[a];
        if (state->num_unused[place] < width) find_unused(state, place);
        if (state->num_unused[place] < width) return -1;
    }
    for (int64_t a = 0; a < num_sentences; a++) {
        const int64_t place = state->places[a];
        const int32_t *unused = state->unused + place * state->room;
        int32_t slot = 0;
        for (int64_t k = 0; k < state->beam; k++) {
            if (k < width) slot = unused[--state->num_unused[place]];
            state->paths[(place * state->beam + k) * state->most_steps + state->length] = slot;
        }
    }
    return 0;
}

/* Decode the newest tokens (A width,): states (A width, D). Returns 0; -1 if there is too
   little room, -2 if a token is none, and then nothing has changed. */
int64_t ds_seq_step(const Decoder *decoder, State *state, const int64_t *tokens,
                    int64_t num_sentences, int64_t width, float *out) {
    for (int64_t n = 0; n < num_sentences * width; n++)
        if (tokens[n] < 0 || tokens[n] >= decoder->vocab_size) return -2;
    if (extend_paths(state, num_sentences, width)) return -1;
    const int64_t most = MOST_ROWS / width > 0 ? MOST_ROWS / width : 1;
    for (int64_t a = 0; a < num_sentences; a += most) {
        const int64_t count = num_sentences - a < most ? num_sentences - a : most;
        ds_seq_kernels()->step(decoder, state, state->places + a, tokens + a * width, count, width,
                               out + a * width * decoder->width);
    }
    state->length++;
    return 0;
}

/* Let hypothesis n of N = A K continue hypothesis rows[n] of the same sentence. */
void ds_seq_reorder(State *state, const int64_t *rows, int64_t num_sentences) {
    const int64_t beam = state->beam, length = state->length;
    int32_t *before = (int32_t *)state->scratch;
    for (int64_t a = 0; a < num_sentences; a++, rows += beam) {
        int is_same = 1;
        for (int64_t k = 0; k < beam; k++) is_same &= rows[k] == a * beam + k;
        if (is_same) continue;
        int32_t *paths = state->paths + state->places[a] * beam * state->most_steps;
        for (int64_t k = 0; k < beam; k++)
            memcpy(before + k * length, paths + k * state->most_steps, (size_t)length * 4);
        for (int64_t k = 0; k < beam; k++)
            memcpy(paths + k * state->most_steps, before + (rows[k] - a * beam) * length,
                   (size_t)length * 4);
    }
}

/* y (N, O) of rows x (N, I). */
void ds_seq_map_rows(const Map *map, const float *x, int64_t rows, float *y) {
    ds_seq_kernels()->map_rows(map, x, rows, y);
}

/* Encode sources: tokens (A, S), states (A, S, D), zero at padding. The scratch has room for as many
   rows as the longest source has tokens, and MOST_ROWS. Returns 0, or -2 if a token is none. */
int64_t ds_seq_encode(const Decoder *encoder, const State *state, const int64_t *tokens,
                      int64_t num_sentences, float *out) {
    const int64_t room = state->source_room, most = room > MOST_ROWS ? room : MOST_ROWS;
    for (int64_t a = 0; a < num_sentences; a++)
        for (int64_t t = 0; t < state->lengths[a]; t++)
            if (tokens[a * room + t] < 0 || tokens[a * room + t] >= encoder->vocab_size) return -2;
    for (int64_t a = 0; a < num_sentences;) {
        int64_t count = 0, rows = 0;
        while (a + count < num_sentences && rows + state->lengths[a + count] <= most)
            rows += state->lengths[a + count++];
        ds_seq_kernels()->encode(encoder, state, state->places + a, tokens, count, most, out);
        a += count;
    }
    return 0;
}
