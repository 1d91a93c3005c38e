// y = x n with n = (x.x/W + eps)^(-1/2), for each row of W channels.
//
// tangent: t_y = n (t_x - y (y.t_x)/W). reverse: g_x = n (g_y - y (y.g_y)/W), the same for h. Through tangents also
// - n^2/W ((h_y.t_x - 3 (h_y.y) (y.t_x)/W) y + (y.t_x) h_y + (h_y.y) t_x).
#pragma once

#include "../tape.h"

namespace gnnscale {

struct Norm : Block {
    static constexpr real EPS = (real)1e-6;

    Input x;
    Output y, n;
    real width;  // without padding

    Norm(int64_t x, int64_t y, int64_t n, int64_t width) : x{x}, y{y}, n{n}, width(width) {}
    std::vector<Input*> inputs() override { return {&x}; }
    std::vector<Output> outputs() const override { return {y, n}; }

    void value(Run& run) override {
        const Array in = x(run), out = y(run), norms = n(run);
        for (int64_t i = 0; i < in.rows; i++) {
            const real* a = in.y + i * in.row;
            const real inverse = 1 / std::sqrt(dot(in.cols, a, a) / width + EPS);
            norms.y[i] = inverse;
            for (int64_t c = 0; c < in.cols; c += LANES) store(out.y + i * out.row + c, load(a + c) * inverse);
        }
    }

    void tangent(Run& run) override {
        const Array in = x(run), out = y(run), norms = n(run);
        for (int64_t i = 0; i < in.rows; i++) {
            const real *value = out.y + i * out.row, *t = in.t + i * in.row, along = dot(in.cols, value, t) / width;
            for (int64_t c = 0; c < in.cols; c += LANES)
                store(out.t + i * out.row + c, (load(t + c) - load(value + c) * along) * norms.y[i]);
        }
    }

    void reverse(Run& run, Pass pass) override {
        const Array in = x(run), out = y(run), norms = n(run);
        const bool second = pass == Pass::learn_slopes;
        for (int64_t i = 0; i < in.rows; i++) {
            const real *value = out.y + i * out.row, *by = out.by(pass) + i * out.row, inverse = norms.y[i];
            const real *h = second ? out.h + i * out.row : by, *t = second ? in.t + i * in.row : by;
            real of_value = dot(in.cols, by, value) / width * inverse, of_h = 0, of_t = 0;
            if (second) {
                const real factor = inverse * inverse / width;
                const real ht = dot(in.cols, h, t), hy = dot(in.cols, h, value), yt = dot(in.cols, value, t);
                of_value += factor * (ht - 3 * hy * yt / width);
                of_h = factor * yt;
                of_t = factor * hy;
            }
            real* into = in.by(pass) + i * in.row;
            for (int64_t c = 0; c < in.cols; c += LANES) {
                Vector sum = load(by + c) * inverse - load(value + c) * of_value;
                if (second) sum -= load(h + c) * of_h + load(t + c) * of_t;
                store(into + c, x.sets ? sum : sum + load(into + c));
            }
        }
    }
};

}  // namespace gnnscale
