/* Continuous-batch decoding of GPT-2 and Llama networks, compiled for one shape (-D LAYERS=... and so on, see compiled.py).

   Every number of a row is computed from that row alone and in an order that depends on nothing else: rows are the same
   bits however many slots, threads and other rows there are. No libraries: each thread calls `decode` with its own slots. */

#define _GNU_SOURCE
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__AVX512F__)
enum { W = 16, TILE = 8 }; /* floats of a register, rows of a tile: 16 accumulators */
#elif defined(__AVX__)
enum { W = 8, TILE = 2 };
#else
enum { W = 4, TILE = 2 };
#endif
enum {
    PANEL = 32, /* columns of packed weights that are worked on together */
    LANES = 16, /* positions of a block of keys */
    HALF = HEAD / 2,
    GROUP = HEADS / KV_HEADS,
    WIDE = (HEAD + W - 1) / W * W,
    BLOCKS = (CONTEXT + LANES - 1) / LANES,
    KV = KV_HEADS * HEAD,
    QKV = HIDDEN + 2 * KV,
    UP = MLP * (1 + LLAMA),
    SPAN = 64 /* tokens whose probabilities are summed before they are searched */
};
#define PAD(n) (((n) + PANEL - 1) / PANEL * PANEL)
typedef float vec __attribute__((vector_size(4 * W)));

typedef struct {
    const float *embedding; /* [VOCAB][HIDDEN] */
    const float *positions; /* [CONTEXT][HIDDEN] learned, or [CONTEXT][2][HALF] cosines and sines */
    const float *linears;   /* per layer qkv, out, up, down; then head: [columns / PANEL][1 + inputs][PANEL], bias first */
} Network;

typedef struct {
    int64_t rows, first, limit, slots; /* rows wanted, number of the first, longest row, slots of this thread */
    uint64_t key;
    uint32_t start, end;
    double temperature, top_p;      /* temperature 0: the likeliest token; top_p 1: all tokens */
    int64_t top_k;                  /* 0: all tokens */
    const uint32_t *prompts;        /* tokens the rows begin with, row after row */
    const int64_t *offsets;         /* [rows + 1] */
    uint32_t *tokens;               /* [rows][limit] */
    int64_t *lengths;               /* [rows] */
    int64_t *next;                  /* first row not yet taken, shared by all threads; negative: stop */
} Job;

typedef struct { uint32_t token; int32_t slot, position; } Entry;
typedef struct { int64_t row; int32_t known, fed; } Slot; /* tokens of the row so far, positions already in the cache */
typedef struct { float *x, *h, *qkv, *up, *logits, *keys, *values; } Work;

enum { DONE, DIVERGED, NO_MEMORY };
enum { CACHED_KEYS = KV_HEADS * BLOCKS * HEAD * LANES, CACHED_VALUES = KV_HEADS * CONTEXT * WIDE };

static inline float exponential(float x) { /* relative error 2e-7 from -87 to 88; NaN stays NaN */
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float n = x * 1.44269504f + 12582912.0f; /* rounds to the nearest integer, in the low bits */
    int32_t bits;
    memcpy(&bits, &n, 4);
    n -= 12582912.0f;
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float y = 1.9875691500e-4f;
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    bits = (int32_t)((uint32_t)(bits + 127) << 23);
    memcpy(&n, &bits, 4);
    return y * n;
}

