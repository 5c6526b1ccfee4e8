"""Stage `facts`: read the facts, measure which of them the model knows, choose, and keep every reason."""

from pipeline.compute import fetch, inputs, runs
from pipeline.compute.known_job import KnownJob
from pipeline.facts.choose import KnownRule, choose, facts_to_frame
from pipeline.facts.reading import left_out_frame
from pipeline.lm import noise
from pipeline.settings.params import Params
from pipeline.tables import write, write_csv, write_json
from stages._run import run_stage


def main(params: Params) -> None:
    """The fact file to data/facts.parquet and left_out.csv, and the embeddings' deviation to embedding_sd.json."""
    file = inputs.candidates(params)
    job = KnownJob(params, inputs.model(params), tuple(file.facts))
    known = job.read(runs.run(job))
    chosen = choose(file.facts, known, KnownRule(**params.facts.known.model_dump()), params.facts.count)
    write(facts_to_frame(file.facts, known, chosen, file.left_out), inputs.DATA / "facts.parquet")
    write_csv(left_out_frame(file.left_out), inputs.DATA / "left_out.csv")
    # Over all facts of the file, not the chosen ones, so that the noise does not change with their number.
    sd = noise.embedding_sd(fetch.opened(params), (fact.subject for fact in file.facts))
    write_json(
        {"embedding_sd": sd, "subjects": len({fact.subject for fact in file.facts})},
        inputs.DATA / "embedding_sd.json",
    )


if __name__ == "__main__":
    run_stage("facts", main)
