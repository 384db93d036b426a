/* Causal depthwise convolution along scan orders for the CPU: step by step, all channels of a band side by side, so
 * that rows are read as they lie in memory.
 *
 * Tasks are independent: a (batch, direction, band of channels) forwards; a (batch, band) with all its directions
 * backwards, so that their gradients of x add up in order.
 */
#include "vector.h"

#define WIDTH_MAX 16
#define STEPS_AHEAD 2 /* rows are loaded so many steps before they are used: an order may jump anywhere */

typedef struct {
    int64_t batch, tokens, directions, channels, width, steps, bands, silu;
    int64_t add; /* whether a token may be visited twice: then outputs are added to zeros */
    const float *x, *weight, *bias; /* weight: (directions, width, channels); bias: (directions, channels) */
    const float *zeros;             /* (channels) */
    const int32_t *order;
    strides sx;
    float *y;        /* (batch, tokens, directions, channels), zeroed where the order leaves tokens out */
    const float *dy; /* like y; the rest for the backward only */
    float *dx;       /* (batch, tokens, channels), zeroed: directions add up */
    float *dweight;  /* (batch, directions, width, channels), zeroed */
    float *dbias;    /* (batch, directions, channels), zeroed */
} conv_args;

/* One direction's walk over the channels c ... end-1 of an image, and the rows under its taps, oldest first. */
typedef struct {
    const conv_args *a;
    int64_t b, k, c, end;
    int64_t token[WIDTH_MAX]; /* -1 before the first step and at empty ones: zeros */
    const float *x[WIDTH_MAX];
} walk;

static walk make_walk(const conv_args *a, int64_t b, int64_t k, int64_t band) {
    const int64_t blocks = (a->channels + LANES - 1) / LANES;
    const int64_t first = band * blocks / a->bands, last = (band + 1) * blocks / a->bands;
    return (walk){.a = a, .b = b, .k = k, .c = first * LANES,
                  .end = last * LANES < a->channels ? last * LANES : a->channels};
}

static inline int64_t token_at(const walk *w, int64_t step) {
    return step < 0 || step >= w->a->steps ? -1 : w->a->order[w->k * w->a->steps + step];
}

static inline const float *x_row(const walk *w, int64_t token) {
    return w->a->x + w->b * w->a->sx.batch + token * w->a->sx.token;
}

/* Move to a step; returns its token. */
static inline int64_t visit(walk *w, int64_t step) {
    const conv_args *a = w->a;
    for (int64_t j = 0; j < a->width; j++) {
        const int64_t token = token_at(w, step - a->width + 1 + j);
        w->token[j] = token;
        w->x[j] = token < 0 ? a->zeros : x_row(w, token);
    }
    return w->token[a->width - 1];
}

static inline int64_t y_row(const walk *w, int64_t token) {
    const conv_args *a = w->a;
    return ((w->b * a->tokens + token) * a->directions + w->k) * a->channels;
}

static inline vec weighted_sum(const walk *w, int64_t c, int lanes) {
    const conv_args *a = w->a;
    const float *weight = a->weight + w->k * a->width * a->channels + c;
    vec sum = load_lanes(a->bias + w->k * a->channels + c, lanes);
    for (int64_t j = 0; j < a->width; j++)
        sum += load_lanes(weight + j * a->channels, lanes) * load_lanes(w->x[j] + c, lanes);
    return sum;
}

int vssm_conv_forward(const conv_args *a, int64_t first, int64_t last) {
    for (int64_t task = first; task < last; task++) {
        walk w = make_walk(a, task / a->bands / a->directions, task / a->bands % a->directions, task % a->bands);
        for (int64_t step = 0; step < a->steps; step++) {
            const int64_t token = visit(&w, step), later = token_at(&w, step + STEPS_AHEAD);
            if (token < 0) continue;
            for (int64_t c = w.c; c < w.end; c += LANES) {
                const int lanes = lanes_before(c, w.end);
                if (later >= 0) {
                    __builtin_prefetch(x_row(&w, later) + c);
                    __builtin_prefetch(a->y + y_row(&w, later) + c, 1);
                }
                const vec sum = weighted_sum(&w, c, lanes);
                put_lanes(a->y + y_row(&w, token) + c, a->silu ? sum * sigmoid_vec(sum) : sum, lanes, a->add);
            }
        }
    }
    return 0;
}

/* Add one step's part of the gradients, of the channels from c on. */
static inline void walk_back(const walk *w, int64_t token, int64_t c, int lanes) {
    const conv_args *a = w->a;
    vec dsum = load_lanes(a->dy + y_row(w, token) + c, lanes);
    if (a->silu) {
        const vec sum = weighted_sum(w, c, lanes), sigmoid = sigmoid_vec(sum);
        dsum *= sigmoid * (1.0f + sum * (1.0f - sigmoid));
    }
    const float *weight = a->weight + w->k * a->width * a->channels + c;
    float *dweight = a->dweight + (w->b * a->directions + w->k) * a->width * a->channels + c;
    add_lanes(a->dbias + (w->b * a->directions + w->k) * a->channels + c, dsum, lanes);
    for (int64_t j = 0; j < a->width; j++) {
        if (w->token[j] < 0) continue;
        add_lanes(dweight + j * a->channels, dsum * load_lanes(w->x[j] + c, lanes), lanes);
        add_lanes(a->dx + (w->b * a->tokens + w->token[j]) * a->channels + c,
                  dsum * load_lanes(weight + j * a->channels, lanes), lanes);
    }
}

int vssm_conv_backward(const conv_args *a, int64_t first, int64_t last) {
    for (int64_t task = first; task < last; task++) {
        for (int64_t k = 0; k < a->directions; k++) {
            walk w = make_walk(a, task / a->bands, k, task % a->bands);
            for (int64_t step = 0; step < a->steps; step++) {
                const int64_t token = visit(&w, step), later = token_at(&w, step + STEPS_AHEAD);
                if (token < 0) continue;
                for (int64_t c = w.c; c < w.end; c += LANES) {
                    if (later >= 0) {
                        __builtin_prefetch(x_row(&w, later) + c);
                        __builtin_prefetch(a->dy + y_row(&w, later) + c);
                    }
                    walk_back(&w, token, c, lanes_before(c, w.end));
                }
            }
        }
    }
    return 0;
}
