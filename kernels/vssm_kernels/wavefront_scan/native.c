/* Wavefront scan for the CPU: a vector of channels at a time, row by row, float32.
 *
 * Compiled with the machine's C compiler on first use and called through ctypes (native_cpu.py).
 * A task is a (batch, band of channels): all blocks of a band are computed at a position before the next, so that rows
 * are read as they lie in memory. The states of the row above are kept, one vector per column, block and state.
 */
#include "vector.h"

enum { TOP, LEFT, WAYS };

typedef struct {
    int64_t batch, height, width, channels, state, bands, reverse;
    const float *u, *delta, *A, *B, *C, *D, *bias; /* D and bias may be NULL */
    strides su, sdelta, sB, sC, sdy; /* token: from column to column; rows are width tokens; direction: of the ways */
    float *y;        /* (batch, height, width, channels) */
    const float *dy; /* like y, any strides; the rest for the backward only */
    float *du, *ddelta;     /* like y; (batch, height, width, 2, channels) */
    float *dA, *dD, *dbias; /* (batch, [2,] channels[, state]), dD without ways */
    float *dB, *dC;         /* (bands, batch, height, width, [2,] state) */
} wavefront_args;

/* One channel block: its constants. */
typedef struct {
    int64_t c; /* its first channel */
    int lanes;
    vec D, bias[WAYS];
    vec *A; /* (state, ways), times log2(e) */
} block;

/* A position: where its rows are, and how much each way into it counts. */
typedef struct {
    int64_t token;
    float weight[WAYS];
    const float *u, *delta, *B, *C, *dy;
} position;

typedef struct { vec u, delta[WAYS]; } inputs;

/* A thread's work space for one task at a time: the blocks of a band. */
typedef struct {
    const wavefront_args *a;
    int64_t b, band, count;
    block *blocks;
    vec *rates;
} walk;

static int64_t most_blocks(const wavefront_args *a) { return (a->channels + LANES - 1) / LANES / a->bands + 1; }

/* Allocate for the largest band; not 0 where there is no memory. */
static int make_walk(walk *w, const wavefront_args *a) {
    *w = (walk){.a = a, .blocks = vectors(most_blocks(a) * sizeof(block))};
    w->rates = vectors(most_blocks(a) * a->state * WAYS * sizeof(vec));
    return !w->blocks || !w->rates;
}

static void free_walk(walk *w) { free(w->blocks), free(w->rates); }

static void start_walk(walk *w, int64_t task) {
    const wavefront_args *a = w->a;
    const int64_t all = (a->channels + LANES - 1) / LANES, N = a->state;
    w->b = task / a->bands, w->band = task % a->bands;
    const int64_t first = w->band * all / a->bands;
    w->count = (w->band + 1) * all / a->bands - first;
    for (int64_t k = 0; k < w->count; k++) {
        block *blk = &w->blocks[k];
        const int64_t c = (first + k) * LANES;
        *blk = (block){.c = c, .lanes = lanes_before(c, a->channels), .A = w->rates + k * N * WAYS};
        if (a->D) blk->D = load_lanes(a->D + c, blk->lanes);
        for (int way = 0; way < WAYS; way++) {
            const int64_t row = way * a->channels + c;
            if (a->bias) blk->bias[way] = load_lanes(a->bias + row, blk->lanes);
            for (int64_t n = 0; n < N; n++) {
                vec A = splat(0.0f);
                for (int lane = 0; lane < blk->lanes; lane++) A[lane] = a->A[(row + lane) * N + n] * 1.44269504f;
                blk->A[n * WAYS + way] = A;
            }
        }
    }
}

static inline position position_at(const walk *w, int64_t i, int64_t j) {
    const wavefront_args *a = w->a;
    const int64_t place = i * a->width + j, t = a->reverse ? a->height * a->width - 1 - place : place;
    position at = {.token = w->b * a->height * a->width + t, .weight = {1.0f, 0.0f}};
    if (i == 0) at.weight[TOP] = 0.0f, at.weight[LEFT] = 1.0f;
    else if (j > 0) at.weight[TOP] = at.weight[LEFT] = 0.5f;
    at.u = a->u + w->b * a->su.batch + t * a->su.token;
    at.delta = a->delta + w->b * a->sdelta.batch + t * a->sdelta.token;
    at.B = a->B + w->b * a->sB.batch + t * a->sB.token;
    at.C = a->C + w->b * a->sC.batch + t * a->sC.token;
    at.dy = a->dy + w->b * a->sdy.batch + t * a->sdy.token;
    return at;
}

