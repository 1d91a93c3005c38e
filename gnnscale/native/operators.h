// Blocks as functions of their own, for networks that are written in Python: values, derivatives, and derivatives of these.
//
// Let y = f(x), and by_x = g . df/dx the derivative of a loss with g = dL/dy. The second derivative meets by_x with some u,
// of x's shape: it is the derivative of u . by_x = g . t, where t = df/dx . u is the tangent of y along u. So its derivative
// by g is t itself, and its derivative by x comes back through t while g is held. In each function here the last method is
// that: operands x, their tangents u, derivatives g of the results -> tangents of the results, derivatives by operands.
//
// Messages: a = P_i + Q_j + W_r b, m = SiLU(a), S_q = sum over j of scale_q m, for four scales q (blocks/messages.h).
// reverse: g_m = sum_q scale_q g_Sq; g_a = g_m SiLU'; by P_i, Q_j: g_a; by b: W_r^T g_a; by W_r: g_a b^T; by scale_q: g_Sq . m.
// second: t_a = u_P + u_Q + W_r u_b + u_W b; t_m = SiLU' t_a; t_Sq = sum u_scale_q m + scale_q t_m. With h for derivatives by
// tangents: h_m = sum_q scale_q g_Sq, g_m = sum_q u_scale_q g_Sq; h_a = h_m SiLU'; g_a = g_m SiLU' + h_m SiLU'' t_a;
// by b: W_r^T g_a + u_W^T h_a; by W_r: g_a b^T + h_a u_b^T; by scale_q: g_Sq . t_m.
// With a second matrix on each edge, y = W_2 SiLU(a) + b_2 and m = SiLU(y): the same twice, and between the two x = SiLU(a),
// t_y = W_2 t_x + u_W2 x + u_b2; h_x = W_2^T h_y; g_x = W_2^T g_y + u_W2^T h_y; by W_2: g_y x^T + h_y t_x^T; by b_2: g_y.
//
// Edges come in tiles: nothing of the size edges x width is ever held, and all sums have one order.
#pragma once

#include "blocks/edge_messages.h"

namespace gnnscale {

struct EdgeList {
    int64_t atoms, edges, width, radial;  // the width is a multiple of PAD
    const int64_t *receivers, *senders;   // ascending by receiver
};

// The operands of messages, tangents along them, or derivatives by them; `second` is null where there is no such matrix.
struct Operands {
    real *table, *basis, *scale, *radial, *second, *bias;  // (A, 2W) P|Q, (E, R), (4, E), (R, W), (W, W), (W)
};

class MessageSums {
   public:
    MessageSums(const EdgeList& graph, const Operands& operands)
        : g(graph), x(operands), width(graph.width), edges(graph.edges) {}

    // Finds the edges of each atom; false if an index is out of range or out of order.
    bool find_edges() {
        row.resize(g.atoms + 1);
        int64_t e = 0;
        for (int64_t i = 0; i < g.atoms; i++)
            for (row[i] = e; e < edges && g.receivers[e] == i; e++)
                if (g.senders[e] < 0 || g.senders[e] >= g.atoms) return false;
        row[g.atoms] = edges;
        return e == edges;
    }

    void values(real* sums) const {
        clear(sums, 4 * g.atoms * width);
        if (x.second)
            g.radial == 8 ? with_second<8>(sums) : with_second<0>(sums);
        else
            g.radial == 8 ? without_second<8>(sums) : without_second<0>(sums);
    }
    // Derivatives by all operands, by basis and scale only if there is room for them.
    void reverse(const real* by_sums, const Operands& by) const { reverse<false>({}, by_sums, nullptr, by); }
    void second_reverse(const Operands& u, const real* by_sums, real* tangents, const Operands& by) const {
        clear(tangents, 4 * g.atoms * width);
        reverse<true>(u, by_sums, tangents, by);
    }

   private:
    static constexpr int64_t TILE = EdgeMessages::TILE;

    const EdgeList g;
    const Operands x;
    const int64_t width, edges;
    std::vector<int64_t> row;