/* out (+)= a w + bias for `rows` rows, computed in whole tiles: buffers have room for them. */
static inline __attribute__((always_inline)) const float *linear(
    const float *a, int stride, int rows, const float *w, int inputs, int outputs, float *out, int add) {
    for (int j = 0; j < PAD(outputs); j += PANEL, w += (inputs + 1) * PANEL)
        for (int i = 0; i < rows; i += TILE) {
            vec sum[TILE][PANEL / W];
            for (int r = 0; r < TILE; r++)
                for (int v = 0; v < PANEL / W; v++) {
                    sum[r][v] = *(const vec *)(w + v * W);
                    if (add) sum[r][v] += *(const vec *)(out + (i + r) * PAD(outputs) + j + v * W);
                }
            for (int k = 0; k < inputs; k++)
                for (int r = 0; r < TILE; r++)
                    for (int v = 0; v < PANEL / W; v++)
                        sum[r][v] += a[(i + r) * stride + k] * *(const vec *)(w + (k + 1) * PANEL + v * W);
            for (int r = 0; r < TILE; r++)
                for (int v = 0; v < PANEL / W; v++)
                    *(vec *)(out + (i + r) * PAD(outputs) + j + v * W) = sum[r][v];
        }
    return w;
}

static __attribute__((noinline)) void normalise(const float *x, float *h) { /* gains and biases are part of the weights that follow */
    float mean = 0, square = 0;
    if (!LLAMA) {
#pragma omp simd reduction(+ : mean)
        for (int i = 0; i < HIDDEN; i++) mean += x[i];
        mean /= HIDDEN;
    }
#pragma omp simd reduction(+ : square)
    for (int i = 0; i < HIDDEN; i++) square += (x[i] - mean) * (x[i] - mean);
    float scale = 1.0f / __builtin_sqrtf(square / HIDDEN + (float)EPSILON);
    for (int i = 0; i < HIDDEN; i++) h[i] = (x[i] - mean) * scale;
}

static void rotate(float *q, const float *table) { /* Su et al. 2021, 2104.09864, eq. (34), halves instead of pairs */
    for (int i = 0; i < HALF; i++) {
        float a = q[i], b = q[i + HALF];
        q[i] = a * table[i] - b * table[HALF + i];
        q[i + HALF] = b * table[i] + a * table[HALF + i];
    }
}

static void remember(const float *qkv, float *keys, float *values, int position) {
    for (int g = 0; g < KV_HEADS; g++) {
        const float *k = qkv + HIDDEN + g * HEAD;
        float *to = keys + ((size_t)g * BLOCKS + position / LANES) * HEAD * LANES + position % LANES;
        for (int i = 0; i < HEAD; i++) to[i * LANES] = k[i];
        memcpy(values + ((size_t)g * CONTEXT + position) * WIDE, k + KV, HEAD * sizeof(float));
    }
}

/* softmax(q k) v of one query head over positions 0 .. position; q is already divided by sqrt(HEAD). */
static __attribute__((noinline)) void attend(const float *q, const float *keys, const float *values, int position, float *out) {
    float p[BLOCKS * LANES] __attribute__((aligned(64)));
    int n = position + 1, blocks = (position + LANES) / LANES;
    for (int b = 0; b < blocks; b++, keys += HEAD * LANES)
        for (int v = 0; v < LANES; v += W) {
            vec even = {0}, odd = {0};
            for (int i = 0; i < HEAD; i += 2) {
                even += q[i] * *(const vec *)(keys + i * LANES + v);
                if (i + 1 < HEAD) odd += q[i + 1] * *(const vec *)(keys + (i + 1) * LANES + v);
            }
            *(vec *)(p + b * LANES + v) = even + odd;
        }
    float top = p[0], total = 0;
#pragma omp simd reduction(max : top)
    for (int t = 0; t < n; t++) top = p[t] > top ? p[t] : top;
#pragma omp simd reduction(+ : total)
    for (int t = 0; t < n; t++) total += p[t] = exponential(p[t] - top);
    for (int t = n; t % 4; t++) p[t] = 0;
    vec sum[4][WIDE / W];
    memset(sum, 0, sizeof sum);
    for (int t = 0; t < n; t += 4)
        for (int j = 0; j < 4; j++)
            for (int v = 0; v < WIDE / W; v++) sum[j][v] += p[t + j] * *(const vec *)(values + (t + j) * WIDE + v * W);
    for (int v = 0; v < WIDE / W; v++) sum[0][v] = ((sum[0][v] + sum[1][v]) + (sum[2][v] + sum[3][v])) / total;
    memcpy(out, sum[0], HEAD * sizeof(float));
}

