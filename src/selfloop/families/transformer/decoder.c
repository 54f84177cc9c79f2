/* Batched autoregressive decoding of GPT-2 and Llama networks with a quantized key-value cache, compiled for one network
   shape.

   Compile-time constants (decoder_c.py): LAYERS, VOCAB and those of transformer_ops.h.
   Threading: every thread calls `selfloop_decode` with the same request and has slots of its own. Threads share only
   `next_row`. Each number of a row is computed from that row alone, in an order that depends on nothing else, so a row has
   the same bits with any number of slots, threads and other rows.
   Layout: `layers` holds, per layer, queries+keys+values, out, (gate+)up, down; then the head. The cache is
   [n_slots][LAYERS][KV_HEADS], for each of them as in transformer_ops.h. */

#define _GNU_SOURCE
#include <sys/mman.h>

#include "transformer_ops.h"

#if !defined(LAYERS) || !defined(VOCAB)
#error "decoder.c needs the constants of decoder_c.compile_constants"
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
enum { GUARD_FLOATS = 64 }; /* between the arrays of the workspace */
#else
enum { GUARD_FLOATS = 0 };
#define ASAN_POISON_MEMORY_REGION(address, n_bytes)
#define ASAN_UNPOISON_MEMORY_REGION(address, n_bytes)
#endif

enum { SUM_BLOCK = 64 }; /* tokens whose probabilities are summed before they are searched */
enum { SELFLOOP_OK, SELFLOOP_NOT_FINITE, SELFLOOP_NO_MEMORY };

typedef struct {
    const float *embedding; /* [VOCAB][HIDDEN_DIM] */
    const float *positions; /* [CONTEXT][HIDDEN_DIM] learned, or [CONTEXT][2][HALF_HEAD_DIM] cosines and sines */
    const float *layers;    /* packed as described above */
} DecoderWeights;

typedef struct {
    int64_t n_rows;              /* rows to decode */
    int64_t max_tokens, n_slots; /* tokens of the longest row, slots of each thread, whose lists are on its stack */
    uint32_t end;
    double temperature, top_p; /* temperature 0: the most probable token; top_p 1: all tokens */
    int64_t top_k;             /* 0: all tokens */
    const double *uniforms;    /* [n_rows][max_tokens] numbers in [0, 1) that decide the tokens */
    const uint32_t *starts;    /* [n_rows] inputs before the rows' first tokens */
    const uint32_t *prompts;   /* tokens that the rows begin with, row after row */
    const int64_t *offsets;    /* [n_rows + 1] */
    uint32_t *tokens;          /* [n_rows][max_tokens] */
    int64_t *lengths;          /* [n_rows] */
    int64_t *next_row;         /* first row that no thread has claimed; negative: stop */
} DecodeRequest;

typedef struct { uint32_t token; int32_t slot, position; } TokenInput;
typedef struct { int64_t row; int32_t n_tokens, n_cached; } Slot; /* row -1: free */
typedef struct { float *x, *normed, *qkv, *up, *logits, *scales; int32_t *keys, *values; } Workspace;

/* w->x[n][PAD(HIDDEN_DIM)] = embeddings of the inputs */
static void embed_inputs(const DecoderWeights *net, int n, const TokenInput *inputs, Workspace *w) {
    for (int i = 0; i < n; i++) {
        float *x = w->x + (size_t)i * PAD(HIDDEN_DIM);
        memcpy(x, net->embedding + (size_t)inputs[i].token * HIDDEN_DIM, HIDDEN_DIM * sizeof(float));
        for (int j = 0; !LLAMA && j < HIDDEN_DIM; j++) { x[j] += net->positions[inputs[i].position * HIDDEN_DIM + j]; }
    }
}