    // What a message gives back to the argument of its SiLU, g and h; and what the derivative by its scales sees.
    struct Returned {
        Vector g, h, seen;
    };

    // A tile's arrays over edges; where there are two passes, values and tangents or g and h lie one after the other.
    struct Tile {
        int64_t begin, end;
        real *x, *y, *slope, *bend, *seen;

        int64_t place(int64_t e, int64_t width) const { return (e - begin) * width; }
    };

    static void clear(real* p, int64_t n) { std::memset(p, 0, sizeof(real) * n); }
    FourSums four(const real* sums) const {
        real* all = const_cast<real*>(sums);
        const auto rows = [&](int64_t from, int64_t components) {
            return Array{all + from * width, nullptr, nullptr, nullptr, components * g.atoms, width, width};
        };
        FourSums places(rows(0, 1), &Array::y);
        places.set(1, 3, rows(g.atoms, 3), &Array::y);
        return places;
    }
    const real* of_receiver(const real* table, int64_t i) const { return table + i * 2 * width; }
    const real* of_sender(const real* table, int64_t e) const { return table + g.senders[e] * 2 * width + width; }
    real* of_receiver(real* table, int64_t i) const { return table + i * 2 * width; }
    real* of_sender(real* table, int64_t e) const { return table + g.senders[e] * 2 * width + width; }

    static real* aligned_room(int64_t numbers) {  // of this thread, kept for its next call
        static thread_local std::vector<real> room;
        room.resize(numbers + PAD);
        return room.data() + (64 - ((uintptr_t)room.data() & 63)) % 64 / sizeof(real);
    }

    template <class F>
    void each_tile(F f) const {
        real* at = aligned_room(7 * TILE * width);
        for (int64_t begin = 0, n = TILE * width; begin < edges; begin += TILE)
            f(Tile{begin, begin + TILE < edges ? begin + TILE : edges, at, at + 2 * n, at + 4 * n, at + 5 * n, at + 6 * n});
    }

    // Calls f(atom, first edge, end) for every atom that has edges in a tile.
    template <class F>
    void each_atom(const Tile& tile, F f) const {
        for (int64_t e = tile.begin, next; e < tile.end; e = next) {
            const int64_t i = g.receivers[e];
            next = row[i + 1] < tile.end ? row[i + 1] : tile.end;
            f(i, e, next);
        }
    }

    template <int R>
    Radial<R> radial_weights(const real* weights, int64_t c) const {
        return Radial<R>(weights, width, c, g.radial);
    }

    // ----------------------------------------------------------------------------------------------------------- values
    template <int R>
    void without_second(real* sums) const {
        const FourSums out = four(sums);
        each_tile([&](const Tile& tile) {
            for (int64_t c = 0; c < width; c += LANES) {
                const auto w = radial_weights<R>(x.radial, c);
                each_atom(tile, [&](int64_t i, int64_t first, int64_t end) {
                    const Vector p = load(of_receiver(x.table, i) + c);
                    Four sum(out, i, c);
                    for (int64_t e = first; e < end; e++) {
                        const Vector a = w.times(p + load(of_sender(x.table, e) + c), x.basis + e * g.radial);
                        sum.add(a * sigmoid(a), x.scale + e, edges);
                    }
                    sum.put(out, i, c);
                });
            }
        });
    }

    template <int R>
    void with_second(real* sums) const {
        const FourSums out = four(sums);
        each_tile([&](const Tile& tile) {
            for (int64_t c = 0; c < width; c += LANES) {
                const auto w = radial_weights<R>(x.radial, c);
                each_atom(tile, [&](int64_t i, int64_t first, int64_t end) {
                    const Vector p = load(of_receiver(x.table, i) + c);
                    for (int64_t e = first; e < end; e++) {
                        const Vector a = w.times(p + load(of_sender(x.table, e) + c), x.basis + e * g.radial);
                        store(tile.x + tile.place(e, width) + c, a * sigmoid(a));
                    }
                });
            }
            product_nt(tile.end - tile.begin, width, width, tile.x, width, x.second, width, false, tile.y, width);
            for (int64_t c = 0; c < width; c += LANES) {
                const Vector b = load(x.bias + c);
                each_atom(tile, [&](int64_t i, int64_t first, int64_t end) {
                    Four sum(out, i, c);
                    for (int64_t e = first; e < end; e++) {
                        const Vector a = load(tile.y + tile.place(e, width) + c) + b;
                        sum.add(a * sigmoid(a), x.scale + e, edges);
                    }
                    sum.put(out, i, c);
                });
            }
        });
    }

