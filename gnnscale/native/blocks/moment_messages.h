// Messages m_ij = SiLU(a_ij) that see the sender's vectors V_j and tensors T_j, and nine sums of them for each atom.
//
// With the scales s_0 = w, s_1..3 = w u, s_4..8 = w Y_2(u) of an edge: x_ij = (sum_d s_d V_jd; sum_q s_q T_jq) for the first
// channels of both, features f_ij = (b(r_ij); x_ij), a_ij = P_i + Q_j + W f_ij, and sums S_q = sum_j s_q m_ij. The first layer
// has no V and T, and so no x.
//
// tangent: t_f = (b' t_r; sum_q t_s V_jq + s_q t_Vjq); t_a = t_P + t_Q + W t_f; t_S = sum s t_m + t_s m with t_m = SiLU' t_a.
// reverse to geometry: h_m = sum_q s_q h_Sq; h_a = h_m SiLU'; h_f = W^T h_a. By r: h_f.b' + w' h_S0.m; by s_q: h_Sq.m + h_x.V_jq;
// by V_jq: s_q h_x.
// reverse: g_a = g_m SiLU' + h_m SiLU'' t_a with g_m = sum of s g_S + t_s h_S; dL/dW = g_a f + h_a t_f; by V_jq: s g_x + t_s h_x.
//
// Edges come in tiles, so that nothing of the size edges x width is ever held, nor of edges x features. In a tile values and
// tangents lie one after the other, as do g and h: one product serves both.
#pragma once

#include "senders.h"
#include "tiles.h"
#include "weighted_sums.h"

namespace gnnscale {

struct MomentMessages : Block {
    static constexpr int64_t TILE = 192;  // edges
    static constexpr int SUMS = 9;
    using Places = SumPlaces<SUMS>;
    using Nine = WeightedSums<SUMS>;

    Input table, vectors, tensors;
    Output sums, moments, seconds;
    int64_t radial, angles, seen;  // parameters; channels of vectors and of tensors that are seen, 0 in the first layer

    MomentMessages(int64_t table, int64_t sums, int64_t moments, int64_t seconds, int64_t radial, int64_t vectors,
                   int64_t tensors, int64_t angles, int64_t seen)
        : table{table}, vectors{vectors}, tensors{tensors}, sums{sums}, moments{moments}, seconds{seconds},
          radial(radial), angles(angles), seen(seen) {}
    std::vector<Input*> inputs() override {
        return seen ? std::vector<Input*>{&table, &vectors, &tensors} : std::vector<Input*>{&table};
    }
    std::vector<Output> outputs() const override { return {sums, moments, seconds}; }
    bool sees_geometry() const override { return true; }
    void prepare(const std::vector<Variable>& variables) override { table_moves = variables[table.var].moves; }

    void value(Run& run) override {
        const Geometry& g = run.geometry;
        const Array t = table(run);
        const int64_t width = sums(run).cols, features = count_features(run);
        const Places out = places(run, &Array::y);
        real *f = run.room(TILE * (features + width) + features * width), *a = f + TILE * features;
        const real* weights = gather_weights(run, a + TILE * width);
        clear(run, &Array::y);
        each_tile(g, TILE, [&](int64_t begin, int64_t end) {
            write_features(run, begin, end, f, nullptr);
            product_nn(end - begin, width, features, f, features, weights, width, false, a, width);
            for (int64_t c = 0; c < width; c += LANES)
                each_atom(g, begin, end, [&](int64_t i, int64_t first, int64_t last) {
                    const Vector p = load(t.y + i * t.row + c);
                    Nine sum(out, i, c);
                    for (int64_t e = first; e < last; e++) {
                        const Vector q = load(t.y + g.sender[e] * t.row + width + c);
                        const Vector x = load(a + (e - begin) * width + c) + (p + q);
                        sum.add(x * sigmoid(x), &g.scale[e], g.edges);
                    }
                    sum.put(out, i, c);
                });
        });
    }

