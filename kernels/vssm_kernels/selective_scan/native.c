/* Selective scan for the CPU: a vector of channels at a time, serial over the steps, float32.
 *
 * Compiled with the machine's C compiler on first use and called through ctypes (native_cpu.py).
 * All blocks of channels of a band take a step before the next, so that rows are read as they lie in memory. Tasks are
 * independent: a (batch, direction, band) forwards; a (batch, band) with all its directions backwards.
 */
#include "vector.h"

#define GROUP_MAX 16
/* Steps of a group, which the backward recomputes at a time: what it saves of a block, 16 * LANES * state bytes a step,
 * stays in the L1 cache. */
static inline int64_t group_steps(int64_t state) { return state > 64 ? 2 : state > 8 ? 128 / state : GROUP_MAX; }

typedef struct {
    int64_t batch, tokens, directions, channels, state, steps, segment, bands;
    int64_t add;    /* whether a token may be visited twice: then outputs are added to zeros */
    int64_t shared; /* whether all directions read one u: then so is their du */
    const float *u, *delta, *A, *B, *C, *D, *bias; /* D and bias may be NULL */
    const int32_t *order;                          /* NULL: raster */
    strides su, sdelta, sB, sC, sdy;
    float *y;        /* (batch, tokens, directions, channels), zeroed where the order leaves tokens out */
    const float *dy; /* like y, any strides; the rest for the backward only */
    float *du, *ddelta;      /* like y, but a shared du is (batch, tokens, channels), zeroed */
    float *dA, *dD, *dbias;  /* (batch, directions, channels[, state]) */
    float *dB, *dC;          /* (bands, batch, tokens, directions, state), zeroed */
} scan_args;

/* One channel block of one (batch, direction): its constants. */
typedef struct {
    int64_t c; /* its first channel */
    int lanes;
    vec bias, D;
} block;

/* One state of a block. A and h side by side: two arrays 4096 bytes apart would wait for each other's stores. */
typedef struct { vec A, h; } block_state; /* A: times log2(e) */

/* One step of one (batch, direction): the token it visits, and where its rows are. */
typedef struct {
    int64_t token, row, du_row; /* where rows of y and ddelta are, and of du */
    const float *u, *delta, *B, *C, *dy;
} visit;

typedef struct { vec u, delta; } step_inputs;

