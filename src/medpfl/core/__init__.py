"""The words of MedPFL: types, roles, threat models, spec strings, experiments. Imports nothing of ours."""
