/* A step of a plain beam search as one call: the decoder's step, scores of the vocabulary, and the
   choice of continuations as in ds_seq/search/hypotheses.py. Called by native_search.py. */

#include "native_search.h"

int64_t ds_seq_step(const Decoder *, State *, const int64_t *, int64_t, int64_t, float *);

/* Find the 2 K best continuations of a sentence, given logits (width, V), which are changed. */
static void find_candidates(const Search *search, const State *state, const Kernels *kernels,
                            int64_t place, float *logits, int64_t width, int64_t num_columns) {
    const Found found = {search->sums, search->rows, search->columns, 2 * state->beam};
    const int64_t length = state->length - 1; /* before this step */
    for (int64_t i = 0; i < found.count; i++) {
        found.sums[i] = -INFINITY, found.rows[i] = 0, found.columns[i] = search->end;
    }
    for (int64_t k = 0; k < width; k++) {
        float *x = logits + k * num_columns;
        const int64_t row = place * state->beam + k;
        const float offset = search->totals[row * (state->most_steps + 1) + length];
        if (search->temperature != 1.0)
            for (int64_t v = 0; v < num_columns; v++) x[v] /= (float)search->temperature;
        const float shift = kernels->log_sum(x, num_columns);
        if (length >= search->limits[place]) { /* what is too long must end */
            offer(&found, x[search->end] - shift + offset, k, search->end);
            continue;
        }
        for (int64_t i = 0; i < search->num_never; i++) x[search->never[i]] = -INFINITY;
        if (length < search->min_length) x[search->end] = -INFINITY;
        x[search->unknown] -= (float)search->unknown_penalty;
        kernels->offer_row(x, num_columns, shift, offset, k, &found);
    }
}

/* Store an ended hypothesis if it is one of the best; of equal ones the earlier comes first. */
static void store_ended(const Search *search, const State *state, int64_t place, int64_t candidate) {
    const int64_t steps = state->most_steps, length = state->length - 1, last = search->num_best - 1;
    float *scores = search->best_scores + place * search->num_best;
    const float total = search->sums[candidate], score = total / search->divisors[length + 1];
    if (!(score > scores[last])) return;
    int32_t *lengths = search->best_lengths + place * search->num_best;
    int32_t *tokens = search->best_tokens + place * search->num_best * steps;
    float *totals = search->best_totals + place * search->num_best * (steps + 1);
    int64_t i = last;
    for (; i > 0 && score > scores[i - 1]; i--) {
        scores[i] = scores[i - 1], lengths[i] = lengths[i - 1];
        memcpy(tokens + i * steps, tokens + (i - 1) * steps, (size_t)lengths[i] * 4);
        memcpy(totals + i * (steps + 1), totals + (i - 1) * (steps + 1), ((size_t)lengths[i] + 1) * 4);
    }
    const int64_t row = place * state->beam + search->rows[candidate];
    scores[i] = score, lengths[i] = (int32_t)length;
    memcpy(tokens + i * steps, search->tokens + row * steps, (size_t)length * 4);
    /* without the empty sum at the start */
    memcpy(totals + i * (steps + 1), search->totals + row * (steps + 1) + 1, (size_t)length * 4);
    totals[i * (steps + 1) + length] = total;
}

/* Reorder rows of 4-byte numbers: row k becomes what row origins[k] was, up to `length`. */
static void gather(void *rows, int64_t stride, const int64_t *origins, int64_t count,
                   int64_t length, void *before) {
    const size_t size = (size_t)length * 4;
    for (int64_t k = 0; k < count; k++)
        memcpy((char *)before + k * length * 4, (char *)rows + k * stride * 4, size);
    for (int64_t k = 0; k < count; k++)
        memcpy((char *)rows + k * stride * 4, (char *)before + origins[k] * length * 4, size);
}

/* Finish or continue candidates. Returns whether the sentence needs more steps. */
static int choose(const Search *search, const State *state, int64_t place) {
    const int64_t beam = state->beam, steps = state->most_steps, length = state->length - 1;
    int64_t *origins = search->rows, num_open = 0;
    for (int64_t c = 0; c < beam; c++)
        if (search->columns[c] == search->end && search->sums[c] > -INFINITY &&
            search->num_ended[place] < beam) {
            store_ended(search, state, place, c);
            search->num_ended[place]++;
        }
    for (int64_t c = 0; c < 2 * beam && num_open < beam; c++) {
        if (search->columns[c] == search->end) continue;
        search->sums[num_open] = search->sums[c];
        search->columns[num_open] = search->columns[c];
        origins[num_open++] = origins[c];
    }
    if (num_open == 0) return 0;
    for (int64_t k = num_open; k < beam; k++) /* impossible ones fill the beam */
        search->sums[k] = -INFINITY, search->columns[k] = search->end, origins[k] = 0;
    /* sums never grow, and with a positive exponent the divisor grows with the length */
    const int64_t reached = search->is_normalized ? search->limits[place] + 1 : length + 2;
    const float *scores = search->best_scores + place * search->num_best;
    if (search->num_ended[place] >= beam ||
        scores[search->num_best - 1] >= search->sums[0] / search->divisors[reached])
        return 0;
    int is_same = 1;
    for (int64_t k = 0; k < beam; k++) is_same &= origins[k] == k;
    int32_t *tokens = search->tokens + place * beam * steps;
    float *totals = search->totals + place * beam * (steps + 1);
    if (!is_same) {
        gather(state->paths + place * beam * steps, steps, origins, beam, length + 1, state->scratch);
        gather(tokens, steps, origins, beam, length, state->scratch);
        gather(totals, steps + 1, origins, beam, length + 1, state->scratch);
    }
    for (int64_t k = 0; k < beam; k++) {
        tokens[k * steps + length] = (int32_t)search->columns[k];
        totals[k * (steps + 1) + length + 1] = search->sums[k];
    }
    return 1;
}

/* Take one step with A sentences. Returns how many need more steps, which are the first of
   state->places then; or -1 if there is too little room, and then nothing has changed. */
int64_t ds_seq_search_step(const Decoder *decoder, State *state, const Map *scores,
                           const Search *search, int64_t num_sentences) {
    const Kernels *kernels = ds_seq_kernels();
    const int64_t beam = state->beam, width = state->length ? beam : 1, columns = scores->outputs;
    if (ds_seq_step(decoder, state, search->newest, num_sentences, width, search->states)) return -1;
    kernels->map_rows(scores, search->states, num_sentences * width, search->logits);
    int64_t left = 0;
    for (int64_t a = 0; a < num_sentences; a++) {
        const int64_t place = state->places[a];
        find_candidates(search, state, kernels, place, search->logits + a * width * columns, width,
                        columns);
        if (!choose(search, state, place)) continue;
        state->places[left] = place;
        for (int64_t k = 0; k < beam; k++) search->newest[left * beam + k] = search->columns[k];
        left++;
    }
    return left;
}
