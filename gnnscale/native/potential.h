// Energies, forces and virials of a batch by any tape, the penalties of their errors, and gradients by the parameters.
//
// A batch is cut into lanes of whole structures, by its atoms alone. Each lane goes through all blocks by itself, so that
// its arrays stay in a core's cache. Lanes take turns in a few groups, each with a gradient of its own, which threads
// share out: so results are the same bits for any number of threads.
#pragma once

#include <algorithm>

#include "tape.h"
#include "threads.h"

namespace gnnscale {

constexpr int64_t LANE_ATOMS = 96, MOST_GROUPS = 8, ELEMENTS = 119;

using Labels = NativeLabels;

struct Loss {
    int64_t kind;      // 0: |x|; 1: smooth below BEND; 2: x^2
    double factor[3];  // of the penalties of energies, forces and virials; 0 for virials: none
    static constexpr double BEND = 0.01;

    double penalty(double x) const {
        const double a = std::fabs(x);
        return kind == 0 ? a : kind == 2 ? x * x : a < BEND ? x * x / (2 * BEND) : a - BEND / 2;
    }
    double slope(double x) const {
        const double sign = (x > 0) - (x < 0);
        return kind == 0 ? sign : kind == 2 ? 2 * x : std::fabs(x) < BEND ? x / BEND : sign;
    }
};

struct Network {
    Tape tape;
    int64_t parameters = 0;
    int radial = 0, scales = 4;
    double cutoff = 0, scale = 0;
    std::vector<std::unique_ptr<Run>> runs;        // of each thread
    std::vector<std::vector<real>> gradients;      // of each group of lanes but the first

