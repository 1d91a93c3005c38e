// Messages with a second matrix on each edge: x_ij = SiLU(P_i + Q_j + W_r b), m_ij = SiLU(W_2 x_ij + b_2), and their sums.
//
// Edges come in tiles, so that nothing of the size edges x width is ever held. In a tile values and tangents lie one
// after the other, as do g and h: one product with W_2 serves both. The formulas are those of messages.h, twice.
#pragma once

#include "messages.h"
#include "tiles.h"

namespace gnnscale {

struct EdgeMessages : MessageBlock<EdgeMessages> {
    static constexpr int64_t TILE = 192;  // edges; about as many rows as make a product efficient, and fit the cache

    int64_t second, bias;

    EdgeMessages(int64_t table, int64_t sums, int64_t moments, int64_t radial, int64_t second, int64_t bias)
        : MessageBlock(table, sums, moments, radial), second(second), bias(bias) {}

    // W_2^T, once for all tiles: its rows then lie as a product reads them.
    const real* turn_second(const Run& run, int64_t width, real* to) const {
        for (int64_t i = 0; i < width; i++)
            for (int64_t c = 0; c < width; c++) to[c * width + i] = run.parameters[second + i * width + c];
        return to;
    }

    void clear_sums(const Run& run, real* Array::*part) const {
        clear_rows(sums(run).rows, sums(run).cols, sums(run).*part, sums(run).row);
        clear_rows(moments(run).rows, moments(run).cols, moments(run).*part, moments(run).row);
    }

    template <int R>
    void values(Run& run) const {
        const Geometry& g = run.geometry;
        const Array t = table(run);
        const int64_t width = sums(run).cols, edges = g.edges;
        const FourSums out = four_sums(sums(run), moments(run), &Array::y);
        real *x = run.room(2 * TILE * width + width * width), *y = x + TILE * width;
        const real* turned = turn_second(run, width, y + TILE * width);
        clear_sums(run, &Array::y);
        each_tile(g, TILE, [&](int64_t begin, int64_t end) {
            for (int64_t c = 0; c < width; c += LANES) {
                const Radial<R> w(run.parameters + radial, width, c, g.radial);
                each_atom(g, begin, end, [&](int64_t i, int64_t first, int64_t last) {
                    const Vector p = load(t.y + i * t.row + c);
                    for (int64_t e = first; e < last; e++) {
                        const Vector a = w.times(p + load(t.y + g.sender[e] * t.row + width + c), &g.basis[e * g.radial]);
                        store(x + (e - begin) * width + c, a * sigmoid(a));
                    }
                });
            }
            product_nn(end - begin, width, width, x, width, turned, width, false, y, width);
            for (int64_t c = 0; c < width; c += LANES) {
                const Vector b = load(run.parameters + bias + c);
                each_atom(g, begin, end, [&](int64_t i, int64_t first, int64_t last) {
                    Four sum(out, i, c);
                    for (int64_t e = first; e < last; e++) {
                        const Vector a = load(y + (e - begin) * width + c) + b;
                        sum.add(a * sigmoid(a), &g.scale[e], edges);
                    }
                    sum.put(out, i, c);
                });
            }
        });
    }

    template <int R, bool TABLE>
    void tangents(Run& run) const {
        const Geometry& g = run.geometry;
        const Array t = table(run);
        const int64_t width = sums(run).cols, edges = g.edges;
        const FourSums out = four_sums(sums(run), moments(run), &Array::t);
        real *x = run.room(4 * TILE * width + width * width), *y = x + 2 * TILE * width;
        const real* turned = turn_second(run, width, y + 2 * TILE * width);
        clear_sums(run, &Array::t);
        each_tile(g, TILE, [&](int64_t begin, int64_t end) {
            const int64_t tangent = (end - begin) * width;  // from a value to its tangent
            for (int64_t c = 0; c < width; c += LANES) {
                const Radial<R> w(run.parameters + radial, width, c, g.radial);
                each_atom(g, begin, end, [&](int64_t i, int64_t first, int64_t last) {
                    const Vector p = load(t.y + i * t.row + c), p_tangent = TABLE ? load(t.t + i * t.row + c) : Vector{};
                    for (int64_t e = first; e < last; e++) {
                        const int64_t j = g.sender[e] * t.row + width + c;
                        const Vector a = w.times(p + load(t.y + j), &g.basis[e * g.radial]), s = sigmoid(a);
                        Vector moved = w.times(Vector{}, &g.basis_slope[e * g.radial]) * g.r_tangent[e];
                        if (TABLE) moved += p_tangent + load(t.t + j);
                        real* place = x + (e - begin) * width + c;
                        store(place, a * s);
                        store(place + tangent, moved * silu_slope(a, s));
                    }
                });
            }
            product_nn(2 * (end - begin), width, width, x, width, turned, width, false, y, width);
            for (int64_t c = 0; c < width; c += LANES) {
                const Vector b = load(run.parameters + bias + c);
                each_atom(g, begin, end, [&](int64_t i, int64_t first, int64_t last) {
                    Four sum(out, i, c);
                    for (int64_t e = first; e < last; e++) {
                        const real* place = y + (e - begin) * width + c;
                        const Vector a = load(place) + b, s = sigmoid(a);
                        sum.add(load(place + tangent) * silu_slope(a, s), &g.scale[e], edges);
                        sum.add(a * s, &g.scale_tangent[e], edges);
                    }
                    sum.put(out, i, c);
                });
            }
        });
    }