static __attribute__((noinline)) void activate(float *up) {
    for (int i = 0; i < MLP; i++) {
        float x = up[i], u = LLAMA ? x : 1.5957691216f * (x + 0.044715f * x * x * x); /* silu, or gelu with tanh */
        up[i] = (LLAMA ? up[i + UP - MLP] : 1.0f) * x / (1.0f + exponential(-u));
    }
}

/* Logits [wanted][PAD(VOCAB)] after the entries numbered `which`; all entries' keys and values are in the cache then. */
static void forward(const Network *net, Work *w, int n, const Entry *entries, int wanted, const int32_t *which) {
    const float *weights = net->linears;
    for (int i = 0; i < n; i++) {
        float *x = w->x + (size_t)i * PAD(HIDDEN);
        memcpy(x, net->embedding + (size_t)entries[i].token * HIDDEN, HIDDEN * sizeof(float));
        if (!LLAMA)
            for (int j = 0; j < HIDDEN; j++) x[j] += net->positions[entries[i].position * HIDDEN + j];
    }
    for (int l = 0; l < LAYERS; l++) {
        for (int i = 0; i < n; i++) normalise(w->x + i * PAD(HIDDEN), w->h + i * PAD(HIDDEN));
        weights = linear(w->h, PAD(HIDDEN), n, weights, HIDDEN, QKV, w->qkv, 0);
        for (int i = 0; i < n; i++) {
            float *qkv = w->qkv + i * PAD(QKV);
            size_t place = (size_t)entries[i].slot * LAYERS + l;
            if (LLAMA)
                for (int g = 0; g < HEADS + KV_HEADS; g++)
                    rotate(qkv + g * HEAD, net->positions + entries[i].position * HEAD);
            remember(qkv, w->keys + place * CACHED_KEYS, w->values + place * CACHED_VALUES, entries[i].position);
        }
        for (int i = 0; i < n; i++)
            for (int g = 0; g < HEADS; g++) {
                size_t place = ((size_t)entries[i].slot * LAYERS + l) * KV_HEADS + g / GROUP;
                attend(w->qkv + i * PAD(QKV) + g * HEAD, w->keys + place * BLOCKS * HEAD * LANES,
                       w->values + place * CONTEXT * WIDE, entries[i].position, w->h + i * PAD(HIDDEN) + g * HEAD);
            }
        weights = linear(w->h, PAD(HIDDEN), n, weights, HIDDEN, HIDDEN, w->x, 1);
        for (int i = 0; i < n; i++) normalise(w->x + i * PAD(HIDDEN), w->h + i * PAD(HIDDEN));
        weights = linear(w->h, PAD(HIDDEN), n, weights, HIDDEN, UP, w->up, 0);
        for (int i = 0; i < n; i++) activate(w->up + i * PAD(UP));
        weights = linear(w->up, PAD(UP), n, weights, MLP, HIDDEN, w->x, 1);
    }
    for (int i = 0; i < wanted; i++) normalise(w->x + which[i] * PAD(HIDDEN), w->h + i * PAD(HIDDEN));
    linear(w->h, PAD(HIDDEN), wanted, weights, HIDDEN, VOCAB, w->logits, 0);
}

