/* The scan of a tree, for the CPU: two sweeps, from the leaves to the root and back, in place.
 *
 * A task is a band of channels of an image. Every edge has the number of its lower end.
 */
#include "vector.h"

#define LOG2_E 1.44269504f

typedef struct {
    int64_t batch, tokens, channels, bands;
    const float *u, *delta, *A, *B, *bias; /* A, bias: (channels); B: (batch, tokens) */
    const int32_t *tree; /* (batch, 4, tokens), of which two rows are read: vertices and their parents */
    strides su, sdelta;
    float *h;            /* (batch, tokens, channels): what each vertex adds, then its sum, then its state */
    float *dh;           /* like h: the gradient of the states, and then of what is added; NULL: forward only */
    float *du, *ddelta;  /* like h */
    float *dA, *dbias;   /* (batch, channels), zeroed */
    float *dB;           /* (bands, batch, tokens) */
} tree_args;

typedef struct {
    const tree_args *a;
    int64_t image, begin, end; /* of the channels */
    int64_t width;
    const int32_t *vertex, *parent; /* of every step */
    float *h, *dh;                  /* of the image */
    float *weight; /* (tokens, width) of the edges; in the backward then the gradients of their logarithms */
} band;

static band make_band(const tree_args *a, int64_t task, float *weight) {
    const int64_t blocks = (a->channels + LANES - 1) / LANES, number = task % a->bands, image = task / a->bands;
    const int64_t begin = number * blocks / a->bands * LANES, upto = (number + 1) * blocks / a->bands * LANES;
    const int64_t end = upto < a->channels ? upto : a->channels, rows = image * a->tokens * a->channels;
    const int32_t *vertex = a->tree + image * 4 * a->tokens;
    return (band){.a = a, .image = image, .begin = begin, .end = end, .width = upto - begin, .vertex = vertex,
                  .parent = vertex + a->tokens, .h = a->h + rows, .dh = a->dh ? a->dh + rows : NULL, .weight = weight};
}

static inline vec step_input(const band *b, int64_t token, int64_t c, int lanes) {
    const float *delta = b->a->delta + b->image * b->a->sdelta.batch + token * b->a->sdelta.token;
    return load_lanes(delta + c, lanes) + load_lanes(b->a->bias + c, lanes);
}

static inline float B_of(const band *b, int64_t token) {
    return b->a->B[b->image * b->a->tokens + token];
}

static inline const float *u_row(const band *b, int64_t token) {
    return b->a->u + b->image * b->a->su.batch + token * b->a->su.token;
}

static inline float *weight_of(const band *b, int64_t token, int64_t c) {
    return b->weight + token * b->width + c - b->begin;
}

static void add_inputs(const band *b) {
    for (int64_t token = 0; token < b->a->tokens; token++)
        for (int64_t c = b->begin; c < b->end; c += LANES) {
            const int lanes = lanes_before(c, b->end);
            const vec step = softplus_vec(step_input(b, token, c, lanes));
            const vec weight = exp2_vec(step * load_lanes(b->a->A + c, lanes) * LOG2_E);
            store_lanes(weight_of(b, token, c), weight, LANES);
            const vec added = step * B_of(b, token) * load_lanes(u_row(b, token) + c, lanes);
            store_lanes(b->h + token * b->a->channels + c, added, lanes);
        }
}

static void sweep_up(const band *b) {
    for (int64_t step = b->a->tokens - 1; step > 0; step--) {
        const int64_t at = b->vertex[step], from = at * b->a->channels, to = b->parent[step] * b->a->channels;
        for (int64_t c = b->begin; c < b->end; c += LANES) {
            const int lanes = lanes_before(c, b->end);
            const vec w = load_lanes(weight_of(b, at, c), LANES);
            add_lanes(b->h + to + c, w * load_lanes(b->h + from + c, lanes), lanes);
            if (b->dh) add_lanes(b->dh + to + c, w * load_lanes(b->dh + from + c, lanes), lanes);
        }
    }
}

static void sweep_down(const band *b) {
    for (int64_t step = 1; step < b->a->tokens; step++) {
        const int64_t at = b->vertex[step], here = at * b->a->channels, up = b->parent[step] * b->a->channels;
        for (int64_t c = b->begin; c < b->end; c += LANES) {
            const int lanes = lanes_before(c, b->end);
            const vec w = load_lanes(weight_of(b, at, c), LANES), sums = load_lanes(b->h + here + c, lanes);
            const vec beyond = load_lanes(b->h + up + c, lanes) - w * sums;
            store_lanes(b->h + here + c, sums + w * beyond, lanes);
            if (!b->dh) continue;
            const vec dsums = load_lanes(b->dh + here + c, lanes);
            const vec dbeyond = load_lanes(b->dh + up + c, lanes) - w * dsums;
            store_lanes(b->dh + here + c, dsums + w * dbeyond, lanes);
            store_lanes(weight_of(b, at, c), w * (dsums * beyond + sums * dbeyond), LANES);
        }
    }
    if (b->dh) /* no edge leads up from the root */
        for (int64_t c = b->begin; c < b->end; c += LANES) store_lanes(weight_of(b, b->vertex[0], c), splat(0.0f), LANES);
}

static void write_gradients(const band *b, float *dB) {
    const int64_t channels = b->a->channels, sums = b->image * channels, rows = sums * b->a->tokens;
    for (int64_t token = 0; token < b->a->tokens; token++) {
        const float B = B_of(b, token);
        vec dB_lanes = splat(0.0f);
        for (int64_t c = b->begin; c < b->end; c += LANES) {
            const int lanes = lanes_before(c, b->end);
            const int64_t place = token * channels + c;
            const vec input = step_input(b, token, c, lanes), step = softplus_vec(input);
            const vec u = load_lanes(u_row(b, token) + c, lanes), dadded = load_lanes(b->dh + place, lanes);
            const vec dexponent = load_lanes(weight_of(b, token, c), LANES);
            const vec ddelta = (dadded * B * u + dexponent * load_lanes(b->a->A + c, lanes)) * sigmoid_vec(input);
            store_lanes(b->a->du + rows + place, dadded * step * B, lanes);
            store_lanes(b->a->ddelta + rows + place, ddelta, lanes);
            add_lanes(b->a->dA + sums + c, dexponent * step, lanes);
            add_lanes(b->a->dbias + sums + c, ddelta, lanes);
            dB_lanes += dadded * step * u;
        }
        dB[token] = sum_lanes(dB_lanes);
    }
}

int vssm_tree_scan(const tree_args *a, int64_t first, int64_t last) {
    const int64_t widest = ((a->channels + LANES - 1) / LANES / a->bands + 1) * LANES;
    float *weight = vectors(a->tokens * widest * sizeof(float));
    for (int64_t task = first; task < last && weight; task++) {
        const band b = make_band(a, task, weight);
        add_inputs(&b);
        sweep_up(&b);
        sweep_down(&b);
        if (b.dh) write_gradients(&b, a->dB + (task % a->bands * a->batch + b.image) * a->tokens);
    }
    free(weight);
    return !weight;
}