/* w->logits[n_logits][PAD(VOCAB)] after the inputs numbered `logit_rows`; the keys and values of all n inputs are cached */
static void forward(
    const DecoderWeights *net, int n, const TokenInput *inputs, int n_logits, const int32_t *logit_rows, Workspace *w) {
    const float *weights = net->layers;
    embed_inputs(net, n, inputs, w);
    for (int l = 0; l < LAYERS; l++) {
        for (int i = 0; i < n; i++) { apply_norm(w->x + i * PAD(HIDDEN_DIM), w->normed + i * PAD(HIDDEN_DIM)); }
        weights = matmul_bias(w->normed, PAD(HIDDEN_DIM), n, weights, HIDDEN_DIM, QKV_DIM, 0, w->qkv);
        for (int i = 0; i < n; i++) {
            float *qkv = w->qkv + i * PAD(QKV_DIM);
            size_t head = ((size_t)inputs[i].slot * LAYERS + l) * KV_HEADS;
            int position = inputs[i].position;
            for (int g = 0; LLAMA && g < HEADS + KV_HEADS; g++) {
                apply_rope(net->positions + position * HEAD_DIM, qkv + g * HEAD_DIM);
            }
            int32_t *keys = w->keys + head * HEAD_KEYS;
            cache_keys_values(qkv, position, keys, w->values + head * HEAD_VALUES, w->scales + head * HEAD_SCALES);
        }
        for (int i = 0; i < n; i++) {
            for (int g = 0; g < HEADS; g++) {
                size_t head = ((size_t)inputs[i].slot * LAYERS + l) * KV_HEADS + g / QUERIES_PER_KV_HEAD;
                attention_head(w->qkv + i * PAD(QKV_DIM) + g * HEAD_DIM, w->keys + head * HEAD_KEYS,
                               w->values + head * HEAD_VALUES, w->scales + head * HEAD_SCALES, inputs[i].position,
                               w->normed + i * PAD(HIDDEN_DIM) + g * HEAD_DIM);
            }
        }
        weights = matmul_bias(w->normed, PAD(HIDDEN_DIM), n, weights, HIDDEN_DIM, HIDDEN_DIM, 1, w->x);
        for (int i = 0; i < n; i++) { apply_norm(w->x + i * PAD(HIDDEN_DIM), w->normed + i * PAD(HIDDEN_DIM)); }
        weights = matmul_bias(w->normed, PAD(HIDDEN_DIM), n, weights, HIDDEN_DIM, UP_DIM, 0, w->up);
        for (int i = 0; i < n; i++) { apply_activation(w->up + i * PAD(UP_DIM)); }
        weights = matmul_bias(w->up, PAD(UP_DIM), n, weights, MLP_DIM, HIDDEN_DIM, 1, w->x);
    }
    for (int i = 0; i < n_logits; i++) {
        apply_norm(w->x + logit_rows[i] * PAD(HIDDEN_DIM), w->normed + i * PAD(HIDDEN_DIM));
    }
    matmul_bias(w->normed, PAD(HIDDEN_DIM), n_logits, weights, HIDDEN_DIM, VOCAB, 0, w->logits);
}

/* the largest v such that the number (or the sum, `by_mass`) of all p[VOCAB] >= v is at least `target` */
static float quickselect_threshold(const float *p, int by_mass, double target, float *values) {
    int n = VOCAB;
    memcpy(values, p, sizeof(float) * VOCAB);
    for (;;) {
        float pivot = values[n / 2];
        int above = 0, below = n;
        double high = 0, equal = 0;
        for (int i = 0; i < below;) {
            float v = values[i];
            double weight = by_mass ? v : 1;
            if (v > pivot) {
                high += weight;
                values[i++] = values[above];
                values[above++] = v;
            } else if (v < pivot) {
                values[i] = values[--below];
                values[below] = v;
            } else {
                equal += weight;
                i++;
            }
        }
        if (above && high >= target) {
            n = above;
        } else if (below == n || high + equal >= target) {
            return pivot;
        } else {
            target -= high + equal;
            values += below;
            n -= below;
        }
    }
}

/* p[VOCAB] = 0 wherever it is below the threshold */
static void keep_top(float threshold, float *p) {
    for (int i = 0; i < VOCAB; i++) { p[i] = p[i] < threshold ? 0 : p[i]; }
}

