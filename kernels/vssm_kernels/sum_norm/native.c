/* The norm of summed directions for the CPU: a row stays in the L1 cache while its statistics are computed.
 *
 * Tasks: a row forwards; a share of the rows backwards, with its own sums of the gradients of weight and bias, so that
 * these do not depend on the number of threads.
 */
#include <math.h>

#include "vector.h"

typedef struct {
    int64_t rows, directions, channels, center, shares;
    double eps;
    const float *x, *weight, *bias; /* x: (rows, directions, channels) */
    float *y, *merged;              /* (rows, channels); merged, the sums, may be NULL */
    const float *dy;                /* like y; the rest for the backward only, with x: (rows, channels) */
    float *dx, *dweight, *dbias;    /* dx like y; the others (shares, channels), zeroed */
} norm_args;

/* Zero the lanes beyond the last channel, which hold minus the mean. */
static inline vec zero_rest(vec x, int lanes) {
    float used[LANES];
    if (lanes == LANES) return x;
    store_part(used, x, lanes);
    return load_part(used, lanes);
}

typedef struct { float mean, factor; } statistics;

/* The mean to subtract (with center) and the factor that makes the mean square 1, given the row's sum. */
static inline statistics find_statistics(const norm_args *a, const float *row, vec total) {
    statistics found = {.mean = a->center ? sum_lanes(total) / a->channels : 0.0f};
    vec squares = splat(0.0f);
    for (int64_t c = 0; c < a->channels; c += LANES) { /* after the mean: two large sums would lose the variance */
        const int lanes = lanes_before(c, a->channels);
        const vec centered = zero_rest(load_lanes(row + c, lanes) - found.mean, lanes);
        squares += centered * centered;
    }
    found.factor = 1.0f / sqrtf(sum_lanes(squares) / a->channels + (float)a->eps);
    return found;
}

int vssm_norm_forward(const norm_args *a, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++) {
        const float *x = a->x + row * a->directions * a->channels;
        float *y = a->y + row * a->channels, *sums = a->merged ? a->merged + row * a->channels : y;
        vec total = splat(0.0f);
        for (int64_t c = 0; c < a->channels; c += LANES) {
            const int lanes = lanes_before(c, a->channels);
            vec sum = load_lanes(x + c, lanes);
            for (int64_t k = 1; k < a->directions; k++) sum += load_lanes(x + k * a->channels + c, lanes);
            store_lanes(sums + c, sum, lanes);
            total += sum;
        }
        const statistics found = find_statistics(a, sums, total);
        for (int64_t c = 0; c < a->channels; c += LANES) {
            const int lanes = lanes_before(c, a->channels);
            const vec normed = (load_lanes(sums + c, lanes) - found.mean) * found.factor;
            store_lanes(y + c, normed * load_lanes(a->weight + c, lanes) + load_lanes(a->bias + c, lanes), lanes);
        }
    }
    return 0;
}

static void row_back(const norm_args *a, int64_t row, float *dweight, float *dbias) {
    const float *x = a->x + row * a->channels, *dy = a->dy + row * a->channels;
    float *dx = a->dx + row * a->channels;
    vec total = splat(0.0f), along = splat(0.0f), across = splat(0.0f);
    for (int64_t c = 0; c < a->channels; c += LANES) total += load_lanes(x + c, lanes_before(c, a->channels));
    const statistics found = find_statistics(a, x, total);
    for (int64_t c = 0; c < a->channels; c += LANES) {
        const int lanes = lanes_before(c, a->channels);
        const vec gradient = load_lanes(dy + c, lanes);
        const vec normed = (load_lanes(x + c, lanes) - found.mean) * found.factor;
        const vec scaled = gradient * load_lanes(a->weight + c, lanes);
        add_lanes(dweight + c, gradient * normed, lanes);
        add_lanes(dbias + c, gradient, lanes);
        store_lanes(dx + c, scaled, lanes);
        along += scaled * normed;
        across += scaled;
    }
    const float slope = sum_lanes(along) / a->channels, shift = a->center ? sum_lanes(across) / a->channels : 0.0f;
    for (int64_t c = 0; c < a->channels; c += LANES) {
        const int lanes = lanes_before(c, a->channels);
        const vec normed = (load_lanes(x + c, lanes) - found.mean) * found.factor;
        store_lanes(dx + c, (load_lanes(dx + c, lanes) - normed * slope - shift) * found.factor, lanes);
    }
}

int vssm_norm_backward(const norm_args *a, int64_t first, int64_t last) {
    for (int64_t share = first; share < last; share++)
        for (int64_t row = share * a->rows / a->shares; row < (share + 1) * a->rows / a->shares; row++)
            row_back(a, row, a->dweight + share * a->channels, a->dbias + share * a->channels);
    return 0;
}
