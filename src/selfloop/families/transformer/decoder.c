/* Continuous-batch decoding of GPT-2 and Llama networks, compiled for one shape (-D LAYERS=... and so on, see compiled.py).

   Every number of a row is computed from that row alone in an order that depends on nothing else: rows are the same bits
   however many slots, threads and other rows there are. Each thread calls `decode` and has slots of its own.

   Reading keys and values is what limits the speed, so they are kept in 16 bits, in units of the largest number of their
   head and position: 30 times as fine as bfloat16. */

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
    PAIRS = (HEAD + 1) / 2,
    WIDE = (PAIRS + W - 1) / W * W, /* pairs of values of a position, in whole vectors */
    BLOCKS = (CONTEXT + LANES - 1) / LANES,
    ROOM = BLOCKS * LANES,
    KV = KV_HEADS * HEAD,
    QKV = HIDDEN + 2 * KV,
    UP = MLP * (1 + LLAMA),
    SPAN = 64 /* tokens whose probabilities are summed before they are searched */
};
#define PAD(n) (((n) + PANEL - 1) / PANEL * PANEL)
typedef float vec __attribute__((vector_size(4 * W)));
typedef float loose __attribute__((vector_size(4 * W), aligned(4)));
typedef int32_t ints __attribute__((vector_size(4 * W)));

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

/* Rows of activations; keys [slot][layer][KV_HEADS][BLOCKS][PAIRS][LANES], values [..][CONTEXT][WIDE], units [..][2][ROOM]. */
typedef struct { float *x, *h, *qkv, *up, *logits, *units; int32_t *keys, *values; } Work;

enum { DONE, DIVERGED, NO_MEMORY };
enum { CACHED_KEYS = BLOCKS * PAIRS * LANES, CACHED_VALUES = (CONTEXT + 3) * WIDE }; /* pairs of a head */

static inline vec pick(ints where, vec a, vec b) { return (vec)((where & (ints)a) | (~where & (ints)b)); }
static inline vec larger(vec a, vec b) { return pick(a > b, a, b); }

static inline float sum_of(vec x) {
    for (int half = W / 2; half; half /= 2)
        for (int i = 0; i < half; i++) x[i] += x[i + half];
    return x[0];
}

static inline float largest_of(vec x) {
    for (int i = 1; i < W; i++) x[0] = x[i] > x[0] ? x[i] : x[0];
    return x[0];
}

