/* Selective scan for the CPU: 16 channels at a time in vector registers, serial over the steps, float32.
 *
 * Compiled with the machine's C compiler on first use and called through ctypes (native_cpu.py).
 * A task is one (batch, direction, group of channel blocks); tasks are independent and may run on any thread.
 */
#include "vector.h"

#define CHUNK_MAX 64
/* Steps recomputed at a time in the backward: what is kept of them, 256 * state bytes a step, stays in the L2 cache. */
static inline int64_t chunk_steps(int64_t state) { return state > 32 ? 16 : state > 8 ? 512 / state : 64; }

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
    float total = 0.0f;
    for (int lane = 0; lane < LANES; lane++) total += x[lane];
    return total;
}

/* One channel block of one (batch, direction): where its rows are and its constants. */
typedef struct {
    const scan_args *a;
    int64_t b, k, c;
    int lanes;
    vec bias, D;
    const vec *A; /* (state), times log2(e) */
} block;

typedef struct { int64_t token; vec u, delta; const float *B, *C; } step_inputs;

static inline block make_block(const scan_args *a, int64_t b, int64_t k, int64_t c, vec *A) {
    block blk = {.a = a, .b = b, .k = k, .c = c, .A = A};
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

/* What a step reads; an empty step (token -1) reads zeros, so that only the bias moves the state. */
static inline step_inputs read_step(const block *blk, int64_t step, const float *zeros) {
    const scan_args *a = blk->a;
    step_inputs in = {.token = a->order ? a->order[blk->k * a->steps + step] : step, .B = zeros, .C = zeros};
    vec delta = splat(0.0f);
    in.u = splat(0.0f);
    if (in.token >= 0) {
        const int64_t b = blk->b, k = blk->k, t = in.token;
        in.u = load_lanes(a->u + b * a->su.batch + t * a->su.token + k * a->su.direction + blk->c, blk->lanes);
        delta = load_lanes(
            a->delta + b * a->sdelta.batch + t * a->sdelta.token + k * a->sdelta.direction + blk->c, blk->lanes);
        in.B = a->B + b * a->sB.batch + t * a->sB.token + k * a->sB.direction;
        in.C = a->C + b * a->sC.batch + t * a->sC.token + k * a->sC.direction;
    }
    in.delta = softplus_vec(delta + blk->bias);
    return in;
}

static inline int starts_anew(const scan_args *a, int64_t step) { return a->segment > 0 && step % a->segment == 0; }

static inline int64_t row_of(const block *blk, int64_t token) {
    const scan_args *a = blk->a;
    return ((blk->b * a->tokens + token) * a->directions + blk->k) * a->channels + blk->c;
}

static void group_range(const scan_args *a, int64_t group, int64_t *first, int64_t *last) {
    const int64_t blocks = (a->channels + LANES - 1) / LANES;
    *first = group * blocks / a->groups;
    *last = (group + 1) * blocks / a->groups;
}

/* Tasks first ... last-1 of batch * directions * groups. Returns 0, or 1 when memory ran out. */
int vssm_scan_forward(const scan_args *a, int64_t first, int64_t last) {
    const int64_t N = a->state;
    vec *A = vectors(N), *h = vectors(N);
    float *zeros = vectors((N + LANES - 1) / LANES);
    const int failed = !A || !h || !zeros;
    for (int64_t task = first; !failed && task < last; task++) {
        int64_t block_first, block_last;
        group_range(a, task % a->groups, &block_first, &block_last);
        const int64_t k = task / a->groups % a->directions, b = task / a->groups / a->directions;
        for (int64_t index = block_first; index < block_last; index++) {
            const block blk = make_block(a, b, k, index * LANES, A);
            memset(h, 0, N * sizeof(vec));
            for (int64_t step = 0; step < a->steps; step++) {
                const step_inputs in = read_step(&blk, step, zeros);
                if (starts_anew(a, step)) memset(h, 0, N * sizeof(vec));
                const vec input = in.delta * in.u;
                vec y = blk.D * in.u;
                for (int64_t n = 0; n < N; n++) {
                    h[n] = exp2_vec(in.delta * A[n]) * h[n] + input * in.B[n];
                    y += h[n] * in.C[n];
                }
                if (in.token >= 0) put_lanes(a->y + row_of(&blk, in.token), y, blk.lanes, a->add);
            }
        }
    }
    free(A), free(h), free(zeros);
    return failed;
}

typedef struct {
    step_inputs in[CHUNK_MAX];
    vec *decay, *state, *dB, *dC; /* (steps of a chunk, state); state[i] is the one before step i */
} chunk_buffers;

/* Walk a chunk forwards from h, keeping what the way back needs; with keep == 0 only h is moved. */
static void walk_chunk(const block *blk, int64_t start, int64_t count, vec *h, const float *zeros, chunk_buffers *keep) {
    const scan_args *a = blk->a;
    const int64_t N = a->state;
    for (int64_t i = 0; i < count; i++) {
        const step_inputs in = read_step(blk, start + i, zeros);
        if (starts_anew(a, start + i)) memset(h, 0, N * sizeof(vec));
        const vec input = in.delta * in.u;
        if (keep) {
            keep->in[i] = in;
            for (int64_t n = 0; n < N; n++) {
                const vec decay = exp2_vec(in.delta * blk->A[n]);
                keep->state[i * N + n] = h[n];
                keep->decay[i * N + n] = decay;
                h[n] = decay * h[n] + input * in.B[n];
            }
        } else {
            for (int64_t n = 0; n < N; n++) h[n] = exp2_vec(in.delta * blk->A[n]) * h[n] + input * in.B[n];
        }
    }
}

/* The adjoint of a kept chunk, last step first; dh and dA are carried from chunk to chunk. */
static void walk_chunk_back(const block *blk, int64_t start, int64_t count, const chunk_buffers *kept,
                            vec *dh, vec *dA, vec *dD, vec *dbias) {
    const scan_args *a = blk->a;
    const int64_t N = a->state;
    for (int64_t i = count - 1; i >= 0; i--) {
        const step_inputs in = kept->in[i];
        const vec dy = in.token >= 0 ? load_lanes(a->dy + row_of(blk, in.token), blk->lanes) : splat(0.0f);
        const vec input = in.delta * in.u;
        vec from_decay = splat(0.0f), from_input = splat(0.0f); /* sums over the states */
        for (int64_t n = 0; n < N; n++) {
            const vec decay = kept->decay[i * N + n], previous = kept->state[i * N + n];
            const vec gradient = dh[n] + dy * in.C[n];
            const vec decayed = decay * previous;
            const vec through_decay = gradient * decayed;
            kept->dC[i * N + n] += dy * (decayed + input * in.B[n]);
            kept->dB[i * N + n] += gradient * input;
            from_decay += through_decay * blk->A[n];
            from_input += gradient * in.B[n];
            dA[n] += through_decay * in.delta;
            dh[n] = decay * gradient;
        }
        if (starts_anew(a, start + i)) memset(dh, 0, N * sizeof(vec));
        /* A was scaled by log2(e); softplus' = 1 - exp(-softplus) */
        const vec slope = 1.0f - exp2_vec(in.delta * -1.44269504f);
        const vec small = in.delta * (1.0f - in.delta * (0.5f - in.delta * (1.0f / 6.0f)));
        const vec ddelta =
            (from_decay * 0.69314718f + in.u * from_input) * select_vec(in.delta < 0.02f, small, slope);
        *dbias += ddelta;
        *dD += dy * in.u;
        if (in.token >= 0) {
            const int64_t row = row_of(blk, in.token);
            put_lanes(a->du + row, in.delta * from_input + blk->D * dy, blk->lanes, a->add);
            put_lanes(a->ddelta + row, ddelta, blk->lanes, a->add);
        }
    }
}

static void write_block_gradients(const block *blk, const vec *dA, vec dD, vec dbias) {
    const scan_args *a = blk->a;
    const int64_t row = (blk->b * a->directions + blk->k) * a->channels + blk->c;
    store_lanes(a->dD + row, dD, blk->lanes);
    store_lanes(a->dbias + row, dbias, blk->lanes);
    for (int64_t n = 0; n < a->state; n++)
        for (int lane = 0; lane < blk->lanes; lane++) a->dA[(row + lane) * a->state + n] = dA[n][lane];
}

static void write_chunk_gradients(const scan_args *a, int64_t group, int64_t b, int64_t k, int64_t count,
                                  const chunk_buffers *kept) {
    const int64_t N = a->state;
    for (int64_t i = 0; i < count; i++) {
        const int64_t token = kept->in[i].token;
        if (token < 0) continue;
        const int64_t row = (((group * a->batch + b) * a->tokens + token) * a->directions + k) * N;
        for (int64_t n = 0; n < N; n++) {
            a->dB[row + n] += sum_lanes(kept->dB[i * N + n]);
            a->dC[row + n] += sum_lanes(kept->dC[i * N + n]);
        }
    }
}

int vssm_scan_backward(const scan_args *a, int64_t first, int64_t last) {
    const int64_t N = a->state, length = chunk_steps(N), chunks = (a->steps + length - 1) / length;
    const int64_t most = (a->channels + LANES - 1) / LANES / a->groups + 1; /* blocks in the largest group */
    vec *A = vectors(most * N), *h = vectors(N), *checkpoints = vectors(chunks * most * N);
    vec *dh = vectors(most * N), *dA = vectors(most * N), *dD = vectors(most), *dbias = vectors(most);
    float *zeros = vectors((N + LANES - 1) / LANES);
    chunk_buffers *kept = vectors((sizeof(chunk_buffers) + sizeof(vec) - 1) / sizeof(vec));
    vec *kept_rows = vectors(4 * length * N);
    block *blocks = vectors((most * sizeof(block) + sizeof(vec) - 1) / sizeof(vec));
    const int failed = !A || !h || !checkpoints || !dh || !dA || !dD || !dbias || !zeros || !kept || !kept_rows ||
                       !blocks;
    for (int64_t task = first; !failed && task < last; task++) {
        int64_t block_first, block_last;
        group_range(a, task % a->groups, &block_first, &block_last);
        const int64_t group = task % a->groups, count_blocks = block_last - block_first;
        const int64_t k = task / a->groups % a->directions, b = task / a->groups / a->directions;
        kept->state = kept_rows, kept->decay = kept_rows + length * N;
        kept->dB = kept_rows + 2 * length * N, kept->dC = kept_rows + 3 * length * N;
        memset(dh, 0, most * N * sizeof(vec)), memset(dA, 0, most * N * sizeof(vec));
        memset(dD, 0, most * sizeof(vec)), memset(dbias, 0, most * sizeof(vec));

        for (int64_t j = 0; j < count_blocks; j++) { /* the state before each chunk */
            blocks[j] = make_block(a, b, k, (block_first + j) * LANES, A + j * N);
            memset(h, 0, N * sizeof(vec));
            for (int64_t chunk = 0; chunk < chunks; chunk++) {
                memcpy(checkpoints + (chunk * most + j) * N, h, N * sizeof(vec));
                if (chunk + 1 < chunks) walk_chunk(&blocks[j], chunk * length, length, h, zeros, NULL);
            }
        }
        for (int64_t chunk = chunks - 1; chunk >= 0; chunk--) {
            const int64_t start = chunk * length, count = a->steps - start < length ? a->steps - start : length;
            memset(kept->dB, 0, 2 * length * N * sizeof(vec));
            for (int64_t j = 0; j < count_blocks; j++) {
                memcpy(h, checkpoints + (chunk * most + j) * N, N * sizeof(vec));
                walk_chunk(&blocks[j], start, count, h, zeros, kept);
                walk_chunk_back(&blocks[j], start, count, kept, dh + j * N, dA + j * N, dD + j, dbias + j);
            }
            write_chunk_gradients(a, group, b, k, count, kept);
        }
        for (int64_t j = 0; j < count_blocks; j++) write_block_gradients(&blocks[j], dA + j * N, dD[j], dbias[j]);
    }
    free(A), free(h), free(checkpoints), free(dh), free(dA), free(dD), free(dbias), free(zeros);
    free(kept), free(kept_rows), free(blocks);
    return failed;
}
