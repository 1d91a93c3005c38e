"""The options of each model with exact counts of parameters, FLOPs and activation memory; no torch, so plans may ask."""
