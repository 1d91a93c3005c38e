// AdamW, norms and running means on flat arrays; their lengths are multiples of PAD.
#pragma once

#include "simd.h"

namespace gnnscale {

// The Euclidean norm, summed in double over pieces in which a float's sum is exact enough.
inline double norm(const real* x, int64_t n) {
    constexpr int64_t PIECE = 4096;
    double sum = 0;
    for (int64_t begin = 0; begin < n; begin += PIECE) {
        const int64_t count = begin + PIECE < n ? PIECE : n - begin;
        sum += dot(count, x + begin, x + begin);
    }
    return std::sqrt(sum);
}

struct Adam {
    real rate, decay, b1, b2, factor;  // decay: what the weight is multiplied by; factor: what the gradient is
    real first, second;                // 1/(1 - b1^t), 1/sqrt(1 - b2^t)

    void update(int64_t begin, int64_t end, real* p, const real* g, real* mean, real* square) const {
        for (int64_t i = begin; i < end; i++) {
            const real x = g[i] * factor;
            mean[i] += (x - mean[i]) * (1 - b1);
            square[i] = square[i] * b2 + x * x * (1 - b2);
            p[i] = p[i] * decay - rate * first * mean[i] / (std::sqrt(square[i]) * second + (real)1e-8);
        }
    }
};

}  // namespace gnnscale