    template <int R, bool TABLE>
    void to_geometry(Run& run) const {
        Geometry& g = run.geometry;
        const Array t = table(run);
        const int64_t width = sums(run).cols, edges = g.edges, tile = TILE * width;
        const FourSums by = four_sums(sums(run), moments(run), &Array::h);
        real *x = run.room(4 * tile + 4 * LANES * TILE + width * width), *y = x + tile, *slope = y + tile, *by_x = slope + tile;
        real* dots = by_x + tile;  // four vectors of an edge, summed over their lanes at the end
        const real* turned = turn_second(run, width, dots + 4 * LANES * TILE);
        each_tile(g, TILE, [&](int64_t begin, int64_t end) {
            std::memset(dots, 0, sizeof(real) * 4 * LANES * (end - begin));
            for (int64_t c = 0; c < width; c += LANES) {
                const Radial<R> w(run.parameters + radial, width, c, g.radial);
                each_atom(g, begin, end, [&](int64_t i, int64_t first, int64_t last) {
                    const Vector p = load(t.y + i * t.row + c);
                    for (int64_t e = first; e < last; e++) {
                        const Vector a = w.times(p + load(t.y + g.sender[e] * t.row + width + c), &g.basis[e * g.radial]);
                        const Vector s = sigmoid(a);
                        store(x + (e - begin) * width + c, a * s);
                        store(slope + (e - begin) * width + c, silu_slope(a, s));
                    }
                });
            }
            product_nn(end - begin, width, width, x, width, turned, width, false, y, width);
            for (int64_t c = 0; c < width; c += LANES) {
                const Vector b = load(run.parameters + bias + c);
                each_atom(g, begin, end, [&](int64_t i, int64_t first, int64_t last) {
                    const Four h(by, i, c);
                    for (int64_t e = first; e < last; e++) {
                        real *place = y + (e - begin) * width + c, *dot = dots + (e - begin) * 4 * LANES;
                        const Vector a = load(place) + b, s = sigmoid(a), m = a * s;
                        store(place, h.times(&g.scale[e], edges) * silu_slope(a, s));
                        add_to(dot, h.of[0] * m * g.envelope_slope[e]);
                        for (int k = 1; k < 4; k++) add_to(dot + k * LANES, h.of[k] * m);
                    }
                });
            }
            product_nn(end - begin, width, width, y, width, run.parameters + second, width, false, by_x, width);
            for (int64_t c = 0; c < width; c += LANES) {
                const Radial<R> w(run.parameters + radial, width, c, g.radial);
                each_atom(g, begin, end, [&](int64_t i, int64_t first, int64_t last) {
                    Vector by_p{};
                    for (int64_t e = first; e < last; e++) {
                        const int64_t place = (e - begin) * width + c;
                        const Vector by_a = load(by_x + place) * load(slope + place);
                        add_to(dots + (e - begin) * 4 * LANES, by_a * w.times(Vector{}, &g.basis_slope[e * g.radial]));
                        if (TABLE) {
                            by_p += by_a;
                            add_to(t.h + g.sender[e] * t.row + width + c, by_a);
                        }
                    }
                    if (TABLE) add_to(t.h + i * t.row + c, by_p);
                });
            }
            for (int64_t e = begin; e < end; e++) {
                const real* dot = dots + (e - begin) * 4 * LANES;
                add_lane_sums(load(dot), load(dot + LANES), load(dot + 2 * LANES), load(dot + 3 * LANES), g.by(e));
            }
        });
    }