    void tangent(Run& run) override {
        const Geometry& g = run.geometry;
        const Array t = table(run);
        const int64_t width = sums(run).cols, features = count_features(run);
        const Places out = places(run, &Array::t);
        real *f = run.room(2 * TILE * (features + width) + features * width), *a = f + 2 * TILE * features;
        const real* weights = gather_weights(run, a + 2 * TILE * width);
        clear(run, &Array::t);
        each_tile(g, TILE, [&](int64_t begin, int64_t end) {
            const int64_t n = end - begin, tangents = n * width;
            write_features(run, begin, end, f, f + n * features);
            product_nn(2 * n, width, features, f, features, weights, width, false, a, width);
            for (int64_t c = 0; c < width; c += LANES)
                each_atom(g, begin, end, [&](int64_t i, int64_t first, int64_t last) {
                    const Vector p = load(t.y + i * t.row + c), p_tangent = load(t.t + i * t.row + c);
                    Nine sum(out, i, c);
                    for (int64_t e = first; e < last; e++) {
                        const int64_t j = g.sender[e] * t.row + width + c;
                        const real* place = a + (e - begin) * width + c;
                        const Vector x = load(place) + (p + load(t.y + j)), s = sigmoid(x);
                        const Vector moved = load(place + tangents) + (p_tangent + load(t.t + j));
                        sum.add(moved * silu_slope(x, s), &g.scale[e], g.edges);
                        sum.add(x * s, &g.scale_tangent[e], g.edges);
                    }
                    sum.put(out, i, c);
                });
        });
    }

    void reverse(Run& run, Pass pass) override {
        for (Input* x : inputs())
            if (x->sets) clear_rows((*x)(run).rows, (*x)(run).cols, (*x)(run).by(pass), (*x)(run).row);
        if (pass == Pass::slopes)
            to_geometry(run);
        else
            pass == Pass::learn ? to_weights<false>(run) : to_weights<true>(run);
    }

   private:
    bool table_moves = false;

    int64_t count_features(const Run& run) const { return run.geometry.radial + 2 * seen; }

    Places places(const Run& run, real* Array::*part) const {
        Places found(sums(run), part);
        found.set(1, 3, moments(run), part);
        found.set(4, 5, seconds(run), part);
        return found;
    }

    void clear(const Run& run, real* Array::*part) const {
        for (Output y : outputs()) clear_rows(y(run).rows, y(run).cols, y(run).*part, y(run).row);
    }

    // W, (features, width): the weights of the radial functions above those of what is seen.
    const real* gather_weights(const Run& run, real* to) const {
        const int64_t width = sums(run).cols, of_radial = run.geometry.radial * width;
        std::memcpy(to, run.parameters + radial, sizeof(real) * of_radial);
        if (seen) std::memcpy(to + of_radial, run.parameters + angles, sizeof(real) * 2 * seen * width);
        return to;
    }

    void add_weight_gradient(const Run& run, const real* from) const {
        const int64_t width = sums(run).cols, of_radial = run.geometry.radial * width;
        put_rows(1, of_radial, from, 0, run.gradient + radial, 0, false);
        if (seen) put_rows(1, 2 * seen * width, from + of_radial, 0, run.gradient + angles, 0, false);
    }

    // The features of a tile's edges, and their tangents if there is room for them.
    void write_features(const Run& run, int64_t begin, int64_t end, real* f, real* tangents) const {
        const Geometry& g = run.geometry;
        const int64_t features = count_features(run);
        with_count(g.radial, [&](auto radials) {
            for (int64_t e = begin; e < end; e++) {
                const int64_t k = (e - begin) * features;
                const real *b = &g.basis[e * radials], *slope = tangents ? &g.basis_slope[e * radials] : nullptr;
                for (int64_t n = 0; n < radials; n++) f[k + n] = b[n];
                if (tangents)
                    for (int64_t n = 0; n < radials; n++) tangents[k + n] = slope[n] * g.r_tangent[e];
                if (seen) see(run, e, f + k + radials, tangents ? tangents + k + radials : nullptr);
            }
        });
    }

