"""MedPFL's vocabulary: types, roles, threat models, spec strings, experiments. Imports no other MedPFL package."""
