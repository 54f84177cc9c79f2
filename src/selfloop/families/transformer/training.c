/* The loss of a GPT-2 or Llama network on some windows with its gradient, or log-probabilities alone (behind attention.c). */

typedef struct { float *at; int64_t row, column; } Matrix; /* element (i, j) is at[i * row + j * column] */
typedef struct { const float *weight, *bias; float *by_weight, *by_bias; } Map; /* gradients are added to; NULL: none */

enum { NORM1, Q, K, V, OUT, NORM2, UP, GATE, DOWN, MAPS }; /* of a layer; where there is no K, Q gives keys and values, too */
enum { EMBEDDING, POSITIONS, NORM, HEAD_MAP, FIRST };      /* before those of the layers */
enum { DEPTH = 256, SCORED = 256 /* tokens whose logits there are at a time */ };

typedef struct {
    int64_t layers, hidden, heads, kv_heads, mlp, vocab, out_first; /* out_first: matrices are [out][in], else [in][out] */
    int64_t windows, length;
    double epsilon;
    const int64_t *tokens, *targets; /* [windows][length] */
    const int32_t *first;            /* as in Attention */
    const float *rotary;
    const float *weights;            /* of targets; NULL: gradients are not wanted */
    const Map *maps;
    float *log_prob;                 /* [windows][length] */
    float *memory;                   /* room() floats */
} Job;

typedef struct { float *x, *normal, *scale, *qkv, *attended, *x2, *normal2, *scale2, *wide, *gate; } Layer; /* what it keeps */
typedef struct { float *act, *logits, *attention, *by, *by_normal, *by_qkv, *by_act, *by_gate, *attention_backward; } Shared;

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static Matrix matrix(const float *at, int64_t width) { return (Matrix){(float *)at, width, 1}; }
static Matrix turned(Matrix m) { return (Matrix){m.at, m.column, m.row}; }

/* b [depth][columns] with zeros behind its columns */
static void pack(Matrix b, int64_t depth, int64_t columns, float *panel) {
    int64_t squares = b.row == 1 && columns == PANEL ? depth / W * W : 0;
    if (columns < PANEL) memset(panel, 0, (size_t)(depth * PANEL) * sizeof(float));
    if (b.column == 1 && columns == PANEL)
        for (int64_t k = 0; k < depth; k++) memcpy(panel + k * PANEL, b.at + k * b.row, PANEL * sizeof(float));
    else
        for (int64_t v = 0; v < columns; v++)
            for (int64_t k = squares; k < depth; k++) panel[k * PANEL + v] = b.at[k * b.row + v * b.column];
    for (int v = 0; v < PANEL; v += W)
        for (int64_t k = 0; k < squares; k += W) turn_square(b.at + k + v * b.column, b.column, panel + k * PANEL + v, PANEL);
}

/* c [TILE][PANEL] = (add: +=) a panel + start; asks for what the tile below it will need */
static __attribute__((noinline)) void tile(const float *a, int64_t by_row, int64_t by_k, const float *panel, int64_t depth,
                                           float *c, int64_t c_row, const float *start, int add) {
    for (int r = 0; r < TILE; r++) {
        for (int v = 0; v < PANEL; v += 16) __builtin_prefetch(c + (TILE + r) * c_row + v, 1);
        if (by_k == 1) __builtin_prefetch(a + (TILE + r) * by_row);
    }
    product(a, by_row, by_k, panel, PANEL, depth, c, c_row, start, add);
}

static void copy(float *to, int64_t to_row, const float *from, int64_t from_row, int64_t rows, int64_t columns) {
    for (int64_t r = 0; r < rows; r++) memcpy(to + r * to_row, from + r * from_row, (size_t)columns * sizeof(float));
}

/* a's rows in groups of TILE, each [depth][TILE] as a tile reads them, with zeros for those that are missing */
static void lanes(Matrix a, int64_t rows, int64_t depth, float *to) {
    for (int64_t i = 0; i < rows; i += TILE)
        for (int64_t k = 0; k < depth; k++, to += TILE)
            if (a.row == 1 && i + TILE <= rows) memcpy(to, a.at + i + k * a.column, TILE * sizeof(float));
            else for (int64_t r = 0; r < TILE; r++) to[r] = i + r < rows ? a.at[(i + r) * a.row + k * a.column] : 0.0f;
}