    bool direct() const { return tape.forces >= 0; }
    int64_t bytes() const {
        int64_t sum = 0;
        for (auto& run : runs) sum += run->bytes();
        for (auto& gradient : gradients) sum += held(gradient);
        return sum;
    }
};

struct Lane {
    int64_t first_structure, end_structure, first_atom, end_atom, first_edge, end_edge;
};

// Lanes of about as many atoms.
inline std::vector<Lane> cut_into_lanes(const Batch& batch) {
    const int64_t count = std::max<int64_t>(1, std::min(batch.atoms / LANE_ATOMS, batch.structures));
    std::vector<Lane> lanes;
    int64_t atom = 0, edge = 0, structure = 0;
    for (int64_t k = 1; k <= count && structure < batch.structures; k++) {
        Lane lane{structure, structure, atom, atom, edge, edge};
        while (structure < batch.structures && (k == count || atom * count < k * batch.atoms)) {
            for (; atom < batch.atoms && batch.structure[atom] == structure; atom++) {}
            structure++;
        }
        for (; edge < batch.edges && batch.receivers[edge] < atom; edge++) {}
        lane.end_structure = structure;
        lane.end_atom = atom;
        lane.end_edge = edge;
        if (lane.end_structure > lane.first_structure) lanes.push_back(lane);
    }
    return lanes;
}

// A network with many parameters has fewer groups, as each has a gradient of its own.
inline int64_t count_groups(const Network& network, const std::vector<Lane>& lanes) {
    return std::min<int64_t>(network.parameters > (1 << 22) ? 2 : MOST_GROUPS, lanes.size());
}

// Calls work(run, lane, its number, its group) for all lanes of a batch; those of a group come one after the other.
template <class F>
static void each_lane(Network& network, const Batch& batch, const std::vector<Lane>& lanes, int64_t threads, F work) {
    const int64_t groups = count_groups(network, lanes), count = std::max<int64_t>(1, std::min(threads, groups));
    while ((int64_t)network.runs.size() < count) network.runs.emplace_back(new Run);
    Threads::of_this_process().run(count, [&](int64_t thread) {
        Run& run = *network.runs[thread];
        run.batch = &batch;
        for (int64_t group = thread; group < groups; group += count)
            for (size_t k = group; k < lanes.size(); k += groups) work(run, lanes[k], k, group);
    });
}

// Energies of atoms, forces in units of the training, and the virial of the lane's structures where it is wanted.
inline void evaluate_lane(Network& network, Run& run, const real* parameters, const Lane& lane, double force_factor,
                          bool slopes, bool virial) {
    const Batch& batch = *run.batch;
    const Tape& tape = network.tape;
    run.first_atom = lane.first_atom;
    run.first_edge = lane.first_edge;
    run.parameters = parameters;
    run.geometry.prepare(batch, lane.first_atom, lane.end_atom, lane.first_edge, lane.end_edge, network.radial,
                         network.scales, !network.direct());
    run.geometry.values(batch, lane.first_atom, lane.first_edge, network.cutoff, network.scale);
    tape.prepare(run);
    tape.values(run);
    const Array& energy = run.arrays[tape.energy];
    run.energies.resize(run.atoms());
    for (int64_t i = 0; i < run.atoms(); i++) run.energies[i] = energy.y[i * energy.row];
    run.forces.resize(3 * run.atoms());
    if (virial) run.virial.assign(9 * batch.structures, network.direct() ? NAN : 0);  // without slopes there are none
    if (network.direct()) {
        std::copy_n(run.arrays[tape.forces].y, 3 * run.atoms(), run.forces.data());
        return;
    }
    if (!slopes) return;
    for (int64_t i = 0; i < run.atoms(); i++) energy.h[i * energy.row] = 1;
    std::fill(run.geometry.by_edge.begin(), run.geometry.by_edge.end(), 0);
    tape.reverse(run, Pass::slopes);
    run.geometry.reverse(batch, lane.first_atom, force_factor, run.forces.data(), virial ? run.virial.data() : nullptr);
}

// Adds to `gradient` that of a loss with the derivatives by_energy, by_forces and by_virial, after evaluate_lane.
inline void differentiate_lane(Network& network, Run& run, real* gradient, double force_factor, bool virial) {
    const Tape& tape = network.tape;
    const Array& energy = run.arrays[tape.energy];
    run.gradient = gradient;
    for (int64_t i = 0; i < run.atoms(); i++) energy.g[i * energy.row] = run.by_energy[i];
    if (network.direct()) {
        std::copy_n(run.by_forces.data(), 3 * run.atoms(), run.arrays[tape.forces].g);
        tape.reverse(run, Pass::learn);
        return;
    }
    run.geometry.tangent(*run.batch, run.first_atom, force_factor, run.by_forces.data(),
                         virial ? run.by_virial.data() : nullptr);
    tape.tangents(run);
    tape.reverse(run, Pass::learn_slopes);
}

inline double volume(const real* c) {
    return std::fabs((double)c[0] * ((double)c[4] * c[8] - (double)c[5] * c[7]) -
                     (double)c[1] * ((double)c[3] * c[8] - (double)c[5] * c[6]) +
                     (double)c[2] * ((double)c[3] * c[7] - (double)c[4] * c[6]));
}

// The penalties of a lane's errors, added to `penalties`, and their derivatives by energies, forces and virials.
inline void compare_lane(Run& run, const Lane& lane, const Labels& labels, const Loss& loss, double* penalties) {
    const Batch& batch = *run.batch;
    const bool virial = loss.factor[2] != 0;
    // An error of a label that is not there is 0, but what the network cannot say is no number.
    const auto error = [](double said, double label) { return std::isfinite(label) ? said - label : said - said; };
    run.by_energy.resize(run.atoms());
    run.by_forces.resize(3 * run.atoms());
    if (virial) run.by_virial.assign(9 * batch.structures, 0);
    int64_t atom = lane.first_atom;
    for (int64_t s = lane.first_structure; s < lane.end_structure; s++) {
        const int64_t begin = atom;
        double energy = 0, reference = 0;
        for (; atom < lane.end_atom && batch.structure[atom] == s; atom++) {
            energy += run.energies[atom - lane.first_atom];
            reference += labels.references[batch.source[s] * ELEMENTS + batch.numbers[atom]];
        }
        if (atom == begin) continue;
        const double per_atom = 1.0 / (atom - begin);
        const double x = error(energy, (labels.energy[s] - reference) / labels.energy_scale) * per_atom;
        penalties[0] += loss.penalty(x);
        const real by_energy = loss.factor[0] * loss.slope(x) * per_atom;
        for (int64_t i = begin; i < atom; i++) run.by_energy[i - lane.first_atom] = by_energy;
        if (!virial) continue;
        const double size = volume(batch.cell + 9 * s), factor = size > 0 ? size / labels.energy_scale : NAN;
        for (int k = 0; k < 9; k++) {
            const double y = error(run.virial[9 * s + k], labels.stress[9 * s + k] * factor) * per_atom;
            penalties[2] += loss.penalty(y);
            run.by_virial[9 * s + k] = loss.factor[2] * loss.slope(y) * per_atom;
        }
    }
    const real force_unit = 1 / labels.force_scale;
    for (int64_t k = 0; k < 3 * run.atoms(); k++) {
        const double x = error(run.forces[k], labels.forces[3 * lane.first_atom + k] * force_unit);
        penalties[1] += loss.penalty(x);
        run.by_forces[k] = loss.factor[1] * loss.slope(x);
    }
}

// Adds up in their order what groups of lanes have gathered: the first in `gradient` itself, the others beside.
template <class F>
static void gather_gradients(Network& network, const std::vector<Lane>& lanes, real* gradient, F all_lanes) {
    const int64_t beside = std::max<int64_t>(0, count_groups(network, lanes) - 1);
    if ((int64_t)network.gradients.size() < beside) network.gradients.resize(beside);
    for (int64_t k = 0; k < beside; k++) network.gradients[k].assign(network.parameters, 0);
    all_lanes([&](int64_t group) { return group ? network.gradients[group - 1].data() : gradient; });
    for (int64_t k = 0; k < beside; k++) put_rows(1, network.parameters, network.gradients[k].data(), 0, gradient, 0, false);
}

inline void evaluate(Network& network, const real* parameters, const Batch& batch, double force_factor, int64_t threads,
                     real* energy, real* forces, real* virial) {
    if (virial) std::fill_n(virial, 9 * batch.structures, 0);
    const auto lanes = cut_into_lanes(batch);
    each_lane(network, batch, lanes, threads, [&](Run& run, const Lane& lane, size_t, int64_t) {
        evaluate_lane(network, run, parameters, lane, force_factor, forces || virial, virial);
        std::copy_n(run.energies.data(), run.atoms(), energy + lane.first_atom);
        if (forces) std::copy_n(run.forces.data(), 3 * run.atoms(), forces + 3 * lane.first_atom);
        if (virial)
            std::copy(run.virial.begin() + 9 * lane.first_structure, run.virial.begin() + 9 * lane.end_structure,
                      virial + 9 * lane.first_structure);
    });
}

inline void differentiate(Network& network, const real* parameters, real* gradient, const Batch& batch,
                          double force_factor, int64_t threads, const real* by_energy, const real* by_forces,
                          const real* by_virial) {
    std::fill_n(gradient, network.parameters, 0);
    const auto lanes = cut_into_lanes(batch);
    gather_gradients(network, lanes, gradient, [&](auto gradient_of) {
        each_lane(network, batch, lanes, threads, [&](Run& run, const Lane& lane, size_t, int64_t group) {
            evaluate_lane(network, run, parameters, lane, force_factor, true, false);
            run.by_energy.assign(by_energy + lane.first_atom, by_energy + lane.end_atom);
            run.by_forces.assign(by_forces + 3 * lane.first_atom, by_forces + 3 * lane.end_atom);
            if (by_virial) run.by_virial.assign(by_virial, by_virial + 9 * batch.structures);
            differentiate_lane(network, run, gradient_of(group), force_factor, by_virial);
        });
    });
}

inline void learn(Network& network, const real* parameters, real* gradient, bool add, const Batch& batch,
                  const Labels& labels, const Loss& loss, int64_t threads, double* penalties) {
    const double force_factor = labels.energy_scale / labels.force_scale;
    const bool virial = loss.factor[2] != 0;
    const auto lanes = cut_into_lanes(batch);
    std::vector<double> sums(3 * lanes.size(), 0);
    const auto all = [&](auto gradient_of) {
        each_lane(network, batch, lanes, threads, [&](Run& run, const Lane& lane, size_t k, int64_t group) {
            evaluate_lane(network, run, parameters, lane, force_factor, true, virial);
            compare_lane(run, lane, labels, loss, &sums[3 * k]);
            if (gradient) differentiate_lane(network, run, gradient_of(group), force_factor, virial);
        });
    };
    if (gradient) {
        if (!add) std::fill_n(gradient, network.parameters, 0);
        gather_gradients(network, lanes, gradient, all);
    } else {
        all([](int64_t) { return (real*)nullptr; });
    }
    std::fill_n(penalties, 3, 0);
    for (size_t k = 0; k < sums.size(); k++) penalties[k % 3] += sums[k];
}

}  // namespace gnnscale