    // ---------------------------------------------------------------------------------------------------------- reverse
    template <bool TANGENTS>
    void reverse(const Operands& u, const real* by_sums, real* tangents, const Operands& by) const {
        clear(by.table, g.atoms * 2 * width);
        clear(by.radial, g.radial * width);
        if (!x.second) {
            g.radial == 8 ? reverse_without<8, TANGENTS>(u, by_sums, tangents, by)
                          : reverse_without<0, TANGENTS>(u, by_sums, tangents, by);
            return;
        }
        clear(by.second, width * width);
        clear(by.bias, width);
        g.radial == 8 ? reverse_with<8, TANGENTS>(u, by_sums, tangents, by)
                      : reverse_with<0, TANGENTS>(u, by_sums, tangents, by);
    }

    // Takes one message of argument a, with tangent t, to its place in the tangents of sums, and back.
    template <bool TANGENTS>
    Returned through_message(Vector a, Vector t, int64_t e, const Operands& u, const Four& by, Four& sum) const {
        if constexpr (TANGENTS) {
            const Jet f = silu_jet(a);
            const Vector h = by.times(x.scale + e, edges), moved = f.slope * t;
            sum.add(f.value, u.scale + e, edges);
            sum.add(moved, x.scale + e, edges);
            return {by.times(u.scale + e, edges) * f.slope + h * f.curvature * t, h * f.slope, moved};
        }
        const Vector s = sigmoid(a);
        return {by.times(x.scale + e, edges) * silu_slope(a, s), Vector{}, a * s};
    }

    template <int R, bool TANGENTS>
    void reverse_without(const Operands& u, const real* by_sums, real* tangents, const Operands& by) const {
        const FourSums given = four(by_sums), out = four(tangents);
        each_tile([&](const Tile& tile) {
            const int64_t other = (tile.end - tile.begin) * width;  // from g to h
            for (int64_t c = 0; c < width; c += LANES) {
                const auto w = radial_weights<R>(x.radial, c), w_tangent = radial_weights<R>(TANGENTS ? u.radial : x.radial, c);
                RadialGradient<R> gradient(by.radial, width, c, g.radial);
                each_atom(tile, [&](int64_t i, int64_t first, int64_t end) {
                    const Vector p = load(of_receiver(x.table, i) + c);
                    const Vector p_tangent = TANGENTS ? load(of_receiver(u.table, i) + c) : Vector{};
                    const Four by_sum(given, i, c);
                    Four sum;
                    if (TANGENTS) sum = Four(out, i, c);
                    Vector by_p{};
                    for (int64_t e = first; e < end; e++) {
                        const real *b = x.basis + e * g.radial, *b_tangent = TANGENTS ? u.basis + e * g.radial : b;
                        const Vector a = w.times(p + load(of_sender(x.table, e) + c), b);
                        Vector t{};
                        if (TANGENTS)
                            t = w.times(p_tangent, b_tangent) + w_tangent.times(load(of_sender(u.table, e) + c), b);
                        const Returned back = through_message<TANGENTS>(a, t, e, u, by_sum, sum);
                        gradient.add(back.g, b);
                        if (TANGENTS) gradient.add(back.h, b_tangent);
                        by_p += back.g;
                        add_to(of_sender(by.table, e) + c, back.g);
                        if (!by.basis) continue;
                        real* place = tile.y + tile.place(e, width) + c;
                        store(place, back.g);
                        if (TANGENTS) store(place + other, back.h);
                        store(tile.seen + tile.place(e, width) + c, back.seen);
                    }
                    add_to(of_receiver(by.table, i) + c, by_p);
                    if (TANGENTS) sum.put(out, i, c);
                });
            }
            if (by.basis) to_edges<TANGENTS>(tile, tile.y, u, given, by);
        });
    }