/* c [m][n] = (add: +=) a [m][depth] b [depth][n] + bias [n], which may be NULL; a row of c lies together */
static void multiply(Matrix c, Matrix a, Matrix b, int64_t m, int64_t n, int64_t depth, const float *bias, int add) {
    float panel[DEPTH * PANEL], start[PANEL], block[BLOCK * DEPTH], to[TILE * PANEL];
    int64_t group = a.column == 1 ? m : BLOCK; /* rows; where they do not lie together they are copied */
    for (int64_t i0 = 0; i0 < m; i0 += group)
        for (int64_t k = 0; k < depth; k += DEPTH) {
            int64_t size = least(DEPTH, depth - k), end = least(m, i0 + group);
            if (a.column != 1) lanes((Matrix){a.at + i0 * a.row + k * a.column, a.row, a.column}, end - i0, size, block);
            for (int64_t j = 0; j < n; j += PANEL) {
                int64_t columns = least(PANEL, n - j);
                pack((Matrix){b.at + k * b.row + j * b.column, b.row, b.column}, size, columns, panel);
                for (int64_t v = 0; v < PANEL; v++) start[v] = bias && !k && v < columns ? bias[j + v] : 0.0f;
                for (int64_t i = i0; i < end; i += TILE) {
                    const float *rows = a.at + i * a.row + k;
                    float *out = c.at + i * c.row + j;
                    int64_t count = least(TILE, m - i), by_row = a.row, by_k = 1;
                    if (a.column != 1) rows = block + (i - i0) * size, by_row = 1, by_k = TILE;
                    if (count == TILE && columns == PANEL) {
                        tile(rows, by_row, by_k, panel, size, out, c.row, start, add || k);
                        continue;
                    }
                    if (a.column == 1) {
                        lanes((Matrix){(float *)rows, a.row, 1}, count, size, block);
                        rows = block, by_row = 1, by_k = TILE;
                    }
                    copy(to, PANEL, out, c.row, count, columns);
                    tile(rows, by_row, by_k, panel, size, to, PANEL, start, add || k);
                    copy(out, c.row, to, PANEL, count, columns);
                }
            }
        }
}

static Matrix weights_of(const Job *j, const float *weight, int64_t in, int64_t out) { /* [in][out] */
    return j->out_first ? turned(matrix(weight, in)) : matrix(weight, out);
}

static void add_to(int64_t n, const float *restrict x, float *restrict sum) {
    for (int64_t i = 0; i < n; i++) sum[i] += x[i];
}

/* y [tokens][out] = (add: +=) x [tokens][in] weight + bias */
static void apply(const Job *j, const Map *map, int64_t tokens, Matrix x, int64_t in, Matrix y, int64_t out, int add) {
    multiply(y, x, weights_of(j, map->weight, in, out), tokens, out, in, map->bias, add);
}

/* The gradient by the map, from `by`, that by y */
static void by_map(const Job *j, const Map *map, int64_t tokens, Matrix x, int64_t in, Matrix by, int64_t out) {
    for (int64_t i = 0; map->bias && i < tokens; i++) add_to(out, by.at + i * by.row, map->by_bias);
    if (j->out_first) multiply(matrix(map->by_weight, in), turned(by), x, out, in, tokens, NULL, 1);
    else multiply(matrix(map->by_weight, out), turned(x), by, in, out, tokens, NULL, 1);
}

/* by_x = (add: +=) the gradient by x, from `by`, that by y */
static void by_input(const Job *j, const Map *map, int64_t tokens, Matrix by, int64_t out, Matrix by_x, int64_t in, int add) {
    multiply(by_x, by, turned(weights_of(j, map->weight, in, out)), tokens, in, out, NULL, add);
}

/* y = (x - mean) scale weight + bias, where without a bias the mean is left alone; keeps the mean and scale of each token */
static void normalise(const Job *j, const Map *map, int64_t tokens, const float *x, float *y, float *scale) {
    int64_t n = j->hidden;
    for (int64_t i = 0; i < tokens; i++, x += n, y += n, scale += 2) {
        float sum = 0, squares = 0;
        if (map->bias) {
            #pragma omp simd reduction(+:sum)
            for (int64_t d = 0; d < n; d++) sum += x[d];
        }
        float mean = sum / (float)n;
        #pragma omp simd reduction(+:squares)
        for (int64_t d = 0; d < n; d++) squares += (x[d] - mean) * (x[d] - mean);
        scale[0] = mean;
        scale[1] = 1.0f / __builtin_sqrtf(squares / (float)n + (float)j->epsilon);
        for (int64_t d = 0; d < n; d++) y[d] = (x[d] - mean) * scale[1] * map->weight[d] + (map->bias ? map->bias[d] : 0.0f);
    }
}