static inline inputs read_inputs(const wavefront_args *a, const block *blk, const position *at) {
    inputs in = {.u = load_lanes(at->u + blk->c, blk->lanes)};
    for (int way = 0; way < WAYS; way++)
        in.delta[way] =
            softplus_vec(load_lanes(at->delta + way * a->sdelta.direction + blk->c, blk->lanes) + blk->bias[way]);
    return in;
}

/* A block's states at a position from those above and on its left; `to` may be `top`. Returns their share of y. */
static inline vec move_states(const wavefront_args *a, const block *blk, const position *at, const vec *top,
                              const vec *left, vec *to) {
    const inputs in = read_inputs(a, blk, at);
    const vec to_top = in.delta[TOP] * in.u * at->weight[TOP], to_left = in.delta[LEFT] * in.u * at->weight[LEFT];
    const float *B_left = at->B + a->sB.direction;
    vec y = blk->D * in.u;
    for (int64_t n = 0; n < a->state; n++) {
        const vec decay_top = exp2_vec(in.delta[TOP] * blk->A[n * WAYS + TOP]) * at->weight[TOP];
        const vec decay_left = exp2_vec(in.delta[LEFT] * blk->A[n * WAYS + LEFT]) * at->weight[LEFT];
        to[n] = decay_top * top[n] + decay_left * left[n] + to_top * at->B[n] + to_left * B_left[n];
        y += to[n] * at->C[n];
    }
    return y;
}

/* Tasks first ... last-1 of (batch, bands). Returns 0, or 1 when memory ran out. */
int vssm_wavefront_forward(const wavefront_args *a, int64_t first, int64_t last) {
    walk w;
    const int64_t N = a->state;
    /* Of the latest row at each column; zeros on the left of the first. */
    vec *states = vectors((a->width + 1) * most_blocks(a) * N * sizeof(vec));
    const int failed = make_walk(&w, a) || !states;
    for (int64_t task = first; !failed && task < last; task++) {
        start_walk(&w, task);
        const int64_t row = w.count * N;
        memset(states, 0, (a->width + 1) * row * sizeof(vec));
        for (int64_t place = 0; place < a->height * a->width; place++) {
            const position at = position_at(&w, place / a->width, place % a->width);
            vec *left = states + place % a->width * row;
            for (int64_t k = 0; k < w.count; k++) {
                const block *blk = &w.blocks[k];
                vec *top = left + row + k * N;
                const vec y = move_states(a, blk, &at, top, left + k * N, top);
                store_lanes(a->y + at.token * a->channels + blk->c, y, blk->lanes);
            }
        }
    }
    free_walk(&w), free(states);
    return failed;
}

typedef struct { vec B[WAYS], C; } shared_gradient; /* of a state at a position, added up over the blocks */
typedef struct { vec A[WAYS]; } rate_gradient;
typedef struct { vec D, bias[WAYS]; } block_gradient;

typedef struct {
    walk w;
    vec *states;             /* (1 + height, 1 + width, blocks, state), zeros above and on the left of the map */
    vec *from_below;         /* (width, blocks, state): what the row below hands up to the states of this one */
    vec *from_right;         /* (blocks, state) */
    shared_gradient *shared; /* (state) */
    rate_gradient *rates;    /* (blocks, state) */
    block_gradient *own;     /* (blocks) */
} way_back;

/* The adjoint of one block at one position. */
static inline void step_back(way_back *way, int64_t k, const position *at, const vec *state, const vec *top,
                             const vec *left, vec *from_below) {
    const wavefront_args *a = way->w.a;
    const block *blk = &way->w.blocks[k];
    const inputs in = read_inputs(a, blk, at);
    const vec dy = load_lanes(at->dy + blk->c, blk->lanes);
    vec *from_right = way->from_right + k * a->state;
    vec from_decay[WAYS] = {splat(0.0f), splat(0.0f)}, from_input[WAYS] = {splat(0.0f), splat(0.0f)}, input[WAYS];
    for (int i = 0; i < WAYS; i++) input[i] = in.delta[i] * in.u * at->weight[i];
    for (int64_t n = 0; n < a->state; n++) {
        const vec dh = from_below[n] + from_right[n] + dy * at->C[n];
        way->shared[n].C += dy * state[n];
        for (int i = 0; i < WAYS; i++) {
            const vec A = blk->A[n * WAYS + i], decay = exp2_vec(in.delta[i] * A) * at->weight[i];
            const vec handed = decay * dh, through_decay = handed * (i == TOP ? top : left)[n];
            from_decay[i] += through_decay * A;
            from_input[i] += dh * at->B[i * a->sB.direction + n];
            way->shared[n].B[i] += dh * input[i];
            way->rates[k * a->state + n].A[i] += through_decay * in.delta[i];
            (i == TOP ? from_below : from_right)[n] = handed;
        }
    }
    vec du = blk->D * dy;
    for (int i = 0; i < WAYS; i++) {
        /* A was scaled by log2(e); softplus' = 1 - exp(-softplus) */
        const vec delta = in.delta[i], slope = 1.0f - exp2_vec(delta * -1.44269504f);
        const vec small = delta * (1.0f - delta * (0.5f - delta * (1.0f / 6.0f)));
        from_input[i] *= at->weight[i];
        du += delta * from_input[i];
        const vec ddelta =
            (from_decay[i] * 0.69314718f + in.u * from_input[i]) * select_vec(delta < 0.02f, small, slope);
        way->own[k].bias[i] += ddelta;
        store_lanes(a->ddelta + (at->token * WAYS + i) * a->channels + blk->c, ddelta, blk->lanes);
    }
    way->own[k].D += dy * in.u;
    store_lanes(a->du + at->token * a->channels + blk->c, du, blk->lanes);
}