    template <int R, bool TANGENTS>
    void reverse_with(const Operands& u, const real* by_sums, real* tangents, const Operands& by) const {
        const FourSums given = four(by_sums), out = four(tangents);
        each_tile([&](const Tile& tile) {
            const int64_t n = tile.end - tile.begin, other = n * width;  // from values to tangents, from g to h
            const int64_t rows = TANGENTS ? 2 * n : n;
            first_matrix<R, TANGENTS>(tile, u);
            product_nt(rows, width, width, tile.x, width, x.second, width, false, tile.y, width);
            if (TANGENTS) product_nt(n, width, width, tile.x, width, u.second, width, true, tile.y + other, width);
            for (int64_t c = 0; c < width; c += LANES) {
                const Vector bias = load(x.bias + c), bias_tangent = TANGENTS ? load(u.bias + c) : Vector{};
                Vector by_bias{};
                each_atom(tile, [&](int64_t i, int64_t first, int64_t end) {
                    const Four by_sum(given, i, c);
                    Four sum;
                    if (TANGENTS) sum = Four(out, i, c);
                    for (int64_t e = first; e < end; e++) {
                        real* place = tile.y + tile.place(e, width) + c;
                        const Vector t = TANGENTS ? load(place + other) + bias_tangent : Vector{};
                        const Returned back = through_message<TANGENTS>(load(place) + bias, t, e, u, by_sum, sum);
                        by_bias += back.g;
                        store(place, back.g);
                        if (TANGENTS) store(place + other, back.h);
                        store(tile.seen + tile.place(e, width) + c, back.seen);
                    }
                    if (TANGENTS) sum.put(out, i, c);
                });
                add_to(by.bias + c, by_bias);
            }
            product_tn(width, width, rows, tile.y, width, tile.x, width, true, by.second, width);
            product_nn(rows, width, width, tile.y, width, x.second, width, false, tile.x, width);
            if (TANGENTS) product_nn(n, width, width, tile.y + other, width, u.second, width, true, tile.x, width);
            reverse_first<R, TANGENTS>(tile, u, by);
            if (by.basis) to_edges<TANGENTS>(tile, tile.x, u, given, by);
        });
    }

    // Fills a tile's x with SiLU(a) and its tangent, and keeps what the way back needs.
    template <int R, bool TANGENTS>
    void first_matrix(const Tile& tile, const Operands& u) const {
        const int64_t other = (tile.end - tile.begin) * width;
        for (int64_t c = 0; c < width; c += LANES) {
            const auto w = radial_weights<R>(x.radial, c), w_tangent = radial_weights<R>(TANGENTS ? u.radial : x.radial, c);
            each_atom(tile, [&](int64_t i, int64_t first, int64_t end) {
                const Vector p = load(of_receiver(x.table, i) + c);
                const Vector p_tangent = TANGENTS ? load(of_receiver(u.table, i) + c) : Vector{};
                for (int64_t e = first; e < end; e++) {
                    const int64_t place = tile.place(e, width) + c;
                    const real* b = x.basis + e * g.radial;
                    const Jet f = silu_jet(w.times(p + load(of_sender(x.table, e) + c), b));
                    store(tile.x + place, f.value);
                    store(tile.slope + place, f.slope);
                    if (!TANGENTS) continue;
                    const Vector t = w.times(p_tangent, u.basis + e * g.radial) +
                                     w_tangent.times(load(of_sender(u.table, e) + c), b);
                    store(tile.x + place + other, t * f.slope);
                    store(tile.bend + place, t * f.curvature);
                }
            });
        }
    }

