// y = x sigmoid(x).
//
// tangent: t_y = s'(x) t_x. reverse: g_x = g_y s'(x), the same for h; through tangents also + h_y s''(x) t_x.
#pragma once

#include "../tape.h"

namespace gnnscale {

struct Silu : Block {
    Input x;
    Output y;

    Silu(int64_t x, int64_t y) : x{x}, y{y} {}
    std::vector<Input*> inputs() override { return {&x}; }
    std::vector<Output> outputs() const override { return {y}; }

    template <class F>
    void each(const Run& run, F f) {  // f(place in x, place in y) of every vector
        const Array in = x(run), out = y(run);
        for (int64_t i = 0; i < in.rows; i++)
            for (int64_t c = 0; c < in.cols; c += LANES) f(i * in.row + c, i * out.row + c);
    }

    void value(Run& run) override {
        const Array in = x(run), out = y(run);
        each(run, [&](int64_t k, int64_t q) {
            const Vector a = load(in.y + k);
            store(out.y + q, a * sigmoid(a));
        });
    }

    void tangent(Run& run) override {
        const Array in = x(run), out = y(run);
        each(run, [&](int64_t k, int64_t q) {
            const Vector a = load(in.y + k);
            store(out.t + q, silu_slope(a, sigmoid(a)) * load(in.t + k));
        });
    }

    void reverse(Run& run, Pass pass) override {
        const Array in = x(run), out = y(run);
        const real* by = out.by(pass);
        real* into = in.by(pass);
        each(run, [&](int64_t k, int64_t q) {
            Vector sum;
            if (pass == Pass::learn_slopes) {
                const Jet f = silu_jet(load(in.y + k));
                sum = load(by + q) * f.slope + load(out.h + q) * f.curvature * load(in.t + k);
            } else {
                const Vector a = load(in.y + k);
                sum = load(by + q) * silu_slope(a, sigmoid(a));
            }
            store(into + k, x.sets ? sum : sum + load(into + k));
        });
    }
};

}  // namespace gnnscale