    void see(const Run& run, int64_t e, real* x, real* x_tangent) const {
        const Geometry& g = run.geometry;
        const Array v = vectors(run), t = tensors(run);
        const real *scale = &g.scale[g.edges + e], *moved = x_tangent ? &g.scale_tangent[g.edges + e] : nullptr;
        const int64_t j = g.sender[e], n = g.edges;
        with_count(seen, [&](auto channels) {
            const ComponentRows<3> y(v, &Array::y, j);
            const ComponentRows<5> z(t, &Array::y, j);
            see_components(channels, y, scale, n, false, x);
            see_components(channels, z, scale + 3 * n, n, false, x + channels);
            if (!x_tangent) return;
            see_components(channels, y, moved, n, false, x_tangent);
            see_components(channels, z, moved + 3 * n, n, false, x_tangent + channels);
            see_components(channels, ComponentRows<3>(v, &Array::t, j), scale, n, true, x_tangent);
            see_components(channels, ComponentRows<5>(t, &Array::t, j), scale + 3 * n, n, true, x_tangent + channels);
        });
    }

    // To what the sender of an edge carries, with one of two sets of scales.
    void to_sender(const Run& run, int64_t e, const std::vector<real>& scales, const real* by_x, real* Array::*part) const {
        const int64_t j = run.geometry.sender[e], n = run.geometry.edges;
        const real* scale = &scales[n + e];
        with_count(seen, [&](auto channels) {
            spread_to_components(channels, ComponentRows<3>(vectors(run), part, j), scale, n, by_x);
            spread_to_components(channels, ComponentRows<5>(tensors(run), part, j), scale + 3 * n, n, by_x + channels);
        });
    }

    void to_scales(const Run& run, int64_t e, const real* by_x, real* by_scale) const {
        const int64_t j = run.geometry.sender[e];
        with_count(seen, [&](auto channels) {
            add_to_scales(channels, ComponentRows<3>(vectors(run), &Array::y, j), by_x, by_scale + 1);
            add_to_scales(channels, ComponentRows<5>(tensors(run), &Array::y, j), by_x + channels, by_scale + 4);
        });
    }

    void to_geometry(Run& run) const {
        Geometry& g = run.geometry;
        const Array t = table(run);
        const int64_t width = sums(run).cols, features = count_features(run);
        const Places by = places(run, &Array::h);
        real *f = run.room(TILE * (features + width) + features * width), *a = f + TILE * features;
        const real* weights = gather_weights(run, a + TILE * width);
        each_tile(g, TILE, [&](int64_t begin, int64_t end) {
            write_features(run, begin, end, f, nullptr);
            product_nn(end - begin, width, features, f, features, weights, width, false, a, width);
            each_atom(g, begin, end, [&](int64_t i, int64_t first, int64_t last) {
                for (int64_t e = first; e < last; e++) to_argument(g, t, by, i, e, a + (e - begin) * width, width);
            });
            product_nt(end - begin, features, width, a, width, weights, width, false, f, features);
            for (int64_t e = begin; e < end; e++) {
                const real* by_f = f + (e - begin) * features;
                real along = 0;
                for (int n = 0; n < g.radial; n++) along += by_f[n] * g.basis_slope[e * g.radial + n];
                g.by(e)[0] += along;
                if (!seen) continue;
                to_scales(run, e, by_f + g.radial, g.by(e));
                to_sender(run, e, g.scale, by_f + g.radial, &Array::h);
            }
        });
    }