    // Turns derivatives by SiLU(a) in a tile's x into those by a, and hands them on to the table and to W_r.
    template <int R, bool TANGENTS>
    void reverse_first(const Tile& tile, const Operands& u, const Operands& by) const {
        const int64_t other = (tile.end - tile.begin) * width;
        for (int64_t c = 0; c < width; c += LANES) {
            RadialGradient<R> gradient(by.radial, width, c, g.radial);
            each_atom(tile, [&](int64_t i, int64_t first, int64_t end) {
                Vector by_p{};
                for (int64_t e = first; e < end; e++) {
                    const int64_t place = tile.place(e, width) + c;
                    const Vector slope = load(tile.slope + place);
                    Vector by_a = load(tile.x + place) * slope;
                    if (TANGENTS) {
                        const Vector h = load(tile.x + place + other);
                        by_a += h * load(tile.bend + place);
                        store(tile.x + place + other, h * slope);
                        gradient.add(h * slope, u.basis + e * g.radial);
                    }
                    store(tile.x + place, by_a);
                    gradient.add(by_a, x.basis + e * g.radial);
                    by_p += by_a;
                    add_to(of_sender(by.table, e) + c, by_a);
                }
                add_to(of_receiver(by.table, i) + c, by_p);
            });
        }
    }

    // Sets the derivatives by basis and scale, from those by a, (n, W) and after it those by its tangent.
    template <bool TANGENTS>
    void to_edges(const Tile& tile, const real* by_a, const Operands& u, const FourSums& given, const Operands& by) const {
        const int64_t other = (tile.end - tile.begin) * width;
        for (int64_t e = tile.begin; e < tile.end; e++) {
            const int64_t place = tile.place(e, width), i = g.receivers[e];
            const real* rows[4];
            for (int k = 0; k < 4; k++) rows[k] = given.at(k, i, 0);
            real dots[4] = {};
            add_dots(rows, tile.seen + place, dots);
            for (int k = 0; k < 4; k++) by.scale[k * edges + e] = dots[k];
            for (int64_t n = 0; n < g.radial; n += 4) {
                const int64_t left = g.radial - n < 4 ? g.radial - n : 4;
                real sums[4] = {};
                for (int k = 0; k < 4; k++) rows[k] = x.radial + (n + (k < left ? k : 0)) * width;
                add_dots(rows, by_a + place, sums);
                if (TANGENTS) {
                    for (int k = 0; k < 4; k++) rows[k] += u.radial - x.radial;
                    add_dots(rows, by_a + place + other, sums);
                }
                for (int64_t k = 0; k < left; k++) by.basis[e * g.radial + n + k] = sums[k];
            }
        }
    }

    // Adds the scalar products of v with four rows.
    void add_dots(const real* const* rows, const real* v, real* dots) const {
        Vector sum[4] = {};
        for (int64_t c = 0; c < width; c += LANES) {
            const Vector a = load(v + c);
            for (int k = 0; k < 4; k++) sum[k] += a * load(rows[k] + c);
        }
        add_lane_sums(sum[0], sum[1], sum[2], sum[3], dots);
    }
};

// The functions of the distance r of an edge that geometry.h describes, with their first and second derivatives.
//
// w'' and z'' = (w'' - 2 z')/r; b_n = N sin(k r)/r has b' = k N cos(k r)/r - b/r and b'' = -k^2 b - 2 b'/r.
struct Distance {
    real r, inverse, w[3], z[3], sine, cosine, step, norm;

    Distance(real distance, real sine, real cosine, real cutoff, real factor)
        : r(distance), inverse(1 / distance), sine(sine), cosine(cosine), step((real)M_PI / cutoff),
          norm(std::sqrt((real)2 / 3) * cutoff * inverse) {
        const real q = r / cutoff, cube = q * q * q, below = 1 - cube * q, rest = below < 0 ? 0 : below;
        w[0] = factor * rest * rest * rest;
        w[1] = -12 * factor * cube / cutoff * rest * rest;
        w[2] = factor * q * q / (cutoff * cutoff) * rest * (96 * cube * q - 36 * rest);
        z[0] = w[0] * inverse;
        z[1] = (w[1] - z[0]) * inverse;
        z[2] = (w[2] - 2 * z[1]) * inverse;
    }

