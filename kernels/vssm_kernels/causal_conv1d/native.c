/* Causal depthwise convolution along scan orders for the CPU: 16 channels at a time, one walk per direction.
 *
 * A task is one (batch, block of 16 channels), with all its directions, so that their gradients of x add up in order.
 */
#include "vector.h"

#define WIDTH_MAX 16

typedef struct {
    int64_t batch, tokens, directions, channels, width, steps, silu;
    int64_t add; /* whether a token may be visited twice: then outputs are added to zeros */
    const float *x, *weight, *bias; /* weight: (directions, width, channels); bias may be NULL */
    const int32_t *order;
    strides sx;
    float *y;        /* (batch, tokens, directions, channels), zeroed where the order leaves tokens out */
    const float *dy; /* like y; the rest for the backward only */
    float *dx;       /* (batch, tokens, channels), zeroed: directions add up */
    float *dweight;  /* (batch, directions, width, channels) */
    float *dbias;    /* (batch, directions, channels) */
} conv_args;

static inline vec sigmoid_vec(vec x) { return 1.0f / (1.0f + exp2_vec(x * -1.44269504f)); }

/* One task's channels: where its rows are. */
typedef struct { const conv_args *a; int64_t b, c; int lanes; } place;

static inline place make_place(const conv_args *a, int64_t task) {
    const int64_t blocks = (a->channels + LANES - 1) / LANES;
    place p = {.a = a, .b = task / blocks, .c = task % blocks * LANES};
    p.lanes = a->channels - p.c < LANES ? (int)(a->channels - p.c) : LANES;
    return p;
}

static inline int64_t token_at(const place *p, int64_t k, int64_t step) {
    return step < 0 ? -1 : p->a->order[k * p->a->steps + step];
}

static inline vec x_row(const place *p, int64_t token) {
    const conv_args *a = p->a;
    return token < 0 ? splat(0.0f) : load_lanes(a->x + p->b * a->sx.batch + token * a->sx.token + p->c, p->lanes);
}

static inline int64_t y_row(const place *p, int64_t k, int64_t token) {
    const conv_args *a = p->a;
    return ((p->b * a->tokens + token) * a->directions + k) * a->channels + p->c;
}

static inline void load_weights(const place *p, int64_t k, vec *weight, vec *bias) {
    const conv_args *a = p->a;
    for (int64_t j = 0; j < a->width; j++)
        weight[j] = load_lanes(a->weight + (k * a->width + j) * a->channels + p->c, p->lanes);
    *bias = a->bias ? load_lanes(a->bias + k * a->channels + p->c, p->lanes) : splat(0.0f);
}

/* The last `width` rows that direction k has met at a step, oldest first. */
static inline void slide(const place *p, int64_t k, int64_t step, vec *window) {
    for (int64_t j = 0; j + 1 < p->a->width; j++) window[j] = window[j + 1];
    window[p->a->width - 1] = x_row(p, token_at(p, k, step));
}

static inline vec weighted_sum(const place *p, const vec *weight, const vec *window, vec sum) {
    for (int64_t j = 0; j < p->a->width; j++) sum += weight[j] * window[j];
    return sum;
}

int vssm_conv_forward(const conv_args *a, int64_t first, int64_t last) {
    for (int64_t task = first; task < last; task++) {
        const place p = make_place(a, task);
        for (int64_t k = 0; k < a->directions; k++) {
            vec weight[WIDTH_MAX], window[WIDTH_MAX], bias;
            load_weights(&p, k, weight, &bias);
            for (int64_t j = 0; j < a->width; j++) window[j] = splat(0.0f);
            for (int64_t step = 0; step < a->steps; step++) {
                slide(&p, k, step, window);
                const int64_t token = token_at(&p, k, step);
                if (token < 0) continue;
                const vec sum = weighted_sum(&p, weight, window, bias);
                put_lanes(a->y + y_row(&p, k, token), a->silu ? sum * sigmoid_vec(sum) : sum, p.lanes, a->add);
            }
        }
    }
    return 0;
}

int vssm_conv_backward(const conv_args *a, int64_t first, int64_t last) {
    for (int64_t task = first; task < last; task++) {
        const place p = make_place(a, task);
        for (int64_t k = 0; k < a->directions; k++) {
            vec weight[WIDTH_MAX], window[WIDTH_MAX], dwindow[WIDTH_MAX], dweight[WIDTH_MAX], bias;
            vec dbias = splat(0.0f);
            load_weights(&p, k, weight, &bias);
            for (int64_t j = 0; j < a->width; j++) window[j] = dwindow[j] = dweight[j] = splat(0.0f);
            /* A row's gradient is complete when it leaves the window; width - 1 steps more push out the last ones. */
            for (int64_t step = 0; step < a->steps + a->width - 1; step++) {
                const int64_t leaving = token_at(&p, k, step - a->width + 1);
                const int64_t token = step < a->steps ? token_at(&p, k, step) : -1;
                for (int64_t j = 0; j + 1 < a->width; j++) dwindow[j] = dwindow[j + 1];
                dwindow[a->width - 1] = splat(0.0f);
                if (step < a->steps) slide(&p, k, step, window);
                if (token >= 0) {
                    vec dsum = load_lanes(a->dy + y_row(&p, k, token), p.lanes);
                    if (a->silu) {
                        const vec sum = weighted_sum(&p, weight, window, bias), sigmoid = sigmoid_vec(sum);
                        dsum *= sigmoid * (1.0f + sum * (1.0f - sigmoid));
                    }
                    dbias += dsum;
                    for (int64_t j = 0; j < a->width; j++) {
                        dweight[j] += dsum * window[j];
                        dwindow[j] += dsum * weight[j];
                    }
                }
                if (leaving >= 0) add_lanes(a->dx + (p.b * a->tokens + leaving) * a->channels + p.c, dwindow[0], p.lanes);
            }
            const int64_t own = p.b * a->directions + k;
            store_lanes(a->dbias + own * a->channels + p.c, dbias, p.lanes);
            for (int64_t j = 0; j < a->width; j++)
                store_lanes(a->dweight + (own * a->width + j) * a->channels + p.c, dweight[j], p.lanes);
        }
    }
    return 0;
}