static inline vec exponential(vec x) { /* relative error 2e-7; 0 below -87, e^88 above 88, NaN stays NaN */
    const vec zero = {0};
    ints small = x < -87;
    x = pick(small, zero, pick(x > 88, zero + 88, x));
    vec n = x * 1.44269504f + 12582912; /* rounds to the nearest integer, in the low bits */
    ints power = ((ints)n + 127) << 23;
    n -= 12582912;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec y = 1.9875691500e-4f * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1;
    return pick(small, zero, y * (vec)power);
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

static void normalise(const float *x, float *h) { /* gains and biases are part of the weights that follow */
    enum { ALL = (HIDDEN + W - 1) / W * W }; /* behind the row there are zeros */
    vec sum = {0}, squares = {0};
    if (!LLAMA)
        for (int i = 0; i < ALL; i += W) sum += *(const vec *)(x + i);
    float mean = sum_of(sum) / HIDDEN;
    for (int i = 0; i < ALL; i += W) {
        vec off = *(const vec *)(x + i) - mean;
        squares += off * off;
    }
    float square = (sum_of(squares) - (ALL - HIDDEN) * mean * mean) / HIDDEN;
    float scale = 1 / __builtin_sqrtf(square + (float)EPSILON);
    for (int i = 0; i < ALL; i += W) *(vec *)(h + i) = (*(const vec *)(x + i) - mean) * scale;
}

static void rotate(float *q, const float *table) { /* Su et al. 2021, 2104.09864, eq. (34), halves instead of pairs */
    for (int i = 0; i < HALF; i++) {
        float a = q[i], b = q[i + HALF];
        q[i] = a * table[i] - b * table[HALF + i];
        q[i + HALF] = b * table[i] + a * table[HALF + i];
    }
}

/* HEAD numbers as 16-bit multiples of a unit, which comes back: an error of 2^-16 of the largest. Pairs go `step` apart. */
static inline __attribute__((always_inline)) float shorten(const float *x, int32_t *pairs, int step) {
    int32_t bits[HEAD], most = 0, whole[2 * PAIRS] = {0};
    memcpy(bits, x, sizeof bits);
    for (int i = 0; i < HEAD; i++) most = (bits[i] & INT32_MAX) > most ? bits[i] & INT32_MAX : most; /* NaN is the largest */
    float unit;
    memcpy(&unit, &most, sizeof unit);
    unit /= 32767;
    float inverse = most ? 1 / unit : 0;
    for (int i = 0; i < HEAD; i++) whole[i] = (int32_t)__builtin_rintf(x[i] * inverse);
    for (int i = 0; i < PAIRS; i++) pairs[i * step] = (whole[2 * i] & 0xffff) | (int32_t)((uint32_t)whole[2 * i + 1] << 16);
    return unit / 65536;
}

static void remember(const float *qkv, int32_t *keys, int32_t *values, float *units, int position) {
    for (int g = 0; g < KV_HEADS; g++, qkv += HEAD, units += 2 * ROOM) {
        int32_t *key = keys + g * CACHED_KEYS + position / LANES * PAIRS * LANES + position % LANES;
        units[position] = shorten(qkv + HIDDEN, key, LANES);
        units[ROOM + position] = shorten(qkv + HIDDEN + KV, values + g * CACHED_VALUES + position * WIDE, 1);
    }
}

/* The first and the second numbers of W pairs, times 65536. */
static inline vec first_of(const int32_t *pairs) { return __builtin_convertvector(*(const ints *)pairs << 16, vec); }
static inline vec second_of(const int32_t *pairs) { return __builtin_convertvector(*(const ints *)pairs & -65536, vec); }

/* softmax(q k) v of one query head over positions 0 .. position; q is already divided by sqrt(HEAD). */
static void attend(const float *q, const int32_t *keys, const int32_t *values, const float *units, int position, float *out) {
    float p[ROOM] __attribute__((aligned(64)));
    int n = position + 1, all = (n + LANES - 1) / LANES * LANES;
    for (int t = 0; t < all; t += LANES, keys += PAIRS * LANES)
        for (int v = 0; v < LANES; v += W) {
            vec even = {0}, odd = {0};
            for (int i = 0; i < PAIRS; i++) {
                even += q[2 * i] * first_of(keys + i * LANES + v);
                odd += q[2 * i + 1] * second_of(keys + i * LANES + v);
            }
            *(vec *)(p + t + v) = (even + odd) * *(const vec *)(units + t + v);
        }
    for (int t = n; t < all; t++) p[t] = -1e30f;
    vec top = *(const vec *)p, total = {0};
    for (int t = 0; t < all; t += W) top = larger(*(const vec *)(p + t), top);
    float most = largest_of(top);
    for (int t = 0; t < all; t += W) {
        vec e = exponential(*(const vec *)(p + t) - most);
        total += e;
        *(vec *)(p + t) = e * *(const vec *)(units + ROOM + t);
    }
    vec sum[4][2 * WIDE / W] = {0};
    for (int t = 0; t < n; t += 4)
        for (int j = 0; j < 4; j++, values += WIDE)
            for (int v = 0; v < WIDE; v += W) {
                sum[j][2 * v / W] += p[t + j] * first_of(values + v);
                sum[j][2 * v / W + 1] += p[t + j] * second_of(values + v);
            }
    float mixed[2 * WIDE] __attribute__((aligned(64))); /* first numbers of W pairs, then the second ones, and so on */
    float scale = 1 / sum_of(total);
    for (int v = 0; v < 2 * WIDE / W; v++)
        *(vec *)(mixed + v * W) = ((sum[0][v] + sum[1][v]) + (sum[2][v] + sum[3][v])) * scale;
    for (int i = 0; i < HEAD; i++) out[i] = mixed[i / (2 * W) * 2 * W + i % 2 * W + i % (2 * W) / 2];
}

static void activate(float *up) { /* silu, or gelu with tanh; what is written behind the row's end was read before */
    for (int i = 0; i < MLP; i += W) {
        vec x = *(const vec *)(up + i), u = LLAMA ? x : 1.5957691216f * (x + 0.044715f * x * x * x);
        if (LLAMA) x *= *(const loose *)(up + i + MLP);
        *(vec *)(up + i) = x / (1 + exponential(-u));
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
            size_t head = ((size_t)entries[i].slot * LAYERS + l) * KV_HEADS;
            int position = entries[i].position;
            if (LLAMA)
                for (int g = 0; g < HEADS + KV_HEADS; g++) rotate(qkv + g * HEAD, net->positions + position * HEAD);
            remember(qkv, w->keys + head * CACHED_KEYS, w->values + head * CACHED_VALUES, w->units + head * 2 * ROOM, position);
        }
        for (int i = 0; i < n; i++)
            for (int g = 0; g < HEADS; g++) {
                size_t head = ((size_t)entries[i].slot * LAYERS + l) * KV_HEADS + g / GROUP;
                attend(w->qkv + i * PAD(QKV) + g * HEAD, w->keys + head * CACHED_KEYS, w->values + head * CACHED_VALUES,
                       w->units + head * 2 * ROOM, entries[i].position, w->h + i * PAD(HIDDEN) + g * HEAD);
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
static int64_t draw(float *p, float *spare, const Job *job, double u) {
    float scale = job->temperature > 0 ? (float)(1 / job->temperature) : 1, sums[PAD(VOCAB) / SPAN + 1];
    for (int i = VOCAB; i < PAD(VOCAB); i++) p[i] = -1e30f;
    vec tops = *(const vec *)p, totals = {0};
    for (int i = 0; i < PAD(VOCAB); i += W) tops = larger(*(const vec *)(p + i), tops);
    float top = largest_of(tops);
    int best = 0;
    while (best < VOCAB - 1 && p[best] != top) best++;
    for (int i = 0; i < PAD(VOCAB); i += W) totals += *(vec *)(p + i) = exponential((*(const vec *)(p + i) - top) * scale);
    float total = sum_of(totals);
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
    for (int i = 0; i < PAD(VOCAB); i += SPAN) {
        vec sum = {0};
        for (int j = i; j < i + SPAN && j < PAD(VOCAB); j += W) sum += *(const vec *)(p + j);
        all += sums[i / SPAN] = sum_of(sum);
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
    size_t heads = (size_t)slots * LAYERS * KV_HEADS;
    size_t sizes[] = {rows * PAD(HIDDEN), rows * PAD(HIDDEN), rows * PAD(QKV), rows * PAD(UP) + PAD(VOCAB), rows * PAD(VOCAB),
                      heads * 2 * ROOM, heads * CACHED_KEYS, heads * CACHED_VALUES};
    float **parts[] = {&w->x, &w->h, &w->qkv, &w->up, &w->logits, &w->units, (float **)&w->keys, (float **)&w->values};
    *bytes = 0;
    for (int i = 0; i < 8; i++) *bytes += sizes[i] * sizeof(float);
    float *memory = mmap(NULL, *bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
#ifdef MADV_HUGEPAGE
    madvise(memory, *bytes, MADV_HUGEPAGE); /* a fifth more bandwidth */
#endif
    float *next = memory;
    for (int i = 0; i < 8; next += sizes[i++]) *parts[i] = next;
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
