// Messages m_ij = SiLU(a_ij), a_ij = P_i + Q_j + W_r b(r_ij), and their four sums over the neighbours j of an atom i:
// s_i = sum w_ij m_ij, and three components of v_i = sum w_ij u_ij m_ij. Nothing of the size edges x width is stored.
//
// tangent: t_m = SiLU'(a) t_a with t_a = t_P + t_Q + W_r b' t_r; t_s = sum w t_m + t_w m.
// reverse to geometry: h_m = sum over the four of scale h_S; h_a = h_m SiLU'; by r: h_a.(W_r b') + w' h_0.m; by z v: h_c.m.
// reverse: g_a = g_m SiLU' + h_m SiLU'' t_a with g_m = sum of scale g_S + t_scale h_S; dL/dW_r = g_a b + h_a b' t_r.
//
// The loop over channels is the outer one: one vector of channels of W_r stays in registers while all edges pass.
#pragma once

#include "weighted_sums.h"

namespace gnnscale {

// W_r of one vector of channels, for R radial functions; R = 0: as many as there are, from memory.
template <int R>
struct Radial {
    Vector w[R ? R : 1];
    const real* at;
    int64_t row;
    int count;

    Radial(const real* weights, int64_t width, int64_t channel, int radial)
        : at(weights + channel), row(width), count(R ? R : radial) {
        if constexpr (R > 0)
            for (int n = 0; n < R; n++) w[n] = load(at + n * row);
    }
    Vector operator[](int n) const {
        if constexpr (R > 0) return w[n];
        return load(at + n * row);
    }
    // a + W_r b, in two chains that do not wait for each other
    Vector times(Vector a, const real* b) const {
        Vector other = (*this)[0] * b[0];
        if constexpr (R > 0) {
            for (int n = 1; n < R; n += 2) {
                a += w[n] * b[n];
                if (n + 1 < R) other += w[n + 1] * b[n + 1];
            }
        } else {
            for (int n = 1; n < count; n++) a += (*this)[n] * b[n];
        }
        return a + other;
    }
};

// Sums of gradients of W_r; in registers where their number is known.
template <int R>
struct RadialGradient {
    Vector sum[R ? R : 1];
    real* at;
    int64_t row;
    int count;

    RadialGradient(real* gradient, int64_t width, int64_t channel, int radial)
        : at(gradient + channel), row(width), count(R ? R : radial) {
        for (auto& s : sum) s = Vector{};
    }
    void add(Vector g, const real* b) {
        if constexpr (R > 0)
            for (int n = 0; n < R; n++) sum[n] += g * b[n];
        else
            for (int n = 0; n < count; n++) add_to(at + n * row, g * b[n]);
    }
    ~RadialGradient() {
        if constexpr (R > 0)
            for (int n = 0; n < R; n++) add_to(at + n * row, sum[n]);
    }
};

static inline FourSums four_sums(const Array& sums, const Array& moments, real* Array::*part) {
    FourSums places(sums, part);
    places.set(1, 3, moments, part);
    return places;
}

// The common part of messages of both kinds: operands, and the choice of the loop that is compiled for this number of radial
// functions, this pass, and a table that moves with positions or not.
template <class Kind>
struct MessageBlock : Block {
    Input table;
    Output sums, moments;
    int64_t radial;

    MessageBlock(int64_t table, int64_t sums, int64_t moments, int64_t radial)
        : table{table}, sums{sums}, moments{moments}, radial(radial) {}
    std::vector<Input*> inputs() override { return {&table}; }
    std::vector<Output> outputs() const override { return {sums, moments}; }
    bool sees_geometry() const override { return true; }
    void prepare(const std::vector<Variable>& variables) override { table_moves = variables[table.var].moves; }

