// Edge vectors, the radial basis and the envelope, with slopes, the tangent along a change of vectors, and the reverse.
//
// For v_ij = x_j + shift - x_i of length r: basis b_n = sin(n pi r/r_c)/r (DimeNet, eq. 7), of unit rms; envelope
// w = c (1 - (r/r_c)^4)^3; z = w/r, so that w u = z v. Nine scales have also w Y_2(u) = z/r Y_2(v), quadratic_forms.h.
// Arrays over edges have their components one after the other.
#pragma once

#include <vector>

#include "quadratic_forms.h"

namespace gnnscale {

using Batch = NativeBatch;

template <class T>
int64_t held(const std::vector<T>& numbers) {
    return numbers.capacity() * sizeof(T);
}

// The edges of a lane; atoms are counted from its first.
struct Geometry {
    int64_t atoms = 0, edges = 0;
    int radial = 0, scales = 4;                   // S, 4 or 9
    std::vector<int64_t> row;                     // (A + 1) the edges of atom i are row[i] to row[i + 1]
    std::vector<int32_t> receiver, sender;        // (E)
    std::vector<real> v, r;                       // (3, E), (E)
    std::vector<real> basis, basis_slope;         // (E, R) b and db/dr
    std::vector<real> scale, envelope_slope, ratio_slope;  // (S, E) w, z v, z/r Y_2(v); dw/dr, dz/dr (E)
    std::vector<real> r_tangent, scale_tangent;   // (E), (S, E)
    std::vector<real> by_edge;                    // (E, S) derivatives by r, through b and w, and by all other scales

    int64_t bytes() const {
        int64_t sum = held(row) + held(receiver) + held(sender);
        for (auto* each : {&v, &r, &basis, &basis_slope, &scale, &envelope_slope, &ratio_slope, &r_tangent,
                           &scale_tangent, &by_edge})
            sum += held(*each);
        return sum;
    }
    real* by(int64_t e) { return by_edge.data() + scales * e; }
    void prepare(const Batch& batch, int64_t first_atom, int64_t end_atom, int64_t first_edge, int64_t end_edge,
                 int radial_functions, int edge_scales, bool slopes);
    void values(const Batch& batch, int64_t first_atom, int64_t first_edge, real cutoff, real factor);
    void tangent(const Batch& batch, int64_t first_atom, real factor, const real* by_forces, const real* by_virial);
    void reverse(const Batch& batch, int64_t first_atom, real factor, real* forces, real* virial) const;

