// y = base + x W^T + b, for each row; W is (columns of y, columns of x).
//
// tangent: t_y = t_base + t_x W^T. reverse: g_x = g_y W, and the same for h; dL/dW = g^T x + h^T t, one product over values
// and tangents, as these lie one after the other; dL/db = sum of g.
#pragma once

#include "../tape.h"

namespace gnnscale {

struct Linear : Block {
    Input x, base;
    Output y;
    int64_t weight, bias;

    Linear(int64_t x, int64_t y, int64_t weight, int64_t bias, int64_t base)
        : x{x}, base{base}, y{y}, weight(weight), bias(bias) {}
    std::vector<Input*> inputs() override {
        return base ? std::vector<Input*>{&x, &base} : std::vector<Input*>{&x};
    }
    std::vector<Output> outputs() const override { return {y}; }

    void value(Run& run) override {
        const Array in = x(run), out = y(run);
        if (base) {
            put_rows(out.rows, out.cols, base(run).y, base(run).row, out.y, out.row, true);
            if (bias >= 0)
                for (int64_t i = 0; i < out.rows; i++)
                    put_rows(1, out.cols, run.parameters + bias, 0, out.y + i * out.row, 0, false);
        } else if (bias >= 0) {
            put_rows(out.rows, out.cols, run.parameters + bias, 0, out.y, out.row, true);
        }
        product_nt(out.rows, out.cols, in.cols, in.y, in.row, run.parameters + weight, in.cols, base || bias >= 0, out.y,
                   out.row);
    }

    void tangent(Run& run) override {
        const Array in = x(run), out = y(run);
        if (base) put_rows(out.rows, out.cols, base(run).t, base(run).row, out.t, out.row, true);
        product_nt(out.rows, out.cols, in.cols, in.t, in.row, run.parameters + weight, in.cols, bool(base), out.t,
                   out.row);
    }

    void reverse(Run& run, Pass pass) override {
        const Array in = x(run), out = y(run);
        const real* by = out.by(pass);
        if (base) put_rows(out.rows, out.cols, by, out.row, base(run).by(pass), base(run).row, base.sets);
        if (pass != Pass::slopes) {
            product_tn(out.cols, in.cols, both(pass, out.rows), out.g, out.row, in.y, in.row, true, run.gradient + weight,
                       in.cols);
            if (bias >= 0) add_column_sums(out.rows, out.cols, out.g, out.row, run.gradient + bias);
        }
        product_nn(out.rows, in.cols, out.cols, by, out.row, run.parameters + weight, in.cols, !x.sets, in.by(pass),
                   in.row);
    }
};

// y = x W_s^T with s the source of the atom's structure: a head for each source.
struct SourceLinear : Block {
    Input x;
    Output y;
    int64_t weight;

    SourceLinear(int64_t x, int64_t y, int64_t weight) : x{x}, y{y}, weight(weight) {}
    std::vector<Input*> inputs() override { return {&x}; }
    std::vector<Output> outputs() const override { return {y}; }

    // Calls f(first row, rows, offset of the matrix) for atoms that follow each other and have one source.
    template <class F>
    void each(const Run& run, F f) {
        const Array in = x(run), out = y(run);
        const auto source = [&](int64_t i) { return run.batch->source[run.batch->structure[run.first_atom + i]]; };
        for (int64_t i = 0, end; i < in.rows; i = end) {
            for (end = i + 1; end < in.rows && source(end) == source(i); end++) {}
            f(i, end - i, weight + source(i) * out.cols * in.cols);
        }
    }

    void value(Run& run) override {
        const Array in = x(run), out = y(run);
        each(run, [&](int64_t i, int64_t n, int64_t w) {
            product_nt(n, out.cols, in.cols, in.y + i * in.row, in.row, run.parameters + w, in.cols, false,
                       out.y + i * out.row, out.row);
        });
    }

    void tangent(Run& run) override {
        const Array in = x(run), out = y(run);
        each(run, [&](int64_t i, int64_t n, int64_t w) {
            product_nt(n, out.cols, in.cols, in.t + i * in.row, in.row, run.parameters + w, in.cols, false,
                       out.t + i * out.row, out.row);
        });
    }

    void reverse(Run& run, Pass pass) override {
        const Array in = x(run), out = y(run);
        each(run, [&](int64_t i, int64_t n, int64_t w) {
            if (pass != Pass::slopes)
                product_tn(out.cols, in.cols, n, out.g + i * out.row, out.row, in.y + i * in.row, in.row, true,
                           run.gradient + w, in.cols);
            if (pass == Pass::learn_slopes)
                product_tn(out.cols, in.cols, n, out.h + i * out.row, out.row, in.t + i * in.row, in.row, true,
                           run.gradient + w, in.cols);
            product_nn(n, in.cols, out.cols, out.by(pass) + i * out.row, out.row, run.parameters + w, in.cols, !x.sets,
                       in.by(pass) + i * in.row, in.row);
        });
    }
};

}  // namespace gnnscale