/* by_x += the gradient from `by`, that by y */
static void normalise_backward(const Job *j, const Map *map, int64_t tokens, const float *x, const float *scale,
                               const float *by, float *by_x) {
    int64_t n = j->hidden;
    const float *restrict weight = map->weight;
    float *restrict by_weight = map->by_weight;
    for (int64_t i = 0; i < tokens; i++, scale += 2) {
        const float *restrict xi = x + i * n, *restrict g = by + i * n;
        float *restrict to = by_x + i * n, sum = 0, along = 0, mean = scale[0], rate = scale[1];
        #pragma omp simd reduction(+:sum, along)
        for (int64_t d = 0; d < n; d++) {
            float unit = (xi[d] - mean) * rate;
            sum += g[d] * weight[d];
            along += g[d] * weight[d] * unit;
            by_weight[d] += g[d] * unit;
        }
        sum = map->bias ? sum / (float)n : 0.0f;
        along /= (float)n;
        for (int64_t d = 0; d < n; d++) to[d] += rate * (g[d] * weight[d] - sum - (xi[d] - mean) * rate * along);
        if (map->bias) add_to(n, g, map->by_bias);
    }
}

/* "gelu_new" of x: x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3), which is x (1 + tanh u) / 2 */
INLINE float gelu(float x) { return 1.0f / (1.0f + exponential(-1.5957691216f * x * (1.0f + 0.044715f * x * x))); }

/* gelu(x), or silu(gate) x */
static void activate(int64_t size, const float *restrict x, const float *restrict gate, float *restrict out) {
    if (!gate)
        for (int64_t i = 0; i < size; i++) out[i] = x[i] * gelu(x[i]);
    else
        for (int64_t i = 0; i < size; i++) out[i] = gate[i] / (1.0f + exponential(-gate[i])) * x[i];
}

/* `by` is the gradient by `out` and becomes that by x; `out` is computed again */
static void activate_backward(int64_t size, const float *restrict x, const float *restrict gate, float *restrict out,
                              float *restrict by, float *restrict by_gate) {
    if (!gate)
        for (int64_t i = 0; i < size; i++) {
            float open = gelu(x[i]);
            out[i] = x[i] * open;
            by[i] *= open + x[i] * open * (1.0f - open) * 1.5957691216f * (1.0f + 0.134145f * x[i] * x[i]);
        }
    else
        for (int64_t i = 0; i < size; i++) {
            float open = 1.0f / (1.0f + exponential(-gate[i])), silu = gate[i] * open;
            out[i] = silu * x[i];
            by_gate[i] = by[i] * x[i] * open * (1.0f + gate[i] * (1.0f - open));
            by[i] *= silu;
        }
}

static int64_t width_of(const Job *j) { return (j->heads + 2 * j->kv_heads) * HEAD; }

static Attention attention_of(const Job *j, const Layer *l) {
    return (Attention){j->windows, j->length, j->heads, j->kv_heads, l->qkv, j->rotary, j->first};
}

/* Queries, keys and values: how many maps they come from, and how wide each is. */
static int parts_of(const Job *j, const Map *maps, int64_t *sizes) {
    sizes[0] = maps[K].weight ? j->heads * HEAD : width_of(j);
    sizes[1] = sizes[2] = j->kv_heads * HEAD;
    return maps[K].weight ? 3 : 1;
}

/* From l->x to `next` */
static void forward(const Job *j, const Map *maps, const Layer *l, const Shared *s, float *next) {
    int64_t tokens = j->windows * j->length, n = j->hidden, all = width_of(j), sizes[3], at = 0;
    Matrix normal = matrix(l->normal, n), normal2 = matrix(l->normal2, n);
    normalise(j, maps + NORM1, tokens, l->x, l->normal, l->scale);
    for (int p = 0, parts = parts_of(j, maps, sizes); p < parts; at += sizes[p++])
        apply(j, maps + Q + p, tokens, normal, n, matrix(l->qkv + at, all), sizes[p], 0);
    Attention a = attention_of(j, l);
    attention(&a, s->attention, l->attended);
    memmove(l->x2, l->x, (size_t)(tokens * n) * sizeof(float));
    apply(j, maps + OUT, tokens, matrix(l->attended, n), n, matrix(l->x2, n), n, 1);
    normalise(j, maps + NORM2, tokens, l->x2, l->normal2, l->scale2);
    apply(j, maps + UP, tokens, normal2, n, matrix(l->wide, j->mlp), j->mlp, 0);
    if (l->gate) apply(j, maps + GATE, tokens, normal2, n, matrix(l->gate, j->mlp), j->mlp, 0);
    activate(tokens * j->mlp, l->wide, l->gate, s->act);
    memmove(next, l->x2, (size_t)(tokens * n) * sizeof(float));
    apply(j, maps + DOWN, tokens, matrix(s->act, j->mlp), j->mlp, matrix(next, n), n, 1);
}

