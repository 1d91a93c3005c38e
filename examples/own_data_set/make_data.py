"""Write copper.xyz and copper.npz: 160 shaken copper crystals in forty cells, labelled by effective-medium theory.

They stand for your own data; nothing here needs gnnscale.
"""

import sys
from pathlib import Path

import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write

folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent)
random = np.random.default_rng(0)
frames = []
for material in range(40):
    cell = bulk("Cu", cubic=True, a=random.uniform(3.4, 3.9))
    for _ in range(4):
        atoms = cell.repeat((2, 1, 1))
        atoms.rattle(random.uniform(0.02, 0.2), rng=random)
        atoms.calc = EMT()
        atoms.get_forces()
        atoms.info["material"] = f"cell-{material}"  # frames of one cell must not straddle training and test
        frames.append(atoms)

write(folder / "copper.xyz", frames, format="extxyz")
np.savez(
    folder / "copper.npz",
    numbers=frames[0].numbers,
    positions=np.array([a.positions for a in frames]),
    cell=np.array([a.cell.array for a in frames]),
    energy=np.array([a.get_potential_energy() for a in frames]),
    forces=np.array([a.get_forces() for a in frames]),
    material=np.array([a.info["material"] for a in frames]),
)
print(f"{len(frames)} frames: {folder / 'copper.xyz'}, {folder / 'copper.npz'}")
