"""Conversion factors from the units of published data to eV and Angstrom; multiply by them.

CODATA 2018: Tiesinga et al., Rev. Mod. Phys. 93, 025010 (2021); the SI of 2019 makes those marked exact.
"""

HARTREE = 27.211386245988  # eV
BOHR = 0.529177210903  # Angstrom
AVOGADRO = 6.02214076e23  # 1/mol, exact
JOULE_PER_EV = 1.602176634e-19  # exact
KJ_PER_MOL = 1e3 / (AVOGADRO * JOULE_PER_EV)  # eV, exact
KCAL_PER_MOL = 4.184 * KJ_PER_MOL  # eV, with the thermochemical calorie, exact
GPA = 1e9 * 1e-30 / JOULE_PER_EV  # eV/Angstrom^3, exact
KBAR = 0.1 * GPA

ENERGY_UNITS = {  # eV
    "eV": 1.0,
    "Hartree": HARTREE,
    "kcal/mol": KCAL_PER_MOL,
    "kJ/mol": KJ_PER_MOL,
    "meV": 1e-3,
    "Rydberg": HARTREE / 2,
}
LENGTH_UNITS = {"Angstrom": 1.0, "Bohr": BOHR, "nm": 10.0}  # Angstrom
FORCE_UNITS = {  # eV/Angstrom
    f"{energy}/{length}": ENERGY_UNITS[energy] / LENGTH_UNITS[length]
    for energy in ENERGY_UNITS
    for length in LENGTH_UNITS
}
STRESS_UNITS = {  # eV/Angstrom^3
    "eV/Angstrom^3": 1.0,
    "GPa": GPA,
    "kbar": KBAR,
    "Hartree/Bohr^3": HARTREE / BOHR**3,
}