static void write_shared(const way_back *way, const position *at) {
    const wavefront_args *a = way->w.a;
    const int64_t row = way->w.band * a->batch * a->height * a->width + at->token;
    for (int64_t n = 0; n < a->state; n++) {
        for (int i = 0; i < WAYS; i++) a->dB[(row * WAYS + i) * a->state + n] = sum_lanes(way->shared[n].B[i]);
        a->dC[row * a->state + n] = sum_lanes(way->shared[n].C);
    }
}

static void write_own(const way_back *way) {
    const wavefront_args *a = way->w.a;
    const int64_t N = a->state;
    for (int64_t k = 0; k < way->w.count; k++) {
        const block *blk = &way->w.blocks[k];
        store_lanes(a->dD + way->w.b * a->channels + blk->c, way->own[k].D, blk->lanes);
        for (int i = 0; i < WAYS; i++) {
            const int64_t row = (way->w.b * WAYS + i) * a->channels + blk->c;
            store_lanes(a->dbias + row, way->own[k].bias[i], blk->lanes);
            for (int64_t n = 0; n < N; n++)
                for (int lane = 0; lane < blk->lanes; lane++)
                    a->dA[(row + lane) * N + n] = way->rates[k * N + n].A[i][lane];
        }
    }
}

int vssm_wavefront_backward(const wavefront_args *a, int64_t first, int64_t last) {
    const int64_t N = a->state, most = most_blocks(a) * N, tokens = a->height * a->width;
    way_back way = {
        .states = vectors((a->height + 1) * (a->width + 1) * most * sizeof(vec)),
        .from_below = vectors(a->width * most * sizeof(vec)),
        .from_right = vectors(most * sizeof(vec)),
        .shared = vectors(N * sizeof(shared_gradient)),
        .rates = vectors(most * sizeof(rate_gradient)),
        .own = vectors(most_blocks(a) * sizeof(block_gradient)),
    };
    walk *w = &way.w;
    const int failed = make_walk(w, a) || !way.states || !way.from_below || !way.from_right || !way.shared ||
                       !way.rates || !way.own;
    for (int64_t task = first; !failed && task < last; task++) {
        start_walk(w, task);
        const int64_t cell = w->count * N, row = (a->width + 1) * cell; /* a position, and a row, of the states */
        memset(way.states, 0, row * sizeof(vec));
        for (int64_t place = 0; place < tokens; place++) {
            const int64_t i = place / a->width, j = place % a->width;
            const position at = position_at(w, i, j);
            vec *here = way.states + (i + 1) * row + (j + 1) * cell;
            if (j == 0) memset(here - cell, 0, cell * sizeof(vec));
            for (int64_t k = 0; k < w->count; k++)
                move_states(a, &w->blocks[k], &at, here - row + k * N, here - cell + k * N, here + k * N);
        }
        memset(way.from_below, 0, a->width * cell * sizeof(vec));
        memset(way.rates, 0, cell * sizeof(rate_gradient));
        memset(way.own, 0, w->count * sizeof(block_gradient));
        for (int64_t place = tokens - 1; place >= 0; place--) {
            const int64_t i = place / a->width, j = place % a->width;
            const position at = position_at(w, i, j);
            const vec *here = way.states + (i + 1) * row + (j + 1) * cell;
            if (j == a->width - 1) memset(way.from_right, 0, cell * sizeof(vec));
            memset(way.shared, 0, N * sizeof(shared_gradient));
            for (int64_t k = 0; k < w->count; k++)
                step_back(&way, k, &at, here + k * N, here - row + k * N, here - cell + k * N,
                          way.from_below + (j * w->count + k) * N);
            write_shared(&way, &at);
        }
        write_own(&way);
    }
    free_walk(w);
    free(way.states), free(way.from_below), free(way.from_right), free(way.shared), free(way.rates), free(way.own);
    return failed;
}
