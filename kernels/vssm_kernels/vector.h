/* Shared by the C kernels: vectors of floats by the extension of gcc and clang, which builds for any processor; 2^x,
 * sigmoid and softplus on them; and the loop over all cores. */
#ifndef VSSM_VECTOR_H
#define VSSM_VECTOR_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512DQ__
#include <immintrin.h>
#endif

/* As wide as the processor's vectors: compilers generate slow code for wider ones. */
#if defined(__AVX512DQ__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));

typedef struct { int64_t batch, token, direction; } strides; /* in floats; channels and states are contiguous */

static inline vec splat(float x) { return (vec){} + x; }

static inline vec select_vec(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }

/* 2^f for f in [-0.5, 0.5], relative error below 2e-7, exact at 0: minimax among the polynomials through (0, 1). */
static inline vec exp2_fraction(vec f) {
    vec p = splat(1.32647273e-3f);
    p = p * f + 9.67151279e-3f;
    p = p * f + 5.55073374e-2f;
    p = p * f + 2.40222421e-1f;
    p = p * f + 6.93146978e-1f;
    return p * f + 1.0f;
}

/* 2^x; 0 where that underflows, and NaN for NaN. */
#ifdef __AVX512DQ__
static inline vec exp2_vec(vec x) {
    const vec f = (vec)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT); /* 0 for infinities */
    return (vec)_mm512_scalef_ps((__m512)exp2_fraction(f), (__m512)(x - f));
}
#else
static inline vec exp2_vec(vec x) {
    const ivec underflow = x < -126.0f;
    const vec bounded = select_vec(x > 127.0f, splat(127.0f), select_vec(underflow, splat(0.0f), x));
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to the nearest integer */
    const vec shifted = bounded + magic;
    const ivec n = (ivec)shifted - (ivec)splat(magic);
    const vec result = (vec)((ivec)exp2_fraction(bounded - (shifted - magic)) + (n << 23));
    return select_vec(underflow, splat(0.0f), select_vec(x != x, x, result));
}
#endif

static inline vec sigmoid_vec(vec x) { return 1.0f / (1.0f + exp2_vec(x * -1.44269504f)); }

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

/* Lanes of a vector whose first channel is c, where channels end at `end`. */
static inline int lanes_before(int64_t c, int64_t end) { return end - c < LANES ? (int)(end - c) : LANES; }

static inline float sum_lanes(vec x) {
    float lanes[LANES];
    memcpy(lanes, &x, sizeof x);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; lane++) lanes[lane] += lanes[lane + half];
    return lanes[0];
}

/* The last block of channels may fill only part of a vector. Not inlined, so that whole vectors stay in registers. */
static __attribute__((noinline)) vec load_part(const float *from, int lanes) {
    vec x = splat(0.0f);
    memcpy(&x, from, 4 * (size_t)lanes);
    return x;
}

static __attribute__((noinline)) void store_part(float *to, vec x, int lanes) { memcpy(to, &x, 4 * (size_t)lanes); }

static inline vec load_lanes(const float *from, int lanes) {
    vec x;
    if (lanes != LANES) return load_part(from, lanes);
    memcpy(&x, from, sizeof x);
    return x;
}

static inline void store_lanes(float *to, vec x, int lanes) {
    if (lanes == LANES) memcpy(to, &x, sizeof x);
    else store_part(to, x, lanes);
}

static inline void add_lanes(float *to, vec x, int lanes) { store_lanes(to, load_lanes(to, lanes) + x, lanes); }

/* Write a token's row, or add to it where an order may visit tokens twice. */
static inline void put_lanes(float *to, vec x, int lanes, int64_t add) {
    if (add) add_lanes(to, x, lanes);
    else store_lanes(to, x, lanes);
}

/* Zeroed memory aligned for vectors; NULL when allocation fails. */
static inline void *vectors(size_t bytes) {
    void *memory = NULL;
    if (bytes < sizeof(vec)) bytes = sizeof(vec);
    if (posix_memalign(&memory, sizeof(vec), bytes)) return NULL;
    return memset(memory, 0, bytes);
}

/* Run a kernel over its tasks. Through OpenMP these are torch's own threads: threads of another pool would compete for
 * the cores with torch's, which spin while they wait. Not 0 where a part failed. */
typedef int (*kernel)(const void *arguments, int64_t first, int64_t last);

int vssm_run(kernel function, const void *arguments, int64_t tasks, int threads) {
    int failed = 0;
#pragma omp parallel for num_threads(threads) schedule(static, 1) reduction(| : failed)
    for (int i = 0; i < threads; i++)
        failed |= function(arguments, tasks * i / threads, tasks * (i + 1) / threads);
    return failed;
}

#endif
