"""Where a difference comes from: any two models compared, the first diverging module, the stages from file to answer, the changed decisions."""