    void value(Run& run) override { run.geometry.radial == 8 ? kind().template values<8>(run) : kind().template values<0>(run); }
    void tangent(Run& run) override { run.geometry.radial == 8 ? moved<8>(run) : moved<0>(run); }
    void reverse(Run& run, Pass pass) override { run.geometry.radial == 8 ? reversed<8>(run, pass) : reversed<0>(run, pass); }

   private:
    bool table_moves = false;

    const Kind& kind() const { return static_cast<const Kind&>(*this); }

    template <int R>
    void moved(Run& run) const {
        table_moves ? kind().template tangents<R, true>(run) : kind().template tangents<R, false>(run);
    }

    template <int R>
    void reversed(Run& run, Pass pass) const {
        const Array t = table(run);
        if (table.sets && (pass != Pass::slopes || table_moves)) clear_rows(t.rows, t.cols, t.by(pass), t.row);
        if (pass == Pass::slopes)
            table_moves ? kind().template to_geometry<R, true>(run) : kind().template to_geometry<R, false>(run);
        else if (pass == Pass::learn)
            kind().template to_weights<R, 0>(run);
        else
            table_moves ? kind().template to_weights<R, 2>(run) : kind().template to_weights<R, 1>(run);
    }
};

struct Messages : MessageBlock<Messages> {
    using MessageBlock::MessageBlock;

    static constexpr int64_t BLOCK = 32;
    // Calls f(first atom, end, channel): a vector of channels for some atoms, whose edges stay in the cache for the next.
    template <class F>
    static void each_block(const Geometry& g, int64_t width, F f) {
        for (int64_t first = 0; first < g.atoms; first += BLOCK)
            for (int64_t c = 0; c < width; c += LANES) f(first, first + BLOCK < g.atoms ? first + BLOCK : g.atoms, c);
    }

    template <int R>
    void values(Run& run) const {
        const Geometry& g = run.geometry;
        const Array t = table(run);
        const int64_t width = sums(run).cols, edges = g.edges;
        const FourSums out = four_sums(sums(run), moments(run), &Array::y);
        each_block(g, width, [&](int64_t first, int64_t end, int64_t c) {
            const Radial<R> w(run.parameters + radial, width, c, g.radial);
            for (int64_t i = first; i < end; i++) {
                const Vector p = load(t.y + i * t.row + c);
                Four sum;
                for (int64_t e = g.row[i]; e < g.row[i + 1]; e++) {
                    const Vector a = w.times(p + load(t.y + g.sender[e] * t.row + width + c), &g.basis[e * g.radial]);
                    sum.add(a * sigmoid(a), &g.scale[e], edges);
                }
                sum.put(out, i, c);
            }
        });
    }

    template <int R, bool TABLE>
    void tangents(Run& run) const {
        const Geometry& g = run.geometry;
        const Array t = table(run);
        const int64_t width = sums(run).cols, edges = g.edges;
        const FourSums out = four_sums(sums(run), moments(run), &Array::t);
        for (int64_t c = 0; c < width; c += LANES) {
            const Radial<R> w(run.parameters + radial, width, c, g.radial);
            for (int64_t i = 0; i < g.atoms; i++) {
                const Vector p = load(t.y + i * t.row + c), p_tangent = TABLE ? load(t.t + i * t.row + c) : Vector{};
                Four sum;
                for (int64_t e = g.row[i]; e < g.row[i + 1]; e++) {
                    const int64_t j = g.sender[e] * t.row + width + c;
                    const Vector a = w.times(p + load(t.y + j), &g.basis[e * g.radial]), s = sigmoid(a);
                    Vector moved = w.times(Vector{}, &g.basis_slope[e * g.radial]) * g.r_tangent[e];
                    if (TABLE) moved += p_tangent + load(t.t + j);
                    sum.add(moved * silu_slope(a, s), &g.scale[e], edges);
                    sum.add(a * s, &g.scale_tangent[e], edges);
                }
                sum.put(out, i, c);
            }
        }
    }