    // TANGENTS 0: through values alone; 1: and tangents, which come from geometry; 2: and from the table too.
    template <int R, int TANGENTS>
    void to_weights(Run& run) const {
        const Geometry& g = run.geometry;
        const Array t = table(run);
        const int64_t width = sums(run).cols, edges = g.edges, tile = TILE * width, passes = TANGENTS ? 2 : 1;
        const FourSums by_g = four_sums(sums(run), moments(run), &Array::g);
        const FourSums by_h = four_sums(sums(run), moments(run), &Array::h);
        real *x = run.room(8 * tile + width * width), *y = x + 2 * tile, *by_x = y + 2 * tile, *slope = by_x + 2 * tile;
        real* bend = slope + tile;
        const real* turned = turn_second(run, width, bend + tile);
        each_tile(g, TILE, [&](int64_t begin, int64_t end) {
            const int64_t tangent = (end - begin) * width;  // from a value to its tangent, and from g to h
            for (int64_t c = 0; c < width; c += LANES) {
                const Radial<R> w(run.parameters + radial, width, c, g.radial);
                each_atom(g, begin, end, [&](int64_t i, int64_t first, int64_t last) {
                    const Vector p = load(t.y + i * t.row + c);
                    const Vector p_tangent = TANGENTS > 1 ? load(t.t + i * t.row + c) : Vector{};
                    for (int64_t e = first; e < last; e++) {
                        const int64_t j = g.sender[e] * t.row + width + c, place = (e - begin) * width + c;
                        const Jet f = silu_jet(w.times(p + load(t.y + j), &g.basis[e * g.radial]));
                        store(x + place, f.value);
                        store(slope + place, f.slope);
                        if (TANGENTS) {
                            Vector moved = w.times(Vector{}, &g.basis_slope[e * g.radial]) * g.r_tangent[e];
                            if (TANGENTS > 1) moved += p_tangent + load(t.t + j);
                            store(x + tangent + place, moved * f.slope);
                            store(bend + place, f.curvature * moved);
                        }
                    }
                });
            }
            product_nn(passes * (end - begin), width, width, x, width, turned, width, false, y, width);
            for (int64_t c = 0; c < width; c += LANES) {
                const Vector b = load(run.parameters + bias + c);
                Vector by_bias{};
                each_atom(g, begin, end, [&](int64_t i, int64_t first, int64_t last) {
                    const Four by(by_g, i, c);
                    Four h;
                    if (TANGENTS) h = Four(by_h, i, c);
                    for (int64_t e = first; e < last; e++) {
                        real* place = y + (e - begin) * width + c;
                        const Vector a = load(place) + b;
                        Vector by_a = by.times(&g.scale[e], edges);
                        if (!TANGENTS) {
                            by_a *= silu_slope(a, sigmoid(a));
                        } else {
                            const Jet f = silu_jet(a);
                            const Vector by_m = h.times(&g.scale[e], edges);
                            by_a = (by_a + h.times(&g.scale_tangent[e], edges)) * f.slope +
                                   by_m * f.curvature * load(place + tangent);
                            store(place + tangent, by_m * f.slope);
                        }
                        store(place, by_a);
                        by_bias += by_a;
                    }
                });
                add_to(run.gradient + bias + c, by_bias);
            }
            const int64_t rows = passes * (end - begin);
            product_tn(width, width, rows, y, width, x, width, true, run.gradient + second, width);
            product_nn(rows, width, width, y, width, run.parameters + second, width, false, by_x, width);
            for (int64_t c = 0; c < width; c += LANES) {
                RadialGradient<R> gradient(run.gradient + radial, width, c, g.radial);
                each_atom(g, begin, end, [&](int64_t i, int64_t first, int64_t last) {
                    Vector by_p{};
                    for (int64_t e = first; e < last; e++) {
                        const int64_t place = (e - begin) * width + c;
                        const Vector f = load(slope + place);
                        Vector by_a = load(by_x + place) * f;
                        if (TANGENTS) {
                            const Vector h = load(by_x + tangent + place);
                            by_a += h * load(bend + place);
                            gradient.add(h * f * g.r_tangent[e], &g.basis_slope[e * g.radial]);
                        }
                        gradient.add(by_a, &g.basis[e * g.radial]);
                        by_p += by_a;
                        add_to(t.g + g.sender[e] * t.row + width + c, by_a);
                    }
                    add_to(t.g + i * t.row + c, by_p);
                });
            }
        });
    }
};

}  // namespace gnnscale