    // From the sums of a receiver to h_a of an edge, which takes the place of W f, and to its scales.
    void to_argument(Geometry& g, const Array& t, const Places& by, int64_t i, int64_t e, real* a, int64_t width) const {
        const int64_t p = i * t.row, q = g.sender[e] * t.row + width;
        Nine dots;
        for (int64_t c = 0; c < width; c += LANES) {
            const Vector x = load(a + c) + (load(t.y + p + c) + load(t.y + q + c)), s = sigmoid(x), m = x * s;
            const Nine h(by, i, c);
#pragma GCC unroll 16
            for (int k = 0; k < SUMS; k++) dots.of[k] += h.of[k] * m;
            const Vector by_a = h.times(&g.scale[e], g.edges) * silu_slope(x, s);
            store(a + c, by_a);
            if (table_moves) {
                add_to(t.h + p + c, by_a);
                add_to(t.h + q + c, by_a);
            }
        }
        g.by(e)[0] += lane_sum(dots.of[0]) * g.envelope_slope[e];
        for (int k = 1; k < SUMS; k += 4) add_lane_sums(dots.of[k], dots.of[k + 1], dots.of[k + 2], dots.of[k + 3], g.by(e) + k);
    }

    template <bool TANGENTS>
    void to_weights(Run& run) const {
        const Geometry& g = run.geometry;
        const Array t = table(run);
        const int64_t width = sums(run).cols, features = count_features(run), passes = TANGENTS ? 2 : 1;
        const Places by_g = places(run, &Array::g), by_h = places(run, &Array::h);
        real *f = run.room(passes * TILE * (features + width) + 2 * features * width), *a = f + passes * TILE * features;
        real* gradient = a + passes * TILE * width + features * width;
        const real* weights = gather_weights(run, a + passes * TILE * width);
        std::memset(gradient, 0, sizeof(real) * features * width);
        each_tile(g, TILE, [&](int64_t begin, int64_t end) {
            const int64_t n = end - begin, tangents = n * width;
            write_features(run, begin, end, f, TANGENTS ? f + n * features : nullptr);
            product_nn(passes * n, width, features, f, features, weights, width, false, a, width);
            for (int64_t c = 0; c < width; c += LANES)
                each_atom(g, begin, end, [&](int64_t i, int64_t first, int64_t last) {
                    const Vector p = load(t.y + i * t.row + c), p_tangent = TANGENTS ? load(t.t + i * t.row + c) : Vector{};
                    const Nine by(by_g, i, c);
                    Nine h;
                    if (TANGENTS) h = Nine(by_h, i, c);
                    Vector by_p{};
                    for (int64_t e = first; e < last; e++) {
                        const int64_t j = g.sender[e] * t.row + width + c;
                        real* place = a + (e - begin) * width + c;
                        const Vector x = load(place) + (p + load(t.y + j));
                        Vector by_a = by.times(&g.scale[e], g.edges);
                        if (TANGENTS) {
                            const Vector moved = load(place + tangents) + (p_tangent + load(t.t + j));
                            const Jet m = silu_jet(x);
                            const Vector by_m = h.times(&g.scale[e], g.edges);
                            by_a = (by_a + h.times(&g.scale_tangent[e], g.edges)) * m.slope + by_m * m.curvature * moved;
                            store(place + tangents, by_m * m.slope);
                        } else {
                            by_a *= silu_slope(x, sigmoid(x));
                        }
                        store(place, by_a);
                        by_p += by_a;
                        add_to(t.g + j, by_a);
                    }
                    add_to(t.g + i * t.row + c, by_p);
                });
            product_tn(features, width, passes * n, f, features, a, width, true, gradient, width);
            if (!seen) return;
            product_nt(passes * n, 2 * seen, width, a, width, weights + g.radial * width, width, false, f, 2 * seen);
            for (int64_t e = begin; e < end; e++) {
                const real* by_x = f + (e - begin) * 2 * seen;
                to_sender(run, e, g.scale, by_x, &Array::g);
                if (TANGENTS) to_sender(run, e, g.scale_tangent, by_x + n * 2 * seen, &Array::g);
            }
        });
        add_weight_gradient(run, gradient);
    }
};

}  // namespace gnnscale