static uint64_t mixed(uint64_t z) { /* SplitMix64, Steele, Lea and Flood 2014 */
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static double uniform(uint64_t key, uint64_t row, uint64_t place) { /* in [0, 1): one sequence per row */
    const uint64_t odd = 0x9e3779b97f4a7c15u;
    return (mixed(mixed(key + (row + 1) * odd) + (place + 1) * odd) >> 11) * 0x1p-53;
}

/* The largest value v such that the values of at least v, counted (or summed, `by_mass`), come to `target`. */
static float threshold(const float *from, float *values, int by_mass, double target) {
    int n = VOCAB;
    memcpy(values, from, sizeof(float) * VOCAB);
    for (;;) {
        float pivot = values[n / 2];
        int above = 0, below = n;
        double high = 0, same = 0;
        for (int i = 0; i < below;) {
            float v = values[i];
            double weight = by_mass ? v : 1;
            if (v > pivot) high += weight, values[i++] = values[above], values[above++] = v;
            else if (v < pivot) values[i] = values[--below], values[below] = v;
            else same += weight, i++;
        }
        if (above && high >= target) n = above;
        else if (below == n || high + same >= target) return pivot;
        else target -= high + same, values += below, n -= below;
    }
}

/* A token drawn from softmax(logits / temperature), first narrowed by top_k, then by top_p; -1 when they are not finite. */
static __attribute__((noinline)) int64_t draw(float *p, float *spare, const Job *job, double u) {
    float top = p[0], total = 0, scale = job->temperature > 0 ? (float)(1 / job->temperature) : 1;
    float sums[(VOCAB + SPAN - 1) / SPAN];
#pragma omp simd reduction(max : top)
    for (int i = 0; i < VOCAB; i++) top = p[i] > top ? p[i] : top;
    int best = 0;
    while (best < VOCAB - 1 && p[best] != top) best++;
#pragma omp simd reduction(+ : total)
    for (int i = 0; i < VOCAB; i++) total += p[i] = exponential((p[i] - top) * scale);
    if (!(total >= 1 && total <= 2.0f * VOCAB)) return -1;
    if (job->temperature == 0) return best;
    if (job->top_k || job->top_p < 1) {
        float least = job->top_k ? threshold(p, spare, 0, job->top_k) : 0;
        for (int i = 0; i < VOCAB; i++) p[i] = p[i] < least ? 0 : p[i];
        if (job->top_p < 1) {
            total = 0;
            for (int i = 0; i < VOCAB; i++) total += p[i];
            least = threshold(p, spare, 1, job->top_p * total);
            for (int i = 0; i < VOCAB; i++) p[i] = p[i] < least ? 0 : p[i];
        }
    }
    double all = 0, left;
    for (int s = 0; s * SPAN < VOCAB; s++) {
        float sum = 0;
        int stop = (s + 1) * SPAN < VOCAB ? (s + 1) * SPAN : VOCAB;
#pragma omp simd reduction(+ : sum)
        for (int i = s * SPAN; i < stop; i++) sum += p[i];
        all += sums[s] = sum;
    }
    left = u * all;
    int s = 0, chosen = best;
    for (; (s + 1) * SPAN < VOCAB && left >= sums[s]; s++) left -= sums[s];
    for (int i = s * SPAN; i < VOCAB && i < (s + 1) * SPAN; i++) {
        if (p[i] > 0) chosen = i; /* rounding may leave a rest behind the last one */
        if ((left -= p[i]) < 0 && p[i] > 0) break;
    }
    return chosen;
}

static int take_row(const Job *job, Slot *slot) {
    int64_t row = __atomic_fetch_add(job->next, 1, __ATOMIC_RELAXED);
    if (row < 0 || row >= job->rows) return 0;
    int64_t length = job->offsets[row + 1] - job->offsets[row];
    memcpy(job->tokens + row * job->limit, job->prompts + job->offsets[row], length * sizeof(uint32_t));
    *slot = (Slot){row, (int32_t)length, 0};
    return 1;
}

static int run(const Network *net, const Job *job, Work *w, Slot *slots, Entry *entries, int32_t *which) {
    int32_t *owner = which + job->slots;
    for (int64_t s = 0; s < job->slots; s++) slots[s].row = -1;
    for (;;) {
        int n = 0, wanted = 0;
        for (int64_t s = 0; s < job->slots && n < job->slots; s++) {
            Slot *slot = slots + s;
            if (slot->row < 0 && !take_row(job, slot)) continue;
            const uint32_t *row = job->tokens + slot->row * job->limit;
            for (; slot->fed <= slot->known && n < job->slots; slot->fed++) /* a prompt at once, else the newest token */
                entries[n++] = (Entry){slot->fed ? row[slot->fed - 1] : job->start, (int32_t)s, slot->fed};
            if (slot->fed > slot->known) owner[wanted] = (int32_t)s, which[wanted++] = n - 1;
        }
        if (n == 0 || __atomic_load_n(job->next, __ATOMIC_RELAXED) < 0) return DONE;
        forward(net, w, n, entries, wanted, which);
        for (int i = 0; i < wanted; i++) {
            Slot *slot = slots + owner[i];
            double u = uniform(job->key, job->first + slot->row, slot->known);
            int64_t token = draw(w->logits + (size_t)i * PAD(VOCAB), w->up, job, u);
            if (token < 0) return DIVERGED;
            job->tokens[slot->row * job->limit + slot->known++] = (uint32_t)token;
            if (token == job->end || slot->known == job->limit) {
                job->lengths[slot->row] = slot->known;
                slot->row = -1;
            }
        }
    }
}

/* Memory for `slots` slots and as many rows at once, zeroed: what lies behind a row's end is multiplied by 0. */
static float *allocate(int64_t slots, Work *w, size_t *bytes) {
    size_t rows = (slots + TILE - 1) / TILE * TILE;
    size_t sizes[] = {rows * PAD(HIDDEN), rows * PAD(HIDDEN), rows * PAD(QKV), rows * PAD(UP) + PAD(VOCAB), rows * PAD(VOCAB),
                      (size_t)slots * LAYERS * CACHED_KEYS, (size_t)slots * LAYERS * CACHED_VALUES};
    float **parts[] = {&w->x, &w->h, &w->qkv, &w->up, &w->logits, &w->keys, &w->values};
    *bytes = 0;
    for (int i = 0; i < 7; i++) *bytes += sizes[i] * sizeof(float);
    float *memory = mmap(NULL, *bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
#ifdef MADV_HUGEPAGE
    madvise(memory, *bytes, MADV_HUGEPAGE); /* a fifth more bandwidth */
#endif
    float *next = memory;
    for (int i = 0; i < 7; next += sizes[i++]) *parts[i] = next;
    return memory;
}

/* Rows of a job until none is left: what each calling thread does with slots of its own. */
int decode(const Network *net, const Job *job) {
    Work w;
    size_t bytes;
    float *memory = allocate(job->slots, &w, &bytes);
    void *lists = malloc(job->slots * (sizeof(Slot) + sizeof(Entry) + 2 * sizeof(int32_t)));
    int status = NO_MEMORY;
    if (memory && lists) {
        Entry *entries = (Entry *)((Slot *)lists + job->slots);
        status = run(net, job, &w, lists, entries, (int32_t *)(entries + job->slots));
    }
    free(lists);
    if (memory) munmap(memory, bytes);
    return status;
}

/* Logits [n][PAD(VOCAB)] after each of n tokens that follow each other. */
int score(const Network *net, int n, const uint32_t *tokens, float *logits) {
    Work w;
    size_t bytes;
    float *memory = allocate(n, &w, &bytes);
    Entry *entries = malloc(n * (sizeof(Entry) + sizeof(int32_t)));
    if (memory && entries) {
        int32_t *which = (int32_t *)(entries + n);
        for (int i = 0; i < n; i++) entries[i] = (Entry){tokens[i], 0, i}, which[i] = i;
        forward(net, &w, n, entries, n, which);
        memcpy(logits, w.logits, sizeof(float) * n * PAD(VOCAB));
    }
    int status = memory && entries ? DONE : NO_MEMORY;
    free(entries);
    if (memory) munmap(memory, bytes);
    return status;
}
