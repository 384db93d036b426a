/* The sum over a scan's directions and the gate that follows, for the CPU: one pass over memory each way.
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
    float *summed;         /* like out, the sum before the gate; NULL: not saved */
    const float *gradient; /* like out; the rest for the backward only */
    float *dsum, *dz;      /* like out; dsum is the gradient of every direction */
} gate_args;

/* NULL where there is no gate. */
static inline const float *z_row(const gate_args *a, int64_t row) {
    return !a->z ? NULL : a->z + row / a->tokens * a->sz.batch + row % a->tokens * a->sz.token;
}

int vssm_gate_forward(const gate_args *a, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++) {
        const int64_t next = row + 1 < last ? row + 1 : row;
        const float *z = z_row(a, row);
        for (int64_t c = 0; c < a->channels; c += LANES) {
            const int lanes = lanes_before(c, a->channels);
            const int64_t place = row * a->channels + c, ahead = next * a->channels + c;
            vec sum = {0};
            for (int64_t k = 0; k < a->directions; k++) {
                /* Load the next row's inputs while this one's are added up. */
                __builtin_prefetch(a->y + (next * a->directions + k) * a->channels + c);
                sum += load_lanes(a->y + (row * a->directions + k) * a->channels + c, lanes);
            }
            vec out = (float)a->scale * sum;
            if (z) {
                __builtin_prefetch(z_row(a, next) + c);
                const vec gate = load_lanes(z + c, lanes);
                out *= gate * sigmoid_vec(gate);
            }
            __builtin_prefetch(a->out + ahead, 1);
            store_lanes(a->out + place, out, lanes);
            if (a->summed) {
                __builtin_prefetch(a->summed + ahead, 1);
                store_lanes(a->summed + place, sum, lanes);
            }
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
            const int64_t place = row * a->channels + c, ahead = next * a->channels + c;
            __builtin_prefetch(z_row(a, next) + c);
            __builtin_prefetch(a->summed + ahead);
            __builtin_prefetch(a->gradient + ahead);
            const vec gradient = (float)a->scale * load_lanes(a->gradient + place, lanes);
            const vec gate = load_lanes(z + c, lanes), opened = sigmoid_vec(gate), silu = gate * opened;
            const vec slope = opened + silu * (1.0f - opened);
            store_lanes(a->dsum + place, gradient * silu, lanes);
            store_lanes(a->dz + place, gradient * load_lanes(a->summed + place, lanes) * slope, lanes);
        }
    }
    return 0;
}
