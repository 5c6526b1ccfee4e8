"""One thin module per DVC stage: read the params, call the pipeline, write the stage's outputs."""