    // Calls f(n, b, b', b'') for every radial function; sin and cos of n t follow by f(n + 1) = 2 cos t f(n) - f(n - 1).
    template <class F>
    void each_radial(int64_t count, F f) const {
        const real twice = 2 * cosine;
        real before_s = 0, s = sine * norm, before_c = norm, c = cosine * norm;
        for (int64_t n = 0; n < count; n++) {
            const real k = (n + 1) * step, slope = k * c - s * inverse;
            f(n, s, slope, -k * k * s - 2 * slope * inverse);
            const real next_s = twice * s - before_s, next_c = twice * c - before_c;
            before_s = s;
            s = next_s;
            before_c = c;
            c = next_c;
        }
    }
};

// Basis b and scale (w and z v) of vectors v. reverse: s = sum g_b b' + g_w w' + z' (g.v); by v: s v/r + z g.
// second: with t_r = u.v/r, tangents b' t_r, w' t_r and z' t_r v + z u; with s' the same as s of second derivatives,
// by v: (t_r (s' - s/r) + z' (g.u)) v/r + s u/r + z' t_r g.
struct EdgeVectors {
    int64_t edges, radial;
    real cutoff, factor;
    const real* v;  // (E, 3)

    // Calls f(edge, its vector, its distance) for every edge.
    template <class F>
    void each_edge(F f) const {
        constexpr int64_t BLOCK = 128;
        real r[BLOCK], sine[BLOCK], cosine[BLOCK];
        const real step = (real)M_PI / cutoff;
        for (int64_t begin = 0; begin < edges; begin += BLOCK) {
            const int64_t count = begin + BLOCK < edges ? BLOCK : edges - begin;
            const real* d = v + 3 * begin;
            for (int64_t k = 0; k < count; k++)
                r[k] = std::sqrt(d[3 * k] * d[3 * k] + d[3 * k + 1] * d[3 * k + 1] + d[3 * k + 2] * d[3 * k + 2]);
            for (int64_t k = 0; k < count; k++) sine_cosine(r[k] * step, sine[k], cosine[k]);
            for (int64_t k = 0; k < count; k++)
                f(begin + k, d + 3 * k, Distance(r[k], sine[k], cosine[k], cutoff, factor));
        }
    }

    void values(real* basis, real* scale) const {
        each_edge([&](int64_t e, const real* d, const Distance& at) {
            at.each_radial(radial, [&](int64_t n, real b, real, real) { basis[e * radial + n] = b; });
            scale[e] = at.w[0];
            for (int c = 0; c < 3; c++) scale[(c + 1) * edges + e] = at.z[0] * d[c];
        });
    }

    void reverse(const real* by_basis, const real* by_scale, real* by) const {
        each_edge([&](int64_t e, const real* d, const Distance& at) {
            real slope = by_scale[e] * at.w[1];
            at.each_radial(radial, [&](int64_t n, real, real first, real) { slope += by_basis[e * radial + n] * first; });
            for (int c = 0; c < 3; c++) slope += by_scale[(c + 1) * edges + e] * d[c] * at.z[1];
            for (int c = 0; c < 3; c++) by[3 * e + c] = slope * at.inverse * d[c] + at.z[0] * by_scale[(c + 1) * edges + e];
        });
    }

