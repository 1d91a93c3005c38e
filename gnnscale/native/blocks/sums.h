// Sums of rows: base + w x with a weight for each channel, a + b, and a copy to another place.
//
// All are linear, so tangents and derivatives take the same way as values.
#pragma once

#include "../tape.h"

namespace gnnscale {

struct Scale : Block {
    Input x, base;
    Output y;
    int64_t weight;

    Scale(int64_t x, int64_t y, int64_t weight, int64_t base) : x{x}, base{base}, y{y}, weight(weight) {}
    std::vector<Input*> inputs() override {
        return base ? std::vector<Input*>{&x, &base} : std::vector<Input*>{&x};
    }
    std::vector<Output> outputs() const override { return {y}; }

    void forward(const Run& run, real* Array::*part) {
        const Array in = x(run), out = y(run), below = base ? base(run) : Array{};
        for (int64_t i = 0; i < in.rows; i++)
            for (int64_t c = 0; c < in.cols; c += LANES) {
                Vector sum = load(run.parameters + weight + c) * load(in.*part + i * in.row + c);
                if (base) sum += load(below.*part + i * below.row + c);
                store(out.*part + i * out.row + c, sum);
            }
    }
    void value(Run& run) override { forward(run, &Array::y); }
    void tangent(Run& run) override { forward(run, &Array::t); }

    void reverse(Run& run, Pass pass) override {
        const Array in = x(run), out = y(run);
        const real* by = out.by(pass);
        real* into = in.by(pass);
        if (base) put_rows(out.rows, out.cols, by, out.row, base(run).by(pass), base(run).row, base.sets);
        for (int64_t c = 0; c < in.cols; c += LANES) {
            const Vector w = load(run.parameters + weight + c);
            Vector sum{};
            for (int64_t i = 0; i < in.rows; i++) {
                const int64_t k = i * in.row + c, q = i * out.row + c;
                const Vector g = load(by + q);
                if (pass != Pass::slopes) sum += g * load(in.y + k);
                if (pass == Pass::learn_slopes) sum += load(out.h + q) * load(in.t + k);
                store(into + k, x.sets ? g * w : g * w + load(into + k));
            }
            if (pass != Pass::slopes) add_to(run.gradient + weight + c, sum);
        }
    }
};

struct Sum : Block {
    Input a, b;
    Output y;

    Sum(int64_t a, int64_t b, int64_t y) : a{a}, b{b}, y{y} {}
    std::vector<Input*> inputs() override { return {&a, &b}; }
    std::vector<Output> outputs() const override { return {y}; }

    void forward(const Run& run, real* Array::*part) {
        const Array out = y(run);
        put_rows(out.rows, out.cols, a(run).*part, a(run).row, out.*part, out.row, true);
        put_rows(out.rows, out.cols, b(run).*part, b(run).row, out.*part, out.row, false);
    }
    void value(Run& run) override { forward(run, &Array::y); }
    void tangent(Run& run) override { forward(run, &Array::t); }
    void reverse(Run& run, Pass pass) override {
        const Array out = y(run);
        put_rows(out.rows, out.cols, out.by(pass), out.row, a(run).by(pass), a(run).row, a.sets);
        put_rows(out.rows, out.cols, out.by(pass), out.row, b(run).by(pass), b(run).row, b.sets);
    }
};

struct Copy : Block {
    Input x;
    Output y;

    Copy(int64_t x, int64_t y) : x{x}, y{y} {}
    std::vector<Input*> inputs() override { return {&x}; }
    std::vector<Output> outputs() const override { return {y}; }

    void value(Run& run) override { put_rows(x(run).rows, x(run).cols, x(run).y, x(run).row, y(run).y, y(run).row, true); }
    void tangent(Run& run) override { put_rows(x(run).rows, x(run).cols, x(run).t, x(run).row, y(run).t, y(run).row, true); }
    void reverse(Run& run, Pass pass) override {
        const Array in = x(run), out = y(run);
        put_rows(in.rows, in.cols, out.by(pass), out.row, in.by(pass), in.row, x.sets);
    }
};

}  // namespace gnnscale