/* s->by becomes the gradient by l->x, from that by what the layer gave */
static void backward(const Job *j, const Map *maps, const Layer *l, const Shared *s) {
    int64_t tokens = j->windows * j->length, n = j->hidden, all = width_of(j), sizes[3], at = 0;
    Matrix by = matrix(s->by, n), by_normal = matrix(s->by_normal, n), normal = matrix(l->normal, n);
    Matrix by_act = matrix(s->by_act, j->mlp), by_gate = matrix(s->by_gate, j->mlp), normal2 = matrix(l->normal2, n);
    by_input(j, maps + DOWN, tokens, by, n, by_act, j->mlp, 0);
    activate_backward(tokens * j->mlp, l->wide, l->gate, s->act, s->by_act, s->by_gate);
    by_map(j, maps + DOWN, tokens, matrix(s->act, j->mlp), j->mlp, by, n);
    by_map(j, maps + UP, tokens, normal2, n, by_act, j->mlp);
    by_input(j, maps + UP, tokens, by_act, j->mlp, by_normal, n, 0);
    if (l->gate) {
        by_map(j, maps + GATE, tokens, normal2, n, by_gate, j->mlp);
        by_input(j, maps + GATE, tokens, by_gate, j->mlp, by_normal, n, 1);
    }
    normalise_backward(j, maps + NORM2, tokens, l->x2, l->scale2, s->by_normal, s->by);
    by_map(j, maps + OUT, tokens, matrix(l->attended, n), n, by, n);
    by_input(j, maps + OUT, tokens, by, n, by_normal, n, 0);
    Attention a = attention_of(j, l);
    attention_backward(&a, s->attention_backward, s->by_normal, s->by_qkv);
    for (int p = 0, parts = parts_of(j, maps, sizes); p < parts; at += sizes[p++]) {
        by_map(j, maps + Q + p, tokens, normal, n, matrix(s->by_qkv + at, all), sizes[p]);
        by_input(j, maps + Q + p, tokens, matrix(s->by_qkv + at, all), sizes[p], by_normal, n, p > 0);
    }
    normalise_backward(j, maps + NORM1, tokens, l->x, l->scale, s->by_normal, s->by);
}

static void embed(const Job *j, float *x) {
    for (int64_t i = 0; i < j->windows * j->length; i++, x += j->hidden) {
        const float *of_token = j->maps[EMBEDDING].weight + j->tokens[i] * j->hidden, *of_place = j->maps[POSITIONS].weight;
        if (of_place) of_place += (i % j->length - (j->first ? j->first[i] : 0)) * j->hidden;
        for (int64_t d = 0; d < j->hidden; d++) x[d] = of_token[d] + (of_place ? of_place[d] : 0.0f);
    }
}

static void embed_backward(const Job *j, const float *by) {
    for (int64_t i = 0; i < j->windows * j->length; i++, by += j->hidden) {
        float *of_token = j->maps[EMBEDDING].by_weight + j->tokens[i] * j->hidden, *of_place = j->maps[POSITIONS].by_weight;
        if (of_place) of_place += (i % j->length - (j->first ? j->first[i] : 0)) * j->hidden;
        add_to(j->hidden, by, of_token);
        if (of_place) add_to(j->hidden, by, of_place);
    }
}

/* log p of a target among scores, which become the gradient of -weight log p */
static float choose(int64_t vocab, float *scores, int64_t target, float weight) {
    float top = scores[0], sum = 0, chosen = scores[target];
    #pragma omp simd reduction(max:top)
    for (int64_t v = 0; v < vocab; v++) top = scores[v] > top ? scores[v] : top;
    #pragma omp simd reduction(+:sum)
    for (int64_t v = 0; v < vocab; v++) sum += scores[v] = exponential(scores[v] - top);
    for (int64_t v = 0; v < vocab; v++) scores[v] *= weight / sum;
    scores[target] -= weight;
    return chosen - top - __builtin_logf(sum);
}

