/* What torch does slowly on a CPU for narrow models, forward and backward: attention, GELU and dropout.

   Compiled by lib/kernels.py once for each REAL (float or double) and WIDTH (values of a
   head). Every function works on a share of its tasks, so that the caller can divide them among threads. */

#include <math.h>
#include <stdint.h>

#define LANES (64 / (int)sizeof(REAL))

typedef REAL lane __attribute__((vector_size(64)));
typedef REAL loose __attribute__((vector_size(64), aligned(sizeof(REAL)), may_alias)); /* a lane anywhere in memory */
typedef REAL padded __attribute__((vector_size(PADDED * sizeof(REAL)))); /* one row of a head */
typedef uint32_t bits __attribute__((vector_size(4 * LANES)));
#if IS_FLOAT
typedef int32_t whole __attribute__((vector_size(64)));
static const bits COUNT = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#else
typedef int64_t whole __attribute__((vector_size(64)));
static const bits COUNT = {0, 1, 2, 3, 4, 5, 6, 7};
#endif

static inline lane splat(REAL value) { return value - (lane){0}; }
static inline lane larger(lane x, lane y) {
    whole first = x > y;
    return (lane)(((whole)x & first) | ((whole)y & ~first));
}

/* 2^x for x <= 0, to a few units in the last place. */
static inline lane power_of_two(lane x) {
#if IS_FLOAT
    x = larger(x, splat(-126));
    lane shifted = x + 12582912.0f; /* 1.5 * 2^23: the nearest whole number stands in its low bits */
    lane rest = x - (shifted - 12582912.0f);
    lane y = splat(1.5403530e-4f);
    y = y * rest + 1.3333558e-3f;
    y = y * rest + 9.6181291e-3f;
    y = y * rest + 5.5504109e-2f;
    y = y * rest + 2.4022651e-1f;
    y = y * rest + 6.9314718e-1f;
    y = y * rest + 1.0f;
    return (lane)((whole)y + (((whole)shifted - 0x4B400000) << 23));
#else
    for (int i = 0; i < LANES; i++) x[i] = exp2(x[i]);
    return x;
#endif
}

/* x without the lanes that are dropped: a hash of (seed, counter, salt) decides, the same in both directions. */
static inline lane thinned(lane x, uint32_t seed, uint32_t dropped, uint32_t counter, uint32_t salt) {
    bits hash = ((COUNT + counter) * 0x9E3779B1u + salt * 0x85EBCA77u) ^ seed;
    hash = (hash ^ (hash >> 16)) * 0x7FEB352Du;
    hash = (hash ^ (hash >> 15)) * 0x846CA68Bu;
    whole keep = __builtin_convertvector((hash >> 16) >= dropped, whole);
    return (lane)((whole)x & keep);
}

/* ---------------------------------------------------------------- attention

   Queries are taken LANES at a time, one to a lane: scores, softmax and sums then stay in registers, and of the queries x
   keys table only the block at hand is ever in memory. */

/* Row r of cell c and head h begins at (c * rows + r) * width + h * WIDTH; keys and values stand side by side in a row. */
typedef struct {
    const REAL *query, *pair, *out_grad; /* (cells, queries, width), (cells, keys, 2 width), like query */
    REAL *out, *log_sum, *query_grad, *pair_grad; /* like query; (cells, heads, queries), base 2; like query; like pair */
    int64_t heads, queries, keys;
    uint32_t dropped, seed; /* of 65536 weights, so many are dropped */
} Attention;

/* Queries (or anything alike) first .. first + LANES - 1 of one cell and head, one to a lane; 0 beyond the last. */
static inline void gather(lane *to, const REAL *from, int64_t stride, int64_t first, int64_t rows, REAL scale) {
    for (int d = 0; d < WIDTH; d++)
        for (int i = 0; i < LANES; i++) to[d][i] = first + i < rows ? scale * from[(first + i) * stride + d] : 0;
}

