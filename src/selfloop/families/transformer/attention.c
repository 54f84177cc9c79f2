/* Products of matrices, and attention with its gradient for heads of HEAD numbers (see kernels.py; training.c follows).

   A window's numbers depend on that window alone, in an order that depends on nothing else. No threads of its own: pieces of a
   batch are computed by threads of the caller. */

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
enum { W = 16, TILE = 8 }; /* floats of a register, rows of a tile: 16 accumulators */
#elif defined(__AVX__)
enum { W = 8, TILE = 2 };
#else
enum { W = 4, TILE = 2 };
#endif
enum { PANEL = 32, HALF = HEAD / 2, WIDE = (HEAD + PANEL - 1) / PANEL * PANEL, BLOCK = 128 /* queries at a time */ };
#define PAD(n) (((n) + PANEL - 1) / PANEL * PANEL)
#define INLINE static inline __attribute__((always_inline))
typedef float vec __attribute__((vector_size(4 * W), aligned(4)));
typedef int32_t ints __attribute__((vector_size(4 * W)));

typedef struct { /* [tokens][(heads + 2 kv_heads) HEAD] of queries, keys, values; positions count from a window's start */
    int64_t windows, length, heads, kv_heads;
    const float *qkv;
    const float *rotary;    /* [length][2][HALF] cosines and sines; NULL: none */
    const int32_t *first;   /* [windows][length] the earliest place each one sees, its position 0; NULL: the window's start */
} Attention;

/* Relative error 2e-7 from -60 to 60; NaN stays NaN. With wider limits compilers multiply by exp(-limit) ahead of the choice,
   and products that small take a hundred cycles. */
