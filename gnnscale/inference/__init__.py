"""Trained models at work: errors on held-out data and the similarity of atoms from layer to layer."""
