/* Selective scan for the CPU: 16 channels at a time in vector registers, serial over the steps, float32.
 *
 * Compiled with the machine's C compiler on first use and called through ctypes (native_cpu.py).
 * A task is one (batch, direction, group of channel blocks); tasks are independent and may run on any thread.
 */
#include "vector.h"

#define CHUNK_MAX 16
/* Steps recomputed at a time in the backward: what is kept of them, 256 * state bytes a step, stays in the L1 cache. */
static inline int64_t chunk_steps(int64_t state) { return state > 64 ? 2 : state > 8 ? 128 / state : CHUNK_MAX; }

typedef struct {
    int64_t batch, tokens, directions, channels, state, steps, segment, groups;
    int64_t add; /* whether a token may be visited twice: then outputs are added to zeros */
    const float *u, *delta, *A, *B, *C, *D, *bias; /* D and bias may be NULL */
    const int32_t *order;                          /* NULL: raster */
    strides su, sdelta, sB, sC;
    float *y;        /* (batch, tokens, directions, channels), zeroed where the order leaves tokens out */
    const float *dy; /* like y; the rest for the backward only */
    float *du, *ddelta;      /* like y */
    float *dA, *dD, *dbias;  /* (batch, directions, channels[, state]) */
    float *dB, *dC;          /* (groups, batch, tokens, directions, state), zeroed */
} scan_args;

/* log(1 + exp(x)) = max(x, 0) + log1p(e), e = exp(-|x|), log1p(e) = 2 artanh(e / (2 + e)): exact for tiny e too. */
static inline vec softplus_vec(vec x) {
    const vec magnitude = select_vec(x < 0.0f, -x, x);
    const vec e = exp2_vec(magnitude * -1.44269504f);
    const vec s = e / (e + 2.0f), s2 = s * s;
    vec p = splat(1.0f / 15.0f);
    p = p * s2 + 1.0f / 13.0f;
    p = p * s2 + 1.0f / 11.0f;
    p = p * s2 + 1.0f / 9.0f;
    p = p * s2 + 1.0f / 7.0f;
    p = p * s2 + 1.0f / 5.0f;
    p = p * s2 + 1.0f / 3.0f;
    p = p * s2 + 1.0f;
    return select_vec(x < 0.0f, splat(0.0f), x) + 2.0f * s * p;
}

static inline float sum_lanes(vec x) {
    float lanes[LANES];
    memcpy(lanes, &x, sizeof x);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; lane++) lanes[lane] += lanes[lane + half];
    return lanes[0];
}

/* One channel block of one (batch, direction): its constants. */
typedef struct {
    int64_t c; /* its first channel */
    int lanes;
    vec bias, D;
    const vec *A; /* (state), times log2(e) */
} block;

/* One step of one (batch, direction): the token it visits, and where its rows are. */
typedef struct {
    int64_t token, row; /* row: of outputs and their gradients */
    const float *u, *delta, *B, *C;
} visit;

typedef struct { vec u, delta; } step_inputs;

static inline block make_block(const scan_args *a, int64_t k, int64_t c, vec *A) {
    block blk = {.c = c, .A = A};
    blk.lanes = a->channels - c < LANES ? (int)(a->channels - c) : LANES;
    const int64_t row = k * a->channels + c;
    blk.bias = a->bias ? load_lanes(a->bias + row, blk.lanes) : splat(0.0f);
    blk.D = a->D ? load_lanes(a->D + row, blk.lanes) : splat(0.0f);
    for (int64_t n = 0; n < a->state; n++) {
        A[n] = splat(0.0f);
        for (int lane = 0; lane < blk.lanes; lane++) A[n][lane] = a->A[(row + lane) * a->state + n] * 1.44269504f;
    }
    return blk;
}

/* What a block reads at a step; an empty step (token -1) reads zeros, so that only the bias moves the state. */
static inline step_inputs read_step(const block *blk, const visit *at) {
    step_inputs in = {splat(0.0f), splat(0.0f)};
    if (at->token >= 0) {
        in.u = load_lanes(at->u + blk->c, blk->lanes);
        in.delta = load_lanes(at->delta + blk->c, blk->lanes);
    }
    in.delta = softplus_vec(in.delta + blk->bias);
    return in;
}

