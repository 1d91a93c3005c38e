// One vector of channels, the functions that act on it, and the constants that all files share.
//
// REAL is float in what trains and double where the mathematics is checked. A vector is as wide as the widest register of
// the instruction set that this file is compiled for; GCC's and Clang's vector types do the rest on any processor.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#ifndef REAL
#define REAL float
#endif
#include "interface.h"

namespace gnnscale {

using real = native_real;

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX2__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif
constexpr int LANES = VECTOR_BYTES / sizeof(real);
constexpr int PAD = 16;  // widths are padded with zeros to multiples of it, so that no loop over channels has a rest
constexpr bool SINGLE = sizeof(real) == 4;

typedef real Vector __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef int32_t IntVector __attribute__((vector_size(VECTOR_BYTES), may_alias));
// In arrays, a vector begins at any number. Only here: `auto&` and templates would forget it and expect whole vectors.
typedef real VectorAnywhere __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));

static inline Vector load(const real* p) { return *reinterpret_cast<const VectorAnywhere*>(p); }
static inline void store(real* p, Vector v) { *reinterpret_cast<VectorAnywhere*>(p) = v; }
static inline void add_to(real* p, Vector v) { store(p, load(p) + v); }
static inline Vector broadcast(real x) { return Vector{} + x; }

// 1/x to the last bits of a float: an estimate and one step of Newton's, where a division costs five times as much.
static inline Vector reciprocal(Vector x) {
    if constexpr (SINGLE) {
#if defined(__AVX512F__)
        const Vector y = (Vector)_mm512_rcp14_ps((__m512)x);
        return y * (2 - x * y);
#elif defined(__AVX2__)
        const Vector y = (Vector)_mm256_rcp_ps((__m256)x);
        return y * (2 - x * y);
#endif
    }
    return 1 / x;
}

// 1/(1 + e^-a) with e^-a = 2^t: a power of two, set in the exponent's bits, times a polynomial of the rest.
static inline Vector sigmoid(Vector a) {
    if constexpr (SINGLE) {
        a = a > broadcast(87) ? broadcast(87) : a;  // a NaN stays one
        a = a < broadcast(-87) ? broadcast(-87) : a;
        const real log2_e = (real)-1.44269504, round = 12582912.f;  // 1.5 x 2^23: adding it leaves the nearest whole number
        const Vector t = a * log2_e + round, r = a * log2_e - (t - round);
        Vector p = broadcast((real)1.546144472e-04);
        p = p * r + (real)1.340042818e-03;
        p = p * r + (real)9.618056678e-03;
        p = p * r + (real)5.550327227e-02;
        p = p * r + (real)2.402265092e-01;
        p = p * r + (real)6.931472067e-01;
        p = p * r + 1;
        return reciprocal((Vector)((IntVector)p + ((IntVector)t << 23)) + 1);
    } else {
        Vector y;
        for (int k = 0; k < LANES; k++) y[k] = 1 / (1 + std::exp(-a[k]));
        return y;
    }
}

// SiLU y(a) = a s with s the sigmoid; y' = s + y (1 - s); y'' = (y' + s - s y) (1 - s).
static inline Vector silu_slope(Vector a, Vector s) { return s + a * s * (1 - s); }

struct Jet {
    Vector value, slope, curvature;
};

static inline Jet silu_jet(Vector a) {
    const Vector s = sigmoid(a), y = a * s, rest = 1 - s, slope = s + y * rest;
    return {y, slope, (slope + s - s * y) * rest};
}

// Adds to out[0..3] the sums over the lanes of four vectors.
static inline void add_lane_sums(Vector a, Vector b, Vector c, Vector d, real* out) {
    if constexpr (SINGLE) {
#if defined(__AVX512F__)
        const __m512 A = (__m512)a, B = (__m512)b, C = (__m512)c, D = (__m512)d;
        const __m512 x = _mm512_add_ps(_mm512_unpacklo_ps(A, B), _mm512_unpackhi_ps(A, B));
        const __m512 y = _mm512_add_ps(_mm512_unpacklo_ps(C, D), _mm512_unpackhi_ps(C, D));
        const __m512 z = _mm512_add_ps((__m512)_mm512_unpacklo_pd((__m512d)x, (__m512d)y),
                                       (__m512)_mm512_unpackhi_pd((__m512d)x, (__m512d)y));
        const __m256 w = _mm256_add_ps(_mm512_castps512_ps256(z), _mm512_extractf32x8_ps(z, 1));
        const __m128 v = _mm_add_ps(_mm256_castps256_ps128(w), _mm256_extractf128_ps(w, 1));
        _mm_storeu_ps((float*)out, _mm_add_ps(_mm_loadu_ps((float*)out), v));
        return;
#elif defined(__AVX2__)
        const __m256 x = _mm256_hadd_ps((__m256)a, (__m256)b), y = _mm256_hadd_ps((__m256)c, (__m256)d);
        const __m256 z = _mm256_hadd_ps(x, y);
        const __m128 v = _mm_add_ps(_mm256_castps256_ps128(z), _mm256_extractf128_ps(z, 1));
        _mm_storeu_ps((float*)out, _mm_add_ps(_mm_loadu_ps((float*)out), v));
        return;
#endif
    }
    for (int k = 0; k < LANES; k++) {
        out[0] += a[k];
        out[1] += b[k];
        out[2] += c[k];
        out[3] += d[k];
    }
}

static inline real lane_sum(Vector v) {
    real sum = 0;
    for (int k = 0; k < LANES; k++) sum += v[k];
    return sum;
}

// The scalar product of two rows whose length is a multiple of PAD.
static inline real dot(int64_t n, const real* a, const real* b) {
    Vector sum{};
    for (int64_t c = 0; c < n; c += LANES) sum += load(a + c) * load(b + c);
    return lane_sum(sum);
}

}  // namespace gnnscale
