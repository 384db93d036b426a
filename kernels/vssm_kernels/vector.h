/* What the C kernels share: vectors of 16 floats by the compilers' own extension, so that gcc and clang build the
 * same source for any processor, and 2^x on them. */
#ifndef VSSM_VECTOR_H
#define VSSM_VECTOR_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));

typedef struct { int64_t batch, token, direction; } strides; /* in floats; channels and states are contiguous */

static inline vec splat(float x) { return (vec){} + x; }

static inline vec select_vec(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }

/* 2^x, relative error below 2e-7 for x > -126; 0 below. */
static inline vec exp2_vec(vec x) {
    const ivec underflow = x < -126.0f;
    x = select_vec(x > 127.0f, splat(127.0f), select_vec(underflow, splat(0.0f), x));
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to the nearest integer */
    const vec shifted = x + magic;
    const vec f = x - (shifted - magic);
    const ivec n = (ivec)shifted - (ivec)splat(magic);
    vec p = splat(1.5252734e-5f);
    p = p * f + 1.5403530e-4f;
    p = p * f + 1.3333558e-3f;
    p = p * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
    const vec result = (vec)((ivec)p + (n << 23));
    return select_vec(underflow, splat(0.0f), select_vec(x != x, x, result)); /* a NaN stays one */
}

static inline vec load_lanes(const float *from, int lanes) {
    vec x = splat(0.0f);
    if (lanes == LANES) memcpy(&x, from, sizeof x);
    else memcpy(&x, from, 4 * (size_t)lanes);
    return x;
}

static inline void add_lanes(float *to, vec x, int lanes) {
    vec sum = load_lanes(to, lanes) + x;
    if (lanes == LANES) memcpy(to, &sum, sizeof sum);
    else memcpy(to, &sum, 4 * (size_t)lanes);
}

/* Zeroed, aligned memory for `count` vectors; NULL when there is none. */
static inline void *vectors(size_t count) {
    void *memory = NULL;
    size_t bytes = (count ? count : 1) * sizeof(vec);
    if (posix_memalign(&memory, sizeof(vec), bytes)) return NULL;
    memset(memory, 0, bytes);
    return memory;
}

#endif
