/* Operations of GPT-2 and Llama networks on single rows and on batches of rows, compiled for one network shape.

   Compile-time constants: HIDDEN_DIM, HEADS, KV_HEADS, HEAD_DIM, MLP_DIM, CONTEXT, LLAMA (1 = Llama, 0 = GPT-2), EPSILON (of
   the norms).
   Layout of weights: [n_outputs / PANEL_COLS][1 + n_inputs][PANEL_COLS], the bias first, columns padded with zeros.
   Layout of activations: one row per token, PAD(n) floats long.
   Layout of the cache: reading it limits the speed, so it has 16 bits per number, in units of the largest number of its
   head and position (30 times as precise as bfloat16), two numbers in an int32. For each head of keys and values:
   keys [KEY_BLOCKS][HEAD_PAIRS][KEY_BLOCK], values [CONTEXT][PADDED_PAIRS], scales [2][PADDED_CONTEXT]: those of keys, then
   those of values. */

#include <stdint.h>
#include <string.h>

#if !defined(HIDDEN_DIM) || !defined(HEADS) || !defined(KV_HEADS) || !defined(HEAD_DIM) || !defined(MLP_DIM) || \
    !defined(CONTEXT) || !defined(LLAMA) || !defined(EPSILON)
#error "transformer_ops.h needs the constants of decoder_c.compile_constants"
#endif
#if defined(__AVX512F__)
enum { SIMD_WIDTH = 16, TILE_ROWS = 8 }; /* floats of a register, rows of a tile: 16 accumulators */
#elif defined(__AVX__)
enum { SIMD_WIDTH = 8, TILE_ROWS = 2 };
#else
enum { SIMD_WIDTH = 4, TILE_ROWS = 2 };
#endif

enum {
    PANEL_COLS = 32, /* columns of packed weights that are computed together */
    PANEL_VECTORS = PANEL_COLS / SIMD_WIDTH,
    KEY_BLOCK = 16, /* positions of a block of keys */
    HALF_HEAD_DIM = HEAD_DIM / 2,
    QUERIES_PER_KV_HEAD = HEADS / KV_HEADS,
    HEAD_PAIRS = (HEAD_DIM + 1) / 2,
    PADDED_PAIRS = (HEAD_PAIRS + SIMD_WIDTH - 1) / SIMD_WIDTH * SIMD_WIDTH,
    KEY_BLOCKS = (CONTEXT + KEY_BLOCK - 1) / KEY_BLOCK,
    PADDED_CONTEXT = KEY_BLOCKS * KEY_BLOCK,
    KV_DIM = KV_HEADS * HEAD_DIM,
    QKV_DIM = HIDDEN_DIM + 2 * KV_DIM,
    UP_DIM = MLP_DIM * (1 + LLAMA),
    HEAD_KEYS = KEY_BLOCKS * HEAD_PAIRS * KEY_BLOCK, /* pairs of a head */
    HEAD_VALUES = (CONTEXT + 3) * PADDED_PAIRS,      /* four positions are read at a time */
    HEAD_SCALES = 2 * PADDED_CONTEXT
};
#define PAD(n) (((n) + PANEL_COLS - 1) / PANEL_COLS * PANEL_COLS)
typedef float f32v __attribute__((vector_size(4 * SIMD_WIDTH)));
typedef float f32v_unaligned __attribute__((vector_size(4 * SIMD_WIDTH), aligned(4)));
typedef int32_t i32v __attribute__((vector_size(4 * SIMD_WIDTH)));

static inline f32v select_f32(i32v mask, f32v a, f32v b) { return (f32v)((mask & (i32v)a) | (~mask & (i32v)b)); }
static inline f32v max_f32(f32v a, f32v b) { return select_f32(a > b, a, b); }

static inline float horizontal_sum(f32v x) {
    for (int half = SIMD_WIDTH / 2; half; half /= 2) {
        for (int i = 0; i < half; i++) { x[i] += x[i + half]; }
    }
    return x[0];
}

static inline float horizontal_max(f32v x) {
    for (int i = 1; i < SIMD_WIDTH; i++) { x[0] = x[i] > x[0] ? x[i] : x[0]; }
    return x[0];
}

/* e^x with relative error 2e-7; 0 below -87, e^88 above 88, NaN for NaN */
static inline f32v exp_f32(f32v x) {
    const f32v zero = {0};
    i32v underflows = x < -87;
    x = select_f32(underflows, zero, select_f32(x > 88, zero + 88, x));
    f32v n = x * 1.44269504f + 12582912; /* rounds to the nearest integer, in the low bits */
    i32v power = ((i32v)n + 127) << 23;
    n -= 12582912;
    f32v r = x - n * 0.693359375f + n * 2.12194440e-4f;
    f32v y = 1.9875691500e-4f * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1;
    return select_f32(underflows, zero, y * (f32v)power);
}

