"""Studies: grids of runs at equal cost, each one resumable command that leaves a table and figures."""