INLINE float exponential(float x) {
    x = x < -60.0f ? -60.0f : x > 60.0f ? 60.0f : x;
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

INLINE float sum_of(float *x) { /* of PANEL numbers, which are lost */
    #pragma GCC unroll 5
    for (int half = PANEL / 2; half; half /= 2)
        for (int v = 0; v < half; v++) x[v] += x[v + half];
    return x[0];
}

INLINE float largest_of(float *x) {
    #pragma GCC unroll 5
    for (int half = PANEL / 2; half; half /= 2)
        for (int v = 0; v < half; v++) x[v] = x[v] > x[v + half] ? x[v] : x[v + half];
    return x[0];
}

/* c[TILE][PANEL] = (add: +=) start[columns] + sum over k of a[row * by_row + k * by_k] b[k][columns] */
INLINE void product(const float *a, int64_t by_row, int64_t by_k, const float *b, int64_t b_row, int64_t depth,
                    float *c, int64_t c_row, const float *start, int add) {
    vec sum[TILE][PANEL / W];
    for (int r = 0; r < TILE; r++)
        for (int v = 0; v < PANEL / W; v++) sum[r][v] = start ? ((const vec *)start)[v] : (vec){0};
    for (int64_t k = 0; k < depth; k++)
        for (int r = 0; r < TILE; r++)
            for (int v = 0; v < PANEL / W; v++)
                sum[r][v] += a[r * by_row + k * by_k] * *(const vec *)(b + k * b_row + v * W);
    for (int r = 0; r < TILE; r++)
        for (int v = 0; v < PANEL / W; v++) {
            vec *to = (vec *)(c + r * c_row + v * W);
            *to = add ? *to + sum[r][v] : sum[r][v];
        }
}

/* The same for as many columns, a multiple of PANEL. */
INLINE void products(const float *a, int64_t by_row, int64_t by_k, const float *b, int64_t b_row, int64_t depth,
                     float *c, int64_t c_row, int64_t columns, int add) {
    for (int64_t j = 0; j < columns; j += PANEL) product(a, by_row, by_k, b + j, b_row, depth, c + j, c_row, NULL, add);
}

/* to [W][W] = columns of from [W][W]; rows are so far apart */
INLINE void turn_square(const float *from, int64_t from_row, float *to, int64_t to_row) {
    vec x[W];
    for (int i = 0; i < W; i++) x[i] = *(const vec *)(from + i * from_row);
    #pragma GCC unroll 4
    for (int step = 1; step < W; step *= 2) { /* squares of that size beside the diagonal change places */
        ints low, high;
        for (int e = 0; e < W; e++) low[e] = e & step ? W + e - step : e, high[e] = e & step ? W + e : e + step;
        for (int i = 0; i < W; i++)
            if (!(i & step)) {
                vec a = x[i], b = x[i + step];
                x[i] = __builtin_shuffle(a, b, low);
                x[i + step] = __builtin_shuffle(a, b, high);
            }
    }
    for (int i = 0; i < W; i++) *(vec *)(to + i * to_row) = x[i];
}

static void turn(float *x, const float *table, float sign) { /* Su et al. 2021, 2104.09864, eq. (34), halves instead of pairs */
    for (int i = 0; i < HALF; i++) {
        float a = x[i], b = x[i + HALF], cosine = table[i], sine = sign * table[HALF + i];
        x[i] = a * cosine - b * sine;
        x[i + HALF] = b * cosine + a * sine;
    }
}

INLINE const float *table_of(const Attention *t, int64_t window, int64_t i) {
    return t->rotary + (i - (t->first ? t->first[window * t->length + i] : 0)) * HEAD;
}

/* Rows of one head [length][WIDE] (zeros behind), turned and scaled. */
static void take(const Attention *t, int64_t window, const float *from, int64_t stride, int rotates, float scale, float *to) {
    for (int64_t i = 0; i < t->length; i++, to += WIDE) {
        memcpy(to, from + i * stride, HEAD * sizeof(float));
        if (rotates && t->rotary) turn(to, table_of(t, window, i), 1.0f);
        for (int d = 0; d < HEAD; d++) to[d] *= scale;
    }
}

static void give(const Attention *t, int64_t window, float *from, int64_t stride, int rotates, float scale, float *to) {
    for (int64_t i = 0; i < t->length; i++, from += WIDE) {
        if (rotates && t->rotary) turn(from, table_of(t, window, i), -1.0f);
        for (int d = 0; d < HEAD; d++) to[i * stride + d] = from[d] * scale;
    }
}

static void transpose(const float *rows, int64_t length, float *columns) { /* [WIDE][PAD(length)] */
    for (int64_t i = 0; i < PAD(length); i += W)
        for (int d = 0; d < WIDE; d += W) turn_square(rows + i * WIDE + d, WIDE, columns + d * PAD(length) + i, PAD(length));
}

/* Scores of queries i .. i + TILE - 1 on the keys up to the last of them, as probabilities; zeros behind, in whole panels. */
static __attribute__((noinline)) void attend(const Attention *t, int64_t window, const float *q, const float *keys, int64_t i,
                                             float *p, float *inverse) {
    int64_t room = PAD(t->length), end = PAD(i + TILE < t->length ? i + TILE : t->length);
    products(q + i * WIDE, WIDE, 1, keys, room, HEAD, p, room, end, 0);
    for (int r = 0; r < TILE; r++, p += room) {
        int64_t last = i + r < t->length ? i + r : t->length - 1, first = t->first ? t->first[window * t->length + last] : 0;
        float most[PANEL], sum[PANEL] = {0};
        for (int64_t j = 0; j < first; j++) p[j] = -1e30f;
        for (int64_t j = last + 1; j < end; j++) p[j] = -1e30f;
        for (int v = 0; v < PANEL; v++) most[v] = p[v];
        for (int64_t j = PANEL; j < end; j += PANEL)
            for (int v = 0; v < PANEL; v++) most[v] = p[j + v] > most[v] ? p[j + v] : most[v];
        float top = largest_of(most);
        for (int64_t j = 0; j < end; j += PANEL)
            for (int v = 0; v < PANEL; v++) sum[v] += p[j + v] = exponential(p[j + v] - top);
        memset(p, 0, (size_t)first * sizeof(float));
        memset(p + last + 1, 0, (size_t)(end - last - 1) * sizeof(float));
        inverse[r] = 1.0f / sum_of(sum);
    }
}

static int64_t attention_room(int64_t length) {
    return 2 * (PAD(length) + TILE) * WIDE + WIDE * PAD(length) + TILE * (PAD(length) + WIDE);
}

/* out [tokens][heads HEAD]; memory of attention_room() floats, zeros at first: what lies behind rows is multiplied, too */
static void attention(const Attention *t, float *memory, float *out) {
    int64_t length = t->length, room = PAD(length), rows = room + TILE, width = (t->heads + 2 * t->kv_heads) * HEAD;
    float *q = memory, *v = q + rows * WIDE, *keys = v + rows * WIDE, *p = keys + WIDE * room, *o = p + TILE * room;
    float inverse[TILE];
    for (int64_t window = 0; window < t->windows; window++)
        for (int64_t h = 0; h < t->heads; h++) {
            const float *here = t->qkv + window * length * width, *k = here + (t->heads + h * t->kv_heads / t->heads) * HEAD;
            take(t, window, k, width, 1, 1.0f, q);
            transpose(q, length, keys);
            take(t, window, k + t->kv_heads * HEAD, width, 0, 1.0f, v);
            take(t, window, here + h * HEAD, width, 1, 1.0f / __builtin_sqrtf(HEAD), q);
            for (int64_t i = 0; i < length; i += TILE) {
                attend(t, window, q, keys, i, p, inverse);
                products(p, room, 1, v, WIDE, i + TILE < length ? i + TILE : length, o, WIDE, WIDE, 0);
                for (int64_t r = 0; r < TILE && i + r < length; r++)
                    for (int d = 0; d < HEAD; d++)
                        out[((window * length + i + r) * t->heads + h) * HEAD + d] = o[r * WIDE + d] * inverse[r];
            }
        }
}

/* Gradients of one head by blocks of queries: dq, and added to dk and dv. Dao et al. 2022, 2205.14135, appendix B. */
static __attribute__((noinline)) void head_backward(const Attention *t, int64_t window, float *const *m, int64_t block) {
    float *q = m[0], *k = m[1], *keys = m[2], *values = m[3], *go = m[4], *dq = m[5], *dk = m[6], *dv = m[7];
    float *p = m[8], *s = m[9];
    int64_t length = t->length, room = PAD(length), stop = block + BLOCK < length ? block + BLOCK : length;
    for (int64_t i = block; i < stop; i += TILE) {
        float inverse[TILE], *pi = p + (i - block) * room, *si = s + (i - block) * room;
        int64_t end = PAD(i + TILE < length ? i + TILE : length);
        attend(t, window, q, keys, i, pi, inverse);
        products(go + i * WIDE, WIDE, 1, values, room, HEAD, si, room, end, 0);
        for (int r = 0; r < TILE; r++) {
            float *restrict pr = pi + r * room, *restrict sr = si + r * room, sum[PANEL] = {0};
            if (i + r >= length) inverse[r] = 0; /* rows behind the window */
            for (int64_t j = 0; j < end; j += PANEL)
                for (int v = 0; v < PANEL; v++) sum[v] += (pr[j + v] *= inverse[r]) * sr[j + v];
            float delta = sum_of(sum);
            for (int64_t j = 0; j < end; j += PANEL)
                for (int v = 0; v < PANEL; v++) sr[j + v] = pr[j + v] * (sr[j + v] - delta);
        }
        products(si, room, 1, k, WIDE, end < length ? end : length, dq + i * WIDE, WIDE, WIDE, 0);
    }
    for (int64_t j = 0; j < stop; j += TILE) { /* keys; their queries are at or behind them */
        int64_t from = j > block ? j : block;
        products(p + (from - block) * room + j, 1, room, go + from * WIDE, WIDE, stop - from, dv + j * WIDE, WIDE, WIDE, 1);
        products(s + (from - block) * room + j, 1, room, q + from * WIDE, WIDE, stop - from, dk + j * WIDE, WIDE, WIDE, 1);
    }
}

static int64_t attention_backward_room(int64_t length) {
    return 6 * (PAD(length) + BLOCK) * WIDE + 2 * WIDE * PAD(length) + 2 * (BLOCK + TILE) * PAD(length);
}

/* gradient [tokens][(heads + 2 kv_heads) HEAD] of the loss, from that by `out`; memory as above */
static void attention_backward(const Attention *t, float *memory, const float *by_out, float *gradient) {
    int64_t length = t->length, room = PAD(length), rows = (room + BLOCK) * WIDE, width = (t->heads + 2 * t->kv_heads) * HEAD;
    int64_t columns = WIDE * room, block = (BLOCK + TILE) * room;
    int64_t sizes[10] = {rows, rows, columns, columns, rows, rows, rows, rows, block, block};
    float *m[10] = {memory}, scale = 1.0f / __builtin_sqrtf(HEAD);
    for (int i = 1; i < 10; i++) m[i] = m[i - 1] + sizes[i - 1];
    int64_t group = t->heads / t->kv_heads;
    for (int64_t window = 0; window < t->windows; window++)
        for (int64_t h = 0; h < t->heads; h++) {
            int64_t begin = window * length * width, at = begin + (t->heads + h / group) * HEAD;
            take(t, window, t->qkv + at + t->kv_heads * HEAD, width, 0, 1.0f, m[1]);
            transpose(m[1], length, m[3]);
            take(t, window, t->qkv + at, width, 1, 1.0f, m[1]);
            transpose(m[1], length, m[2]);
            take(t, window, t->qkv + begin + h * HEAD, width, 1, scale, m[0]);
            take(t, window, by_out + (window * length * t->heads + h) * HEAD, t->heads * HEAD, 0, 1.0f, m[4]);
            if (h % group == 0) memset(m[6], 0, (size_t)(2 * rows) * sizeof(float));
            for (int64_t i = 0; i < length; i += BLOCK) head_backward(t, window, m, i);
            give(t, window, m[5], width, 1, scale, gradient + begin + h * HEAD);
            if (h % group == group - 1) {
                give(t, window, m[6], width, 1, 1.0f, gradient + at);
                give(t, window, m[7], width, 0, 1.0f, gradient + at + t->kv_heads * HEAD);
            }
        }
}