/* the token at which the cumulative sum of p[VOCAB] exceeds u times its total; `best` if there is none */
static int64_t search_cumulative(const float *p, double u, int best) {
    float sums[PAD(VOCAB) / SUM_BLOCK + 1];
    double total = 0;
    for (int i = 0; i < PAD(VOCAB); i += SUM_BLOCK) {
        f32v sum = {0};
        for (int j = i; j < i + SUM_BLOCK && j < PAD(VOCAB); j += SIMD_WIDTH) { sum += *(const f32v *)(p + j); }
        sums[i / SUM_BLOCK] = horizontal_sum(sum);
        total += sums[i / SUM_BLOCK];
    }
    double rest = u * total;
    int block = 0, token = best;
    for (; (block + 1) * SUM_BLOCK < VOCAB && rest >= sums[block]; block++) { rest -= sums[block]; }
    for (int i = block * SUM_BLOCK; i < VOCAB && i < (block + 1) * SUM_BLOCK; i++) {
        if (p[i] > 0) { token = i; } /* rounding may leave a rest after the last token */
        rest -= p[i];
        if (rest < 0 && p[i] > 0) { break; }
    }
    return token;
}

/* a token drawn from softmax(logits[VOCAB] / temperature) after top_k, then top_p; -1 if the logits are not finite */
static int64_t sample_token(const DecodeRequest *request, double u, float *logits, float *scratch) {
    float scale = request->temperature > 0 ? (float)(1 / request->temperature) : 1;
    for (int i = VOCAB; i < PAD(VOCAB); i++) { logits[i] = -1e30f; }
    f32v maxima = *(const f32v *)logits, totals = {0};
    for (int i = 0; i < PAD(VOCAB); i += SIMD_WIDTH) { maxima = max_f32(*(const f32v *)(logits + i), maxima); }
    float maximum = horizontal_max(maxima), *p = logits;
    int best = 0;
    while (best < VOCAB - 1 && logits[best] != maximum) { best++; }
    for (int i = 0; i < PAD(VOCAB); i += SIMD_WIDTH) {
        *(f32v *)(p + i) = exp_f32((*(const f32v *)(logits + i) - maximum) * scale);
        totals += *(const f32v *)(p + i);
    }
    float total = horizontal_sum(totals);
    if (!(total >= 1 && total <= 2.0f * VOCAB)) { return -1; }
    if (request->temperature == 0) { return best; }
    if (request->top_k) { keep_top(quickselect_threshold(p, 0, request->top_k, scratch), p); }
    if (request->top_p < 1) {
        total = 0;
        for (int i = 0; i < VOCAB; i++) { total += p[i]; }
        keep_top(quickselect_threshold(p, 1, request->top_p * total, scratch), p);
    }
    return search_cumulative(p, u, best);
}

/* 1 and a slot with the next row and its prompt, or 0 if no row is left */
static int claim_next_row(const DecodeRequest *request, Slot *slot) {
    int64_t row = __atomic_fetch_add(request->next_row, 1, __ATOMIC_RELAXED);
    if (row < 0 || row >= request->n_rows) { return 0; }
    int64_t length = request->offsets[row + 1] - request->offsets[row];
    uint32_t *tokens = request->tokens + row * request->max_tokens;
    memcpy(tokens, request->prompts + request->offsets[row], length * sizeof(uint32_t));
    *slot = (Slot){row, (int32_t)length, 0};
    return 1;
}

/* the inputs of the next step: all tokens of a new prompt, else the newest token of every busy slot; returns their number.
   logit_rows[*n_logits] are the inputs whose logits are needed, logit_slots[*n_logits] their slots. */
static int gather_inputs(
    const DecodeRequest *request, Slot *slots, TokenInput *inputs, int *n_logits, int32_t *logit_rows, int32_t *logit_slots) {
    int n = 0;
    *n_logits = 0;
    for (int64_t s = 0; s < request->n_slots && n < request->n_slots; s++) {
        Slot *slot = slots + s;
        if (slot->row < 0 && !claim_next_row(request, slot)) { continue; }
        const uint32_t *row = request->tokens + slot->row * request->max_tokens;
        for (; slot->n_cached <= slot->n_tokens && n < request->n_slots; slot->n_cached++) {
            uint32_t token = slot->n_cached ? row[slot->n_cached - 1] : request->starts[slot->row];
            inputs[n++] = (TokenInput){token, (int32_t)s, slot->n_cached};
        }
        if (slot->n_cached > slot->n_tokens) {
            logit_slots[*n_logits] = (int32_t)s;
            logit_rows[(*n_logits)++] = n - 1;
        }
    }
    return n;
}