   private:
    real z_over_r_slope(int64_t e) const { return (ratio_slope[e] - scale[e] / (r[e] * r[e])) / r[e]; }
};

inline void Geometry::prepare(const Batch& batch, int64_t first_atom, int64_t end_atom, int64_t first_edge,
                              int64_t end_edge, int radial_functions, int edge_scales, bool slopes) {
    atoms = end_atom - first_atom;
    edges = end_edge - first_edge;
    radial = radial_functions;
    scales = edge_scales;
    row.resize(atoms + 1);
    receiver.resize(edges);
    sender.resize(edges);
    int64_t e = 0;
    for (int64_t i = 0; i < atoms; i++) {
        row[i] = e;
        for (; e < edges && batch.receivers[first_edge + e] == first_atom + i; e++) {
            receiver[e] = i;
            sender[e] = batch.senders[first_edge + e] - first_atom;
        }
    }
    row[atoms] = edges;
    v.resize(3 * edges);
    r.resize(edges);
    basis.resize(edges * radial);
    scale.resize(scales * edges);
    if (!slopes) return;
    basis_slope.resize(edges * radial);
    envelope_slope.resize(edges);
    ratio_slope.resize(edges);
    r_tangent.resize(edges);
    scale_tangent.resize(scales * edges);
    by_edge.resize(scales * edges);
}

// sin and cos of an angle; k pi is taken off it first, so that polynomials of few terms suffice.
static inline void sine_cosine(real angle, real& sine, real& cosine) {
    if constexpr (SINGLE) {
        const real round = 12582912.f, k = (angle * (real)0.31830988618 + round) - round;
        real x = angle - k * (real)3.140625;
        x -= k * (real)9.67653589793e-4;
        const real z = x * x, half = k * (real)0.5, whole = (half + round) - round;
        const real sign = half == whole ? 1 : -1;  // of an even and an odd k
        real s = (real)-2.3843306950e-08, c = (real)1.9869241969e-09;
        s = s * z + (real)2.7522668645e-06;
        s = s * z - (real)1.9840810224e-04;
        s = s * z + (real)8.3333305730e-03;
        s = s * z - (real)1.6666666606e-01;
        c = c * z - (real)2.7522021119e-07;
        c = c * z + (real)2.4800971699e-05;
        c = c * z - (real)1.3888883369e-03;
        c = c * z + (real)4.1666666431e-02;
        c = c * z - (real)0.5;
        sine = sign * (x + x * z * s);
        cosine = sign * (1 + z * c);
    } else {
        sine = std::sin(angle);
        cosine = std::cos(angle);
    }
}

inline void Geometry::values(const Batch& batch, int64_t first_atom, int64_t first_edge, real cutoff, real factor) {
    constexpr int64_t BLOCK = 128;
    const real step = (real)M_PI / cutoff, unit_rms = std::sqrt((real)2 / 3) * cutoff;
    const bool slopes = !basis_slope.empty();
    real sine[BLOCK], cosine[BLOCK];
    for (int64_t begin = 0; begin < edges; begin += BLOCK) {
        const int64_t end = begin + BLOCK < edges ? begin + BLOCK : edges;
        for (int64_t e = begin; e < end; e++) {
            const int64_t i = first_atom + receiver[e], j = first_atom + sender[e];
            const real* cell = batch.cell + 9 * batch.structure[i];
            const real* shift = batch.shifts + 3 * (first_edge + e);
            for (int c = 0; c < 3; c++)
                v[c * edges + e] = batch.positions[3 * j + c] - batch.positions[3 * i + c] + shift[0] * cell[c] +
                                   shift[1] * cell[3 + c] + shift[2] * cell[6 + c];
        }
        real *x = v.data(), *y = x + edges, *z = y + edges, *w = scale.data();
        for (int64_t e = begin; e < end; e++) {
            const real d = std::sqrt(x[e] * x[e] + y[e] * y[e] + z[e] * z[e]);
            r[e] = d;
            const real q = d / cutoff, cube = q * q * q;
            real rest = 1 - cube * q;
            rest = rest < 0 ? 0 : rest;
            const real value = factor * rest * rest * rest, ratio = value / d;
            w[e] = value;
            w[edges + e] = ratio * x[e];
            w[2 * edges + e] = ratio * y[e];
            w[3 * edges + e] = ratio * z[e];
            if (slopes) {
                envelope_slope[e] = -12 * factor * cube / cutoff * rest * rest;
                ratio_slope[e] = (envelope_slope[e] - ratio) / d;
            }
        }
        for (int64_t e = begin; e < end && scales > 4; e++) {
            const real d[3] = {x[e], y[e], z[e]}, factor_of_forms = w[e] / (r[e] * r[e]);
            real forms[5];
            quadratic_forms(d, forms);
            for (int k = 0; k < 5; k++) w[(4 + k) * edges + e] = factor_of_forms * forms[k];
        }
        for (int64_t e = begin; e < end; e++) sine_cosine(r[e] * step, sine[e - begin], cosine[e - begin]);
        for (int64_t e = begin; e < end; e++) {  // sin and cos of n t follow by f(n + 1) = 2 cos t f(n) - f(n - 1)
            const real inverse = 1 / r[e], norm = unit_rms * inverse, twice = 2 * cosine[e - begin];
            real before_s = 0, s = sine[e - begin] * norm, before_c = norm, c = cosine[e - begin] * norm;
            for (int n = 0; n < radial; n++) {
                basis[e * radial + n] = s;
                if (slopes) basis_slope[e * radial + n] = (n + 1) * step * c - s * inverse;
                const real next_s = twice * s - before_s, next_c = twice * c - before_c;
                before_s = s;
                s = next_s;
                before_c = c;
                c = next_c;
            }
        }
    }
}

// Moves v along t = df/dslope for f = sum F.by_forces + virial.by_virial, and all that follows from v.
inline void Geometry::tangent(const Batch& batch, int64_t first_atom, real factor, const real* by_forces,
                              const real* by_virial) {
    for (int64_t e = 0; e < edges; e++) {
        const int64_t i = receiver[e], j = sender[e];
        const real d[3] = {v[e], v[edges + e], v[2 * edges + e]};
        real t[3], along = 0;
        for (int c = 0; c < 3; c++) t[c] = factor * (by_forces[3 * i + c] - by_forces[3 * j + c]);
        if (by_virial) {
            const real* s = by_virial + 9 * batch.structure[first_atom + i];
            for (int c = 0; c < 3; c++)
                for (int k = 0; k < 3; k++) t[c] += (s[3 * c + k] + s[3 * k + c]) * (real)0.5 * d[k];
        }
        for (int c = 0; c < 3; c++) along += t[c] * d[c];
        along /= r[e];
        const real ratio = scale[e] / r[e];
        r_tangent[e] = along;
        scale_tangent[e] = envelope_slope[e] * along;
        for (int c = 0; c < 3; c++)
            scale_tangent[(c + 1) * edges + e] = ratio_slope[e] * along * d[c] + ratio * t[c];
        if (scales == 4) continue;
        const real of_forms = z_over_r_slope(e) * along, of_tangents = ratio / r[e];
        real forms[5], tangents[5];
        quadratic_forms(d, forms);
        quadratic_tangents(d, t, tangents);
        for (int k = 0; k < 5; k++)
            scale_tangent[(4 + k) * edges + e] = of_forms * forms[k] + of_tangents * tangents[k];
    }
}

// From by_edge to dE/dv, and so to forces (A, 3), and to the virial sum of dE/dv v (B, 9) where it is wanted.
inline void Geometry::reverse(const Batch& batch, int64_t first_atom, real factor, real* forces, real* virial) const {
    for (int64_t k = 0; k < 3 * atoms; k++) forces[k] = 0;
    for (int64_t e = 0; e < edges; e++) {
        const real* by = by_edge.data() + scales * e;
        const real d[3] = {v[e], v[edges + e], v[2 * edges + e]}, ratio = scale[e] / r[e];
        real by_r = by[0] + ratio_slope[e] * (by[1] * d[0] + by[2] * d[1] + by[3] * d[2]), slope[3] = {};
        if (scales > 4) {
            real forms[5], sum = 0;
            quadratic_forms(d, forms);
            quadratic_slopes(d, by + 4, slope);
            for (int k = 0; k < 5; k++) sum += by[4 + k] * forms[k];
            by_r += z_over_r_slope(e) * sum;
        }
        const real along = by_r / r[e];
        for (int c = 0; c < 3; c++) slope[c] = along * d[c] + ratio * (by[c + 1] + slope[c] / r[e]);
        real *receiving = forces + 3 * receiver[e], *sending = forces + 3 * sender[e];
        for (int c = 0; c < 3; c++) {
            receiving[c] += factor * slope[c];
            sending[c] -= factor * slope[c];
        }
        if (virial) {
            real* s = virial + 9 * batch.structure[first_atom + receiver[e]];
            for (int c = 0; c < 3; c++)
                for (int k = 0; k < 3; k++) s[3 * c + k] += (slope[c] * d[k] + slope[k] * d[c]) * (real)0.5;
        }
    }
}

}  // namespace gnnscale
