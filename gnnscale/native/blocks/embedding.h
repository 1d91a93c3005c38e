// y = base + the row of a table that belongs to each atom: to its element, or to the source of its structure.
#pragma once

#include "../tape.h"

namespace gnnscale {

struct Embedding : Block {
    Input base;
    Output y;
    bool by_source;
    int64_t table;

    Embedding(int64_t y, bool by_source, int64_t table, int64_t base)
        : base{base}, y{y}, by_source(by_source), table(table) {}
    std::vector<Input*> inputs() override { return base ? std::vector<Input*>{&base} : std::vector<Input*>{}; }
    std::vector<Output> outputs() const override { return {y}; }

    int64_t place(const Run& run, int64_t i) const {
        const Batch& batch = *run.batch;
        const int64_t atom = run.first_atom + i;
        return table + y(run).cols * (by_source ? batch.source[batch.structure[atom]] : batch.numbers[atom]);
    }

    void value(Run& run) override {
        const Array out = y(run);
        if (base) put_rows(out.rows, out.cols, base(run).y, base(run).row, out.y, out.row, true);
        for (int64_t i = 0; i < out.rows; i++)
            put_rows(1, out.cols, run.parameters + place(run, i), 0, out.y + i * out.row, 0, !base);
    }

    void tangent(Run& run) override { put_rows(y(run).rows, y(run).cols, base(run).t, base(run).row, y(run).t, y(run).row, true); }

    void reverse(Run& run, Pass pass) override {
        const Array out = y(run);
        if (base) put_rows(out.rows, out.cols, out.by(pass), out.row, base(run).by(pass), base(run).row, base.sets);
        if (pass == Pass::slopes) return;
        for (int64_t i = 0; i < out.rows; i++)
            put_rows(1, out.cols, out.g + i * out.row, 0, run.gradient + place(run, i), 0, false);
    }
};

}  // namespace gnnscale
