// Executes what test_odd_inputs.py has written to a file, for compilers that watch every access to memory.
//
// All arrays have exactly the sizes that interface.h names. Results must be finite and the same bits for any number of
// threads, and a program with a wrong number in it must be refused or accepted, but not read beyond its end.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "interface.h"

using real = native_real;

static void check(bool is_so, const char* what) {
    if (is_so) return;
    std::fprintf(stderr, "not so: %s\n", what);
    std::exit(1);
}

struct File {
    FILE* handle;

    template <class T>
    std::vector<T> take(int64_t count) {
        std::vector<T> values(count);
        check(std::fread(values.data(), sizeof(T), count, handle) == (size_t)count, "the file is whole");
        return values;
    }
    int64_t whole() { return take<int64_t>(1)[0]; }
};

template <class T>
static bool are_same(const std::vector<T>& a, const std::vector<T>& b) {  // also where both are no numbers
    return a.size() == b.size() && (a.empty() || !std::memcmp(a.data(), b.data(), a.size() * sizeof(T)));
}

struct Results {
    std::vector<real> energy, forces, virial, gradient, learned;
    std::vector<double> penalties;

    bool operator==(const Results& other) const {
        return energy == other.energy && forces == other.forces && gradient == other.gradient &&
               learned == other.learned && are_same(penalties, other.penalties) && are_same(virial, other.virial);
    }
};

static bool are_finite(const std::vector<real>& values) {
    for (real value : values)
        if (!std::isfinite(value)) return false;
    return true;
}

// One batch, and everything that the library does with it.
struct Case {
    int64_t atoms, edges, structures, sources;
    std::vector<int64_t> numbers, structure, source, receivers, senders;
    std::vector<real> positions, shifts, cell, forces, stress;
    std::vector<double> energy, references;

    explicit Case(File& file) {
        atoms = file.whole(), edges = file.whole(), structures = file.whole(), sources = file.whole();
        numbers = file.take<int64_t>(atoms), structure = file.take<int64_t>(atoms);
        source = file.take<int64_t>(structures);
        receivers = file.take<int64_t>(edges), senders = file.take<int64_t>(edges);
        positions = file.take<real>(3 * atoms), shifts = file.take<real>(3 * edges), cell = file.take<real>(9 * structures);
        energy = file.take<double>(structures), forces = file.take<real>(3 * atoms);
        stress = file.take<real>(9 * structures), references = file.take<double>(119 * sources);
    }

    Results run(void* program, const std::vector<real>& parameters, int64_t threads) const {
        const NativeBatch batch{atoms,           edges,          structures,       numbers.data(),   structure.data(), source.data(),
                                receivers.data(), senders.data(), positions.data(), shifts.data(), cell.data()};
        const size_t n = parameters.size();
        Results r{std::vector<real>(atoms), std::vector<real>(3 * atoms), std::vector<real>(9 * structures),
                  std::vector<real>(n),     std::vector<real>(n),         std::vector<double>(3)};
        native_evaluate(program, parameters.data(), &batch, 1.5, threads, r.energy.data(), nullptr, nullptr);
        native_evaluate(program, parameters.data(), &batch, 1.5, threads, r.energy.data(), r.forces.data(), nullptr);
        native_evaluate(program, parameters.data(), &batch, 1.5, threads, r.energy.data(), r.forces.data(), r.virial.data());
        const std::vector<real> by_energy(atoms, 1), by_forces(3 * atoms, real(.5)), by_virial(9 * structures, real(.25));
        for (const real* last : {(const real*)nullptr, by_virial.data()})
            native_gradient(program, parameters.data(), r.gradient.data(), &batch, 1.5, threads, by_energy.data(),
                            by_forces.data(), last);
        for (int64_t loss = 0; loss < 3; loss++) {
            const bool has_stress = loss > 0;
            const NativeLabels labels{energy.data(), forces.data(), has_stress ? stress.data() : nullptr,
                                      references.data(), 1.7, 0.6};
            const double factors[3] = {1, .5, has_stress ? .1 : 0};
            for (real* gradient : {(real*)nullptr, r.learned.data()})
                native_learn(program, parameters.data(), gradient, loss > 0, &batch, &labels, loss, factors, threads,
                             r.penalties.data());
        }
        return r;
    }
};

static void take_step(int64_t hidden, std::vector<real> parameters, const std::vector<real>& gradient) {
    std::vector<real> mean(parameters.size()), square(parameters.size()), average(parameters);
    check(std::isfinite(native_norm(gradient.data(), gradient.size())), "the norm is finite");
    for (int64_t step = 1; step <= 2; step++)
        native_adamw(hidden, parameters.size(), parameters.data(), gradient.data(), mean.data(), square.data(), .01, .02, .1,
                     .9, .999, .5, step);
    native_lerp(average.data(), parameters.data(), parameters.size(), .1);
    check(are_finite(parameters) && are_finite(average), "updated parameters are finite");
}

static void read_wrong_programs(const std::vector<int64_t>& code, double cutoff, double scale) {
    for (size_t length = 0; length < code.size(); length++) {
        const std::vector<int64_t> cut(code.begin(), code.begin() + length);
        check(!native_program_new(cut.data(), length, cutoff, scale), "a program that is cut off is refused");
    }
    for (size_t place = 0; place < code.size(); place++)
        for (int64_t wrong : {INT64_MIN, int64_t(-2), int64_t(-1), int64_t(0), code[place] + 1, INT64_MAX / 8, INT64_MAX}) {
            std::vector<int64_t> other(code);
            other[place] = wrong;
            native_program_free(native_program_new(other.data(), other.size(), cutoff, scale));
        }
}

int main(int, char** arguments) {
    File file{std::fopen(arguments[1], "rb")};
    check(file.handle, "the file is there");
    check(file.whole() == native_real_bytes(), "the file has this precision");
    for (int64_t networks = file.whole(); networks > 0; networks--) {
        const auto code = file.take<int64_t>(file.whole());
        const auto numbers = file.take<double>(2);
        const auto parameters = file.take<real>(file.whole());
        read_wrong_programs(code, numbers[0], numbers[1]);
        void* program = native_program_new(code.data(), code.size(), numbers[0], numbers[1]);
        void* other = native_program_new(code.data(), code.size(), numbers[0], numbers[1]);
        check(program && other, "the program is accepted");
        for (int64_t cases = file.whole(); cases > 0; cases--) {
            const Case given(file);
            const Results one = given.run(program, parameters, 1);
            check(are_finite(one.energy) && are_finite(one.forces), "predictions are finite");
            const bool is_direct = code[4] >= 0;  // a network without slopes has no virial
            check(given.structures == 0 || are_finite(one.virial) != is_direct, "virials are finite");
            check(are_finite(one.gradient) && are_finite(one.learned), "gradients are finite");
            Results there;
            std::thread beside([&] { there = given.run(other, parameters, 2); });
            const Results here = given.run(program, parameters, 3);
            beside.join();
            check(one == here && one == there, "more threads, and another program beside, give the same bits");
            take_step(code[6], parameters, one.learned);
        }
        native_program_free(program);
        native_program_free(other);
    }
    std::fclose(file.handle);
    std::puts("all is well");
}
