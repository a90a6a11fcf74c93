"""How good are the tests of somebody else? Faults are planted into their layer, one at a time, and their tests are run."""