/* out[n_rows][PAD(n_cols)] (+)= a[n_rows][a_stride] . w + bias in whole tiles of rows; returns the end of w */
static inline __attribute__((always_inline)) const float *matmul_bias(
    const float *a, int a_stride, int n_rows, const float *w, int n_inputs, int n_cols, int accumulate, float *out) {
    for (int j = 0; j < PAD(n_cols); j += PANEL_COLS, w += (n_inputs + 1) * PANEL_COLS) {
        for (int i = 0; i < n_rows; i += TILE_ROWS) {
            f32v sum[TILE_ROWS][PANEL_VECTORS];
            for (int r = 0; r < TILE_ROWS; r++) {
                for (int v = 0; v < PANEL_VECTORS; v++) {
                    sum[r][v] = *(const f32v *)(w + v * SIMD_WIDTH);
                    if (accumulate) { sum[r][v] += *(const f32v *)(out + (i + r) * PAD(n_cols) + j + v * SIMD_WIDTH); }
                }
            }
            for (int k = 0; k < n_inputs; k++) {
                for (int r = 0; r < TILE_ROWS; r++) {
                    for (int v = 0; v < PANEL_VECTORS; v++) {
                        sum[r][v] += a[(i + r) * a_stride + k] * *(const f32v *)(w + (k + 1) * PANEL_COLS + v * SIMD_WIDTH);
                    }
                }
            }
            for (int r = 0; r < TILE_ROWS; r++) {
                for (int v = 0; v < PANEL_VECTORS; v++) {
                    *(f32v *)(out + (i + r) * PAD(n_cols) + j + v * SIMD_WIDTH) = sum[r][v];
                }
            }
        }
    }
    return w;
}

/* out[HIDDEN_DIM] = LayerNorm or RMSNorm of x[HIDDEN_DIM]; gains and biases are part of the weights that follow */
static void apply_norm(const float *x, float *out) {
    enum { PADDED_DIM = (HIDDEN_DIM + SIMD_WIDTH - 1) / SIMD_WIDTH * SIMD_WIDTH }; /* zeros follow the row */
    f32v sum = {0}, squares = {0};
    if (!LLAMA) {
        for (int i = 0; i < PADDED_DIM; i += SIMD_WIDTH) { sum += *(const f32v *)(x + i); }
    }
    float mean = horizontal_sum(sum) / HIDDEN_DIM;
    for (int i = 0; i < PADDED_DIM; i += SIMD_WIDTH) {
        f32v deviation = *(const f32v *)(x + i) - mean;
        squares += deviation * deviation;
    }
    float variance = (horizontal_sum(squares) - (PADDED_DIM - HIDDEN_DIM) * mean * mean) / HIDDEN_DIM;
    float scale = 1 / __builtin_sqrtf(variance + (float)EPSILON);
    for (int i = 0; i < PADDED_DIM; i += SIMD_WIDTH) { *(f32v *)(out + i) = (*(const f32v *)(x + i) - mean) * scale; }
}

/* x[HEAD_DIM] rotated by its position: Su et al. 2021, 2104.09864, eq. (34), with halves instead of pairs */
static void apply_rope(const float *table, float *x) {
    for (int i = 0; i < HALF_HEAD_DIM; i++) {
        float a = x[i];
        float b = x[i + HALF_HEAD_DIM];
        x[i] = a * table[i] - b * table[HALF_HEAD_DIM + i];
        x[i + HALF_HEAD_DIM] = b * table[i] + a * table[HALF_HEAD_DIM + i];
    }
}

/* pairs[HEAD_PAIRS], `pair_stride` apart = x[HEAD_DIM] as 16-bit multiples of a unit; returns unit / 65536.
   The error is at most 2^-16 of the largest number. */
static inline __attribute__((always_inline)) float quantize_i16(const float *x, int32_t *pairs, int pair_stride) {
    int32_t bits[HEAD_DIM], largest = 0, multiples[2 * HEAD_PAIRS] = {0};
    memcpy(bits, x, sizeof bits);
    for (int i = 0; i < HEAD_DIM; i++) { /* the bits of NaN are the largest */
        largest = (bits[i] & INT32_MAX) > largest ? bits[i] & INT32_MAX : largest;
    }
    float unit;
    memcpy(&unit, &largest, sizeof unit);
    unit /= 32767;
    float inverse = largest ? 1 / unit : 0;
    for (int i = 0; i < HEAD_DIM; i++) { multiples[i] = (int32_t)__builtin_rintf(x[i] * inverse); }
    for (int i = 0; i < HEAD_PAIRS; i++) {
        pairs[i * pair_stride] = (multiples[2 * i] & 0xffff) | (int32_t)((uint32_t)multiples[2 * i + 1] << 16);
    }
    return unit / 65536;
}