/* Have the rows of a later step on their way while this one is computed: an order may jump anywhere. */
static inline void prefetch_step(const block *blk, const visit *at) {
    if (at->token < 0) return;
    __builtin_prefetch(at->u + blk->c);
    __builtin_prefetch(at->delta + blk->c);
}

/* One step of a block's states h, in place; returns their share of y. */
static inline vec move_states(const block *blk, const visit *at, step_inputs in, vec *h, int64_t state) {
    const vec input = in.delta * in.u;
    vec y = blk->D * in.u;
    for (int64_t n = 0; n < state; n++) {
        h[n] = exp2_vec(in.delta * blk->A[n]) * h[n] + input * at->B[n];
        y += h[n] * at->C[n];
    }
    return y;
}

static inline int starts_anew(const scan_args *a, int64_t step) { return a->segment > 0 && step % a->segment == 0; }

/* A thread's work space, for one task at a time: the blocks of a group and where they stand on their way. */
typedef struct {
    const scan_args *a;
    int64_t b, k, group, count;
    visit at;          /* the step that comes next */
    block *blocks;     /* (count), and so on */
    step_inputs *rows; /* what they read at a step: before any state moves, so that no state waits for a softplus */
    vec *A, *h;        /* (count, state) */
    float *zeros;      /* (state), for empty steps */
} walk;

static int64_t most_blocks(const scan_args *a) { return (a->channels + LANES - 1) / LANES / a->groups + 1; }

/* Memory for the largest group; not 0 where there is none. */
static int make_walk(walk *w, const scan_args *a) {
    const int64_t N = a->state, most = most_blocks(a);
    *w = (walk){.a = a, .A = vectors(most * N), .h = vectors(most * N), .zeros = vectors((N + LANES - 1) / LANES)};
    w->blocks = vectors((most * sizeof(block) + sizeof(vec) - 1) / sizeof(vec));
    w->rows = vectors((most * sizeof(step_inputs) + sizeof(vec) - 1) / sizeof(vec));
    return !w->A || !w->h || !w->zeros || !w->blocks || !w->rows;
}

static void free_walk(walk *w) { free(w->A), free(w->h), free(w->zeros), free(w->blocks), free(w->rows); }

static inline visit visit_at(const walk *w, int64_t step) {
    const scan_args *a = w->a;
    const int64_t b = w->b, k = w->k, t = a->order ? a->order[k * a->steps + step] : step;
    visit at = {.token = t, .B = w->zeros, .C = w->zeros};
    if (t < 0) return at;
    at.row = ((b * a->tokens + t) * a->directions + k) * a->channels;
    at.u = a->u + b * a->su.batch + t * a->su.token + k * a->su.direction;
    at.delta = a->delta + b * a->sdelta.batch + t * a->sdelta.token + k * a->sdelta.direction;
    at.B = a->B + b * a->sB.batch + t * a->sB.token + k * a->sB.direction;
    at.C = a->C + b * a->sC.batch + t * a->sC.token + k * a->sC.direction;
    return at;
}

/* Put the blocks of a task (batch, direction, group) at its first step. */
static void start_walk(walk *w, int64_t task) {
    const scan_args *a = w->a;
    const int64_t blocks = (a->channels + LANES - 1) / LANES;
    w->group = task % a->groups, w->k = task / a->groups % a->directions, w->b = task / a->groups / a->directions;
    const int64_t first = w->group * blocks / a->groups;
    w->count = (w->group + 1) * blocks / a->groups - first;
    for (int64_t j = 0; j < w->count; j++)
        w->blocks[j] = make_block(a, w->k, (first + j) * LANES, w->A + j * a->state);
    memset(w->h, 0, w->count * a->state * sizeof(vec));
    w->at = visit_at(w, 0);
}

