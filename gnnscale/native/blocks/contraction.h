// y = f(p) with p = V^T T V and f(p) = p (1 + p^2)^(-1/3); V has three components of rows of atoms, T the five of tensors.
//
// p = sum_k T_k Y_2k(V), by quadratic_forms.h. With s = dp/dV, linear in V and T, and Y = dp/dT:
// tangent: t_p = Y.t_T + s.t_V; t_y = f' t_p. reverse: g_p = g_y f', g_V = g_p s, g_T = g_p Y; the same for h; through tangents
// also + h_y f'' t_p in g_p, and h_p = h_y f' times the derivatives of t_p: s(t_V, T) + s(V, t_T) by V, Y(V, t_V) by T.
#pragma once

#include "../tape.h"

namespace gnnscale {

struct Contraction : Block {
    Input v, t;
    Output y;

    Contraction(int64_t v, int64_t t, int64_t y) : v{v}, t{t}, y{y} {}
    std::vector<Input*> inputs() override { return {&v, &t}; }
    std::vector<Output> outputs() const override { return {y}; }

    void value(Run& run) override {
        each(run, [&](int64_t i, int64_t c) {
            const Point at(take<3>(v(run), &Array::y, i, c), take<5>(t(run), &Array::y, i, c));
            *place(y(run), &Array::y, i, c) = at.p / std::cbrt(1 + at.p * at.p);
        });
    }

    void tangent(Run& run) override {
        each(run, [&](int64_t i, int64_t c) {
            const Point at(take<3>(v(run), &Array::y, i, c), take<5>(t(run), &Array::y, i, c));
            const real moved = at.along(take<3>(v(run), &Array::t, i, c), take<5>(t(run), &Array::t, i, c));
            *place(y(run), &Array::t, i, c) = Slopes(at.p, *place(y(run), &Array::y, i, c)).first * moved;
        });
    }

    void reverse(Run& run, Pass pass) override {
        real* Array::*by = pass == Pass::slopes ? &Array::h : &Array::g;
        each(run, [&](int64_t i, int64_t c) {
            const Three a = take<3>(v(run), &Array::y, i, c);
            const Five b = take<5>(t(run), &Array::y, i, c);
            const Point at(a, b);
            const Slopes f(at.p, *place(y(run), &Array::y, i, c));
            real by_p = *place(y(run), by, i, c) * f.first;
            Three by_v{};
            Five by_t{};
            if (pass == Pass::learn_slopes) {
                const Three a_moved = take<3>(v(run), &Array::t, i, c);
                const Five b_moved = take<5>(t(run), &Array::t, i, c);
                const real h = *place(y(run), &Array::h, i, c);
                by_p += h * f.second * at.along(a_moved, b_moved);
                Three first, second;
                quadratic_slopes(a_moved.of, b.of, first.of);
                quadratic_slopes(a.of, b_moved.of, second.of);
                quadratic_tangents(a.of, a_moved.of, by_t.of);
                for (int k = 0; k < 3; k++) by_v.of[k] = h * f.first * (first.of[k] + second.of[k]);
                for (int k = 0; k < 5; k++) by_t.of[k] *= h * f.first;
            }
            for (int k = 0; k < 3; k++) by_v.of[k] += by_p * at.by_v.of[k];
            for (int k = 0; k < 5; k++) by_t.of[k] += by_p * at.forms.of[k];
            put(by_v, v, run, by, i, c);
            put(by_t, t, run, by, i, c);
        });
    }

   private:
    template <int N>
    struct Components {
        real of[N] = {};
    };
    using Three = Components<3>;
    using Five = Components<5>;

    struct Point {
        real p = 0;
        Three by_v;
        Five forms;

        Point(const Three& v, const Five& t) {
            quadratic_forms(v.of, forms.of);
            quadratic_slopes(v.of, t.of, by_v.of);
            for (int k = 0; k < 5; k++) p += t.of[k] * forms.of[k];
        }
        real along(const Three& v, const Five& t) const {  // the tangent of p
            real sum = 0;
            for (int k = 0; k < 3; k++) sum += by_v.of[k] * v.of[k];
            for (int k = 0; k < 5; k++) sum += forms.of[k] * t.of[k];
            return sum;
        }
    };

    // f'(p) and f''(p), from f(p) and without another root.
    struct Slopes {
        real first, second;

        Slopes(real p, real f) {
            const real root = p == 0 ? 1 : f / p, inverse = 1 / (1 + p * p);
            first = root * inverse * (1 + p * p / 3);
            second = -2 * p * root * inverse * inverse * (1 + p * p / 9);
        }
    };

    template <class F>
    void each(const Run& run, F f) const {
        for (int64_t i = 0; i < y(run).rows; i++)
            for (int64_t c = 0; c < y(run).cols; c++) f(i, c);
    }
    static real* place(const Array& array, real* Array::*part, int64_t i, int64_t c) {
        return array.*part + i * array.row + c;
    }
    template <int N>
    static Components<N> take(const Array& array, real* Array::*part, int64_t i, int64_t c) {
        Components<N> found;
        for (int k = 0; k < N; k++) found.of[k] = *place(array, part, i + k * (array.rows / N), c);
        return found;
    }
    template <int N>
    static void put(const Components<N>& sums, const Input& x, const Run& run, real* Array::*by, int64_t i, int64_t c) {
        for (int k = 0; k < N; k++) {
            real* to = place(x(run), by, i + k * (x(run).rows / N), c);
            *to = sums.of[k] + (x.sets ? 0 : *to);
        }
    }
};

}  // namespace gnnscale