/* Log-probabilities of the targets and, where they are wanted, the gradient by `normal` and that by the output matrix */
static void score(const Job *j, const float *normal, const Shared *s) {
    const Map *head = j->maps + HEAD_MAP;
    int64_t n = j->hidden, vocab = j->vocab;
    for (int64_t i = 0, tokens = j->windows * j->length; i < tokens; i += SCORED) {
        int64_t count = least(SCORED, tokens - i);
        Matrix logits = matrix(s->logits, vocab), here = matrix(normal + i * n, n), output = matrix(head->weight, n);
        multiply(logits, here, turned(output), count, vocab, n, NULL, 0);
        for (int64_t t = 0; t < count; t++)
            j->log_prob[i + t] = choose(vocab, s->logits + t * vocab, j->targets[i + t], j->weights ? j->weights[i + t] : 0.0f);
        if (!j->weights) continue;
        multiply(matrix(s->by_normal + i * n, n), logits, output, count, n, vocab, NULL, 0);
        multiply(matrix(head->by_weight, n), turned(logits), here, vocab, n, count, NULL, 1);
    }
}

static int64_t windows_at_once(const Job *j) { return least(j->windows, TOKENS > j->length ? TOKENS / j->length : 1); }

/* Gives each its place in the memory, if there is any; their floats in all */
static int64_t place(float *memory, int count, float ***places, const int64_t *sizes) {
    int64_t used = 0;
    for (int i = 0; i < count; used += PAD(sizes[i++])) *places[i] = memory ? memory + used : NULL;
    return used;
}

/* Where everything lies in the memory; its floats in all. Without gradients all layers use the same. */
static int64_t lay_out(const Job *j, float *memory, Layer *layers, Shared *s) {
    int64_t tokens = windows_at_once(j) * j->length, n = tokens * j->hidden, wide = tokens * j->mlp, qkv = tokens * width_of(j);
    int64_t gate = j->maps[FIRST + GATE].weight ? wide : 0;
    int64_t shared[] = {wide, SCORED * j->vocab, attention_room(j->length), n, n, qkv, wide, gate,
                        attention_backward_room(j->length)};
    int64_t kept[] = {n, n, 2 * tokens, qkv, n, n, n, 2 * tokens, wide, gate};
    float **places[] = {&s->act, &s->logits, &s->attention, &s->by, &s->by_normal, &s->by_qkv, &s->by_act, &s->by_gate,
                        &s->attention_backward};
    int64_t used = place(memory, j->weights ? 9 : 3, places, shared);
    for (int64_t i = 0; i <= j->layers; i++) {
        Layer *l = layers + i;
        float **its[] = {&l->x, &l->normal, &l->scale, &l->qkv, &l->attended, &l->x2, &l->normal2, &l->scale2, &l->wide,
                         &l->gate};
        if (i && !j->weights) *l = layers[0];
        else used += place(memory ? memory + used : NULL, i == j->layers ? 3 : 10, its, kept);
        if (!gate) l->gate = NULL;
    }
    return used;
}

/* Some windows, as many as go through the network together */
static void pass(const Job *j, const Layer *layers, const Shared *s) {
    int64_t tokens = j->windows * j->length;
    const Layer *last = layers + j->layers;
    const Map *maps = j->maps + FIRST;
    embed(j, layers->x);
    for (int64_t l = 0; l < j->layers; l++) forward(j, maps + l * MAPS, layers + l, s, layers[l + 1].x);
    normalise(j, j->maps + NORM, tokens, last->x, last->normal, last->scale);
    score(j, last->normal, s);
    if (!j->weights) return;
    memset(s->by, 0, (size_t)(tokens * j->hidden) * sizeof(float));
    normalise_backward(j, j->maps + NORM, tokens, last->x, last->scale, s->by_normal, s->by);
    for (int64_t l = j->layers - 1; l >= 0; l--) backward(j, maps + l * MAPS, layers + l, s);
    embed_backward(j, s->by);
}

int64_t room(const Job *j) {
    Layer layers[j->layers + 1];
    Shared s;
    return lay_out(j, NULL, layers, &s);
}

/* Log-probabilities of all targets; where there are weights, adds the gradient of the sum of -weight log p to the maps' own. */
void run(const Job *all) {
    Layer layers[all->layers + 1];
    Shared s;
    int64_t length = all->length, at_once = windows_at_once(all);
    lay_out(all, all->memory, layers, &s);
    memset(s.attention, 0, (size_t)attention_room(length) * sizeof(float));
    if (all->weights) memset(s.attention_backward, 0, (size_t)attention_backward_room(length) * sizeof(float));
    for (int64_t first = 0; first < all->windows; first += at_once) {
        Job some = *all;
        some.windows = least(at_once, all->windows - first);
        some.tokens += first * length;
        some.targets += first * length;
        some.log_prob += first * length;
        if (all->first) some.first += first * length;
        if (all->weights) some.weights += first * length;
        pass(&some, layers, &s);
    }
}