    template <int R, bool TABLE>
    void to_geometry(Run& run) const {
        Geometry& g = run.geometry;
        const Array t = table(run);
        const int64_t width = sums(run).cols, edges = g.edges;
        const FourSums by = four_sums(sums(run), moments(run), &Array::h);
        for (int64_t i = 0; i < g.atoms; i++)
            for (int64_t e = g.row[i]; e < g.row[i + 1]; e++) {
                const int64_t j = g.sender[e] * t.row + width;
                const real *b = &g.basis[e * g.radial], *slope = &g.basis_slope[e * g.radial];
                Vector by_r{}, by_x{}, by_y{}, by_z{};
                for (int64_t c = 0; c < width; c += LANES) {
                    const real* weights = run.parameters + radial + c;
                    Vector a = load(t.y + i * t.row + c) + load(t.y + j + c), along{};
                    for (int n = 0; n < (R ? R : g.radial); n++) {
                        const Vector w = load(weights + n * width);
                        a += w * b[n];
                        along += w * slope[n];
                    }
                    const Vector s = sigmoid(a), m = a * s;
                    const Four h(by, i, c);
                    const Vector by_a = h.times(&g.scale[e], edges) * (s + m * (1 - s));
                    by_r += by_a * along + h.of[0] * m * g.envelope_slope[e];
                    by_x += h.of[1] * m;
                    by_y += h.of[2] * m;
                    by_z += h.of[3] * m;
                    if (TABLE) {
                        add_to(t.h + i * t.row + c, by_a);
                        add_to(t.h + j + c, by_a);
                    }
                }
                add_lane_sums(by_r, by_x, by_y, by_z, g.by(e));
            }
    }

    // TANGENTS 0: through values alone; 1: and tangents, which come from geometry; 2: and from the table too.
    template <int R, int TANGENTS>
    void to_weights(Run& run) const {
        const Geometry& g = run.geometry;
        const Array t = table(run);
        const int64_t width = sums(run).cols, edges = g.edges;
        const FourSums by_g = four_sums(sums(run), moments(run), &Array::g);
        const FourSums by_h = four_sums(sums(run), moments(run), &Array::h);
        for (int64_t c = 0; c < width; c += LANES) {
            const Radial<R> w(run.parameters + radial, width, c, g.radial);
            RadialGradient<R> gradient(run.gradient + radial, width, c, g.radial);
            for (int64_t i = 0; i < g.atoms; i++) {
                const int64_t k = i * t.row + c;
                const Vector p = load(t.y + k), p_tangent = TANGENTS > 1 ? load(t.t + k) : Vector{};
                const Four by(by_g, i, c);
                Four h;
                if (TANGENTS) h = Four(by_h, i, c);
                Vector by_p{};
                for (int64_t e = g.row[i]; e < g.row[i + 1]; e++) {
                    const int64_t j = g.sender[e] * t.row + width + c;
                    const real *b = &g.basis[e * g.radial], *slope = TANGENTS ? &g.basis_slope[e * g.radial] : nullptr;
                    const Vector a = w.times(p + load(t.y + j), b);
                    Vector by_a = by.times(&g.scale[e], edges);
                    if (!TANGENTS) {
                        by_a *= silu_slope(a, sigmoid(a));
                    } else {
                        Vector moved = w.times(Vector{}, slope) * g.r_tangent[e];
                        if (TANGENTS > 1) moved += p_tangent + load(t.t + j);
                        const Jet f = silu_jet(a);
                        const Vector by_m = h.times(&g.scale[e], edges);
                        by_a = (by_a + h.times(&g.scale_tangent[e], edges)) * f.slope + by_m * f.curvature * moved;
                        gradient.add(by_m * f.slope * g.r_tangent[e], slope);
                    }
                    gradient.add(by_a, b);
                    by_p += by_a;
                    add_to(t.g + j, by_a);
                }
                add_to(t.g + k, by_p);
            }
        }
    }
};

}  // namespace gnnscale