/* All blocks at one step, side by side: rows are read as they lie in memory. y may be NULL. */
static inline void walk_step(walk *w, int64_t step, float *y) {
    const scan_args *a = w->a;
    const visit at = w->at;
    if (step + 1 < a->steps) w->at = visit_at(w, step + 1);
    if (starts_anew(a, step)) memset(w->h, 0, w->count * a->state * sizeof(vec));
    for (int64_t j = 0; j < w->count; j++) w->rows[j] = read_step(&w->blocks[j], &at);
    for (int64_t j = 0; j < w->count; j++) {
        const block *blk = &w->blocks[j];
        prefetch_step(blk, &w->at);
        const vec out = move_states(blk, &at, w->rows[j], w->h + j * a->state, a->state);
        if (y && at.token >= 0) put_lanes(y + at.row + blk->c, out, blk->lanes, a->add);
    }
}

/* Tasks first ... last-1 of batch * directions * groups. Returns 0, or 1 when memory ran out. */
int vssm_scan_forward(const scan_args *a, int64_t first, int64_t last) {
    walk w;
    const int failed = make_walk(&w, a);
    for (int64_t task = first; !failed && task < last; task++) {
        start_walk(&w, task);
        for (int64_t step = 0; step < a->steps; step++) walk_step(&w, step, a->y);
    }
    free_walk(&w);
    return failed;
}

/* What the way back needs of a chunk of steps. */
typedef struct {
    visit at[CHUNK_MAX];
    step_inputs *in;   /* (blocks, steps) */
    vec *decay, *state; /* (steps, state), of one block; the state before each step */
    vec *dB, *dC;       /* (steps, state), summed over the blocks */
} chunk;

/* A block's states through a chunk, kept. */
static void keep_states(const walk *w, const block *blk, const step_inputs *in, int64_t start, int64_t count, vec *h, chunk *kept) {
    const int64_t N = w->a->state;
    for (int64_t i = 0; i < count; i++) {
        const float *B = kept->at[i].B;
        const vec delta = in[i].delta, input = delta * in[i].u;
        vec *decay = kept->decay + i * N, *state = kept->state + i * N;
        if (starts_anew(w->a, start + i)) memset(h, 0, N * sizeof(vec));
        for (int64_t n = 0; n < N; n++) {
            state[n] = h[n];
            decay[n] = exp2_vec(delta * blk->A[n]);
            h[n] = decay[n] * h[n] + input * B[n];
        }
    }
}

/* The adjoint of a kept chunk, last step first; the gradients of h, A, D and the bias are carried along. */
static void walk_back(const walk *w, const block *blk, const step_inputs *in, int64_t start, int64_t count,
                      const chunk *kept, vec *dh, vec *dA, vec *dD, vec *dbias) {
    const scan_args *a = w->a;
    const int64_t N = a->state;
    for (int64_t i = count - 1; i >= 0; i--) {
        const visit *at = &kept->at[i];
        const vec delta = in[i].delta, u = in[i].u, input = delta * u;
        const vec dy = at->token >= 0 ? load_lanes(a->dy + at->row + blk->c, blk->lanes) : splat(0.0f);
        const vec *decay = kept->decay + i * N, *state = kept->state + i * N;
        vec *dB = kept->dB + i * N, *dC = kept->dC + i * N;
        vec from_decay = splat(0.0f), from_input = splat(0.0f); /* sums over the states */
        for (int64_t n = 0; n < N; n++) {
            const vec gradient = dh[n] + dy * at->C[n];
            const vec decayed = decay[n] * state[n];
            const vec through_decay = gradient * decayed;
            dC[n] += dy * (decayed + input * at->B[n]);
            dB[n] += gradient * input;
            from_decay += through_decay * blk->A[n];
            from_input += gradient * at->B[n];
            dA[n] += through_decay * delta;
            dh[n] = decay[n] * gradient;
        }
        if (starts_anew(a, start + i)) memset(dh, 0, N * sizeof(vec));
        /* A was scaled by log2(e); softplus' = 1 - exp(-softplus) */
        const vec slope = 1.0f - exp2_vec(delta * -1.44269504f);
        const vec small = delta * (1.0f - delta * (0.5f - delta * (1.0f / 6.0f)));
        const vec ddelta = (from_decay * 0.69314718f + u * from_input) * select_vec(delta < 0.02f, small, slope);
        *dbias += ddelta;
        *dD += dy * u;
        if (at->token >= 0) {
            put_lanes(a->du + at->row + blk->c, delta * from_input + blk->D * dy, blk->lanes, a->add);
            put_lanes(a->ddelta + at->row + blk->c, ddelta, blk->lanes, a->add);
        }
    }
}

