/* The interface of the native library: a network computed on a CPU, from C, C++ or anything that calls C.
 *
 * The library is one file, _native_SET_PRECISION.so, for an instruction set (baseline, avx2, avx512) and a precision
 * (float, double); define GNNSCALE_DOUBLE before this header for the second. It needs neither Python nor torch.
 *
 *     void* network = native_program_new(code, length, cutoff, scale);
 *     native_evaluate(network, parameters, &batch, force_factor, threads, energy, forces, NULL);
 *     native_program_free(network);
 *
 * A program, its parameters and the two numbers come from gnnscale.models.recording and gnnscale.native.packing. Arrays are
 * contiguous and row-major; the caller owns them. A program may be used by one call at a time; different ones at once.
 * Results are the same bits for any number of threads.
 */
#ifndef GNNSCALE_NATIVE_INTERFACE_H
#define GNNSCALE_NATIVE_INTERFACE_H

#include <stdint.h>

#if defined(REAL) /* where the library itself is compiled */
typedef REAL native_real;
#elif defined(GNNSCALE_DOUBLE)
typedef double native_real;
#else
typedef float native_real;
#endif

/* Structures as one graph: A atoms, E edges, B structures. Every edge goes from a sender j to a receiver i. */
struct NativeBatch {
    int64_t atoms, edges, structures;
    const int64_t* numbers;         /* (A,) atomic numbers, at most 118 */
    const int64_t* structure;       /* (A,) ascending: the structure to which an atom belongs */
    const int64_t* source;          /* (B,) the data set from which a structure comes */
    const int64_t* receivers;       /* (E,) ascending */
    const int64_t* senders;         /* (E,) */
    const native_real* positions;   /* (A, 3) Angstrom */
    const native_real* shifts;      /* (E, 3) of j's image, in lattice vectors */
    const native_real* cell;        /* (B, 3, 3) Angstrom, rows are the lattice vectors */
};

/* What is known of a batch; NaN where it is not. */
struct NativeLabels {
    const double* energy;           /* (B,) eV */
    const native_real* forces;      /* (A, 3) eV/Angstrom */
    const native_real* stress;      /* (B, 3, 3) eV/Angstrom^3, or NULL */
    const double* references;       /* (sources, 119) eV, the energy of an atom of each element */
    double energy_scale;            /* eV */
    double force_scale;             /* eV/Angstrom */
};

#ifdef __cplusplus
extern "C" {
#endif

const char* native_digest(void);    /* of the sources, by which an outdated build is detected */
int64_t native_real_bytes(void);

/* NULL if the code is no program. `scale` is 1/sqrt(average number of neighbours) of the network. */
void* native_program_new(const int64_t* code, int64_t length, double cutoff, double scale);
void native_program_free(void* program);
int64_t native_program_bytes(const void* program);  /* that it holds for batches as large as it has seen */

/* Energies of atoms (A,) in units of energy_scale and without references; forces (A, 3), times force_factor where they are
 * slopes of the energy (energy_scale/force_scale: then in units of force_scale; energy_scale: in eV/Angstrom); virials
 * dE/d(strain) (B, 3, 3) in units of energy_scale. Forces and virials may be NULL. */
void native_evaluate(void* program, const native_real* parameters, const struct NativeBatch* batch, double force_factor,
                     int64_t threads, native_real* energy, native_real* forces, native_real* virial);

/* The gradient, by the parameters, of any loss that has these derivatives by what native_evaluate gives. */
void native_gradient(void* program, const native_real* parameters, native_real* gradient, const struct NativeBatch* batch,
                     double force_factor, int64_t threads, const native_real* by_energy, const native_real* by_forces,
                     const native_real* by_virial);

/* The penalties of energies per atom, forces and virials per atom, summed (3,), and the gradient of their sum with the
 * factors: set, or added to if `add`; NULL: penalties alone. Loss 0: |x|; 1: smooth below 0.01; 2: x^2. */
void native_learn(void* program, const native_real* parameters, native_real* gradient, int64_t add,
                  const struct NativeBatch* batch, const struct NativeLabels* labels, int64_t loss, const double* factors,
                  int64_t threads, double* penalties);

/* Of an optimiser, on flat arrays: the norm, an update by AdamW (the `step`-th, from 1; those after the first n_hidden
 * have no decay), and mean += share (x - mean). */
double native_norm(const native_real* x, int64_t n);
void native_adamw(int64_t n_hidden, int64_t n, native_real* parameters, const native_real* gradient, native_real* mean,
                  native_real* square, double rate_hidden, double rate_other, double decay_hidden, double b1, double b2,
                  double factor, int64_t step);
/* A step of Muon for one matrix: matrix = decay * matrix - rate * (the momentum of factor * gradient, made orthogonal). */
void native_muon(int64_t rows, int64_t columns, native_real* matrix, const native_real* gradient, native_real* mean,
                 double rate, double decay, double momentum, double factor);
void native_lerp(native_real* mean, const native_real* x, int64_t n, double share);

#ifdef __cplusplus
}
#endif
#endif