    void second_reverse(const real* u, const real* by_basis, const real* by_scale, real* t_basis, real* t_scale,
                        real* by) const {
        each_edge([&](int64_t e, const real* d, const Distance& at) {
            const real* t = u + 3 * e;
            real g[3], moved = 0, along = 0, met = 0;  // t_r, g.v, g.u
            for (int c = 0; c < 3; c++) {
                g[c] = by_scale[(c + 1) * edges + e];
                moved += t[c] * d[c] * at.inverse;
                along += g[c] * d[c];
                met += g[c] * t[c];
            }
            real slope = by_scale[e] * at.w[1] + at.z[1] * along, curvature = by_scale[e] * at.w[2] + at.z[2] * along;
            at.each_radial(radial, [&](int64_t n, real, real first, real second) {
                slope += by_basis[e * radial + n] * first;
                curvature += by_basis[e * radial + n] * second;
                t_basis[e * radial + n] = first * moved;
            });
            t_scale[e] = at.w[1] * moved;
            const real by_r = moved * (curvature - slope * at.inverse) + at.z[1] * met;
            for (int c = 0; c < 3; c++) {
                t_scale[(c + 1) * edges + e] = at.z[1] * moved * d[c] + at.z[0] * t[c];
                by[3 * e + c] = (by_r * d[c] + slope * t[c]) * at.inverse + at.z[1] * moved * g[c];
            }
        });
    }
};

// --------------------------------------------------------------------------------------- rows of any number of channels
static inline Vector load_some(const real* p, int64_t count) {
    if (count >= LANES) return load(p);
    Vector v{};
    std::memcpy(&v, p, sizeof(real) * count);
    return v;
}
static inline void store_some(real* p, Vector v, int64_t count) {
    if (count >= LANES) return store(p, v);
    std::memcpy(p, &v, sizeof(real) * count);
}

// Calls f(place, how many are left) for every vector of n numbers.
template <class F>
static inline void each_vector(int64_t n, F f) {
    for (int64_t k = 0; k < n; k += LANES) f(k, n - k);
}

static inline real dot_some(int64_t n, const real* a, const real* b) {
    Vector sum{};
    each_vector(n, [&](int64_t c, int64_t count) { sum += load_some(a + c, count) * load_some(b + c, count); });
    return lane_sum(sum);
}

// y = x n with n = (x.x/W + eps)^(-1/2), for each row; the formulas are those of blocks/norm.h, with g for h and u for t.
struct RowNorm {
    int64_t rows, width;
    const real* x;

    // Calls f(first number of a row, its 1/rms).
    template <class F>
    void each_row(F f) const {
        for (int64_t k = 0; k < rows * width; k += width)
            f(k, 1 / std::sqrt(dot_some(width, x + k, x + k) / width + Norm::EPS));
    }
    void values(real* y) const {
        each_row([&](int64_t k, real n) {
            each_vector(width, [&](int64_t c, int64_t count) { store_some(y + k + c, load_some(x + k + c, count) * n, count); });
        });
    }

    // n (g - y (y.g)/W), which is symmetric: also the tangent along g
    void reverse(const real* g, real* by) const {
        each_row([&](int64_t k, real n) {
            const real of_x = n * n * dot_some(width, g + k, x + k) / width;
            each_vector(width, [&](int64_t c, int64_t count) {
                const Vector sum = load_some(g + k + c, count) - load_some(x + k + c, count) * of_x;
                store_some(by + k + c, sum * n, count);
            });
        });
    }