static inline lane dot(const lane *x, const REAL *row) {
    lane even = x[0] * row[0], odd = {0};
    for (int d = 1; d < WIDTH; d += 2) odd += x[d] * row[d];
    for (int d = 2; d < WIDTH; d += 2) even += x[d] * row[d];
    return even + odd;
}

#define SCALE ((REAL)(1.4426950408889634 / sqrt((double)WIDTH))) /* scores in base 2 */
#define KEPT ((REAL)(65536.0 / (65536 - a->dropped)))
#define EACH(i) for (int i = 0; i < LANES && block + i < a->queries; i++)
#define HEAD                                                                                        \
    const int64_t width = a->heads * WIDTH, row = (task / a->heads) * a->queries, head = task % a->heads * WIDTH;  \
    const REAL *query = a->query + row * width + head, *key = a->pair + (task / a->heads) * a->keys * 2 * width + head; \
    const REAL *value = key + width

/* Forward for tasks first .. last - 1 of cells x heads; `work` holds `keys` lanes. */
void attention_forward(const Attention *a, int64_t first, int64_t last, lane *work) {
    for (int64_t task = first; task < last; task++) {
        HEAD;
        REAL *out = a->out + row * width + head, *log_sum = a->log_sum + task * a->queries;
        for (int64_t block = 0; block < a->queries; block += LANES) {
            lane q[WIDTH], sums[WIDTH] = {0}, top = splat(-1e30), total = {0};
            gather(q, query, width, block, a->queries, SCALE);
            for (int64_t j = 0; j < a->keys; j++) {
                work[j] = dot(q, key + j * 2 * width);
                top = larger(work[j], top);
            }
            for (int64_t j = 0; j < a->keys; j++) {
                lane weight = power_of_two(work[j] - top);
                total += weight;
                if (a->dropped) weight = thinned(weight, a->seed, a->dropped, task * a->queries + block, j);
                for (int d = 0; d < WIDTH; d++) sums[d] += weight * value[j * 2 * width + d];
            }
            EACH(i) {
                for (int d = 0; d < WIDTH; d++) out[(block + i) * width + d] = KEPT * sums[d][i] / total[i];
                log_sum[block + i] = top[i] + (REAL)log2(total[i]);
            }
        }
    }
}

/* Adds to every row of a gradient the sum over lanes of its weight times the row that each lane stands for. */
static inline void spread(REAL *to, int64_t stride, const lane *weights, int64_t keys, const padded rows[LANES]) {
    for (int64_t j = 0; j < keys; j++) {
        const REAL *weight = (const REAL *)(weights + j);
        padded even = {0}, odd = {0};
        for (int i = 0; i < LANES; i += 2) even += weight[i] * rows[i], odd += weight[i + 1] * rows[i + 1];
        even += odd;
        for (int d = 0; d < WIDTH; d++) to[j * stride + d] += even[d];
    }
}

