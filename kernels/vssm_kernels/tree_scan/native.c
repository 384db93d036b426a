/* The two sweeps of the scan of a tree, for the CPU: from the leaves to the root and back, in place.
 *
 * A task is a band of channels of an image.
 */
#include "vector.h"

typedef struct {
    int64_t tokens, channels, bands;
    const int32_t *tree;  /* (batch, 4, tokens): of which the first two rows are read, vertices and their parents */
    const float *weight;  /* (batch, tokens, channels), of the edge to the parent */
    float *h;             /* like weight: what each vertex adds, and then its state */
    float *dh;            /* like weight: the gradient of the states, and then of what was added; NULL: forward only */
    float *dexponent;     /* like weight: the gradient of the weights' logarithms, zeroed */
} tree_args;

int vssm_tree_sweeps(const tree_args *a, int64_t first, int64_t last) {
    for (int64_t task = first; task < last; task++) {
        const int64_t blocks = (a->channels + LANES - 1) / LANES, band = task % a->bands, image = task / a->bands;
        const int64_t begin = band * blocks / a->bands * LANES, upto = (band + 1) * blocks / a->bands * LANES;
        const int64_t end = upto < a->channels ? upto : a->channels, rows = image * a->tokens * a->channels;
        const int32_t *vertex = a->tree + image * 4 * a->tokens, *parent = vertex + a->tokens;
        const float *weight = a->weight + rows;
        float *h = a->h + rows, *dh = a->dh + rows, *dexponent = a->dexponent + rows;
        for (int64_t step = a->tokens - 1; step > 0; step--) {
            const int64_t to = parent[step] * a->channels, from = vertex[step] * a->channels;
            for (int64_t c = begin; c < end; c += LANES) {
                const int lanes = lanes_before(c, end);
                const vec w = load_lanes(weight + from + c, lanes);
                add_lanes(h + to + c, w * load_lanes(h + from + c, lanes), lanes);
                if (a->dh) add_lanes(dh + to + c, w * load_lanes(dh + from + c, lanes), lanes);
            }
        }
        for (int64_t step = 1; step < a->tokens; step++) {
            const int64_t up = parent[step] * a->channels, at = vertex[step] * a->channels;
            for (int64_t c = begin; c < end; c += LANES) {
                const int lanes = lanes_before(c, end);
                const vec w = load_lanes(weight + at + c, lanes), sums = load_lanes(h + at + c, lanes);
                const vec beyond = load_lanes(h + up + c, lanes) - w * sums;
                store_lanes(h + at + c, sums + w * beyond, lanes);
                if (!a->dh) continue;
                const vec dsums = load_lanes(dh + at + c, lanes);
                const vec dbeyond = load_lanes(dh + up + c, lanes) - w * dsums;
                store_lanes(dh + at + c, dsums + w * dbeyond, lanes);
                store_lanes(dexponent + at + c, w * (dsums * beyond + sums * dbeyond), lanes);
            }
        }
    }
    return 0;
}