    void second_reverse(const real* u, const real* g, real* tangent, real* by) const {
        reverse(u, tangent);
        each_row([&](int64_t k, real n) {
            const real factor = -n * n * n / width;
            const real gu = dot_some(width, g + k, u + k), gx = dot_some(width, g + k, x + k), xu = dot_some(width, x + k, u + k);
            const real of_x = gu - 3 * n * n * gx * xu / width;
            each_vector(width, [&](int64_t c, int64_t count) {
                const Vector sum = load_some(x + k + c, count) * of_x + load_some(g + k + c, count) * xu +
                                   load_some(u + k + c, count) * gx;
                store_some(by + k + c, sum * factor, count);
            });
        });
    }
};

#pragma GCC visibility push(default)
extern "C" {

// 0: an index is out of range, or receivers do not ascend.
int64_t native_op_message_sums(const EdgeList* graph, const Operands* x, real* sums) {
    MessageSums messages(*graph, *x);
    if (!messages.find_edges()) return 0;
    messages.values(sums);
    return 1;
}

int64_t native_op_message_sums_backward(const EdgeList* graph, const Operands* x,
                                        const real* by_sums, const Operands* by) {
    MessageSums messages(*graph, *x);
    if (!messages.find_edges()) return 0;
    messages.reverse(by_sums, *by);
    return 1;
}

int64_t native_op_message_sums_double_backward(const EdgeList* graph, const Operands* u,
                                               const real* by_sums, const Operands* x,
                                               real* tangents, const Operands* by) {
    MessageSums messages(*graph, *x);
    if (!messages.find_edges()) return 0;
    messages.second_reverse(*u, by_sums, tangents, *by);
    return 1;
}

void native_op_edge_geometry(int64_t edges, int64_t radial, double cutoff, double factor, const real* v,
                             real* basis, real* scale) {
    EdgeVectors{edges, radial, (real)cutoff, (real)factor, v}.values(basis, scale);
}

void native_op_edge_geometry_backward(int64_t edges, int64_t radial, double cutoff, double factor,
                                      const real* by_basis, const real* by_scale,
                                      const real* v, real* by) {
    EdgeVectors{edges, radial, (real)cutoff, (real)factor, v}.reverse(by_basis, by_scale, by);
}

void native_op_edge_geometry_double_backward(int64_t edges, int64_t radial, double cutoff, double factor,
                                             const real* u, const real* by_basis,
                                             const real* by_scale, const real* v,
                                             real* t_basis, real* t_scale, real* by) {
    EdgeVectors{edges, radial, (real)cutoff, (real)factor, v}.second_reverse(
        u, by_basis, by_scale, t_basis, t_scale, by);
}

void native_op_rms_norm(int64_t rows, int64_t width, const real* x, real* y) {
    RowNorm{rows, width, x}.values(y);
}
void native_op_rms_norm_backward(int64_t rows, int64_t width, const real* g, const real* x,
                                 real* by) {
    RowNorm{rows, width, x}.reverse(g, by);
}
void native_op_rms_norm_double_backward(int64_t rows, int64_t width, const real* u, const real* g,
                                        const real* x, real* tangent, real* by) {
    RowNorm{rows, width, x}.second_reverse(u, g, tangent, by);
}

void native_op_silu(int64_t rows, int64_t width, const real* x, real* y) {
    each_vector(rows * width, [&](int64_t k, int64_t count) {
        const Vector a = load_some(x + k, count);
        store_some(y + k, a * sigmoid(a), count);
    });
}
void native_op_silu_backward(int64_t rows, int64_t width, const real* g, const real* x,
                             real* by) {
    each_vector(rows * width, [&](int64_t k, int64_t count) {
        const Vector a = load_some(x + k, count);
        store_some(by + k, load_some(g + k, count) * silu_slope(a, sigmoid(a)), count);
    });
}
void native_op_silu_double_backward(int64_t rows, int64_t width, const real* u, const real* g,
                                    const real* x, real* tangent, real* by) {
    each_vector(rows * width, [&](int64_t k, int64_t count) {
        const Jet f = silu_jet(load_some(x + k, count));
        const Vector t = load_some(u + k, count);
        store_some(tangent + k, t * f.slope, count);
        store_some(by + k, t * load_some(g + k, count) * f.curvature, count);
    });
}

// sums[index[k]] += x[k], in the order of rows; 0 if an index is out of range.
int64_t native_op_sum_rows(int64_t rows, int64_t count, int64_t width, const int64_t* index, const real* x,
                           real* sums) {
    std::memset(sums, 0, sizeof(real) * count * width);
    for (int64_t k = 0; k < rows; k++) {
        if (index[k] < 0 || index[k] >= count) return 0;
        real* sum = sums + index[k] * width;
        for (int64_t c = 0; c < width; c++) sum[c] += x[k * width + c];
    }
    return 1;
}

}  // extern "C"
#pragma GCC visibility pop

}  // namespace gnnscale