static void write_block_gradients(const walk *w, const block *blk, const vec *dA, vec dD, vec dbias) {
    const scan_args *a = w->a;
    const int64_t row = (w->b * a->directions + w->k) * a->channels + blk->c;
    store_lanes(a->dD + row, dD, blk->lanes);
    store_lanes(a->dbias + row, dbias, blk->lanes);
    for (int64_t n = 0; n < a->state; n++)
        for (int lane = 0; lane < blk->lanes; lane++) a->dA[(row + lane) * a->state + n] = dA[n][lane];
}

static void write_chunk_gradients(const walk *w, const chunk *kept, int64_t count) {
    const scan_args *a = w->a;
    const int64_t N = a->state;
    for (int64_t i = 0; i < count; i++) {
        const int64_t token = kept->at[i].token;
        if (token < 0) continue;
        const int64_t row = (((w->group * a->batch + w->b) * a->tokens + token) * a->directions + w->k) * N;
        for (int64_t n = 0; n < N; n++) {
            a->dB[row + n] += sum_lanes(kept->dB[i * N + n]);
            a->dC[row + n] += sum_lanes(kept->dC[i * N + n]);
        }
    }
}

int vssm_scan_backward(const scan_args *a, int64_t first, int64_t last) {
    const int64_t N = a->state, length = chunk_steps(N), chunks = (a->steps + length - 1) / length;
    const int64_t most = most_blocks(a);
    walk w;
    chunk kept = {.in = vectors(2 * most * length)};
    vec *checkpoints = vectors(chunks * most * N), *kept_rows = vectors(4 * length * N);
    vec *sums = vectors(most * (2 * N + 2)); /* dh, dA, dD, dbias */
    const int failed = make_walk(&w, a) || !kept.in || !checkpoints || !kept_rows || !sums;
    kept.state = kept_rows, kept.decay = kept_rows + length * N;
    kept.dB = kept_rows + 2 * length * N, kept.dC = kept_rows + 3 * length * N;
    vec *dh = sums, *dA = sums + most * N, *dD = sums + 2 * most * N, *dbias = dD + most;
    for (int64_t task = first; !failed && task < last; task++) {
        start_walk(&w, task);
        memset(sums, 0, most * (2 * N + 2) * sizeof(vec));
        for (int64_t step = 0; step < a->steps; step++) { /* the states before each chunk */
            if (step % length == 0) memcpy(checkpoints + step / length * most * N, w.h, w.count * N * sizeof(vec));
            walk_step(&w, step, NULL);
        }
        for (int64_t c = chunks - 1; c >= 0; c--) {
            const int64_t start = c * length, count = a->steps - start < length ? a->steps - start : length;
            for (int64_t i = 0; i < count; i++) {
                kept.at[i] = visit_at(&w, start + i);
                for (int64_t j = 0; j < w.count; j++) kept.in[j * length + i] = read_step(&w.blocks[j], &kept.at[i]);
            }
            memset(kept.dB, 0, 2 * length * N * sizeof(vec));
            for (int64_t j = 0; j < w.count; j++) {
                const step_inputs *in = kept.in + j * length;
                keep_states(&w, &w.blocks[j], in, start, count, checkpoints + (c * most + j) * N, &kept);
                walk_back(&w, &w.blocks[j], in, start, count, &kept, dh + j * N, dA + j * N, dD + j, dbias + j);
            }
            write_chunk_gradients(&w, &kept, count);
        }
        for (int64_t j = 0; j < w.count; j++) write_block_gradients(&w, &w.blocks[j], dA + j * N, dD[j], dbias[j]);
    }
    free_walk(&w);
    free(kept.in), free(checkpoints), free(kept_rows), free(sums);
    return failed;
}
