// y = sqrt(1 + v.v), smooth at 0; v has three components of rows of atoms, or a tensor's five.
//
// tangent: t_y = v.t_v / y. reverse: g_v = g_y v/y, the same for h; through tangents also + h_y (t_v - v t_y/y)/y.
#pragma once

#include "../tape.h"

namespace gnnscale {

struct Length : Block {
    Input v;
    Output y;
    int64_t components = 0;

    Length(int64_t v, int64_t y) : v{v}, y{y} {}
    std::vector<Input*> inputs() override { return {&v}; }
    std::vector<Output> outputs() const override { return {y}; }
    void prepare(const std::vector<Variable>& variables) override { components = variables[v.var].m; }

    template <class F>
    void each(const Run& run, F f) {  // f(place of the first component, place in y)
        const Array in = v(run), out = y(run);
        for (int64_t i = 0; i < out.rows; i++)
            for (int64_t c = 0; c < out.cols; c++) f(i * in.row + c, i * out.row + c);
    }

    void value(Run& run) override {
        const Array in = v(run), out = y(run);
        const int64_t next = out.rows * in.row;
        each(run, [&](int64_t k, int64_t q) {
            real sum = 1;
            for (int d = 0; d < components; d++) sum += in.y[k + d * next] * in.y[k + d * next];
            out.y[q] = std::sqrt(sum);
        });
    }

    void tangent(Run& run) override {
        const Array in = v(run), out = y(run);
        const int64_t next = out.rows * in.row;
        each(run, [&](int64_t k, int64_t q) {
            real sum = 0;
            for (int d = 0; d < components; d++) sum += in.y[k + d * next] * in.t[k + d * next];
            out.t[q] = sum / out.y[q];
        });
    }

    void reverse(Run& run, Pass pass) override {
        const Array in = v(run), out = y(run);
        const int64_t next = out.rows * in.row;
        const real* by = out.by(pass);
        real* into = in.by(pass);
        const bool second = pass == Pass::learn_slopes;
        each(run, [&](int64_t k, int64_t q) {
            const real inverse = 1 / out.y[q];
            real of_value = by[q] * inverse, of_tangent = 0;
            if (second) {
                of_tangent = out.h[q] * inverse;
                of_value -= of_tangent * out.t[q] * inverse;
            }
            for (int d = 0; d < components; d++) {
                const int64_t p = k + d * next;
                const real sum = of_value * in.y[p] + (second ? of_tangent * in.t[p] : 0);
                into[p] = v.sets ? sum : into[p] + sum;
            }
        });
    }
};

}  // namespace gnnscale
