"""The tests; one file for each module of pipeline/ and stages/."""