/* the rows that this thread claims, until no row is left; returns a status code */
static int decode_rows(const DecoderWeights *net, const DecodeRequest *request, Workspace *w) {
    Slot slots[request->n_slots];
    TokenInput inputs[request->n_slots];
    int32_t logit_rows[request->n_slots], logit_slots[request->n_slots];
    for (int64_t s = 0; s < request->n_slots; s++) { slots[s].row = -1; }
    for (;;) {
        int n_logits;
        int n = gather_inputs(request, slots, inputs, &n_logits, logit_rows, logit_slots);
        if (n == 0 || __atomic_load_n(request->next_row, __ATOMIC_RELAXED) < 0) { return SELFLOOP_OK; }
        forward(net, n, inputs, n_logits, logit_rows, w);
        for (int i = 0; i < n_logits; i++) {
            Slot *slot = slots + logit_slots[i];
            double u = request->uniforms[slot->row * request->max_tokens + slot->n_tokens];
            int64_t token = sample_token(request, u, w->logits + (size_t)i * PAD(VOCAB), w->up);
            if (token < 0) { return SELFLOOP_NOT_FINITE; }
            request->tokens[slot->row * request->max_tokens + slot->n_tokens++] = (uint32_t)token;
            if (token == request->end || slot->n_tokens == request->max_tokens) {
                request->lengths[slot->row] = slot->n_tokens;
                slot->row = -1;
            }
        }
    }
}

/* memory for n_slots slots and as many input tokens, NULL without enough; zeros, as numbers after a row's end are multiplied */
static float *alloc_workspace(int64_t n_slots, Workspace *w, size_t *n_bytes) {
    size_t rows = (n_slots + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
    size_t heads = (size_t)n_slots * LAYERS * KV_HEADS;
    const size_t sizes[] = {rows * PAD(HIDDEN_DIM), rows * PAD(HIDDEN_DIM), rows * PAD(QKV_DIM),
                            rows * PAD(UP_DIM) + PAD(VOCAB), rows * PAD(VOCAB), heads * HEAD_SCALES,
                            heads * HEAD_KEYS, heads * HEAD_VALUES};
    float *arrays[8];
    *n_bytes = 0;
    for (int i = 0; i < 8; i++) { *n_bytes += (sizes[i] + GUARD_FLOATS) * sizeof(float); }
    float *memory = mmap(NULL, *n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) { return NULL; }
#ifdef MADV_HUGEPAGE
    madvise(memory, *n_bytes, MADV_HUGEPAGE); /* 20 % more bandwidth */
#endif
    float *next = memory;
    for (int i = 0; i < 8; i++) {
        arrays[i] = next;
        next += sizes[i] + GUARD_FLOATS;
        ASAN_POISON_MEMORY_REGION(next - GUARD_FLOATS, GUARD_FLOATS * sizeof(float));
    }
    *w = (Workspace){arrays[0], arrays[1], arrays[2], arrays[3], arrays[4], arrays[5],
                     (int32_t *)arrays[6], (int32_t *)arrays[7]};
    return memory;
}

/* tokens and lengths of the request's rows, decoded together by all threads that call this; returns a status code */
int selfloop_decode(const DecoderWeights *net, const DecodeRequest *request) {
    Workspace w;
    size_t n_bytes;
    float *memory = alloc_workspace(request->n_slots, &w, &n_bytes);
    if (!memory) { return SELFLOOP_NO_MEMORY; }
    int status = decode_rows(net, request, &w);
    ASAN_UNPOISON_MEMORY_REGION(memory, n_bytes);
    munmap(memory, n_bytes);
    return status;
}