static inline block make_block(const scan_args *a, int64_t k, int64_t c, block_state *states) {
    block blk = {.c = c, .lanes = lanes_before(c, a->channels)};
    const int64_t row = k * a->channels + c;
    blk.bias = a->bias ? load_lanes(a->bias + row, blk.lanes) : splat(0.0f);
    blk.D = a->D ? load_lanes(a->D + row, blk.lanes) : splat(0.0f);
    for (int64_t n = 0; n < a->state; n++) {
        vec A = splat(0.0f);
        for (int lane = 0; lane < blk.lanes; lane++) A[lane] = a->A[(row + lane) * a->state + n] * 1.44269504f;
        states[n] = (block_state){A, splat(0.0f)};
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

/* Load the rows of a later step while this one is computed: an order may jump anywhere. */
#define STEPS_AHEAD 4
static inline void prefetch_step(const block *blk, const visit *at, float *y) {
    if (at->token < 0) return;
    __builtin_prefetch(at->u + blk->c);
    __builtin_prefetch(at->delta + blk->c);
    if (y) __builtin_prefetch(y + at->row + blk->c, 1);
}

/* One step of a block's states; returns their share of y. */
static inline vec move_states(const block *blk, const visit *at, step_inputs in, block_state *states, int64_t count) {
    const vec input = in.delta * in.u;
    vec y = blk->D * in.u;
    for (int64_t n = 0; n < count; n++) {
        states[n].h = exp2_vec(in.delta * states[n].A) * states[n].h + input * at->B[n];
        y += states[n].h * at->C[n];
    }
    return y;
}

static inline int starts_anew(const scan_args *a, int64_t step) { return a->segment > 0 && step % a->segment == 0; }

/* A thread's work space for one task at a time: the blocks of a band and their states. */
typedef struct {
    const scan_args *a;
    int64_t b, k, band, count;
    block *blocks;     /* (count), and so on */
    step_inputs *rows; /* what they read at a step, all before any state moves: no state waits for a softplus */
    block_state *states; /* (count, state) */
    float *zeros;      /* (state), for empty steps */
} walk;

static int64_t most_blocks(const scan_args *a) { return (a->channels + LANES - 1) / LANES / a->bands + 1; }

/* Allocate for the largest band; not 0 where there is no memory. */
static int make_walk(walk *w, const scan_args *a) {
    const size_t most = most_blocks(a);
    *w = (walk){.a = a, .zeros = vectors(a->state * sizeof(float))};
    w->blocks = vectors(most * sizeof(block));
    w->rows = vectors(most * sizeof(step_inputs));
    w->states = vectors(most * a->state * sizeof(block_state));
    return !w->zeros || !w->blocks || !w->rows || !w->states;
}

static void free_walk(walk *w) { free(w->zeros), free(w->blocks), free(w->rows), free(w->states); }

/* The token of a step and where its rows are; steps beyond the last are empty. */
static inline visit visit_at(const walk *w, int64_t step) {
    const scan_args *a = w->a;
    const int64_t b = w->b, k = w->k;
    const int64_t t = step >= a->steps ? -1 : a->order ? a->order[k * a->steps + step] : step;
    visit at = {.token = t, .B = w->zeros, .C = w->zeros};
    if (t < 0) return at;
    at.row = ((b * a->tokens + t) * a->directions + k) * a->channels;
    at.du_row = a->shared ? (b * a->tokens + t) * a->channels : at.row;
    at.u = a->u + b * a->su.batch + t * a->su.token + k * a->su.direction;
    at.delta = a->delta + b * a->sdelta.batch + t * a->sdelta.token + k * a->sdelta.direction;
    at.B = a->B + b * a->sB.batch + t * a->sB.token + k * a->sB.direction;
    at.dy = a->dy + b * a->sdy.batch + t * a->sdy.token + k * a->sdy.direction;
    at.C = a->C + b * a->sC.batch + t * a->sC.token + k * a->sC.direction;
    return at;
}

/* Put a band's blocks before the first step of a direction. */
static void start_walk(walk *w, int64_t b, int64_t k, int64_t band) {
    const scan_args *a = w->a;
    const int64_t blocks = (a->channels + LANES - 1) / LANES, first = band * blocks / a->bands;
    w->b = b, w->k = k, w->band = band;
    w->count = (band + 1) * blocks / a->bands - first;
    for (int64_t j = 0; j < w->count; j++)
        w->blocks[j] = make_block(a, w->k, (first + j) * LANES, w->states + j * a->state);
}

/* All blocks at one step, side by side: rows are read as they lie in memory. y may be NULL. */
static inline void walk_step(walk *w, int64_t step, float *y) {
    const scan_args *a = w->a;
    const visit at = visit_at(w, step), later = visit_at(w, step + STEPS_AHEAD);
    if (starts_anew(a, step))
        for (int64_t i = 0; i < w->count * a->state; i++) w->states[i].h = splat(0.0f);
    for (int64_t j = 0; j < w->count; j++) w->rows[j] = read_step(&w->blocks[j], &at);
    for (int64_t j = 0; j < w->count; j++) {
        const block *blk = &w->blocks[j];
        prefetch_step(blk, &later, y);
        const vec out = move_states(blk, &at, w->rows[j], w->states + j * a->state, a->state);
        if (y && at.token >= 0) put_lanes(y + at.row + blk->c, out, blk->lanes, a->add);
    }
}

/* Tasks first ... last-1 of (batch, directions, bands). Returns 0, or 1 when memory ran out. */
int vssm_scan_forward(const scan_args *a, int64_t first, int64_t last) {
    walk w;
    const int failed = make_walk(&w, a);
    for (int64_t task = first; !failed && task < last; task++) {
        start_walk(&w, task / a->bands / a->directions, task / a->bands % a->directions, task % a->bands);
        for (int64_t step = 0; step < a->steps; step++) walk_step(&w, step, a->y);
    }
    free_walk(&w);
    return failed;
}

/* What the way back needs of a state at a step: its decay, the state before it, and this step's gradients of B and C,
 * which add up over the blocks. */
typedef struct { vec decay, before, dB, dC; } saved_state;

typedef struct { vec dh, dA; } state_gradient;
typedef struct { vec dD, dbias; } block_gradient;

typedef struct {
    int64_t start, count;
    visit at[GROUP_MAX];
    step_inputs *in;    /* (blocks, steps) */
    saved_state *states; /* (steps, state), of one block at a time */
} step_group;

/* Walk a block through a group from the states h, and save what the way back needs. */
static void save_states(const scan_args *a, const step_inputs *in, const block_state *states, vec *h, step_group *group) {
    const int64_t N = a->state;
    for (int64_t i = 0; i < group->count; i++) {
        const float *B = group->at[i].B;
        const vec delta = in[i].delta, input = delta * in[i].u;
        saved_state *save = group->states + i * N;
        if (starts_anew(a, group->start + i)) memset(h, 0, N * sizeof(vec));
        for (int64_t n = 0; n < N; n++) {
            const vec decay = exp2_vec(delta * states[n].A);
            save[n].before = h[n];
            save[n].decay = decay;
            h[n] = decay * h[n] + input * B[n];
        }
    }
}

/* The adjoint of a group, last step first; the gradients of the states, A, D and the bias are carried along. */
static void walk_back(const scan_args *a, const block *blk, const step_inputs *in, const block_state *states,
                      step_group *group, state_gradient *carried, block_gradient *own) {
    const int64_t N = a->state;
    for (int64_t i = group->count - 1; i >= 0; i--) {
        const visit *at = &group->at[i];
        const vec delta = in[i].delta, u = in[i].u, input = delta * u;
        const vec dy = at->token >= 0 ? load_lanes(at->dy + blk->c, blk->lanes) : splat(0.0f);
        saved_state *save = group->states + i * N;
        vec from_decay = splat(0.0f), from_input = splat(0.0f); /* sums over the states */
        for (int64_t n = 0; n < N; n++) {
            const vec decay = save[n].decay, decayed = decay * save[n].before;
            const vec gradient = carried[n].dh + dy * at->C[n];
            const vec through_decay = gradient * decayed;
            save[n].dC += dy * (decayed + input * at->B[n]);
            save[n].dB += gradient * input;
            from_decay += through_decay * states[n].A;
            from_input += gradient * at->B[n];
            carried[n].dA += through_decay * delta;
            carried[n].dh = decay * gradient;
        }
        if (starts_anew(a, group->start + i))
            for (int64_t n = 0; n < N; n++) carried[n].dh = splat(0.0f);
        /* A was scaled by log2(e); softplus' = 1 - exp(-softplus) */
        const vec slope = 1.0f - exp2_vec(delta * -1.44269504f);
        const vec small = delta * (1.0f - delta * (0.5f - delta * (1.0f / 6.0f)));
        const vec ddelta = (from_decay * 0.69314718f + u * from_input) * select_vec(delta < 0.02f, small, slope);
        own->dbias += ddelta;
        own->dD += dy * u;
        if (at->token >= 0) {
            put_lanes(a->du + at->du_row + blk->c, delta * from_input + blk->D * dy, blk->lanes, a->add || a->shared);
            put_lanes(a->ddelta + at->row + blk->c, ddelta, blk->lanes, a->add);
        }
    }
}

static void write_block_gradients(const walk *w, const block *blk, const state_gradient *carried, block_gradient own) {
    const scan_args *a = w->a;
    const int64_t row = (w->b * a->directions + w->k) * a->channels + blk->c;
    store_lanes(a->dD + row, own.dD, blk->lanes);
    store_lanes(a->dbias + row, own.dbias, blk->lanes);
    for (int64_t n = 0; n < a->state; n++)
        for (int lane = 0; lane < blk->lanes; lane++) a->dA[(row + lane) * a->state + n] = carried[n].dA[lane];
}

static void write_group_gradients(const walk *w, const step_group *group) {
    const scan_args *a = w->a;
    for (int64_t i = 0; i < group->count; i++) {
        const int64_t token = group->at[i].token;
        if (token < 0) continue;
        const saved_state *save = group->states + i * a->state;
        const int64_t row = (((w->band * a->batch + w->b) * a->tokens + token) * a->directions + w->k) * a->state;
        for (int64_t n = 0; n < a->state; n++) {
            a->dB[row + n] += sum_lanes(save[n].dB);
            a->dC[row + n] += sum_lanes(save[n].dC);
        }
    }
}

static inline void prefetch_gradients(const scan_args *a, const block *blk, const visit *at) {
    if (at->token < 0) return;
    __builtin_prefetch(at->dy + blk->c);
    __builtin_prefetch(a->du + at->du_row + blk->c, 1);
    __builtin_prefetch(a->ddelta + at->row + blk->c, 1);
}

/* What all blocks read at the steps of a group; B and C have no gradients yet. */
static void open_group(step_group *group, const walk *w, int64_t start, int64_t length) {
    group->start = start, group->count = w->a->steps - start < length ? w->a->steps - start : length;
    for (int64_t i = 0; i < group->count; i++) {
        group->at[i] = visit_at(w, start + i);
        for (int64_t j = 0; j < w->count; j++) {
            group->in[j * length + i] = read_step(&w->blocks[j], &group->at[i]);
            prefetch_gradients(w->a, &w->blocks[j], &group->at[i]);
        }
    }
    for (int64_t i = 0; i < group->count * w->a->state; i++) group->states[i].dB = group->states[i].dC = splat(0.0f);
}

typedef struct {
    walk forwards;
    step_group group;
    vec *checkpoints;        /* (groups, blocks, state): the states before each group */
    state_gradient *carried; /* (blocks, state) */
    block_gradient *own;     /* (blocks) */
} way_back;

/* The gradients of one direction of one band of blocks. */
static void walk_direction_back(way_back *way) {
    walk *w = &way->forwards;
    step_group *group = &way->group;
    const scan_args *a = w->a;
    const int64_t N = a->state, length = group_steps(N), in_group = most_blocks(a) * N;
    memset(way->carried, 0, w->count * N * sizeof(state_gradient));
    memset(way->own, 0, w->count * sizeof(block_gradient));
    for (int64_t step = 0; step < a->steps; step++) {
        if (step % length == 0)
            for (int64_t i = 0; i < w->count * N; i++) way->checkpoints[step / length * in_group + i] = w->states[i].h;
        walk_step(w, step, NULL);
    }
    for (int64_t start = (a->steps - 1) / length * length; start >= 0; start -= length) {
        open_group(group, w, start, length);
        for (int64_t j = 0; j < w->count; j++) {
            const step_inputs *in = group->in + j * length;
            const block_state *states = w->states + j * N;
            save_states(a, in, states, way->checkpoints + start / length * in_group + j * N, group);
            walk_back(a, &w->blocks[j], in, states, group, way->carried + j * N, way->own + j);
        }
        write_group_gradients(w, group);
    }
    for (int64_t j = 0; j < w->count; j++) write_block_gradients(w, &w->blocks[j], way->carried + j * N, way->own[j]);
}

/* Tasks first ... last-1 of (batch, bands), with all directions: they add to one du where they share their input. */
int vssm_scan_backward(const scan_args *a, int64_t first, int64_t last) {
    const size_t most = most_blocks(a), N = a->state, length = group_steps(N), groups = (a->steps - 1) / length + 1;
    way_back way = {
        .group.in = vectors(most * length * sizeof(step_inputs)),
        .group.states = vectors(length * N * sizeof(saved_state)),
        .checkpoints = vectors(groups * most * N * sizeof(vec)),
        .carried = vectors(most * N * sizeof(state_gradient)),
        .own = vectors(most * sizeof(block_gradient)),
    };
    const int failed = make_walk(&way.forwards, a) || !way.group.in || !way.group.states || !way.checkpoints ||
                       !way.carried || !way.own;
    for (int64_t task = first; !failed && task < last; task++) {
        for (int64_t k = 0; k < a->directions; k++) {
            start_walk(&way.forwards, task / a->bands, k, task % a->bands);
            walk_direction_back(&way);
        }
    }
    free_walk(&way.forwards);
    free(way.group.in), free(way.group.states), free(way.checkpoints), free(way.carried), free(way.own);
    return failed;
}
