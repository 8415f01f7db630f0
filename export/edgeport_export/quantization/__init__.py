"""Everything int8: calibration, the search for a plan by measuring, the graph of a plan, and the decision whether it is taken."""