/* the cache of one slot and layer at a position = the keys and values of qkv[QKV_DIM] */
static void cache_keys_values(const float *qkv, int position, int32_t *keys, int32_t *values, float *scales) {
    for (int g = 0; g < KV_HEADS; g++, qkv += HEAD_DIM, scales += HEAD_SCALES) {
        int32_t *key = keys + g * HEAD_KEYS + position / KEY_BLOCK * HEAD_PAIRS * KEY_BLOCK + position % KEY_BLOCK;
        scales[position] = quantize_i16(qkv + HIDDEN_DIM, key, KEY_BLOCK);
        int32_t *value = values + g * HEAD_VALUES + position * PADDED_PAIRS;
        scales[PADDED_CONTEXT + position] = quantize_i16(qkv + HIDDEN_DIM + KV_DIM, value, 1);
    }
}

/* the first and the second numbers of SIMD_WIDTH pairs, times 65536 */
static inline f32v unpack_even(const int32_t *pairs) { return __builtin_convertvector(*(const i32v *)pairs << 16, f32v); }
static inline f32v unpack_odd(const int32_t *pairs) { return __builtin_convertvector(*(const i32v *)pairs & -65536, f32v); }

/* p[n_padded] = q[HEAD_DIM] . keys of the first n_padded positions, a multiple of KEY_BLOCK */
static inline __attribute__((always_inline)) void attention_scores(
    const float *q, const int32_t *keys, const float *scales, int n_padded, float *p) {
    for (int t = 0; t < n_padded; t += KEY_BLOCK, keys += HEAD_PAIRS * KEY_BLOCK) {
        for (int v = 0; v < KEY_BLOCK; v += SIMD_WIDTH) {
            f32v even = {0}, odd = {0};
            for (int i = 0; i < HEAD_PAIRS; i++) {
                even += q[2 * i] * unpack_even(keys + i * KEY_BLOCK + v);
                odd += q[2 * i + 1] * unpack_odd(keys + i * KEY_BLOCK + v);
            }
            *(f32v *)(p + t + v) = (even + odd) * *(const f32v *)(scales + t + v);
        }
    }
}

/* out[HEAD_DIM] = softmax(q . keys) . values of one query head over positions 0 .. position; q is divided by sqrt(HEAD_DIM) */
static void attention_head(
    const float *q, const int32_t *keys, const int32_t *values, const float *scales, int position, float *out) {
    float p[PADDED_CONTEXT] __attribute__((aligned(64)));
    int n = position + 1;
    int n_padded = (n + KEY_BLOCK - 1) / KEY_BLOCK * KEY_BLOCK;
    attention_scores(q, keys, scales, n_padded, p);
    for (int t = n; t < n_padded; t++) { p[t] = -1e30f; }
    f32v maxima = *(const f32v *)p, totals = {0};
    for (int t = 0; t < n_padded; t += SIMD_WIDTH) { maxima = max_f32(*(const f32v *)(p + t), maxima); }
    float maximum = horizontal_max(maxima);
    for (int t = 0; t < n_padded; t += SIMD_WIDTH) {
        f32v e = exp_f32(*(const f32v *)(p + t) - maximum);
        totals += e;
        *(f32v *)(p + t) = e * *(const f32v *)(scales + PADDED_CONTEXT + t);
    }
    f32v sum[4][2 * PADDED_PAIRS / SIMD_WIDTH] = {0};
    for (int t = 0; t < n; t += 4) {
        for (int j = 0; j < 4; j++, values += PADDED_PAIRS) {
            for (int v = 0; v < PADDED_PAIRS; v += SIMD_WIDTH) {
                sum[j][2 * v / SIMD_WIDTH] += p[t + j] * unpack_even(values + v);
                sum[j][2 * v / SIMD_WIDTH + 1] += p[t + j] * unpack_odd(values + v);
            }
        }
    }
    float mixed[2 * PADDED_PAIRS] __attribute__((aligned(64))); /* even numbers of SIMD_WIDTH pairs, their odd numbers, ... */
    float scale = 1 / horizontal_sum(totals);
    for (int v = 0; v < 2 * PADDED_PAIRS / SIMD_WIDTH; v++) {
        *(f32v *)(mixed + v * SIMD_WIDTH) = ((sum[0][v] + sum[1][v]) + (sum[2][v] + sum[3][v])) * scale;
    }
    for (int i = 0; i < HEAD_DIM; i++) {
        out[i] = mixed[i / (2 * SIMD_WIDTH) * 2 * SIMD_WIDTH + i % 2 * SIMD_WIDTH + i % (2 * SIMD_WIDTH) / 2];
    }
}

/* up[MLP_DIM] = silu(up) * gate, or gelu(up) with tanh; the last vector overwrites gates that were read before */
static void apply_activation(float *up) {
    for (int i = 0; i < MLP_DIM; i += SIMD_WIDTH) {
        f32v x = *(const f32v *)(up + i);
        f32v u = LLAMA ? x : 1.5957691216f * (x + 0.044715f * x * x * x);
        if (LLAMA) { x *= *(const f32v_unaligned *)(up + i + MLP_DIM); }
        *(f32v *)(up + i) = x / (1 + exp_f32(-u));
    }
}
