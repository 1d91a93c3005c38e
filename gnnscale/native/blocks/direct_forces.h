// From an atom's numbers (energy, gates) and its vectors V to its energy and its force: 8 times the mean of V_k gate_k.
//
// The readout of direct forces, which have no tangent: nothing here is differentiated by positions.
#pragma once

#include "../tape.h"

namespace gnnscale {

struct DirectForces : Block {
    Input v, x;
    Output energy, force;
    int64_t channels;
    real mean;

    DirectForces(int64_t v, int64_t x, int64_t energy, int64_t force, int64_t channels)
        : v{v}, x{x}, energy{energy}, force{force}, channels(channels), mean((real)8 / channels) {}
    std::vector<Input*> inputs() override { return {&v, &x}; }
    std::vector<Output> outputs() const override { return {energy, force}; }

    void value(Run& run) override {
        const Array in = x(run), vectors = v(run);
        for (int64_t i = 0; i < in.rows; i++) {
            const real* a = in.y + i * in.row;
            energy(run).y[i] = a[0];
            for (int c = 0; c < 3; c++) {
                const real* b = vectors.y + (c * in.rows + i) * vectors.row;
                real sum = 0;
                for (int64_t k = 0; k < channels; k++) sum += b[k] * a[1 + k];
                force(run).y[3 * i + c] = sum * mean;
            }
        }
    }

    void tangent(Run&) override {}

    void reverse(Run& run, Pass) override {
        const Array in = x(run), vectors = v(run);
        for (int64_t i = 0; i < in.rows; i++) {
            const real* a = in.y + i * in.row;
            real* by = in.g + i * in.row;
            if (x.sets) std::memset(by, 0, sizeof(real) * in.cols);
            by[0] += energy(run).g[i];
            for (int c = 0; c < 3; c++) {
                const int64_t place = (c * in.rows + i) * vectors.row;
                const real g = force(run).g[3 * i + c] * mean;
                for (int64_t k = 0; k < channels; k++) {
                    by[1 + k] += g * vectors.y[place + k];
                    vectors.g[place + k] = g * a[1 + k] + (v.sets ? 0 : vectors.g[place + k]);
                }
            }
        }
    }
};

}  // namespace gnnscale
