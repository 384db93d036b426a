/* The sum over a scan's directions and the gate behind it for the CPU: one pass over memory each way.
 *
 * A task is a token of an image.
 */
#include "vector.h"

typedef struct {
    int64_t tokens, directions, channels;
    double scale;
    const float *y; /* (batch, tokens, directions, channels) */
    const float *z; /* NULL: no gate */
    strides sz;
    float *out;            /* (batch, tokens, channels) */
    const float *gradient; /* like out; the rest for the backward only */
    float *dsum, *dz;      /* like out; dsum is what every direction receives */
} gate_args;

/* NULL where there is no gate. */
static inline const float *z_row(const gate_args *a, int64_t row) {
    return !a->z ? NULL : a->z + row / a->tokens * a->sz.batch + row % a->tokens * a->sz.token;
}

static inline vec direction_sum(const gate_args *a, int64_t row, int64_t c, int lanes) {
    const float *y = a->y + row * a->directions * a->channels + c;
    vec sum = load_lanes(y, lanes);
    for (int64_t k = 1; k < a->directions; k++) sum += load_lanes(y + k * a->channels, lanes);
    return sum;
}

/* Have a later row's inputs on their way while this one's are added up. */
static inline void prefetch_row(const gate_args *a, int64_t row, int64_t c) {
    if (a->z) __builtin_prefetch(z_row(a, row) + c);
    for (int64_t k = 0; k < a->directions; k++)
        __builtin_prefetch(a->y + (row * a->directions + k) * a->channels + c);
}

int vssm_gate_forward(const gate_args *a, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++) {
        const int64_t next = row + 1 < last ? row + 1 : row;
        const float *z = z_row(a, row);
        for (int64_t c = 0; c < a->channels; c += LANES) {
            const int lanes = lanes_before(c, a->channels);
            prefetch_row(a, next, c);
            __builtin_prefetch(a->out + next * a->channels + c, 1);
            vec out = (float)a->scale * direction_sum(a, row, c, lanes);
            if (z) {
                const vec gate = load_lanes(z + c, lanes);
                out *= gate * sigmoid_vec(gate);
            }
            store_lanes(a->out + row * a->channels + c, out, lanes);
        }
    }
    return 0;
}

int vssm_gate_backward(const gate_args *a, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++) {
        const int64_t next = row + 1 < last ? row + 1 : row;
        const float *z = z_row(a, row);
        for (int64_t c = 0; c < a->channels; c += LANES) {
            const int lanes = lanes_before(c, a->channels);
            const int64_t place = row * a->channels + c;
            prefetch_row(a, next, c);
            __builtin_prefetch(a->gradient + next * a->channels + c);
            const vec gradient = (float)a->scale * load_lanes(a->gradient + place, lanes);
            const vec gate = load_lanes(z + c, lanes), opened = sigmoid_vec(gate), silu = gate * opened;
            const vec slope = opened + silu * (1.0f - opened);
            store_lanes(a->dsum + place, gradient * silu, lanes);
            store_lanes(a->dz + place, gradient * direction_sum(a, row, c, lanes) * slope, lanes);
        }
    }
    return 0;
}