/* Backward for tasks first .. last - 1; adds to pair_grad. `work` holds 2 x `keys` lanes. */
void attention_backward(const Attention *a, int64_t first, int64_t last, lane *work) {
    lane *change = work + a->keys;
    for (int64_t task = first; task < last; task++) {
        HEAD;
        const REAL *out_grad = a->out_grad + row * width + head, *out = a->out + row * width + head;
        const REAL *log_sums = a->log_sum + task * a->queries;
        REAL *query_grad = a->query_grad + row * width + head, *key_grad = a->pair_grad + (key - a->pair);
        REAL *value_grad = key_grad + width;
        for (int64_t block = 0; block < a->queries; block += LANES) {
            lane q[WIDTH], o[WIDTH], g[WIDTH], sums[WIDTH] = {0}, log_sum = splat(1e30), inner = {0};
            padded queries[LANES] = {0}, grads[LANES] = {0};
            gather(q, query, width, block, a->queries, SCALE);
            gather(g, out_grad, width, block, a->queries, 1);
            gather(o, out, width, block, a->queries, 1);
            for (int d = 0; d < WIDTH; d++) inner += g[d] * o[d];
            EACH(i) log_sum[i] = log_sums[block + i];
            for (int i = 0; i < LANES; i++)
                for (int d = 0; d < WIDTH; d++) queries[i][d] = q[d][i] * (REAL)0.6931471805599453, grads[i][d] = g[d][i];
            for (int64_t j = 0; j < a->keys; j++) work[j] = power_of_two(dot(q, key + j * 2 * width) - log_sum);
            for (int64_t j = 0; j < a->keys; j++) {
                lane weight = work[j], back = dot(g, value + j * 2 * width);
                if (a->dropped) {
                    work[j] = KEPT * thinned(weight, a->seed, a->dropped, task * a->queries + block, j);
                    back = KEPT * thinned(back, a->seed, a->dropped, task * a->queries + block, j);
                }
                change[j] = weight * (back - inner);
            }
            for (int64_t j = 0; j < a->keys; j++)
                for (int d = 0; d < WIDTH; d++) sums[d] += change[j] * key[j * 2 * width + d];
            spread(value_grad, 2 * width, work, a->keys, grads);
            spread(key_grad, 2 * width, change, a->keys, queries);
            EACH(i)
                for (int d = 0; d < WIDTH; d++)
                    query_grad[(block + i) * width + d] = sums[d][i] / (REAL)sqrt((double)WIDTH);
        }
    }
}

/* ---------------------------------------------------------------- GELU and dropout, value by value

   `first` and `last` count blocks of LANES; beyond the last whole block there may be fewer than LANES values. */

typedef struct {
    const REAL *in, *out_grad;
    REAL *out; /* in backward the gradient of `in` */
    int64_t values;
    uint32_t dropped, seed;
} Values;

#define EACH_BLOCK                                                                          \
    for (int64_t block = first, at = first * LANES; block < last; block++, at += LANES)     \
        for (int64_t some = v->values - at < LANES ? v->values - at : LANES; some; some = 0)

static inline lane load(const REAL *from, int64_t some) {
    lane x = {0};
    if (some == LANES) return *(const loose *)from;
    for (int i = 0; i < some; i++) x[i] = from[i];
    return x;
}

static inline void store(REAL *to, lane x, int64_t some) {
    if (some == LANES) *(loose *)to = x;
    else for (int i = 0; i < some; i++) to[i] = x[i];
}

/* Standard normal distribution function; its density goes to *density. */
static inline lane normal(lane x, lane *density) {
    *density = power_of_two(x * x * (REAL)-0.7213475204444817) * (REAL)0.3989422804014327;
#if IS_FLOAT
    /* Abramowitz and Stegun 7.1.26, error below 1.5e-7. */
    lane size = larger(x, -x) * 0.70710678f, t = 1 / (1 + 0.3275911f * size);
    lane tail = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    tail *= *density * 1.2533141f; /* erfc(size) / 2 */
    whole negative = x < 0;
    return (lane)(((whole)tail & negative) | ((whole)(1 - tail) & ~negative));
#else
    for (int i = 0; i < LANES; i++) x[i] = 0.5 * erfc(-x[i] * 0.7071067811865476);
    return x;
#endif
}

void gelu_forward(const Values *v, int64_t first, int64_t last, void *work) {
    EACH_BLOCK {
        lane density, x = load(v->in + at, some);
        store(v->out + at, x * normal(x, &density), some);
    }
}

void gelu_backward(const Values *v, int64_t first, int64_t last, void *work) {
    EACH_BLOCK {
        lane density, x = load(v->in + at, some), share = normal(x, &density);
        store(v->out + at, load(v->out_grad + at, some) * (share + x * density), some);
    }
}

/* Forward of the values, and backward of their gradient. */
void dropout(const Values *v, int64_t first, int64_t last, void *work) {
    REAL kept = 65536.0 / (65536 - v->dropped);
    EACH_BLOCK store(v->out + at, kept * thinned(load(v->in + at, some), v->seed, v->dropped, at, 0), some);
}
