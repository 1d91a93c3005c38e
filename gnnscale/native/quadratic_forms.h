// The five traceless quadratic forms Y_2 of a vector, whose squares have the sum r^4, and their derivatives.
//
// A traceless symmetric tensor is its five components along them; its contraction with two vectors v is sum_k T_k Y_2k(v).
#pragma once

#include "simd.h"

namespace gnnscale {

constexpr real ROOT_3 = (real)1.7320508075688772935;

static inline void quadratic_forms(const real* v, real* forms) {
    const real x = v[0], y = v[1], z = v[2];
    forms[0] = ROOT_3 * x * y;
    forms[1] = ROOT_3 * y * z;
    forms[2] = ROOT_3 * z * x;
    forms[3] = ROOT_3 / 2 * (x * x - y * y);
    forms[4] = z * z - (x * x + y * y) / 2;
}

// The tangents of the forms along a change t of v.
static inline void quadratic_tangents(const real* v, const real* t, real* tangents) {
    const real x = v[0], y = v[1], z = v[2];
    tangents[0] = ROOT_3 * (x * t[1] + y * t[0]);
    tangents[1] = ROOT_3 * (y * t[2] + z * t[1]);
    tangents[2] = ROOT_3 * (z * t[0] + x * t[2]);
    tangents[3] = ROOT_3 * (x * t[0] - y * t[1]);
    tangents[4] = 2 * z * t[2] - x * t[0] - y * t[1];
}

// The derivative by v of sum_k by_k Y_2k(v), which is linear in v.
static inline void quadratic_slopes(const real* v, const real* by, real* slopes) {
    const real x = v[0], y = v[1], z = v[2];
    slopes[0] = ROOT_3 * (by[0] * y + by[2] * z + by[3] * x) - by[4] * x;
    slopes[1] = ROOT_3 * (by[0] * x + by[1] * z - by[3] * y) - by[4] * y;
    slopes[2] = ROOT_3 * (by[1] * y + by[2] * x) + 2 * by[4] * z;
}

}  // namespace gnnscale
